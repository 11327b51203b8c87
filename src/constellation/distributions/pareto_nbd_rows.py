"""Pareto/NBD with parameters of its own in every row, differentiable: for heads and for covariates.

Formulae as in ``pareto_nbd``; torch, float64. With the same parameters in all rows this is the classical model.
"""

from __future__ import annotations

import functools
from typing import Any

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
        record = x_Q.double(), t_x_Q.double(), T_Q.double()
        # Any placing of the nodes gives the same integral, so no gradient needs to pass through it.
        with torch.no_grad():
            tau_QM, log_weight_QM = self._death_times(*record)
        return _LogLikelihood.apply(  # type: ignore[no-any-return]
            self.r_Q, self.alpha_Q, self.s_Q, self.beta_Q, record[0], record[2], tau_QM, log_weight_QM
        )

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


class _LogLikelihood(torch.autograd.Function):
    """log L = lnG(r + x) - lnG(r) + r ln alpha + s ln beta + ln sum_m exp(term_m), whose last term is to be alive at T:
    term_m = ln w_m + ln s - (r + x) ln(alpha + tau_m) - (s + 1) ln(beta + tau_m), at T without w, ln s and the 1.

    The gradient is written down, with p the softmax of the terms: half of what autograd takes on a training step's few
    hundred rows.
    """

    @staticmethod
    def forward(
        ctx: Any,
        r_Q: Tensor,
        alpha_Q: Tensor,
        s_Q: Tensor,
        beta_Q: Tensor,
        x_Q: Tensor,
        T_Q: Tensor,
        tau_QM: Tensor,
        log_weight_QM: Tensor,
    ) -> Tensor:
        time_QN = torch.cat([tau_QM, T_Q.expand(len(tau_QM)).unsqueeze(-1)], dim=-1)
        buying_QN, leaving_QN = alpha_Q.unsqueeze(-1) + time_QN, beta_Q.unsqueeze(-1) + time_QN
        log_buying_QN, log_leaving_QN = buying_QN.log(), leaving_QN.log()
        log_alpha_Q, log_beta_Q, bought_Q = alpha_Q.log(), beta_Q.log(), r_Q + x_Q
        term_QN = torch.addcmul(-s_Q.unsqueeze(-1) * log_leaving_QN, bought_Q.unsqueeze(-1), log_buying_QN, value=-1)
        term_QN[:, :-1] += log_weight_QM + s_Q.log().unsqueeze(-1) - log_leaving_QN[:, :-1]
        log_sum_Q = torch.logsumexp(term_QN, dim=-1)
        ctx.save_for_backward(
            r_Q, alpha_Q, s_Q, beta_Q, bought_Q, log_alpha_Q, log_beta_Q, log_sum_Q,
            term_QN, buying_QN, leaving_QN, log_buying_QN, log_leaving_QN,
        )  # fmt: skip
        return torch.lgamma(bought_Q) - torch.lgamma(r_Q) + r_Q * log_alpha_Q + s_Q * log_beta_Q + log_sum_Q

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_Q: Tensor) -> tuple[Tensor | None, ...]:
        (r_Q, alpha_Q, s_Q, beta_Q, bought_Q, log_alpha_Q, log_beta_Q, log_sum_Q,
         term_QN, buying_QN, leaving_QN, log_buying_QN, log_leaving_QN) = ctx.saved_tensors  # fmt: skip
        share_QN = (term_QN - log_sum_Q.unsqueeze(-1)).exp_()
        per_leaving_QN = share_QN / leaving_QN
        died_Q, died_per_leaving_Q = 1 - share_QN[:, -1], per_leaving_QN[:, :-1].sum(-1)
        of_r_Q = torch.digamma(bought_Q) - torch.digamma(r_Q) + log_alpha_Q - (share_QN * log_buying_QN).sum(-1)
        of_alpha_Q = r_Q / alpha_Q - bought_Q * (share_QN / buying_QN).sum(-1)
        of_s_Q = log_beta_Q + died_Q / s_Q - (share_QN * log_leaving_QN).sum(-1)
        of_beta_Q = s_Q / beta_Q - s_Q * per_leaving_QN.sum(-1) - died_per_leaving_Q
        return *(grad_Q * each for each in (of_r_Q, of_alpha_Q, of_s_Q, of_beta_Q)), None, None, None, None


def _plain_nodes(num_nodes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre on (0, 1)."""
    nodes, weights = _legendre(num_nodes)
    return torch.tensor(0.5 * (1 + nodes), device=device), torch.tensor(0.5 * weights, device=device)


def _nodes(num_nodes: int, power: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre for w in (0, 1) with w = 1 - (1 - v)^power: 1 - w [M] and the log weights [M]."""
    nodes, weights = _legendre(num_nodes)
    rest = 0.5 * (1 - nodes)
    log_weight = np.log(0.5 * weights * power * rest ** (power - 1))
    return torch.tensor(rest**power, device=device), torch.tensor(log_weight, device=device)


@functools.cache
def _legendre(num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Found once: a training step asks twice, and the roots of a polynomial take as long as the rest. As arrays, for
    a tensor made in inference mode could not be learned through later."""
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    nodes.flags.writeable = weights.flags.writeable = False
    return nodes, weights
