"""What counts as a purchase in a store, and how long customers wait from one to the next."""

from __future__ import annotations

import numpy as np

from constellation.errors import InputError
from constellation.journeys.store import MICROSECONDS_PER_DAY, Store
from constellation.schema import AMOUNT, EVENT_TYPE

MOST_PURCHASES = 10_000_000
"""A median of the first so many is the median of all."""

CHUNK = 4_000_000
"""Events looked at in one go."""


def purchases_in_words(store: Store) -> str:
    """Which events are purchases: ``of type buy``, ``with an amount above zero``."""
    types = store.schema.purchase_types
    return f"of type {', '.join(types)}" if types else "with an amount above zero"


def check_purchases(store: Store) -> None:
    """Raise InputError where no event is a purchase, so that there is nothing to compare systems by."""
    missing = without_purchases(store)
    if missing is not None:
        raise InputError(missing)


def without_purchases(store: Store) -> str | None:
    """What to say where no event is a purchase, so that money and purchases are zero for everybody; else None."""
    if store.num_events and not int(store.purchase_sum_N[-1]):
        known = [str(name) for name in store.dictionaries[EVENT_TYPE][1:21]]
        return (
            f"No event of {store.manifest.name} counts as a purchase: there is none {purchases_in_words(store)}, so "
            "there is neither money nor a number of purchases to predict. Name the event types that are purchases in "
            f"the YAML, such as purchase_types: [{known[0]}] under schema (event types of the data: "
            f"{', '.join(known)}), or select an amount."
        )
    return None


def median_wait_days(store: Store) -> float | None:
    """Median of the days from one purchase to the customer's next; None where nobody buys twice."""
    events = store.purchase_events[:MOST_PURCHASES]
    if len(events) < 2:
        return None
    journeys = np.searchsorted(store.first_event_C, events, side="right")
    waits = np.diff(store.time_N[events])[journeys[1:] == journeys[:-1]]
    return float(np.median(waits)) / MICROSECONDS_PER_DAY if len(waits) else None


def has_money(store: Store) -> bool:
    """Whether any event has an amount; where none has, money is zero for everybody and only counts say something."""
    if AMOUNT not in store.numeric:
        return False
    amounts_N = store.numeric[AMOUNT]
    parts = (amounts_N[start : start + CHUNK] for start in range(0, store.num_events, CHUNK))
    return any(bool(np.nan_to_num(part).any()) for part in parts)


NO_MONEY = "No event has an amount, so money is zero for everybody: read the tables of purchases."
