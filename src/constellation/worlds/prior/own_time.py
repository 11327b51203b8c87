"""A customer's own clock: interest that wanders, pauses and wears off, on top of the world's common calendar."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri

from constellation.worlds.prior.calendar import knot_below
from constellation.worlds.prior.hyperparameters import Hyperparameters

NUM_STEPS = 24
"""Of a customer's time from the first day to the end of the horizon; interest is constant within a step."""

IN_PAUSE = 0.03
"""Of the usual intensity."""


def wandering(time_R: np.ndarray, step_R: np.ndarray, num_steps: int, rng: np.random.Generator) -> np.ndarray:
    """[R, num_steps], standard normal at each step, with correlation exp(-step / time) from one to the next: the
    process of Uhlenbeck and Ornstein (1930, "On the theory of the Brownian motion") in steps.
    """
    keep_R = np.exp(-step_R / time_R)
    fresh_R = np.sqrt(1 - keep_R**2)
    state_RK = rng.standard_normal((len(time_R), num_steps))
    for step in range(1, num_steps):
        state_RK[:, step] = keep_R * state_RK[:, step - 1] + fresh_R * state_RK[:, step]
    return state_RK


class OwnTime:
    """Own time of every customer, which passes as the world's business time does times the customer's own interest.

    begin_C, end_C: business time when the customer came, and at the end of the horizon.
    """

    def __init__(
        self,
        worlds: Hyperparameters,
        world_C: np.ndarray,
        begin_C: np.ndarray,
        end_C: np.ndarray,
        rng: np.random.Generator,
    ) -> None:
        moving_W = (worlds.wander > 0) | (worlds.paused > 0) | (worlds.novelty != 0)
        moving = np.flatnonzero(moving_W[world_C])
        self.begin_C, self.row_C = begin_C, np.full(len(world_C), -1)
        self.row_C[moving] = np.arange(len(moving))
        world_R = world_C[moving]
        self.end_R = end_C[moving]
        self.width_R = np.maximum(end_C[moving] - begin_C[moving], 1e-9) / NUM_STEPS

        def of(values_W: np.ndarray) -> np.ndarray:
            return values_W[world_R][:, None]

        wander_R1 = of(worlds.wander)
        state_RK = wandering(worlds.wander_time[world_R], self.width_R, NUM_STEPS, rng)
        # Less half the variance: the mean intensity stays what it is without.
        log_RK = wander_R1 * state_RK - 0.5 * wander_R1**2
        tenure_RK = self.width_R[:, None] * (np.arange(NUM_STEPS) + 0.5)
        log_RK += of(worlds.novelty) * np.exp(-tenure_RK / of(worlds.novelty_time))
        paused_R1 = of(worlds.paused)
        state_RK = wandering(worlds.pause_time[world_R], self.width_R, NUM_STEPS, rng)
        in_pause_RK = state_RK < ndtri(paused_R1)
        self.interest_RK = np.exp(log_RK) * np.where(in_pause_RK, IN_PAUSE, 1.0) / (1 - (1 - IN_PAUSE) * paused_R1)
        own_RK = np.cumsum(self.interest_RK * self.width_R[:, None], axis=1)
        self.own_RK = np.concatenate([np.zeros((len(moving), 1)), own_RK], axis=1)

    def business_time(self, customer_R: np.ndarray, own_RG: np.ndarray) -> np.ndarray:
        """[R, G], when so much own time has passed since the customer came; infinite beyond the end of the horizon."""
        business_RG = self.begin_C[customer_R][:, None] + own_RG
        moving = np.flatnonzero(self.row_C[customer_R] >= 0)
        if not len(moving):
            return business_RG
        passed = own_RG[moving]
        row = np.broadcast_to(self.row_C[customer_R[moving]][:, None], passed.shape)
        low = knot_below(self.own_RK, row, passed)
        ahead = (passed - self.own_RK[row, low]) / self.interest_RK[row, low]
        found = self.begin_C[customer_R[moving]][:, None] + low * self.width_R[row] + ahead
        business_RG[moving] = np.where(passed >= self.own_RK[row, -1], np.inf, found)
        return business_RG
