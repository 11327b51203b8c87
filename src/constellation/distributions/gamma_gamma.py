"""Gamma-Gamma: money per purchase, given how many purchases were seen and what they cost on average.

Fader and Hardie (2013), "The Gamma-Gamma model of monetary value". Spend per purchase ~ Gamma(p, rate nu), and
nu ~ Gamma(q, rate v) over customers; independent of how often a customer buys.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

from constellation.distributions.maximum_likelihood import grouped, maximise
from constellation.errors import InputError


@dataclass(frozen=True)
class GammaGamma:
    """Parameters p, q (no unit) and v (money); all positive. The population mean is finite for q > 1 only."""

    p: float
    q: float
    v: float

    @classmethod
    def fit(cls, x_C: np.ndarray, mean_spend_C: np.ndarray) -> GammaGamma:
        """Maximum likelihood on customers with x >= 1 purchases of positive mean spend (money).

        Raises InputError when a row is neither, or when no row is left.
        """
        x_C, mean_spend_C = np.asarray(x_C, dtype=np.float64), np.asarray(mean_spend_C, dtype=np.float64)
        if not len(x_C) or not ((x_C >= 1) & (mean_spend_C > 0) & np.isfinite(mean_spend_C)).all():
            raise InputError(
                "Gamma-Gamma needs customers with at least one repeat purchase and a positive mean spend; found "
                f"{len(x_C)} rows, {int(((x_C < 1) | ~(mean_spend_C > 0)).sum())} of them without. Leave those rows "
                "out; where none is left, leave this baseline out."
            )
        # Likelihood is free of the currency: fitting in units of the typical spend keeps the optimiser's steps sane.
        unit = float(np.exp(np.mean(np.log(mean_spend_C))))
        (x_C, relative_C), weight_C = grouped(x_C, mean_spend_C / unit)

        def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
            log_likelihood_C, gradient_CP = cls(*parameters)._log_likelihood_and_gradient(x_C, relative_C)
            return float(weight_C @ log_likelihood_C), weight_C @ gradient_CP

        parameters, _ = maximise(objective, [(5.0, 4.0, 0.6), (1.0, 2.0, 1.0)])
        p, q, v = parameters.tolist()
        return cls(p, q, v * unit)

    def log_likelihood(self, x_C: np.ndarray, mean_spend_C: np.ndarray) -> np.ndarray:
        """[C], log density of the mean spend; eq. (1a) of the note."""
        return self._log_likelihood_and_gradient(x_C, mean_spend_C)[0]

    def _log_likelihood_and_gradient(self, x_C: np.ndarray, mean_spend_C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        p, q, v = self.p, self.q, self.v
        px_C = p * np.asarray(x_C, dtype=np.float64)
        total_C = x_C * np.asarray(mean_spend_C, dtype=np.float64)
        log_share_C = np.log(total_C) - np.log(total_C + v)
        log_likelihood_C = (
            special.gammaln(px_C + q) - special.gammaln(px_C) - special.gammaln(q)
            + px_C * log_share_C - np.log(mean_spend_C) + q * (np.log(v) - np.log(total_C + v))
        )  # fmt: skip
        gradient_CP = np.stack(
            [
                x_C * (special.digamma(px_C + q) - special.digamma(px_C) + log_share_C),
                special.digamma(px_C + q) - special.digamma(q) + np.log(v) - np.log(total_C + v),
                q / v - (px_C + q) / (total_C + v),
            ],
            axis=-1,
        )
        return log_likelihood_C, gradient_CP

    def expected_spend(self, x_C: np.ndarray, mean_spend_C: np.ndarray) -> np.ndarray:
        """[C], money per purchase given x purchases of that mean; eq. (5) of the note. x = 0 gives p v / (q - 1).

        Infinite where p x + q <= 1: the model then has no mean.
        """
        x_C = np.asarray(x_C, dtype=np.float64)
        total_C = np.where(x_C > 0, x_C * mean_spend_C, 0.0)
        shape_C = self.p * x_C + self.q - 1
        return np.where(shape_C > 0, self.p * (self.v + total_C) / np.where(shape_C > 0, shape_C, 1.0), np.inf)

    def total_ratio_quantiles(self, x_G: np.ndarray, pmf_GM: np.ndarray, levels: np.ndarray) -> np.ndarray:
        """[G, L], quantiles of the money of Y future purchases, over v + x z: no unit, and no money of the past needed.

        x_G: purchases whose spend is known; pmf_GM: P(Y = 0 .. M - 1), which may leave a little out. Given Y = y the
        ratio is beta prime (p y, p x + q), and its mixture over y is inverted on a grid of logs. Rows that share x
        share the grid, so a million customers cost as much as their distinct rows.
        """
        p_zero_G = pmf_GM[:, 0]
        quantiles_GL = np.zeros((len(x_G), len(levels)))
        some_GM = pmf_GM[:, 1:] / np.maximum(pmf_GM[:, 1:].sum(1, keepdims=True), 1e-300)
        level_GL = (np.asarray(levels) - p_zero_G[:, None]) / np.maximum(1 - p_zero_G[:, None], 1e-300)
        order_G = np.argsort(x_G, kind="stable")
        starts = np.flatnonzero(np.diff(x_G[order_G], prepend=-1.0))
        for rows in np.split(order_G, starts[1:]) if len(order_G) else []:
            share_M = some_GM[rows].max(axis=0)
            most = int(np.flatnonzero(share_M > 1e-9).max(initial=0)) + 1
            grid_M, cdf_YM = self._ratio_cdfs(float(x_G[rows[0]]), most)
            cdf_RM = np.maximum.accumulate(some_GM[rows, :most] @ cdf_YM, axis=1)
            found_RL = _inverted(cdf_RM, np.log(grid_M), np.clip(level_GL[rows], 0.0, 1.0))
            quantiles_GL[rows] = np.where(level_GL[rows] > 0, np.exp(found_RL), 0.0)
        return quantiles_GL

    def _ratio_cdfs(self, x: float, most: int, num_points: int = 192) -> tuple[np.ndarray, np.ndarray]:
        """A grid of ratios [M] and the cdf there for 1 .. ``most`` purchases, [most, M]."""
        shape_Y1, rest = self.p * np.arange(1, most + 1)[:, None], self.p * x + self.q
        low = special.betaincinv(shape_Y1[0, 0], rest, 1e-4)
        high = special.betaincinv(shape_Y1[-1, 0], rest, 1 - 1e-4)
        ends = [max(share, 1e-12) / max(1 - share, 1e-12) for share in (low, high)]
        grid_M = np.geomspace(ends[0], max(ends[1], ends[0] * 1.001), num_points)
        return grid_M, special.betainc(shape_Y1, rest, grid_M / (1 + grid_M))

    def sample_total(
        self, x_C: np.ndarray, mean_spend_C: np.ndarray, purchases_CS: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """[C, S], money of the given numbers of future purchases: one posterior draw of nu for each, 0 for none."""
        x_C = np.asarray(x_C, dtype=np.float64)
        total_C1 = np.where(x_C > 0, x_C * mean_spend_C, 0.0)[:, None]
        rate_CS = rng.gamma(self.p * x_C[:, None] + self.q, size=purchases_CS.shape) / (self.v + total_C1)
        spend_CS = rng.gamma(self.p * np.maximum(purchases_CS, 1)) / np.maximum(rate_CS, 1e-300)
        return np.where(purchases_CS > 0, spend_CS, 0.0)


def _inverted(cdf_RM: np.ndarray, grid_M: np.ndarray, level_RL: np.ndarray) -> np.ndarray:
    """[R, L], where each row's rising cdf reaches each level, linear between grid points."""
    # One sorted list for all rows: row r's values lie in [2 r, 2 r + 1].
    offset_R1 = 2.0 * np.arange(len(cdf_RM))[:, None]
    place_RL = np.searchsorted((cdf_RM + offset_R1).ravel(), (level_RL + offset_R1).ravel()).reshape(level_RL.shape)
    right_RL = np.clip(place_RL - np.arange(len(cdf_RM))[:, None] * len(grid_M), 1, len(grid_M) - 1)
    below_RL = np.take_along_axis(cdf_RM, right_RL - 1, axis=1)
    above_RL = np.take_along_axis(cdf_RM, right_RL, axis=1)
    share_RL = np.clip((level_RL - below_RL) / np.maximum(above_RL - below_RL, 1e-300), 0.0, 1.0)
    return grid_M[right_RL - 1] + share_RL * (grid_M[right_RL] - grid_M[right_RL - 1])
