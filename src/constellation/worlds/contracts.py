"""Customers under contract: they pay each period, use what they pay for, and one day a renewal does not come.

Each customer has a plan (an attribute) and a mood, engaged or fading, that may turn at a renewal. The mood is hidden;
visits tell of it, for the engaged come more often. At the end of each period, before the mood turns, the contract ends
by ``cancel`` with a probability that hangs on mood, plan and whether it is the first period, or by ``lapse`` (the
payment fails) whatever the mood; else it is paid for again. In the mirror the engaged and the fading come equally
often: only plan and tenure tell anything.

What is to come is a Markov chain of two moods that loses people, so the truth is a product of small matrices: given the
mood, and given the history by forward filtering of the visits (Rabiner 1989), which is the best that any model can do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from constellation.errors import InputError
from constellation.schema import AMOUNT, CUSTOMER_ID, EVENT_TIME, EVENT_TYPE, EventSchema
from constellation.worlds.contracts_truth import ContractsTruth
from constellation.worlds.simulated import (
    MICROSECONDS_PER_DAY,
    Simulated,
    check_people,
    check_positive,
    check_share,
    plus_days,
    start_of_day,
    streams,
    tables,
    times_column,
)

if TYPE_CHECKING:
    from pathlib import Path

    import polars

PAYMENT, VISIT, CANCEL, LAPSE = TYPES = ("payment", "visit", "cancel", "lapse")
PLANS = ("basic", "premium")
ENGAGED, FADING = range(2)


@dataclass(frozen=True)
class ContractsWorld:
    """Parameters; times in days, money in units of the currency; ``[engaged, fading]`` where two numbers stand.

    period_days: from one payment to the next. prices: of the plans, basic and premium, and premium_share of customers.
    cancels: probability at the end of a period; premium_factor multiplies its odds, first_factor those of the first.
    lapses: probability at the end of a period that the payment fails. turns: probability at a renewal that the mood
    turns into the other. visits_per_week: by mood. starts_fading: share of customers who join in that mood.
    mirror: visits tell nothing of the mood: everybody comes as often as the engaged.
    """

    period_days: int = 28
    prices: tuple[float, float] = (12.0, 30.0)
    premium_share: float = 0.4
    cancels: tuple[float, float] = (0.02, 0.3)
    premium_factor: float = 0.6
    first_factor: float = 2.0
    lapses: float = 0.01
    turns: tuple[float, float] = (0.12, 0.15)
    visits_per_week: tuple[float, float] = (2.5, 0.4)
    starts_fading: float = 0.2
    mirror: bool = False
    start: str = "2023-01-01"
    timezone: str = "Europe/Berlin"
    num_days: int = 730
    acquisition_days: int = 540
    horizons_days: tuple[int, ...] = (30, 91)

    def __post_init__(self) -> None:
        for name in ("prices", "cancels", "turns", "visits_per_week"):
            pair = tuple(float(value) for value in getattr(self, name))
            if len(pair) != 2:
                raise InputError(f"{name} must be two numbers, found {list(pair)}.")
            object.__setattr__(self, name, pair)
        object.__setattr__(self, "horizons_days", tuple(int(days) for days in self.horizons_days))
        check_positive(
            period_days=self.period_days,
            premium_factor=self.premium_factor,
            first_factor=self.first_factor,
            acquisition_days=self.acquisition_days,
            basic_price=self.prices[0],
            premium_price=self.prices[1],
            engaged_visits=self.visits_per_week[ENGAGED],
            fading_visits=self.visits_per_week[FADING],
        )
        check_share(
            premium_share=self.premium_share,
            engaged_cancels=self.cancels[ENGAGED],
            fading_cancels=self.cancels[FADING],
            lapses=self.lapses,
            engaged_turns=self.turns[ENGAGED],
            fading_turns=self.turns[FADING],
            starts_fading=self.starts_fading,
        )
        if not self.horizons_days or self.num_days < 2 * max(self.horizons_days) + self.period_days + 1:
            raise InputError(
                "num_days must leave a period and twice the longest horizon, for validation and test; found "
                f"num_days={self.num_days}, period_days={self.period_days}, horizons_days={list(self.horizons_days)}."
            )
        start_of_day(self.start, self.timezone)

    @property
    def visits_per_day(self) -> np.ndarray:
        """By mood [2], as they are in this world or its mirror."""
        engaged, fading = self.visits_per_week
        return np.array([engaged, engaged if self.mirror else fading]) / 7.0

    def ends(self) -> np.ndarray:
        """[plan, first period or later, mood, (cancel, lapse)]: probabilities at the end of a period."""
        cancels = np.clip(np.asarray(self.cancels), 1e-12, 1 - 1e-12)
        odds = cancels / (1 - cancels)
        found = np.empty((2, 2, 2, 2))
        for plan, plan_factor in enumerate((1.0, self.premium_factor)):
            for later, factor in enumerate((self.first_factor, 1.0)):
                of_mood = odds * plan_factor * factor / (1 + odds * plan_factor * factor)
                found[plan, later, :, 0] = of_mood * (1 - self.lapses)
                found[plan, later, :, 1] = self.lapses
        return found

    def turning(self) -> np.ndarray:
        """[mood, mood after a renewal]."""
        engaged, fading = self.turns
        return np.array([[1 - engaged, engaged], [fading, 1 - fading]])

    def simulate(self, num_customers: int, seed: int) -> Simulated:
        """Draw customers; rows of the tables follow ``customer_id`` 1, 2, ..."""
        check_people(num_customers)
        joining, describing, moods, leaving, visiting = streams(seed, 5)
        origin = start_of_day(self.start, self.timezone)
        joined_C = np.floor(joining.random(num_customers) * self.acquisition_days) + joining.random(num_customers)
        plan_C = (describing.random(num_customers) < self.premium_share).astype(np.int64)
        most = int(np.ceil(self.num_days / self.period_days)) + 1
        ends, turning = self.ends(), self.turning()
        mood_CP = np.empty((num_customers, most), dtype=np.int64)
        mood_CP[:, 0] = moods.random(num_customers) < self.starts_fading
        # Periods paid for, and what ended the contract then: 0 cancel, 1 lapse, -1 nothing within the simulation.
        periods_C, cause_C = np.full(num_customers, most), np.full(num_customers, -1)
        for period in range(most):
            of_C = ends[plan_C, min(period, 1), mood_CP[:, period]]
            draw_C = leaving.random(num_customers)
            cause = np.where(draw_C < of_C[:, 0], 0, np.where(draw_C < of_C.sum(axis=1), 1, -1))
            leaves_C = (periods_C == most) & (cause >= 0)
            periods_C[leaves_C], cause_C[leaves_C] = period + 1, cause[leaves_C]
            if period + 1 < most:
                turned_C = moods.random(num_customers) < turning[mood_CP[:, period], 1 - mood_CP[:, period]]
                mood_CP[:, period + 1] = np.where(turned_C, 1 - mood_CP[:, period], mood_CP[:, period])
        visits_CP = visiting.poisson(self.visits_per_day[mood_CP] * self.period_days)
        paid_CP = np.arange(most) < periods_C[:, None]
        customer_P, period_P = np.nonzero(paid_CP)
        visits_V = np.repeat(np.arange(len(customer_P)), visits_CP[customer_P, period_P])
        start_P = joined_C[customer_P] + period_P * self.period_days
        left = np.flatnonzero(cause_C >= 0)
        parts = [
            (PAYMENT, customer_P, start_P, np.asarray(self.prices)[plan_C[customer_P]]),
            (VISIT, customer_P[visits_V], start_P[visits_V] + visiting.random(len(visits_V)) * self.period_days, None),
        ]
        for place, name in enumerate((CANCEL, LAPSE)):
            who = left[cause_C[left] == place]
            parts.append((name, who, joined_C[who] + periods_C[who] * self.period_days, None))
        test_day = self.num_days - 1 - max(self.horizons_days)
        return Simulated(
            name="contracts",
            events=self._events(origin, parts),
            attributes=_attributes(plan_C),
            schema=EventSchema(
                timezone=self.timezone, currency="EUR", purchase_types=(PAYMENT,), churn_types=(CANCEL, LAPSE)
            ),
            windows={
                "val_cutoff": plus_days(self.start, test_day - max(self.horizons_days)),
                "test_cutoff": plus_days(self.start, test_day),
                "horizons_days": self.horizons_days,
            },
            observed_until=plus_days(self.start, self.num_days - 1),
            truth=ContractsTruth(
                period_days=self.period_days,
                price_C=np.asarray(self.prices)[plan_C],
                ends_C=ends[plan_C],
                turning=turning,
                starts=np.array([1 - self.starts_fading, self.starts_fading]),
                visits_per_day=self.visits_per_day,
                origin=origin,
                joined_C=joined_C,
                periods_C=periods_C,
                mood_CP=mood_CP,
                visit_customer_V=customer_P[visits_V],
                visit_day_V=parts[1][2],
            ),
        )

    def _events(
        self, origin: int, parts: list[tuple[str, np.ndarray, np.ndarray, np.ndarray | None]]
    ) -> polars.DataFrame:
        """Payments, visits and ends of the simulated days, sorted by customer and time."""
        import polars as pl

        frames = []
        for name, customer_N, day_N, amount_N in parts:
            seen_N = day_N < self.num_days
            time_N = origin + np.round(day_N[seen_N] * MICROSECONDS_PER_DAY).astype(np.int64)
            amounts = None if amount_N is None else pl.Series(amount_N[seen_N])
            frames.append(
                pl.DataFrame({CUSTOMER_ID: customer_N[seen_N] + 1}).with_columns(
                    times_column(EVENT_TIME, time_N, self.timezone),
                    pl.lit(name).alias(EVENT_TYPE),
                    (pl.lit(None, dtype=pl.Float64) if amounts is None else amounts).alias(AMOUNT),
                )
            )
        return pl.concat(frames).sort(CUSTOMER_ID, EVENT_TIME, maintain_order=True)


def _attributes(plan_C: np.ndarray) -> polars.DataFrame:
    import polars as pl

    return pl.DataFrame({CUSTOMER_ID: np.arange(1, len(plan_C) + 1), "plan": pl.Series(PLANS).gather(plan_C)})


def contracts(
    root: Path | None = None, *, num_customers: int, seed: int, **parameters: Any
) -> dict[str, polars.DataFrame]:
    """The tables of ``ContractsWorld(**parameters)`` as the source of a data set (``configs/data/contracts.yaml``)."""
    return tables(ContractsWorld(**parameters), num_customers, seed)
