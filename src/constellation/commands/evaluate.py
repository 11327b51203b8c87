"""Evaluate a trained run at any cutoff, on its own data or another set, beside freshly fitted baselines, by slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from constellation.errors import InputError

if TYPE_CHECKING:
    from constellation.baselines.baseline import Baseline
    from constellation.commands.engagement.acting import TrueValueOptions
    from constellation.journeys.dataset import DataSet
    from constellation.journeys.last_events import LastEvents
    from constellation.journeys.splits import Splits
    from constellation.journeys.store import Store
    from constellation.journeys.windows import Windows
    from constellation.policies.outcomes import OutcomeModel
    from constellation.policies.policy import Policy
    from constellation.policies.sequence_values import SequenceOptions
    from constellation.tracking import Run
    from constellation.worlds.simulated import World


def evaluate(
    run: Run,
    *,
    trained: Path,
    data: DataSet,
    cutoff: str | None = None,
    slices: Sequence[str] = ("tenure", "recency", "spend_decile"),
    baseline: Mapping[str, Baseline] | None = None,
    num_resamples: int = 500,
    policy: Mapping[str, Policy] | None = None,
    system: str | None = None,
    estimators: Sequence[str] = (),
    intervals: Sequence[str] = (),
    reward_range: tuple[float, float] | None = None,
    sequence: SequenceOptions | None = None,
    outcome: Mapping[str, OutcomeModel] | None = None,
    world: World | None = None,
    true_value: TrueValueOptions | None = None,
) -> dict[str, float]:
    """Metrics of the bundle of ``trained`` and of the baselines at ``cutoff``; null takes the test cutoff of the data.

    Baselines are fitted with horizons that end at or before the cutoff. A cutoff before the one the bundle was refitted
    at is scored under the split ``train``, for the model has seen what follows it.

    Of a run of ``objective=engagement`` the policies are judged instead, by its cross-fitted decisions, with the
    predictions of ``system`` (null: the sequence model, else the first outcome model). ``estimators``, ``intervals``
    and ``reward_range``: see :class:`constellation.policies.asked.Asked`; ``sequence``: the decisions of a customer as
    one; ``outcome``: who is fitted anew for them. With ``world``, the one whose log it was, each policy also acts in
    it, on other customers: ``true_value`` says how many and for how long.
    """
    from constellation.policies.saved import has_decisions

    if policy or estimators or (sequence is not None and sequence.estimators) or has_decisions(trained):
        from constellation.commands.engagement.judge import judge_policies
        from constellation.policies.asked import Asked

        if cutoff is not None:
            raise InputError(
                f"cutoff is {cutoff}, but policies are judged by the decisions that the run itself kept for the test. "
                "Leave cutoff out, or train with other windows."
            )
        found = judge_policies(
            run, trained=trained, policy=policy or {}, system=system, num_resamples=num_resamples, sequence=sequence,
            outcome=outcome, asked=Asked(estimators or (), intervals or (), reward_range),
        )  # fmt: skip
        if world is not None:
            from constellation.commands.engagement.acting import TrueValueOptions, true_values_of_run
            from constellation.policies.saved import Saved

            truth = true_values_of_run(
                trained, Saved.load(trained), world, policy or {}, true_value or TrueValueOptions(), system=system
            )
            truth.print()
            run.log_metrics(truth.numbers())
            found |= truth.numbers()
        return found
    _check_only_values(world=world, system=system, intervals=intervals, reward_range=reward_range, outcome=outcome)
    from constellation.assessment import Assessment, check_slices, meaningless_slices, slice_labels
    from constellation.bundle import Bundle, locate
    from constellation.journeys.prepare import prepare
    from constellation.journeys.splits import Splits
    from constellation.journeys.windows import Windows
    from constellation.metrics import LEVELS
    from constellation.metrics.evaluate import Evaluation
    from constellation.reporting import Report

    bundle = Bundle.load(locate(trained))
    store = prepare(data)
    check_slices(store, slices)
    windows = _windows_at(data.windows, cutoff, bundle.horizons_days, store)
    splits = Splits(store, windows)
    report = Report(run, data.name, store, splits)
    run.log_dataset(data.name, store.manifest.content, source=data.source.label, profile=store.manifest.profile)
    run.set_tag("trained", trained.name)
    run.set_tag("cutoff", windows.test_cutoff if isinstance(windows, Windows) else "last event of each customer")
    for name, reason in meaningless_slices(store, slices).items():
        report.say(f"slice {name} is left out: {reason}")
    slices = [name for name in slices if name not in meaningless_slices(store, slices)]
    same_data = bundle.trained_on.get("fingerprint") == store.manifest.content
    seen = _trained_on_what_follows(bundle.trained_on, bundle.schema.timezone, splits) if same_data else None
    split = "test" if seen is None else "train"
    if seen is not None:
        report.say(f"The bundle was trained {seen}: its figures here are in-sample and stand under the split train.")
    rows = {split: np.ones(len(splits.test), dtype=bool), f"{split}_new": splits.test_is_new_Q}
    evaluation = Evaluation(num_resamples=num_resamples)
    assessment = Assessment(evaluation, store, bundle.vocabulary, splits.test, rows, windows.exclude_seen)
    corrections = bundle.corrections
    for line in corrections.describe() if corrections is not None else ():
        report.say(f"recalibration: {line}")
    shocks = {} if corrections is None else corrections.shocks
    assessment.add("model", lambda queries: bundle.predict_store(store, queries, LEVELS), shocks)
    for name, system_of in (baseline or {}).items():
        left_out = system_of.left_out(store, windows.horizons_days)
        if left_out is not None:
            report.say(f"baseline {name} is left out: {left_out}")
            continue
        report.say(f"baseline {name}")
        system_of.fit(store, bundle.vocabulary, splits.select_panel, until=splits.select_until, val=splits.val)
        system_of.fit(store, bundle.vocabulary, splits.refit_panel, until=splits.refit_until, val=None)
        assessment.add(name, partial(system_of.predict, store, levels=LEVELS))
    run.log_metrics(evaluation.flat() | assessment.total_metrics())
    if slices:
        labels = slice_labels(store, bundle.vocabulary, splits.test, list(slices))
        table = evaluation.slices(labels, split)
        run.log_table("slices", table)
        report.slices(table)
    report.tables(evaluation)
    for line in assessment.total_lines("model", split):
        report.say(line)
    report.figures(evaluation, split)
    evaluation.predictions().to_parquet(run.folder / "predictions.parquet")
    return dict(run.metrics)


def _check_only_values(*, intervals: Sequence[str], **given: object) -> None:
    """Raise InputError where something is asked that only runs with decisions can answer."""
    if set(intervals) - {"bootstrap"}:
        given["intervals"] = list(intervals)
    asked = [f"{name}={value}" if isinstance(value, str | list) else name for name, value in given.items() if value]
    if asked:
        raise InputError(
            f"{', '.join(asked)}: asked of policies, but this run has learned no decisions. Give a run of "
            "objective=engagement, or leave it out."
        )


def _windows_at(
    windows: Windows | LastEvents, cutoff: str | None, horizons_days: tuple[int, ...], store: Store
) -> Windows | LastEvents:
    """The windows of the data set with the test at ``cutoff``, asking the horizons that the bundle answers."""
    from constellation.journeys.derived_windows import settle
    from constellation.journeys.store import MICROSECONDS_PER_DAY
    from constellation.journeys.windows import Windows, format_time, parse_cutoff

    if not isinstance(windows, Windows):
        if cutoff is not None:
            raise InputError(
                f"cutoff is {cutoff}, but these data are split by the last events of each customer, without a date. "
                "Leave cutoff out."
            )
        return windows
    if not store.has_clock:
        windows.cutoffs(store)  # raises, and says what to do
    if horizons_days:
        windows = replace(windows, horizons_days=horizons_days)
    windows = settle(windows, store)
    assert isinstance(windows, Windows)
    if cutoff is not None:
        windows = replace(windows, test_cutoff=str(cutoff))
    zone = store.schema.timezone
    if parse_cutoff(windows.val_cutoff, zone) >= parse_cutoff(windows.test_cutoff, zone):
        # The number of boosting steps is chosen one longest horizon before the cutoff asked for.
        windows = replace(windows, val_cutoff=_days_before(windows.test_cutoff, windows.horizons_days[-1]))
    shortest = windows.horizons_days[0] * MICROSECONDS_PER_DAY
    if parse_cutoff(windows.val_cutoff, zone) - shortest <= windows.earliest(store):
        raise InputError(
            f"The cutoff {windows.test_cutoff} leaves no history to fit the baselines on and to choose their settings: "
            f"the data start {format_time(store.manifest.first_time, zone)}. Ask for a later cutoff."
        )
    return windows


def _trained_on_what_follows(trained_on: Mapping[str, Any], zone: str, splits: Splits) -> str | None:
    """How the bundle came to know the answers that are asked for, as half a sentence; None where it does not."""
    from constellation.journeys.windows import Windows, parse_cutoff

    dated = "test_cutoff" in trained_on
    if isinstance(splits.windows, Windows) != dated:
        return "by another split of the same data"
    if not dated:
        return None
    last = str(trained_on["test_cutoff"] if trained_on.get("refit", True) else trained_on["val_cutoff"])
    return f"up to {last}, after this cutoff" if splits.test_cutoff < parse_cutoff(last, zone) else None


def _days_before(date: str, days: int) -> str:
    import datetime as dt

    return (dt.date.fromisoformat(date[:10]) - dt.timedelta(days=days)).isoformat()
