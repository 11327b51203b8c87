"""A world's common clock: intensity over the calendar, and the way from business time back to calendar time."""

from __future__ import annotations

import numpy as np

from constellation.worlds.prior.hyperparameters import Hyperparameters

NUM_KNOTS = 97


class Calendar:
    """Intensity of buying by time, common to a world's customers; 1 in the mean over the window ``[0, 1]``.

    start_W: when the first customer may have come (0 or before); end_W: end of the horizon. Piecewise linear business
    time on ``NUM_KNOTS`` knots.
    """

    def __init__(self, worlds: Hyperparameters, start_W: np.ndarray, end_W: np.ndarray, rng: np.random.Generator):
        self.start_W, self.width_W = start_W, (end_W - start_W) / (NUM_KNOTS - 1)
        time_WG = start_W[:, None] + self.width_W[:, None] * (np.arange(NUM_KNOTS - 1) + 0.5)
        steps_WG = rng.standard_normal(time_WG.shape) * np.sqrt(self.width_W)[:, None]
        season_WG = np.sin(2 * np.pi * (time_WG / worlds.season_period[:, None] + worlds.season_phase[:, None]))
        log_WG = (
            worlds.trend[:, None] * time_WG
            + worlds.season[:, None] * season_WG
            + worlds.shock[:, None] * steps_WG.cumsum(axis=1)
            + worlds.spikes[:, None] * rng.standard_normal(time_WG.shape)
        )
        intensity_WG = np.exp(log_WG)
        inside_WG = (time_WG >= 0) & (time_WG < 1)
        mean_W = (intensity_WG * inside_WG).sum(axis=1) / np.maximum(inside_WG.sum(axis=1), 1)
        self.intensity_WG = intensity_WG / np.where(mean_W > 0, mean_W, 1.0)[:, None]
        business_WG = np.cumsum(self.intensity_WG * self.width_W[:, None], axis=1)
        self.business_WG = np.concatenate([np.zeros((len(start_W), 1)), business_WG], axis=1)

    def business_time(self, world: np.ndarray, time: np.ndarray) -> np.ndarray:
        """Business time at calendar times, both in windows; arrays of one shape."""
        place = np.clip((time - self.start_W[world]) / self.width_W[world], 0.0, NUM_KNOTS - 1)
        low = np.minimum(place.astype(np.int64), NUM_KNOTS - 2)
        return self.business_WG[world, low] + (place - low) * self.width_W[world] * self.intensity_WG[world, low]

    def time(self, world: np.ndarray, business: np.ndarray) -> np.ndarray:
        """The inverse of :meth:`business_time`; infinite beyond the end of the horizon."""
        low = knot_below(self.business_WG, world, business)
        ahead = (business - self.business_WG[world, low]) / self.intensity_WG[world, low]
        found = self.start_W[world] + low * self.width_W[world] + ahead
        return np.where(business >= self.business_WG[world, -1], np.inf, found)


def knot_below(rising_RK: np.ndarray, row: np.ndarray, value: np.ndarray) -> np.ndarray:
    """The last knot but one at most, at or below each value, of that value's row; rows rise from 0."""
    # One sorted list for all rows: row r's values lie in [2 r, 2 r + 1].
    num_rows, num_knots = rising_RK.shape
    total_R = rising_RK[:, -1]
    keys = (rising_RK / total_R[:, None] + 2.0 * np.arange(num_rows)[:, None]).ravel()
    share = np.minimum(value / total_R[row], 1.5)
    place = np.searchsorted(keys, share + 2.0 * row, side="right") - 1 - row * num_knots
    return np.clip(place, 0, num_knots - 2)
