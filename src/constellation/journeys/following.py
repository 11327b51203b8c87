"""Which decision of the same customer follows when another one's reward is known."""

from __future__ import annotations

import numpy as np


def following(journey_Q: np.ndarray, time_Q: np.ndarray, span: int, until: int | None = None) -> np.ndarray:
    """Row [Q] of the customer's first decision in ``[time + span, time + 2 span]``, -1 where there is none.

    Rows may stand in any order. span: microseconds, above 0. until: a span that
    ends by this moment is followed by no decision after it.
    """
    assert span > 0
    num = len(time_Q)
    if num == 0:
        return np.zeros(0, dtype=np.int64)
    moments = np.unique(time_Q)
    # A customer and a moment make one number; times themselves would leave 64 bits.
    per_journey = len(moments) + 1
    key_Q = journey_Q.astype(np.int64) * per_journey + np.searchsorted(moments, time_Q)
    order = np.argsort(key_Q, kind="stable")
    wanted_Q = journey_Q.astype(np.int64) * per_journey + np.searchsorted(moments, time_Q + span)
    found_Q = order[np.minimum(np.searchsorted(key_Q[order], wanted_Q), num - 1)]
    there_Q = (key_Q[found_Q] >= wanted_Q) & (journey_Q[found_Q] == journey_Q)
    there_Q &= time_Q[found_Q] - time_Q <= 2 * span
    if until is not None:
        there_Q &= (time_Q[found_Q] <= until) | (time_Q + span > until)
    return np.where(there_Q, found_Q, -1)
