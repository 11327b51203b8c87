"""Every system through the same evaluation: rows in, metrics with intervals, tables and per-customer columns out.

::

    evaluation = Evaluation()
    for name, predictions in systems.items():
        evaluation.add_value("test", "value_91d", name, realised_Q, predictions, customer_Q, observed_Q)
    run.log_metrics(evaluation.flat())
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from constellation.errors import InputError
from constellation.metrics import weighted
from constellation.metrics.bootstrap import CustomerBootstrap, Interval, Statistics, interval, intervals
from constellation.metrics.names import PRODUCT_METRICS, SURVIVAL_METRICS, VALUE_METRICS, flat_name, shortfall
from constellation.metrics.survival import SurvivalStatistics
from constellation.metrics.value import ValueColumns, ValueStatistics

if TYPE_CHECKING:
    import pandas

VALUE_COLUMNS = ("realised", "expected", "median", "p_zero", "crps", "pit")
"""Per-customer columns of `predictions.parquet` for money and counts; products have one column per metric instead."""

REALITY = "realised"
"""The "system" under which `flat` reports what happened: totals raw and clipped, share of zero, number of rows."""


class MeanStatistics:
    """Weighted means of per-row columns as a function of weights `[R, Q]`; NaN rows are left out, column by column."""

    def __init__(self, columns: Mapping[str, np.ndarray]) -> None:
        self.columns = {name: np.asarray(column, dtype=np.float64) for name, column in columns.items()}
        values_QM = np.stack(list(self.columns.values()), axis=1)
        self.defined_QM = np.isfinite(values_QM).astype(np.float64)
        self.values_QM = np.nan_to_num(values_QM)

    def __call__(self, weights_RQ: np.ndarray) -> dict[str, np.ndarray]:
        means_RM = weighted.divide(weights_RQ @ self.values_QM, weights_RQ @ self.defined_QM)
        return dict(zip(self.columns, means_RM.T, strict=True))

    def take(self, rows: np.ndarray) -> "MeanStatistics":
        return MeanStatistics({name: column[rows] for name, column in self.columns.items()})


def evaluate_value(
    realised_Q: np.ndarray,
    predictions: Mapping[str, Any],
    target: str,
    customer_Q: np.ndarray,
    observed_Q: np.ndarray | None = None,
    *,
    num_resamples: int = 500,
    seed: int = 0,
) -> dict[str, Interval]:
    """All value metrics of one system with 95 % intervals clustered by customer.

    Args:
        realised_Q: raw net value (or number of purchases) in (cutoff, cutoff + horizon].
        predictions: `<target>_expected [Q]` and, if the system says so, `_p_zero [Q]`, `_quantiles [Q, 100]` at LEVELS.
        target: `value_91d`, `purchases_91d`.
        customer_Q: the customer of each row; rows of one customer are drawn together.
        observed_Q: False where the horizon is censored; those rows are left out, never counted as zero.

    Raises InputError when no row is observed or a prediction is not finite.
    """
    evaluation = Evaluation(num_resamples=num_resamples, seed=seed)
    evaluation.add_value("split", target, "system", realised_Q, predictions, customer_Q, observed_Q)
    return evaluation.intervals("split", target, "system")


def evaluate_products(
    columns: Mapping[str, np.ndarray], customer_Q: np.ndarray, *, num_resamples: int = 500, seed: int = 0
) -> dict[str, Interval]:
    """Means of the columns of `ranking.product_columns` with 95 % intervals clustered by customer."""
    evaluation = Evaluation(num_resamples=num_resamples, seed=seed)
    evaluation.add_products("split", "system", columns, customer_Q)
    return evaluation.intervals("split", "next_product", "system")


@dataclass
class _Entry:
    customer_Q: np.ndarray
    kept_Q: np.ndarray  # of the rows handed in, those that are observed
    columns: dict[str, np.ndarray]  # for predictions.parquet
    statistics: ValueStatistics | MeanStatistics | SurvivalStatistics
    estimates: dict[str, float]
    samples: dict[str, np.ndarray]

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        return intervals(self.estimates, self.samples)

    def slice(self, rows: np.ndarray) -> Statistics:
        if isinstance(self.statistics, ValueStatistics):
            return ValueStatistics(self.statistics.columns.take(rows))
        return self.statistics.take(rows)


class Evaluation:
    """Collects split x target x system; systems of one split and target must answer for the same rows.

    They then see the same resamples, so the difference of two systems is paired by construction.
    ``notes`` says of a target what a reader of its table must know, such as what was left out of a ranking.
    """

    def __init__(self, *, num_resamples: int = 500, seed: int = 0) -> None:
        if num_resamples < 1:
            raise InputError(f"num_resamples must be at least 1, found {num_resamples}.")
        self.num_resamples = num_resamples
        self.seed = seed
        self._entries: dict[tuple[str, str, str], _Entry] = {}
        self.notes: dict[str, str] = {}

    def add_value(
        self,
        split: str,
        target: str,
        system: str,
        realised_Q: np.ndarray,
        predictions: Mapping[str, Any],
        customer_Q: np.ndarray,
        observed_Q: np.ndarray | None = None,
    ) -> None:
        """Arguments as `evaluate_value`; arrays may be numpy or CPU tensors."""
        realised_Q = np.asarray(realised_Q, dtype=np.float64)
        kept_Q = np.ones(len(realised_Q), bool) if observed_Q is None else np.asarray(observed_Q, dtype=bool)
        if not kept_Q.any():
            raise InputError(
                f"No customer of {split} has the whole horizon of {target} inside the data, so nothing can be scored. "
                "Move the cutoff earlier or ask for a shorter horizon."
            )
        kept_predictions = {
            name: np.asarray(values)[kept_Q]
            for name, values in predictions.items()
            if name.startswith(f"{target}_") and values is not None
        }
        try:
            columns = ValueColumns.from_predictions(realised_Q[kept_Q], kept_predictions, target, seed=self.seed)
        except InputError as error:
            raise InputError(f"System {system}, split {split}: {error}") from error
        named = {name: getattr(columns, name) for name in VALUE_COLUMNS if getattr(columns, name) is not None}
        self._add(split, target, system, customer_Q, kept_Q, named, ValueStatistics(columns))

    def add_products(
        self,
        split: str,
        system: str,
        columns: Mapping[str, np.ndarray],
        customer_Q: np.ndarray,
        *,
        target: str = "next_product",
    ) -> None:
        """`columns` from `ranking.product_columns`; rows that are NaN in a column do not count in its mean."""
        kept_Q = np.ones(len(customer_Q), bool)
        statistics = MeanStatistics(columns)
        self._add(split, target, system, customer_Q, kept_Q, statistics.columns, statistics)

    def add_survival(
        self,
        split: str,
        target: str,
        system: str,
        statistics: SurvivalStatistics,
        customer_Q: np.ndarray,
        kept_Q: np.ndarray,
    ) -> None:
        """P(event by a time) of the rows ``kept_Q`` of ``customer_Q``; see `metrics.survival`."""
        self._add(split, target, system, customer_Q, kept_Q, statistics.columns, statistics)

    def _add(
        self,
        split: str,
        target: str,
        system: str,
        customer_Q: np.ndarray,
        kept_Q: np.ndarray,
        columns: dict[str, np.ndarray],
        statistics: ValueStatistics | MeanStatistics | SurvivalStatistics,
    ) -> None:
        customer_Q = np.asarray(customer_Q)[kept_Q]
        for other in self._of(split, target).values():
            assert np.array_equal(other.customer_Q, customer_Q), f"{system} answers for other rows of {split}/{target}"
        bootstrap = CustomerBootstrap(customer_Q, num_resamples=self.num_resamples, seed=self.seed)
        self._entries[split, target, system] = _Entry(
            customer_Q, kept_Q, columns, statistics, bootstrap.estimates(statistics), bootstrap.samples(statistics)
        )

    def _of(self, split: str, target: str) -> dict[str, _Entry]:
        return {key[2]: entry for key, entry in self._entries.items() if key[:2] == (split, target)}

    def groups(self) -> list[tuple[str, str]]:
        """(split, target) in the order they came."""
        return list(dict.fromkeys(key[:2] for key in self._entries))

    def systems(self, split: str, target: str) -> list[str]:
        return list(self._of(split, target))

    def metrics(self, split: str, target: str) -> list[str]:
        """Metrics that at least one system has, in the house order."""
        present = {name for entry in self._of(split, target).values() for name in entry.estimates}
        ordered = [name for name in VALUE_METRICS + PRODUCT_METRICS + SURVIVAL_METRICS if name in present]
        return ordered + sorted(present.difference(ordered))

    def num_rows(self, split: str, target: str) -> int:
        return next((len(entry.customer_Q) for entry in self._of(split, target).values()), 0)

    def columns(self, split: str, target: str, system: str) -> dict[str, np.ndarray]:
        """The per-row columns of one system, observed rows only: what the figures draw."""
        return self._entries[split, target, system].columns

    def intervals(self, split: str, target: str, system: str) -> dict[str, Interval]:
        return self._entries[split, target, system].intervals

    def paired(self, split: str, target: str, metric: str, system: str, other: str) -> Interval:
        """By how much `system` is further from the ideal than `other`: below zero is better, for every metric."""
        one, two = self._entries[split, target, system], self._entries[split, target, other]
        estimate = shortfall(metric, one.estimates[metric]) - shortfall(metric, two.estimates[metric])
        difference_R = shortfall(metric, one.samples[metric]) - shortfall(metric, two.samples[metric])
        return interval(float(estimate), difference_R)

    def best(self, split: str, target: str, metric: str) -> str | None:
        """The best system, if its paired 95 % interval against the runner-up excludes zero; else None."""
        scores = {
            system: float(shortfall(metric, entry.estimates[metric]))
            for system, entry in self._of(split, target).items()
            if np.isfinite(entry.estimates.get(metric, np.nan))
        }
        if len(scores) < 2:
            return None
        first, second = sorted(scores, key=scores.__getitem__)[:2]
        return first if self.paired(split, target, metric, first, second).excludes_zero else None

    def flat(self) -> dict[str, float]:
        """`test/value_91d/model/mae`, `.._low`, `.._high`, and under `realised` what happened; the undefined is absent.

        `realised/total_clipped` counts refunds as zero, as positive heads must: its distance from `realised/total` is
        bias that no such head can avoid.
        """
        flat: dict[str, float] = {}
        for split, target, system, name, metric in self._rows():
            key = flat_name(split, target, system, name)
            flat |= {key: metric.estimate, f"{key}_low": metric.low, f"{key}_high": metric.high}
        for split, target in self.groups():
            facts = self.reality(split, target)
            flat |= {flat_name(split, target, REALITY, name): value for name, value in facts.items()}
        return {name: value for name, value in flat.items() if np.isfinite(value)}

    def reality(self, split: str, target: str) -> dict[str, float]:
        """`num_customers`, and for values `total`, `total_clipped` (refunds as zero), `share_zero` (value <= 0)."""
        entry = next(iter(self._of(split, target).values()))
        facts = {"num_customers": float(len(np.unique(entry.customer_Q)))}
        realised_Q = entry.columns.get("realised")
        if realised_Q is not None:
            facts["total"] = float(realised_Q.sum())
            facts["total_clipped"] = float(np.maximum(realised_Q, 0).sum())
            facts["share_zero"] = float(np.mean(realised_Q <= 0))
        return facts

    def frame(self) -> "pandas.DataFrame":
        """One row per metric: `split, target, system, metric, estimate, low, high`; undefined ones are NaN."""
        import pandas as pd

        rows = [(*key, metric.estimate, metric.low, metric.high) for *key, metric in self._rows()]
        return pd.DataFrame(rows, columns=["split", "target", "system", "metric", "estimate", "low", "high"])

    def predictions(self) -> "pandas.DataFrame":
        """The per-customer table of `predictions.parquet`: keys, then `VALUE_COLUMNS` and the product metrics.

        It holds customer ids, so it belongs in the run's folder and not on a tracking server.
        """
        import pandas as pd

        parts = []
        for (split, target, system), entry in self._entries.items():
            keys = {"customer_id": entry.customer_Q, "split": split, "target": target, "system": system}
            parts.append(pd.DataFrame({**keys, **entry.columns}))
        table = pd.concat(parts, ignore_index=True)
        return table.astype(dict.fromkeys(("split", "target", "system"), "category"))

    def slices(self, by: Mapping[str, np.ndarray], split: str = "test") -> "pandas.DataFrame":
        """The same metrics within each level of each grouping.

        Args:
            by: name of the grouping (`tenure`, `spend_decile`, an attribute) -> label of each row **as handed in** for
                this split, censored rows included. Missing labels (None, NaN) form no slice.

        Returns columns `slice, level, num_rows, split, target, system, metric, estimate, low, high`.
        """
        import pandas as pd

        rows = []
        for name, labels_Q in by.items():
            codes_Q, levels = pd.factorize(pd.Series(np.asarray(labels_Q)), sort=True)
            for (entry_split, target, system), entry in self._entries.items():
                if entry_split != split:
                    continue
                if len(codes_Q) != len(entry.kept_Q):
                    raise InputError(
                        f"Slice {name} has {len(codes_Q)} labels, but {split}/{target} has {len(entry.kept_Q)} rows. "
                        "Give one label for each row that was evaluated, in the same order."
                    )
                for code, level in enumerate(levels):
                    members = np.flatnonzero(codes_Q[entry.kept_Q] == code)
                    if len(members) == 0:
                        continue
                    bootstrap = CustomerBootstrap(
                        entry.customer_Q[members], num_resamples=self.num_resamples, seed=self.seed
                    )
                    for metric, found in bootstrap.intervals(entry.slice(members)).items():
                        key = (name, str(level), len(members), split, target, system, metric)
                        rows.append((*key, found.estimate, found.low, found.high))
        columns = ["slice", "level", "num_rows", "split", "target", "system", "metric", "estimate", "low", "high"]
        return pd.DataFrame(rows, columns=columns)

    def _rows(self) -> Iterator[tuple[str, str, str, str, Interval]]:
        for split, target in self.groups():
            names = self.metrics(split, target)
            for system in self.systems(split, target):
                found = self.intervals(split, target, system)
                yield from ((split, target, system, name, found[name]) for name in names if name in found)


def statistics_of(predictions: "pandas.DataFrame") -> Statistics:
    """The statistics again from one system's rows of one split and target in `predictions.parquet`."""
    present = predictions.dropna(axis="columns", how="all")
    if "realised" in present:
        parts = [present[name].to_numpy(np.float64) if name in present else None for name in VALUE_COLUMNS]
        realised_Q, expected_Q, *others = parts
        assert realised_Q is not None
        assert expected_Q is not None
        return ValueStatistics(ValueColumns.of(realised_Q, expected_Q, *others))
    keys = {"customer_id", "split", "target", "system"}
    names = [str(name) for name in present.columns if name not in keys]
    return MeanStatistics({name: present[name].to_numpy(np.float64) for name in names})


def equal_count_labels(values_Q: np.ndarray, num_bins: int = 10) -> np.ndarray:
    """Labels `01`, `02`, .. by rank, for slices such as the spend decile; equal values share a label, `[Q]`."""
    values_Q = np.asarray(values_Q, dtype=np.float64)
    below_Q = np.searchsorted(np.sort(values_Q), values_Q, side="left")
    bins_Q = below_Q * num_bins // len(values_Q) + 1
    return np.array([f"{number:02d}" for number in range(num_bins + 1)])[bins_Q]
