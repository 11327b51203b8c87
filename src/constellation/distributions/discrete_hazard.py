"""Discrete-time hazards with competing risks: when something first happens, and which of several things.

Within an interval at most one thing happens first: a softmax over {nothing yet, cause 1, .., cause R}. With one cause
this is the logistic hazard of Gensheimer and Narasimhan (2019); with several, Lee et al.'s setting (2018) by hazards.
Between the edges of an interval the total hazard is taken as constant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from constellation.distributions.levels import as_levels, at_least_float32

MAX_LOGIT = 30.0


class DiscreteHazard:
    """logits_QJR: of R causes against nothing, in each of J intervals. edges_days_J: ends of the intervals, ascending.

    The first interval begins at 0. Half precision is promoted to float32.
    """

    def __init__(self, edges_days_J: Tensor, logits_QJR: Tensor) -> None:
        self.edges_J = edges_days_J.to(logits_QJR.device)
        logits_QJR = at_least_float32(logits_QJR).clamp(-MAX_LOGIT, MAX_LOGIT)
        every = torch.cat([torch.zeros_like(logits_QJR[..., :1]), logits_QJR], dim=-1)
        self.log_p_QJS = torch.log_softmax(every, dim=-1)  # S = 1 + R, nothing first

    def log_likelihood(self, days_QR: Tensor, watched_days_Q: Tensor) -> tuple[Tensor, Tensor]:
        """[Q] log-likelihood, and bool [Q]: whether anything was watched at all.

        days_QR: to each cause, infinite where it was not seen; ties go to the first cause. watched_days_Q: how long one
        watched. An interval counts only where all of it was watched: one watched in part would count its events and
        lose those who went through it.
        """
        days_Q, cause_Q = days_QR.min(dim=-1)
        num_intervals = len(self.edges_J)
        interval_Q = torch.searchsorted(self.edges_J.to(days_Q.dtype), days_Q.contiguous())  # J: beyond the last edge
        watched_QJ = self.edges_J <= watched_days_Q.unsqueeze(-1)
        place_J = torch.arange(num_intervals, device=days_Q.device)
        before_QJ = watched_QJ & (place_J < interval_Q.unsqueeze(-1))
        at_QJ = watched_QJ & (place_J == interval_Q.unsqueeze(-1))
        of_cause_QJ = self.log_p_QJS.gather(-1, (1 + cause_Q)[:, None, None].expand(-1, num_intervals, 1)).squeeze(-1)
        zero_QJ = torch.zeros_like(of_cause_QJ)
        terms_QJ = torch.where(before_QJ, self.log_p_QJS[..., 0], zero_QJ) + torch.where(at_QJ, of_cause_QJ, zero_QJ)
        return terms_QJ.sum(-1), watched_QJ.any(-1)

    def log_survival(self) -> Tensor:
        """[Q, J], log P(nothing has happened by the edge)."""
        return self.log_p_QJS[..., 0].cumsum(-1)

    def incidence(self) -> Tensor:
        """[Q, J, R], P(cause r came first and came by the edge): ``sum over j of S(j - 1) p(j, r)``."""
        log_before_QJ = self.log_survival() - self.log_p_QJS[..., 0]
        return (log_before_QJ.unsqueeze(-1) + self.log_p_QJS[..., 1:]).exp().cumsum(-2)

    def survival_at(self, days: float) -> Tensor:
        """[Q], P(nothing by so many days); beyond the last edge the last hazard goes on."""
        start_J = torch.cat([torch.zeros_like(self.edges_J[:1]), self.edges_J[:-1]])
        length_J = self.edges_J - start_J
        share_J = ((days - start_J) / length_J).clamp(0.0, 1.0)
        beyond = max(days - float(self.edges_J[-1]), 0.0) / float(length_J[-1])
        share_J = torch.cat([share_J[:-1], share_J[-1:] + beyond])
        return (self.log_p_QJS[..., 0] * share_J.to(self.log_p_QJS.dtype)).sum(-1).exp()

    def daily_survival(self, num_days: int) -> Tensor:
        """[Q, num_days + 1], P(nothing by the end of day 0, 1, ..); beyond the last edge the last hazard goes on."""
        end_J = self.edges_J.double()
        start_J = torch.cat([torch.zeros_like(end_J[:1]), end_J[:-1]])
        day_D1 = torch.arange(num_days + 1, dtype=torch.float64, device=end_J.device).unsqueeze(-1)
        share_DJ = (day_D1 - start_J) / (end_J - start_J)
        share_DJ = torch.cat([share_DJ[:, :-1].clamp(max=1.0), share_DJ[:, -1:]], dim=-1).clamp(min=0.0)
        return (self.log_p_QJS[..., 0].double() @ share_DJ.T).exp()

    def restricted_mean(self) -> Tensor:
        """[Q], expected days until it happens, counted up to the last edge: the area under the survival curve."""
        log_after_QJ, log_p_QJ = self.log_survival(), self.log_p_QJS[..., 0]
        length_J = self.edges_J.diff(prepend=torch.zeros_like(self.edges_J[:1]))
        # Constant hazard: the mean of an exponential between its ends, (1 - e^-h) / h of the start.
        hazard_QJ = -log_p_QJ
        small_QJ = hazard_QJ < 1e-4
        safe_QJ = torch.where(small_QJ, torch.ones_like(hazard_QJ), hazard_QJ)
        share_QJ = torch.where(small_QJ, 1 - hazard_QJ / 2, -torch.expm1(-safe_QJ) / safe_QJ)
        return ((log_after_QJ - log_p_QJ).exp() * share_QJ * length_J.to(share_QJ.dtype)).sum(-1)

    def quantile(self, levels: Sequence[float] | Tensor) -> Tensor:
        """[Q, L], days by which it has happened with each probability; infinite where the last edge does not see it."""
        levels_L = as_levels(levels, self.log_p_QJS)
        wanted_QL = -torch.log1p(-levels_L).expand(len(self.log_p_QJS), -1)
        return self._invert(wanted_QL)

    @torch.no_grad()
    def sample(self, num_samples: int, *, generator: torch.Generator | None = None) -> Tensor:
        """[num_samples, Q] days, infinite where nothing happens by the last edge."""
        shape = (len(self.log_p_QJS), num_samples)
        uniform_QS = torch.rand(shape, generator=generator, dtype=torch.float64, device=self.log_p_QJS.device)
        return self._invert(-torch.log1p(-uniform_QS)).T

    def _invert(self, hazard_QL: Tensor) -> Tensor:
        """Days at which the cumulative hazard reaches each value, linear within intervals."""
        cumulative_QJ = -self.log_survival().to(hazard_QL.dtype)
        place_QL = torch.searchsorted(cumulative_QJ.contiguous(), hazard_QL.contiguous())
        inside_QL = place_QL < len(self.edges_J)
        place_QL = place_QL.clamp(max=len(self.edges_J) - 1)
        after_QL = cumulative_QJ.gather(-1, place_QL)
        step_QL = -self.log_p_QJS[..., 0].to(hazard_QL.dtype).gather(-1, place_QL)
        length_J = self.edges_J.diff(prepend=torch.zeros_like(self.edges_J[:1])).to(hazard_QL.dtype)
        back_QL = (after_QL - hazard_QL) / step_QL.clamp(min=1e-12)
        days_QL = self.edges_J.to(hazard_QL.dtype)[place_QL] - back_QL * length_J[place_QL]
        return torch.where(inside_QL, days_QL, torch.full_like(days_QL, math.inf))
