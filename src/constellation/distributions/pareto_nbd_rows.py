"""Pareto/NBD with parameters of its own in every row, differentiable: for heads and for covariates.

Formulae as in ``pareto_nbd``; torch, float64. With the same parameters in all rows this is the classical model.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from constellation.distributions.count_tables import at_least, from_at_least, negative_binomial_pmf

NUM_NODES, SOFTENING = 32, 3
"""Quadrature of the time of death in the likelihood; see ``pareto_nbd``, which has the reasons."""

COUNT_NODES = 48
"""Quadrature of the lifetime within the horizon, in equal shares of its probability."""


class ParetoNbdRows:
    """r_Q, alpha_Q (time units), s_Q, beta_Q (time units): positive, all of one shape [Q]; promoted to float64.

    Records x, t_x, T and horizons h are [Q] tensors (h may be a number), in the time unit of alpha and beta.
    """

    def __init__(self, r_Q: Tensor, alpha_Q: Tensor, s_Q: Tensor, beta_Q: Tensor) -> None:
        self.r_Q, self.alpha_Q, self.s_Q, self.beta_Q = (each.double() for each in (r_Q, alpha_Q, s_Q, beta_Q))

    def log_likelihood(self, x_Q: Tensor, t_x_Q: Tensor, T_Q: Tensor) -> Tensor:
        """[Q], natural log: alive at T, or dead at some time in (t_x, T], by quadrature over that time."""
        x_Q, t_x_Q, T_Q = x_Q.double(), t_x_Q.double(), T_Q.double()
        r, alpha, s, beta = self.r_Q, self.alpha_Q, self.s_Q, self.beta_Q
        # Any placing of the nodes gives the same integral, so no gradient needs to pass through it.
        with torch.no_grad():
            tau_QM, log_weight_QM = self._death_times(x_Q, t_x_Q, T_Q)
        died_QM = (
            s.log().unsqueeze(-1)
            - (r + x_Q).unsqueeze(-1) * (alpha.unsqueeze(-1) + tau_QM).log()
            - (s + 1).unsqueeze(-1) * (beta.unsqueeze(-1) + tau_QM).log()
            + log_weight_QM
        )
        alive_Q = -(r + x_Q) * (alpha + T_Q).log() - s * (beta + T_Q).log()
        log_sum_Q = torch.logsumexp(torch.cat([died_QM, alive_Q.unsqueeze(-1)], dim=-1), dim=-1)
        return torch.lgamma(r + x_Q) - torch.lgamma(r) + r * alpha.log() + s * beta.log() + log_sum_Q

    def _death_times(self, x_Q: Tensor, t_x_Q: Tensor, T_Q: Tensor) -> tuple[Tensor, Tensor]:
        """Times in (t_x, T] and log weights, [Q, M], spread evenly in the mass of the exponential that fits best."""
        r, alpha, s, beta = self.r_Q, self.alpha_Q, self.s_Q, self.beta_Q
        alpha_falls_Q = (r + x_Q) * (beta + t_x_Q) >= (s + 1) * (alpha + t_x_Q)
        power_m_Q = torch.where(alpha_falls_Q, r + x_Q, s + 1)
        power_other_Q = torch.where(alpha_falls_Q, s + 1, r + x_Q)
        start_Q = torch.where(alpha_falls_Q, alpha, beta) + t_x_Q
        other_Q = torch.where(alpha_falls_Q, beta, alpha) + t_x_Q
        length_Q = torch.log1p((T_Q - t_x_Q) / start_Q)
        c_Q = power_m_Q - 1 + power_other_Q * start_Q / other_Q
        c_Q = torch.where((c_Q * length_Q).abs() < 1e-6, 1e-6 / length_Q.clamp(min=1e-12), c_Q)
        rest_M, log_node_weight_M = _nodes(NUM_NODES, SOFTENING, x_Q.device)
        end_Q1 = torch.exp(-c_Q * length_Q).unsqueeze(-1)
        y_QM = -(rest_M + (1 - rest_M) * end_Q1).log() / c_Q.unsqueeze(-1)
        elapsed_QM = start_Q.unsqueeze(-1) * torch.expm1(y_QM)
        mass_Q = -torch.expm1(-c_Q * length_Q) * start_Q / c_Q
        # An interval of no length weighs nothing; -700 instead of -inf keeps the gradient of logsumexp a number.
        log_scale_Q = torch.where(mass_Q > 0, mass_Q.clamp(min=1e-300).log(), torch.full_like(mass_Q, -700.0))
        log_weight_QM = log_scale_Q.unsqueeze(-1) + (c_Q.unsqueeze(-1) + 1) * y_QM + log_node_weight_M
        return t_x_Q.unsqueeze(-1) + elapsed_QM, log_weight_QM

    def p_alive(self, x_Q: Tensor, t_x_Q: Tensor, T_Q: Tensor) -> Tensor:
        """[Q], P(lifetime > T | record)."""
        x_Q, T_Q = x_Q.double(), T_Q.double()
        r, alpha, s, beta = self.r_Q, self.alpha_Q, self.s_Q, self.beta_Q
        log_alive_Q = (
            torch.lgamma(r + x_Q) - torch.lgamma(r) + r * alpha.log() + s * beta.log()
            - (r + x_Q) * (alpha + T_Q).log() - s * (beta + T_Q).log()
        )  # fmt: skip
        return (log_alive_Q - self.log_likelihood(x_Q, t_x_Q, T_Q)).clamp(max=0.0).exp()

    def expected_purchases(self, x_Q: Tensor, t_x_Q: Tensor, T_Q: Tensor, h: Tensor | float) -> Tensor:
        """[Q], expected purchases in (T, T + h]; eq. (41) of Fader and Hardie's note, with its limit at s = 1."""
        x_Q, T_Q = x_Q.double(), T_Q.double()
        log_ratio_Q = -torch.log1p(h / (self.beta_Q + T_Q))
        exponent_Q = (self.s_Q - 1) * log_ratio_Q
        small_Q = exponent_Q.abs() < 1e-5
        safe_Q = torch.where(small_Q, torch.ones_like(exponent_Q), exponent_Q)
        exprel_Q = torch.where(small_Q, 1 + exponent_Q / 2, torch.expm1(safe_Q) / safe_Q)
        rate_Q = (self.r_Q + x_Q) * (self.beta_Q + T_Q) / (self.alpha_Q + T_Q)
        return self.p_alive(x_Q, t_x_Q, T_Q) * rate_Q * -log_ratio_Q * exprel_Q

    def p_zero(self, x_Q: Tensor, t_x_Q: Tensor, T_Q: Tensor, h: Tensor | float) -> Tensor:
        """[Q], P(no purchase in (T, T + h]): the likelihood of the same record watched longer, over that of now."""
        x_Q, t_x_Q, T_Q = x_Q.double(), t_x_Q.double(), T_Q.double()
        later_Q = self.log_likelihood(x_Q, t_x_Q, T_Q + h)
        return (later_Q - self.log_likelihood(x_Q, t_x_Q, T_Q)).clamp(max=0.0).exp()

    def count_pmf(self, x_Q: Tensor, t_x_Q: Tensor, T_Q: Tensor, h: Tensor | float, num_counts: int) -> Tensor:
        """[Q, M], P(y purchases in (T, T + h]), y = 0 .. M - 1.

        P(Y >= n | alive) is the mean over the lifetime L of P(W(min(L, h)) >= n), W(t) negative binomial: falling in n
        for every lifetime, so no probability comes out below zero. The last cell is left empty.
        """
        x_Q, T_Q = x_Q.double(), T_Q.double()
        shape_Q, alpha_Q = self.r_Q + x_Q, self.alpha_Q + T_Q
        share_M, weight_M = _plain_nodes(COUNT_NODES, x_Q.device)
        log_outlives_Q = -self.s_Q * torch.log1p(h / (self.beta_Q + T_Q))
        outlives_Q1 = log_outlives_Q.exp().unsqueeze(-1)
        # The lifetime at which a share of those who die within the horizon are dead.
        log_survives_QM = torch.log1p(share_M * torch.expm1(log_outlives_Q).unsqueeze(-1))
        life_QM = (self.beta_Q + T_Q).unsqueeze(-1) * torch.expm1(-log_survives_QM / self.s_Q.unsqueeze(-1))
        reaches = outlives_Q1 * at_least(negative_binomial_pmf(shape_Q, h / alpha_Q, num_counts))
        for node, weight in enumerate(weight_M.tolist()):  # a loop over nodes keeps memory at one table
            odds_Q = (life_QM[:, node] / alpha_Q).clamp(min=1e-300)
            reaches = reaches + (1 - outlives_Q1) * weight * at_least(
                negative_binomial_pmf(shape_Q, odds_Q, num_counts)
            )
        alive_Q1 = self.p_alive(x_Q, t_x_Q, T_Q).unsqueeze(-1)
        some_QM = alive_Q1 * from_at_least(reaches)[:, 1:]
        return torch.cat([1 - alive_Q1 * reaches[:, 1:2], some_QM], dim=-1)


def _plain_nodes(num_nodes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre on (0, 1)."""
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    return torch.tensor(0.5 * (1 + nodes), device=device), torch.tensor(0.5 * weights, device=device)


def _nodes(num_nodes: int, power: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre for w in (0, 1) with w = 1 - (1 - v)^power: 1 - w [M] and the log weights [M]."""
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    rest = 0.5 * (1 - nodes)
    log_weight = np.log(0.5 * weights * power * rest ** (power - 1))
    return torch.tensor(rest**power, device=device), torch.tensor(log_weight, device=device)
