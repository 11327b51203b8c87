"""Everybody gets what they have bought most often themselves: hard to beat where people buy the same things again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from constellation.baselines.baseline import Predictions, training_journeys
from constellation.baselines.products import ProductBaseline, knows_products, products_of, training_products

if TYPE_CHECKING:
    from constellation.journeys.store import Store
    from constellation.journeys.vocabulary import Vocabulary
    from constellation.journeys.windows import Queries, Until

CELLS = 1 << 24
"""Customers times products counted at once, 128 MiB."""


class OwnFavourites(ProductBaseline):
    """Score of a product: own events that named it up to the cutoff, plus its popularity as a fraction below 1.

    So popularity orders products of equal own count, never bought ones among them.
    """

    name = "own_favourites"

    def fit(
        self, store: Store, vocabulary: Vocabulary, train: Queries, *, until: Until, val: Queries | None = None
    ) -> None:
        """Count popularity."""
        self.knows_products = knows_products(store, vocabulary)
        if not self.knows_products:
            return
        _, place = training_products(store, vocabulary, training_journeys(train), until)
        count_V = np.bincount(place, minlength=len(vocabulary.products))
        # By rank rather than by share: shares of rare products would drown in float32 beside a large own count.
        rank_V = np.argsort(np.argsort(count_V, kind="stable"), kind="stable")
        self.tie_break_V = (rank_V / max(len(rank_V), 1)).astype(np.float32)
        self.vocabulary = vocabulary

    def predict(self, store: Store, queries: Queries, levels: np.ndarray) -> Predictions:
        if not self.knows_products:
            return {}
        start_Q = store.first_event_C[queries.journey_Q].astype(np.int64)
        end_Q = store.end_event(queries.journey_Q, queries.cutoff_Q)
        num_products = len(self.tie_break_V)
        scores_QV = np.empty((len(queries), num_products), dtype=np.float32)
        step = max(1, CELLS // max(num_products, 1))
        for first in range(0, len(queries), step):
            rows = slice(first, min(first + step, len(queries)))
            which, _, place = products_of(store, self.vocabulary, start_Q[rows], end_Q[rows])
            num_rows = rows.stop - rows.start
            count = np.bincount(which * num_products + place, minlength=num_rows * num_products)
            scores_QV[rows] = count.reshape(num_rows, num_products) + self.tie_break_V
        return {"next_product_scores": scores_QV}
