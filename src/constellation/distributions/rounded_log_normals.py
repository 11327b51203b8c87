"""Counts over a horizon: none, or a rounded mixture of log-normals, wider or narrower than Poisson."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from constellation.distributions.levels import as_levels
from constellation.distributions.log_normal_mixture import LogNormalMixture

EXACT = 16
"""So many terms of the mean are summed; the rest is the continuous tail's."""

TABLE = 64
"""Quantiles below it are read off a table of the cdf."""

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

    @torch.no_grad()
    def quantile(self, levels: Sequence[float] | np.ndarray | Tensor) -> Tensor:
        """[Q, L], the smallest count whose cdf reaches each level; parameters may have further dimensions before L.

        Counts are mostly small: one table of the cdf answers all levels, and the continuous law those beyond it.
        """
        parts = self.continuous
        levels_L = as_levels(levels, parts.mu_QM)
        table_QT = self._small_cdf()
        wanted_QL = levels_L.expand(*table_QT.shape[:-1], -1).contiguous()
        found_QL = torch.searchsorted(table_QT, wanted_QL).to(parts.mu_QM.dtype)
        beyond_Q = table_QT[..., -1] < levels_L.max()
        if beyond_Q.any():
            rows = (parts.logit_p_Q, parts.log_weight_QM, parts.mu_QM, parts.sigma_QM)
            far_RL = LogNormalMixture(*(part[beyond_Q] for part in rows)).quantile(levels)
            found_QL[beyond_Q] = torch.where(far_RL > 0, far_RL.round().clamp(min=1.0), torch.zeros_like(far_RL))
        return found_QL

    def _small_cdf(self) -> Tensor:
        """[Q, TABLE], P(y <= 0, 1, ..)."""
        parts = self.continuous
        log_edges_T = (torch.arange(1, TABLE, dtype=parts.mu_QM.dtype, device=parts.mu_QM.device) + 0.5).log()
        some_QT = torch.zeros((*parts.logit_p_Q.shape, TABLE - 1), dtype=parts.mu_QM.dtype, device=parts.mu_QM.device)
        each = zip(*(part.unbind(-1) for part in (parts.log_weight_QM, parts.mu_QM, parts.sigma_QM)), strict=True)
        for log_weight_Q, mu_Q, sigma_Q in each:
            z_QT = (log_edges_T - mu_Q.unsqueeze(-1)) / sigma_Q.unsqueeze(-1)
            some_QT += log_weight_Q.exp().unsqueeze(-1) * torch.special.ndtr(z_QT)
        none_Q1 = self.p_zero().unsqueeze(-1)
        return torch.cat([none_Q1, none_Q1 + (1 - none_Q1) * some_QT], dim=-1)

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
