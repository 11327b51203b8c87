"""The network: a population is read as a set, and each customer is answered in its light.

A deep set (Zaheer et al. 2017, "Deep sets") over customers for the context, which then bends the layers of the
customer's own answer (Perez et al. 2018, "FiLM"). What it learns is the posterior predictive under the prior over
worlds: a prior-fitted network (Müller et al. 2022, "Transformers can do Bayesian inference").
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from constellation.distributions.log_normal_mixture import LogNormalMixture
from constellation.distributions.rounded_log_normals import RoundedLogNormals
from constellation.prior.features import NUM_COURSE, NUM_FEATURES

NUM_PARTS = 3
SPREAD = (-0.7, 0.0, 0.7)
"""Where the parts of a mixture begin, so that they are not three times the same."""

OUTPUTS = 2 + 6 * NUM_PARTS
LEAST_SHOCK = 0.01


@dataclass(frozen=True)
class Answer:
    """counts: purchase days; money: in the population's unit, per row. log_shock_W2: log of the standard deviation of
    the log total of purchase days and of money that a population's customers have in common.
    """

    counts: RoundedLogNormals
    money: LogNormalMixture
    log_shock_W2: Tensor


class PriorNetwork(nn.Module):
    """width: of the set's features; context: of what is kept of a population; hidden: of the customer's layers."""

    def __init__(self, *, width: int = 96, context: int = 64, hidden: int = 128) -> None:
        super().__init__()
        self.sizes = {"width": width, "context": context, "hidden": hidden}
        self.each = nn.Sequential(nn.Linear(NUM_FEATURES, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.population = nn.Sequential(
            nn.Linear(2 * width + NUM_COURSE, 2 * context), nn.SiLU(), nn.Linear(2 * context, context), nn.SiLU()
        )
        self.first = nn.Linear(NUM_FEATURES, hidden)
        self.bend_first = nn.Linear(context, 2 * hidden)
        self.second = nn.Linear(hidden, hidden)
        self.bend_second = nn.Linear(context, 2 * hidden)
        self.last = nn.Linear(hidden, OUTPUTS)
        self.shock = nn.Linear(context, 2)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        nn.init.zeros_(self.shock.weight)
        nn.init.constant_(self.shock.bias, -2.0)

    def sums(self, features_CF: Tensor, world_C: Tensor, num_worlds: int) -> Tensor:
        """[W, 2 width]: sums over each population's customers, in any order, so that they may be taken in parts."""
        each_CD = self.each(features_CF)
        each_CD = torch.cat([each_CD, each_CD.square()], dim=1)
        return torch.zeros(num_worlds, each_CD.shape[1], dtype=each_CD.dtype).index_add(0, world_C, each_CD)

    def context(self, sums_WD: Tensor, size_W: Tensor, course_WK: Tensor) -> Tensor:
        """[W, context] from the sums over customers and the population's course."""
        first_WD, second_WD = (sums_WD / size_W.unsqueeze(1)).chunk(2, dim=1)
        spread_WD = (second_WD - first_WD.square()).clamp(min=0.0).add(1e-6).sqrt()
        return self.population(torch.cat([first_WD, spread_WD, course_WK], dim=1))

    def forward(
        self, features_QF: Tensor, anchor_Q: Tensor, spend_Q: Tensor, world_Q: Tensor, context_WD: Tensor
    ) -> Answer:
        """Answers for customers, each in the context of its population."""
        bends_WH = (self.bend_first(context_WD), self.bend_second(context_WD))
        first_QH, second_QH = (bend_WH.index_select(0, world_Q) for bend_WH in bends_WH)
        state_QH = functional.silu(_bent(self.first(features_QF), first_QH))
        state_QH = state_QH + functional.silu(_bent(self.second(state_QH), second_QH))
        raw_QO = self.last(state_QH)
        some_Q, paid_Q = raw_QO[:, 0], raw_QO[:, 1]
        weight_QM, mu_QM, sigma_QM, money_weight_QM, money_mu_QM, money_sigma_QM = raw_QO[:, 2:].chunk(6, dim=1)
        spread_M = torch.tensor(SPREAD, dtype=raw_QO.dtype)
        expected_Q = anchor_Q.exp()
        # P(some) starts at a Poisson's with the anchor as its mean; the mean of those who buy is at least one.
        logit_Q = (expected_Q.clamp(1e-4, 12.0).expm1() + 1e-6).log() + some_Q
        log_some_Q = (expected_Q + 0.7).log().unsqueeze(1)
        mu_QM = log_some_Q + spread_M + mu_QM
        sigma_QM = functional.softplus(sigma_QM - 0.3) + 0.03
        counts = RoundedLogNormals(logit_Q, weight_QM, mu_QM, sigma_QM)
        money_mu_QM = log_some_Q + spend_Q.unsqueeze(1) + spread_M + money_mu_QM
        money_logit_Q = logit_Q - functional.softplus(-4.0 - paid_Q)
        money = LogNormalMixture(
            money_logit_Q, money_weight_QM, money_mu_QM, functional.softplus(money_sigma_QM) + 0.03
        )
        log_shock_W2 = functional.softplus(self.shock(context_WD)).add(LEAST_SHOCK).log()
        return Answer(counts, money, log_shock_W2)


def _bent(state_QH: Tensor, bend_QH2: Tensor) -> Tensor:
    scale_QH, shift_QH = bend_QH2.chunk(2, dim=1)
    return state_QH * (1 + scale_QH) + shift_QH
