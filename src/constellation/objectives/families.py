"""Families of non-negative money for the value head: how the amount of those who buy is distributed.

All are hurdles: a logit says whether anything is bought, the family says how much. They work on standardised logs,
``u = (ln y - location) / scale`` with location and scale of the training data, so raw outputs of zero (plus ``start``)
are near the standard normal, whatever the currency.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from constellation.distributions.hurdle_gamma import HurdleGamma as HurdleGammaDistribution
from constellation.distributions.levels import as_levels
from constellation.distributions.log_normal_mixture import LogNormalMixture
from constellation.distributions.ziln import ZeroInflatedLogNormal, capped_sigma
from constellation.errors import InputError

EULER = 0.5772156649
"""ln m - E[ln y] of an exponential y of mean m."""

MAX_STANDARD = 30.0
"""Standard deviations of the log that are kept apart; exp of it is finite in float32."""


class Family(nn.Module):
    """num_parameters: raw outputs per horizon. start: the raw outputs of a standard normal u, [num_parameters].

    keeps_scale: u is ln y less its location, not divided by the scale: for families that a power of y would leave.
    """

    num_parameters: int
    keeps_scale: bool = False

    def start(self) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no start.")

    def loss(self, logit_QK: Tensor, raw_QKP: Tensor, positive_QK: Tensor, u_QK: Tensor) -> Tensor:
        """[Q, K]; logit of buying; ``u_QK`` is read only where ``positive_QK``."""
        raise NotImplementedError(f"{type(self).__name__} has no loss.")

    def quantile(self, logit_QK: Tensor, raw_QKP: Tensor, levels: Sequence[float] | Tensor) -> Tensor:
        """u at each level [Q, K, L] of the whole distribution; -inf (no money) up to the level P(zero)."""
        raise NotImplementedError(f"{type(self).__name__} has no quantile.")


class Ziln(Family):
    """Zero-inflated log-normal: negative log-likelihood, Wang et al. (2019) eq. (3), less the constant ln y."""

    num_parameters = 2

    def start(self) -> Tensor:
        # capped_sigma(raw) = 1 near softplus(raw) = 1.04.
        raw = torch.linspace(0.0, 2.0, 20_001)
        return torch.stack([torch.zeros(()), raw[(capped_sigma(raw) - 1.0).abs().argmin()]])

    def _distribution(self, logit_QK: Tensor, raw_QKP: Tensor) -> ZeroInflatedLogNormal:
        return ZeroInflatedLogNormal(logit_QK, raw_QKP[..., 0], capped_sigma(raw_QKP[..., 1]))

    def loss(self, logit_QK: Tensor, raw_QKP: Tensor, positive_QK: Tensor, u_QK: Tensor) -> Tensor:
        u_QK = torch.where(positive_QK, u_QK, torch.zeros_like(u_QK)).clamp(-MAX_STANDARD, MAX_STANDARD)
        value_QK = torch.where(positive_QK, u_QK.exp(), torch.zeros_like(u_QK))
        return -self._distribution(logit_QK, raw_QKP).log_likelihood(value_QK) - u_QK

    def quantile(self, logit_QK: Tensor, raw_QKP: Tensor, levels: Sequence[float] | Tensor) -> Tensor:
        return self._distribution(logit_QK, raw_QKP).quantile(levels).log()


class HurdleGamma(Family):
    """Gamma amounts: negative log-likelihood less the constant ln y. A lighter tail than the log-normal's."""

    num_parameters = 2
    keeps_scale = True

    def start(self) -> Tensor:
        # Shape 1, an exponential; its mean log is the log of its mean less Euler's constant.
        return torch.tensor([EULER, 0.0])

    def loss(self, logit_QK: Tensor, raw_QKP: Tensor, positive_QK: Tensor, u_QK: Tensor) -> Tensor:
        distribution = HurdleGammaDistribution(logit_QK, raw_QKP[..., 0], raw_QKP[..., 1])
        return _hurdle_loss(logit_QK, positive_QK, distribution.log_density_of_log, u_QK)

    def quantile(self, logit_QK: Tensor, raw_QKP: Tensor, levels: Sequence[float] | Tensor) -> Tensor:
        u_QKL = HurdleGammaDistribution(logit_QK, raw_QKP[..., 0], raw_QKP[..., 1]).log_quantile(levels)
        return torch.where(u_QKL > -math.inf, u_QKL.clamp(min=-2 * MAX_STANDARD), u_QKL)


class Mixture(Family):
    """Several log-normals, one of which a customer's money comes from; the choice is summed over.

    num_parts: how many; they start spread over the standard normal, so that each finds customers of its own.
    """

    def __init__(self, *, num_parts: int = 4) -> None:
        super().__init__()
        if num_parts < 2:
            raise InputError(f"num_parts must be at least 2, found {num_parts}: one part is the family Ziln.")
        self.num_parts, self.num_parameters = num_parts, 3 * num_parts

    def start(self) -> Tensor:
        # Means at the normal's own quantiles; deviations such that the whole has variance 1.
        middle = (torch.arange(self.num_parts) + 0.5) / self.num_parts
        mu = torch.special.ndtri(middle.double()).float()
        wanted = (1 - mu.square().mean()).sqrt()
        raw = torch.linspace(-6.0, 2.0, 20_001)
        sigma = raw[(capped_sigma(raw) - wanted).abs().argmin()].expand(self.num_parts)
        return torch.cat([torch.zeros(self.num_parts), mu, sigma])

    def _distribution(self, logit_QK: Tensor, raw_QKP: Tensor) -> LogNormalMixture:
        weight_QKM, mu_QKM, sigma_QKM = raw_QKP.chunk(3, dim=-1)
        return LogNormalMixture(logit_QK, weight_QKM, mu_QKM, capped_sigma(sigma_QKM))

    def loss(self, logit_QK: Tensor, raw_QKP: Tensor, positive_QK: Tensor, u_QK: Tensor) -> Tensor:
        distribution = self._distribution(logit_QK, raw_QKP)
        return _hurdle_loss(logit_QK, positive_QK, distribution.log_density_of_log, u_QK)

    def quantile(self, logit_QK: Tensor, raw_QKP: Tensor, levels: Sequence[float] | Tensor) -> Tensor:
        return self._distribution(logit_QK, raw_QKP).log_quantile(levels)


def _hurdle_loss(
    logit_QK: Tensor, positive_QK: Tensor, log_density: Callable[[Tensor], Tensor], u_QK: Tensor
) -> Tensor:
    """Cross entropy of buying, and the negative log density of u for those who bought."""
    u_QK = torch.where(positive_QK, u_QK, torch.zeros_like(u_QK)).clamp(-MAX_STANDARD, MAX_STANDARD)
    buys_QK = functional.binary_cross_entropy_with_logits(logit_QK, positive_QK.to(logit_QK.dtype), reduction="none")
    return buys_QK - torch.where(positive_QK, log_density(u_QK), torch.zeros_like(u_QK))


class Quantiles(Family):
    """Monotone quantiles of the positive amounts on a grid of levels: no shape is assumed.

    Loss: cross entropy of buying + pinball over the grid, for those who bought. Non-crossing by construction: the
    median is one output, the gaps between neighbours are softplus of the others. Between grid levels u is linear in
    the normal quantile of the level, so a log-normal would be met exactly; beyond them the last slope goes on.

    money_weight: share of the pinball taken in money relative to the typical amount, the rest in standardised logs.
    Both have the same minimum in theory; money decides the mean absolute error, logs keep small customers in view.
    """

    levels_G: Tensor
    normal_G: Tensor

    def __init__(self, *, num_levels: int = 21, money_weight: float = 0.5) -> None:
        super().__init__()
        if num_levels < 3 or num_levels % 2 == 0:
            raise InputError(f"num_levels must be odd and at least 3, so that the median is one, found {num_levels}.")
        if not 0 <= money_weight <= 1:
            raise InputError(f"money_weight must lie in [0, 1], found {money_weight}.")
        self.num_parameters, self.money_weight = num_levels, money_weight
        levels_G = torch.linspace(0.01, 0.99, num_levels)
        self.register_buffer("levels_G", levels_G, persistent=False)
        self.register_buffer("normal_G", torch.special.ndtri(levels_G.double()).float(), persistent=False)

    def start(self) -> Tensor:
        return torch.cat([torch.zeros(1), inverse_softplus(self.normal_G.diff())])

    def grid(self, raw_QKP: Tensor) -> Tensor:
        """u at the grid's levels, [Q, K, G], ascending."""
        sums = functional.pad(functional.softplus(raw_QKP[..., 1:]).cumsum(-1), (1, 0))
        middle = self.num_parameters // 2
        return raw_QKP[..., :1] + sums - sums[..., middle : middle + 1]

    def loss(self, logit_QK: Tensor, raw_QKP: Tensor, positive_QK: Tensor, u_QK: Tensor) -> Tensor:
        buys_QK = functional.binary_cross_entropy_with_logits(
            logit_QK, positive_QK.to(logit_QK.dtype), reduction="none"
        )
        u_QK1 = torch.where(positive_QK, u_QK, torch.zeros_like(u_QK)).unsqueeze(-1)
        grid_QKG = self.grid(raw_QKP)
        in_logs_QK = pinball(u_QK1 - grid_QKG, self.levels_G)
        cap = math.log(1e3)  # a forecast of a thousand times the typical amount is wrong enough
        in_money_QK = pinball(u_QK1.clamp(max=cap).exp() - grid_QKG.clamp(max=cap).exp(), self.levels_G)
        amount_QK = (1 - self.money_weight) * in_logs_QK + self.money_weight * in_money_QK
        return buys_QK + torch.where(positive_QK, amount_QK, torch.zeros_like(amount_QK))

    def quantile(self, logit_QK: Tensor, raw_QKP: Tensor, levels: Sequence[float] | Tensor) -> Tensor:
        levels_L = as_levels(levels, logit_QK)
        # The level among buyers, counted from above: 1 - (1 - level) / p.
        upper_QKL = (1 - levels_L) / torch.sigmoid(logit_QK).unsqueeze(-1)
        positive_QKL = upper_QKL < 1
        z_QKL = -torch.special.ndtri(torch.where(positive_QKL, upper_QKL, torch.full_like(upper_QKL, 0.5)))
        grid_QKG = self.grid(raw_QKP)
        right_QKL = torch.searchsorted(self.normal_G, z_QKL.contiguous()).clamp(1, self.num_parameters - 1)
        z_left, z_right = self.normal_G[right_QKL - 1], self.normal_G[right_QKL]
        u_left, u_right = grid_QKG.gather(-1, right_QKL - 1), grid_QKG.gather(-1, right_QKL)
        u_QKL = u_left + (u_right - u_left) * (z_QKL - z_left) / (z_right - z_left)
        return torch.where(positive_QKL, u_QKL, torch.full_like(u_QKL, -math.inf))


def pinball(error: Tensor, levels_G: Tensor) -> Tensor:
    """Twice the quantile loss, averaged over the grid (the last dimension): approximately the CRPS."""
    return 2 * torch.maximum(levels_G * error, (levels_G - 1) * error).mean(-1)


def inverse_softplus(positive: Tensor) -> Tensor:
    """x with softplus(x) = positive."""
    return positive + torch.log(-torch.expm1(-positive))


def ordered(raw_QK: Tensor) -> Tensor:
    """First column as it is, each later one larger by the softplus of its raw output: never falling."""
    return torch.cat([raw_QK[:, :1], functional.softplus(raw_QK[:, 1:])], dim=1).cumsum(dim=1)


def ordered_start(wanted_K: Tensor, smallest_step: float = 1e-2) -> Tensor:
    """Raw outputs whose ``ordered`` is ``wanted_K``, with steps of at least ``smallest_step``."""
    steps = wanted_K.diff().clamp(min=smallest_step)
    return torch.cat([wanted_K[:1], inverse_softplus(steps)])
