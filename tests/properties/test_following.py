"""The decision that follows when a reward is known, against a search by hand."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from constellation.journeys.following import following

DAY = 86_400_000_000


@given(
    rows=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 30)), max_size=40),
    span=st.integers(1, 12),
    until=st.none() | st.integers(0, 30),
)
def test_the_first_of_the_same_customer_within_a_second_span(rows, span, until) -> None:
    start = 1_700_000_000_000_000
    journey_Q = np.array([customer for customer, _ in rows], dtype=np.int64)
    time_Q = np.array([start + day * DAY for _, day in rows], dtype=np.int64)
    found_Q = following(journey_Q, time_Q, span * DAY, None if until is None else start + until * DAY)
    for row, (customer, day) in enumerate(rows):
        later = [
            other
            for who, other in rows
            if who == customer
            and day + span <= other <= day + 2 * span
            and (until is None or other <= until or day + span > until)
        ]
        # A follower after ``until`` hides those further on: they are after it, too.
        if not later:
            assert found_Q[row] == -1
        else:
            assert rows[found_Q[row]] == (customer, min(later))
