"""Zero-inflated log-normal: exactly zero with probability 1 - p, else log-normal.

Wang, Liu, Miao (2019), "A deep probabilistic model for customer lifetime value prediction", eq. (3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from constellation.distributions.levels import as_levels, at_least_float32

MAX_SIGMA = 3.0
"""exp(sigma^2 / 2) multiplies the mean: 90 at sigma 3, 268,000 at sigma 5. Money needs no more than 3."""

MIN_SIGMA = 1e-2
"""Below it one lucky customer can drive the likelihood without bound."""

MAX_LOG = 80.0
"""exp(80) still fits in float32, so a wild log-mean stays finite instead of turning the batch into NaN."""


def capped_sigma(raw: Tensor, *, max_sigma: float = MAX_SIGMA, min_sigma: float = MIN_SIGMA) -> Tensor:
    """Any real -> sigma in (min_sigma, max_sigma), close to softplus for small values.

    A smooth cap: a hard clamp has no gradient above the cap, and a head that once overshot would never come back.
    """
    raw = at_least_float32(raw)
    return min_sigma + (max_sigma - min_sigma) * torch.tanh(functional.softplus(raw) / max_sigma)


class ZeroInflatedLogNormal:
    """Rows of independent zero-inflated log-normals.

    logit_p_Q: logit of P(y > 0). mu_Q, sigma_Q: of ln y given y > 0. All of one shape [Q] (or broadcastable to it), in
    log-units of the value. sigma is clamped to [MIN_SIGMA, max_sigma] (use ``capped_sigma`` to get there smoothly).
    Half precision is promoted to float32. Every method is safe to differentiate: rows with y = 0 give no NaN.
    """

    def __init__(self, logit_p_Q: Tensor, mu_Q: Tensor, sigma_Q: Tensor, *, max_sigma: float = MAX_SIGMA) -> None:
        self.logit_p_Q = at_least_float32(logit_p_Q)
        self.mu_Q = at_least_float32(mu_Q)
        self.sigma_Q = at_least_float32(sigma_Q).clamp(MIN_SIGMA, max_sigma)

    @classmethod
    def from_raw(cls, raw_Q3: Tensor, *, max_sigma: float = MAX_SIGMA) -> ZeroInflatedLogNormal:
        """Three unconstrained outputs of a head [.., 3]: logit of p, mu, and sigma before ``capped_sigma``."""
        logit_p_Q, mu_Q, raw_sigma_Q = raw_Q3.unbind(-1)
        return cls(logit_p_Q, mu_Q, capped_sigma(raw_sigma_Q, max_sigma=max_sigma), max_sigma=max_sigma)

    def log_likelihood(self, value_Q: Tensor) -> Tensor:
        """[Q], natural log; value_Q is money, >= 0 (values below 0 count as 0: clip the net before, and report it)."""
        positive_Q = value_Q > 0
        # The inner where keeps ln away from zeros: autograd multiplies its infinite slope by 0 and gets NaN otherwise.
        log_value_Q = torch.where(positive_Q, value_Q, torch.ones_like(value_Q)).to(self.mu_Q.dtype).log()
        z_Q = (log_value_Q - self.mu_Q) / self.sigma_Q
        log_density_Q = -log_value_Q - self.sigma_Q.log() - 0.5 * math.log(2 * math.pi) - 0.5 * z_Q.square()
        log_zero_Q = functional.logsigmoid(-self.logit_p_Q)
        return torch.where(positive_Q, functional.logsigmoid(self.logit_p_Q) + log_density_Q, log_zero_Q)

    def mean(self) -> Tensor:
        """[Q], p exp(mu + sigma^2 / 2), in money."""
        log_mean_Q = functional.logsigmoid(self.logit_p_Q) + self.mu_Q + 0.5 * self.sigma_Q.square()
        return log_mean_Q.clamp(max=MAX_LOG).exp()

    def p_zero(self) -> Tensor:
        """[Q], P(y = 0)."""
        return torch.sigmoid(-self.logit_p_Q)

    def quantile(self, levels: Sequence[float] | np.ndarray | Tensor) -> Tensor:
        """[Q, L] at levels [L], in money: 0 up to level 1 - p. Raises InputError for levels outside (0, 1)."""
        levels_L = as_levels(levels, self.mu_Q)
        # The upper tail (1 - level) / p rather than (level - 1 + p) / p: no cancellation where p is small.
        upper_QL = (1 - levels_L) / torch.sigmoid(self.logit_p_Q).unsqueeze(-1)
        positive_QL = upper_QL < 1
        z_QL = -torch.special.ndtri(torch.where(positive_QL, upper_QL, torch.full_like(upper_QL, 0.5)))
        log_value_QL = self.mu_Q.unsqueeze(-1) + self.sigma_Q.unsqueeze(-1) * z_QL
        value_QL = log_value_QL.clamp(max=MAX_LOG).exp()
        return torch.where(positive_QL, value_QL, torch.zeros_like(value_QL))

    def cdf(self, value: Tensor) -> Tensor:
        """P(y <= value), for value [Q], or [Q, L] for several values per row; 0 below zero."""
        logit_p, mu, sigma = self.logit_p_Q, self.mu_Q, self.sigma_Q
        if value.ndim > mu.ndim:
            logit_p, mu, sigma = logit_p.unsqueeze(-1), mu.unsqueeze(-1), sigma.unsqueeze(-1)
        positive = value > 0
        log_value = torch.where(positive, value, torch.ones_like(value)).to(mu.dtype).log()
        below = torch.where(positive, torch.special.ndtr((log_value - mu) / sigma), torch.zeros_like(log_value))
        return torch.where(value < 0, torch.zeros_like(below), torch.sigmoid(-logit_p) + torch.sigmoid(logit_p) * below)

    @torch.no_grad()
    def sample(self, num_samples: int, *, generator: torch.Generator | None = None) -> Tensor:
        """[num_samples, Q] independent draws; a generator must live on the device of the parameters."""
        shape = (num_samples, *self.mu_Q.shape)
        dtype, device = self.mu_Q.dtype, self.mu_Q.device
        uniform_SQ = torch.rand(shape, generator=generator, dtype=dtype, device=device)
        normal_SQ = torch.randn(shape, generator=generator, dtype=dtype, device=device)
        positive_SQ = uniform_SQ < torch.sigmoid(self.logit_p_Q)
        value_SQ = (self.mu_Q + self.sigma_Q * normal_SQ).clamp(max=MAX_LOG).exp()
        return torch.where(positive_SQ, value_SQ, torch.zeros_like(value_SQ))
