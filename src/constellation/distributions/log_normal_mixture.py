"""Zero, or one of several log-normals: a mixture of sub-distributions for money that has more than one kind of buyer.

The sub-distributions of Weng et al. (2024), "OptDist: learning optimal distribution for customer lifetime value
prediction", which chooses one per customer by a Gumbel softmax. We sum over the choice: the likelihood is exact, and
needs no sampling and no second loss for the selector.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from constellation.distributions.levels import as_levels, at_least_float32
from constellation.distributions.ziln import MAX_LOG, MAX_SIGMA, MIN_SIGMA

BISECTIONS = 40


class LogNormalMixture:
    """logit_p_Q: logit of P(y > 0). weight_logits_QM, mu_QM, sigma_QM: of M log-normals, given y > 0.

    Half precision is promoted to float32; sigma is clamped as in ``ziln``. Safe to differentiate.
    """

    def __init__(self, logit_p_Q: Tensor, weight_logits_QM: Tensor, mu_QM: Tensor, sigma_QM: Tensor) -> None:
        self.logit_p_Q = at_least_float32(logit_p_Q)
        self.log_weight_QM = torch.log_softmax(at_least_float32(weight_logits_QM), dim=-1)
        self.mu_QM = at_least_float32(mu_QM)
        self.sigma_QM = at_least_float32(sigma_QM).clamp(MIN_SIGMA, MAX_SIGMA)

    def log_likelihood(self, value_Q: Tensor) -> Tensor:
        """[Q], natural log; value_Q is money, >= 0 (values below 0 count as 0)."""
        positive_Q = value_Q > 0
        log_value_Q = torch.where(positive_Q, value_Q, torch.ones_like(value_Q)).to(self.mu_QM.dtype).log()
        log_density_Q = self.log_density_of_log(log_value_Q) - log_value_Q
        log_zero_Q = functional.logsigmoid(-self.logit_p_Q)
        return torch.where(positive_Q, functional.logsigmoid(self.logit_p_Q) + log_density_Q, log_zero_Q)

    def log_density_of_log(self, log_value_Q: Tensor) -> Tensor:
        """[Q], log density of ln y given y > 0."""
        z_QM = (log_value_Q.unsqueeze(-1) - self.mu_QM) / self.sigma_QM
        log_part_QM = self.log_weight_QM - self.sigma_QM.log() - 0.5 * math.log(2 * math.pi) - 0.5 * z_QM.square()
        return torch.logsumexp(log_part_QM, dim=-1)

    def mean(self) -> Tensor:
        """[Q], in money."""
        log_part_QM = self.log_weight_QM + self.mu_QM + 0.5 * self.sigma_QM.square()
        log_mean_Q = functional.logsigmoid(self.logit_p_Q) + torch.logsumexp(log_part_QM, dim=-1)
        return log_mean_Q.clamp(max=MAX_LOG).exp()

    def p_zero(self) -> Tensor:
        """[Q], P(y = 0)."""
        return torch.sigmoid(-self.logit_p_Q)

    @torch.no_grad()
    def log_quantile(self, levels: Sequence[float] | np.ndarray | Tensor) -> Tensor:
        """[Q, L], natural log of the quantiles: -inf up to level 1 - p. Raises InputError for levels outside (0, 1)."""
        levels_L = as_levels(levels, self.mu_QM)
        upper_QL = (1 - levels_L) / torch.sigmoid(self.logit_p_Q).unsqueeze(-1)
        positive_QL = upper_QL < 1
        upper_QL = torch.where(positive_QL, upper_QL, torch.full_like(upper_QL, 0.5))
        return torch.where(positive_QL, self._log_exceeded(upper_QL), torch.full_like(upper_QL, -math.inf))

    def _log_exceeded(self, upper_QL: Tensor) -> Tensor:
        """ln y that a positive amount exceeds with probability ``upper``: between the parts' own, by bisection."""
        part_QLM = self.mu_QM.unsqueeze(-2) - self.sigma_QM.unsqueeze(-2) * torch.special.ndtri(upper_QL).unsqueeze(-1)
        low_QL, high_QL = part_QLM.amin(-1), part_QLM.amax(-1)
        for _ in range(BISECTIONS):
            middle_QL = 0.5 * (low_QL + high_QL)
            beyond_QL = self._exceeds(middle_QL) > upper_QL
            low_QL, high_QL = torch.where(beyond_QL, middle_QL, low_QL), torch.where(beyond_QL, high_QL, middle_QL)
        return high_QL

    def _exceeds(self, log_value_QL: Tensor) -> Tensor:
        """P(ln y > log_value | y > 0), [Q, L]."""
        z_QLM = (self.mu_QM.unsqueeze(-2) - log_value_QL.unsqueeze(-1)) / self.sigma_QM.unsqueeze(-2)
        return (self.log_weight_QM.exp().unsqueeze(-2) * torch.special.ndtr(z_QLM)).sum(-1)

    def quantile(self, levels: Sequence[float] | np.ndarray | Tensor) -> Tensor:
        """[Q, L] at levels [L], in money: 0 up to level 1 - p."""
        return self.log_quantile(levels).clamp(max=MAX_LOG).exp()

    def cdf(self, value: Tensor) -> Tensor:
        """P(y <= value), for value [Q], or [Q, L] for several values per row; 0 below zero."""
        several = value.ndim > self.logit_p_Q.ndim
        value_QL = value if several else value.unsqueeze(-1)
        log_value_QL = torch.where(value_QL > 0, value_QL, torch.ones_like(value_QL)).to(self.mu_QM.dtype).log()
        above_QL = torch.where(value_QL > 0, self._exceeds(log_value_QL), torch.ones_like(log_value_QL))
        cdf_QL = 1 - torch.sigmoid(self.logit_p_Q).unsqueeze(-1) * above_QL
        cdf_QL = torch.where(value_QL < 0, torch.zeros_like(cdf_QL), cdf_QL)
        return cdf_QL if several else cdf_QL.squeeze(-1)

    @torch.no_grad()
    def sample(self, num_samples: int, *, generator: torch.Generator | None = None) -> Tensor:
        """[num_samples, Q] independent draws; a generator must live on the device of the parameters."""
        shape, device, dtype = (num_samples, *self.logit_p_Q.shape), self.mu_QM.device, self.mu_QM.dtype
        uniform_SQ = torch.rand(shape, generator=generator, dtype=dtype, device=device)
        normal_SQ = torch.randn(shape, generator=generator, dtype=dtype, device=device)
        positive_SQ = torch.rand(shape, generator=generator, dtype=dtype, device=device) < torch.sigmoid(self.logit_p_Q)
        cumulative_QM = self.log_weight_QM.exp().cumsum(-1)
        part_SQ1 = (uniform_SQ.unsqueeze(-1) > cumulative_QM[..., :-1]).sum(-1, keepdim=True)
        every = (num_samples, *self.mu_QM.shape)
        mu_SQ, sigma_SQ = (each.expand(every).gather(-1, part_SQ1).squeeze(-1) for each in (self.mu_QM, self.sigma_QM))
        value_SQ = (mu_SQ + sigma_SQ * normal_SQ).clamp(max=MAX_LOG).exp()
        return torch.where(positive_SQ, value_SQ, torch.zeros_like(value_SQ))
