"""The contract of a baseline, and what the simple ones share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from constellation.journeys.store import Store
    from constellation.journeys.vocabulary import Vocabulary
    from constellation.journeys.windows import Queries, Until

Predictions = dict[str, np.ndarray]
"""``value_91d_expected [Q]``, ``value_91d_p_zero [Q]``, ``value_91d_quantiles [Q, L]``, the same for ``purchases_91d``,
and ``next_product_scores [Q, V]`` over ``vocabulary.products``. A baseline leaves out what it cannot say."""


class Baseline(ABC):
    """Fitted twice: to select, with ``val``, and to refit on all that is known at the test cutoff, without.

    ``baseline.fit(store, vocabulary, train, until=cutoff); baseline.predict(store, queries, levels)``
    """

    name: str

    def left_out(self, store: Store, horizons_days: Sequence[int]) -> str | None:
        """Why this baseline has nothing to say about a data set, as half a sentence; None where it answers.

        This one is that of baselines of money and purchases over horizons.
        """
        return None if horizons_days else "it speaks of money over horizons, and these data have none"

    @abstractmethod
    def fit(
        self, store: Store, vocabulary: Vocabulary, train: Queries, *, until: Until, val: Queries | None = None
    ) -> None:
        """Learn from the customers of ``train``: its answers, and their events at or before ``until``.

        until: microseconds UTC, one for all or one per customer of the store. With ``val``, settings such as a number
        of steps are chosen on it and kept; without, the kept ones are used.
        """

    @abstractmethod
    def predict(self, store: Store, queries: Queries, levels: np.ndarray) -> Predictions:
        """Answer the queries; quantiles at ``levels`` [L]. Reads events at or before each cutoff only."""


def point_predictions(target: str, expected_Q: np.ndarray, p_zero_Q: np.ndarray, levels: np.ndarray) -> Predictions:
    """A single number as a distribution: every quantile is that number, so its CRPS is its absolute error.

    target: for example ``value_91d``. Where p_zero is 1 the number must be 0.
    """
    quantiles_QL = np.repeat(expected_Q[:, None], len(levels), axis=1)
    return {f"{target}_expected": expected_Q, f"{target}_p_zero": p_zero_Q, f"{target}_quantiles": quantiles_QL}


def poisson_p_zero(purchases_Q: np.ndarray) -> np.ndarray:
    """P(no purchase) when the expected number is read as the mean of a Poisson: orders customers by activity."""
    return np.exp(-np.maximum(purchases_Q, 0.0))


def training_journeys(train: Queries) -> np.ndarray:
    """The distinct customers of a panel, int64, ascending."""
    return np.unique(train.journey_Q)
