"""Everybody gets what everybody buys."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from constellation.baselines.baseline import Predictions, training_journeys
from constellation.baselines.products import ProductBaseline, knows_products, training_products

if TYPE_CHECKING:
    from constellation.journeys.store import Store
    from constellation.journeys.vocabulary import Vocabulary
    from constellation.journeys.windows import Queries, Until


class MostPopular(ProductBaseline):
    """Score of a product: how many events of the training customers up to ``until`` named it."""

    name = "most_popular"

    def fit(
        self, store: Store, vocabulary: Vocabulary, train: Queries, *, until: Until, val: Queries | None = None
    ) -> None:
        """Count."""
        self.knows_products = knows_products(store, vocabulary)
        if not self.knows_products:
            return
        _, place = training_products(store, vocabulary, training_journeys(train), until)
        self.count_V = np.bincount(place, minlength=len(vocabulary.products)).astype(np.float32)

    def predict(self, store: Store, queries: Queries, levels: np.ndarray) -> Predictions:
        if not self.knows_products:
            return {}
        # A view: the same row for everybody needs no memory of its own.
        return {"next_product_scores": np.broadcast_to(self.count_V, (len(queries), len(self.count_V)))}
