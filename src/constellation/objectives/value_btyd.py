"""Amortised buy-till-you-die: the encoder sets the parameters of the classical model for each customer.

With a constant encoder it is the classical model: same likelihood, same predictions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from constellation.distributions.count_tables import wide_enough
from constellation.distributions.gamma_gamma_rows import GammaGammaRows
from constellation.distributions.levels import as_levels
from constellation.errors import InputError
from constellation.journeys.recency import DAYS_PER_WEEK
from constellation.objectives.base import HEAD_STD, Loss, Objective, check_times
from constellation.objectives.paths import check_lifetime, members_at, poisson_at, steady_points
from constellation.objectives.purchase_processes import Process, Rows

if TYPE_CHECKING:
    from constellation.journeys.batch import JourneyBatch
    from constellation.journeys.records import AfterCutoff, PurchaseRecord
    from constellation.journeys.vocabulary import Vocabulary

REACH = 4.0
"""Each parameter may be up to e^4 (55) times more or less than where it starts, and gets there smoothly."""

BASE_GAIN = 5.0
"""What all customers share is learned so much faster than the heads: the start knows little of dropout."""

DAYS_PER_YEAR = 365.25
LIFETIME_STEP_YEARS = 0.25
NUM_PARAMETERS = 8


class ValueBtyd(Objective):
    """BG/NBD, MBG/NBD or Pareto/NBD for purchase days and Gamma-Gamma for the money of each, set by the encoder.

    Loss: the exact likelihood of what came after the cutoff given the record at the cutoff, which is the likelihood of
    the longer record over that of the shorter one (``L(x', t_x', T') / L(x, t_x, T)``); from the first purchase on it
    is the classical likelihood. It needs no horizon label: it reads up to the longest horizon, or as far as is known,
    so it learns from any history however short. The encoder knows what the record holds and explains the future with
    it, so nothing is asked to predict its own input.

    Answers are those of ``value``: closed forms for expected values and P(zero), and quantiles from ``num_paths``
    points of a low-discrepancy sequence, the same for everybody. Further: ``p_alive`` and ``value_lifetime_expected``,
    the expected money of ``lifetime_years`` after the cutoff, discounted by ``discount_rate`` a year: the horizon's
    value extended by the process's own survival, beyond what any label has seen.

    process: ``purchase_processes.BgNbd()`` or ``ParetoNbd()``. money_weight: of the spend against the purchase days.
    """

    name = "value"
    needs_horizon_labels = False
    start_P: Tensor
    points_S8: Tensor

    def __init__(
        self,
        vocabulary: Vocabulary,
        state_width: int,
        readout_width: int,
        horizons_days: Sequence[int],
        *,
        process: Process,
        weight: float = 1.0,
        money_weight: float = 1.0,
        num_paths: int = 512,
        discount_rate: float = 0.1,
        lifetime_years: float = 5.0,
    ) -> None:
        super().__init__(horizons_days=horizons_days, weight=weight)
        del state_width  # asked of the readout only; every objective is built with the same arguments
        check_times("value_btyd", self.horizons_days, vocabulary)
        check_lifetime(discount_rate, lifetime_years, num_paths)
        self.process, self.money_weight = process, money_weight
        self.discount_rate, self.lifetime_years = discount_rate, lifetime_years
        start, spend = self._start(vocabulary)
        self.log_unit = math.log(spend)
        self.register_buffer("start_P", torch.tensor(start))
        self.register_buffer("points_S8", steady_points(num_paths, 8), persistent=False)
        self.base_P = nn.Parameter(torch.zeros(NUM_PARAMETERS))
        self.head = nn.Linear(readout_width, NUM_PARAMETERS)
        nn.init.normal_(self.head.weight, std=HEAD_STD)
        nn.init.zeros_(self.head.bias)

    def _start(self, vocabulary: Vocabulary) -> tuple[list[float], float]:
        """Logs of the eight parameters, and the typical money of a purchase."""
        per_horizon, shape, spend = 1.0, 1.0, 1.0
        if vocabulary.targets is not None:
            purchases, money = vocabulary.targets["purchases"], vocabulary.targets["value"]
            per_horizon = max(purchases["mean"][0], 1e-3)
            shape = min(max(purchases["dispersion"][0], 0.2), 3.0)
            spend = max(money["mean"][0] / per_horizon, 1e-3)
        rate_per_week = per_horizon * DAYS_PER_WEEK / self.horizons_days[0]
        # Gamma-Gamma p = 3 and q = 3, so that a purchase costs p v / (q - 1) = spend; then purchases beyond one a day.
        gamma_gamma = [math.log(3.0), math.log(2.0), math.log(2.0 * spend / 3.0)]
        return [*self.process.start(rate_per_week, shape), *gamma_gamma, math.log(0.05)], spend

    def parameters_of(self, readout_QD: Tensor) -> tuple[Rows, GammaGammaRows, Tensor]:
        """The purchase process, the spend, and the further purchases per purchase day [Q]; weeks and money."""
        raw_QP = self.head(readout_QD).double() + BASE_GAIN * self.base_P.double()
        log_QP = self.start_P.double() + REACH * torch.tanh(raw_QP / REACH)
        process_QP, spend_QP, extra_Q = log_QP[:, :4].exp(), log_QP[:, 4:7].exp(), log_QP[:, 7].exp()
        # q = 1 + .. has a mean for everybody.
        spend = GammaGammaRows(spend_QP[:, 0], 1 + spend_QP[:, 1], spend_QP[:, 2])
        return self.process.rows(process_QP), spend, extra_Q

    def loss(self, states_ND: Tensor, readout_QD: Tensor, batch: JourneyBatch) -> Loss:
        targets = batch.targets
        assert targets is not None
        if targets.after is None:
            assert len(readout_QD) == 0, "questions of a store with times have answers"
            return Loss(readout_QD.sum(), torch.zeros((), device=readout_QD.device))
        after, record = targets.after, _record(batch)
        process, spend, extra_Q = self.parameters_of(readout_QD)
        x_Q, t_x_Q, T_Q = record.x_Q.double(), record.t_x_Q.double(), record.T_Q.double()
        days_Q, weeks_Q = after.days_Q.double(), after.weeks_Q.double()
        last_Q = torch.where(days_Q > 0, T_Q + after.last_Q.double(), t_x_Q)
        later_Q = process.log_likelihood(x_Q + days_Q, last_Q, T_Q + weeks_Q)
        purchases_Q = process.log_likelihood(x_Q, t_x_Q, T_Q) - later_Q
        # Density of the mean spend in typical purchases, so that the loss does not depend on the currency.
        money_Q = (
            -spend.log_likelihood(*_known_spend(record), after.days_Q, after.money_Q) - _bought(after) * self.log_unit
        )
        further_Q = (after.purchases_Q.double() - days_Q).clamp(min=0)
        mean_Q = extra_Q * days_Q.clamp(min=1)
        poisson_Q = mean_Q - further_Q * mean_Q.log() + torch.lgamma(further_Q + 1)
        watched_Q = weeks_Q > 0
        zero_Q = torch.zeros_like(purchases_Q)
        terms = {
            "purchases": torch.where(watched_Q, purchases_Q, zero_Q).sum(),
            "money": torch.where(watched_Q, money_Q, zero_Q).sum(),
            "further": torch.where(watched_Q & (days_Q > 0), poisson_Q, zero_Q).sum(),
        }
        count = watched_Q.sum()
        total = terms["purchases"] + self.money_weight * terms["money"] + terms["further"]
        return Loss(
            total=total.to(readout_QD.dtype),
            count=count,
            parts={name: (term.detach() / count.clamp(min=1)).float() for name, term in terms.items()},
        )

    def predict(self, readout_QD: Tensor, batch: JourneyBatch, levels: Sequence[float] | Tensor) -> dict[str, Tensor]:
        """``value_<h>d_*`` in money and ``purchases_<h>d_*`` as ``value`` has them; ``p_alive`` and lifetime money."""
        record = _record(batch)
        rows = (record.x_Q.double(), record.t_x_Q.double(), record.T_Q.double())
        process, spend, extra_Q = self.parameters_of(readout_QD)
        known = _known_spend(record)
        per_day_Q = spend.expected_spend(*known)
        answers: dict[str, Tensor] = {}
        for days in self.horizons_days:
            weeks = days / DAYS_PER_WEEK
            days_Q, p_zero_Q = process.expected_purchases(*rows, weeks), process.p_zero(*rows, weeks)
            count_QL, value_QL = self._quantiles(readout_QD, record, weeks, p_zero_Q, levels)
            answers[f"value_{days}d_expected"] = days_Q * per_day_Q
            answers[f"value_{days}d_p_zero"] = p_zero_Q
            answers[f"value_{days}d_quantiles"] = value_QL
            answers[f"purchases_{days}d_expected"] = days_Q * (1 + extra_Q)
            answers[f"purchases_{days}d_p_zero"] = p_zero_Q
            answers[f"purchases_{days}d_quantiles"] = count_QL
        answers["value_lifetime_expected"] = self._lifetime_days(process, rows) * per_day_Q
        answers["p_alive"] = process.p_alive(*rows)
        return {name: answer.float() for name, answer in answers.items()}

    def _lifetime_days(self, process: Rows, rows: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """[Q], expected purchase days of the lifetime, each discounted from the middle of its quarter."""
        total_Q, before_Q = torch.zeros_like(rows[0]), torch.zeros_like(rows[0])
        for step in range(1, math.ceil(self.lifetime_years / LIFETIME_STEP_YEARS) + 1):
            years = min(step * LIFETIME_STEP_YEARS, self.lifetime_years)
            until_Q = process.expected_purchases(*rows, years * DAYS_PER_YEAR / DAYS_PER_WEEK)
            total_Q = total_Q + (until_Q - before_Q) * (1 + self.discount_rate) ** (LIFETIME_STEP_YEARS / 2 - years)
            before_Q = until_Q
        return total_Q

    @torch.no_grad()
    def _quantiles(
        self,
        readout_QD: Tensor,
        record: PurchaseRecord,
        weeks: float,
        p_zero_Q: Tensor,
        levels: Sequence[float] | Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Of purchases and of money, [Q, L] each: 0 up to P(zero), then from paths of those who buy."""
        levels_L = as_levels(levels, p_zero_Q)
        positive_QL = levels_L > p_zero_Q.unsqueeze(-1)
        among_QL = 1 - (1 - levels_L) / (1 - p_zero_Q.unsqueeze(-1)).clamp(min=1e-12)
        count_QL, value_QL = torch.zeros_like(among_QL), torch.zeros_like(among_QL)

        def table(rows: Tensor, width: int) -> Tensor:
            rows = rows.to(readout_QD.device)
            process = self.parameters_of(readout_QD[rows])[0]
            return process.count_pmf(record.x_Q[rows], record.t_x_Q[rows], record.T_Q[rows], weeks, width)

        for chosen, pmf_RM in wide_enough(table, len(readout_QD)):
            rows = chosen.to(readout_QD.device)
            _, spend, extra_Q = self.parameters_of(readout_QD[rows])
            some_RM = pmf_RM[:, 1:].cumsum(-1)
            share_RS = self.points_S8[:, 0] * some_RM[:, -1:]
            days_RS = 1 + torch.searchsorted(some_RM, share_RS.contiguous()).clamp(max=some_RM.shape[1] - 1).double()
            known_x, known_total = (part[rows] for part in _known_spend(record))
            money_RS = spend.totals(known_x, known_total, days_RS, self.points_S8[:, 1:7])
            purchases_RS = days_RS + poisson_at(extra_Q.unsqueeze(-1) * days_RS, self.points_S8[:, 7])
            count_QL[rows] = members_at(purchases_RS, among_QL[rows]).ceil()
            value_QL[rows] = members_at(money_RS, among_QL[rows])
        zero_QL = torch.zeros_like(value_QL)
        smallest = torch.finfo(torch.float32).tiny
        return torch.where(positive_QL, count_QL, zero_QL), torch.where(
            positive_QL, value_QL.clamp(min=smallest), zero_QL
        )


def _record(batch: JourneyBatch) -> PurchaseRecord:
    if batch.record is None:
        raise InputError("The objective value_btyd needs times, and of these events only the order is known.")
    return batch.record


def _bought(after: AfterCutoff) -> Tensor:
    """1 where purchases of positive money came, else 0."""
    return ((after.days_Q > 0) & (after.money_Q > 0)).double()


def _known_spend(record: PurchaseRecord) -> tuple[Tensor, Tensor]:
    """Purchases of known spend, and what they cost: none where the sum is not positive."""
    return torch.where(record.spend_Q > 0, record.x_Q, torch.zeros_like(record.x_Q)), record.spend_Q
