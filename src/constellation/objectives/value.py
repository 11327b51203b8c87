"""What will the customer be worth: money and number of purchases over each horizon, as distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from constellation.distributions.negative_binomial import NegativeBinomial
from constellation.errors import InputError
from constellation.objectives.base import HEAD_STD, Loss, Objective
from constellation.objectives.families import Family, ordered, ordered_start

if TYPE_CHECKING:
    from constellation.journeys.batch import JourneyBatch
    from constellation.journeys.vocabulary import Vocabulary

MAX_LOG_MEAN = 7.0
"""Expected money is capped at e^7 (1,100) times the training mean, or further up where a customer has spent more."""

HIGHEST_OVER_SEEN = 2.0
"""No quantile lies beyond so many times the highest money of training: a tail that is straight in logs, read off a
customer as large as no other, soon ends in billions."""


class Value(Objective):
    """Money by a hurdle family, its expected value by a head of its own, purchases by a negative binomial.

    Ordered horizons by construction: the logit of buying, the log of expected money and the log of expected purchases
    each rise by a softplus from one horizon to the next, so p_zero never rises and no mean ever falls.

    The mean of a fitted log-normal is biased wherever the tail is not log-normal. So expected money is no function of
    the family: it is fitted by the Poisson deviance, whose gradient (predicted - realised) makes the total right on
    the training data. Positive heads train on max(0, net); horizons that are not observed are left out.

    family: one of ``families``. mean_weight, purchases_weight: of the expected money and of
    the purchases against the family's loss.
    """

    name = "value"
    location_K: Tensor
    scale_K: Tensor
    mean_K: Tensor
    highest_K: Tensor

    def __init__(
        self,
        vocabulary: Vocabulary,
        state_width: int,
        readout_width: int,
        horizons_days: Sequence[int],
        *,
        family: Family,
        weight: float = 1.0,
        mean_weight: float = 1.0,
        purchases_weight: float = 0.5,
    ) -> None:
        super().__init__(horizons_days=horizons_days, weight=weight)
        if not self.horizons_days:
            raise InputError(
                "The objective value asks for money over horizons, and these data have none: they are split by each "
                "customer's last events, not by dates. Leave it out, as in objective=[next_event]."
            )
        del state_width  # asked of the readout only; every objective is built with the same arguments
        self.family, self.mean_weight, self.purchases_weight = family, mean_weight, purchases_weight
        num_horizons = len(self.horizons_days)
        start = _Start.of(vocabulary, num_horizons)
        for part in ("location_K", "scale_K", "mean_K"):
            self.register_buffer(part, getattr(start, part))
        self.register_buffer("highest_K", start.highest_K, persistent=False)
        self.most_log_mean = start.most_log_mean
        if family.keeps_scale:
            self.scale_K.fill_(1.0)
        # Per horizon: logit of buying, log expected money, log expected purchases, log dispersion, then the family's.
        self.head = nn.Linear(readout_width, num_horizons * (4 + family.num_parameters))
        nn.init.normal_(self.head.weight, std=HEAD_STD)
        family_KP = family.start().expand(num_horizons, -1)
        own_K4 = [start.logit_K, start.log_mean_K, start.log_purchases_K, start.log_dispersion_K]
        with torch.no_grad():
            self.head.bias.copy_(torch.cat([torch.stack(own_K4, dim=1), family_KP], dim=1).flatten())

    def _parts(self, readout_QD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """logit_QK, log expected money over mean_K[0], log expected purchases, log dispersion [Q, K]; family_QKP."""
        raw_QKP = self.head(readout_QD).float().unflatten(-1, (len(self.horizons_days), -1))
        logit_QK, log_mean_QK, log_purchases_QK = (ordered(raw_QKP[..., part]) for part in range(3))
        return logit_QK, log_mean_QK, log_purchases_QK, raw_QKP[..., 3], raw_QKP[..., 4:]

    def loss(self, states_ND: Tensor, readout_QD: Tensor, batch: JourneyBatch) -> Loss:
        targets = batch.targets
        assert targets is not None
        assert targets.horizons_days == self.horizons_days
        logit_QK, log_mean_QK, log_purchases_QK, log_dispersion_QK, raw_QKP = self._parts(readout_QD)
        seen_QK = targets.observed_QK
        value_QK = torch.where(seen_QK, targets.value_QK, 0.0).clamp(min=0.0)
        purchases_QK = torch.where(seen_QK, targets.purchases_QK, 0.0)
        positive_QK = value_QK > 0
        u_QK = (torch.where(positive_QK, value_QK, 1.0).log() - self.location_K) / self.scale_K
        money_QK = self.family.loss(logit_QK, raw_QKP, positive_QK, u_QK)
        # Both sides over the first horizon's training mean, so the term does not depend on the currency.
        relative_QK = value_QK / self.mean_K[0]
        expected_QK = poisson_deviance(log_mean_QK.clamp(max=self.most_log_mean), relative_QK) * (
            self.mean_K[0] / self.mean_K
        )
        count_QK = -NegativeBinomial(log_purchases_QK, log_dispersion_QK).log_likelihood(purchases_QK)
        # Of customers without events most buy nothing, and a negative binomial that wide says little of its mean.
        new_Q1 = (batch.last_event_Q < 0).unsqueeze(1)
        count_QK = count_QK + torch.where(new_Q1, poisson_deviance(log_purchases_QK, purchases_QK), 0.0)
        num_seen = seen_QK.sum()

        def total(terms_QK: Tensor) -> Tensor:
            return torch.where(seen_QK, terms_QK, torch.zeros_like(terms_QK)).sum()

        money, expected, count = total(money_QK), total(expected_QK), total(count_QK)
        parts = {"money": money, "expected": expected, "purchases": count}
        return Loss(
            total=money + self.mean_weight * expected + self.purchases_weight * count,
            count=num_seen,
            parts={name: part.detach() / num_seen.clamp(min=1) for name, part in parts.items()},
        )

    def predict(self, readout_QD: Tensor, batch: JourneyBatch, levels: Sequence[float] | Tensor) -> dict[str, Tensor]:
        """``value_<h>d_*`` in money and ``purchases_<h>d_*``: expected, p_zero [Q] and quantiles [Q, L]."""
        logit_QK, log_mean_QK, log_purchases_QK, log_dispersion_QK, raw_QKP = self._parts(readout_QD)
        expected_QK = log_mean_QK.clamp(max=self.most_log_mean).exp() * self.mean_K[0]
        p_zero_QK = torch.sigmoid(-logit_QK)
        u_QKL = self.family.quantile(logit_QK, raw_QKP, levels)
        log_QKL = u_QKL * self.scale_K.unsqueeze(-1) + self.location_K.unsqueeze(-1)
        quantiles_QKL = torch.minimum(log_QKL, self.highest_K.log().unsqueeze(-1)).exp()
        answers: dict[str, Tensor] = {}
        for place, days in enumerate(self.horizons_days):
            count = NegativeBinomial(log_purchases_QK[:, place], log_dispersion_QK[:, place])
            answers[f"value_{days}d_expected"] = expected_QK[:, place]
            answers[f"value_{days}d_p_zero"] = p_zero_QK[:, place]
            answers[f"value_{days}d_quantiles"] = quantiles_QKL[:, place]
            answers[f"purchases_{days}d_expected"] = count.mean()
            answers[f"purchases_{days}d_p_zero"] = count.p_zero()
            answers[f"purchases_{days}d_quantiles"] = count.quantile(levels)
        return answers


def poisson_deviance(log_mean: Tensor, value: Tensor) -> Tensor:
    """Half the unit deviance, ``y ln(y / m) - (y - m)`` >= 0, for y >= 0; its gradient in log m is m - y."""
    safe = torch.where(value > 0, value, torch.ones_like(value))
    return torch.where(value > 0, value * (safe.log() - log_mean), torch.zeros_like(value)) - value + log_mean.exp()


class _Start:
    """Buffers and initial biases per horizon from the training targets, or neutral ones without them."""

    def __init__(self, money: dict[str, list[float]], purchases: dict[str, list[float]]) -> None:
        def column(values: list[float], low: float, high: float = float("inf")) -> Tensor:
            return torch.tensor(values, dtype=torch.float32).clamp(low, high)

        self.location_K = column(money["log_mean"], -float("inf"))
        self.scale_K = column(money["log_std"], 0.05)
        self.mean_K = column(money["mean"], 1e-6)
        self.highest_K, self.most_log_mean = self.mean_K * math.exp(2 * MAX_LOG_MEAN), MAX_LOG_MEAN
        if "highest" in money:  # vocabularies of before do not say it, nor does a horizon without labels
            seen_K = HIGHEST_OVER_SEEN * column(money["highest"], 0.0)
            self.most_log_mean = max(MAX_LOG_MEAN, float((seen_K.max() / self.mean_K[0]).log()))
            self.highest_K = torch.where(seen_K > 0, seen_K, self.highest_K).cummax(0).values
        self.logit_K = ordered_start(torch.logit(1 - column(money["p_zero"], 1e-3, 1 - 1e-3)))
        self.log_mean_K = ordered_start((self.mean_K / self.mean_K[0]).log())
        self.log_purchases_K = ordered_start(column(purchases["mean"], 1e-3).log())
        # The statistic is the size k of variance = m + m^2 / k; the family's dispersion is 1 / k.
        self.log_dispersion_K = -column(purchases["dispersion"], 0.05, 100.0).log()

    @classmethod
    def of(cls, vocabulary: Vocabulary, num_horizons: int) -> _Start:
        if vocabulary.targets is not None:
            return cls(vocabulary.targets["value"], vocabulary.targets["purchases"])
        zeros, ones = [0.0] * num_horizons, [1.0] * num_horizons
        money = {"p_zero": [0.5] * num_horizons, "log_mean": zeros, "log_std": ones, "mean": ones}
        return cls(money, {"mean": ones, "dispersion": ones})
