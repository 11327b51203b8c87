"""Families of counts for the value head: how the number of purchases over a horizon is distributed.

A negative binomial is Poisson's or wider. Buyers with regular timing are narrower, and who may leave is both: few
purchases if they do, almost surely so many if they do not. The hurdles below take either shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from constellation.distributions.negative_binomial import NegativeBinomial as NegativeBinomialDistribution
from constellation.distributions.rounded_log_normals import RoundedLogNormals
from constellation.distributions.ziln import MAX_SIGMA, MIN_SIGMA, capped_sigma
from constellation.objectives.families import Mixture, Quantiles, inverse_softplus, ordered, ordered_start

MAX_LOG_COUNT = 11.0
"""No quantile of a count lies beyond e^11 (60,000), as no negative binomial's does."""

LEAST_SPREAD = 0.2
"""Standard deviation of the log of positive counts to begin with, at least: where all bought once, it would be 0."""

JITTER = (-0.375, -0.125, 0.125, 0.375)
"""The middles of four equal parts of (-1/2, 1/2): what a uniform draw would add to a count, without its noise."""


class CountFamily(nn.Module):
    """num_parameters: raw outputs per horizon, beside the log of expected purchases, which every head has. The negative
    binomial teaches that one; any other family says only how counts are spread.

    Counts are whole numbers >= 0.
    """

    num_parameters: int

    def begin(self, mean_K: Tensor, size_K: Tensor) -> Tensor:
        """Told once, by the head: mean and size k of the training counts, variance = m + m^2 / k.

        Returns the raw outputs to start from [K, num_parameters].
        """
        raise NotImplementedError(f"{type(self).__name__} has no beginning.")

    def loss(self, log_mean_QK: Tensor, raw_QKP: Tensor, count_QK: Tensor) -> Tensor:
        """[Q, K]."""
        raise NotImplementedError(f"{type(self).__name__} has no loss.")

    def p_zero(self, log_mean_QK: Tensor, raw_QKP: Tensor) -> Tensor:
        """[Q, K]."""
        raise NotImplementedError(f"{type(self).__name__} has no p_zero.")

    def quantile(self, log_mean_QK: Tensor, raw_QKP: Tensor, levels: Sequence[float] | Tensor) -> Tensor:
        """Counts at each level, [Q, K, L]: 0 up to the level P(zero)."""
        raise NotImplementedError(f"{type(self).__name__} has no quantile.")


class NegativeBinomial(CountFamily):
    """Poisson with a rate that varies as a gamma, by its likelihood: one parameter, the log of the dispersion 1 / k."""

    num_parameters = 1

    def begin(self, mean_K: Tensor, size_K: Tensor) -> Tensor:
        del mean_K  # of the head's own output
        return -size_K.log().unsqueeze(-1)

    def loss(self, log_mean_QK: Tensor, raw_QKP: Tensor, count_QK: Tensor) -> Tensor:
        return -NegativeBinomialDistribution(log_mean_QK, raw_QKP[..., 0]).log_likelihood(count_QK)

    def p_zero(self, log_mean_QK: Tensor, raw_QKP: Tensor) -> Tensor:
        return NegativeBinomialDistribution(log_mean_QK, raw_QKP[..., 0]).p_zero()

    def quantile(self, log_mean_QK: Tensor, raw_QKP: Tensor, levels: Sequence[float] | Tensor) -> Tensor:
        each = zip(log_mean_QK.unbind(1), raw_QKP[..., 0].unbind(1), strict=True)
        return torch.stack([NegativeBinomialDistribution(*part).quantile(levels) for part in each], dim=1)


class Hurdle(CountFamily):
    """A logit says whether anything is bought, rising with the horizon; a law of the log of positive counts how much.

    The logs are less ``location_K``, of the training's typical positive count. num_spread: raw outputs of that law.
    """

    location_K: Tensor

    def __init__(self, *, num_spread: int) -> None:
        super().__init__()
        self.num_parameters = 1 + num_spread
        self.register_buffer("location_K", torch.zeros(0), persistent=False)

    def spread_start(self, spread: float) -> Tensor:
        """Raw outputs [num_spread] of a normal law with mean 0 and that standard deviation."""
        raise NotImplementedError(f"{type(self).__name__} has no start.")

    def begin(self, mean_K: Tensor, size_K: Tensor) -> Tensor:
        # What a negative binomial of these moments says of positive counts, as a log-normal of the same moments.
        p_zero_K = (size_K * (size_K.log() - (size_K + mean_K).log())).exp().clamp(1e-3, 1 - 1e-3)
        positive_K = mean_K / (1 - p_zero_K)
        squares_K = (mean_K + mean_K.square() * (1 + 1 / size_K)) / (1 - p_zero_K)
        spread_K = (squares_K / positive_K.square()).clamp(min=1.0).log().sqrt().clamp(min=LEAST_SPREAD)
        self.location_K = positive_K.clamp(min=1.0).log() - spread_K.square() / 2
        logit_K = ordered_start(torch.logit(1 - p_zero_K))
        spread_KP = torch.stack([self.spread_start(float(spread)) for spread in spread_K])
        return torch.cat([logit_K.unsqueeze(-1), spread_KP], dim=-1)

    def p_zero(self, log_mean_QK: Tensor, raw_QKP: Tensor) -> Tensor:
        return torch.sigmoid(-ordered(raw_QKP[..., 0]))


class CountQuantiles(Hurdle):
    """Monotone quantiles of the positive counts on a grid of levels: no shape is assumed.

    Counts have no density, and quantiles that jump teach little. So they are learned of ``n + u`` with u uniform in
    (-1/2, 1/2) (Machado and Santos Silva 2005, "Quantiles for counts"), the mean over four values of u, and answered
    rounded: where the quantile of ``n + u`` at a level lies within 1/2 of n, n is the count's quantile there.

    num_levels: of the grid. count_weight: share of the pinball taken in counts over the typical one, the rest in logs.
    """

    jitter_J: Tensor

    def __init__(self, *, num_levels: int = 21, count_weight: float = 0.5) -> None:
        super().__init__(num_spread=num_levels)
        self.positive = Quantiles(num_levels=num_levels, money_weight=count_weight)
        self.register_buffer("jitter_J", torch.tensor(JITTER), persistent=False)

    def spread_start(self, spread: float) -> Tensor:
        gaps_G = functional.softplus(self.positive.start()[1:])
        return torch.cat([torch.zeros(1), inverse_softplus(gaps_G * spread)])

    def loss(self, log_mean_QK: Tensor, raw_QKP: Tensor, count_QK: Tensor) -> Tensor:
        u_JQK = (count_QK.clamp(min=1.0) + self.jitter_J.view(-1, 1, 1)).log() - self.location_K
        logit_QK, some_QK = ordered(raw_QKP[..., 0]), (count_QK > 0).expand_as(u_JQK)
        return self.positive.loss(logit_QK.expand_as(u_JQK), raw_QKP[..., 1:], some_QK, u_JQK).mean(0)

    def quantile(self, log_mean_QK: Tensor, raw_QKP: Tensor, levels: Sequence[float] | Tensor) -> Tensor:
        u_QKL = self.positive.quantile(ordered(raw_QKP[..., 0]), raw_QKP[..., 1:], levels)
        return whole(u_QKL + self.location_K.unsqueeze(-1))


class CountMixture(Hurdle):
    """Rounded log-normals, one of which a customer's count comes from, by their likelihood.

    num_parts: how many.
    """

    def __init__(self, *, num_parts: int = 3) -> None:
        super().__init__(num_spread=3 * num_parts)
        self.parts = Mixture(num_parts=num_parts)

    def spread_start(self, spread: float) -> Tensor:
        weight_M, mu_M, sigma_M = self.parts.start().chunk(3)
        wanted_M = capped_sigma(sigma_M) * spread
        return torch.cat([weight_M, mu_M * spread, inverse_capped_sigma(wanted_M)])

    def _distribution(self, raw_QKP: Tensor) -> RoundedLogNormals:
        weight_QKM, mu_QKM, sigma_QKM = raw_QKP[..., 1:].chunk(3, dim=-1)
        mu_QKM = mu_QKM + self.location_K.unsqueeze(-1)
        return RoundedLogNormals(ordered(raw_QKP[..., 0]), weight_QKM, mu_QKM, capped_sigma(sigma_QKM))

    def loss(self, log_mean_QK: Tensor, raw_QKP: Tensor, count_QK: Tensor) -> Tensor:
        return -self._distribution(raw_QKP).log_likelihood(count_QK)

    def quantile(self, log_mean_QK: Tensor, raw_QKP: Tensor, levels: Sequence[float] | Tensor) -> Tensor:
        return self._distribution(raw_QKP).quantile(levels).clamp(max=math.exp(MAX_LOG_COUNT))


def whole(log_QKL: Tensor) -> Tensor:
    """The nearest whole number of a positive amount, at least 1; 0 where its log is -inf."""
    some_QKL = log_QKL.clamp(max=MAX_LOG_COUNT).exp().round().clamp(min=1.0)
    return torch.where(log_QKL > -math.inf, some_QKL, torch.zeros_like(log_QKL))


def inverse_capped_sigma(sigma: Tensor) -> Tensor:
    """The raw output whose ``capped_sigma`` it is, for sigma inside the cap."""
    share = ((sigma - MIN_SIGMA) / (MAX_SIGMA - MIN_SIGMA)).clamp(1e-3, 1 - 1e-3)
    return inverse_softplus(MAX_SIGMA * torch.atanh(share))
