"""The sampler of the prior against closed forms: plain worlds have known means, and the clock has an inverse."""

from __future__ import annotations

import numpy as np
import pytest

from constellation.errors import InputError
from constellation.worlds.prior.calendar import Calendar
from constellation.worlds.prior.hyperparameters import (
    ARRIVING,
    AT_ONCE,
    FAMILIES,
    LEAVES_AFTER_PURCHASE,
    LEAVES_IN_TIME,
    LEAVES_WITH_PERIOD,
    LONG_THERE,
    STAYS,
    draw,
)
from constellation.worlds.prior.populations import Populations, simulate

PLAIN = {
    "num_customers": 20_000, "window_days": 20_000, "horizon_days": 10_000, "rate": 4.0, "rate_shape": 1e6,
    "rate_log_normal": 0, "regularity": 1.0, "drift": 0.0, "never": 0.0, "leaving": STAYS, "renewals": 0,
    "flip_at_start": 0, "entry": AT_ONCE, "entry_share": 1e-6, "registered": 0, "trend": 0.0, "season": 0.0,
    "shock": 0.0, "spikes": 0.0, "spend_spread": 0.0, "spend_shape": 4.0, "spend_log_normal": 0, "spend_rate": 0.0,
    "free": 0.0, "inflation": 0.0, "currency": 1.0,
}  # fmt: skip
"""One world of equal Poisson customers who all come on the first day, stay, and pay 1 in the mean."""


def world(**changes: float) -> Populations:
    rng = np.random.default_rng(0)
    return simulate(draw(1, rng, family="mixed").set(**{**PLAIN, **changes}), rng)


def repeats(populations: Populations) -> np.ndarray:
    return np.diff(populations.start_C) - 1


def test_equal_poisson_customers():
    populations = world()
    assert len(populations.age_C) == 20_000
    assert repeats(populations).mean() == pytest.approx(4.0, abs=0.06)
    assert repeats(populations).var() == pytest.approx(4.0, abs=0.2)
    assert populations.next_days_C.mean() == pytest.approx(2.0, abs=0.04)
    # Past and future of equal Poisson customers tell nothing of each other.
    assert abs(np.corrcoef(repeats(populations), populations.next_days_C)[0, 1]) < 0.03
    assert populations.next_money_C.mean() == pytest.approx(2.0, abs=0.05)
    assert populations.money_P.var() == pytest.approx(1 / 4, abs=0.03)


def test_gamma_rates_make_negative_binomial_counts():
    x_C = repeats(world(rate_shape=0.5))
    assert x_C.mean() == pytest.approx(4.0, abs=0.15)
    assert (x_C == 0).mean() == pytest.approx((0.5 / 4.5) ** 0.5, abs=0.015)


def test_leaving_after_a_purchase():
    """With dropout p at each repeat purchase the expected number up to t is (1 - exp(-rate p t)) / p."""
    populations = world(leaving=LEAVES_AFTER_PURCHASE, leave_mean=0.25, leave_concentration=1e6)

    def expected(t: float) -> float:
        return (1 - np.exp(-4.0 * 0.25 * t)) / 0.25

    assert repeats(populations).mean() == pytest.approx(expected(1.0), abs=0.05)
    assert populations.next_days_C.mean() == pytest.approx(expected(1.5) - expected(1.0), abs=0.04)


def test_leaving_in_time():
    """With rate of leaving mu the expected number up to t is rate / mu (1 - exp(-mu t))."""
    populations = world(leaving=LEAVES_IN_TIME, stay=0.5, stay_shape=1e6)
    assert repeats(populations).mean() == pytest.approx(2 * (1 - np.exp(-2)), abs=0.05)
    assert populations.next_days_C.mean() == pytest.approx(2 * (np.exp(-2) - np.exp(-3)), abs=0.03)


def test_leaving_with_a_period():
    """Quarter periods, a fifth leaves at the end of each: 4 * 1/4 purchases in each period begun."""
    populations = world(leaving=LEAVES_WITH_PERIOD, period=0.25, leave_mean=0.2, leave_concentration=1e6)
    assert repeats(populations).mean() == pytest.approx(1 + 0.8 + 0.8**2 + 0.8**3, abs=0.06)
    assert populations.next_days_C.mean() == pytest.approx(0.8**4 + 0.8**5, abs=0.04)


def test_regular_customers_have_regular_gaps():
    populations = world(regularity=16.0)
    who = np.repeat(np.arange(len(populations.age_C)), np.diff(populations.start_C))
    gaps = -np.diff(populations.day_P)[np.diff(who) == 0] / 20_000
    early = gaps[gaps < 0.6]  # hardly any gap of mean 1/4 is longer
    assert early.std() / early.mean() == pytest.approx(1 / 4, abs=0.02)


def test_two_purchases_of_a_day_are_one():
    """D days with rate/D purchases each: D (1 - exp(-rate / D)) of them see one; the first day has one anyway."""
    populations = world(window_days=50, horizon_days=50, rate=50.0)
    assert populations.next_days_C.mean() == pytest.approx(50 * (1 - np.exp(-1)), abs=0.3)
    assert populations.next_money_C.mean() == pytest.approx(50, abs=0.6)
    assert (
        np.diff(populations.day_P)[np.diff(np.repeat(np.arange(20_000), np.diff(populations.start_C))) == 0] < 0
    ).all()


def test_arrivals():
    ages = world(entry=ARRIVING, growth=0.0).age_C / 20_000
    assert ages.mean() == pytest.approx(0.5, abs=0.01)
    late = world(entry=ARRIVING, growth=2.0).age_C / 20_000
    # The mean of the density 2 e^{2t} / (e^2 - 1) on [0, 1] is 1 / (1 - e^-2) - 1/2.
    assert late.mean() == pytest.approx(1 - (1 / (1 - np.exp(-2)) - 0.5), abs=0.01)
    # Who was long there is seen from the first purchase in the window: an exponential wait.
    long_there = world(entry=LONG_THERE, past=1.0)
    assert len(long_there.age_C) == pytest.approx(20_000 * (1 - np.exp(-4)), abs=150)
    waits = 1 - long_there.age_C / 20_000
    assert np.median(waits) == pytest.approx(-np.log(0.5 * (1 + np.exp(-4))) / 4, abs=0.01)


def test_registered_customers_are_known_before_they_buy():
    populations = world(registered=1, rate=1.0)
    assert len(populations.age_C) == 20_000
    assert (np.diff(populations.start_C) == 0).mean() == pytest.approx(np.exp(-1), abs=0.015)
    assert populations.age_C[np.diff(populations.start_C) == 0].min() >= 19_990


def test_never_and_free_and_inflation():
    assert (repeats(world(never=0.3, rate=40.0)) == 0).mean() == pytest.approx(0.3, abs=0.015)
    assert (world(free=0.2).money_P == 0).mean() == pytest.approx(0.2, abs=0.01)
    populations = world(inflation=0.5)
    ratio = populations.next_money_C.sum() / populations.next_days_C.sum()
    # Mean of e^{t/2} over [1, 1.5].
    assert ratio == pytest.approx((np.exp(0.75) - np.exp(0.5)) / 0.5 / 0.5, rel=0.02)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_clock_has_an_inverse_and_mean_one(family):
    rng = np.random.default_rng(3)
    worlds = draw(6, rng, family=family)
    calendar = Calendar(worlds, -worlds.past, np.full(6, 1.7), rng)
    which = np.repeat(np.arange(6), 50)
    time = rng.uniform(-worlds.past[which], 1.7)
    np.testing.assert_allclose(calendar.time(which, calendar.business_time(which, time)), time, atol=1e-9)
    ones, zeros = np.ones(6), np.zeros(6)
    inside = calendar.business_time(np.arange(6), ones) - calendar.business_time(np.arange(6), zeros)
    np.testing.assert_allclose(inside, 1.0, atol=0.12)  # up to the knots at the window's ends
    assert np.isinf(calendar.time(np.arange(6), calendar.business_time(np.arange(6), np.full(6, 1.7)) + 1)).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_populations_are_well_formed(family):
    rng = np.random.default_rng(1)
    worlds = draw(8, rng, family=family, customers=(50, 200))
    populations = simulate(worlds, rng)
    assert (np.diff(populations.world_C) >= 0).all()
    count_C = np.diff(populations.start_C)
    assert populations.start_C[-1] == len(populations.day_P) == len(populations.money_P)
    assert (populations.day_P >= 0).all() and (populations.money_P >= 0).all()
    bought = count_C > 0
    assert bought.all() or family == "mixed"
    np.testing.assert_array_equal(populations.age_C[bought], populations.day_P[populations.start_C[:-1][bought]])
    window_C, horizon_C = worlds.window_days[populations.world_C], worlds.horizon_days[populations.world_C]
    assert (populations.age_C < window_C).all() and (populations.next_days_C <= horizon_C).all()
    assert ((populations.next_money_C > 0) <= (populations.next_days_C > 0)).all()


def test_bad_words_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="family must be one of"):
        draw(2, rng, family="none")
    with pytest.raises(InputError, match="ascending"):
        draw(2, rng, customers=(10, 5))
