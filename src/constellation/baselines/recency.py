"""Recency, frequency and money of purchase days, as the buy-till-you-die models want them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from constellation.journeys.store import MICROSECONDS_PER_DAY, MONEY_SCALE, to_local
from constellation.schema import AMOUNT

if TYPE_CHECKING:
    from constellation.journeys.store import Store
    from constellation.journeys.windows import Queries

DAYS_PER_WEEK = 7.0


@dataclass(frozen=True)
class PurchaseDays:
    """One row per question, all [Q].

    x: repeat purchase days; t_x: weeks from the first purchase day to the last; T: weeks from the first purchase day to
    the cutoff; mean_spend: money per repeat purchase day, NaN where x = 0; purchases: purchases on all those days;
    days: purchase days. Purchases of one local day are one: same-day receipts are one visit in this literature.
    A customer known by other events only, without a purchase, has x = t_x = 0 and T since the first event.
    """

    x_Q: np.ndarray
    t_x_Q: np.ndarray
    T_Q: np.ndarray
    mean_spend_Q: np.ndarray
    purchases_Q: np.ndarray
    days_Q: np.ndarray


def purchase_range(store: Store, queries: Queries) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """First event, one past the last seen event, first purchase (0 where there is none), has a purchase: all [Q]."""
    start_Q = store.first_event_C[queries.journey_Q].astype(np.int64)
    end_Q = store.end_event(queries.journey_Q, queries.cutoff_Q)
    bought_Q = store.purchases_between(start_Q, end_Q) > 0
    place_Q = np.where(bought_Q, store.purchase_sum_N[start_Q], 0)
    purchases = store.purchase_events
    first_Q = purchases[place_Q] if len(purchases) else np.zeros(len(queries), dtype=np.int64)
    return start_Q, end_Q, np.where(bought_Q, first_Q, 0), bought_Q


def purchase_days(store: Store, queries: Queries) -> PurchaseDays:
    """Summaries of what each question may see. Linear in the purchases of the store; no loop over customers."""
    start_Q, end_Q, first_Q, bought_Q = purchase_range(store, queries)
    purchases = store.purchase_events
    zone = store.schema.timezone
    day_P = to_local(store.time_N[purchases], zone) // MICROSECONDS_PER_DAY
    journey_P = np.searchsorted(store.first_event_C, purchases, side="right")
    new_day_P = np.ones(len(purchases), dtype=bool)
    new_day_P[1:] = (day_P[1:] != day_P[:-1]) | (journey_P[1:] != journey_P[:-1])
    day_sum = np.concatenate([[0], np.cumsum(new_day_P)])
    day_start = np.append(np.flatnonzero(new_day_P), len(purchases))
    low_Q, high_Q = store.purchase_sum_N[start_Q], store.purchase_sum_N[end_Q]
    days_Q = day_sum[high_Q] - day_sum[low_Q]
    x_Q = np.maximum(days_Q - 1, 0)
    # The second purchase day begins at the next start after the first one: what it and later ones cost is repeat money.
    repeat_Q = np.minimum(day_start[np.minimum(day_sum[low_Q] + 1, len(day_start) - 1)], high_Q)
    if AMOUNT in store.numeric:
        money_P = np.rint(np.nan_to_num(store.numeric[AMOUNT][purchases]) * MONEY_SCALE).astype(np.int64)
    else:
        money_P = np.zeros(len(purchases), dtype=np.int64)
    money_sum = np.concatenate([[0], np.cumsum(money_P)])
    repeat_money_Q = (money_sum[high_Q] - money_sum[repeat_Q]) / MONEY_SCALE
    known_Q = np.where(bought_Q, first_Q, np.minimum(start_Q, max(store.num_events - 1, 0)))
    first_day_Q = to_local(store.time_N[known_Q], zone) // MICROSECONDS_PER_DAY
    cutoff_day_Q = to_local(queries.cutoff_Q, zone) // MICROSECONDS_PER_DAY
    last_day_Q = day_P[np.where(bought_Q, high_Q - 1, 0)] if len(purchases) else first_day_Q
    return PurchaseDays(
        x_Q=x_Q.astype(np.float64),
        t_x_Q=np.where(x_Q > 0, last_day_Q - first_day_Q, 0) / DAYS_PER_WEEK,
        # No event at all before the cutoff: watched for no time.
        T_Q=np.where(end_Q > start_Q, cutoff_day_Q - first_day_Q, 0) / DAYS_PER_WEEK,
        mean_spend_Q=np.where(x_Q > 0, repeat_money_Q / np.maximum(x_Q, 1), np.nan),
        purchases_Q=high_Q - low_Q,
        days_Q=days_Q,
    )
