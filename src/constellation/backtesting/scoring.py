"""From a system's answers at an origin to finished cells: recalibrated, scored, with intervals of totals."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from constellation.backtesting.cells import NO_ANSWER, NOT_TRAINABLE, SCORED, Cell, Key, TargetScore
from constellation.backtesting.origins import Origin
from constellation.backtesting.systems import TARGETS, Answers, Fit, Task, realised, targets_of
from constellation.journeys.store import MICROSECONDS_PER_DAY
from constellation.journeys.windows import CLOCK_CHANGE, Queries
from constellation.metrics.bootstrap import CustomerBootstrap
from constellation.metrics.value import ValueColumns, ValueStatistics
from constellation.recalibration import (
    PastTotal,
    Recalibrator,
    Shock,
    measured_swings,
    relative_noise,
    total_interval,
)

AS_FITTED = "none"
"""What the table says of a system that was not recalibrated."""

LEFT_OUT = ("auc_any",)


class Resamples:
    """Draws of the customers of a store, the same for all cells, so that differences are paired over origins too."""

    def __init__(self, num_customers: int, num_resamples: int, seed: int = 0) -> None:
        self.bootstrap = CustomerBootstrap(np.arange(num_customers), num_resamples=num_resamples, seed=seed)

    def samples(self, statistics: ValueStatistics, journey_Q: np.ndarray) -> dict[str, np.ndarray]:
        """Every statistic on every resample [R]; NaN where none of its customers was drawn."""
        parts = []
        for weights_RC in self.bootstrap.blocks():
            weights_RQ = weights_RC[:, journey_Q]
            empty_R = weights_RQ.sum(axis=1) == 0
            weights_RQ[empty_R] = 1.0
            found = statistics(weights_RQ)
            parts.append({name: np.where(empty_R, np.nan, values) for name, values in found.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def recalibrated(fit: Fit, recalibrator: Recalibrator, seed: int) -> tuple[Answers, dict[str, str]]:
    """Answers after recalibration, and per target where it was learned; a target without a past stays as it was."""
    answers, methods = dict(fit.answers), {}
    for target, known in fit.known.items():
        if f"{target}_expected" not in answers:
            continue
        learned = recalibrator.learn(target, known.realised_Q, known.answers, known.method, seed=seed)
        answers |= learned.apply(answers)
        methods[target] = known.method
    return answers, methods


def past_totals(cells: Iterable[Cell], system: str, seed: int, name: str, before: Origin) -> list[PastTotal]:
    """Totals of one kind that this system predicted at earlier origins, as far as they had come true by this one."""
    past = []
    for cell in cells:
        key = cell.key
        ended = cell.cutoff + key.horizon_days * MICROSECONDS_PER_DAY <= before.cutoff + CLOCK_CHANGE
        score = cell.targets.get(f"{name}_{key.horizon_days}d")
        if (key.system, key.seed) != (system, seed) or not ended or score is None:
            continue
        facts = {part: float(score.facts[f"total_{part}"]) for part in ("expected", "realised", "noise")}
        past.append(PastTotal(cell.cutoff, key.horizon_days, facts["expected"], facts["realised"], facts["noise"]))
    return past


def learned_shocks(
    recalibrator: Recalibrator, cells: Iterable[Cell], system: str, seed: int, task: Task
) -> dict[str, Shock]:
    """By kind, from the system's own totals of earlier origins and from what customers did before this one."""
    earlier = list(cells)
    origin, store = task.origin, task.store
    first, longest_days = task.base_windows.earliest(store), min(origin.horizons_days)
    swings = measured_swings(store, origin.cutoff, first=first, longest_days=longest_days)
    return {
        kind: recalibrator.learn_shock(past_totals(earlier, system, seed, kind, origin), swings.get(kind))
        for kind in TARGETS
    }


def score_cells(
    origin: Origin,
    queries: Queries,
    answers: Answers,
    *,
    system: str,
    seed: int,
    seconds: float,
    methods: dict[str, str],
    shocks: dict[str, Shock],
    resamples: Resamples,
) -> list[Cell]:
    """The cells of one system and seed at one origin, one per horizon.

    methods: where the recalibration of each target was learned; shocks: of ``value`` and ``purchases``, in place of
    what the system itself says of a shock that customers share.
    """
    cells = {
        days: Cell(
            Key(origin.name, system, seed, days),
            origin.cutoff,
            NO_ANSWER if days in origin.trainable_days else NOT_TRAINABLE,
            seconds,
        )
        for days in origin.horizons_days
    }
    for target, name, place in targets_of(origin.horizons_days):
        seen_Q = queries.observed_QK[:, place]
        if f"{target}_expected" not in answers or not seen_Q.any():
            continue
        said = {key: values[seen_Q] for key, values in answers.items() if key.startswith(f"{target}_")}
        cell = cells[origin.horizons_days[place]]
        cell.status = SCORED
        shock, journey_Q = shocks.get(name, own_shock(said, target)), queries.journey_Q[seen_Q]
        score = _score(target, realised(queries, name, place)[seen_Q], said, journey_Q, shock, resamples)
        score.facts |= {"recalibration": methods.get(target, AS_FITTED)}
        cell.targets[target] = score
    return list(cells.values())


def own_shock(said: Answers, target: str) -> Shock:
    """What the system says of the log total that customers share, ``<target>_shock_sd``; nothing said: no shock."""
    sd_Q = said.get(f"{target}_shock_sd")
    return Shock() if sd_Q is None or not len(sd_Q) else Shock(float(np.mean(sd_Q)))


def _score(
    target: str, realised_Q: np.ndarray, said: Answers, journey_Q: np.ndarray, shock: Shock, resamples: Resamples
) -> TargetScore:
    values = ValueColumns.from_predictions(realised_Q, said, target)
    statistics = ValueStatistics(values)
    metrics = {name: float(value[0]) for name, value in statistics(np.ones((1, len(realised_Q)))).items()}
    samples = resamples.samples(statistics, journey_Q)
    for name in LEFT_OUT:
        metrics.pop(name, None)
        samples.pop(name, None)
    expected_Q = np.asarray(said[f"{target}_expected"], dtype=np.float64)
    facts: dict[str, float | str] = {
        "num_customers": float(len(realised_Q)),
        "total_realised": float(realised_Q.sum()),
        "total_expected": float(expected_Q.sum()),
        "total_noise": 0.0,
        "shock_sd": shock.sd,
        "shock_windows": shock.num_windows,
    }
    quantiles_QL = said.get(f"{target}_quantiles")
    if quantiles_QL is not None:
        low, high = total_interval(expected_Q, quantiles_QL, shock)
        facts |= {"total_low": low, "total_high": high, "total_noise": relative_noise(expected_Q, quantiles_QL)}
        metrics["total_coverage_90"] = float(low <= float(realised_Q.sum()) <= high)
    columns = {"journey": journey_Q}
    for name in ("realised", "expected", "median", "p_zero", "crps", "pit"):
        column = getattr(values, name)
        if column is not None:
            columns[name] = column
    return TargetScore(metrics, samples, columns, facts)
