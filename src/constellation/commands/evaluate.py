"""Evaluate a trained run at any cutoff, on its own data or another set, beside freshly fitted baselines, by slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from constellation.errors import InputError

if TYPE_CHECKING:
    from constellation.baselines.baseline import Baseline
    from constellation.journeys.dataset import DataSet
    from constellation.tracking import Run


def evaluate(
    run: Run,
    *,
    trained: Path,
    data: DataSet,
    cutoff: str | None = None,
    slices: Sequence[str] = ("tenure", "recency", "spend_decile"),
    baseline: Mapping[str, Baseline] | None = None,
    num_resamples: int = 500,
) -> dict[str, float]:
    """Metrics of the bundle of ``trained`` and of the baselines at ``cutoff``; null takes the test cutoff of the data.

    Baselines are fitted with horizons that end at or before the cutoff. A cutoff before the one the bundle was refitted
    at is scored under the split ``train``, for the model has seen what follows it.
    """
    from constellation.assessment import Assessment, check_slices, slice_labels
    from constellation.bundle import Bundle, locate
    from constellation.journeys.prepare import prepare
    from constellation.journeys.splits import Splits
    from constellation.journeys.store import MICROSECONDS_PER_DAY
    from constellation.journeys.windows import format_time, parse_cutoff
    from constellation.metrics import LEVELS
    from constellation.metrics.evaluate import Evaluation
    from constellation.reporting import Report

    bundle = Bundle.load(locate(trained))
    windows = replace(data.windows, horizons_days=bundle.vocabulary.horizons_days)
    if cutoff is not None:
        windows = replace(windows, test_cutoff=str(cutoff))
    store = prepare(data)
    check_slices(store, slices)
    zone = store.schema.timezone
    refitted_at = parse_cutoff(bundle.trained_on["test_cutoff"], bundle.schema.timezone)
    at = parse_cutoff(windows.test_cutoff, zone)
    if parse_cutoff(windows.val_cutoff, zone) >= at:
        # The number of boosting steps is chosen one longest horizon before the cutoff asked for.
        windows = replace(windows, val_cutoff=_days_before(windows.test_cutoff, windows.horizons_days[-1]))
    shortest = windows.horizons_days[0] * MICROSECONDS_PER_DAY
    if parse_cutoff(windows.val_cutoff, zone) - shortest <= windows.earliest(store):
        raise InputError(
            f"The cutoff {windows.test_cutoff} leaves no history to fit the baselines on and to choose their settings: "
            f"the data start {format_time(store.manifest.first_time, zone)}. Ask for a later cutoff."
        )
    splits = Splits(store, windows)
    report = Report(run, data.name, store, splits)
    run.log_dataset(data.name, store.manifest.content, source=data.source.label, profile=store.manifest.profile)
    run.set_tag("trained", trained.name)
    run.set_tag("cutoff", windows.test_cutoff)
    seen = at < refitted_at and bundle.trained_on.get("fingerprint") == store.manifest.content
    split = "train" if seen else "test"
    if seen:
        report.say(
            f"The bundle was refitted at {bundle.trained_on['test_cutoff']}, after this cutoff: its figures here are "
            "in-sample and stand under the split train."
        )
    rows = {split: np.ones(len(splits.test), dtype=bool), f"{split}_new": splits.test_is_new_Q}
    evaluation = Evaluation(num_resamples=num_resamples)
    assessment = Assessment(evaluation, store, bundle.vocabulary, splits.test, rows)
    assessment.add("model", lambda queries: bundle.predict_store(store, queries, LEVELS))
    for name, system in (baseline or {}).items():
        report.say(f"baseline {name}")
        system.fit(store, bundle.vocabulary, splits.select_panel, until=splits.val_cutoff, val=splits.val)
        system.fit(store, bundle.vocabulary, splits.refit_panel, until=splits.test_cutoff, val=None)
        assessment.add(name, partial(system.predict, store, levels=LEVELS))
    run.log_metrics(evaluation.flat())
    if slices:
        labels = slice_labels(store, bundle.vocabulary, splits.test, list(slices))
        table = evaluation.slices(labels, split)
        run.log_table("slices", table)
        report.slices(table)
    report.tables(evaluation)
    report.figures(evaluation, split)
    evaluation.predictions().to_parquet(run.folder / "predictions.parquet")
    return dict(run.metrics)


def _days_before(date: str, days: int) -> str:
    import datetime as dt

    return (dt.date.fromisoformat(date[:10]) - dt.timedelta(days=days)).isoformat()
