"""Populations of the prior: purchase days of every customer before a cutoff, and what came after it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from constellation.worlds.prior.calendar import Calendar
from constellation.worlds.prior.hyperparameters import (
    ARRIVING,
    AT_ONCE,
    LEAVES_AFTER_PURCHASE,
    LEAVES_IN_TIME,
    LEAVES_WITH_PERIOD,
    LONG_THERE,
    STAYS,
    Hyperparameters,
)
from constellation.worlds.prior.own_time import OwnTime
from constellation.worlds.prior.spending import spend

FIRST_GAPS, MOST_GAPS = 6, 192
"""So many gaps are drawn at first, and twice as many each time for those who go on: most customers buy seldom."""

MAX_PURCHASES = 1600
"""Of one customer; who would buy more stops there."""

FOREVER = np.iinfo(np.int64).max // 4


@dataclass
class Populations:
    """``W`` worlds of ``C`` customers in all, known at the cutoff by ``P`` purchase days.

    world_C: ascending. start_C, day_P: [C + 1] and [P], purchase days ``start_C[c] : start_C[c + 1]`` of customer c,
    as days before the cutoff's day, falling to 0. money_P: of each purchase day. age_C: days since the first purchase
    day, or since the customer was known who never bought. next_days_C, next_money_C: purchase days and money in the
    horizon after the cutoff's day. horizon_days_W, family_W.
    """

    world_C: np.ndarray
    start_C: np.ndarray
    day_P: np.ndarray
    money_P: np.ndarray
    age_C: np.ndarray
    next_days_C: np.ndarray
    next_money_C: np.ndarray
    horizon_days_W: np.ndarray
    family_W: np.ndarray

    @property
    def num_worlds(self) -> int:
        return len(self.horizon_days_W)


def simulate(worlds: Hyperparameters, rng: np.random.Generator) -> Populations:
    """Everybody known at the cutoff; customers who came before the window count from their first purchase in it.

    What the wide prior adds draws no random number where no world has it, so that the plain prior's worlds stay theirs.
    """
    world_C = np.repeat(np.arange(len(worlds)), worlds.num_customers)
    start_C = _arrivals(worlds, world_C, rng)
    window_W, horizon_W = worlds.window_days, worlds.horizon_days
    # Who shops on a certain day may do so up to three days early.
    end_W = 1.0 + (horizon_W + 4.0 * (worlds.weekly > 0)) / window_W
    past_W = np.where(worlds.entry == LONG_THERE, worlds.past, 0.0)
    calendar = Calendar(worlds, -past_W, end_W, rng)
    log_rate_C, rate_noise_C = _log_rates(worlds, world_C, start_C, rng)
    who, time = _purchases(worlds, world_C, start_C, log_rate_C, calendar, rng)
    money = spend(worlds, world_C, rate_noise_C, who, time, end_W, rng)
    day = _on_own_weekday(worlds, world_C, who, np.floor(time * window_W[world_C[who]]).astype(np.int64), rng)
    inside = (day >= 0) & (day < (window_W + horizon_W)[world_C[who]])
    who, day, money = who[inside], day[inside], money[inside]

    # Purchases of one day are one, as wherever purchase days are counted.
    order = np.lexsort((day, who))
    who, day, money = who[order], day[order], money[order]
    new = np.ones(len(who), dtype=bool)
    new[1:] = (who[1:] != who[:-1]) | (day[1:] != day[:-1])
    money = np.add.reduceat(money, np.flatnonzero(new)) if len(who) else money
    who, day = who[new], day[new]

    num_customers = len(world_C)
    ahead = day >= window_W[world_C[who]]
    next_days_C = np.bincount(who[ahead], minlength=num_customers)
    next_money_C = np.bincount(who[ahead], weights=money[ahead], minlength=num_customers)
    who, day, money = who[~ahead], day[~ahead], money[~ahead]
    count_C = np.bincount(who, minlength=num_customers)
    ago = window_W[world_C[who]] - 1 - day
    known_day_C = np.floor(np.maximum(start_C, 0.0) * window_W[world_C]).astype(np.int64)
    age_C = window_W[world_C] - 1 - known_day_C
    first = np.flatnonzero(np.diff(who, prepend=-1))
    age_C[who[first]] = ago[first]

    seen_C = (count_C > 0) | worlds.registered[world_C]
    kept = seen_C[who]
    return Populations(
        world_C=world_C[seen_C],
        start_C=np.concatenate([[0], np.cumsum(count_C[seen_C])]),
        day_P=ago[kept],
        money_P=money[kept] * worlds.currency[world_C[who[kept]]],
        age_C=age_C[seen_C],
        next_days_C=next_days_C[seen_C],
        next_money_C=next_money_C[seen_C] * worlds.currency[world_C[seen_C]],
        horizon_days_W=horizon_W,
        family_W=worlds.family,
    )


def _arrivals(worlds: Hyperparameters, world_C: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """When each customer came, in windows; before 0 for those who were long there."""
    uniform_C = rng.random(len(world_C))
    growth_C = worlds.growth[world_C]
    growth_C = np.where(np.abs(growth_C) < 1e-3, 1e-3, growth_C)
    # Density proportional to exp(growth t) on [0, 1], by inversion.
    arriving_C = np.log1p(uniform_C * np.expm1(growth_C)) / growth_C
    kind_C = worlds.entry[world_C]
    return np.select(
        [kind_C == AT_ONCE, kind_C == ARRIVING],
        [uniform_C * worlds.entry_share[world_C], arriving_C * (1 - 1e-9)],
        -worlds.past[world_C] * uniform_C,
    )


def _on_own_weekday(
    worlds: Hyperparameters, world_C: np.ndarray, who: np.ndarray, day: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Days of purchases, some of them moved to the nearest day of the week that is the customer's own."""
    if not (worlds.weekly > 0).any():
        return day
    own_C = rng.integers(0, 7, len(world_C))
    moved = rng.random(len(who)) < worlds.weekly[world_C[who]]
    nearest = own_C[who] + 7 * ((day - own_C[who] + 3) // 7)
    return np.where(moved, nearest, day)


def _log_rates(
    worlds: Hyperparameters, world_C: np.ndarray, start_C: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Log rate of each customer, and the same standardised over the prior: what spend is correlated with."""
    shape_C = worlds.rate_shape[world_C]
    drawn_C = np.log(np.maximum(rng.standard_gamma(shape_C), 1e-300)) - np.log(shape_C)
    sigma_C = np.sqrt(np.log1p(1 / shape_C))
    normal_C = rng.standard_normal(len(world_C))
    drawn_C = np.where(worlds.rate_log_normal[world_C], sigma_C * normal_C - sigma_C**2 / 2, drawn_C)
    drawn_C = np.maximum(drawn_C, -14.0)
    standard_C = np.clip((drawn_C + sigma_C**2 / 2) / sigma_C, -2.5, 2.5)
    log_rate_C = np.log(worlds.rate[world_C]) + drawn_C + worlds.cohort[world_C] * np.maximum(start_C, 0.0)
    if (worlds.other_share > 0).any():
        others_C = rng.random(len(world_C)) < worlds.other_share[world_C]
        log_rate_C = log_rate_C + others_C * worlds.other_rate[world_C]
    return log_rate_C, standard_C


def _limits(
    worlds: Hyperparameters, world_C: np.ndarray, start_C: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """When each customer leaves, in windows, and after how many repeat purchases."""
    num_customers, leaving_C = len(world_C), worlds.leaving[world_C]
    mean_C, concentration_C = worlds.leave_mean[world_C], worlds.leave_concentration[world_C]
    chance_C = rng.beta(mean_C * concentration_C, (1 - mean_C) * concentration_C)
    chances_C = rng.geometric(np.clip(chance_C, 1e-9, 1.0))  # number of the chance that is taken, from 1
    shape_C = worlds.stay_shape[world_C]
    leave_rate_C = rng.standard_gamma(shape_C) / shape_C / worlds.stay[world_C]
    in_time_C = start_C + rng.standard_exponential(num_customers) / np.maximum(leave_rate_C, 1e-12)
    with_period_C = start_C + chances_C * worlds.period[world_C]
    by_kind = [leaving_C == STAYS, leaving_C == LEAVES_AFTER_PURCHASE, leaving_C == LEAVES_IN_TIME]
    end_C = np.select(by_kind, [np.inf, np.inf, in_time_C], with_period_C)
    assert LEAVES_WITH_PERIOD not in (STAYS, LEAVES_AFTER_PURCHASE, LEAVES_IN_TIME)
    most_C = np.where(by_kind[1], chances_C - worlds.flip_at_start[world_C], FOREVER)
    never_C = rng.random(num_customers) < worlds.never[world_C]
    return end_C, np.where(never_C, 0, most_C)


def _purchases(
    worlds: Hyperparameters,
    world_C: np.ndarray,
    start_C: np.ndarray,
    log_rate_C: np.ndarray,
    calendar: Calendar,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Customer and time in windows of every purchase up to the end of the horizon, in no order."""
    end_C, most_C = _limits(worlds, world_C, start_C, rng)
    first_C = ~worlds.registered[world_C]
    who, times = [np.flatnonzero(first_C)], [start_C[first_C]]
    going = np.flatnonzero(most_C > 0)
    begin_C = calendar.business_time(world_C, start_C)
    own = OwnTime(worlds, world_C, begin_C, calendar.business_WG[world_C, -1], rng)
    passed = np.zeros(len(going))
    log_rate, done, drifting = log_rate_C[going], 0, bool((worlds.drift > 0).any())
    num_gaps = FIRST_GAPS
    while len(going) and done < MAX_PURCHASES:
        world_R1 = world_C[going][:, None]
        shape = (len(going), num_gaps)
        log_rate_RG = np.broadcast_to(log_rate[:, None], shape)
        if drifting:
            log_rate_RG = log_rate_RG + (worlds.drift[world_R1] * rng.standard_normal(shape)).cumsum(axis=1)
        shape_R1 = worlds.regularity[world_R1]
        gap_RG = rng.standard_gamma(shape_R1, shape) / shape_R1 * np.exp(-log_rate_RG)
        passed_RG = passed[:, None] + gap_RG.cumsum(axis=1)
        business_RG = own.business_time(going, passed_RG)
        time_RG = calendar.time(np.broadcast_to(world_R1, business_RG.shape), business_RG)
        number_G = done + np.arange(1, num_gaps + 1)
        valid_RG = (time_RG <= end_C[going][:, None]) & np.isfinite(time_RG) & (number_G <= most_C[going][:, None])
        row, column = np.nonzero(valid_RG)
        who.append(going[row])
        times.append(time_RG[row, column])
        on = valid_RG[:, -1]
        going, passed, log_rate = going[on], passed_RG[on, -1], log_rate_RG[on, -1]
        done, num_gaps = done + num_gaps, min(2 * num_gaps, MOST_GAPS)
    return np.concatenate(who), np.concatenate(times)
