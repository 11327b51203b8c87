"""What the same time of earlier years says of a model's totals, learned from questions that have come true.

Windows of weeks and months know no time of year, and a network that reads the date would take each past cutoff for a
season of its own. So the season is learned after the training: where the model's totals missed alike at the same time
of two years, they are expected to miss so again (the seasonal naive forecast, of the model's own error). What drifts
over the years is no season and is taken off first, by what two times a year apart differ in: a season cancels there.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from constellation.answering import answer_all
from constellation.distributions.season import MICROSECONDS_PER_DAY, NUM_SLOTS, STEP_DAYS, YEAR_DAYS
from constellation.journeys.batch import Gatherer
from constellation.journeys.splits import Splits
from constellation.journeys.windows import Queries, Until, Windows, ask, at_risk
from constellation.model import JourneyModel

MOST_QUESTIONS = 24_000
LEAST_CUSTOMERS = 50
LEAST_WINDOWS = 2.0
"""Horizons that fit, one after the other, into the time that has been seen in two years; fewer tell nothing."""

LONGEST_DAYS = YEAR_DAYS - STEP_DAYS
"""A horizon of about a year holds all seasons, and its window of the year before, or a step later, must have ended."""

SLOTS_OF_A_YEAR = YEAR_DAYS // STEP_DAYS


def learn_season(
    model: JourneyModel, gatherer: Gatherer, splits: Splits, until: Until, *, seed: int
) -> dict[str, float]:
    """Teach ``model.season`` from training customers' questions whose answers are known at ``until``, microseconds UTC.

    Returns how far each season is believed, ``season_value_91d``. Nothing is asked, and nothing changes, where the
    history holds no two years of any horizon.
    """
    model.season.forget()
    windows = splits.windows
    if not isinstance(windows, Windows) or isinstance(until, np.ndarray):
        return {}  # only the order is known
    earliest = windows.earliest(splits.store)
    horizons_days = tuple(
        days
        for days in windows.horizons_days
        if days <= LONGEST_DAYS and _num_windows(until, earliest, days) >= LEAST_WINDOWS
    )
    slot_Q, queries = _questions(splits, until, earliest, horizons_days, seed)
    expected = _expected(model, gatherer, queries)
    facts = {}
    for column, days in enumerate(horizons_days):
        seen_Q = queries.observed_QK[:, column]
        for kind, realised_QK in (("value", queries.value_QK), ("purchases", queries.purchases_QK)):
            target = f"{kind}_{days}d"
            if target not in expected:
                continue
            realised_T, expected_T = (
                np.bincount(slot_Q[seen_Q], weights=values_Q[seen_Q], minlength=NUM_SLOTS)
                for values_Q in (realised_QK[:, column], expected[target])
            )
            drift = yearly_drift(log_ratios(realised_T, expected_T))
            log_ratio_T = log_ratios(realised_T * np.exp(drift * np.arange(NUM_SLOTS) / SLOTS_OF_A_YEAR), expected_T)
            believed = facts[f"season_{target}"] = belief(log_ratio_T, days)
            if believed > 0:
                model.season.learn(until, target, torch.from_numpy(log_ratio_T), believed)
    return facts


def log_ratios(realised_T: np.ndarray, expected_T: np.ndarray) -> np.ndarray:
    """Log of realised over expected totals, [T], less that of all of them together; NaN where either is not above 0.

    A model that is right in total over its past has misses about 1, not logs about 0: the mean of the logs would raise
    every answer, by a tenth where a season swings by 60 %. A part of a year is no reason to leave slots out, for what
    the model takes to be usual comes from the same part.
    """
    known_T = (realised_T > 0) & (expected_T > 0)
    log_ratio_T = np.full(len(realised_T), np.nan)
    realised_P, expected_P = realised_T[known_T], expected_T[known_T]
    if known_T.any():
        log_ratio_T[known_T] = np.log(realised_P / expected_P) - np.log(realised_P.sum() / expected_P.sum())
    return log_ratio_T


def yearly_drift(log_ratio_T: np.ndarray) -> float:
    """By how much log ratios rise in a year, whatever the season: the mean difference from the same time a year before.

    log_ratio_T: every ``STEP_DAYS``, newest first, NaN where unknown; 0 where no two are a year apart. A straight line
    is all that is taken off: bends and steps come out of it with the years at odds, which no season is read from.
    """
    rise_P = log_ratio_T[:-SLOTS_OF_A_YEAR] - log_ratio_T[SLOTS_OF_A_YEAR:]
    known_P = np.isfinite(rise_P)
    return float(rise_P[known_P].mean()) if known_P.any() else 0.0


def belief(log_ratio_T: np.ndarray, horizon_days: int) -> float:
    """How much of last year's log ratio to expect again, in [0, 1].

    log_ratio_T: every ``STEP_DAYS``, newest first, NaN where unknown. The regression of a cutoff's ratio on that a year
    before, times the probability that there is a season at all, by the Bayesian information criterion at even odds
    (Schwarz 1978), where cutoffs count as one for each horizon's length, for their windows overlap.
    """
    now_P, before_P = log_ratio_T[:-SLOTS_OF_A_YEAR], log_ratio_T[SLOTS_OF_A_YEAR:]
    known_P = np.isfinite(now_P) & np.isfinite(before_P)
    num = float(known_P.sum()) * STEP_DAYS / max(horizon_days, STEP_DAYS)
    if num < LEAST_WINDOWS:
        return 0.0
    now_P, before_P = (part[known_P] - part[known_P].mean() for part in (now_P, before_P))
    together, variance, of_now = (float(part.sum()) for part in (now_P * before_P, before_P**2, now_P**2))
    if together <= 0 or variance <= 0 or of_now <= 0:
        return 0.0
    correlation = min(together / math.sqrt(variance * of_now), 1 - 1e-9)
    evidence = -(num - 1) / 2 * math.log1p(-(correlation**2)) - math.log(num) / 2
    return min(together / variance, 1.0) / (1 + math.exp(-evidence))


def _num_windows(until: int, earliest: int, days: int) -> float:
    """Windows of so many days whose answers, and those of the year before, lie between the two moments."""
    return ((until - earliest) / MICROSECONDS_PER_DAY - YEAR_DAYS - days) / days


def _questions(
    splits: Splits, until: int, earliest: int, horizons_days: tuple[int, ...], seed: int
) -> tuple[np.ndarray, Queries]:
    """Slot [Q] and questions: other customers at each cutoff, so that no one's own ways pass for a season."""
    risk = {}
    for slot in range(NUM_SLOTS) if horizons_days else ():
        cutoff = until - slot * STEP_DAYS * MICROSECONDS_PER_DAY
        if slot * STEP_DAYS >= min(horizons_days) and cutoff >= earliest:
            at_slot = at_risk(splits.store, cutoff, splits.train_journeys)
            if len(at_slot) >= LEAST_CUSTOMERS:
                risk[slot] = at_slot
    most, random = max(MOST_QUESTIONS // max(len(risk), 1), LEAST_CUSTOMERS), np.random.default_rng(seed)
    asked = {slot: _some(journeys, most, random) for slot, journeys in risk.items()}
    slot_Q = np.repeat(np.array(list(asked), dtype=np.int64), [len(journeys) for journeys in asked.values()])
    journey_Q = np.concatenate([np.empty(0, dtype=np.int64), *asked.values()])
    cutoff_Q = until - slot_Q * STEP_DAYS * MICROSECONDS_PER_DAY
    return slot_Q, ask(splits.store, journey_Q, cutoff_Q, horizons_days, until)


def _some(journeys: np.ndarray, most: int, random: np.random.Generator) -> np.ndarray:
    return np.sort(random.choice(journeys, most, replace=False)) if len(journeys) > most else journeys


def _expected(model: JourneyModel, gatherer: Gatherer, queries: Queries) -> dict[str, np.ndarray]:
    """Expected values [Q] of the model by target."""
    said = answer_all(model, gatherer, queries, (0.5,), beginning=("value_", "purchases_"))
    return {name.removesuffix("_expected"): values_Q for name, values_Q in said.items() if name.endswith("_expected")}
