"""Each customer goes on at the rate so far."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from constellation.baselines.baseline import Baseline, Predictions, point_predictions, poisson_p_zero
from constellation.baselines.recency import purchase_range
from constellation.journeys.store import MICROSECONDS_PER_DAY

if TYPE_CHECKING:
    from constellation.journeys.store import Store
    from constellation.journeys.vocabulary import Vocabulary
    from constellation.journeys.windows import Queries, Until


class SameRate(Baseline):
    """Purchases and net money after the first purchase, per day since it, times the horizon.

    The first purchase made them a customer and says nothing about the rate, as in the buy-till-you-die literature
    (x / T). min_days: a shorter history is counted as this long, since a rate over an hour is noise. Customers without
    a purchase get zero. P(zero) reads the expected number of purchases as the mean of a Poisson.
    """

    name = "same_rate"

    def __init__(self, *, min_days: float = 7.0) -> None:
        self.min_days = min_days

    def fit(
        self, store: Store, vocabulary: Vocabulary, train: Queries, *, until: Until, val: Queries | None = None
    ) -> None:
        """Nothing to learn: each customer is their own past."""

    def predict(self, store: Store, queries: Queries, levels: np.ndarray) -> Predictions:
        _, end_Q, first_Q, bought_Q = purchase_range(store, queries)
        days_Q = (queries.cutoff_Q - store.time_N[first_Q]) / MICROSECONDS_PER_DAY
        days_Q = np.maximum(np.where(bought_Q, days_Q, 0.0), self.min_days)
        after_Q = np.where(bought_Q, first_Q + 1, end_Q)
        purchases_Q = store.purchases_between(after_Q, end_Q) / days_Q
        value_Q = store.money_between(after_Q, end_Q) / days_Q
        predictions: Predictions = {}
        for days in queries.horizons_days:
            p_zero_Q = poisson_p_zero(purchases_Q * days)
            predictions |= point_predictions(f"value_{days}d", value_Q * days, p_zero_Q, levels)
            predictions |= point_predictions(f"purchases_{days}d", purchases_Q * days, p_zero_Q, levels)
        return predictions
