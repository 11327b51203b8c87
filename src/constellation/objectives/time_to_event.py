"""When: the next purchase, and the end of the relationship where ends are declared; under censoring."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from constellation.distributions.discrete_hazard import DiscreteHazard
from constellation.errors import InputError
from constellation.objectives.base import HEAD_STD, Loss, Objective, check_times

if TYPE_CHECKING:
    from constellation.journeys.batch import JourneyBatch
    from constellation.journeys.vocabulary import Vocabulary

EDGES_DAYS = (1, 2, 3, 5, 7, 10, 14, 21, 30, 45, 61, 91, 122, 152, 182, 273, 365, 548, 730, 1096, 1461, 1826)
"""Ends of the intervals: fine where most happens, coarse where little does."""

CLOCK_CHANGE_DAYS = 2 / 24
"""A day on which the clock changes is an hour longer, and the same wall-clock day still counts as watched."""


class TimeToEvent(Objective):
    """Discrete-time hazards, asked of the readout at every cutoff: trained on any history, however short.

    Two clocks. *Purchase*: days to the next purchase. *End*: days to the first of the schema's ``churn_types``
    (cancelled, lapsed, ..), each a competing risk; customers who have ended and not bought since are left out of the
    loss, and answered as gone. A question whose watching ended before anything happened says that nothing had happened
    so far, and nothing more. Logits are sums of steps from interval to interval, on top of a constant hazard: an
    interval that nobody was watched through has no step of its own and about the hazard before it, so a horizon longer
    than the history is answered as if things went on as they were at the end of what was watched.

    Answers: ``p_purchase_<h>d``, P(a purchase within the horizon); ``wait_expected_days``, the restricted mean of the
    days to it (counted up to the longest edge). ``p_active_<h>d``: contract data (ends are declared): P(no end within
    the horizon); other data: the same as ``p_purchase``, for there a customer is lost by not buying. With declared ends
    also ``duration_expected_days``, the restricted mean of the days until the end, and ``p_end_<type>_<h>d``.

    edges_days: ends of the intervals; null: a grid up to the longest horizon. Horizons are always among them.
    """

    name = "time_to_event"
    needs_horizon_labels = False
    edges_J: Tensor
    start_J: Tensor

    def __init__(
        self,
        vocabulary: Vocabulary,
        state_width: int,
        readout_width: int,
        horizons_days: Sequence[int],
        *,
        weight: float = 1.0,
        edges_days: Sequence[int] | None = None,
    ) -> None:
        super().__init__(horizons_days=horizons_days, weight=weight)
        del state_width  # asked of the readout only; every objective is built with the same arguments
        check_times("time_to_event", self.horizons_days, vocabulary)
        self.edges_days = hazard_edges(self.horizons_days, edges_days)
        self.register_buffer("edges_J", torch.tensor(self.edges_days, dtype=torch.float32), persistent=False)
        self.causes = list(vocabulary.churn_types)
        self.register_buffer("start_J", self._start(vocabulary))
        self.purchase = self._head(readout_width, len(self.edges_days))
        if self.causes:
            self.ends = self._head(readout_width, len(self.edges_days) * len(self.causes))

    def _start(self, vocabulary: Vocabulary) -> Tensor:
        """Logits [J] of a constant hazard under which as many buy nothing as in the training data."""
        p_zero, days = 0.5, float(self.horizons_days[0])
        if vocabulary.targets is not None:
            p_zero = min(max(vocabulary.targets["value"]["p_zero"][0], 0.02), 0.98)
        length_J = self.edges_J.diff(prepend=torch.zeros(1))
        survives_J = torch.exp(math.log(p_zero) / days * length_J)
        return torch.log((1 - survives_J) / survives_J)

    def _head(self, readout_width: int, num_steps: int) -> nn.Linear:
        head = nn.Linear(readout_width, num_steps)
        nn.init.normal_(head.weight, std=HEAD_STD)
        nn.init.zeros_(head.bias)
        return head

    def next_purchase(self, readout_QD: Tensor) -> DiscreteHazard:
        """Days to the next purchase."""
        steps_QJ = self.purchase(readout_QD).float()
        return DiscreteHazard(self.edges_J, (self.start_J + steps_QJ.cumsum(-1)).unsqueeze(-1))

    def end(self, readout_QD: Tensor) -> DiscreteHazard:
        """Days to the end, one cause per declared type."""
        steps_QJR = self.ends(readout_QD).float().unflatten(-1, (len(self.edges_days), len(self.causes)))
        # The rate of ends is unknown at the start; a tenth of that of purchases is nearer than any constant.
        start_J1 = (self.start_J - math.log(10)).unsqueeze(-1)
        return DiscreteHazard(self.edges_J, start_J1 + steps_QJR.cumsum(-2))

    def loss(self, states_ND: Tensor, readout_QD: Tensor, batch: JourneyBatch) -> Loss:
        targets = batch.targets
        assert targets is not None
        if targets.after is None or batch.record is None:
            assert len(readout_QD) == 0, "questions of a store with times have answers"
            return Loss(readout_QD.sum(), torch.zeros((), device=readout_QD.device))
        after = targets.after
        watched_Q = after.watched_days_Q + CLOCK_CHANGE_DAYS
        log_p_Q, asked_Q = self.next_purchase(readout_QD).log_likelihood(after.purchase_days_Q.unsqueeze(-1), watched_Q)
        total, count = -log_p_Q.sum(), asked_Q.sum()
        parts = {"purchase": total.detach() / count.clamp(min=1)}
        if self.causes:
            log_p_Q, asked_Q = self.end(readout_QD).log_likelihood(after.churn_days_QR, watched_Q)
            here_Q = asked_Q & ~batch.record.left_Q
            ends, num_ends = -torch.where(here_Q, log_p_Q, torch.zeros_like(log_p_Q)).sum(), here_Q.sum()
            parts["end"] = ends.detach() / num_ends.clamp(min=1)
            total, count = total + ends, count + num_ends
        return Loss(total, count, parts)

    def predict(self, readout_QD: Tensor, batch: JourneyBatch, levels: Sequence[float] | Tensor) -> dict[str, Tensor]:
        """Probabilities and days [Q]; ``levels`` say nothing here: no quantiles are answered."""
        purchase = self.next_purchase(readout_QD)
        answers = {f"p_purchase_{days}d": 1 - purchase.survival_at(days) for days in self.horizons_days}
        if self.causes:
            assert batch.record is not None
            here_Q = (~batch.record.left_Q).to(readout_QD.dtype)
            end = self.end(readout_QD)
            incidence_QJR = end.incidence()
            for days in self.horizons_days:
                answers[f"p_active_{days}d"] = here_Q * end.survival_at(days)
                for place, cause in enumerate(self.causes):
                    by_Q = incidence_QJR[:, self.edges_days.index(days), place]
                    answers[f"p_end_{cause}_{days}d"] = here_Q * by_Q
            answers["duration_expected_days"] = here_Q * end.restricted_mean()
        else:
            answers |= {f"p_active_{days}d": answers[f"p_purchase_{days}d"] for days in self.horizons_days}
        answers["wait_expected_days"] = purchase.restricted_mean()
        return answers


def hazard_edges(horizons_days: Sequence[int], edges_days: Sequence[int] | None) -> list[int]:
    """Ascending ends of the intervals in days, horizons among them. Raises InputError for impossible ones."""
    longest = horizons_days[-1]
    given = (
        [days for days in EDGES_DAYS if days < longest] if edges_days is None else [int(each) for each in edges_days]
    )
    if any(days < 1 for days in given):
        raise InputError(f"edges_days must be whole days from 1 on, found {given}.")
    return sorted({*given, *horizons_days})
