"""Horizon value from hazards: when the next purchase day comes, how far apart days lie, and what a day is worth.

It needs no horizon to have been seen whole, so it answers horizons longer than the history it learns from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from constellation.distributions.discrete_hazard import DiscreteHazard
from constellation.distributions.levels import as_levels
from constellation.distributions.renewals import Renewals
from constellation.objectives.base import HEAD_STD, Loss, Objective, check_times
from constellation.objectives.paths import check_lifetime, members_at, poisson_at, steady_points
from constellation.objectives.time_to_event import CLOCK_CHANGE_DAYS, hazard_edges
from constellation.objectives.value import poisson_deviance

if TYPE_CHECKING:
    from constellation.journeys.batch import JourneyBatch
    from constellation.journeys.vocabulary import Vocabulary

DAYS_PER_YEAR = 365.25
REACH = 4.0
"""Money and spreads may be up to e^4 (55) times more or less than where they start, and get there smoothly."""

NUM_SPEND = 5
NUM_PACES = 3
PACES_APART = 1.0
"""Logits between the hazards of neighbouring paces at the start; they are learned."""

LEAST_DAYS = 1e-4


class ValueHazard(Objective):
    """Purchase days as a renewal process with hazards set by the encoder, money per purchase day by heads.

    Two discrete-time hazards, both asked of the readout at the cutoff: days to the next purchase day, and days from one
    to the following, in each of ``NUM_PACES`` paces whose shares the readout sets: customers that read alike differ,
    and who is slow to come is slow to come back. Each learns from what was watched, however short; an interval of time
    that nobody was watched through has about the hazard of the one before. Expected days and the distribution of their
    number over a horizon follow by convolution (``distributions.renewals``), pace by pace. A Poisson deviance of the
    days that came while one watched holds their mean.

    Money per purchase day: expected, by the Poisson deviance of all net money against expected days (so refunds and
    other money count); its spread, a log-normal for n days with squared relative spread ``a / n + b``. Further
    purchases on a day are Poisson.

    Answers are those of ``value``; quantiles from ``num_paths`` points, the same for everybody. Further
    ``value_lifetime_expected``: the money of ``lifetime_years``, discounted by ``discount_rate`` a year, the last
    hazards going on: the horizon's value extended by the process's own staying, beyond what any label has seen.

    edges_days: ends of the intervals; null: a grid up to the longest horizon. money_weight: of spend against days.
    """

    name = "value"
    needs_horizon_labels = False
    edges_J: Tensor
    start_J: Tensor
    start_P: Tensor
    points_S3: Tensor

    def __init__(
        self,
        vocabulary: Vocabulary,
        state_width: int,
        readout_width: int,
        horizons_days: Sequence[int],
        *,
        weight: float = 1.0,
        edges_days: Sequence[int] | None = None,
        money_weight: float = 0.5,
        num_paths: int = 512,
        discount_rate: float = 0.1,
        lifetime_years: float = 5.0,
    ) -> None:
        super().__init__(horizons_days=horizons_days, weight=weight)
        del state_width  # asked of the readout only; every objective is built with the same arguments
        check_times("value_hazard", self.horizons_days, vocabulary)
        check_lifetime(discount_rate, lifetime_years, num_paths)
        self.money_weight, self.discount_rate, self.lifetime_years = money_weight, discount_rate, lifetime_years
        self.edges_days = hazard_edges(self.horizons_days, edges_days)
        self.register_buffer("edges_J", torch.tensor(self.edges_days, dtype=torch.float32), persistent=False)
        per_day, spend = self._start(vocabulary)
        length_J = self.edges_J.diff(prepend=torch.zeros(1))
        self.register_buffer("start_J", torch.expm1(per_day * length_J).clamp(min=1e-6).log())
        # log money per day, log of a day's typical money, logs of both spreads, log of further purchases
        self.register_buffer("start_P", torch.tensor([math.log(spend)] * 2 + [math.log(0.3)] * 2 + [math.log(0.05)]))
        self.unit = spend
        self.hazards = nn.Linear(readout_width, 2 * len(self.edges_days))
        self.paces = nn.Linear(readout_width, NUM_PACES)
        self.pace_offset_K = nn.Parameter(PACES_APART * (torch.arange(NUM_PACES) - (NUM_PACES - 1) / 2))
        self.spend = nn.Linear(readout_width, NUM_SPEND)
        for head in (self.hazards, self.paces, self.spend):
            nn.init.normal_(head.weight, std=HEAD_STD)
            nn.init.zeros_(head.bias)
        self.register_buffer("points_S3", steady_points(num_paths, 3), persistent=False)

    def _start(self, vocabulary: Vocabulary) -> tuple[float, float]:
        """Purchases per day and money of each, over everybody in the training data; neutral where nothing is known."""
        targets, days = vocabulary.targets, float(self.horizons_days[0])
        if targets is None:
            return 1.0 / days, 1.0
        purchases = max(targets["purchases"]["mean"][0], 1e-3)
        return purchases / days, max(targets["value"]["mean"][0] / purchases, 1e-3)

    def waits(self, readout_QD: Tensor) -> tuple[DiscreteHazard, DiscreteHazard]:
        """Days to the next purchase day, and from one purchase day to the following; rows [Q * K], paces together."""
        # Sums of steps: an interval that was never watched has no step of its own and about the hazard before it.
        steps_Q2J = self.hazards(readout_QD).float().unflatten(-1, (2, len(self.edges_days)))
        logits_Q12J = (self.start_J + steps_Q2J.cumsum(-1)).unsqueeze(1)
        logits_R2J = (logits_Q12J + self.pace_offset_K.float()[:, None, None]).flatten(0, 1)
        first, gap = (DiscreteHazard(self.edges_J, logits_R2J[:, place].unsqueeze(-1)) for place in range(2))
        return first, gap

    def _shares(self, readout_QD: Tensor) -> Tensor:
        """Shares of the paces [Q, K]."""
        return torch.softmax(self.paces(readout_QD).double(), dim=-1)

    def _mixed(self, readout_QD: Tensor, values_RX: Tensor) -> Tensor:
        """[Q, ...] means over paces of values of rows [Q * K, ...]."""
        values_QKX = values_RX.unflatten(0, (len(readout_QD), NUM_PACES))
        return torch.einsum("qk,qk...->q...", self._shares(readout_QD), values_QKX)

    def _spend(self, readout_QD: Tensor) -> tuple[Tensor, ...]:
        """Expected money per purchase day, log of a day's typical money, both spreads, further purchases: [Q] each."""
        raw_QP = self.spend(readout_QD).double()
        log_QP = self.start_P.double() + REACH * torch.tanh(raw_QP / REACH)
        return log_QP[:, 0].exp(), log_QP[:, 1], log_QP[:, 2].exp(), log_QP[:, 3].exp(), log_QP[:, 4].exp()

    def _renewals(self, readout_QD: Tensor, num_days: int) -> Renewals:
        first, gap = self.waits(readout_QD)
        return Renewals(first.daily_survival(num_days), gap.daily_survival(num_days))

    def loss(self, states_ND: Tensor, readout_QD: Tensor, batch: JourneyBatch) -> Loss:
        targets = batch.targets
        assert targets is not None
        if targets.after is None:
            assert len(readout_QD) == 0, "questions of a store with times have answers"
            return Loss(readout_QD.sum(), torch.zeros((), device=readout_QD.device))
        after = targets.after
        first, gap = self.waits(readout_QD)
        watched_days_Q = after.weeks_Q * 7 + CLOCK_CHANGE_DAYS
        came_Q = after.first_day_Q <= watched_days_Q
        begun_Q = torch.where(came_Q, after.first_day_Q, torch.zeros_like(watched_days_Q))

        def of_pace(hazard: DiscreteHazard, days_Q: Tensor, until_Q: Tensor) -> tuple[Tensor, Tensor]:
            rows = (each.repeat_interleave(NUM_PACES) for each in (days_Q, until_Q))
            log_p_R, asked_R = hazard.log_likelihood(next(rows).unsqueeze(-1), next(rows))
            return log_p_R.unflatten(0, (-1, NUM_PACES)).double(), asked_R.unflatten(0, (-1, NUM_PACES))[:, 0]

        log_first_QK, asked_Q = of_pace(first, after.first_day_Q, watched_days_Q)
        log_gap_QK, _ = of_pace(gap, after.second_day_Q - begun_Q, watched_days_Q - begun_Q)
        log_both_QK = log_first_QK + torch.where(came_Q.unsqueeze(-1), log_gap_QK, 0.0)
        terms = {
            "waits": -torch.logsumexp(self._shares(readout_QD).log() + log_both_QK, dim=-1).sum(),
            **self._counted(readout_QD, after.weeks_Q * 7, after.days_Q, after.purchases_Q, after.value_Q),
        }
        count = (asked_Q | (after.weeks_Q > 0)).sum()
        weights = {"money": self.money_weight, "spread": self.money_weight}
        total = torch.stack([weights.get(name, 1.0) * term.double() for name, term in terms.items()]).sum()
        parts = {name: (term.detach() / count.clamp(min=1)).float() for name, term in terms.items()}
        return Loss(total.to(readout_QD.dtype), count, parts)

    def _counted(
        self, readout_QD: Tensor, watched_Q: Tensor, days_Q: Tensor, purchases_Q: Tensor, value_Q: Tensor
    ) -> dict[str, Tensor]:
        """Losses of how many purchase days came while one watched, of their money and of further purchases."""
        longest = self.horizons_days[-1]
        if not len(readout_QD):
            return dict.fromkeys(("days", "money", "spread", "further"), readout_QD.sum())
        expected_QD = self._mixed(readout_QD, self._renewals(readout_QD, longest).expected())
        day_Q = watched_Q.double().clamp(0.0, float(longest))
        low_Q = day_Q.long().clamp(max=longest - 1)
        low_days_Q, high_days_Q = (expected_QD.gather(-1, at[:, None]).squeeze(-1) for at in (low_Q, low_Q + 1))
        log_days_Q = torch.lerp(low_days_Q, high_days_Q, day_Q - low_Q).clamp(min=LEAST_DAYS).log()
        per_day_Q, typical_Q, own_Q, common_Q, further_Q = self._spend(readout_QD)
        days_Q, value_Q = days_Q.double(), value_Q.double().clamp(min=0.0)
        mean_Q = per_day_Q.log() - math.log(self.unit) + log_days_Q.detach()
        bought_Q = (days_Q > 0) & (value_Q > 0)
        num_Q = days_Q.clamp(min=1.0)
        variance_Q = torch.log1p(own_Q / num_Q + common_Q)
        log_value_Q = torch.where(bought_Q, value_Q, torch.ones_like(value_Q)).log()
        error_Q = log_value_Q - (typical_Q + num_Q.log() - variance_Q / 2)
        spread_Q = 0.5 * (error_Q.square() / variance_Q + variance_Q.log())
        more_Q = (purchases_Q.double() - days_Q).clamp(min=0)
        lambda_Q = further_Q * num_Q
        poisson_Q = lambda_Q - more_Q * lambda_Q.log() + torch.lgamma(more_Q + 1)
        watched_Q, zero_Q = watched_Q > 0, torch.zeros_like(day_Q)
        return {
            "days": torch.where(watched_Q, poisson_deviance(log_days_Q, days_Q), zero_Q).sum(),
            "money": torch.where(watched_Q, poisson_deviance(mean_Q, value_Q / self.unit), zero_Q).sum(),
            "spread": torch.where(watched_Q & bought_Q, spread_Q, zero_Q).sum(),
            "further": torch.where(watched_Q & (days_Q > 0), poisson_Q, zero_Q).sum(),
        }

    def predict(self, readout_QD: Tensor, batch: JourneyBatch, levels: Sequence[float] | Tensor) -> dict[str, Tensor]:
        """``value_<h>d_*`` in money and ``purchases_<h>d_*`` as ``value`` has them; ``value_lifetime_expected``."""
        renewals = self._renewals(readout_QD, self.horizons_days[-1])
        expected_QD = self._mixed(readout_QD, renewals.expected())
        survival_QD = self._mixed(readout_QD, renewals.survival_first_QD)
        per_day_Q, *_, further_Q = self._spend(readout_QD)
        answers: dict[str, Tensor] = {}
        for days in self.horizons_days:
            days_Q, p_zero_Q = expected_QD[:, days].clamp(min=0.0), survival_QD[:, days]
            pmf_QM = self._mixed(readout_QD, renewals.count_pmf(days))
            count_QL, value_QL = self._quantiles(readout_QD, pmf_QM, p_zero_Q, levels)
            answers[f"value_{days}d_expected"] = days_Q * per_day_Q
            answers[f"value_{days}d_p_zero"] = p_zero_Q
            answers[f"value_{days}d_quantiles"] = value_QL
            answers[f"purchases_{days}d_expected"] = days_Q * (1 + further_Q)
            answers[f"purchases_{days}d_p_zero"] = p_zero_Q
            answers[f"purchases_{days}d_quantiles"] = count_QL
        answers["value_lifetime_expected"] = per_day_Q * self._lifetime_days(readout_QD)
        return {name: answer.float() for name, answer in answers.items()}

    def _lifetime_days(self, readout_QD: Tensor) -> Tensor:
        """[Q], expected purchase days of the lifetime, each discounted from its own day."""
        num_days = max(round(self.lifetime_years * DAYS_PER_YEAR), 1)
        day_D = torch.arange(num_days + 1, dtype=torch.float64)
        worth_D = (1 + self.discount_rate) ** (-day_D / DAYS_PER_YEAR)
        return self._mixed(readout_QD, self._renewals(readout_QD, num_days).discounted(worth_D))

    @torch.no_grad()
    def _quantiles(
        self, readout_QD: Tensor, pmf_QM: Tensor, p_zero_Q: Tensor, levels: Sequence[float] | Tensor
    ) -> tuple[Tensor, Tensor]:
        """Of purchases and of money, [Q, L] each: 0 up to P(zero), then from paths of those who buy."""
        levels_L = as_levels(levels, p_zero_Q)
        positive_QL = levels_L > p_zero_Q.unsqueeze(-1)
        among_QL = 1 - (1 - levels_L) / (1 - p_zero_Q.unsqueeze(-1)).clamp(min=1e-12)
        some_QM = pmf_QM[:, 1:].cumsum(-1)
        if not some_QM.shape[1]:  # nobody buys: a table of no counts but zero
            return torch.zeros_like(among_QL), torch.zeros_like(among_QL)
        share_QS = self.points_S3[:, 0] * some_QM[:, -1:]
        days_QS = 1 + torch.searchsorted(some_QM, share_QS.contiguous()).clamp(max=some_QM.shape[1] - 1).double()
        _, typical_Q, own_Q, common_Q, further_Q = (part.unsqueeze(-1) for part in self._spend(readout_QD))
        variance_QS = torch.log1p(own_Q / days_QS + common_Q)
        normal_S = torch.special.ndtri(self.points_S3[:, 1])
        money_QS = (typical_Q + days_QS.log() - variance_QS / 2 + variance_QS.sqrt() * normal_S).exp()
        purchases_QS = days_QS + poisson_at(further_Q * days_QS, self.points_S3[:, 2])
        zero_QL, smallest = torch.zeros_like(among_QL), torch.finfo(torch.float32).tiny
        count_QL = torch.where(positive_QL, members_at(purchases_QS, among_QL).ceil(), zero_QL)
        return count_QL, torch.where(positive_QL, members_at(money_QS, among_QL).clamp(min=smallest), zero_QL)
