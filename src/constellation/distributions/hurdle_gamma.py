"""Hurdle-gamma: exactly zero with probability 1 - p, else gamma.

A lighter tail than the log-normal, and a mean that is a parameter: no exp(sigma^2 / 2) that a tail can blow up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from constellation.distributions.levels import as_levels, at_least_float32

MIN_LOG_SHAPE, MAX_LOG_SHAPE = -3.0, 6.0
"""Shape 0.05: a tenth of the positive amounts below 1e-19 of the mean. Shape 400: all within 5 % of it."""

MAX_LOG = 80.0
"""exp(80) still fits in float32."""

MIN_LOG = -60.0
"""Quantiles of a small shape underflow; a positive amount stays positive in float32 down to exp(-87)."""

NEWTON_STEPS = 9


class HurdleGamma:
    """logit_p_Q: logit of P(y > 0). log_mean_Q: natural log of the mean of the positive amounts. log_shape_Q.

    All of one shape [Q] (or broadcastable to it). Half precision is promoted to float32. Safe to differentiate.
    """

    def __init__(self, logit_p_Q: Tensor, log_mean_Q: Tensor, log_shape_Q: Tensor) -> None:
        self.logit_p_Q = at_least_float32(logit_p_Q)
        self.log_mean_Q = at_least_float32(log_mean_Q).clamp(-MAX_LOG, MAX_LOG)
        # Smooth, so that a head that overshot comes back.
        middle, reach = 0.5 * (MIN_LOG_SHAPE + MAX_LOG_SHAPE), 0.5 * (MAX_LOG_SHAPE - MIN_LOG_SHAPE)
        self.log_shape_Q = middle + reach * torch.tanh((at_least_float32(log_shape_Q) - middle) / reach)

    def log_likelihood(self, value_Q: Tensor) -> Tensor:
        """[Q], natural log; value_Q is money, >= 0 (values below 0 count as 0)."""
        positive_Q = value_Q > 0
        log_value_Q = torch.where(positive_Q, value_Q, torch.ones_like(value_Q)).to(self.log_mean_Q.dtype).log()
        log_density_Q = self.log_density_of_log(log_value_Q) - log_value_Q
        log_zero_Q = functional.logsigmoid(-self.logit_p_Q)
        return torch.where(positive_Q, functional.logsigmoid(self.logit_p_Q) + log_density_Q, log_zero_Q)

    def log_density_of_log(self, log_value_Q: Tensor) -> Tensor:
        """[Q], log density of ln y given y > 0: of y, times y."""
        shape_Q = self.log_shape_Q.exp()
        log_ratio_Q = log_value_Q - self.log_mean_Q + self.log_shape_Q  # of y over the gamma's scale
        return shape_Q * log_ratio_Q - log_ratio_Q.clamp(max=MAX_LOG).exp() - torch.lgamma(shape_Q)

    def mean(self) -> Tensor:
        """[Q], in money."""
        return (functional.logsigmoid(self.logit_p_Q) + self.log_mean_Q).exp()

    def p_zero(self) -> Tensor:
        """[Q], P(y = 0)."""
        return torch.sigmoid(-self.logit_p_Q)

    def log_quantile(self, levels: Sequence[float] | np.ndarray | Tensor) -> Tensor:
        """[Q, L], natural log of the quantiles: -inf up to level 1 - p. Raises InputError for levels outside (0, 1)."""
        levels_L = as_levels(levels, self.log_mean_Q)
        upper_QL = (1 - levels_L) / torch.sigmoid(self.logit_p_Q).unsqueeze(-1)
        positive_QL = upper_QL < 1
        upper_QL = torch.where(positive_QL, upper_QL, torch.full_like(upper_QL, 0.5))
        log_ratio_QL = gamma_log_quantile(self.log_shape_Q.exp().unsqueeze(-1), upper_QL)
        log_value_QL = (self.log_mean_Q - self.log_shape_Q).unsqueeze(-1) + log_ratio_QL.to(upper_QL.dtype)
        return torch.where(positive_QL, log_value_QL, torch.full_like(log_value_QL, -math.inf))

    def quantile(self, levels: Sequence[float] | np.ndarray | Tensor) -> Tensor:
        """[Q, L] at levels [L], in money: 0 up to level 1 - p."""
        log_value_QL = self.log_quantile(levels)
        return torch.where(log_value_QL > -math.inf, log_value_QL.clamp(MIN_LOG, MAX_LOG), log_value_QL).exp()

    def cdf(self, value: Tensor) -> Tensor:
        """P(y <= value), for value [Q], or [Q, L] for several values per row; 0 below zero."""
        logit_p, log_mean, log_shape = self.logit_p_Q, self.log_mean_Q, self.log_shape_Q
        if value.ndim > log_mean.ndim:
            logit_p, log_mean, log_shape = (each.unsqueeze(-1) for each in (logit_p, log_mean, log_shape))
        ratio = value.clamp(min=0).to(log_mean.dtype) * (log_shape - log_mean).exp()
        below = torch.special.gammainc(log_shape.exp().expand_as(ratio), ratio)
        return torch.where(value < 0, torch.zeros_like(below), torch.sigmoid(-logit_p) + torch.sigmoid(logit_p) * below)

    @torch.no_grad()
    def sample(self, num_samples: int, *, generator: torch.Generator | None = None) -> Tensor:
        """[num_samples, Q] independent draws by inversion; a generator must live on the device of the parameters."""
        shape = (num_samples, *self.log_mean_Q.shape)
        uniform_SQ = torch.rand(shape, generator=generator, dtype=torch.float64, device=self.log_mean_Q.device)
        upper_SQ = uniform_SQ.clamp(1e-15, 1 - 1e-15) / torch.sigmoid(self.logit_p_Q).double()
        positive_SQ = upper_SQ < 1
        upper_SQ = torch.where(positive_SQ, upper_SQ, torch.full_like(upper_SQ, 0.5))
        log_ratio_SQ = gamma_log_quantile(self.log_shape_Q.double().exp().expand(shape), upper_SQ)
        value_SQ = (self.log_mean_Q - self.log_shape_Q + log_ratio_SQ).clamp(max=MAX_LOG).exp()
        return torch.where(positive_SQ, value_SQ, torch.zeros_like(value_SQ)).to(self.log_mean_Q.dtype)


@torch.no_grad()
def gamma_log_quantile(shape: Tensor, upper: Tensor) -> Tensor:
    """Natural log of the value that Gamma(shape, 1) exceeds with probability ``upper``, float64, broadcast.

    Newton's method on the log of the smaller tail as a function of ln y. Both log tails are concave there, so from any
    start the second step is on the near side of the answer, and from there the steps only approach it.
    """
    k, upper = torch.broadcast_tensors(shape.double(), upper.double())
    from_below = upper > 0.5
    log_tail = torch.where(from_below, torch.log1p(-upper), upper.log())
    normal = -torch.special.ndtri(upper)
    cube = 1 - 1 / (9 * k) + normal / (3 * k.sqrt())  # Wilson and Hilferty (1931)
    # P(y) <= y^k / Gamma(k + 1), met as y -> 0.
    smallest = (torch.log1p(-upper) + torch.lgamma(k + 1)) / k
    v = torch.maximum(k.log() + 3 * cube.clamp(min=1e-3).log(), smallest)
    for _ in range(NEWTON_STEPS):
        y = v.exp()
        tail = torch.where(from_below, torch.special.gammainc(k, y), torch.special.gammaincc(k, y)).clamp(min=1e-300)
        log_density = k * v - y - torch.lgamma(k)
        slope = torch.where(from_below, 1.0, -1.0) * (log_density - tail.log()).clamp(-50.0, 50.0).exp()
        v = v - ((tail.log() - log_tail) / slope).clamp(-5.0 / k.clamp(max=1.0), 5.0 / k.clamp(max=1.0))
    return v
