"""What will the customer be worth: money and number of purchases over each horizon, as distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from constellation.distributions.negative_binomial import MAX_COUNT
from constellation.distributions.negative_binomial import MAX_LOG_MEAN as MAX_LOG_PURCHASES
from constellation.errors import InputError
from constellation.objectives.base import HEAD_STD, Loss, Objective
from constellation.objectives.count_families import CountFamily, NegativeBinomial
from constellation.objectives.families import Family, ordered, ordered_start

if TYPE_CHECKING:
    from constellation.journeys.batch import JourneyBatch
    from constellation.journeys.vocabulary import Vocabulary

MAX_LOG_MEAN = 7.0
"""Expected money is capped at e^7 (1,100) times the training mean, or further up where a customer has spent more."""

HIGHEST_OVER_SEEN = 2.0
"""No quantile lies beyond so many times the highest money, or count, of training: a tail that is straight in logs, read
off a customer as large as no other, soon ends in billions."""


class Value(Objective):
    """Money by a hurdle family, purchases by a family of counts, expected values by heads of their own.

    Ordered horizons by construction: the logit of buying, the log of expected money and the log of expected purchases
    each rise by a softplus from one horizon to the next, so p_zero never rises and no mean ever falls.

    The mean of a fitted log-normal is biased wherever the tail is not log-normal. So expected money is no function of
    the family: it is fitted by the Poisson deviance, whose gradient (predicted - realised) makes the total right on
    the training data. Positive heads train on max(0, net); horizons that are not observed are left out.

    Expected purchases are always taught by the likelihood of a negative binomial, whose score (realised - mean) over
    (1 + dispersion x mean) is right on average whatever the distribution, and does not follow the largest buyers as
    the Poisson deviance does. Another family of counts is taught beside it, with outputs of its own, which read the
    readout and do not teach it (experiments/0014); it answers how counts are spread, unless ``answer_counts`` says
    otherwise.

    family: one of ``families``. count_family: one of ``count_families``; None is the negative binomial. mean_weight,
    purchases_weight: of the expected money and of the purchases against the family's loss.
    """

    name = "value"
    location_K: Tensor
    scale_K: Tensor
    mean_K: Tensor
    highest_K: Tensor
    most_purchases_K: Tensor
    answering: Tensor

    def __init__(
        self,
        vocabulary: Vocabulary,
        state_width: int,
        readout_width: int,
        horizons_days: Sequence[int],
        *,
        family: Family,
        count_family: CountFamily | None = None,
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
        self.mean_family = NegativeBinomial()
        self.spread_family = None if isinstance(count_family, NegativeBinomial) else count_family
        num_horizons = len(self.horizons_days)
        start = _Start.of(vocabulary, num_horizons)
        for part in ("location_K", "scale_K", "mean_K"):
            self.register_buffer(part, getattr(start, part))
        self.register_buffer("highest_K", start.highest_K, persistent=False)
        self.register_buffer("most_purchases_K", start.most_purchases_K, persistent=False)
        has_choice = self.spread_family is not None
        self.register_buffer("answering", torch.tensor(len(self.count_families) - 1), persistent=has_choice)
        self.most_log_mean = start.most_log_mean
        if family.keeps_scale:
            self.scale_K.fill_(1.0)
        # Per horizon: logit of buying, log expected money, log expected purchases, then the counts' and the family's.
        self.widths = (self.mean_family.num_parameters, family.num_parameters)
        self.head = nn.Linear(readout_width, num_horizons * (3 + sum(self.widths)))
        nn.init.normal_(self.head.weight, std=HEAD_STD)
        own_K3 = torch.stack([start.logit_K, start.log_mean_K, start.log_purchases_K], dim=1)
        counts = [part.begin(start.mean_purchases_K, start.size_purchases_K) for part in self.count_families]
        with torch.no_grad():
            family_KP = family.start().expand(num_horizons, -1)
            self.head.bias.copy_(torch.cat([own_K3, counts[0], family_KP], dim=1).flatten())
        self.spread_head = None
        if self.spread_family is not None:
            self.spread_head = nn.Linear(readout_width, num_horizons * self.spread_family.num_parameters)
            nn.init.normal_(self.spread_head.weight, std=HEAD_STD)
            with torch.no_grad():
                self.spread_head.bias.copy_(counts[1].flatten())

    @property
    def count_families(self) -> tuple[CountFamily, ...]:
        """The first one teaches the mean; which one answers how counts are spread, ``answering`` says."""
        return (self.mean_family,) if self.spread_family is None else (self.mean_family, self.spread_family)

    def answer_counts(self, place: int) -> None:
        """By the family at that place of ``count_families``."""
        self.answering.fill_(place)

    def _parts(
        self, readout_QD: Tensor, spread_QD: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor], Tensor]:
        """logit_QK, log expected money over mean_K[0], log expected purchases [Q, K]; counts_QKP each, family_QKP.

        spread_QD: what the spread of counts is read off; None: the readout, as all else.
        """
        raw_QKP = self.head(readout_QD).float().unflatten(-1, (len(self.horizons_days), -1))
        logit_QK, log_mean_QK, log_purchases_QK = (ordered(raw_QKP[..., part]) for part in range(3))
        log_purchases_QK = log_purchases_QK.clamp(max=MAX_LOG_PURCHASES)
        mean_QKP, family_QKP = raw_QKP[..., 3:].split(self.widths, dim=-1)
        counts = [mean_QKP]
        if self.spread_head is not None:
            spread_QP = self.spread_head(readout_QD if spread_QD is None else spread_QD).float()
            counts.append(spread_QP.unflatten(-1, (len(self.horizons_days), -1)))
        return logit_QK, log_mean_QK, log_purchases_QK, counts, family_QKP

    def loss(self, states_ND: Tensor, readout_QD: Tensor, batch: JourneyBatch) -> Loss:
        targets = batch.targets
        assert targets is not None
        assert targets.horizons_days == self.horizons_days
        # Read, and not taught: what is asked of the spread of counts takes nothing from money and means.
        logit_QK, log_mean_QK, log_purchases_QK, counts, raw_QKP = self._parts(readout_QD, readout_QD.detach())
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
        # Of customers without events most buy nothing, and a negative binomial that wide says little of its mean.
        new_Q1 = (batch.last_event_Q < 0).unsqueeze(1)
        count_QK = torch.where(new_Q1, poisson_deviance(log_purchases_QK, purchases_QK), 0.0)
        for part, count_QKP in zip(self.count_families, counts, strict=True):
            count_QK = count_QK + part.loss(log_purchases_QK, count_QKP, purchases_QK)
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
        logit_QK, log_mean_QK, log_purchases_QK, counts, raw_QKP = self._parts(readout_QD)
        expected_QK = log_mean_QK.clamp(max=self.most_log_mean).exp() * self.mean_K[0]
        p_zero_QK = torch.sigmoid(-logit_QK)
        u_QKL = self.family.quantile(logit_QK, raw_QKP, levels)
        log_QKL = u_QKL * self.scale_K.unsqueeze(-1) + self.location_K.unsqueeze(-1)
        quantiles_QKL = torch.minimum(log_QKL, self.highest_K.log().unsqueeze(-1)).exp()
        count_family, count_QKP = self.count_families[int(self.answering)], counts[int(self.answering)]
        purchases_zero_QK = count_family.p_zero(log_purchases_QK, count_QKP)
        purchases_QKL = count_family.quantile(log_purchases_QK, count_QKP, levels)
        purchases_QKL = torch.minimum(purchases_QKL, self.most_purchases_K.unsqueeze(-1))
        answers: dict[str, Tensor] = {}
        for place, days in enumerate(self.horizons_days):
            answers[f"value_{days}d_expected"] = expected_QK[:, place]
            answers[f"value_{days}d_p_zero"] = p_zero_QK[:, place]
            answers[f"value_{days}d_quantiles"] = quantiles_QKL[:, place]
            answers[f"purchases_{days}d_expected"] = log_purchases_QK[:, place].exp()
            answers[f"purchases_{days}d_p_zero"] = purchases_zero_QK[:, place]
            answers[f"purchases_{days}d_quantiles"] = purchases_QKL[:, place]
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
        self.mean_purchases_K = column(purchases["mean"], 1e-3)
        self.log_purchases_K = ordered_start(self.mean_purchases_K.log())
        # Vocabularies of before do not say the highest count either.
        most_K = HIGHEST_OVER_SEEN * column(purchases.get("highest", [0.0] * len(purchases["mean"])), 0.0)
        self.most_purchases_K = torch.where(most_K > 0, most_K, MAX_COUNT).cummax(0).values
        # The size k of variance = m + m^2 / k.
        self.size_purchases_K = column(purchases["dispersion"], 0.05, 100.0)

    @classmethod
    def of(cls, vocabulary: Vocabulary, num_horizons: int) -> _Start:
        if vocabulary.targets is not None:
            return cls(vocabulary.targets["value"], vocabulary.targets["purchases"])
        zeros, ones = [0.0] * num_horizons, [1.0] * num_horizons
        money = {"p_zero": [0.5] * num_horizons, "log_mean": zeros, "log_std": ones, "mean": ones}
        return cls(money, {"mean": ones, "dispersion": ones})
