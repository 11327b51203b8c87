"""Properties of every world, whatever its seed."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from constellation.schema import AMOUNT, CUSTOMER_ID, EVENT_TIME, EVENT_TYPE
from constellation.worlds.order import OrderWorld
from constellation.worlds.simulated import MICROSECONDS_PER_DAY, World, start_of_day
from constellation.worlds.spenders import SpendersWorld

WORLDS = [SpendersWorld(), OrderWorld(), OrderWorld(mirror=True)]
NAMES = ["spenders", "order", "mirror"]
seeds = st.integers(0, 2**31)


@pytest.mark.parametrize("world", WORLDS, ids=NAMES)
@settings(max_examples=10, deadline=None)
@given(seed=seeds, num_customers=st.integers(1, 30))
def test_same_seed_same_tables(world: World, seed: int, num_customers: int) -> None:
    one, two, other = (
        world.simulate(num_customers, seed),
        world.simulate(num_customers, seed),
        world.simulate(30, seed + 1),
    )
    assert one.events.equals(two.events)
    assert one.attributes.equals(two.attributes)
    assert not one.events.equals(other.events)
    cutoff = start_of_day(one.windows["test_cutoff"], one.schema.timezone) + MICROSECONDS_PER_DAY - 1
    assert one.truth.expected(cutoff, 7).equals(two.truth.expected(cutoff, 7))


@settings(max_examples=10, deadline=None)
@given(seed=seeds)
def test_more_rate_more_purchases(seed: int) -> None:
    slow, fast = (SpendersWorld(rate_days=days).simulate(300, seed) for days in (32.0, 8.0))
    purchases = [(world.events[EVENT_TYPE] == "purchase").sum() for world in (slow, fast)]
    assert purchases[1] > 1.5 * purchases[0]
    # Only purchases, and what follows from them, depend on the rate: contacts are the same.
    contacts = [world.events.filter(pl.col(EVENT_TYPE) == "contact") for world in (slow, fast)]
    assert contacts[0].equals(contacts[1])


@pytest.mark.parametrize("world", WORLDS, ids=NAMES)
@settings(max_examples=5, deadline=None)
@given(seed=seeds, days_before_end=st.integers(100, 300), horizon_days=st.integers(1, 60))
def test_truth_is_the_mean_of_what_happens(world: World, seed: int, days_before_end: int, horizon_days: int) -> None:
    simulated = world.simulate(1500, seed)
    zone = simulated.schema.timezone
    end = start_of_day(simulated.observed_until, zone) + MICROSECONDS_PER_DAY - 1
    if isinstance(world, OrderWorld):
        days_before_end, horizon_days = days_before_end % 25 + 10, horizon_days % 10 + 1
    cutoff = end - days_before_end * MICROSECONDS_PER_DAY
    time = pl.col(EVENT_TIME).dt.epoch("us")
    inside = simulated.events.filter((time > cutoff) & (time <= cutoff + horizon_days * MICROSECONDS_PER_DAY))
    sums = inside.group_by(CUSTOMER_ID).agg(purchases=(pl.col(EVENT_TYPE) == "purchase").sum().cast(pl.Float64))
    table = simulated.truth.expected(cutoff, horizon_days).join(sums, on=CUSTOMER_ID, how="left").fill_null(0.0)
    for name in ("purchases_expected", "purchases_from_history"):
        difference = (table["purchases"] - table[name]).to_numpy()
        assert abs(difference.mean()) <= 5 * difference.std() / np.sqrt(len(difference)) + 1e-9


@settings(max_examples=10, deadline=None)
@given(seed=seeds)
def test_mirror_keeps_visits_and_marginals(seed: int) -> None:
    world, mirror = (OrderWorld(mirror=mirrored).simulate(400, seed).events for mirrored in (False, True))
    visits = [events.filter(pl.col(EVENT_TYPE) != "purchase") for events in (world, mirror)]
    assert visits[0].equals(visits[1])
    num = [(events[EVENT_TYPE] == "purchase").sum() for events in (world, mirror)]
    weeks = (world[EVENT_TYPE] == "arrive").sum()
    # Each number is binomial with probability one half.
    assert abs(num[0] - weeks / 2) < 5 * np.sqrt(weeks / 4)
    assert abs(num[1] - weeks / 2) < 5 * np.sqrt(weeks / 4)
    assert world[AMOUNT].mean() == pytest.approx(mirror[AMOUNT].mean(), rel=0.05)


@pytest.mark.parametrize("world", WORLDS, ids=NAMES)
@settings(max_examples=5, deadline=None)
@given(seed=seeds)
def test_the_order_of_rows_does_not_matter(world: World, seed: int) -> None:
    build = pytest.importorskip("constellation.journeys.build")
    simulated = world.simulate(20, seed)
    shuffled = simulated.events.sample(fraction=1.0, shuffle=True, seed=seed)
    one, two = (
        build.store_from_frame(events, simulated.schema, observed_until=simulated.observed_until)
        for events in (simulated.events, shuffled)
    )
    assert one.num_events == simulated.events.height
    np.testing.assert_array_equal(one.time_N, two.time_N)
    np.testing.assert_array_equal(one.amount_sum_N, two.amount_sum_N)
    np.testing.assert_array_equal(one.categorical[EVENT_TYPE], two.categorical[EVENT_TYPE])
    np.testing.assert_array_equal(one.purchase_N, two.purchase_N)
    # And the store counts what the table holds.
    assert one.purchase_sum_N[-1] == (simulated.events[EVENT_TYPE] == "purchase").sum()
    assert one.amount_sum_N[-1] == round(sum(round(amount * 1e6) for amount in simulated.events[AMOUNT].drop_nulls()))
