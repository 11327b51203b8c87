"""What gradient boosting on aggregates knows: counts, money and gaps over several windows, from running sums."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from constellation.journeys.store import MICROSECONDS_PER_DAY, Store
from constellation.schema import EVENT_TYPE, PRODUCT


@dataclass(frozen=True)
class Aggregates:
    """Features of a journey up to a cutoff, in raw units (days, money, counts); NaN where undefined.

    windows_days: lengths of the look-back windows beside the whole history.
    event_types: the types counted one by one, fixed when fitted, so that a store that lacks one has the same columns.
    """

    windows_days: tuple[int, ...] = (7, 30, 91, 182, 365)
    event_types: tuple[str, ...] = ()

    @classmethod
    def fit(
        cls, store: Store, windows_days: tuple[int, ...], span_days: float, event_types: list[str], max_types: int = 12
    ) -> Aggregates:
        """Keep the windows that fit the span of the training events, and count the first ``max_types`` event types."""
        kept = tuple(int(days) for days in windows_days if days <= span_days) or (int(min(windows_days)),)
        return cls(kept if store.has_clock else (), tuple(event_types[:max_types]))

    def to_json(self) -> dict[str, Any]:
        return {"windows_days": list(self.windows_days), "event_types": list(self.event_types)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Aggregates:
        return cls(tuple(data["windows_days"]), tuple(data["event_types"]))

    @property
    def names(self) -> list[str]:
        spans = ["ever", *(f"{days}d" for days in self.windows_days)]
        names = [
            "tenure_days",
            "since_last_event_days",
            "since_last_purchase_days",
            "mean_purchase_gap_days",
            "last_purchase_gap_days",
            "silence_in_gaps",
            "purchases_per_day",
            "money_per_day",
            "mean_purchase_amount",
            "last_purchase_amount",
            "mean_purchase_products",
        ]
        for span in spans:
            names += [f"num_events_{span}", f"num_purchases_{span}", f"money_{span}", f"num_products_{span}"]
        for event_type in self.event_types:
            names += [f"num_{event_type}_{span}" for span in spans]
        return names

    def compute(
        self, store: Store, journey_Q: np.ndarray, cutoff_Q: np.ndarray, last_event_Q: np.ndarray
    ) -> np.ndarray:
        """Features [Q, F], float32. Only events at or before each cutoff are read."""
        first_Q = store.first_event_C[journey_Q].astype(np.int64)
        end_Q = np.where(last_event_Q >= 0, last_event_Q + 1, first_Q)
        seen_Q = last_event_Q >= 0
        nan = np.float64("nan")

        def days_since(event_Q: np.ndarray, known_Q: np.ndarray) -> np.ndarray:
            if store.num_events == 0:
                return np.full(len(event_Q), nan)
            elapsed = (cutoff_Q - store.time_N[np.where(known_Q, event_Q, 0)]) / MICROSECONDS_PER_DAY
            return np.where(known_Q, elapsed, nan)

        purchases = store.purchase_events
        rank_Q = store.purchase_sum_N[end_Q]  # number of purchases of the whole store before end_Q
        num_purchases_Q = rank_Q - store.purchase_sum_N[first_Q]

        def purchase(place_Q: np.ndarray, known_Q: np.ndarray) -> np.ndarray:
            if len(purchases) == 0:
                return np.zeros(len(place_Q), dtype=np.int64)
            return purchases[np.where(known_Q, place_Q, 0)]

        bought_Q, again_Q = num_purchases_Q >= 1, num_purchases_Q >= 2
        last_purchase_Q = purchase(rank_Q - 1, bought_Q)
        since_last_purchase_Q = days_since(last_purchase_Q, bought_Q)
        since_first_purchase_Q = days_since(purchase(rank_Q - num_purchases_Q, bought_Q), bought_Q)
        since_previous_purchase_Q = days_since(purchase(rank_Q - 2, again_Q), again_Q)
        tenure_Q = days_since(first_Q, seen_Q)
        span_Q = since_first_purchase_Q - since_last_purchase_Q
        mean_gap_Q = np.where(again_Q, span_Q / np.maximum(num_purchases_Q - 1, 1), nan)
        money_Q = store.money_between(first_Q, end_Q)
        # A day of grace: a customer of a few hours has no rate of thousands a day.
        rate_days_Q = np.maximum(tenure_Q, 1.0)
        last_amount_Q = store.money_between(last_purchase_Q, last_purchase_Q + bought_Q)
        offsets = store.lists[PRODUCT][1] if PRODUCT in store.lists else np.zeros(store.num_events + 1, dtype=np.int64)
        columns = [
            tenure_Q,
            days_since(last_event_Q, seen_Q),
            since_last_purchase_Q,
            mean_gap_Q,
            since_previous_purchase_Q - since_last_purchase_Q,
            since_last_purchase_Q / np.maximum(mean_gap_Q, 0.5),
            num_purchases_Q / rate_days_Q,
            money_Q / rate_days_Q,
            np.where(bought_Q, money_Q / np.maximum(num_purchases_Q, 1), nan),
            np.where(bought_Q, last_amount_Q, nan),
            np.where(bought_Q, (offsets[end_Q] - offsets[first_Q]) / np.maximum(num_purchases_Q, 1), nan),
        ]
        starts = [first_Q]
        for days in self.windows_days:
            # The window is (cutoff - days, cutoff]: its first event is the one after the last at cutoff - days.
            starts.append(np.minimum(store.end_event(journey_Q, cutoff_Q - days * MICROSECONDS_PER_DAY), end_Q))
        for start_Q in starts:
            columns += [
                end_Q - start_Q,
                store.purchases_between(start_Q, end_Q),
                store.money_between(start_Q, end_Q),
                offsets[end_Q] - offsets[start_Q],
            ]
        if EVENT_TYPE in store.categorical:
            for event_type in self.event_types:
                sum_N = store.type_sum(event_type)
                columns += [sum_N[end_Q] - sum_N[start_Q] for start_Q in starts]
        features_QF = np.stack([np.asarray(column, dtype=np.float32) for column in columns], axis=1)
        if not store.has_clock:
            # Durations of a rank mean nothing: the columns stay, so that shapes agree, but say nothing.
            features_QF[:, [0, 1, 2, 3, 4, 5, 6, 7]] = np.nan
        return features_QF
