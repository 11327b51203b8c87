"""Customers who buy at their own pace, spend in their own size, have tastes, and one day leave without a word.

The purchase process is Pareto/NBD (Schmittlein, Morrison and Colombo 1987; METHODS 3.2): the first purchase opens the
account, repeat purchases follow a Poisson process with rate ``lambda ~ Gamma(r, alpha)`` per day until a lifetime
``Exponential(mu)``, ``mu ~ Gamma(s, beta)`` per day, is over. The logarithm of an amount is
``Normal(m, amount_sigma)`` with ``m ~ Normal(., customer_sigma)``. A purchase is sent back with ``refund_share``, after
an exponential delay, whether or not the customer has left. Contacts, surveys, channels, tastes and attributes are
there to be read, and have no effect on money: what history tells about value is known in closed form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from constellation.errors import InputError
from constellation.schema import (
    ACTION,
    AMOUNT,
    CHANNEL,
    CUSTOMER_ID,
    EVENT_TIME,
    EVENT_TYPE,
    PRODUCT,
    SCORE,
    EventSchema,
)
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
from constellation.worlds.spenders_truth import SpendersTruth

if TYPE_CHECKING:
    from pathlib import Path

    import polars

PURCHASE, REFUND, CONTACT, SURVEY = TYPES = ("purchase", "refund", "contact", "survey")
PRODUCTS = ("bread", "cheese", "coffee", "fish", "fruit", "garden", "toys", "wine")
CHANNELS = ("app", "shop", "web")
ACTIONS = ("call", "newsletter", "voucher")
ACTION_SHARES = (0.1, 0.6, 0.3)
REGIONS = ("east", "north", "south", "west")


@dataclass(frozen=True)
class SpendersWorld:
    """Parameters; times are in days, money in units of the currency.

    rate_shape, rate_days: r and alpha; a customer buys ``r / alpha`` times a day on average while active.
    dropout_shape, dropout_days: s and beta; the typical lifetime is of the order ``beta / s`` days.
    median_amount: of the median customer. amount_sigma, customer_sigma: spread of log amounts within and between
    customers. refund_share, refund_days: probability and mean delay of a refund of the whole amount.
    taste_concentration: of the Dirichlet over product categories; small means one-sided tastes.
    contacts_per_year: Poisson, to everybody, at random times with random actions (``ACTION_SHARES``).
    survey_share: probability that a purchase is followed by a score from 0 to 10.
    num_days, acquisition_days: length of the simulation, and of its first part in which customers join.
    horizons_days: what the windows ask; they fit twice behind the acquisition, for validation and for test.
    """

    rate_shape: float = 0.8
    rate_days: float = 16.0
    dropout_shape: float = 0.9
    dropout_days: float = 250.0
    median_amount: float = 30.0
    amount_sigma: float = 0.5
    customer_sigma: float = 0.6
    refund_share: float = 0.05
    refund_days: float = 7.0
    taste_concentration: float = 0.4
    contacts_per_year: float = 6.0
    survey_share: float = 0.1
    start: str = "2023-01-01"
    timezone: str = "Europe/Berlin"
    num_days: int = 730
    acquisition_days: int = 365
    horizons_days: tuple[int, ...] = (30, 91)

    def __post_init__(self) -> None:
        object.__setattr__(self, "horizons_days", tuple(int(days) for days in self.horizons_days))
        check_positive(
            rate_shape=self.rate_shape,
            rate_days=self.rate_days,
            dropout_shape=self.dropout_shape,
            dropout_days=self.dropout_days,
            median_amount=self.median_amount,
            amount_sigma=self.amount_sigma,
            customer_sigma=self.customer_sigma,
            refund_days=self.refund_days,
            taste_concentration=self.taste_concentration,
            acquisition_days=self.acquisition_days,
        )
        check_share(refund_share=self.refund_share, survey_share=self.survey_share)
        if self.contacts_per_year < 0:
            raise InputError(f"contacts_per_year must be 0 or more, found {self.contacts_per_year}.")
        if not self.horizons_days or self.num_days < self.acquisition_days + 2 * max(self.horizons_days) + 1:
            raise InputError(
                f"num_days must exceed acquisition_days ({self.acquisition_days}) by twice the longest horizon, "
                f"for validation and test, found num_days={self.num_days}, horizons_days={list(self.horizons_days)}."
            )
        start_of_day(self.start, self.timezone)

    def simulate(self, num_customers: int, seed: int) -> Simulated:
        """Draw customers; rows of the tables follow ``customer_id`` 1, 2, ..."""
        check_people(num_customers)
        joining, hidden, buying, sending_back, shopping, contacting, asking, describing = streams(seed, 8)
        origin = start_of_day(self.start, self.timezone)
        joined_C = joining.random(num_customers) * self.acquisition_days
        rate_C = hidden.gamma(self.rate_shape, 1.0, num_customers) / self.rate_days
        dropout_C = hidden.gamma(self.dropout_shape, 1.0, num_customers) / self.dropout_days
        log_amount_C = np.log(self.median_amount) + self.customer_sigma * hidden.standard_normal(num_customers)
        left_C = joined_C + hidden.standard_exponential(num_customers) / np.maximum(dropout_C, 1e-300)

        active_days_C = np.minimum(left_C, self.num_days) - joined_C
        num_repeats_C = buying.poisson(rate_C * active_days_C)
        repeat_N = np.repeat(np.arange(num_customers), num_repeats_C)
        customer_P = np.concatenate([np.arange(num_customers), repeat_N])
        day_P = np.concatenate([joined_C, joined_C[repeat_N] + buying.random(len(repeat_N)) * active_days_C[repeat_N]])
        amount_P = np.exp(log_amount_C[customer_P] + self.amount_sigma * buying.standard_normal(len(customer_P)))
        amount_P = np.maximum(np.round(amount_P, 2), 0.01)
        returned_P = sending_back.random(len(customer_P)) < self.refund_share
        refund_day_P = day_P + self.refund_days * sending_back.standard_exponential(len(customer_P))

        home_channel_C = shopping.integers(0, len(CHANNELS), num_customers)
        events = self._events(
            origin=origin,
            joined_C=joined_C,
            customer_P=customer_P,
            day_P=day_P,
            amount_P=amount_P,
            refund_day_P=np.where(returned_P, refund_day_P, np.inf),
            home_channel_C=home_channel_C,
            shopping=shopping,
            contacting=contacting,
            asking=asking,
        )
        test_day = self.num_days - 1 - max(self.horizons_days)
        return Simulated(
            name="spenders",
            events=events,
            attributes=_attributes(num_customers, home_channel_C, describing),
            schema=EventSchema(timezone=self.timezone, currency="EUR", purchase_types=(PURCHASE,)),
            windows={
                "val_cutoff": plus_days(self.start, test_day - max(self.horizons_days)),
                "test_cutoff": plus_days(self.start, test_day),
                "horizons_days": self.horizons_days,
            },
            observed_until=plus_days(self.start, self.num_days - 1),
            truth=SpendersTruth(
                rate_shape=self.rate_shape,
                rate_days=self.rate_days,
                dropout_shape=self.dropout_shape,
                dropout_days=self.dropout_days,
                log_amount_mean=float(np.log(self.median_amount)),
                customer_sigma=self.customer_sigma,
                amount_sigma=self.amount_sigma,
                refund_share=self.refund_share,
                refund_days=self.refund_days,
                rate_C=rate_C,
                dropout_C=dropout_C,
                log_amount_C=log_amount_C,
                joined_C=_moment(origin, joined_C),
                left_C=_moment(origin, left_C),
                customer_P=customer_P,
                time_P=_moment(origin, day_P),
                amount_P=amount_P,
                returned_P=returned_P,
                refund_time_P=_moment(origin, refund_day_P),
            ),
        )

    def _events(
        self,
        *,
        origin: int,
        joined_C: np.ndarray,
        customer_P: np.ndarray,
        day_P: np.ndarray,
        amount_P: np.ndarray,
        refund_day_P: np.ndarray,
        home_channel_C: np.ndarray,
        shopping: np.random.Generator,
        contacting: np.random.Generator,
        asking: np.random.Generator,
    ) -> polars.DataFrame:
        """Purchases, refunds, contacts and surveys of the simulated days, sorted by customer and time."""
        import polars as pl

        num_customers = len(joined_C)
        basket_P = _baskets(self.taste_concentration, customer_P, num_customers, shopping)
        elsewhere_P = shopping.random(len(customer_P)) < 0.3
        channel_P = np.where(
            elsewhere_P, shopping.integers(0, len(CHANNELS), len(customer_P)), home_channel_C[customer_P]
        )
        channels_P = pl.Series(CHANNELS).gather(channel_P)

        refunds = np.flatnonzero(refund_day_P < self.num_days)
        watched_days_C = self.num_days - joined_C
        contact_N = np.repeat(
            np.arange(num_customers), contacting.poisson(self.contacts_per_year / 365.25 * watched_days_C)
        )
        contact_day_N = joined_C[contact_N] + contacting.random(len(contact_N)) * watched_days_C[contact_N]
        action_N = contacting.choice(len(ACTIONS), len(contact_N), p=ACTION_SHARES)
        content_C = asking.normal(7.5, 1.0, num_customers)
        asked_P = asking.random(len(customer_P)) < self.survey_share
        survey_day_P = day_P + 3.0 * asking.standard_exponential(len(customer_P))
        score_P = np.clip(np.round(asking.normal(content_C[customer_P], 1.5)), 0, 10)
        surveys = np.flatnonzero(asked_P & (survey_day_P < self.num_days))

        def rows(event_type: str, customer_N: np.ndarray, day_N: np.ndarray, **columns: object) -> pl.DataFrame:
            return pl.DataFrame(
                {
                    CUSTOMER_ID: customer_N + 1,
                    EVENT_TIME: times_column(EVENT_TIME, _moment(origin, day_N), self.timezone),
                    EVENT_TYPE: pl.repeat(event_type, len(customer_N), eager=True),
                    **columns,
                }
            )

        parts = [
            rows(PURCHASE, customer_P, day_P, **{AMOUNT: amount_P, PRODUCT: basket_P, CHANNEL: channels_P}),
            rows(
                REFUND,
                customer_P[refunds],
                refund_day_P[refunds],
                **{AMOUNT: -amount_P[refunds], PRODUCT: basket_P.gather(refunds), CHANNEL: channels_P.gather(refunds)},
            ),
            rows(CONTACT, contact_N, contact_day_N, **{ACTION: pl.Series(ACTIONS).gather(action_N)}),
            rows(SURVEY, customer_P[surveys], survey_day_P[surveys], **{SCORE: score_P[surveys]}),
        ]
        return pl.concat(parts, how="diagonal").sort(CUSTOMER_ID, EVENT_TIME, EVENT_TYPE)


def _moment(origin: int, day: np.ndarray) -> np.ndarray:
    """Microseconds UTC of days since ``origin``; lifetimes of millennia are cut, so that they fit."""
    return origin + np.round(np.minimum(day, 1e6) * MICROSECONDS_PER_DAY).astype(np.int64)


def _baskets(
    concentration: float, customer_P: np.ndarray, num_customers: int, generator: np.random.Generator
) -> polars.Series:
    """One list of distinct products per purchase, favourites first: the Gumbel top-k of the customer's log tastes."""
    import polars as pl

    num_products = len(PRODUCTS)
    taste_CV = np.maximum(generator.gamma(concentration, 1.0, (num_customers, num_products)), 1e-300)
    size_P = np.minimum(1 + generator.poisson(0.6, len(customer_P)), 4)
    # ln(taste) + Gumbel orders like taste / Exponential, which is cheaper to draw.
    order_PV = np.argsort(
        -taste_CV[customer_P] / generator.standard_exponential((len(customer_P), num_products)), axis=1
    )
    chosen = order_PV[np.arange(num_products) < size_P[:, None]]
    frame = pl.DataFrame(
        {"purchase": np.repeat(np.arange(len(customer_P)), size_P), PRODUCT: pl.Series(PRODUCTS).gather(chosen)}
    )
    return frame.group_by("purchase", maintain_order=True).agg(PRODUCT)[PRODUCT]


def _attributes(num_customers: int, home_channel_C: np.ndarray, generator: np.random.Generator) -> polars.DataFrame:
    """Region, age (one in twenty unknown) and the channel in which a customer mostly buys."""
    import polars as pl

    age_C = np.clip(np.round(generator.normal(45, 15, num_customers)), 18, 95)
    age_C[generator.random(num_customers) < 0.05] = np.nan
    return pl.DataFrame(
        {
            CUSTOMER_ID: np.arange(1, num_customers + 1),
            "region": pl.Series(REGIONS).gather(generator.integers(0, len(REGIONS), num_customers)),
            "age": pl.Series(age_C).fill_nan(None),
            "home_channel": pl.Series(CHANNELS).gather(home_channel_C),
        }
    )


def spenders(
    root: Path | None = None, *, num_customers: int, seed: int, **parameters: Any
) -> dict[str, polars.DataFrame]:
    """The tables of a ``SpendersWorld(**parameters)`` as the source of a data set (``configs/data/spenders.yaml``)."""
    return tables(SpendersWorld(**parameters), num_customers, seed)
