"""The next quarter will be like the last one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from constellation.baselines.baseline import Baseline, Predictions, point_predictions, poisson_p_zero
from constellation.journeys.store import MICROSECONDS_PER_DAY

if TYPE_CHECKING:
    from constellation.journeys.store import Store
    from constellation.journeys.vocabulary import Vocabulary
    from constellation.journeys.windows import Queries, Until


class PastSpend(Baseline):
    """Net money and purchases of the last ``horizon`` days before the cutoff, carried forward.

    A customer younger than the horizon gets the sum of the whole history, not scaled up. P(zero) reads the number of
    purchases as the mean of a Poisson.
    """

    name = "past_spend"

    def fit(
        self, store: Store, vocabulary: Vocabulary, train: Queries, *, until: Until, val: Queries | None = None
    ) -> None:
        """Nothing to learn: each customer is their own past."""

    def predict(self, store: Store, queries: Queries, levels: np.ndarray) -> Predictions:
        end_Q = store.end_event(queries.journey_Q, queries.cutoff_Q)
        predictions: Predictions = {}
        for days in queries.horizons_days:
            start_Q = store.end_event(queries.journey_Q, queries.cutoff_Q - days * MICROSECONDS_PER_DAY)
            purchases_Q = store.purchases_between(start_Q, end_Q).astype(np.float64)
            value_Q = store.money_between(start_Q, end_Q)
            p_zero_Q = poisson_p_zero(purchases_Q)
            predictions |= point_predictions(f"value_{days}d", value_Q, p_zero_Q, levels)
            predictions |= point_predictions(f"purchases_{days}d", purchases_Q, p_zero_Q, levels)
        return predictions
