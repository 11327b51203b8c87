"""A world whose coming money hangs on the order of event types, and on nothing that can be counted.

Every week each customer makes one visit of seven events within one hour of the clock::

    arrive   [advice price | price advice]   browse   [advice price | price advice]   leave
                     the deciding pair                        the decoy pair

Whoever asks for advice before looking at the price mostly buys on the following Friday to Sunday; the other way round,
mostly not. Each visit draws both pairs anew, by fair coins. So at the end of a Thursday every visit of every customer
holds the same events, with gaps, hours and weekdays drawn without regard to order; the last ``advice`` and the last
``price`` come from the decoy, so the time since each is no help; and as visits are independent, past purchases say
nothing about the next. In the mirror the purchase follows a coin of its own: the same marginals, nothing to find.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from constellation.errors import InputError
from constellation.schema import AMOUNT, CUSTOMER_ID, EVENT_TIME, EVENT_TYPE, EventSchema
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

TYPES = ("arrive", "advice", "price", "browse", "leave", "purchase")
ARRIVE, ADVICE, PRICE, BROWSE, LEAVE, PURCHASE = range(6)
VISIT_DAYS, WEEKEND_DAY, WEEKEND_DAYS, WEEK_DAYS = 3, 4, 3, 7
"""Visits fall on Monday to Wednesday; the weekend, Friday to Sunday, starts four days after Monday."""
NUM_VISIT_EVENTS = 7
MONDAY, ZONE = "2024-01-01", "UTC"
MINUTE = 60_000_000


@dataclass(frozen=True)
class OrderWorld:
    """Parameters of the world of order.

    num_weeks: length of the simulation; customers join in its first quarter.
    buys_after_advice, buys_after_price: probability of a purchase on the weekend after a visit that began with either.
    mean_amount, amount_sigma: mean money of a purchase and the spread of its logarithm, the same for all.
    mirror: cut the link between order and purchase and keep everything else.
    """

    num_weeks: int = 10
    buys_after_advice: float = 0.9
    buys_after_price: float = 0.1
    mean_amount: float = 40.0
    amount_sigma: float = 0.3
    mirror: bool = False

    def __post_init__(self) -> None:
        if self.num_weeks < 8:
            raise InputError(
                f"num_weeks must be 8 or more, to hold training, validation and test, found {self.num_weeks}."
            )
        check_share(buys_after_advice=self.buys_after_advice, buys_after_price=self.buys_after_price)
        check_positive(mean_amount=self.mean_amount, amount_sigma=self.amount_sigma)

    def simulate(self, num_customers: int, seed: int) -> Simulated:
        """Draw customers; rows of the tables follow ``customer_id`` 1, 2, ..."""
        check_people(num_customers)
        visits = _draw_visits(self, num_customers, seed)
        truth = OrderTruth(self, visits)
        test_day = (self.num_weeks - 2) * WEEK_DAYS + VISIT_DAYS  # the Thursday of the last week but one
        return Simulated(
            name="order_world_mirror" if self.mirror else "order_world",
            events=visits.events(),
            attributes=visits.attributes(),
            schema=EventSchema(timezone=ZONE, currency="EUR", purchase_types=(TYPES[PURCHASE],)),
            windows={
                # Cutoffs and their weekly grid fall on the ends of Thursdays: the visit is over, the weekend ahead.
                "val_cutoff": plus_days(MONDAY, test_day - 2 * WEEK_DAYS),
                "test_cutoff": plus_days(MONDAY, test_day),
                "horizons_days": (WEEK_DAYS,),
                "train_cutoffs_every_days": WEEK_DAYS,
            },
            observed_until=plus_days(MONDAY, self.num_weeks * WEEK_DAYS - 1),
            truth=truth,
        )


@dataclass(frozen=True)
class Visits:
    """All visits. ``C`` customers, ``R`` visits (one per customer and week), rows ascending by customer, then week.

    customer_R: row of the customer. week_R: number of the week. time_RE: microseconds UTC of the seven events.
    deciding_R, decoy_R: whether advice came first in either pair. weekend_R: when the purchase falls, if there is one.
    bought_R, amount_R: whether there is one, and its money.
    """

    num_customers: int
    customer_R: np.ndarray
    week_R: np.ndarray
    time_RE: np.ndarray
    deciding_R: np.ndarray
    decoy_R: np.ndarray
    weekend_R: np.ndarray
    bought_R: np.ndarray
    amount_R: np.ndarray

    def events(self) -> polars.DataFrame:
        import polars as pl

        type_RE = np.empty((len(self.customer_R), NUM_VISIT_EVENTS + 1), dtype=np.int64)
        type_RE[:, [0, 3, 6, 7]] = ARRIVE, BROWSE, LEAVE, PURCHASE
        for place, advice_first_R in ((1, self.deciding_R), (4, self.decoy_R)):
            type_RE[:, place] = np.where(advice_first_R, ADVICE, PRICE)
            type_RE[:, place + 1] = np.where(advice_first_R, PRICE, ADVICE)
        happened_RE = np.ones_like(type_RE, dtype=bool)
        happened_RE[:, -1] = self.bought_R
        amount_RE = np.full(type_RE.shape, np.nan)
        amount_RE[:, -1] = self.amount_R
        time_RE = np.concatenate([self.time_RE, self.weekend_R[:, None]], axis=1)
        customer_RE = np.broadcast_to(self.customer_R[:, None] + 1, type_RE.shape)
        return pl.DataFrame(
            {
                CUSTOMER_ID: customer_RE[happened_RE],
                EVENT_TIME: times_column(EVENT_TIME, time_RE[happened_RE], ZONE),
                EVENT_TYPE: pl.Series(TYPES).gather(type_RE[happened_RE]),
                AMOUNT: pl.Series(amount_RE[happened_RE]).fill_nan(None),
            }
        )

    def attributes(self) -> polars.DataFrame:
        import polars as pl

        first_week_C = np.full(self.num_customers, np.iinfo(np.int64).max)
        np.minimum.at(first_week_C, self.customer_R, self.week_R)
        return pl.DataFrame({CUSTOMER_ID: np.arange(1, self.num_customers + 1), "joined_week": first_week_C})


def _draw_visits(world: OrderWorld, num_customers: int, seed: int) -> Visits:
    joining, timing, order, decoy, coin, buying, amounts = streams(seed, 7)
    first_week_C = joining.integers(0, max(1, world.num_weeks // 4), size=num_customers)
    present_CW = np.arange(world.num_weeks) >= first_week_C[:, None]
    customer_R, week_R = np.nonzero(present_CW)
    num_visits = len(customer_R)
    monday_R = start_of_day(MONDAY, ZONE) + week_R * WEEK_DAYS * MICROSECONDS_PER_DAY
    # A visit stays inside one hour of the clock (it starts within 10 minutes of the full hour and takes at most 48),
    # so that hour and weekday are the same for all its events and cannot stand in for the place in the order.
    hour_R = timing.integers(0, VISIT_DAYS * 24, size=num_visits) * 60 * MINUTE
    gap_RE = timing.integers(2 * MINUTE, 8 * MINUTE, size=(num_visits, NUM_VISIT_EVENTS))
    gap_RE[:, 0] = timing.integers(0, 10 * MINUTE, size=num_visits)
    weekend_R = timing.integers(0, WEEKEND_DAYS * MICROSECONDS_PER_DAY, size=num_visits)
    deciding_R = order.random(num_visits) < 0.5
    cause_R = coin.random(num_visits) < 0.5 if world.mirror else deciding_R
    probability_R = np.where(cause_R, world.buys_after_advice, world.buys_after_price)
    log_mean = np.log(world.mean_amount) - world.amount_sigma**2 / 2
    return Visits(
        num_customers=num_customers,
        customer_R=customer_R,
        week_R=week_R,
        time_RE=(monday_R + hour_R)[:, None] + np.cumsum(gap_RE, axis=1),
        deciding_R=deciding_R,
        decoy_R=decoy.random(num_visits) < 0.5,
        weekend_R=monday_R + WEEKEND_DAY * MICROSECONDS_PER_DAY + weekend_R,
        bought_R=buying.random(num_visits) < probability_R,
        amount_R=np.round(np.exp(log_mean + world.amount_sigma * amounts.standard_normal(num_visits)), 2),
    )


@dataclass(frozen=True)
class OrderTruth:
    """The rule itself. There is no hidden state: what history tells is all there is to know."""

    world: OrderWorld
    visits: Visits

    def expected(self, cutoff: int, horizon_days: float) -> polars.DataFrame:
        """Columns and rows as :class:`~constellation.worlds.simulated.Truth` says.

        With ``p`` the probability of a purchase on a weekend, uniform in time with distribution function ``F``: given
        none by the cutoff ``c``, one falls in ``(c, e]`` with probability ``p (F(e) - F(c)) / (1 - p F(c))``.
        Up to rounding of amounts to cents.
        """
        import polars as pl

        visits, world = self.visits, self.world
        end = cutoff + round(horizon_days * MICROSECONDS_PER_DAY)
        known_R = visits.time_RE[:, 1] <= cutoff
        told_R = np.where(visits.deciding_R, world.buys_after_advice, world.buys_after_price)
        blind = (world.buys_after_advice + world.buys_after_price) / 2
        probability_R = np.where(known_R & (not world.mirror), told_R, blind)

        monday_R = start_of_day(MONDAY, ZONE) + visits.week_R * WEEK_DAYS * MICROSECONDS_PER_DAY
        friday_R = monday_R + WEEKEND_DAY * MICROSECONDS_PER_DAY
        passed_R, reached_R = (
            np.clip((moment - friday_R) / (WEEKEND_DAYS * MICROSECONDS_PER_DAY), 0.0, 1.0) for moment in (cutoff, end)
        )
        open_R = ~(visits.bought_R & (visits.weekend_R <= cutoff)) & (reached_R > passed_R)
        remaining_R = 1.0 - probability_R * passed_R
        chance_R = np.where(open_R, probability_R * (reached_R - passed_R) / np.where(open_R, remaining_R, 1.0), 0.0)
        purchases_C = np.bincount(visits.customer_R, weights=chance_R, minlength=visits.num_customers)
        seen_C = np.bincount(visits.customer_R, weights=visits.time_RE[:, 0] <= cutoff, minlength=visits.num_customers)
        customers = np.flatnonzero(seen_C)
        purchases, value = purchases_C[customers], purchases_C[customers] * world.mean_amount
        return pl.DataFrame(
            {
                CUSTOMER_ID: customers + 1,
                "value_expected": value,
                "purchases_expected": purchases,
                "value_from_history": value,
                "purchases_from_history": purchases,
            }
        )


def order_world(
    root: Path | None = None, *, num_customers: int, seed: int, **parameters: Any
) -> dict[str, polars.DataFrame]:
    """The tables of an ``OrderWorld(**parameters)`` as the source of a data set (``configs/data/order_world.yaml``)."""
    return tables(OrderWorld(**parameters), num_customers, seed)
