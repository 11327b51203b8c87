"""Lifetime value: the expected money of a horizon, extended by survival, discounted.

The money expected over the longest horizon is taken to come again in each further period of that length, as often as
the customer survives: with survival ``s`` and discount ``d`` per period the periods make a geometric series. It is an
extension beyond anything that was learned, and its name says so: ``value_lifetime_by_survival_expected``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from constellation.errors import InputError

DAYS_PER_YEAR = 365.25
NAME = "value_lifetime_by_survival_expected"


@dataclass(frozen=True)
class Lifetime:
    """Expected money of so many years after the cutoff, discounted at ``discount_rate`` a year.

    With value ``V`` over the longest horizon of ``h`` days, ``n = 365.25 years / h`` periods, and
    ``d = (1 + discount_rate)^(-h / 365.25)``, money in the middle of its period::

        V d^(1/2) (1 - (s d)^n) / (1 - s d)

    Survival ``s`` over one period is ``p_active_<h>d`` where the model says it (objective ``time_to_event``), else one
    less ``value_<h>d_p_zero``. Contracts survive by not ending, and then the series is what is meant. Without declared
    ends a customer survives by buying within ``h`` days: who buys more rarely is written off too soon, so there it is
    a lower bound, and the objectives ``value_btyd`` and ``value_hazard`` say more (``value_lifetime_expected``).
    """

    years: float = 5.0
    discount_rate: float = 0.1

    def __post_init__(self) -> None:
        if not self.years > 0 or not self.discount_rate >= 0:
            raise InputError(
                "A lifetime needs years above 0 and a discount_rate of 0 or more a year, such as 5 and 0.1; found "
                f"{self.years} and {self.discount_rate}."
            )

    def answers(self, answers: Mapping[str, np.ndarray], horizons_days: Sequence[int]) -> dict[str, np.ndarray]:
        """``{NAME: [Q]}`` from answers of one model. Raises InputError where it says nothing of money or of staying."""
        days = horizons_days[-1] if horizons_days else 0
        value_Q = answers.get(f"value_{days}d_expected")
        active_Q, p_zero_Q = answers.get(f"p_active_{days}d"), answers.get(f"value_{days}d_p_zero")
        if value_Q is None or (active_Q is None and p_zero_Q is None):
            raise InputError(
                "A lifetime value extends the expected money of a horizon by survival, and this model answers "
                f"{', '.join(sorted(answers)) or 'nothing'}. Train one with objective=[value_quantiles,time_to_event]."
            )
        survival_Q = active_Q if active_Q is not None else 1 - np.asarray(p_zero_Q)
        return {NAME: self.value(value_Q, survival_Q, days)}

    def value(self, value_Q: np.ndarray, survival_Q: np.ndarray, days: float) -> np.ndarray:
        """The series [Q] for money and survival [Q] of a period of ``days``."""
        num_periods = self.years * DAYS_PER_YEAR / days
        discount = (1 + self.discount_rate) ** (-days / DAYS_PER_YEAR)
        keeps_Q = np.clip(np.asarray(survival_Q, dtype=np.float64), 0.0, 1.0) * discount
        log_Q = np.log(np.maximum(keeps_Q, 1e-300))
        # (1 - k^n) / (1 - k), which is n where k is 1.
        small_Q = log_Q > -1e-12
        safe_Q = np.where(small_Q, -1.0, log_Q)
        periods_Q = np.where(small_Q, num_periods, np.expm1(num_periods * safe_Q) / np.expm1(safe_Q))
        # A lifetime shorter than the horizon takes its share of the horizon's money, not a root of the survival.
        periods_Q = np.where(num_periods < 1, num_periods, periods_Q)
        return np.asarray(value_Q, dtype=np.float64) * discount ** (min(num_periods, 1.0) / 2) * periods_Q
