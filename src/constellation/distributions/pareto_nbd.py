"""Pareto/NBD: customers buy at a Poisson rate until an unobserved exponential lifetime ends.

Schmittlein, Morrison, Colombo (1987); Fader and Hardie (2005), "A note on deriving the Pareto/NBD model".
Rates ~ Gamma(r, alpha), death rates ~ Gamma(s, beta). x, t_x, T, h as in ``bgnbd``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import special

from constellation.distributions.maximum_likelihood import as_rows, check_recency_frequency, grouped, maximise
from constellation.distributions.pareto_nbd_rows import ParetoNbdRows


def _softened_nodes(num_nodes: int, power: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre for w in (0, 1) with w = 1 - (1 - v)^power: 1 - w [M] and the log weights [M].

    The integrands below have a fractional power of 1 - w at their end; the substitution makes it smooth.
    """
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    rest = 0.5 * (1 - nodes)
    return rest**power, np.log(0.5 * weights * power * rest ** (power - 1))


REST_M, LOG_NODE_WEIGHT_M = _softened_nodes(32, 3)
CELLS = 1 << 21
"""Rows times nodes evaluated at once: 16 MiB an array."""


@dataclass(frozen=True)
class ParetoNbd:
    """Parameters r, alpha (time units), s, beta (time units); all positive."""

    r: float
    alpha: float
    s: float
    beta: float

    @classmethod
    def fit(cls, x_C: np.ndarray, t_x_C: np.ndarray, T_C: np.ndarray) -> ParetoNbd:
        """Maximum likelihood. Raises InputError for impossible rows."""
        check_recency_frequency(x_C, t_x_C, T_C)
        (x_C, t_x_C, T_C), weight_C = grouped(x_C, t_x_C, T_C)

        def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
            log_likelihood_C, gradient_CP = cls(*parameters)._log_likelihood_and_gradient(x_C, t_x_C, T_C)
            return float(weight_C @ log_likelihood_C), weight_C @ gradient_CP

        scale = max(float(weight_C @ T_C / weight_C.sum()), 1e-3)
        starts = [(0.5, 0.3 * scale, 0.5, 0.3 * scale), (2.0, 0.3 * scale, 0.5, 5.0 * scale)]
        parameters, _ = maximise(objective, starts)
        return cls(*parameters.tolist())

    def log_likelihood(self, x_C: np.ndarray, t_x_C: np.ndarray, T_C: np.ndarray) -> np.ndarray:
        """[C], natural log; eq. (17) of the note. Absolute error about 1e-13, at most 1e-4 in odd corners."""
        return self._log_likelihood_and_gradient(x_C, t_x_C, T_C)[0]

    def _log_likelihood_and_gradient(
        self, x_C: np.ndarray, t_x_C: np.ndarray, T_C: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        x_C, t_x_C, T_C = np.broadcast_arrays(*(np.asarray(each, dtype=np.float64) for each in (x_C, t_x_C, T_C)))
        chunks = range(0, len(x_C), CELLS // len(REST_M))
        parts = [self._of_chunk(*(each[start : start + chunks.step] for each in (x_C, t_x_C, T_C))) for start in chunks]
        if not parts:
            return np.zeros(0), np.zeros((0, 4))
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    def _of_chunk(self, x_C: np.ndarray, t_x_C: np.ndarray, T_C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Alive at T, or died at some tau in (t_x, T]:

        L = Γ(r+x)/Γ(r) α^r β^s [(α+T)^-(r+x) (β+T)^-s + s ∫ (α+τ)^-(r+x) (β+τ)^-(s+1) dτ].

        The integral equals the note's difference of two hypergeometric functions. By quadrature it needs no case
        distinction, loses nothing to cancellation, and yields the gradient from the same nodes.
        """
        r, alpha, s, beta = self.r, self.alpha, self.s, self.beta
        log_tau_weight_CM, log_alpha_CM, log_beta_CM = self._nodes(x_C, t_x_C, T_C)
        died_CM = np.log(s) - (r + x_C[:, None]) * log_alpha_CM - (s + 1) * log_beta_CM + log_tau_weight_CM
        alive_C = -(r + x_C) * np.log(alpha + T_C) - s * np.log(beta + T_C)
        log_sum_C = special.logsumexp(np.column_stack([died_CM, alive_C]), axis=1)
        p_died_CM = np.exp(died_CM - log_sum_C[:, None])
        p_alive_C = np.exp(alive_C - log_sum_C)
        common_C = special.gammaln(r + x_C) - special.gammaln(r) + r * np.log(alpha) + s * np.log(beta)
        over_alpha_C = (p_died_CM * np.exp(-log_alpha_CM)).sum(1) + p_alive_C / (alpha + T_C)
        over_beta_died_C = (p_died_CM * np.exp(-log_beta_CM)).sum(1)
        gradient_CP = np.stack(
            [
                special.digamma(r + x_C) - special.digamma(r) + np.log(alpha)
                - (p_died_CM * log_alpha_CM).sum(1) - p_alive_C * np.log(alpha + T_C),
                r / alpha - (r + x_C) * over_alpha_C,
                np.log(beta) + p_died_CM.sum(1) / s - (p_died_CM * log_beta_CM).sum(1) - p_alive_C * np.log(beta + T_C),
                s / beta - (s + 1) * over_beta_died_C - s * p_alive_C / (beta + T_C),
            ],
            axis=-1,
        )  # fmt: skip
        return common_C + log_sum_C, gradient_CP

    def _nodes(self, x_C: np.ndarray, t_x_C: np.ndarray, T_C: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Quadrature of tau over (t_x, T]: log weight, log(alpha + tau), log(beta + tau), each [C, M].

        Let m be the scale of the factor that falls faster at t_x, and y = log((m + tau) / (m + t_x)). The integrand
        falls nearly like exp(-c y); nodes are spread evenly in the mass of that exponential, so that the same few
        serve for one purchase and for five hundred.
        """
        alpha_falls_C = (self.r + x_C) * (self.beta + t_x_C) >= (self.s + 1) * (self.alpha + t_x_C)
        power_m_C = np.where(alpha_falls_C, self.r + x_C, self.s + 1)
        power_other_C = np.where(alpha_falls_C, self.s + 1, self.r + x_C)
        start_C = np.where(alpha_falls_C, self.alpha, self.beta) + t_x_C
        other_C = np.where(alpha_falls_C, self.beta, self.alpha) + t_x_C
        length_C = np.log1p((T_C - t_x_C) / start_C)
        c_C = power_m_C - 1 + power_other_C * start_C / other_C
        c_C = np.where(np.abs(c_C * length_C) < 1e-6, 1e-6 / np.maximum(length_C, 1e-12), c_C)
        end_C = np.exp(-c_C * length_C)
        # 1 - w mass, written so that it loses nothing where w and the mass are both close to 1
        rest_CM = REST_M + (1 - REST_M) * end_C[:, None]
        y_CM = -np.log(rest_CM) / c_C[:, None]
        elapsed_CM = start_C[:, None] * np.expm1(y_CM)  # tau - t_x
        with np.errstate(divide="ignore"):  # T = t_x leaves an interval of no length: weight 0, log -inf
            log_scale_C = np.log(-np.expm1(-c_C * length_C) * start_C / c_C)
        # dtau = (m + tau) dy and dy = (mass / c) exp(c y) dw
        log_weight_CM = log_scale_C[:, None] + (c_C[:, None] + 1) * y_CM + LOG_NODE_WEIGHT_M
        tau_CM = t_x_C[:, None] + elapsed_CM
        return log_weight_CM, np.log(self.alpha + tau_CM), np.log(self.beta + tau_CM)

    def p_alive(self, x_C: np.ndarray, t_x_C: np.ndarray, T_C: np.ndarray) -> np.ndarray:
        """[C], P(lifetime > T | record)."""
        r, alpha, s, beta = self.r, self.alpha, self.s, self.beta
        x_C, T_C = np.asarray(x_C, dtype=np.float64), np.asarray(T_C, dtype=np.float64)
        log_alive_C = (
            special.gammaln(r + x_C) - special.gammaln(r) + r * np.log(alpha) + s * np.log(beta)
            - (r + x_C) * np.log(alpha + T_C) - s * np.log(beta + T_C)
        )  # fmt: skip
        return np.exp(np.minimum(log_alive_C - self.log_likelihood(x_C, t_x_C, T_C), 0.0))

    def expected_purchases(
        self, x_C: np.ndarray, t_x_C: np.ndarray, T_C: np.ndarray, h: float | np.ndarray
    ) -> np.ndarray:
        """[C], expected purchases in (T, T + h]; eq. (41) of the note, with its limit at s = 1."""
        x_C, T_C = np.asarray(x_C, dtype=np.float64), np.asarray(T_C, dtype=np.float64)
        log_ratio_C = -np.log1p(h / (self.beta + T_C))
        # [1 - ratio^(s-1)] / (s-1)
        lifetime_C = -log_ratio_C * special.exprel((self.s - 1) * log_ratio_C)
        return self.p_alive(x_C, t_x_C, T_C) * (self.r + x_C) * (self.beta + T_C) / (self.alpha + T_C) * lifetime_C

    def p_zero(self, x_C: np.ndarray, t_x_C: np.ndarray, T_C: np.ndarray, h: float | np.ndarray) -> np.ndarray:
        """[C], P(no purchase in (T, T + h]): the likelihood of the same record watched longer, over that of now."""
        log_ratio_C = self.log_likelihood(x_C, t_x_C, T_C + h) - self.log_likelihood(x_C, t_x_C, T_C)
        return np.exp(np.minimum(log_ratio_C, 0.0))

    def count_pmf(self, x_C: np.ndarray, t_x_C: np.ndarray, T_C: np.ndarray, h: float, num_counts: int) -> np.ndarray:
        """[C, num_counts], P(y purchases in (T, T + h]) for y = 0, 1, ..; see ``ParetoNbdRows``."""
        x, t_x, T = as_rows(x_C, t_x_C, T_C)
        return self.rows(len(x_C)).count_pmf(x, t_x, T, h, num_counts).numpy()

    def rows(self, num_rows: int) -> ParetoNbdRows:
        """The same parameters for each of so many rows."""
        parameters = (self.r, self.alpha, self.s, self.beta)
        return ParetoNbdRows(*(torch.full((num_rows,), each, dtype=torch.float64) for each in parameters))

    def sample_purchases(
        self, x_C: np.ndarray, t_x_C: np.ndarray, T_C: np.ndarray, h: float, num_samples: int, rng: np.random.Generator
    ) -> np.ndarray:
        """int64 [C, num_samples] draws from the posterior predictive of purchases in (T, T + h], parameters fixed.

        Given alive, the posterior is exactly rate ~ Gamma(r + x, alpha + T), death rate ~ Gamma(s, beta + T).
        """
        shape = (len(x_C), num_samples)
        x_C1, T_C1 = np.asarray(x_C, dtype=np.float64)[:, None], np.asarray(T_C, dtype=np.float64)[:, None]
        alive_CS = rng.random(shape) < self.p_alive(x_C, t_x_C, T_C)[:, None]
        death_rate_CS = np.maximum(rng.gamma(self.s, size=shape) / (self.beta + T_C1), 1e-300)
        watched_CS = np.minimum(rng.exponential(size=shape) / death_rate_CS, h)
        rate_CS = rng.gamma(self.r + x_C1, size=shape) / (self.alpha + T_C1)
        return rng.poisson(np.where(alive_CS, rate_CS * watched_CS, 0.0))
