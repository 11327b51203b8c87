"""Purchase days in a horizon: none, or a rounded mixture of log-normals, wider or narrower than Poisson."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from constellation.distributions.log_normal_mixture import LogNormalMixture

EXACT = 16
"""So many terms of the mean are summed; the rest is the continuous tail's."""

TINY = 1e-12


class RoundedLogNormals:
    """0 with probability ``1 - p``; else ``max(1, round(x))`` of a mixture of log-normals. Parameters as there, [Q]."""

    def __init__(self, logit_p_Q: Tensor, weight_logits_QM: Tensor, mu_QM: Tensor, sigma_QM: Tensor) -> None:
        self.continuous = LogNormalMixture(logit_p_Q, weight_logits_QM, mu_QM, sigma_QM)

    def log_likelihood(self, count_Q: Tensor) -> Tensor:
        """[Q], natural log of P(count); whole numbers >= 0 in any dtype."""
        parts = self.continuous
        count_Q = count_Q.to(parts.mu_QM.dtype)
        some_Q = count_Q.clamp(min=1.0)
        upper_QM = ((some_Q + 0.5).log().unsqueeze(-1) - parts.mu_QM) / parts.sigma_QM
        lower_QM = ((some_Q - 0.5).log().unsqueeze(-1) - parts.mu_QM) / parts.sigma_QM
        lower_QM = torch.where(some_Q.unsqueeze(-1) == 1, torch.full_like(lower_QM, -30.0), lower_QM)
        log_mass_Q = torch.logsumexp(parts.log_weight_QM + _log_between(lower_QM, upper_QM), dim=-1)
        log_some_Q = functional.logsigmoid(parts.logit_p_Q) + log_mass_Q
        return torch.where(count_Q == 0, functional.logsigmoid(-parts.logit_p_Q), log_some_Q)

    def mean(self) -> Tensor:
        """[Q]: the sum of P(count > k); beyond ``EXACT`` the log-normals' own expected excess."""
        parts = self.continuous
        edges_K = torch.arange(1, EXACT, dtype=parts.mu_QM.dtype, device=parts.mu_QM.device) + 0.5
        z_QMK = (edges_K.log() - parts.mu_QM.unsqueeze(-1)) / parts.sigma_QM.unsqueeze(-1)
        summed_QM = 1 + torch.special.ndtr(-z_QMK).sum(-1)
        # E[(x - k)+] of a log-normal, as in the price of an option (Black and Scholes 1973, eq. 13).
        low = (parts.mu_QM - float(np.log(EXACT))) / parts.sigma_QM
        mean_QM = (parts.mu_QM + 0.5 * parts.sigma_QM.square()).clamp(max=20.0).exp()
        excess_QM = mean_QM * torch.special.ndtr(low + parts.sigma_QM) - EXACT * torch.special.ndtr(low)
        some_Q = (parts.log_weight_QM.exp() * (summed_QM + excess_QM.clamp(min=0.0))).sum(-1)
        return torch.sigmoid(parts.logit_p_Q) * some_Q

    def p_zero(self) -> Tensor:
        """[Q]."""
        return self.continuous.p_zero()

    def cdf(self, count: Tensor) -> Tensor:
        """P(y <= count), for count [Q] or [Q, L]; 0 below zero."""
        floor = count.floor().to(self.continuous.mu_QM.dtype)
        below = self.continuous.cdf(torch.where(floor >= 1, floor + 0.5, torch.zeros_like(floor)))
        return torch.where(floor < 0, torch.zeros_like(below), below)

    def quantile(self, levels: Sequence[float] | np.ndarray | Tensor) -> Tensor:
        """[Q, L], the smallest count whose cdf reaches each level."""
        found_QL = self.continuous.quantile(levels)
        return torch.where(found_QL > 0, found_QL.round().clamp(min=1.0), torch.zeros_like(found_QL))

    @torch.no_grad()
    def sample(self, num_samples: int, *, generator: torch.Generator | None = None) -> Tensor:
        """[num_samples, Q] independent draws."""
        drawn_SQ = self.continuous.sample(num_samples, generator=generator)
        return torch.where(drawn_SQ > 0, drawn_SQ.round().clamp(min=1.0), torch.zeros_like(drawn_SQ))

    def pmf(self, num_counts: int) -> Tensor:
        """[Q, num_counts], P(y = 0, 1, ..)."""
        count_K = torch.arange(num_counts, dtype=self.continuous.mu_QM.dtype)
        cdf_QK = self.cdf(count_K.expand(len(self.continuous.mu_QM), -1))
        return torch.diff(cdf_QK, dim=-1, prepend=torch.zeros_like(cdf_QK[:, :1])).clamp(min=0.0)


def _log_between(low: Tensor, high: Tensor) -> Tensor:
    """log(Phi(high) - Phi(low)) for low < high, in whichever tail both are: differences of tails do not cancel."""
    flip = low > 0
    left, right = torch.where(flip, -high, low), torch.where(flip, -low, high)
    log_right, log_left = torch.special.log_ndtr(right), torch.special.log_ndtr(left)
    return log_right + torch.log((-torch.expm1((log_left - log_right).clamp(max=-1e-7))).clamp(min=TINY))
