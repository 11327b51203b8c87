"""How long until something happens after a cutoff, and how long we watched: censored, never zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from constellation.schema import EVENT_TYPE
from constellation.zones import MICROSECONDS_PER_DAY

if TYPE_CHECKING:
    from constellation.journeys.store import Store
    from constellation.journeys.windows import Queries


@dataclass(frozen=True)
class Waits:
    """Days after the cutoff, float64; infinite where it had not happened when watching ended: censored.

    watched_Q: days from the cutoff to the end of what is known. event_Q: to the next event of any kind. purchase_Q: to
    the next purchase. churn_QR: to the next event of each of the schema's ``churn_types``.
    """

    watched_Q: np.ndarray
    event_Q: np.ndarray
    purchase_Q: np.ndarray
    churn_QR: np.ndarray


def waits(store: Store, queries: Queries) -> Waits:
    """Waits of questions from :func:`~constellation.journeys.windows.ask`; nothing later than was known is read."""
    assert queries.known_until_Q is not None, "questions that were not asked of a store have no answers"
    start_Q = np.where(queries.last_event_Q >= 0, queries.last_event_Q + 1, store.first_event_C[queries.journey_Q])
    end_Q = np.maximum(store.end_event(queries.journey_Q, queries.known_until_Q), start_Q)
    churn = [_days_to(store, queries, _next(store.events_of_type(name), start_Q, end_Q)) for name in churn_types(store)]
    return Waits(
        watched_Q=np.maximum(queries.known_until_Q - queries.cutoff_Q, 0) / MICROSECONDS_PER_DAY,
        event_Q=_days_to(store, queries, queries.next_event_Q),
        purchase_Q=_days_to(store, queries, _next(store.purchase_events, start_Q, end_Q)),
        churn_QR=np.stack(churn, axis=1) if churn else np.empty((len(queries), 0)),
    )


def churn_types(store: Store) -> tuple[str, ...]:
    """The declared ends of a relationship, where the store has event types."""
    return store.schema.churn_types if EVENT_TYPE in store.categorical else ()


def has_left(store: Store, queries: Queries) -> np.ndarray:
    """[Q], whether the last that is known is an end: a churn event by the cutoff with no purchase after it."""
    left_Q = np.zeros(len(queries), dtype=bool)
    seen_Q = queries.last_event_Q >= 0
    first_Q = store.first_event_C[queries.journey_Q].astype(np.int64)
    end_Q = np.where(seen_Q, queries.last_event_Q + 1, first_Q)
    last_purchase_Q = _last(store.purchase_events, first_Q, end_Q)
    for name in churn_types(store):
        last_Q = _last(store.events_of_type(name), first_Q, end_Q)
        left_Q |= (last_Q >= 0) & (last_Q > last_purchase_Q)
    return left_Q


def _next(events: np.ndarray, start_Q: np.ndarray, end_Q: np.ndarray) -> np.ndarray:
    """The first of ascending ``events`` in ``start_Q : end_Q``, -1 where there is none."""
    if not len(events):
        return np.full(len(start_Q), -1, dtype=np.int64)
    place_Q = np.searchsorted(events, start_Q)
    found_Q = events[np.minimum(place_Q, len(events) - 1)]
    return np.where((place_Q < len(events)) & (found_Q < end_Q), found_Q, -1)


def _last(events: np.ndarray, start_Q: np.ndarray, end_Q: np.ndarray) -> np.ndarray:
    """The last of ascending ``events`` in ``start_Q : end_Q``, -1 where there is none."""
    if not len(events):
        return np.full(len(start_Q), -1, dtype=np.int64)
    place_Q = np.searchsorted(events, end_Q) - 1
    found_Q = events[np.maximum(place_Q, 0)]
    return np.where((place_Q >= 0) & (found_Q >= start_Q), found_Q, -1)


def _days_to(store: Store, queries: Queries, event_Q: np.ndarray) -> np.ndarray:
    if not store.num_events:
        return np.full(len(event_Q), np.inf)
    days_Q = (store.time_N[np.maximum(event_Q, 0)] - queries.cutoff_Q) / MICROSECONDS_PER_DAY
    return np.where(event_Q >= 0, days_Q, np.inf)
