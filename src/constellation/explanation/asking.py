"""Whom to explain, and whom to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from constellation.errors import InputError
from constellation.journeys.store import Store
from constellation.journeys.windows import at_risk

NUM_REFERENCE = 500
"""Enough that averages of events and aggregates hardly move; the cost is two passes of prediction."""


def rows_of(store: Store, customers: Sequence[Any]) -> np.ndarray:
    """Rows of the store of customers by id, in that order. Ids are compared as text. Raises InputError for others."""
    row_of = {str(value): row for row, value in enumerate(np.asarray(store.customer_id_C).tolist())}
    if not len(customers):
        raise InputError("customers is empty: name ids, such as customers=[101,102], or leave it out.")
    for value in customers:
        if str(value) not in row_of:
            raise InputError(f"customers must be ids of these data, and {value!r} is none of them.")
    return np.array([row_of[str(value)] for value in dict.fromkeys(map(str, customers))], dtype=np.int64)


def some_at_risk(store: Store, cutoff: int, most: int) -> np.ndarray:
    """At most so many customers with an event at or before the cutoff, the same ones each time, in random order.

    Where nobody has one, customers known by their attributes alone.
    """
    people = at_risk(store, cutoff)
    people = people if len(people) else np.arange(store.num_customers)
    return people[np.random.default_rng(0).permutation(len(people))[:most]]
