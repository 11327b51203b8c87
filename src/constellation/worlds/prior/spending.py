"""What a purchase costs: customers differ in how much they spend and how evenly, and their level wanders."""

from __future__ import annotations

import numpy as np

from constellation.worlds.prior.hyperparameters import Hyperparameters
from constellation.worlds.prior.own_time import NUM_STEPS, wandering


def spend(
    worlds: Hyperparameters,
    world_C: np.ndarray,
    rate_noise_C: np.ndarray,
    who: np.ndarray,
    time: np.ndarray,
    end_W: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Of each purchase, in units whose median customer mean is about 1.

    rate_noise_C: standardised log rates. who, time: customer and time in windows of each purchase; end_W: the last.
    """
    correlation_C = worlds.spend_rate[world_C]
    noise_C = correlation_C * rate_noise_C + np.sqrt(1 - correlation_C**2) * rng.standard_normal(len(world_C))
    log_mean = (worlds.spend_spread[world_C] * noise_C)[who]
    log_mean = log_mean + _level(worlds, world_C, who, time, end_W, rng)
    world = world_C[who]
    shape = worlds.spend_shape[world]
    if (worlds.spend_shape_spread > 0).any():
        spread_C = worlds.spend_shape_spread[world_C] * rng.standard_normal(len(world_C))
        # Customers of one kind keep their world's shape, whatever it is.
        shape = np.where(spread_C[who] == 0, shape, np.clip(shape * np.exp(spread_C[who]), 0.3, 100.0))
    sigma = np.sqrt(np.log1p(1 / shape))
    gamma = rng.standard_gamma(shape) / shape
    log_normal = np.exp(sigma * rng.standard_normal(len(who)) - sigma**2 / 2)
    one = np.where(worlds.spend_log_normal[world], log_normal, gamma)
    paid = rng.random(len(who)) >= worlds.free[world]
    if (worlds.big_share > 0).any():
        log_mean = log_mean + worlds.big[world] * (rng.random(len(who)) < worlds.big_share[world])
    return np.where(paid, np.exp(log_mean + worlds.inflation[world] * time) * one, 0.0)


def _level(
    worlds: Hyperparameters,
    world_C: np.ndarray,
    who: np.ndarray,
    time: np.ndarray,
    end_W: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Of each purchase: how far its customer's log mean spend is from where it comes back to."""
    moving = np.flatnonzero((worlds.spend_wander > 0)[world_C])
    if not len(moving):
        return np.zeros(len(who))
    row_C = np.full(len(world_C), -1)
    row_C[moving] = np.arange(len(moving))
    world_R = world_C[moving]
    state_RK = wandering(worlds.spend_time[world_R], end_W[world_R] / NUM_STEPS, NUM_STEPS, rng)
    step = np.clip((time / end_W[world_C[who]] * NUM_STEPS).astype(np.int64), 0, NUM_STEPS - 1)
    row = row_C[who]
    return np.where(row >= 0, worlds.spend_wander[world_C[who]] * state_RK[row, step], 0.0)
