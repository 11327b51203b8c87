"""The log of a club under its logging policy: events, attributes and decisions as the house has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from constellation.schema import ACTION, AMOUNT, CHANNEL, CUSTOMER_ID, EVENT_TIME, EVENT_TYPE, PRODUCT, SCORE
from constellation.worlds.loyalty.actions import CHANNELS
from constellation.worlds.loyalty.draws import Draws, Stream
from constellation.worlds.loyalty.dynamics import NOTHING, Week
from constellation.worlds.loyalty.people import CONSTELLATIONS, PRODUCTS, People
from constellation.worlds.loyalty.simulation import Simulation
from constellation.worlds.loyalty.state import FEATURES, NEVER
from constellation.worlds.simulated import MICROSECONDS_PER_DAY, start_of_day, times_column

if TYPE_CHECKING:
    import polars

    from constellation.worlds.loyalty.world import LoyaltyWorld

TYPES = (
    "signup", "contact", "visit", "purchase", "survey", "complaint", "resolution", "referral"
)  # fmt: skip
SIGNUP, CONTACT, VISIT, PURCHASE, SURVEY, COMPLAINT, RESOLUTION, REFERRAL = TYPES
SHOPS = ("shop", "web")
HOUR = MICROSECONDS_PER_DAY // 24
DECISION_HOUR, CONTACT_HOUR, FIRST_HOUR, LAST_HOUR = 8, 9, 12, 160
"""Hours since Monday, 0 o'clock UTC: when it is decided, when the contact goes out, and when all else happens. So the
history of a decision is the weeks before it, and whatever a contact brings comes after it."""


@dataclass(frozen=True)
class Log:
    """events, attributes, decisions: polars tables. features_QF: what the logging policy saw, one row per decision."""

    events: polars.DataFrame
    attributes: polars.DataFrame
    decisions: polars.DataFrame
    features_QF: np.ndarray | None


def draw_log(world: LoyaltyWorld, num_customers: int, seed: int, *, with_features: bool = False) -> Log:
    """Run the club for ``world.num_weeks`` weeks and write down what a club would see.

    decisions: one row per member and week from the week after joining, sorted by customer and time, with ``action``,
    ``propensity`` (of that action), ``eligible`` (always true), ``cost``, ``propensity_<action>`` of each action, and
    ``context_<feature>``, float32, for each of ``FEATURES``: what the club knew when it decided.
    """
    import polars as pl

    simulation = Simulation(world, num_customers, seed)
    parts, decided, seen = [], [], []
    for _ in range(world.num_weeks):
        features_CF = simulation.features()
        if with_features:
            seen.append(features_CF)
        week = simulation.step(simulation.logging())
        parts += _events_of(world, simulation, week)
        decided.append(_decisions_of(world, week, features_CF))
    events = pl.concat(parts, how="diagonal").select(
        CUSTOMER_ID, EVENT_TIME, EVENT_TYPE, AMOUNT, PRODUCT, CHANNEL, SCORE, ACTION
    )
    decisions = pl.concat(decided).with_row_index("row").sort(CUSTOMER_ID, "decision_time")
    features_QF = np.concatenate(seen)[decisions["row"].to_numpy()] if with_features else None
    joined = np.flatnonzero(simulation.state.joined_week_R < world.num_weeks)
    return Log(
        events=events.sort(CUSTOMER_ID, EVENT_TIME, EVENT_TYPE),
        attributes=attributes(simulation.people, joined, num_customers),
        decisions=decisions.drop("row"),
        features_QF=features_QF,
    )


def attributes(people: People, rows: np.ndarray, num_customers: int) -> polars.DataFrame:
    """Preferred channel, household, age, favourite constellation and origin of the customers in ``rows``."""
    import polars as pl

    return pl.DataFrame(
        {
            CUSTOMER_ID: rows + 1,
            "preferred_channel": pl.Series(CHANNELS).gather(people.prefers_R[rows]),
            "household": pl.Series(("other", "family")).gather(people.family_R[rows].astype(np.int64)),
            "age": people.age_R[rows],
            "favourite": pl.Series([*CONSTELLATIONS, "none"]).gather(
                np.where(people.favourite_R[rows] < 0, len(CONSTELLATIONS), people.favourite_R[rows])
            ),
            "origin": pl.Series(("own", "referred")).gather((rows >= num_customers).astype(np.int64)),
        }
    )


def feature_table(world: LoyaltyWorld, num_customers: int, seed: int) -> polars.DataFrame:
    """The features of every decision of a log, beside customer and time."""
    import polars as pl

    log = draw_log(world, num_customers, seed, with_features=True)
    assert log.features_QF is not None
    named = pl.DataFrame({name: log.features_QF[:, place] for place, name in enumerate(FEATURES)})
    return log.decisions.select(CUSTOMER_ID, "decision_time").hstack(named)


def start_of_week(week: int) -> int:
    """Microseconds UTC of Monday, 0 o'clock."""
    from constellation.worlds.loyalty.world import MONDAY, WEEK_DAYS, ZONE

    return start_of_day(MONDAY, ZONE) + week * WEEK_DAYS * MICROSECONDS_PER_DAY


def _times(name: str, time_N: np.ndarray) -> polars.Series:
    return times_column(name, time_N, "UTC")


def _decisions_of(world: LoyaltyWorld, week: Week, features_CF: np.ndarray) -> polars.DataFrame:
    import polars as pl

    num = len(week.rows_C)
    probability = {f"propensity_{name}": week.probability_CA[:, a] for a, name in enumerate(world.action_names)}
    return pl.DataFrame(
        {
            CUSTOMER_ID: week.rows_C + 1,
            "decision_time": _times("decision_time", np.full(num, start_of_week(week.week) + DECISION_HOUR * HOUR)),
            ACTION: pl.Series(world.action_names).gather(week.action_C),
            "propensity": week.probability_CA[np.arange(num), week.action_C],
            "eligible": np.ones(num, dtype=bool),
            "cost": week.cost_C,
            **probability,
            **{f"context_{name}": features_CF[:, place] for place, name in enumerate(FEATURES)},
        }
    )


def _events_of(world: LoyaltyWorld, simulation: Simulation, week: Week) -> list[polars.DataFrame]:
    """One table per event type of a week. Moments are drawn by the customer and the week, like everything else."""
    import polars as pl

    draws: Draws = simulation.draws
    monday = start_of_week(week.week)
    rows_C = week.rows_C
    moment_CJ = FIRST_HOUR * HOUR + np.floor(
        draws.uniform(week.week, Stream.MOMENT, rows_C, 4) * (LAST_HOUR - FIRST_HOUR) * HOUR
    ).astype(np.int64)
    visit_C, purchase_C, resolution_C, referral_C = moment_CJ.T + monday
    shop_C = (draws.uniform(week.week, Stream.SHOP, rows_C) >= 0.5).astype(np.int64)

    def rows(event_type: str, customer_N: np.ndarray, time_N: np.ndarray, **columns: object) -> pl.DataFrame:
        return pl.DataFrame(
            {
                CUSTOMER_ID: customer_N + 1,
                EVENT_TIME: _times(EVENT_TIME, time_N),
                EVENT_TYPE: pl.repeat(event_type, len(customer_N), eager=True),
                **columns,
            }
        )

    def where(happened_C: np.ndarray, event_type: str, time_C: np.ndarray, **columns: object) -> pl.DataFrame:
        return rows(event_type, rows_C[happened_C], time_C[happened_C], **columns)

    joining = np.flatnonzero(simulation.state.joined_week_R == week.week)
    assert week.week < NEVER
    hour_N = draws.uniform(week.week, Stream.JOIN, joining)
    joined_N = monday + np.floor((FIRST_HOUR + hour_N * (LAST_HOUR - FIRST_HOUR)) * HOUR).astype(np.int64)
    contacted_C = week.action_C != 0
    sent = week.action_C[contacted_C]
    channel_of = pl.Series([entry.channel or None for entry in world.actions.values()], dtype=pl.String)
    asked_C = ~np.isnan(week.score_C)
    return [
        rows(SIGNUP, joining, joined_N),
        where(
            contacted_C,
            CONTACT,
            np.full(len(rows_C), monday + CONTACT_HOUR * HOUR),
            **{ACTION: pl.Series(world.action_names).gather(sent), CHANNEL: channel_of.gather(sent)},
        ),
        where(week.visited_C, VISIT, visit_C, **{CHANNEL: pl.repeat("web", int(week.visited_C.sum()), eager=True)}),
        where(
            week.bought_C,
            PURCHASE,
            purchase_C,
            **{
                AMOUNT: week.amount_C[week.bought_C],
                PRODUCT: _baskets(week),
                CHANNEL: pl.Series(SHOPS).gather(shop_C[week.bought_C]),
            },
        ),
        where(asked_C, SURVEY, purchase_C + HOUR, **{SCORE: week.score_C[asked_C]}),
        where(week.complained_C, COMPLAINT, purchase_C + 2 * HOUR),
        where(week.resolved_C, RESOLUTION, resolution_C),
        where(week.referred_C, REFERRAL, referral_C),
    ]


def _baskets(week: Week) -> polars.Series:
    import polars as pl

    pair_B2 = np.stack([week.lead_C[week.bought_C], week.companion_C[week.bought_C]], axis=1)
    names = pl.Series([*PRODUCTS, None], dtype=pl.String)
    flat = names.gather(np.where(pair_B2 == NOTHING, len(PRODUCTS), pair_B2).ravel())
    return flat.reshape((len(pair_B2), 2)).arr.to_list().list.drop_nulls().alias(PRODUCT)
