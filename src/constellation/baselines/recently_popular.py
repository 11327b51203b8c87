"""Everybody gets what everybody buys just now."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from constellation.baselines.baseline import Predictions, training_journeys
from constellation.baselines.products import ProductBaseline, knows_products, training_products
from constellation.errors import InputError
from constellation.journeys.store import MICROSECONDS_PER_DAY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from constellation.journeys.store import Store
    from constellation.journeys.vocabulary import Vocabulary
    from constellation.journeys.windows import Queries, Until


class RecentlyPopular(ProductBaseline):
    """Score of a product: events of the training customers that named it in the last ``window_days`` before the cutoff.

    A cutoff after ``until`` of the fit looks at the window before ``until``: later events were not known when fitting.
    Where only the order of events is known it is left out: ranks of two customers have no common clock.
    """

    name = "recently_popular"

    def __init__(self, *, window_days: int = 28) -> None:
        if window_days < 1:
            raise InputError(f"window_days must be at least 1, found {window_days}. Four weeks (28) even out weekdays.")
        self.window_days = window_days

    def left_out(self, store: Store, horizons_days: Sequence[int]) -> str | None:
        if not store.has_clock:
            return "only the order of each customer's events is known, so nothing is recent for all"
        return super().left_out(store, horizons_days)

    def fit(
        self, store: Store, vocabulary: Vocabulary, train: Queries, *, until: Until, val: Queries | None = None
    ) -> None:
        """Sort what was bought by time."""
        self.knows_products = knows_products(store, vocabulary)
        if not self.knows_products:
            return
        event, place = training_products(store, vocabulary, training_journeys(train), until)
        time = store.time_N[event]
        order = np.argsort(time, kind="stable")
        self.time_P, self.place_P = time[order], place[order]
        self.num_products, self.until = len(vocabulary.products), int(np.max(until))

    def predict(self, store: Store, queries: Queries, levels: np.ndarray) -> Predictions:
        if not self.knows_products:
            return {}
        cutoffs, which_Q = np.unique(np.minimum(queries.cutoff_Q, self.until), return_inverse=True)
        low = np.searchsorted(self.time_P, cutoffs - self.window_days * MICROSECONDS_PER_DAY, side="right")
        high = np.searchsorted(self.time_P, cutoffs, side="right")
        counts_UV = np.empty((len(cutoffs), self.num_products), dtype=np.float32)
        # The window slides over ascending cutoffs: each purchase is added once and taken away once.
        count_V, low_before, high_before = np.zeros(self.num_products, dtype=np.int64), 0, 0
        for row in range(len(cutoffs)):
            count_V += np.bincount(self.place_P[high_before : high[row]], minlength=self.num_products)
            count_V -= np.bincount(self.place_P[low_before : low[row]], minlength=self.num_products)
            low_before, high_before = low[row], high[row]
            counts_UV[row] = count_V
        return {"next_product_scores": counts_UV[which_Q]}
