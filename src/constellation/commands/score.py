"""Score a raw Parquet or CSV file of events with a bundle: one row of predictions per customer.

A bundle or run of objective=engagement answers per customer and action instead, and with policy=... says which to take.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from constellation.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from constellation.journeys.dataset import DataSet
    from constellation.policies.policy import Policy
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
    if events is None:
        raise InputError("score needs events=FILE, the event table.")
    model = Bundle.load(folder, trusted=tuple(trusted))
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
    if cutoff is None:
        print(f"No cutoff was given: the end of the last event's day is taken, {frame.attrs['cutoff']}.")
    frame.to_parquet(run.folder / "predictions.parquet", index=False)
    if output_format == "csv":
        frame.to_csv(run.folder / "predictions.csv", index=False)
    metrics = _metrics(frame)
    run.log_metrics(metrics)
    run.set_tag("cutoff", frame.attrs["cutoff"])
    _print_summary(frame, metrics, model.schema.currency or "", run.folder / "predictions.parquet")
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
