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
    PLAIN_FAMILIES,
    STAYS,
    draw,
)
from constellation.worlds.prior.own_time import IN_PAUSE, NUM_STEPS, OwnTime, wandering
from constellation.worlds.prior.populations import Populations, simulate
from constellation.worlds.prior.widening import SHOPPERS_SHARE, draw_wide

PLAIN = {
    "num_customers": 20_000, "window_days": 20_000, "horizon_days": 10_000, "rate": 4.0, "rate_shape": 1e6,
    "rate_log_normal": 0, "other_share": 0.0, "cohort": 0.0, "wander": 0.0, "paused": 0.0, "novelty": 0.0,
    "weekly": 0.0, "spend_shape_spread": 0.0, "spend_wander": 0.0, "big_share": 0.0, "regularity": 1.0,
    "drift": 0.0, "never": 0.0, "leaving": STAYS, "renewals": 0,
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


def halves(populations: Populations) -> np.ndarray:
    """Repeat purchase days of each customer in the earlier and the later half of the window, [C, 2]."""
    who = np.repeat(np.arange(len(populations.age_C)), np.diff(populations.start_C))
    repeat = np.diff(who, prepend=-1) == 0
    later = populations.day_P < 10_000
    parts = [np.bincount(who[repeat & (later == late)], minlength=len(populations.age_C)) for late in (False, True)]
    return np.stack(parts, axis=1)


def test_others_have_another_rate_and_later_cohorts_too():
    x_C = repeats(world(other_share=0.25, other_rate=np.log(3.0)))
    assert x_C.mean() == pytest.approx(0.75 * 4 + 0.25 * 12, abs=0.1)
    populations = world(entry=ARRIVING, growth=0.0, cohort=1.0)
    # Who comes at s buys at 4 e^s over the horizon of a half: 2 (e - 1) in the mean.
    assert populations.next_days_C.mean() == pytest.approx(2 * (np.e - 1), abs=0.06)


def test_what_wanders_is_standard_normal_and_forgets():
    state_RK = wandering(np.full(40_000, 2.0), np.full(40_000, 0.5), 6, np.random.default_rng(0))
    assert np.abs(state_RK.mean(axis=0)).max() < 0.02 and state_RK.std(axis=0) == pytest.approx(np.ones(6), abs=0.02)
    assert np.corrcoef(state_RK[:, 1], state_RK[:, 4])[0, 1] == pytest.approx(np.exp(-3 * 0.5 / 2.0), abs=0.02)


def test_interest_that_wanders_spreads_counts_and_keeps_their_mean():
    """Slow wandering makes one log-normal rate a customer: variance of counts = m + m^2 (e^{s^2} - 1)."""
    found = halves(world(wander=0.5, wander_time=1e4))
    spread = np.exp(0.25) - 1
    assert found.sum(axis=1).mean() == pytest.approx(4.0, abs=0.08)
    assert found.sum(axis=1).var() == pytest.approx(4 + 16 * spread, rel=0.06)
    assert np.cov(found.T)[0, 1] == pytest.approx(4 * spread, rel=0.12)
    fast = halves(world(wander=0.5, wander_time=0.02))
    assert fast.mean() == pytest.approx(2.0, abs=0.04) and abs(np.cov(fast.T)[0, 1]) < 0.25 * 4 * spread


def test_pauses_keep_the_mean_and_lengthen_silences():
    populations = world(paused=0.3, pause_time=0.3, rate=20.0)
    assert repeats(populations).mean() == pytest.approx(20.0, abs=0.5)
    without = world(rate=20.0)
    silent, usual = ((halves(each)[:, 1] == 0).mean() for each in (populations, without))
    assert usual < 0.001 and silent > 0.03


def test_new_customers_buy_more_while_the_novelty_lasts():
    """Intensity 4 exp(e^{-t / tau}): nearly 4 e at first, nearly 4 in the end."""
    populations = world(novelty=1.0, novelty_time=0.1)
    time = (np.arange(2000) + 0.5) / 2000
    expected = 4 * np.exp(np.exp(-time / 0.1)).mean()
    assert repeats(populations).mean() == pytest.approx(expected, rel=0.03)
    assert populations.next_days_C.mean() == pytest.approx(2.0, abs=0.05)


def test_own_time_has_an_inverse():
    worlds = draw_wide(2, np.random.default_rng(2), family="shoppers").set(wander=0.6, paused=0.2, novelty=0.5)
    worlds.wander[1] = worlds.paused[1] = worlds.novelty[1] = 0.0
    world_C, begin_C, end_C = np.array([0, 0, 1]), np.array([0.1, 0.5, 0.2]), np.array([1.5, 1.5, 1.4])
    own = OwnTime(worlds, world_C, begin_C, end_C, np.random.default_rng(4))
    assert own.row_C.tolist() == [0, 1, -1]
    knots = begin_C[0] + own.width_R[0] * np.arange(NUM_STEPS)
    np.testing.assert_allclose(own.business_time(np.array([0]), own.own_RK[:1, :-1])[0], knots, atol=1e-9)
    beyond = own.own_RK[:2, -1:] + 1e-6
    assert np.isinf(own.business_time(np.array([0, 1]), beyond)).all()
    # The customer of the world where nothing wanders keeps the world's time.
    np.testing.assert_allclose(own.business_time(np.array([2]), np.array([[0.0, 0.7]])), [[0.2, 0.9]])
    assert 0 < IN_PAUSE < own.interest_RK.max()


def test_who_shops_on_one_day_of_the_week_does():
    populations = world(weekly=1.0, rate=6.0)
    who = np.repeat(np.arange(len(populations.age_C)), np.diff(populations.start_C))
    first = populations.day_P[populations.start_C[:-1]]
    assert ((populations.day_P - first[who]) % 7 == 0).all()
    # Purchases that move over the end of the horizon are made up for by those that move in.
    assert populations.next_days_C.mean() == pytest.approx(3.0, abs=0.05)


def log_means(populations: Populations) -> np.ndarray:
    """Mean log money of each customer's purchase days in the earlier and the later half, [C, 2]."""
    who = np.repeat(np.arange(len(populations.age_C)), np.diff(populations.start_C))
    log, later = np.log(populations.money_P), populations.day_P < 10_000
    num = len(populations.age_C)
    return np.stack(
        [np.bincount(who[part], log[part], num) / np.bincount(who[part], minlength=num) for part in (~later, later)], 1
    )


def test_spending_levels_wander_between_the_halves():
    still = log_means(world(rate=60.0, spend_shape=1e6, spend_spread=0.4))
    assert np.abs(still[:, 0] - still[:, 1]).mean() < 0.03  # two purchases of a day are one
    moving = log_means(world(rate=60.0, spend_shape=1e6, spend_spread=0.4, spend_wander=0.5, spend_time=1e4))
    assert np.abs(moving[:, 0] - moving[:, 1]).mean() < 0.03
    assert moving[:, 0].var() == pytest.approx(0.4**2 + 0.5**2, rel=0.05)
    quick = log_means(world(rate=60.0, spend_shape=1e6, spend_spread=0.4, spend_wander=0.5, spend_time=0.3))
    assert (quick[:, 0] - quick[:, 1]).std() > 0.2


def test_big_purchases_and_uneven_customers():
    populations = world(rate=10.0, spend_shape=1e6, big_share=0.2, big=np.log(5.0))
    assert (populations.money_P > 3).mean() == pytest.approx(0.2, abs=0.01)
    assert populations.money_P.mean() == pytest.approx(0.8 + 0.2 * 5, rel=0.02)

    def spread_of_spreads(**changes: float) -> float:
        each = world(rate=60.0, **changes)
        who = np.repeat(np.arange(len(each.age_C)), np.diff(each.start_C))
        count = np.bincount(who)
        variance = np.bincount(who, each.money_P**2) / count - (np.bincount(who, each.money_P) / count) ** 2
        return float(np.log(variance).std())

    assert spread_of_spreads(spend_shape_spread=0.8) > spread_of_spreads() + 0.3


@pytest.mark.parametrize("family", PLAIN_FAMILIES)
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
    worlds = draw_wide(8, rng, family=family, customers=(50, 200))
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


def test_the_wide_prior_adds_to_the_plain_one_and_leaves_textbooks_their_timing():
    wide = draw_wide(4000, np.random.default_rng(5))
    shoppers = wide.family == FAMILIES.index("shoppers")
    assert shoppers.mean() == pytest.approx(SHOPPERS_SHARE, abs=0.02)
    textbook = np.isin(wide.family, [FAMILIES.index(name) for name in ("bgnbd", "pareto_nbd", "contract")])
    for name in ("wander", "paused", "novelty", "weekly", "cohort", "other_share"):
        values = getattr(wide, name)
        assert (values[textbook] == 0).all() and (values[~textbook] != 0).mean() > 0.05, name
    assert (wide.spend_wander[textbook] > 0).mean() == pytest.approx(0.4, abs=0.05)
    visits = wide.rate[shoppers] / wide.window_days[shoppers] * 7
    assert np.quantile(visits, [0.01, 0.99]) == pytest.approx([0.2, 2.5], rel=0.15)
    assert (wide.wander[wide.renewals & (wide.leaving == 3)] == 0).all()


def test_the_plain_prior_draws_the_worlds_the_shipped_file_was_taught_on():
    """The sums over one batch, as they were before there was a wide prior: resuming or repeating must not change."""
    rng = np.random.default_rng([0, 0])
    populations = simulate(draw(12, rng, customers=(120, 1200)), rng)
    found = (len(populations.age_C), int(populations.day_P.sum()), int(populations.next_days_C.sum()))
    assert found == (6562, 3_434_612, 7747)


def test_bad_words_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="family must be one of"):
        draw(2, rng, family="shoppers")
    with pytest.raises(InputError, match="shoppers"):
        draw_wide(2, rng, family="none")
    with pytest.raises(InputError, match="ascending"):
        draw(2, rng, customers=(10, 5))
