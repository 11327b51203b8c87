"""Questions: what is asked of whom at which cutoff, and the answers that a store knows by a given moment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from constellation import zones
from constellation.journeys.store import MICROSECONDS_PER_DAY, Store, to_local

CLOCK_CHANGE = 2 * 3_600_000_000
"""Grace of a horizon: a clock change makes a day an hour longer, and the same wall-clock day still counts as inside."""

Until = int | np.ndarray
"""The last moment that may be known: one for all, or one for each customer of the store, int64 [C]."""


def until_of(until: Until, journeys: np.ndarray) -> np.ndarray:
    """The moment for each of ``journeys`` (rows of the store), int64."""
    if isinstance(until, np.ndarray):
        return until[journeys]
    return np.full(len(journeys), until, dtype=np.int64)


@dataclass
class Queries:
    """Questions: one row is a customer at a cutoff. All arrays are aligned.

    journey_Q: row of the customer in the store. cutoff_Q: microseconds UTC, inclusive. last_event_Q: store index of
    the last event it may see, -1 for none. value_QK: net money in ``(cutoff, cutoff + horizon]``; purchases_QK: number
    of purchases there. observed_QK: False where the horizon ends after what is known: censored, never zero.
    next_event_Q: store index of the first known event after the cutoff, -1 for none; next_basket_Q: of the first that
    names a product. known_until_Q: microseconds UTC, the end of what the answers know.
    """

    journey_Q: np.ndarray
    cutoff_Q: np.ndarray
    last_event_Q: np.ndarray
    horizons_days: tuple[int, ...]
    value_QK: np.ndarray
    purchases_QK: np.ndarray
    observed_QK: np.ndarray
    next_event_Q: np.ndarray
    next_basket_Q: np.ndarray
    known_until_Q: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.journey_Q)

    def take(self, rows: np.ndarray) -> Queries:
        """The questions at ``rows`` (indices or a mask)."""
        return Queries(
            journey_Q=self.journey_Q[rows],
            cutoff_Q=self.cutoff_Q[rows],
            last_event_Q=self.last_event_Q[rows],
            horizons_days=self.horizons_days,
            value_QK=self.value_QK[rows],
            purchases_QK=self.purchases_QK[rows],
            observed_QK=self.observed_QK[rows],
            next_event_Q=self.next_event_Q[rows],
            next_basket_Q=self.next_basket_Q[rows],
            known_until_Q=None if self.known_until_Q is None else self.known_until_Q[rows],
        )


def ask(
    store: Store, journey_Q: np.ndarray, cutoff_Q: np.ndarray, horizons_days: tuple[int, ...], known_until: Until
) -> Queries:
    """Queries with their answers, from running sums: a hundred cutoffs cost little more than one.

    Events after ``known_until`` (of the customer, where it differs) are never read, so a horizon that ends later is
    censored.
    """
    journey_Q = np.asarray(journey_Q, dtype=np.int64)
    cutoff_Q = np.broadcast_to(np.asarray(cutoff_Q, dtype=np.int64), journey_Q.shape).copy()
    last_event_Q = store.last_event(journey_Q, cutoff_Q)
    start_Q = np.where(last_event_Q >= 0, last_event_Q + 1, store.first_event_C[journey_Q])
    known_until_Q = until_of(known_until, journey_Q)
    known_Q = store.end_event(journey_Q, known_until_Q)
    shape = (len(journey_Q), len(horizons_days))
    value_QK = np.zeros(shape)
    purchases_QK, observed_QK = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=bool)
    for column, days in enumerate(horizons_days):
        end_time_Q = cutoff_Q + days * MICROSECONDS_PER_DAY
        end_Q = np.maximum(np.minimum(store.end_event(journey_Q, end_time_Q), known_Q), start_Q)
        value_QK[:, column] = store.money_between(start_Q, end_Q)
        purchases_QK[:, column] = store.purchases_between(start_Q, end_Q)
        observed_QK[:, column] = end_time_Q <= known_until_Q + CLOCK_CHANGE
    return Queries(
        journey_Q=journey_Q,
        cutoff_Q=cutoff_Q,
        last_event_Q=last_event_Q,
        horizons_days=tuple(horizons_days),
        value_QK=value_QK,
        purchases_QK=purchases_QK,
        observed_QK=observed_QK,
        next_event_Q=np.where(start_Q < known_Q, start_Q, -1),
        next_basket_Q=store.first_basket(start_Q, known_Q),
        known_until_Q=known_until_Q,
    )


def days_before(store: Store, latest: int, first: int, step_days: int = 1) -> np.ndarray:
    """Grid of cutoffs from ``latest`` back to ``first``, descending int64: the same wall-clock time of each day.

    Not steps of 24 hours: those would turn the ends of days in winter into one o'clock at night in summer.
    """
    days = np.arange(0, max((latest - first) // MICROSECONDS_PER_DAY, 0) + 2, step_days)
    if store.has_clock:
        local = to_local(np.array([latest]), store.schema.timezone) - days * MICROSECONDS_PER_DAY
        grid = zones.to_utc(local, store.schema.timezone)
    else:
        grid = latest - days * MICROSECONDS_PER_DAY
    return grid[(grid >= first) & (grid <= latest)]


def at_risk(store: Store, cutoff: int, journeys: np.ndarray | None = None) -> np.ndarray:
    """Journeys with an event at or before the cutoff, int64, ascending."""
    journeys = np.arange(store.num_customers) if journeys is None else np.asarray(journeys)
    return journeys[store.last_event(journeys, np.full(len(journeys), cutoff)) >= 0]
