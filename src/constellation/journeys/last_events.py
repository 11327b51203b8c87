"""Leave-one-out: each customer's last event is the test question, the one before it the validation question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from constellation.errors import InputError
from constellation.journeys.questions import Queries, Until, ask, until_of
from constellation.journeys.store import Store


@dataclass(frozen=True)
class LastEvents:
    """The split of a data set by each customer's own last events instead of by dates.

    The history before the last but one event is what selection learns from; with that event, what the refit learns
    from. Nothing is asked about money: a rank has no horizon. Events of one customer at the same moment (or rank) are
    held out together, so that no tie lets one answer give away another, and a question is put at the moment of the last
    event it may see: the time of the event to be predicted is not known.

    min_history: events that must remain before the validation question; customers with fewer only train.
    holdout_share: customers never trained on, by a stable hash of their id; reported as ``test_new``.
    exclude_seen: leave what a customer already has out of the ranking of next products. Metrics with and without it are
    not comparable: on ml-1m it moves NDCG@10 by a factor of 1.6 to 2.1.
    """

    min_history: int = 1
    holdout_share: float = 0.0
    exclude_seen: bool = True

    horizons_days: ClassVar[tuple[int, ...]] = ()
    room_days: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        if self.min_history < 1:
            raise InputError(f"min_history must be at least 1, found {self.min_history}.")
        if not 0 <= self.holdout_share < 1:
            raise InputError(f"holdout_share must lie in [0, 1), found {self.holdout_share}.")

    def known_until(self, store: Store) -> tuple[Until, Until]:
        """The last moment that selection, and that the refit may know of each customer, int64 [C] each."""
        test_C, before_test_C, before_val_C = self._last_moments(store)
        asked_C = self._is_asked(store, before_val_C)
        times = store.time_N if store.num_events else np.zeros(1, dtype=np.int64)
        whole_C = times[np.maximum(test_C, 0)]
        select_C = np.where(asked_C, times[np.maximum(before_val_C, 0)], whole_C)
        return select_C, np.where(asked_C, times[np.maximum(before_test_C, 0)], whole_C)

    def earliest(self, store: Store) -> int:
        return store.manifest.first_time

    def panel(self, store: Store, until: Until, journeys: np.ndarray) -> Queries:
        """One training question per customer: the last event that may be known, asked from the one before it.

        A customer of a single event is asked before it.
        """
        journeys = np.asarray(journeys, dtype=np.int64)
        last_R = store.last_event(journeys, until_of(until, journeys))
        journeys, last_R = journeys[last_R >= 0], last_R[last_R >= 0]
        if len(journeys) == 0:
            raise InputError(
                "No customer has an event to learn from. Hold out fewer customers (windows.holdout_share)."
            )
        time_R = store.time_N[last_R]
        before_R = store.last_event(journeys, time_R - 1)
        cutoff_R = np.where(before_R >= 0, store.time_N[np.maximum(before_R, 0)], time_R - 1)
        return ask(store, journeys, cutoff_R, self.horizons_days, until)

    def questions(self, store: Store, cutoff: Until, known_until: Until, journeys: np.ndarray) -> Queries:
        """Customers with an event in ``(cutoff, known_until]``, asked for it at their own cutoff."""
        journeys = np.asarray(journeys, dtype=np.int64)
        queries = ask(store, journeys, until_of(cutoff, journeys), self.horizons_days, known_until)
        return queries.take((queries.next_event_Q >= 0) & (queries.last_event_Q >= 0))

    def describe(self, store: Store) -> str:
        """One line for the terminal."""
        num_asked = int(self._is_asked(store, self._last_moments(store)[2]).sum())
        num_others = int((np.diff(store.first_event_C) > 0).sum()) - num_asked
        seen = "left out of" if self.exclude_seen else "kept in"
        return (
            f"leave-one-out: the last event of {num_asked:,} customers is the test, the one before it the validation "
            f"({num_others:,} with too few events only train), products a customer already has {seen} the ranking"
        )

    def facts(self) -> dict[str, str | int | bool]:
        """For the model card."""
        return {"split": "last event of each customer", "exclude_seen": self.exclude_seen}

    def _last_moments(self, store: Store) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Store index of the last event, of the last before its moment, of the last before that one's; -1 for none."""
        journeys = np.arange(store.num_customers)
        found = [np.where(np.diff(store.first_event_C) > 0, store.first_event_C[1:].astype(np.int64) - 1, -1)]
        for _ in range(2):
            known_C = found[-1] >= 0
            before_C = np.full(store.num_customers, -1, dtype=np.int64)
            before_C[known_C] = store.last_event(journeys[known_C], store.time_N[found[-1][known_C]] - 1)
            found.append(before_C)
        return found[0], found[1], found[2]

    def _is_asked(self, store: Store, before_val_C: np.ndarray) -> np.ndarray:
        history_C = before_val_C + 1 - store.first_event_C[:-1].astype(np.int64)
        return (before_val_C >= 0) & (history_C >= self.min_history)
