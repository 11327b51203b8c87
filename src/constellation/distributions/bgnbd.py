"""BG/NBD: customers buy at a Poisson rate and may leave after any purchase.

Fader, Hardie, Lee (2005), "Counting your customers the easy way". Rates ~ Gamma(r, alpha), dropout ~ Beta(a, b).
Throughout: x = repeat purchases, t_x = time of the last of them since the first purchase, T = time watched since the
first purchase, h = horizon; one time unit for all (weeks by custom); all arrays [C] or broadcastable, float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy import special

from constellation.distributions.bgnbd_rows import BgNbdRows
from constellation.distributions.maximum_likelihood import as_rows, check_recency_frequency, grouped, maximise


@dataclass(frozen=True)
class BgNbd:
    """Parameters r, alpha (time units), a, b; all positive."""

    r: float
    alpha: float
    a: float
    b: float

    flips_at_start: ClassVar[int] = 0
    """Chances to leave that the first purchase brings: none here, one in ``MbgNbd``."""

    @classmethod
    def fit(cls, x_C: np.ndarray, t_x_C: np.ndarray, T_C: np.ndarray) -> BgNbd:
        """Maximum likelihood. Raises InputError for impossible rows."""
        check_recency_frequency(x_C, t_x_C, T_C)
        (x_C, t_x_C, T_C), weight_C = grouped(x_C, t_x_C, T_C)

        def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
            log_likelihood_C, gradient_CP = cls(*parameters)._log_likelihood_and_gradient(x_C, t_x_C, T_C)
            return float(weight_C @ log_likelihood_C), weight_C @ gradient_CP

        scale = max(float(weight_C @ T_C / weight_C.sum()), 1e-3)
        parameters, _ = maximise(objective, [(0.5, 0.2 * scale, 0.5, 2.0), (2.0, 0.2 * scale, 0.1, 10.0)])
        return cls(*parameters.tolist())

    def log_likelihood(self, x_C: np.ndarray, t_x_C: np.ndarray, T_C: np.ndarray) -> np.ndarray:
        """[C], natural log; eq. (6) of the paper, without the constant binomial term as is the custom."""
        return self._log_likelihood_and_gradient(x_C, t_x_C, T_C)[0]

    def _log_likelihood_and_gradient(
        self, x_C: np.ndarray, t_x_C: np.ndarray, T_C: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        r, alpha, a, b = self.r, self.alpha, self.a, self.b
        x_C, t_x_C, T_C = np.broadcast_arrays(*(np.asarray(each, dtype=np.float64) for each in (x_C, t_x_C, T_C)))
        flips_C = x_C + self.flips_at_start
        flipped_C = np.maximum(flips_C, 1.0)  # rows without a flip have no second term; this keeps their logarithm real
        common_C = (
            special.gammaln(r + x_C) - special.gammaln(r) + r * np.log(alpha)
            + special.gammaln(a + b) + special.gammaln(b + flips_C)
            - special.gammaln(b) - special.gammaln(a + b + flips_C)
        )  # fmt: skip
        alive_C = -(r + x_C) * np.log(alpha + T_C)
        left_C = np.log(a) - np.log(b + flipped_C - 1) - (r + x_C) * np.log(alpha + t_x_C)
        left_C = np.where(flips_C > 0, left_C, -np.inf)
        log_sum_C = np.logaddexp(alive_C, left_C)
        p_left_C = np.exp(left_C - log_sum_C)
        p_alive_C = np.exp(alive_C - log_sum_C)
        sum_ab_C = special.digamma(a + b) - special.digamma(a + b + flips_C)
        gradient_CP = np.stack(
            [
                special.digamma(r + x_C) - special.digamma(r) + np.log(alpha)
                - p_alive_C * np.log(alpha + T_C) - p_left_C * np.log(alpha + t_x_C),
                r / alpha - (r + x_C) * (p_alive_C / (alpha + T_C) + p_left_C / (alpha + t_x_C)),
                sum_ab_C + p_left_C / a,
                sum_ab_C + special.digamma(b + flips_C) - special.digamma(b) - p_left_C / (b + flipped_C - 1),
            ],
            axis=-1,
        )  # fmt: skip
        return common_C + log_sum_C, gradient_CP

    def p_alive(self, x_C: np.ndarray, t_x_C: np.ndarray, T_C: np.ndarray) -> np.ndarray:
        """[C], P(has not left at T). It is 1 for x = 0: in this model one can only leave after a repeat purchase."""
        x_C, t_x_C, T_C = (np.asarray(each, dtype=np.float64) for each in (x_C, t_x_C, T_C))
        flips_C = x_C + self.flips_at_start
        log_odds_C = (
            np.log(self.a) - np.log(self.b + np.maximum(flips_C, 1.0) - 1)
            + (self.r + x_C) * (np.log(self.alpha + T_C) - np.log(self.alpha + t_x_C))
        )  # fmt: skip
        return np.where(flips_C > 0, special.expit(-log_odds_C), 1.0)

    def expected_purchases(
        self, x_C: np.ndarray, t_x_C: np.ndarray, T_C: np.ndarray, h: float | np.ndarray
    ) -> np.ndarray:
        """[C], expected purchases in (T, T + h].

        Given rate and dropout p the expectation is (1 - exp(-rate p h)) / p. Over the posterior rate that leaves
        E[(1 - (1 + p h / (alpha + T))^-(r + x)) / p], p ~ Beta(a, b + x), which equals eq. (10) of the paper. We
        integrate it by Gauss-Jacobi: the paper's hypergeometric function overflows for frequent buyers, and library
        versions of it return NaN or wrong signs from x of about 50 on.
        """
        x_C, T_C = np.asarray(x_C, dtype=np.float64), np.asarray(T_C, dtype=np.float64)
        distinct_x, which_C = np.unique(x_C, return_inverse=True)
        dropout_XM, weight_XM = _beta_nodes(self.a, self.b + distinct_x + self.flips_at_start)
        ratio_C = np.asarray(h, dtype=np.float64) / (self.alpha + T_C)
        expected_C = np.zeros(np.broadcast_shapes(x_C.shape, ratio_C.shape))
        for node in range(dropout_XM.shape[1]):  # a loop over a few nodes keeps memory at one column
            dropout_C = dropout_XM[which_C, node]
            still_C = -np.expm1(-(self.r + x_C) * np.log1p(dropout_C * ratio_C))
            expected_C += weight_XM[which_C, node] * still_C / dropout_C
        return self.p_alive(x_C, t_x_C, T_C) * expected_C

    def p_zero(self, x_C: np.ndarray, t_x_C: np.ndarray, T_C: np.ndarray, h: float | np.ndarray) -> np.ndarray:
        """[C], P(no purchase in (T, T + h]): the likelihood of the same record watched longer, over that of now."""
        return np.exp(self.log_likelihood(x_C, t_x_C, T_C + h) - self.log_likelihood(x_C, t_x_C, T_C))

    def count_pmf(self, x_C: np.ndarray, t_x_C: np.ndarray, T_C: np.ndarray, h: float, num_counts: int) -> np.ndarray:
        """[C, num_counts], P(y purchases in (T, T + h]) for y = 0, 1, ..: closed form, see ``BgNbdRows``."""
        x, t_x, T = as_rows(x_C, t_x_C, T_C)
        return self.rows(len(x_C)).count_pmf(x, t_x, T, h, num_counts).numpy()

    def rows(self, num_rows: int) -> BgNbdRows:
        """The same parameters for each of so many rows."""
        parameters = (
            torch.full((num_rows,), each, dtype=torch.float64) for each in (self.r, self.alpha, self.a, self.b)
        )
        return BgNbdRows(*parameters, flips_at_start=self.flips_at_start)

    def sample_purchases(
        self, x_C: np.ndarray, t_x_C: np.ndarray, T_C: np.ndarray, h: float, num_samples: int, rng: np.random.Generator
    ) -> np.ndarray:
        """int64 [C, num_samples] draws from the posterior predictive of purchases in (T, T + h], parameters fixed.

        Given alive, the posterior is exactly rate ~ Gamma(r + x, alpha + T), dropout ~ Beta(a, b + x).
        """
        shape = (len(x_C), num_samples)
        x_C1, T_C1 = np.asarray(x_C, dtype=np.float64)[:, None], np.asarray(T_C, dtype=np.float64)[:, None]
        alive_CS = rng.random(shape) < self.p_alive(x_C, t_x_C, T_C)[:, None]
        wanted_CS = rng.poisson(rng.gamma(self.r + x_C1, size=shape) * (h / (self.alpha + T_C1)))
        dropout_CS = np.maximum(rng.beta(self.a, self.b + x_C1 + self.flips_at_start, size=shape), 1e-12)
        last_CS = rng.geometric(dropout_CS)  # the purchase after which the customer leaves
        return np.where(alive_CS, np.minimum(wanted_CS, last_CS), 0)


def _beta_nodes(a: float, b_X: np.ndarray, num_nodes: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Jacobi nodes and weights [X, M] of Beta(a, b), by Golub and Welsch (1969); weights sum to 1.

    Eigenvalues of the Jacobi matrix rather than a library's rule for x^(a-1) (1-x)^(b-1): that one's normalisation
    overflows for b above a thousand.
    """
    low, high_X1 = a - 1, b_X[:, None] - 1
    k_M = np.arange(num_nodes, dtype=np.float64)
    sum_XM = 2 * k_M + low + high_X1
    with np.errstate(invalid="ignore", divide="ignore"):
        diagonal_XM = (low**2 - high_X1**2) / (sum_XM * (sum_XM + 2))
        square_XM = (
            4 * k_M * (k_M + low) * (k_M + high_X1) * (k_M + low + high_X1) / (sum_XM**2 * (sum_XM + 1) * (sum_XM - 1))
        )
    # The first terms are 0/0 for some a and b; these are their values once the common factors are gone.
    diagonal_XM[:, 0] = ((low - high_X1) / (low + high_X1 + 2))[:, 0]
    first_X1 = low + high_X1 + 2
    square_XM[:, 1] = (4 * (1 + low) * (1 + high_X1) / (first_X1**2 * (first_X1 + 1)))[:, 0]
    matrix_XMM = np.zeros((len(b_X), num_nodes, num_nodes))
    index = np.arange(num_nodes)
    matrix_XMM[:, index, index] = 0.5 * (1 + diagonal_XM)
    matrix_XMM[:, index[1:], index[:-1]] = 0.5 * np.sqrt(square_XM[:, 1:])  # eigh reads the lower triangle
    node_XM, vector_XMM = np.linalg.eigh(matrix_XMM)
    return np.clip(node_XM, 1e-300, 1.0), vector_XMM[:, 0, :] ** 2
