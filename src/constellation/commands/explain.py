"""Explain predictions: what of each customer's events and record moved one answer, by integrated gradients."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from constellation.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from constellation.bundle import Bundle
    from constellation.explanation import Explanation, Options
    from constellation.journeys.dataset import DataSet
    from constellation.journeys.store import Store
    from constellation.tracking import Run

SHOWN_CONTRIBUTIONS = 8


def explain(
    run: Run,
    *,
    trained: str | Path,
    answer: str,
    data: DataSet | None = None,
    events: str | None = None,
    attributes: str | None = None,
    cutoff: str | int | None = None,
    customers: Sequence[Any] | None = None,
    num_customers: int = 200,
    num_reference: int = 500,
    num_shown: int = 3,
    options: Options | None = None,
    trusted: Sequence[str] = (),
) -> dict[str, float]:
    """Write ``contributions.parquet`` (customer x event x field), ``customers.parquet`` and ``fields.parquet``.

    trained: a run or a bundle. answer: ``value_91d``, ``purchases_30d``, ``value_91d_p_zero``, ``value_91d_q90``,
    ``next_product:milk``, or any other answer of one number. The customers are those of ``data``, or of a file
    ``events`` (with ``attributes``) as ``score`` reads it, at ``cutoff`` (null: the test cutoff of ``data``, or the end
    of the last event's day). customers: their ids; null: ``num_customers`` by chance, always the same ones.
    num_reference: customers whose averages are what each prediction is compared with. num_shown: how many are printed
    and drawn. The tables hold customer ids, so they stay in the folder; pictures name nobody.
    """
    from constellation.bundle import Bundle, locate
    from constellation.explanation.asking import rows_of, some_at_risk
    from constellation.explanation.pictures import customer_picture, fields_picture
    from constellation.tracking import Tracking

    if min(num_customers, num_reference) < 1 or num_shown < 0:
        raise InputError("num_customers and num_reference must be at least 1, and num_shown at least 0.")
    folder = locate(trained, tracking=run.tracking if isinstance(run.tracking, Tracking) else None)
    bundle = Bundle.load(folder, trusted=tuple(trusted))
    store, moment = _questions(bundle, data, events, attributes, cutoff)
    wanted = some_at_risk(store, moment, num_customers) if customers is None else rows_of(store, customers)
    found = bundle.explain_customers(
        store,
        wanted,
        moment,
        answer,
        some_at_risk(store, moment, num_reference),
        options=options,
        progress=_progress(),
    )
    found.contributions.to_parquet(run.folder / "contributions.parquet", index=False)
    found.customers.to_parquet(run.folder / "customers.parquet", index=False)
    fields = found.by_field()
    run.log_table("fields", fields)
    metrics = _metrics(found)
    run.log_metrics(metrics)
    run.set_tag("answer", found.answer)
    run.set_tag("bundle", folder.parent.name if folder.name == "bundle" else folder.name)
    unit = bundle.schema.currency or "" if answer.startswith("value_") and not answer.endswith("p_zero") else ""
    run.log_figure("fields", fields_picture(found, unit))
    if bundle.corrections is not None:
        print("The bundle is recalibrated; explained is what its model says before that.")
    _say(found, fields, metrics, unit)
    for place in range(min(num_shown, len(found.customers))):
        row = found.customers.iloc[place]
        largest = found.largest(place)
        _say_customer(row, largest, unit)
        title = f"Customer {place + 1}: {found.answer} {row['prediction']:.4g} against {found.baseline:.4g} on average"
        run.log_figure(f"customer_{place + 1}", customer_picture(largest, title, unit))
    print(f"Contributions: {run.folder / 'contributions.parquet'}")
    return metrics


def _questions(
    bundle: Bundle, data: DataSet | None, events: str | None, attributes: str | None, cutoff: str | int | None
) -> tuple[Store, int]:
    """The store to read and the cutoff in its time."""
    from constellation.bundle.raw import read_attributes, read_events
    from constellation.bundle.reading import Reading, cutoff_time
    from constellation.journeys.derived_windows import settle
    from constellation.journeys.prepare import prepare
    from constellation.journeys.windows import Windows
    from constellation.schema import CUSTOMER_ID, REQUIRED

    if events is not None:
        wanted = [*REQUIRED, *bundle.vocabulary.kinds, *bundle.schema.order_by]
        table, people = read_events(events, bundle.schema, wanted), None
        if attributes is not None and CUSTOMER_ID in table.columns:
            known = [CUSTOMER_ID, *bundle.vocabulary.attribute_names]
            people = read_attributes(attributes, known, table[CUSTOMER_ID])
        reading = Reading.of(table, people, cutoff, bundle.schema, bundle.vocabulary)
        return reading.store, reading.cutoff
    if data is None:
        raise InputError("A bundle does not hold the events to explain: name data=... or events=file.parquet.")
    store = prepare(data)
    if cutoff is not None:
        return store, cutoff_time(cutoff, store.schema)
    windows = settle(data.windows, store)
    if isinstance(windows, Windows) and store.has_clock:
        return store, windows.cutoffs(store)[1]
    return store, store.manifest.observed_until


def _metrics(found: Explanation) -> dict[str, float]:
    gaps = found.customers["relative_gap"]
    return {
        "explain/num_customers": float(len(found.customers)),
        "explain/num_reference": float(found.num_reference),
        "explain/baseline": found.baseline,
        "explain/prediction_mean": float(found.customers["prediction"].mean()),
        "explain/gap_largest": float(gaps.max()),
        "explain/gap_median": float(gaps.median()),
        "explain/share_complete": float(found.customers["is_complete"].mean()),
        "explain/steps_mean": float(found.customers["steps"].mean()),
    }


def _say(found: Explanation, fields: pd.DataFrame, metrics: dict[str, float], unit: str) -> None:
    from constellation.explanation.pictures import field_names

    print(
        f"{found.answer} of {len(found.customers):,} customers, against {found.baseline:.4g} {unit}".rstrip()
        + f": the average of {found.num_reference:,} customers whose events and record all say what is average."
    )
    print(
        f"The contributions miss the differences by {metrics['explain/gap_median']:.1e} in the median, "
        f"{metrics['explain/gap_largest']:.1e} at most, of the difference."
    )
    missing = int((~found.customers["is_complete"]).sum())
    if missing:
        print(
            f"  For {missing:,} customers the gap stays over the tolerance with all steps: see is_complete in "
            "customers.parquet, and raise options.max_steps."
        )
    print("What moves it, mean absolute contribution:")
    for name, (_, row) in zip(field_names(fields), fields.head(SHOWN_CONTRIBUTIONS).iterrows(), strict=False):
        print(f"  {name:<34} {row['mean_absolute']:>10.4g}   {row['share']:>6.1%}")


def _say_customer(row: pd.Series, largest: pd.DataFrame, unit: str) -> None:
    print(
        f"\nCustomer {row['customer_id']}: {row['prediction']:.4g} {unit}".rstrip()
        + f" (average {row['baseline']:.4g})"
    )
    for name, contribution in largest[["name", "contribution"]].head(SHOWN_CONTRIBUTIONS).itertuples(index=False):
        print(f"  {contribution:>+10.4g}  {name}")
    rest = float(largest["contribution"].iloc[SHOWN_CONTRIBUTIONS:].sum())
    print(f"  {rest:>+10.4g}  all others")


def _progress() -> Any:
    import sys

    def show(done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(
                f"\r  {done:,} of {total:,} customers ", end="\n" if done == total else "", file=sys.stderr, flush=True
            )

    return show
