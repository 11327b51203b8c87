"""The truth about contracts: who stays and what is paid, given the hidden mood, and given only the history."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from constellation.schema import CUSTOMER_ID
from constellation.worlds.simulated import MICROSECONDS_PER_DAY

if TYPE_CHECKING:
    import polars


@dataclass(frozen=True)
class ContractsTruth:
    """Parameters as in ``ContractsWorld`` and the hidden course of ``C`` customers; days since ``origin``.

    ends_C: [C, first or later, mood, (cancel, lapse)]. starts: shares of the moods at joining. periods_C: periods paid
    for until the end, if any. mood_CP: in each period, drawn on beyond the end. visit_customer_V, visit_day_V: visits.
    """

    period_days: int
    price_C: np.ndarray
    ends_C: np.ndarray
    turning: np.ndarray
    starts: np.ndarray
    visits_per_day: np.ndarray
    origin: int
    joined_C: np.ndarray
    periods_C: np.ndarray
    mood_CP: np.ndarray
    visit_customer_V: np.ndarray
    visit_day_V: np.ndarray

    def expected(self, cutoff: int, horizon_days: float) -> polars.DataFrame:
        """Columns and rows as :class:`~constellation.worlds.simulated.Truth` says.

        Also ``is_active`` (no end by the cutoff), and P(no end within the horizon) as ``p_active_expected`` (given the
        mood) and ``p_active_from_history``. Who has ended stays ended: 0 everywhere.
        """
        import polars as pl

        # The cutoff is inclusive, and events stand on whole microseconds.
        now = (cutoff - self.origin + 0.5) / MICROSECONDS_PER_DAY
        known_C = self.joined_C <= now
        active_C = known_C & (now < self.joined_C + self.periods_C * self.period_days)
        period_C = np.clip(np.floor((now - self.joined_C) / self.period_days), 0, self.mood_CP.shape[1] - 1).astype(int)
        hidden_C2 = np.eye(2)[self.mood_CP[np.arange(len(period_C)), period_C]]
        columns: dict[str, np.ndarray] = {CUSTOMER_ID: np.flatnonzero(known_C) + 1}
        for name, mood_C2 in (("expected", hidden_C2), ("from_history", self._filtered(now, period_C, active_C))):
            purchases_C, stays_C = self._ahead(mood_C2, period_C, now, horizon_days)
            columns[f"value_{name}"] = (active_C * purchases_C * self.price_C)[known_C]
            columns[f"purchases_{name}"] = (active_C * purchases_C)[known_C]
            columns[f"p_active_{name}"] = (active_C * stays_C)[known_C]
        columns["is_active"] = active_C[known_C]
        return pl.DataFrame(columns)

    def _ahead(
        self, mood_C2: np.ndarray, period_C: np.ndarray, now: float, horizon_days: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Expected payments and P(no end) [C] from the mood of the present period: one step per renewal to come."""
        next_C = self.joined_C + (period_C + 1) * self.period_days
        num_renewals_C = np.maximum(np.floor((now + horizon_days - next_C) / self.period_days) + 1, 0).astype(int)
        purchases_C, alive_C2 = np.zeros(len(next_C)), mood_C2.copy()
        for step in range(int(num_renewals_C.max(initial=0))):
            due_C = step < num_renewals_C
            stays_C2 = alive_C2 * self._stays(period_C + step)
            purchases_C += np.where(due_C, stays_C2.sum(axis=1), 0.0)
            alive_C2 = np.where(due_C[:, None], stays_C2 @ self.turning, alive_C2)
        return purchases_C, alive_C2.sum(axis=1)

    def _stays(self, period_C: np.ndarray) -> np.ndarray:
        """[C, mood], P(the contract goes on at the end of that period)."""
        ends_C22 = self.ends_C[np.arange(len(period_C)), np.minimum(period_C, 1)]
        return 1.0 - ends_C22.sum(axis=-1)

    def _filtered(self, now: float, period_C: np.ndarray, active_C: np.ndarray) -> np.ndarray:
        """[C, mood] in the present period given plan, visits, and that every renewal so far came."""
        num_customers = len(self.joined_C)
        seen_V = self.visit_day_V <= now
        customer_V = self.visit_customer_V[seen_V]
        of_period_V = np.floor((self.visit_day_V[seen_V] - self.joined_C[customer_V]) / self.period_days).astype(int)
        most = int(period_C[active_C].max(initial=0)) + 1
        visits_CP = np.zeros((num_customers, most))
        kept_V = of_period_V < most
        np.add.at(visits_CP, (customer_V[kept_V], of_period_V[kept_V]), 1.0)
        belief_C2 = np.tile(self.starts, (num_customers, 1))
        for period in range(most):
            days_C = np.clip(now - self.joined_C - period * self.period_days, 0.0, self.period_days)
            log_C2 = log_poisson(visits_CP[:, [period]], np.maximum(days_C[:, None] * self.visits_per_day, 1e-12))
            told_C2 = belief_C2 * np.exp(log_C2 - log_C2.max(axis=1, keepdims=True))
            told_C2 /= told_C2.sum(axis=1, keepdims=True)
            here_C1 = np.equal(period_C, period)[:, None]
            onward_C2 = (told_C2 * self._stays(np.full(num_customers, period))) @ self.turning
            onward_C2 /= np.maximum(onward_C2.sum(axis=1, keepdims=True), 1e-300)
            belief_C2 = np.where(here_C1, told_C2, np.where((period_C > period)[:, None], onward_C2, belief_C2))
        return belief_C2


def log_poisson(count: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Up to what does not hang on the mean."""
    return count * np.log(mean) - mean
