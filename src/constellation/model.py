"""The model: an encoder, a readout, and one objective per question."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

if TYPE_CHECKING:
    from constellation.encoders.base import Encoder
    from constellation.encoders.readout import Readout
    from constellation.journeys.batch import JourneyBatch
    from constellation.objectives.base import Loss, Objective


class JourneyModel(nn.Module):
    """encoder x objectives, composed of objects that know each other's widths.

    states_ND, readout_QD = model(batch)
    total = sum(model.objectives[name].weight * loss.mean for name, loss in model.loss(batch).items())
    answers = model.predict(batch, levels=[0.05, 0.5, 0.95])
    """

    def __init__(self, encoder: Encoder, readout: Readout, objectives: Mapping[str, Objective]) -> None:
        super().__init__()
        assert objectives, "a model without an objective has nothing to learn"
        self.encoder, self.readout = encoder, readout
        self.objectives = nn.ModuleDict(dict(objectives))
        for objective in objectives.values():
            objective.connect(encoder)

    def forward(self, batch: JourneyBatch) -> tuple[Tensor, Tensor]:
        """States of the events [N, D] and readouts of the queries [Q, D']."""
        states_ND: Tensor = self.encoder(batch)
        assert states_ND.shape == (len(batch.time_N), self.encoder.width)
        return states_ND, self.readout(states_ND, batch)

    def loss(self, batch: JourneyBatch) -> dict[str, Loss]:
        """Loss of each objective, unweighted; the batch must carry targets."""
        states_ND, readout_QD = self(batch)
        return {name: objective.loss(states_ND, readout_QD, batch) for name, objective in self._each()}

    def predict(self, batch: JourneyBatch, levels: Sequence[float] | Tensor) -> dict[str, Tensor]:
        """Answers of all objectives to the queries, by the names of docs/design.md; callers switch gradients off."""
        _, readout_QD = self(batch)
        answers: dict[str, Tensor] = {}
        for _, objective in self._each():
            found = objective.predict(readout_QD, batch, levels)
            assert not answers.keys() & found.keys(), "two objectives answer the same question"
            answers |= found
        return answers

    def _each(self) -> Iterator[tuple[str, Objective]]:
        for name, objective in self.objectives.items():
            yield name, cast("Objective", objective)
