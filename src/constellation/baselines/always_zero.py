"""Nobody buys again: the bar below which a prediction does harm."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from constellation.baselines.baseline import Baseline, Predictions, point_predictions

if TYPE_CHECKING:
    from constellation.journeys.store import Store
    from constellation.journeys.vocabulary import Vocabulary
    from constellation.journeys.windows import Queries, Until


class AlwaysZero(Baseline):
    """Value and purchases are zero for everybody, for certain."""

    name = "always_zero"

    def fit(
        self, store: Store, vocabulary: Vocabulary, train: Queries, *, until: Until, val: Queries | None = None
    ) -> None:
        """Nothing to learn."""

    def predict(self, store: Store, queries: Queries, levels: np.ndarray) -> Predictions:
        predictions: Predictions = {}
        zero_Q, one_Q = np.zeros(len(queries)), np.ones(len(queries))
        for days in queries.horizons_days:
            for target in (f"value_{days}d", f"purchases_{days}d"):
                predictions |= point_predictions(target, zero_Q, one_Q, levels)
        return predictions
