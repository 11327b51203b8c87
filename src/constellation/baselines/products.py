"""Products of events as columns of ``next_product_scores``: shared by the popularity baselines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from constellation.baselines.baseline import Baseline
from constellation.journeys.questions import until_of
from constellation.journeys.vocabulary import FIRST_KNOWN, ragged_arange
from constellation.schema import PRODUCT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from constellation.journeys.store import Store
    from constellation.journeys.vocabulary import Vocabulary
    from constellation.journeys.windows import Until


class ProductBaseline(Baseline):
    """A baseline that ranks products: it needs some, and no horizon."""

    def left_out(self, store: Store, horizons_days: Sequence[int]) -> str | None:
        return None if PRODUCT in store.lists else "it ranks products, and no event names one"


def knows_products(store: Store, vocabulary: Vocabulary) -> bool:
    """Whether there is anything to rank; without products these baselines leave their answer out."""
    return PRODUCT in store.lists and bool(vocabulary.products)


def products_of(
    store: Store, vocabulary: Vocabulary, start_R: np.ndarray, end_R: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All known products of the events ``start_R : end_R``: (range, event, column of the scores), int64 each.

    range: which of the R event ranges; event: index in the store. Products unknown to the vocabulary are left out.
    """
    length_R = end_R - start_R
    event = ragged_arange(start_R, length_R)
    values_M, offsets_N = store.lists[PRODUCT]
    begin = offsets_N[event].astype(np.int64)
    length = offsets_N[event + 1].astype(np.int64) - begin
    place = vocabulary.table(PRODUCT, store.dictionaries[PRODUCT])[values_M[ragged_arange(begin, length)]] - FIRST_KNOWN
    which = np.repeat(np.repeat(np.arange(len(start_R)), length_R), length)
    known = place >= 0
    return which[known], np.repeat(event, length)[known], place[known]


def training_products(
    store: Store, vocabulary: Vocabulary, journeys: np.ndarray, until: Until
) -> tuple[np.ndarray, np.ndarray]:
    """(event, column of the scores) of all products that the journeys touched at or before ``until``."""
    start = store.first_event_C[journeys].astype(np.int64)
    end = store.end_event(journeys, until_of(until, journeys))
    _, event, place = products_of(store, vocabulary, start, end)
    return event, place
