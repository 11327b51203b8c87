"""The model: an encoder, a readout, and one objective per question."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from constellation.distributions.season import Season

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
            objective.connect_readout(readout)
        horizons_days = sorted({days for objective in objectives.values() for days in objective.horizons_days})
        self.season = Season([f"{kind}_{days}d" for kind in ("value", "purchases") for days in horizons_days])

    def forward(self, batch: JourneyBatch) -> tuple[Tensor, Tensor]:
        """States of the events [N, D] and readouts of the queries [Q, D']."""
        states_ND: Tensor = self.encoder(batch)
        assert states_ND.shape == (len(batch.time_N), self.encoder.width)
        return states_ND, self.readout(states_ND, batch)

    def loss(self, batch: JourneyBatch) -> dict[str, Loss]:
        """Loss of each objective, unweighted; the batch must carry targets."""
        states_ND, readout_QD = self(batch)
        return {name: objective.loss(states_ND, readout_QD, batch) for name, objective in self._each()}

    def predict(
        self, batch: JourneyBatch, levels: Sequence[float] | Tensor, *, only: str | None = None
    ) -> dict[str, Tensor]:
        """Answers of all objectives to the queries, by the names of docs/design.md; callers switch gradients off.

        What the season of earlier years taught moves the level of money and purchases, see :class:`Season`.
        only: the name of the one objective that is asked; the others may be slow.
        """
        _, readout_QD = self(batch)
        answers: dict[str, Tensor] = {}
        asked = self.season.asked_levels(levels, readout_QD) if self.season.has_learned else levels
        for name, objective in self._each():
            if only not in (None, name):
                continue
            found = objective.predict(readout_QD, batch, asked)
            assert not answers.keys() & found.keys(), "two objectives answer the same question"
            answers |= found
        return answers if asked is levels else self.season(answers, batch.cutoff_Q, asked, levels)

    def _each(self) -> Iterator[tuple[str, Objective]]:
        for name, objective in self.objectives.items():
            yield name, cast("Objective", objective)
