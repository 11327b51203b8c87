"""What is learned from the training part of a store: known values, bins and scalers; kept with model and bundle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from constellation.errors import InputError
from constellation.journeys.aggregates import Aggregates
from constellation.journeys.questions import Queries, Until, until_of
from constellation.journeys.store import MICROSECONDS_PER_DAY, Store
from constellation.journeys.waits import churn_types
from constellation.schema import CATEGORICAL, EVENT_TYPE, LIST, NUMERIC, PRODUCT

MISSING, UNKNOWN, FIRST_KNOWN = 0, 1, 2
"""Model codes: missing, not seen in training, and the first of the known values."""

MOST_SCALED = 2_000_000
"""Questions whose aggregates are read for their scale: the whole panel of 200,000 customers takes five gigabytes."""

SCALED_AT_ONCE = 2**15


@dataclass(frozen=True)
class Scaler:
    """Signed log, clipped to the range seen in training, then to mean 0 and deviation 1; NaN becomes 0.

    The clip keeps a network from extrapolating along a feature that grows with calendar time, such as tenure.
    """

    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def fit(cls, values_QF: np.ndarray) -> Scaler:
        num_columns = values_QF.shape[1]
        low, high, mean = np.zeros(num_columns), np.zeros(num_columns), np.zeros(num_columns)
        std = np.ones(num_columns)
        for column in range(num_columns):
            logs_Q = signed_log(values_QF[:, column])
            known = logs_Q[np.isfinite(logs_Q)]
            if len(known):
                low[column], high[column] = np.quantile(known, [0.0005, 0.9995])
                known = np.clip(known, low[column], high[column])
                mean[column] = known.mean()
                deviation = known.std()
                std[column] = deviation if deviation > 1e-6 else 1.0
        return cls(*(part.astype(np.float32) for part in (low, high, mean, std)))

    def __call__(self, values_QF: np.ndarray) -> np.ndarray:
        scaled_QF = (np.clip(signed_log(values_QF), self.low, self.high) - self.mean) / self.std
        return np.nan_to_num(scaled_QF, nan=0.0).astype(np.float32)

    def to_json(self) -> dict[str, list[float]]:
        return {name: getattr(self, name).tolist() for name in ("low", "high", "mean", "std")}

    @classmethod
    def from_json(cls, data: dict[str, list[float]]) -> Scaler:
        return cls(**{name: np.asarray(values, dtype=np.float32) for name, values in data.items()})


def signed_log(values: np.ndarray) -> np.ndarray:
    """sign(x) log(1 + |x|), float32: money and counts of any size on one scale, refunds included."""
    values = np.asarray(values, dtype=np.float32)
    return np.sign(values) * np.log1p(np.abs(values))


@dataclass
class Vocabulary:
    """Remap of a store's columns to model codes, fitted on the events of the training customers up to ``until``.

    categories: known values of each categorical or list column (``attributes.<name>`` for attributes), most frequent
    first; code 0 is missing, 1 unknown, 2 the first known. bin_edges: inner quantile edges of each numeric column; bin
    0 is missing. churn_types: the declared ends of a relationship. targets: statistics of the training targets per
    horizon, for the initial bias of heads, or None.
    """

    kinds: dict[str, str]
    categories: dict[str, list[str]]
    bin_edges: dict[str, np.ndarray]
    numeric_scaler: dict[str, Scaler]
    attribute_names: list[str]
    attribute_scaler: dict[str, Scaler]
    aggregates: Aggregates
    aggregates_scaler: Scaler
    horizons_days: tuple[int, ...]
    targets: dict[str, dict[str, list[float]]] | None = None
    churn_types: tuple[str, ...] = ()

    @classmethod
    def fit(
        cls,
        store: Store,
        train: Queries,
        *,
        journeys: np.ndarray,
        until: Until,
        windows_days: tuple[int, ...] = (7, 30, 91, 182, 365),
        num_bins: int = 16,
        min_count: int = 1,
        max_categories: int | None = None,
    ) -> Vocabulary:
        """Learn from events of ``journeys`` at or before ``until``, and from the training questions ``train``.

        min_count: values seen less often are unknown. max_categories: keep at most so many, the most frequent.
        """
        journeys = np.asarray(journeys, dtype=np.int64)
        start_C = store.first_event_C[journeys].astype(np.int64)
        until_C = until_of(until, journeys)
        end_C = store.end_event(journeys, until_C)
        # Who has no event by then is no training row yet: not even the attributes are known.
        seen_C = end_C > start_C
        journeys, start_C, end_C, until_C = journeys[seen_C], start_C[seen_C], end_C[seen_C], until_C[seen_C]
        rows = ragged_arange(start_C, end_C - start_C)
        if len(rows) == 0:
            raise InputError("The training part has no events: move the cutoffs later or hold out fewer customers.")
        categories, bin_edges, scalers = {}, {}, {}
        for name, kind in store.manifest.kinds.items():
            if kind == CATEGORICAL:
                codes = store.categorical[name][rows]
                categories[name] = _known(codes, store.dictionaries[name], min_count, max_categories)
            elif kind == LIST:
                values_M, offsets_N = store.lists[name]
                begin = offsets_N[rows].astype(np.int64)
                codes = values_M[ragged_arange(begin, offsets_N[rows + 1].astype(np.int64) - begin)]
                categories[name] = _known(codes, store.dictionaries[name], min_count, max_categories)
            else:
                values = store.numeric[name][rows]
                values = values[np.isfinite(values)]
                levels = np.linspace(0, 1, num_bins + 1)[1:-1]
                bin_edges[name] = np.unique(np.quantile(values, levels)) if len(values) else np.empty(0)
                scalers[name] = Scaler.fit(values[:, None]) if len(values) else Scaler.fit(np.zeros((1, 1)))
        attribute_scaler = {}
        for name, codes_C in store.attributes_categorical.items():
            dictionary = store.dictionaries[f"attributes.{name}"]
            categories[f"attributes.{name}"] = _known(codes_C[journeys], dictionary, 1, max_categories)
        for name, values_C in store.attributes_numeric.items():
            attribute_scaler[name] = Scaler.fit(values_C[journeys][:, None])
        # The span of the training customers, not of the store: held-out customers teach nothing.
        span_days = (int(until_C.max()) - int(store.time_N[start_C].min())) / MICROSECONDS_PER_DAY
        aggregates = Aggregates.fit(store, tuple(windows_days), span_days, categories[EVENT_TYPE])
        return cls(
            kinds=dict(store.manifest.kinds),
            categories=categories,
            bin_edges=bin_edges,
            numeric_scaler=scalers,
            attribute_names=[*store.attributes_categorical, *store.attributes_numeric],
            attribute_scaler=attribute_scaler,
            aggregates=aggregates,
            aggregates_scaler=_aggregates_scaler(aggregates, store, train),
            horizons_days=train.horizons_days,
            targets=_target_statistics(train),
            churn_types=churn_types(store),
        )

    @property
    def products(self) -> list[str]:
        """Known products, in the order of the columns of ``next_product_scores``; product p has code p + 2."""
        return self.categories.get(PRODUCT, [])

    def names(self, kind: str) -> list[str]:
        """Event columns of a kind, in the order of the store."""
        return [name for name, found in self.kinds.items() if found == kind]

    @property
    def categorical(self) -> list[str]:
        return self.names(CATEGORICAL)

    @property
    def numeric(self) -> list[str]:
        return self.names(NUMERIC)

    @property
    def lists(self) -> list[str]:
        return self.names(LIST)

    @property
    def attributes_categorical(self) -> list[str]:
        return [name for name in self.attribute_names if name not in self.attribute_scaler]

    @property
    def attributes_numeric(self) -> list[str]:
        return list(self.attribute_scaler)

    def num_codes(self, name: str) -> int:
        """Size of an embedding table for a categorical or list column: missing, unknown and the known values."""
        return FIRST_KNOWN + len(self.categories[name])

    def num_bins(self, name: str) -> int:
        """Size of an embedding table for the bins of a numeric column, the missing bin included."""
        return len(self.bin_edges[name]) + 2

    def table(self, name: str, dictionary: list[str | None]) -> np.ndarray:
        """Model code of each storage code of a store's dictionary; the storage entry 0 is missing."""
        codes = {value: FIRST_KNOWN + place for place, value in enumerate(self.categories[name])}
        table = np.array([codes.get(value, UNKNOWN) for value in dictionary], dtype=np.int64)  # type: ignore[arg-type]
        table[0] = MISSING
        return table

    def bins(self, name: str, values: np.ndarray) -> np.ndarray:
        """Bin of each value, 0 for missing, int64."""
        # A pass per edge: for a few edges several times faster than a bisection per value.
        places = np.ones(len(values), dtype=np.int16)
        for edge in self.bin_edges[name]:
            places += values >= edge
        return np.where(np.isnan(values), 0, places).astype(np.int64)

    @property
    def has_clock(self) -> bool:
        """False where only the order of events is known: windows of days then do not exist."""
        return bool(self.aggregates.windows_days)

    def to_json(self) -> dict[str, Any]:
        return {
            "kinds": self.kinds,
            "categories": self.categories,
            "bin_edges": {name: edges.tolist() for name, edges in self.bin_edges.items()},
            "numeric_scaler": {name: scaler.to_json() for name, scaler in self.numeric_scaler.items()},
            "attribute_names": self.attribute_names,
            "attribute_scaler": {name: scaler.to_json() for name, scaler in self.attribute_scaler.items()},
            "aggregates": self.aggregates.to_json(),
            "aggregates_scaler": self.aggregates_scaler.to_json(),
            "horizons_days": list(self.horizons_days),
            "targets": self.targets,
            "churn_types": list(self.churn_types),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Vocabulary:
        return cls(
            kinds=data["kinds"],
            categories=data["categories"],
            bin_edges={name: np.asarray(edges, dtype=np.float64) for name, edges in data["bin_edges"].items()},
            numeric_scaler={name: Scaler.from_json(part) for name, part in data["numeric_scaler"].items()},
            attribute_names=data["attribute_names"],
            attribute_scaler={name: Scaler.from_json(part) for name, part in data["attribute_scaler"].items()},
            aggregates=Aggregates.from_json(data["aggregates"]),
            aggregates_scaler=Scaler.from_json(data["aggregates_scaler"]),
            horizons_days=tuple(data["horizons_days"]),
            targets=data["targets"],
            churn_types=tuple(data.get("churn_types", ())),
        )


def _aggregates_scaler(aggregates: Aggregates, store: Store, train: Queries) -> Scaler:
    """Clips and scales from the training questions, or from so many of them, drawn the same way each time."""
    rows = np.arange(len(train))
    if len(train) > MOST_SCALED:
        rows = np.sort(np.random.default_rng(0).choice(len(train), MOST_SCALED, replace=False))
    # Blocks of questions stay in the cache, and take no memory beside the answers; a scale reads a column.
    values_FQ = np.empty((len(aggregates.names), len(rows)), dtype=np.float32)
    for start in range(0, len(rows), SCALED_AT_ONCE):
        block = rows[start : start + SCALED_AT_ONCE]
        asked = train.journey_Q[block], train.cutoff_Q[block], train.last_event_Q[block]
        values_FQ[:, start : start + len(block)] = aggregates.compute(store, *asked).T
    return Scaler.fit(values_FQ.T)


def ragged_arange(start_R: np.ndarray, length_R: np.ndarray) -> np.ndarray:
    """``concatenate([arange(s, s + l) for s, l in zip(start, length)])`` without the loop, int64."""
    length_R = np.asarray(length_R, dtype=np.int64)
    offsets_R = np.cumsum(length_R) - length_R
    return np.arange(int(length_R.sum())) + np.repeat(np.asarray(start_R, dtype=np.int64) - offsets_R, length_R)


def _known(codes: np.ndarray, dictionary: list[str | None], min_count: int, most: int | None) -> list[str]:
    """Values seen at least ``min_count`` times, most frequent first, ties by value."""
    counts = np.bincount(codes, minlength=len(dictionary))
    counts[0] = 0
    seen = [(-int(counts[code]), str(dictionary[code])) for code in np.flatnonzero(counts >= max(min_count, 1))]
    return [value for _, value in sorted(seen)[:most]]


def _target_statistics(train: Queries) -> dict[str, dict[str, list[float]]]:
    """Per horizon, over observed training questions: what the heads start from."""
    value: dict[str, list[float]] = {"p_zero": [], "log_mean": [], "log_std": [], "mean": [], "highest": []}
    purchases: dict[str, list[float]] = {"mean": [], "dispersion": [], "highest": []}
    for column in range(len(train.horizons_days)):
        observed = train.observed_QK[:, column]
        money = np.maximum(train.value_QK[observed, column], 0.0)
        logs = np.log(money[money > 0])
        counts = train.purchases_QK[observed, column].astype(np.float64)
        value["p_zero"].append(float(np.mean(money <= 0)) if len(money) else 0.5)
        value["log_mean"].append(float(logs.mean()) if len(logs) else 0.0)
        value["log_std"].append(float(logs.std()) if len(logs) > 1 else 1.0)
        value["mean"].append(float(money.mean()) if len(money) else 1.0)
        value["highest"].append(float(money.max()) if len(money) else 0.0)
        mean = float(counts.mean()) if len(counts) else 1.0
        # Moments of the negative binomial: variance = mean + mean^2 / dispersion.
        excess = max(float(counts.var()) - mean, 1e-3 * max(mean, 1e-3)) if len(counts) else 1.0
        purchases["mean"].append(mean)
        purchases["highest"].append(float(counts.max()) if len(counts) else 0.0)
        purchases["dispersion"].append(min(mean**2 / excess, 100.0) if mean > 0 else 1.0)
    return {"value": value, "purchases": purchases}
