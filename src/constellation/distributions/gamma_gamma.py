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

    def sample_total(
        self, x_C: np.ndarray, mean_spend_C: np.ndarray, purchases_CS: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """[C, S], money of the given numbers of future purchases: one posterior draw of nu for each, 0 for none."""
        x_C = np.asarray(x_C, dtype=np.float64)
        total_C1 = np.where(x_C > 0, x_C * mean_spend_C, 0.0)[:, None]
        rate_CS = rng.gamma(self.p * x_C[:, None] + self.q, size=purchases_CS.shape) / (self.v + total_C1)
        spend_CS = rng.gamma(self.p * np.maximum(purchases_CS, 1)) / np.maximum(rate_CS, 1e-300)
        return np.where(purchases_CS > 0, spend_CS, 0.0)
