"""Recency, frequency and money of purchase days, as the buy-till-you-die models want them, and what came after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from constellation.schema import AMOUNT
from constellation.zones import MICROSECONDS_PER_DAY

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


@dataclass(frozen=True)
class NewPurchaseDays:
    """What each question's customer bought in ``(cutoff, end]``, all [Q].

    weeks: from the cutoff's local day to the end's; days: purchase days after the cutoff (a day on which the customer
    had bought before the cutoff is not counted again); last: weeks from the cutoff's day to the last of them, 0 for
    none; money: of all purchases on those days; purchases: on those days. first_day, second_day: days from the cutoff's
    day to the first and to the second of the purchase days, infinite where there are none or fewer.
    """

    weeks_Q: np.ndarray
    days_Q: np.ndarray
    last_Q: np.ndarray
    money_Q: np.ndarray
    purchases_Q: np.ndarray
    first_day_Q: np.ndarray
    second_day_Q: np.ndarray


@dataclass(frozen=True)
class PurchaseIndex:
    """Running sums over the ``P`` purchases of a store, made once: a question then costs a few look-ups.

    day_P: local day of each; day_sum [P + 1]: purchase days before it; day_start: purchase at which each purchase day
    begins, and P; money_sum [P + 1]: whole millionths.
    """

    store: Store
    day_P: np.ndarray
    day_sum: np.ndarray
    day_start: np.ndarray
    money_sum: np.ndarray

    @classmethod
    def of(cls, store: Store) -> PurchaseIndex:
        from constellation.journeys.store import MONEY_SCALE, to_local

        purchases = store.purchase_events
        day_P = to_local(store.time_N[purchases], store.schema.timezone) // MICROSECONDS_PER_DAY
        journey_P = np.searchsorted(store.first_event_C, purchases, side="right")
        new_day_P = np.ones(len(purchases), dtype=bool)
        new_day_P[1:] = (day_P[1:] != day_P[:-1]) | (journey_P[1:] != journey_P[:-1])
        if AMOUNT in store.numeric:
            money_P = np.rint(np.nan_to_num(store.numeric[AMOUNT][purchases]) * MONEY_SCALE).astype(np.int64)
        else:
            money_P = np.zeros(len(purchases), dtype=np.int64)
        return cls(
            store=store,
            day_P=day_P,
            day_sum=np.concatenate([[0], np.cumsum(new_day_P)]),
            day_start=np.append(np.flatnonzero(new_day_P), len(purchases)),
            money_sum=np.concatenate([[0], np.cumsum(money_P)]),
        )

    def before(self, queries: Queries) -> PurchaseDays:
        """Summaries of what each question may see; no loop over customers."""
        from constellation.journeys.store import MONEY_SCALE, to_local

        store = self.store
        start_Q, end_Q, first_Q, bought_Q = purchase_range(store, queries)
        zone, num_purchases = store.schema.timezone, len(self.day_P)
        low_Q, high_Q = store.purchase_sum_N[start_Q], store.purchase_sum_N[end_Q]
        days_Q = self.day_sum[high_Q] - self.day_sum[low_Q]
        x_Q = np.maximum(days_Q - 1, 0)
        # The second purchase day begins at the next start after the first one: what it and later ones cost is repeat
        # money.
        next_day_Q = np.minimum(self.day_sum[low_Q] + 1, len(self.day_start) - 1)
        repeat_Q = np.minimum(self.day_start[next_day_Q], high_Q)
        repeat_money_Q = (self.money_sum[high_Q] - self.money_sum[repeat_Q]) / MONEY_SCALE
        if store.num_events:
            known_Q = np.where(bought_Q, first_Q, np.minimum(start_Q, store.num_events - 1))
            first_day_Q = to_local(store.time_N[known_Q], zone) // MICROSECONDS_PER_DAY
        else:
            first_day_Q = np.zeros(len(queries), dtype=np.int64)
        cutoff_day_Q = to_local(queries.cutoff_Q, zone) // MICROSECONDS_PER_DAY
        last_day_Q = self.day_P[np.where(bought_Q, high_Q - 1, 0)] if num_purchases else first_day_Q
        return PurchaseDays(
            x_Q=x_Q.astype(np.float64),
            t_x_Q=np.where(x_Q > 0, last_day_Q - first_day_Q, 0) / DAYS_PER_WEEK,
            # No event at all before the cutoff: watched for no time.
            T_Q=np.where(end_Q > start_Q, cutoff_day_Q - first_day_Q, 0) / DAYS_PER_WEEK,
            mean_spend_Q=np.where(x_Q > 0, repeat_money_Q / np.maximum(x_Q, 1), np.nan),
            purchases_Q=high_Q - low_Q,
            days_Q=days_Q,
        )

    def after(self, queries: Queries, end_time_Q: np.ndarray) -> NewPurchaseDays:
        """What was bought in ``(cutoff, end_time]``; the caller knows that this much is known."""
        from constellation.journeys.store import MONEY_SCALE, to_local

        store = self.store
        zone, num_purchases = store.schema.timezone, len(self.day_P)
        start_Q = store.end_event(queries.journey_Q, queries.cutoff_Q)
        end_Q = np.maximum(store.end_event(queries.journey_Q, end_time_Q), start_Q)
        low_Q, high_Q = store.purchase_sum_N[start_Q], store.purchase_sum_N[end_Q]
        cutoff_day_Q = to_local(queries.cutoff_Q, zone) // MICROSECONDS_PER_DAY
        end_day_Q = to_local(np.asarray(end_time_Q), zone) // MICROSECONDS_PER_DAY
        if num_purchases:
            # Purchases of the cutoff's own day that are still to come belong to a day already counted.
            ahead_Q = np.minimum(self.day_sum[low_Q], len(self.day_start) - 1)
            begun_Q = (low_Q > store.purchase_sum_N[store.first_event_C[queries.journey_Q]]) & (low_Q < high_Q)
            same_day_Q = begun_Q & (self.day_start[ahead_Q] != low_Q)
            low_Q = np.where(same_day_Q, np.minimum(self.day_start[ahead_Q], high_Q), low_Q)
        some_Q = high_Q > low_Q
        last_day_Q = self.day_P[np.where(some_Q, high_Q - 1, 0)] if num_purchases else cutoff_day_Q
        days_Q = self.day_sum[high_Q] - self.day_sum[low_Q]
        first_day_Q, second_day_Q = np.full(len(queries), np.inf), np.full(len(queries), np.inf)
        first_day_Q[some_Q] = (self.day_P[low_Q[some_Q]] - cutoff_day_Q[some_Q]) if num_purchases else np.inf
        two_Q = days_Q > 1
        if two_Q.any():
            second = self.day_P[self.day_start[self.day_sum[low_Q[two_Q]] + 1]]
            second_day_Q[two_Q] = second - cutoff_day_Q[two_Q]
        return NewPurchaseDays(
            first_day_Q=first_day_Q,
            second_day_Q=second_day_Q,
            weeks_Q=np.maximum(end_day_Q - cutoff_day_Q, 0) / DAYS_PER_WEEK,
            days_Q=days_Q.astype(np.float64),
            last_Q=np.where(some_Q, last_day_Q - cutoff_day_Q, 0) / DAYS_PER_WEEK,
            money_Q=(self.money_sum[high_Q] - self.money_sum[low_Q]) / MONEY_SCALE,
            purchases_Q=high_Q - low_Q,
        )


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
    """``store.purchase_index.before(queries)``."""
    return store.purchase_index.before(queries)
