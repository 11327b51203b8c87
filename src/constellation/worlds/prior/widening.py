"""The wide prior: the same worlds, in which customers and what they spend may also change, and weekly shoppers.

Ranges are assumptions about businesses in general, of people who had read how a network taught without them does on
real data (experiments/0003-zero-shot).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from constellation.errors import InputError
from constellation.worlds.prior.hyperparameters import (
    FAMILIES,
    LEAVES_WITH_PERIOD,
    MOST_PER_DAY,
    Hyperparameters,
    draw,
)

SHOPPERS_SHARE = 0.18
"""Of the worlds, when all families are drawn."""


def draw_wide(
    num_worlds: int,
    rng: np.random.Generator,
    *,
    family: str | None = None,
    customers: tuple[int, int] = (150, 2500),
) -> Hyperparameters:
    """Worlds of the wide prior, as ``draw`` gives those of the plain one. Raises InputError for unknown families."""
    if family is not None and family not in FAMILIES:
        raise InputError(f"family must be one of {', '.join(FAMILIES)}, found {family!r}.")
    worlds = draw(num_worlds, rng, family="mixed" if family == "shoppers" else family, customers=customers)
    chosen = rng.random(num_worlds) < SHOPPERS_SHARE if family is None else np.full(num_worlds, family == "shoppers")
    return _changing(_shopping(worlds, chosen, rng), rng)


def _shopping(worlds: Hyperparameters, shoppers: np.ndarray, rng: np.random.Generator) -> Hyperparameters:
    """Some worlds turned into those of households that come every week or so, seldom leave, and often came long ago."""
    num_worlds = len(worlds)

    def log_uniform(low: float, high: float) -> np.ndarray:
        return np.exp(rng.uniform(np.log(low), np.log(high), num_worlds))

    def turned(name: str, values: np.ndarray | float) -> np.ndarray:
        return np.where(shoppers, values, getattr(worlds, name)).astype(getattr(worlds, name).dtype)

    window_days = np.rint(log_uniform(60, 600))
    horizon_days = np.clip(np.rint(window_days * log_uniform(0.05, 2.0)), 3, 1200)
    rate = np.clip(log_uniform(0.2, 2.5) * window_days / 7, 0.15, MOST_PER_DAY * window_days)
    leaving = rng.choice(4, size=num_worlds, p=(0.4, 0.15, 0.4, 0.05))
    some = rng.random(num_worlds) < 0.7
    # What everybody needs every week swings less with the year than what is bought at will.
    trend = rng.normal(0.0, 0.16, num_worlds) * (rng.random(num_worlds) < 0.6) * some
    season = rng.uniform(0.0, 0.24, num_worlds) * (rng.random(num_worlds) < 0.6) * some
    spikes = rng.uniform(0.0, 0.12, num_worlds) * (rng.random(num_worlds) < 0.5) * some
    changes: dict[str, np.ndarray | float] = {
        "family": float(FAMILIES.index("shoppers")), "window_days": window_days, "horizon_days": horizon_days,
        "rate": rate, "rate_shape": log_uniform(0.2, 6.0), "regularity": log_uniform(0.7, 4.0), "drift": 0.0,
        "never": 0.0, "leaving": leaving, "leave_mean": log_uniform(0.0015, 0.05), "stay": log_uniform(1.5, 60.0),
        "renewals": 0.0, "flip_at_start": 0.0, "registered": 0.0, "trend": trend, "season": season, "spikes": spikes,
        "shock": log_uniform(0.008, 0.16) * some,
        "entry": rng.choice(3, size=num_worlds, p=(0.3, 0.25, 0.45)),
    }  # fmt: skip
    return replace(worlds, **{name: turned(name, values) for name, values in changes.items()})


def _changing(worlds: Hyperparameters, rng: np.random.Generator) -> Hyperparameters:
    """Rates of more laws, interest and spending that wander; timing only where a family is not one of textbooks."""
    num_worlds = len(worlds)
    kind = {name: worlds.family == place for place, name in enumerate(FAMILIES)}
    regular, calendar, mixed, shoppers = (kind[name] for name in ("regular", "calendar", "mixed", "shoppers"))
    free = regular | calendar | mixed | shoppers

    def log_uniform(low: float, high: float) -> np.ndarray:
        return np.exp(rng.uniform(np.log(low), np.log(high), num_worlds))

    def some(chosen: np.ndarray, share: float | np.ndarray, low: float, high: float) -> np.ndarray:
        return np.where(chosen & (rng.random(num_worlds) < share), rng.uniform(low, high, num_worlds), 0.0)

    everywhere = np.ones(num_worlds, dtype=bool)
    renewals = worlds.renewals & (worlds.leaving == LEAVES_WITH_PERIOD)
    log_normal = free & (rng.random(num_worlds) < 0.4)
    cohort = rng.normal(0.0, 0.5, num_worlds) * ((calendar | mixed) & (rng.random(num_worlds) < 0.35))
    return replace(
        worlds,
        rate_log_normal=log_normal,
        other_share=some(free, 0.25, 0.02, 0.4),
        other_rate=rng.uniform(-1.0, 2.0, num_worlds),
        cohort=cohort,
        # Those who renew by contract cannot wander.
        wander=np.where(renewals, 0.0, some(free, np.where(shoppers, 0.85, 0.45), 0.1, 0.9)),
        wander_time=log_uniform(0.05, 3.0),
        paused=np.where(renewals, 0.0, some(mixed | shoppers, np.where(shoppers, 0.3, 0.25), 0.03, 0.35)),
        pause_time=log_uniform(0.04, 0.6),
        novelty=np.where(renewals, 0.0, some(calendar | mixed, 0.3, -0.5, 1.5)),
        novelty_time=log_uniform(0.03, 0.5),
        weekly=some(regular | mixed | shoppers, np.where(shoppers, 0.5, 0.2), 0.2, 0.95),
        spend_shape_spread=some(everywhere, 0.5, 0.1, 0.9),
        spend_wander=some(everywhere, np.where(shoppers, 0.8, 0.4), 0.05, 0.6),
        spend_time=log_uniform(0.05, 3.0),
        big_share=some(everywhere, 0.3, 0.02, 0.3),
        big=rng.uniform(0.5, 2.0, num_worlds),
    )
