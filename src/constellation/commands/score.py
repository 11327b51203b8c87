"""Score a file of events, or the customers of a data set, with a bundle: one row of predictions per customer.

A bundle or run of objective=engagement answers per customer and action instead, and with policy=... says which to take.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from constellation.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from constellation.bundle import Bundle
    from constellation.journeys.dataset import DataSet
    from constellation.policies.policy import Policy
    from constellation.schema import EventSchema
    from constellation.tracking import Run

SHOWN_UNKNOWN = 0.01
TOTALLED = r"(value|purchases)_\d+d_expected|value_lifetime(_by_survival)?_expected"


def score(
    run: Run,
    *,
    bundle: str | None = None,
    events: str | None = None,
    trained: Path | None = None,
    data: DataSet | None = None,
    attributes: str | None = None,
    cutoff: str | int | None = None,
    output_format: str = "parquet",
    levels: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95),
    top_products: int = 10,
    trusted: Sequence[str] = (),
    lifetime_years: float | None = None,
    discount_rate: float = 0.1,
    exclude_seen: bool | None = None,
    policy: Mapping[str, Policy] | None = None,
    decisions: str | None = None,
    actions: Mapping[str, Mapping[str, Any]] | None = None,
    costs: Mapping[str, float] | None = None,
    system: str | None = None,
    kappa: float = 1.0,
    seed: int = 0,
) -> dict[str, float]:
    """Write ``predictions.parquet`` (with ``output_format=csv`` also ``predictions.csv``) to the run's folder.

    bundle: folder of a bundle, or a run that has one (folder, MLflow run id, ``latest``); ``trained`` is a run too,
    of objective=engagement with the numbers of ``evaluate`` for its own customers. events, attributes: files
    with the columns of the model card; in CSV the values of a list are separated by ``|``. cutoff: a date or time, null
    for the end of the last event's day. trusted: modules of your own that the model is made of.
    lifetime_years: adds the expected money of so many years, an extension of the longest horizon by survival, at
    ``discount_rate`` a year (``value_lifetime_by_survival_expected``); null leaves it out.
    exclude_seen: next products are ranked without those a customer already has; null does as the training did.
    data: in place of ``events``, a data set whose own customers are scored; that of the run where ``run=`` names one.
    policy and what follows it are read for bundles of objective=engagement: see ``commands/engagement/scoring.py``.
    ``data`` is then the run's data set, whose next decisions are taken where no file is given.
    The predictions hold customer ids, so they stay in the folder and are not sent to MLflow.
    """
    from constellation.bundle import Bundle, locate
    from constellation.bundle.files import is_engagement
    from constellation.bundle.lifetime import Lifetime
    from constellation.bundle.raw import read_attributes, read_events
    from constellation.schema import CUSTOMER_ID, REQUIRED
    from constellation.tracking import Tracking

    if output_format not in ("parquet", "csv"):
        raise InputError(f"output_format must be parquet or csv, found {output_format!r}.")
    lifetime = None if lifetime_years is None else Lifetime(float(lifetime_years), float(discount_rate))
    if (bundle is None) == (trained is None):
        raise InputError("score needs bundle=... or run=..., one of them: a bundle's folder, or a run that has one.")
    where = trained if bundle is None else bundle
    assert where is not None
    folder = locate(where, tracking=run.tracking if isinstance(run.tracking, Tracking) else None)
    run.set_tag("bundle", folder.name if folder.name != "bundle" else folder.parent.name)
    asked = {"policy": policy, "decisions": decisions, "actions": actions, "costs": costs, "system": system}
    if is_engagement(folder):
        from constellation.commands.engagement.scoring import Question, score_engagement

        question = Question(
            events=events, attributes=attributes, cutoff=cutoff, kappa=kappa, seed=seed, trusted=trusted,
            policy=policy, decisions=decisions, actions=actions, costs=costs, system=system,
        )  # fmt: skip
        return score_engagement(run, folder, question, trained=trained, data=data, output_format=output_format)
    stray = [name for name, value in asked.items() if value is not None]
    if stray:
        raise InputError(f"{stray[0]} is for bundles of objective=engagement; {folder} is another. Leave it out.")
    model = Bundle.load(folder, trusted=tuple(trusted))
    if events is None:
        if data is None:
            raise InputError("score needs events=FILE, the event table, or data=..., a data set that has one.")
        if attributes is not None:
            raise InputError("attributes=FILE goes with events=FILE; the data set has its own. Leave one of them out.")
        asked_of = {"levels": levels, "top_products": top_products, "lifetime": lifetime, "exclude_seen": exclude_seen}
        return _written(run, _of_data(model, data, cutoff, asked_of), cutoff, model.schema, output_format)
    wanted = [*REQUIRED, *model.vocabulary.kinds, *model.schema.order_by]
    table = read_events(events, model.schema, wanted)
    customers = None
    if attributes is not None and CUSTOMER_ID in table.columns:
        customers = read_attributes(attributes, [CUSTOMER_ID, *model.vocabulary.attribute_names], table[CUSTOMER_ID])
    known = model.vocabulary.attribute_names
    if customers is None and known:
        print(f"No attributes were given: {', '.join(known)} count as unknown, though the model learned from them.")
    frame = model.predict(
        table,
        cutoff,
        customers,
        levels=levels,
        top_products=top_products,
        lifetime=lifetime,
        exclude_seen=exclude_seen,
    )
    return _written(run, frame, cutoff, model.schema, output_format)


def _of_data(model: Bundle, data: DataSet, cutoff: str | int | None, asked: Mapping[str, Any]) -> pd.DataFrame:
    """The table of a data set's own customers, read by its SELECT as for training; nothing after the cutoff is read."""
    from constellation.bundle.reading import cutoff_time, unknown_share
    from constellation.journeys.prepare import prepare
    from constellation.journeys.windows import at_risk, format_time

    store, schema = prepare(data), model.schema
    lacking = [name for name in model.vocabulary.kinds if name not in store.manifest.kinds]
    if lacking:
        raise InputError(
            f"The events of {data.name} lack {', '.join(lacking)}, which the model was trained with; they have "
            f"{', '.join(store.manifest.kinds)}. Select them; what is unknown may be null."
        )
    for name in ("clock", "timezone", "purchase_types", "churn_types"):
        if getattr(store.schema, name) != getattr(schema, name):
            raise InputError(
                f"{name} of {data.name} is {getattr(store.schema, name)!r}, and the model was trained with "
                f"{getattr(schema, name)!r}. Score the data set it was trained on, or one declared alike."
            )
    time = store.manifest.observed_until if cutoff is None else cutoff_time(cutoff, schema)
    # Customers who have attributes are asked about before their first event, too.
    has_attributes = bool(store.attributes_categorical or store.attributes_numeric)
    journeys = np.arange(store.num_customers) if has_attributes else at_risk(store, time)
    if not len(journeys):
        raise InputError(f"Nobody can be scored: no event lies at or before the cutoff {cutoff}. Move it later.")
    frame = model.predict_customers(store, journeys, time, **asked)
    everybody = np.arange(store.num_customers)
    num_seen = int((store.end_event(everybody, np.full(len(everybody), time)) - store.first_event_C[:-1]).sum())
    frame.attrs |= {
        "cutoff": format_time(time, schema.timezone) if schema.clock == "time" else str(time),
        "events": num_seen,
        "events_ignored": store.num_events - num_seen,
        "events_rejected": int(store.manifest.profile.get("num_rejected", 0)),
        "unknown_share": unknown_share(store, model.vocabulary),
    }
    return frame


def _written(
    run: Run, frame: pd.DataFrame, cutoff: str | int | None, schema: EventSchema, output_format: str
) -> dict[str, float]:
    """Files, metrics and the summary."""
    if cutoff is None:
        print(f"No cutoff was given: the end of what is known is taken, {frame.attrs['cutoff']}.")
    frame.to_parquet(run.folder / "predictions.parquet", index=False)
    if output_format == "csv":
        frame.to_csv(run.folder / "predictions.csv", index=False)
    metrics = _metrics(frame)
    run.log_metrics(metrics)
    run.set_tag("cutoff", frame.attrs["cutoff"])
    _print_summary(frame, metrics, schema.currency or "", run.folder / "predictions.parquet")
    return metrics


def _metrics(frame: pd.DataFrame) -> dict[str, float]:
    found = {
        "score/num_customers": float(len(frame)),
        "score/num_events": float(frame.attrs["events"]),
        "score/num_events_ignored": float(frame.attrs["events_ignored"]),
        "score/num_events_rejected": float(frame.attrs["events_rejected"]),
    }
    names = [name for name in map(str, frame.columns) if re.fullmatch(TOTALLED, name)]
    found |= {f"score/{name}_total": float(frame[name].sum()) for name in names}
    for target, total in frame.attrs["totals"].items():
        found |= {f"score/{target}_total_q05": total["low"], f"score/{target}_total_q95": total["high"]}
    return found


def _print_summary(frame: pd.DataFrame, metrics: dict[str, float], currency: str, path: Path) -> None:
    print(f"Scored {len(frame):,} customers at {frame.attrs['cutoff']} from {frame.attrs['events']:,} events.")
    if frame.attrs["events_ignored"]:
        print(f"  {frame.attrs['events_ignored']:,} events after the cutoff were ignored.")
    if frame.attrs["events_rejected"]:
        print(f"  {frame.attrs['events_rejected']:,} events could not be read and were left out.")
    for name, share in frame.attrs["unknown_share"].items():
        if share > SHOWN_UNKNOWN:
            print(f"  {share:.1%} of the values of {name} are unknown to the model.")
    for name, total in metrics.items():
        found = re.fullmatch(r"score/(value|purchases)_(\d+)d_expected_total", name)
        if found:
            unit = currency if found[1] == "value" else ""
            interval = frame.attrs["totals"].get(f"{found[1]}_{found[2]}d")
            between = "" if interval is None else f" (90 % interval {interval['low']:,.0f} to {interval['high']:,.0f})"
            print(f"  expected {found[1]} in the next {found[2]} days: {total:,.0f} {unit}".rstrip() + between)
        elif name.startswith("score/value_lifetime"):
            of = "extended by survival" if "by_survival" in name else "of the lifetime, by the model's process"
            print(f"  expected value {of}, discounted: {total:,.0f} {currency}".rstrip())
    print(f"Predictions: {path}")
