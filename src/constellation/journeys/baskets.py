"""Products around a cutoff: the basket that follows, and what was bought lately. For metrics, never for inputs."""

from __future__ import annotations

import numpy as np

from constellation.journeys.store import MICROSECONDS_PER_DAY, Store
from constellation.journeys.vocabulary import FIRST_KNOWN, Vocabulary, ragged_arange
from constellation.journeys.windows import Queries
from constellation.schema import EVENT_TYPE, PRODUCT

Ragged = tuple[np.ndarray, np.ndarray]
"""Columns of ``vocabulary.products`` [M], -1 for a product unknown to it, and offsets [Q + 1]."""


def next_products(store: Store, vocabulary: Vocabulary, queries: Queries) -> Ragged:
    """Products of the first basket after each cutoff; empty where none is known."""
    asked_Q = queries.next_basket_Q >= 0
    start_Q = np.where(asked_Q, queries.next_basket_Q, 0)
    return _products(store, vocabulary, start_Q, start_Q + asked_Q)


def next_types(store: Store, vocabulary: Vocabulary, queries: Queries) -> np.ndarray:
    """Place of the type of the first event after each cutoff among the known ones, int64; -1: none, or unknown."""
    codes = vocabulary.table(EVENT_TYPE, store.dictionaries[EVENT_TYPE])
    code_Q = codes[store.categorical[EVENT_TYPE][np.maximum(queries.next_event_Q, 0)]]
    return np.where((queries.next_event_Q >= 0) & (code_Q >= FIRST_KNOWN), code_Q - FIRST_KNOWN, -1)


def recent_products(store: Store, vocabulary: Vocabulary, queries: Queries, days: int) -> Ragged:
    """Products of all baskets in ``(cutoff - days, cutoff]``, repeats included."""
    start_Q = store.end_event(queries.journey_Q, queries.cutoff_Q - days * MICROSECONDS_PER_DAY)
    return _products(store, vocabulary, start_Q, store.end_event(queries.journey_Q, queries.cutoff_Q))


def seen_products(store: Store, vocabulary: Vocabulary, queries: Queries) -> Ragged:
    """Products of all events that each question may see, repeats included: what the customer already has."""
    start_Q = store.first_event_C[queries.journey_Q].astype(np.int64)
    return _products(store, vocabulary, start_Q, np.where(queries.last_event_Q >= 0, queries.last_event_Q + 1, start_Q))


def take(sets: Ragged, rows: np.ndarray) -> Ragged:
    """The sets at ``rows`` (indices)."""
    values_M, offsets = sets
    length_R = offsets[rows + 1] - offsets[rows]
    return values_M[ragged_arange(offsets[rows], length_R)], np.concatenate([[0], np.cumsum(length_R)])


def _products(store: Store, vocabulary: Vocabulary, start_Q: np.ndarray, end_Q: np.ndarray) -> Ragged:
    if PRODUCT not in store.lists or not vocabulary.products:
        return np.empty(0, dtype=np.int64), np.zeros(len(start_Q) + 1, dtype=np.int64)
    values_M, offsets = store.lists[PRODUCT]
    begin_Q = offsets[start_Q].astype(np.int64)
    length_Q = np.where(end_Q > start_Q, offsets[np.maximum(end_Q, start_Q)].astype(np.int64) - begin_Q, 0)
    codes = vocabulary.table(PRODUCT, store.dictionaries[PRODUCT])[values_M[ragged_arange(begin_Q, length_Q)]]
    known = codes >= FIRST_KNOWN
    return np.where(known, codes - FIRST_KNOWN, -1), np.concatenate([[0], np.cumsum(length_Q)])
