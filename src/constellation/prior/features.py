"""Customers and populations as numbers without units: times as shares of the window, money in the population's median.

The window runs from the day when the population's first customers were known to the cutoff. Nothing here is learned,
and nothing depends on the order of customers, on the unit of time, or on the currency.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from constellation.prior.histories import Histories

COURSE_BINS, AGE_BINS = 20, 10
RECENT_SHARES = (0.05, 0.1, 0.2, 0.4)
"""Of the window, counted back from the cutoff."""

TINY = 2e-3
"""Share of the window below which times are not told apart in logarithms."""

MOST = 6.0
"""Features are cut at this absolute value."""

NUM_FEATURES = 38
NUM_COURSE = 3 * COURSE_BINS + AGE_BINS + 8


@dataclass(frozen=True)
class Units:
    """Of each population [W]: window and horizon in the unit of the histories' time; money: the median of a purchase
    day, NaN where nobody paid; rate: repeat purchase days per window and customer, of an ordinary window's length.
    """

    window_W: np.ndarray
    horizon_W: np.ndarray
    money_W: np.ndarray
    rate_W: np.ndarray


@dataclass(frozen=True)
class Described:
    """features_CF: float32. anchor_C: log of the purchase days expected in the horizon at the customer's own rate drawn
    to the population's; spend_C: log money of a purchase day, in the population's unit, drawn likewise.
    """

    features_CF: np.ndarray
    anchor_C: np.ndarray
    spend_C: np.ndarray


def units(population: Histories, world_C: np.ndarray, horizon_W: np.ndarray) -> Units:
    """Measured on the population alone. world_C: int64 [C], which of the W populations; each has a customer."""
    num_worlds = len(horizon_W)
    order = np.lexsort((population.age_C, world_C))
    start_W = np.searchsorted(world_C[order], np.arange(num_worlds))
    size_W = np.bincount(world_C, minlength=num_worlds)
    # One customer with a wrong date long ago must not stretch the window for all.
    oldest_W = population.age_C[order][start_W + (0.995 * (size_W - 1)).round().astype(np.int64)]
    window_W = np.maximum(oldest_W + 1.0 * (oldest_W <= 0), 1e-12).astype(np.float64)
    repeats_W = np.bincount(world_C, weights=_repeats(population), minlength=num_worlds)
    watched_W = np.bincount(world_C, weights=population.age_C, minlength=num_worlds)
    rate_W = (repeats_W + 1.0) / (watched_W / window_W + 1.0)

    world_P, money_P = world_C[population.customer_P], population.money_P
    paid = money_P > 0
    order = np.lexsort((money_P[paid], world_P[paid]))
    sorted_world, sorted_money = world_P[paid][order], money_P[paid][order]
    low = np.searchsorted(sorted_world, np.arange(num_worlds))
    count = np.searchsorted(sorted_world, np.arange(num_worlds), side="right") - low
    if len(sorted_money):
        left, right = low + (count - 1) // 2, low + count // 2
        median = [sorted_money[np.clip(place, 0, len(sorted_money) - 1)] for place in (left, right)]
        money_W = np.where(count > 0, 0.5 * (median[0] + median[1]), np.nan)
    else:
        money_W = np.full(num_worlds, np.nan)
    return Units(window_W, np.asarray(horizon_W, dtype=np.float64), money_W, rate_W)


def describe(customers: Histories, world_C: np.ndarray, units: Units) -> Described:
    """Numbers [C, NUM_FEATURES] of customers, each in the units of its population."""
    num = len(customers)
    window_C, rate_C = units.window_W[world_C], units.rate_W[world_C]
    horizon_C = units.horizon_W[world_C] / window_C
    who = customers.customer_P
    ago_P, age_C = customers.day_P / window_C[who], customers.age_C / window_C
    count_C = np.diff(customers.start_C)
    bought_C, x_C = count_C > 0, np.maximum(count_C - 1, 0).astype(np.float64)
    repeated_C = x_C > 0
    last_C = age_C.copy()
    last_C[bought_C] = ago_P[customers.start_C[1:][bought_C] - 1]
    t_x_C = np.where(repeated_C, age_C - last_C, 0.0)
    repeat_P = np.ones(len(who), dtype=bool)
    repeat_P[customers.start_C[:-1][bought_C]] = False

    def since(limit_C: np.ndarray) -> np.ndarray:
        """Repeat purchase days within a time before the cutoff."""
        return np.bincount(who, weights=repeat_P & (ago_P < limit_C[who]), minlength=num)

    gap_P = np.zeros(len(who))
    gap_P[1:] = ago_P[:-1] - ago_P[1:]
    log_gap_P = np.log(np.maximum(gap_P, 0.0) + TINY)
    gaps_C = np.maximum(x_C, 1.0)
    mean_gap_C = np.where(repeated_C, np.bincount(who, weights=gap_P * repeat_P, minlength=num) / gaps_C, age_C)
    mean_log_gap_C = np.bincount(who, weights=log_gap_P * repeat_P, minlength=num) / gaps_C
    left_P = np.where(repeat_P, log_gap_P - mean_log_gap_C[who], 0.0)
    sd_log_gap_C = np.sqrt(np.bincount(who, weights=left_P**2, minlength=num) / gaps_C)
    variation_P = np.where(repeat_P, gap_P - mean_gap_C[who], 0.0)
    cv_C = np.sqrt(np.bincount(who, weights=variation_P**2, minlength=num) / gaps_C) / (mean_gap_C + TINY)
    last_gap_C = np.zeros(num)
    last_gap_C[repeated_C] = log_gap_P[customers.start_C[1:][repeated_C] - 1] - mean_log_gap_C[repeated_C]

    # A trial of the past: what was known a while ago, and what has come since.
    trial_C = np.minimum(horizon_C, 1 / 3)
    there_C = age_C > trial_C
    since_trial_C = since(trial_C)
    before_C = np.where(there_C, x_C - since_trial_C, 0.0)
    old_P = ago_P >= trial_C[who]
    idle_C = np.full(num, np.inf)
    np.minimum.at(idle_C, who[old_P], (ago_P - trial_C[who])[old_P])
    idle_C = np.where(np.isfinite(idle_C), idle_C, np.maximum(age_C - trial_C, 0.0))

    anchor_C = np.log(horizon_C * (1 + x_C) / (1 / rate_C + age_C))
    ratio_C = np.log((last_C + TINY) / (mean_gap_C + TINY))
    spend_C, money_CK = _money(customers, who, count_C, world_C, units)
    features_CF = np.column_stack(
        [
            ~bought_C, repeated_C, np.log1p(x_C), np.log1p(np.minimum(x_C, 3.0)), age_C, np.log(age_C + TINY) / 2,
            last_C, np.log(last_C + TINY) / 2, t_x_C, t_x_C / (age_C + TINY), np.where(repeated_C, ratio_C, 0.0),
            np.where(repeated_C, np.log(mean_gap_C + TINY) / 2, 0.0), sd_log_gap_C, cv_C, last_gap_C,
            np.log1p(rate_C * last_C), np.log((x_C + 0.5) / (rate_C * age_C + 0.5)),
            np.log1p(x_C) * last_C / (age_C + TINY),
            *(np.log1p(since(np.full(num, share))) for share in RECENT_SHARES),
            np.log1p(since(horizon_C)), np.log1p(since(2 * horizon_C)),
            np.log(horizon_C), np.minimum(horizon_C, 3.0), np.log((horizon_C + TINY) / (age_C + TINY)) / 2, anchor_C,
            there_C, np.log1p(before_C), idle_C / (np.maximum(age_C - trial_C, 0.0) + TINY), np.log1p(since_trial_C),
            np.log(np.maximum(trial_C, TINY)), *money_CK,
        ]
    )  # fmt: skip
    assert features_CF.shape == (num, NUM_FEATURES)
    return Described(
        np.clip(np.nan_to_num(features_CF), -MOST, MOST).astype(np.float32),
        anchor_C.astype(np.float32),
        spend_C.astype(np.float32),
    )


def course(population: Histories, world_C: np.ndarray, units: Units) -> np.ndarray:
    """[W, NUM_COURSE], float32: how a population came and bought over its calendar and over its customers' ages."""
    num_worlds = len(units.horizon_W)
    window_C = units.window_W[world_C]
    who = population.customer_P
    world_P, ago_P, age_C = world_C[who], population.day_P / window_C[who], population.age_C / window_C
    size_W = np.bincount(world_C, minlength=num_worlds).astype(np.float64)
    repeat_P = np.diff(who, prepend=-1) == 0
    since_first_P = age_C[who] - ago_P
    rate_W1 = units.rate_W[:, None]

    def table(rows: np.ndarray, place: np.ndarray, num: int) -> np.ndarray:
        flat = rows * num + np.clip((place * num).astype(np.int64), 0, num - 1)
        return np.bincount(flat, minlength=num_worlds * num).reshape(num_worlds, num).astype(np.float64)

    def watched(num: int) -> np.ndarray:
        """Customers times windows spent in each bin of the time before the cutoff, or of the age: the same numbers."""
        inside_CB = np.clip(age_C[:, None] * num - np.arange(num), 0.0, 1.0) / num
        return np.stack([np.bincount(world_C, weights=each_C, minlength=num_worlds) for each_C in inside_CB.T], axis=1)

    risk_WB, risk_WA = watched(COURSE_BINS), watched(AGE_BINS)
    bought_WB = table(world_P[repeat_P], ago_P[repeat_P], COURSE_BINS)
    aged_WA = table(world_P[repeat_P], since_first_P[repeat_P], AGE_BINS)
    came_WB = table(world_C, age_C, COURSE_BINS)
    x_C = _repeats(population)
    square_W = np.bincount(world_C, weights=x_C**2, minlength=num_worlds) / size_W
    mean_W = np.bincount(world_C, weights=x_C, minlength=num_worlds) / size_W
    columns = [
        # Half a customer's purchases of prior keep thin bins near the mean.
        np.log((bought_WB + 0.5) / (rate_W1 * risk_WB + 0.5)),
        np.sqrt(came_WB / size_W[:, None]),
        np.sqrt(risk_WB * COURSE_BINS / size_W[:, None]),
        np.log((aged_WA + 0.5) / (rate_W1 * risk_WA + 0.5)),
        np.log(np.clip(size_W, 100, 3000))[:, None] - 6.5,
        np.log(rate_W1),
        np.bincount(world_C, weights=x_C == 0, minlength=num_worlds)[:, None] / size_W[:, None],
        np.log((square_W + 0.1) / (mean_W**2 + 0.1))[:, None],
        np.log(mean_W + 0.05)[:, None],
        np.log(units.horizon_W / units.window_W)[:, None],
        (np.bincount(world_C, weights=age_C, minlength=num_worlds) / size_W)[:, None],
        (np.bincount(world_C, weights=age_C**2, minlength=num_worlds) / size_W)[:, None],
    ]
    course_WK = np.concatenate(columns, axis=1)
    assert course_WK.shape == (num_worlds, NUM_COURSE)
    return np.clip(course_WK, -MOST, MOST).astype(np.float32)


def _repeats(customers: Histories) -> np.ndarray:
    return np.maximum(np.diff(customers.start_C) - 1, 0).astype(np.float64)


def _money(
    customers: Histories, who: np.ndarray, count_C: np.ndarray, world_C: np.ndarray, units: Units
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Log spend of a purchase day drawn to the population's median by one day; and five numbers about money."""
    num = len(customers)
    unit_P = np.nan_to_num(units.money_W, nan=1.0)[world_C[who]]
    log_P = np.log(np.clip(customers.money_P / unit_P, 0.02, 100.0))
    total_C = np.bincount(who, weights=log_P, minlength=num)
    spend_C = total_C / (count_C + 1)
    mean_C = total_C / np.maximum(count_C, 1)
    sd_C = np.sqrt(np.bincount(who, weights=(log_P - mean_C[who]) ** 2, minlength=num) / np.maximum(count_C, 1))
    last_C = np.zeros(num)
    last_C[count_C > 0] = log_P[customers.start_C[1:][count_C > 0] - 1]
    mean_money_C = np.bincount(who, weights=customers.money_P / unit_P, minlength=num) / np.maximum(count_C, 1)
    log_mean_C = np.log(np.clip(mean_money_C, 0.02, 100.0)) * (count_C > 0)
    free_C = np.bincount(who, weights=customers.money_P <= 0, minlength=num) / np.maximum(count_C, 1)
    return spend_C, [spend_C, sd_C, last_C, log_mean_C, free_C]
