"""What every objective is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor, nn

from constellation.errors import InputError

if TYPE_CHECKING:
    from constellation.journeys.batch import JourneyBatch
    from constellation.journeys.vocabulary import Vocabulary

HEAD_STD = 0.02
"""Weights of a head start so small that every customer starts with the distribution of the training data."""


def check_times(objective: str, horizons_days: Sequence[int], vocabulary: Vocabulary) -> None:
    """For objectives about when. Raises InputError where there is no clock or nothing is asked over a horizon."""
    if not horizons_days or not vocabulary.aggregates.windows_days:
        raise InputError(
            f"The objective {objective} needs times and horizons, and of these data only the order is known. "
            "Leave it out, as in objective=[next_event]."
        )


@dataclass
class Loss:
    """total: sum over the targets, with gradient. count: number of targets, a tensor of no dimension.

    The trainer divides the sum by the count of all ranks. parts: mean of each term, detached, for the curves.
    """

    total: Tensor
    count: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)

    @property
    def mean(self) -> Tensor:
        """total / count; 0 where there was nothing to learn from."""
        return self.total / self.count.clamp(min=1)


class Objective(nn.Module):
    """``loss(states_ND, readout_QD, batch)`` and ``predict(readout_QD, batch, levels)``.

    A subclass is built with ``(vocabulary, state_width, readout_width, horizons_days, *, weight, ...)``; nothing is
    registered: one file here, one YAML in ``configs/objective``. ``weight`` multiplies its mean loss in the sum.
    """

    name: str
    needs_horizon_labels = True
    """Whether a horizon must have been seen whole in training to be answered; else any history will do."""

    def __init__(self, *, horizons_days: Sequence[int], weight: float) -> None:
        super().__init__()
        self.horizons_days = tuple(int(days) for days in horizons_days)
        self.weight = float(weight)

    def teach(self, horizons_days: Sequence[int]) -> None:
        """Told which horizons have labels enough to learn from, by whoever knows the history; all, unless told."""

    def connect(self, encoder: nn.Module) -> None:
        """Called once the model is whole, for objectives that share weights with the encoder; others need nothing."""

    def connect_readout(self, readout: nn.Module) -> None:
        """Called once the model is whole, for objectives that ask the readout anew; others need nothing."""

    def loss(self, states_ND: Tensor, readout_QD: Tensor, batch: JourneyBatch) -> Loss:
        raise NotImplementedError(f"{type(self).__name__} has no loss.")

    def predict(self, readout_QD: Tensor, batch: JourneyBatch, levels: Sequence[float] | Tensor) -> dict[str, Tensor]:
        """Answers by the names of docs/design.md, one row per query; ``levels`` are those of quantiles, in (0, 1)."""
        raise NotImplementedError(f"{type(self).__name__} has no predict.")
