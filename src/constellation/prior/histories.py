"""What the prior-fitted model reads of customers: purchase days and money before a cutoff, flat, end to end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from constellation.journeys.recency import DAYS_PER_WEEK

if TYPE_CHECKING:
    from constellation.journeys.store import Store
    from constellation.journeys.windows import Queries


@dataclass(frozen=True)
class Histories:
    """``C`` customers by ``P`` purchase days, ``start_C[c] : start_C[c + 1]`` those of customer c, oldest first.

    day_P: days (any unit, the same everywhere) before the cutoff, >= 0. money_P: of each purchase day, any currency.
    age_C: since the first purchase day; for customers who never bought, since they have been known. >= 0.
    """

    start_C: np.ndarray
    day_P: np.ndarray
    money_P: np.ndarray
    age_C: np.ndarray

    def __len__(self) -> int:
        return len(self.age_C)

    @property
    def customer_P(self) -> np.ndarray:
        return np.repeat(np.arange(len(self)), np.diff(self.start_C))

    def take(self, rows: np.ndarray) -> Histories:
        """Some customers, in the order of ``rows`` [R]."""
        count_R = np.diff(self.start_C)[rows]
        start_R = np.concatenate([[0], np.cumsum(count_R)])
        place = np.arange(start_R[-1]) - np.repeat(start_R[:-1] - self.start_C[rows], count_R)
        return Histories(start_R, self.day_P[place], self.money_P[place], self.age_C[rows])


def histories(store: Store, queries: Queries) -> Histories:
    """Purchase days of each question's customer at or before its cutoff, local days, in the currency of the store."""
    from constellation.journeys.store import MONEY_SCALE, to_local
    from constellation.zones import MICROSECONDS_PER_DAY

    index = store.purchase_index
    record = index.before(queries)
    first_Q = store.first_event_C[queries.journey_Q].astype(np.int64)
    end_Q = store.end_event(queries.journey_Q, queries.cutoff_Q)
    low_Q, high_Q = store.purchase_sum_N[first_Q], store.purchase_sum_N[end_Q]
    cutoff_day_Q = to_local(queries.cutoff_Q, store.schema.timezone) // MICROSECONDS_PER_DAY

    count_Q = record.days_Q.astype(np.int64)
    start_Q = np.concatenate([[0], np.cumsum(count_Q)])
    which_P = np.repeat(np.arange(len(queries)), count_Q)
    # The number, over the whole store, of each purchase day; where it begins, and where it ends as far as is seen.
    number_P = np.arange(start_Q[-1]) - start_Q[which_P] + index.day_sum[low_Q][which_P]
    begin_P = index.day_start[number_P]
    stop_P = np.minimum(index.day_start[number_P + 1], high_Q[which_P])
    return Histories(
        start_C=start_Q,
        day_P=(cutoff_day_Q[which_P] - index.day_P[begin_P]).astype(np.float64),
        money_P=(index.money_sum[stop_P] - index.money_sum[begin_P]) / MONEY_SCALE,
        age_C=record.T_Q * DAYS_PER_WEEK,
    )
