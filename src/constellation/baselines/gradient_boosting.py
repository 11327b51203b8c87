"""Gradient boosting on recency-frequency-money aggregates: what a good practitioner would train first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from constellation.baselines.baseline import Baseline, Predictions
from constellation.baselines.boosters import Booster, MeanBooster, QuantileBooster, ZeroBooster, limited_threads
from constellation.baselines.quantile_curve import interpolate_quantiles
from constellation.errors import InputError

if TYPE_CHECKING:
    from constellation.journeys.store import Store
    from constellation.journeys.vocabulary import Vocabulary
    from constellation.journeys.windows import Queries, Until

MAX_CATEGORIES = 250
"""The library splits on categories up to 255; an attribute with more enters as a number, its rank by frequency."""


class GradientBoosting(Baseline):
    """Histogram boosting (scikit-learn) on ``Aggregates``, tenure among them, and static attributes.

    Trained on the whole panel: one row per customer and cutoff, for each horizon on the rows whose horizon is observed;
    a horizon without such rows is left out of the predictions. For value and for purchases there are

    - the mean, by Poisson deviance: consistent for the mean, and calmer than squared error when a few customers spend
      most; it trains on max(0, net), as the heads do;
    - P(zero), by log loss, where zero means a net of at most 0;
    - quantiles at ``quantile_levels``, by pinball loss on log(1 + y), put in order and interpolated; none beyond the
      highest answer seen in training, for a line from zero at 75 % through a wholesaler's 95 % soon ends in billions.

    The number of trees of each is chosen on ``val`` by its own loss and kept for the refit; without a choice it is
    ``num_trees``. learning_rate, max_leaf_nodes, min_samples_leaf, l2 and column_share are the library's
    ``learning_rate``, ``max_leaf_nodes``, ``min_samples_leaf``, ``l2_regularization`` and ``max_features``.
    max_rows: larger panels are thinned to so many rows at random. num_threads: of the library; one is about as quick as
    two on so few rows, and where the cores are busy its threads wait for one another badly.
    """

    name = "gradient_boosting"

    def __init__(
        self,
        *,
        learning_rate: float = 0.08,
        max_leaf_nodes: int = 15,
        min_samples_leaf: int = 100,
        l2: float = 1.0,
        column_share: float = 0.5,
        max_trees: int = 120,
        num_trees: int = 40,
        quantile_levels: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95),
        max_rows: int = 20_000,
        num_threads: int = 1,
        seed: int = 0,
    ) -> None:
        self.quantile_levels = np.asarray(sorted(quantile_levels), dtype=np.float64)
        if len(self.quantile_levels) < 2 or self.quantile_levels[0] <= 0 or self.quantile_levels[-1] >= 1:
            raise InputError(
                f"quantile_levels must be two or more numbers strictly between 0 and 1, found {list(quantile_levels)}."
            )
        if not 1 <= num_trees <= max_trees:
            raise InputError(f"num_trees must lie in 1 .. max_trees = {max_trees}, found {num_trees}.")
        self.min_samples_leaf, self.max_trees, self.num_trees = min_samples_leaf, max_trees, num_trees
        self.max_rows, self.num_threads, self.seed = max_rows, num_threads, seed
        self.settings: dict[str, Any] = {
            "learning_rate": learning_rate,
            "max_leaf_nodes": max_leaf_nodes,
            "l2_regularization": l2,
            "max_features": column_share,
            "random_state": seed,
        }
        self.chosen_trees: dict[tuple[str, str], int] = {}
        self.boosters: dict[tuple[str, str], Booster] = {}
        self.highest: dict[str, float] = {}

    def fit(
        self, store: Store, vocabulary: Vocabulary, train: Queries, *, until: Until, val: Queries | None = None
    ) -> None:
        """Train all parts. With ``val`` they grow ``max_trees`` trees each and keep the number best there."""
        with limited_threads(self.num_threads):
            self._fit(store, vocabulary, train, val)

    def _fit(self, store: Store, vocabulary: Vocabulary, train: Queries, val: Queries | None) -> None:
        self.vocabulary = vocabulary
        if len(train) > self.max_rows:
            rows = np.random.default_rng(self.seed).choice(len(train), self.max_rows, replace=False)
            train = train.take(np.sort(rows))
        features_QF, categorical_F = self._features(store, train)
        # The library cannot bin a column without one known value, such as a duration where only the order is known.
        self.known_F = ~np.isnan(features_QF).all(axis=0)
        features_QF, categorical_F = features_QF[:, self.known_F], categorical_F[self.known_F]
        val_features_QF = None if val is None else self._features(store, val)[0][:, self.known_F]
        self.boosters = {}
        for horizon, days in enumerate(train.horizons_days):
            observed_Q = train.observed_QK[:, horizon]
            if not observed_Q.any():
                continue
            # Known elsewhere, but not where this horizon was observed: a constant, on which no tree splits.
            observed_QF = features_QF[observed_Q]
            observed_QF[:, np.isnan(observed_QF).all(axis=0)] = 0.0
            observed_val_Q = np.zeros(0, dtype=bool) if val is None else val.observed_QK[:, horizon]
            for target in ("value", "purchases"):
                y_Q = _answers(train, target)[observed_Q, horizon]
                self.highest[f"{target}_{days}d"] = float(y_Q.max())
                settings = self.settings | {
                    # A leaf of 100 rows is right for thousands of them; a small data set needs smaller ones.
                    "min_samples_leaf": int(np.clip(len(y_Q) // 50, 1, self.min_samples_leaf)),
                    "categorical_features": categorical_F,
                }
                for part, booster in self._parts(settings).items():
                    key = (f"{target}_{days}d", part)
                    if val is not None and val_features_QF is not None and observed_val_Q.any():
                        booster.fit(observed_QF, y_Q, self.max_trees)
                        val_y_Q = _answers(val, target)[observed_val_Q, horizon]
                        self.chosen_trees[key] = booster.keep_best(val_features_QF[observed_val_Q], val_y_Q)
                    else:
                        booster.fit(observed_QF, y_Q, self.chosen_trees.get(key, self.num_trees))
                    self.boosters[key] = booster

    def predict(self, store: Store, queries: Queries, levels: np.ndarray) -> Predictions:
        with limited_threads(self.num_threads):
            return self._predict(store, queries, levels)

    def _predict(self, store: Store, queries: Queries, levels: np.ndarray) -> Predictions:
        features_QF = self._features(store, queries)[0][:, self.known_F]
        predictions: Predictions = {}
        for days in queries.horizons_days:
            for target in (f"value_{days}d", f"purchases_{days}d"):
                if (target, "mean") not in self.boosters:
                    continue
                p_zero_Q = self.boosters[target, "zero"].predict(features_QF)
                knots_QP = np.column_stack(
                    [
                        self.boosters[target, f"quantile_{level:g}"].predict(features_QF)
                        for level in self.quantile_levels
                    ]
                )
                quantiles_QL = interpolate_quantiles(self.quantile_levels, knots_QP, p_zero_Q, levels)
                quantiles_QL = np.minimum(quantiles_QL, self.highest[target])
                predictions |= {
                    f"{target}_expected": self.boosters[target, "mean"].predict(features_QF),
                    f"{target}_p_zero": p_zero_Q,
                    f"{target}_quantiles": np.rint(quantiles_QL) if target.startswith("purchases") else quantiles_QL,
                }
        return predictions

    def _parts(self, settings: dict[str, Any]) -> dict[str, Booster]:
        parts: dict[str, Booster] = {"mean": MeanBooster(settings), "zero": ZeroBooster(settings)}
        return parts | {f"quantile_{level:g}": QuantileBooster(settings, level) for level in self.quantile_levels}

    def _features(self, store: Store, queries: Queries) -> tuple[np.ndarray, np.ndarray]:
        """Features [Q, F], NaN where missing, and which of them are categories [F]."""
        vocabulary, journey_Q = self.vocabulary, queries.journey_Q
        columns = [vocabulary.aggregates.compute(store, journey_Q, queries.cutoff_Q, queries.last_event_Q)]
        categorical = [False] * columns[0].shape[1]
        for name in vocabulary.attributes_categorical:
            key = f"attributes.{name}"
            code_Q = vocabulary.table(key, store.dictionaries[key])[store.attributes_categorical[name][journey_Q]]
            columns.append(np.where(code_Q == 0, np.nan, code_Q)[:, None])
            categorical.append(vocabulary.num_codes(key) <= MAX_CATEGORIES)
        for name in vocabulary.attributes_numeric:
            columns.append(store.attributes_numeric[name][journey_Q][:, None])
            categorical.append(False)
        return np.concatenate(columns, axis=1, dtype=np.float32, casting="unsafe"), np.asarray(categorical)


def _answers(queries: Queries, target: str) -> np.ndarray:
    """[Q, K] as the boosters learn it: money and counts, not below 0."""
    answers_QK = queries.value_QK if target == "value" else queries.purchases_QK
    return np.maximum(answers_QK, 0).astype(np.float64)
