"""Score a raw Parquet or CSV file of events with a bundle: one row of predictions per customer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from constellation.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from constellation.tracking import Run

SHOWN_UNKNOWN = 0.01


def score(
    run: Run,
    *,
    bundle: str,
    events: str,
    attributes: str | None = None,
    cutoff: str | int | None = None,
    output_format: str = "parquet",
    levels: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95),
    top_products: int = 10,
    trusted: Sequence[str] = (),
) -> dict[str, float]:
    """Write ``predictions.parquet`` (with ``output_format=csv`` also ``predictions.csv``) to the run's folder.

    bundle: folder of a bundle, or a run that has one (folder, MLflow run id, ``latest``). events, attributes: files
    with the columns of the model card; in CSV the values of a list are separated by ``|``. cutoff: a date or time, null
    for the end of the last event's day. trusted: modules of your own that the model is made of.
    The predictions hold customer ids, so they stay in the folder and are not sent to MLflow.
    """
    from constellation.bundle import Bundle, locate
    from constellation.bundle.raw import read_attributes, read_events
    from constellation.schema import CUSTOMER_ID, REQUIRED
    from constellation.tracking import Tracking

    if output_format not in ("parquet", "csv"):
        raise InputError(f"output_format must be parquet or csv, found {output_format!r}.")
    folder = locate(bundle, tracking=run.tracking if isinstance(run.tracking, Tracking) else None)
    model = Bundle.load(folder, trusted=tuple(trusted))
    wanted = [*REQUIRED, *model.vocabulary.kinds, *model.schema.order_by]
    table = read_events(events, model.schema, wanted)
    customers = None
    if attributes is not None and CUSTOMER_ID in table.columns:
        customers = read_attributes(attributes, [CUSTOMER_ID, *model.vocabulary.attribute_names], table[CUSTOMER_ID])
    known = model.vocabulary.attribute_names
    if customers is None and known:
        print(f"No attributes were given: {', '.join(known)} count as unknown, though the model learned from them.")
    frame = model.predict(table, cutoff, customers, levels=levels, top_products=top_products)
    if cutoff is None:
        print(f"No cutoff was given: the end of the last event's day is taken, {frame.attrs['cutoff']}.")
    frame.to_parquet(run.folder / "predictions.parquet", index=False)
    if output_format == "csv":
        frame.to_csv(run.folder / "predictions.csv", index=False)
    metrics = _metrics(frame)
    run.log_metrics(metrics)
    run.set_tag("bundle", folder.name if folder.name != "bundle" else folder.parent.name)
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
    totals = [name for name in map(str, frame.columns) if re.fullmatch(r"(value|purchases)_\d+d_expected", name)]
    return found | {f"score/{name}_total": float(frame[name].sum()) for name in totals}


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
            print(f"  expected {found[1]} in the next {found[2]} days: {total:,.0f} {unit}".rstrip())
    print(f"Predictions: {path}")
