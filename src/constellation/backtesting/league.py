"""One table of all systems: mean over the cells, the worst origin, the spread, and who may be called the winner."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from constellation.backtesting.cells import Cell
from constellation.metrics.bootstrap import Interval, interval
from constellation.metrics.names import flat_name, is_known, shortfall

if TYPE_CHECKING:
    import pandas

SPLIT = "backtest"
JUDGED = ("crps", "mae", "rmse", "gini_normalised", "spearman", "decile_mape")
"""Metrics of which a winner may be named."""

LEAST_CUSTOMERS = 10
"""Resamples of fewer are much alike: a single customer's interval has no width at all."""


@dataclass(frozen=True)
class Standing:
    """One metric of one system on one target over its cells.

    worst: of the origins, each the mean of its seeds. spread_origins, spread_seeds: standard deviations, of the means
    per origin and of the means per seed.
    """

    target: str
    system: str
    metric: str
    mean: float
    low: float
    high: float
    worst: float
    spread_origins: float
    spread_seeds: float
    num_cells: int
    num_origins: int


class League:
    """Standings of finished cells. Systems that answer other cells are compared on those that both answer."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self.cells = [cell for cell in cells if cell.targets]
        self.all_cells = list(cells)
        of_target = {target: cell.key.horizon_days for cell in self.cells for target in cell.targets}
        self.targets = sorted(of_target, key=lambda target: (not target.startswith("value"), of_target[target]))

    def systems(self, target: str) -> list[str]:
        """In the order in which they came."""
        return list(dict.fromkeys(cell.key.system for cell in self.cells if target in cell.targets))

    def origins(self, target: str) -> list[str]:
        """Origins at which anybody answered, in order of time."""
        found = {cell.key.origin: cell.cutoff for cell in self.cells if target in cell.targets}
        return sorted(found, key=found.__getitem__)

    def values(self, target: str, system: str, metric: str) -> dict[str, dict[int, float]]:
        """origin -> seed -> estimate, defined ones only."""
        found: dict[str, dict[int, float]] = {}
        for cell in self.cells:
            if cell.key.system == system and target in cell.targets:
                value = cell.targets[target].metrics.get(metric, math.nan)
                if math.isfinite(value):
                    found.setdefault(cell.key.origin, {})[cell.key.seed] = value
        return found

    def standings(self) -> list[Standing]:
        """Every target, system and metric; for the bias also ``bias_mean``, ``bias_mean_abs``, ``bias_worst_abs``."""
        rows = []
        for target in self.targets:
            for system in self.systems(target):
                present = [cell.targets[target] for cell in self.cells if target in cell.targets]
                for metric in dict.fromkeys(name for score in present for name in score.metrics):
                    found = self.values(target, system, metric)
                    if found:
                        rows += self._standings(target, system, metric, found)
        return rows

    def _standings(self, target: str, system: str, metric: str, found: dict[str, dict[int, float]]) -> list[Standing]:
        per_origin = np.array([np.mean(list(seeds.values())) for seeds in found.values()])
        seeds = sorted({seed for of_seed in found.values() for seed in of_seed})
        per_seed = np.array([np.mean([of[seed] for of in found.values() if seed in of]) for seed in seeds])
        flat = np.array([value for of_seed in found.values() for value in of_seed.values()])
        samples_R = self._samples(target, system, metric, set(found))
        ends = interval(float(per_origin.mean()), samples_R) if samples_R is not None else None
        spreads = (_deviation(per_origin), _deviation(per_seed), len(flat), len(found))

        def standing(name: str, mean: float, worst: float, found: Interval | None) -> Standing:
            low, high = (found.low, found.high) if found is not None else (math.nan, math.nan)
            return Standing(target, system, name, mean, low, high, worst, *spreads)

        if metric == "bias_total":
            worst = float(per_origin[np.argmax(np.abs(per_origin))])
            return [
                standing("bias_mean", float(per_origin.mean()), worst, ends),
                standing("bias_mean_abs", float(np.abs(flat).mean()), float(np.abs(flat).max()), None),
                standing("bias_worst_abs", float(np.abs(flat).max()), float(np.abs(flat).max()), None),
            ]
        judged = "coverage_90" if metric == "total_coverage_90" else metric
        away = shortfall(judged, per_origin) if is_known(judged) else per_origin
        return [standing(metric, float(per_origin.mean()), float(per_origin[int(np.argmax(away))]), ends)]

    def _samples(
        self, target: str, system: str, metric: str, origins: set[str], *, distance: bool = False
    ) -> np.ndarray | None:
        """Mean over origins of the mean over seeds on each resample [R]; None where the metric has no resamples.

        distance: of the distances from the ideal instead of the values.
        """
        of_origin: dict[str, list[np.ndarray]] = {}
        for cell in self.cells:
            if cell.key.system == system and cell.key.origin in origins and target in cell.targets:
                samples_R = cell.targets[target].samples.get(metric)
                if samples_R is not None:
                    samples_R = shortfall(metric, samples_R) if distance else samples_R
                    of_origin.setdefault(cell.key.origin, []).append(samples_R)
        if not of_origin:
            return None
        return np.mean([np.mean(samples, axis=0) for samples in of_origin.values()], axis=0)

    def paired(self, target: str, metric: str, system: str, other: str) -> Interval | None:
        """By how much ``system`` is further from the ideal than ``other``, mean over the origins that both answer.

        Below zero is better. Customers are drawn whole, the same ones at every origin and for both systems, so the
        interval knows chance among customers; that of the calendar shows in the spread over origins.
        """
        one, two = self.values(target, system, metric), self.values(target, other, metric)
        shared = set(one) & set(two)
        one_R, two_R = (self._samples(target, name, metric, shared, distance=True) for name in (system, other))
        if one_R is None or two_R is None:
            return None
        means = [
            np.mean([shortfall(metric, np.array(list(found[origin].values()))).mean() for origin in sorted(shared)])
            for found in (one, two)
        ]
        return interval(float(means[0] - means[1]), one_R - two_R)

    def winner(self, target: str, metric: str) -> str | None:
        """The system that answers wherever anybody does and is better than every other, each beyond its paired 95 %
        interval; None where two cannot be told apart, nobody is everywhere, or customers are too few to resample."""
        present = [cell.targets[target] for cell in self.cells if target in cell.targets]
        if min((float(score.facts.get("num_customers", math.inf)) for score in present), default=0) < LEAST_CUSTOMERS:
            return None
        everywhere = set(self.origins(target))
        systems = self.systems(target)
        for system in systems:
            others = [other for other in systems if other != system]
            if not others or set(self.values(target, system, metric)) != everywhere:
                continue
            found = [self.paired(target, metric, system, other) for other in others]
            answered = [difference for difference in found if difference is not None]
            if answered and all(difference.high < 0 for difference in answered):
                return system
        return None

    def flat(self) -> dict[str, float]:
        """``backtest/value_91d/model/crps``; beside it ``_low, _high, _worst, _sd_origins, _sd_seeds``."""
        flat: dict[str, float] = {}
        for row in self.standings():
            name = flat_name(SPLIT, row.target, row.system, row.metric)
            beside = {"_low": row.low, "_high": row.high}
            if not row.metric.startswith("bias_"):
                beside |= {"_worst": row.worst}
            if row.metric not in ("bias_mean_abs", "bias_worst_abs"):
                beside |= {"_sd_origins": row.spread_origins, "_sd_seeds": row.spread_seeds}
            flat |= {name: row.mean} | {f"{name}{part}": value for part, value in beside.items()}
            flat[flat_name(SPLIT, row.target, row.system, "num_cells")] = float(row.num_cells)
        flat |= self._pooled()
        return {name: value for name, value in flat.items() if math.isfinite(value)}

    def _pooled(self) -> dict[str, float]:
        """Over all horizons, what has no unit: ``backtest/value/<system>/bias_mean_abs`` and so on."""
        flat: dict[str, float] = {}
        for name in dict.fromkeys(target.rpartition("_")[0] for target in self.targets):
            targets = [target for target in self.targets if target.startswith(f"{name}_")]
            for system in dict.fromkeys(system for target in targets for system in self.systems(target)):
                scores = [
                    cell.targets[target].metrics
                    for cell in self.cells
                    for target in targets
                    if cell.key.system == system and target in cell.targets
                ]

                def of(metric: str, scores: list[dict[str, float]] = scores) -> np.ndarray:
                    values = np.array([score.get(metric, math.nan) for score in scores])
                    return values[np.isfinite(values)]

                bias = of("bias_total")
                found = {"num_cells": float(len(scores))}
                if len(bias):
                    found |= {"bias_mean": float(bias.mean()), "bias_mean_abs": float(np.abs(bias).mean())}
                    found |= {"bias_worst_abs": float(np.abs(bias).max())}
                for metric in ("coverage_90", "total_coverage_90", "decile_mape", "gini_normalised", "spearman"):
                    if len(of(metric)):
                        found[metric] = float(of(metric).mean())
                flat |= {flat_name(SPLIT, name, system, metric): value for metric, value in found.items()}
        return flat

    def frame(self) -> pandas.DataFrame:
        """The standings as a table."""
        import pandas as pd

        return pd.DataFrame([vars(row) for row in self.standings()])

    def cells_frame(self) -> pandas.DataFrame:
        """All cells, one row per target; a cell without an answer has one row with its status."""
        import pandas as pd

        frame = pd.DataFrame([row for cell in self.all_cells for row in cell.rows()])
        return frame.sort_values(["origin", "horizon_days", "system", "seed"], kind="stable", ignore_index=True)


def _deviation(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0
