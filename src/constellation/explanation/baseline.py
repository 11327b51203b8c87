"""What a prediction is compared with: the same journey, told by an average customer.

Each field of each event says what that field says on average over the events of the reference customers, and
aggregates, silence, calendar and attributes are at their average over them. The number and the times of the events stay
those of the customer; what they alone make of the prediction is a contribution of its own, ``journey``. An empty
journey or missing fields would be no better ground: most data never showed the model either, so that its answer there
is an accident, and all contributions would carry it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from constellation.explanation.answers import Answer
from constellation.explanation.inputs import (
    AGGREGATES,
    ATTRIBUTE,
    EVENTS,
    PAST_PRODUCTS,
    SILENCE,
    Ends,
    Layers,
    bias_of,
    field_vectors,
    moved,
)
from constellation.journeys.sampling import PredictionBatches

if TYPE_CHECKING:
    from constellation.journeys.batch import Gatherer, JourneyBatch
    from constellation.journeys.windows import Queries
    from constellation.model import JourneyModel


@dataclass
class Baseline:
    """Averages over reference customers. fields [D] each; others by name of the input, without their first dimension.

    prediction: mean answer over the reference customers at these averages, each with the times of its own events.
    """

    fields: dict[str, Tensor]
    others: dict[str, Tensor]
    prediction: float
    num_customers: int

    @classmethod
    @torch.no_grad()
    def learn(
        cls,
        model: JourneyModel,
        layers: Layers,
        gatherer: Gatherer,
        reference: Queries,
        answer: Answer,
        max_tokens: int,
    ) -> Baseline:
        """From questions about the reference customers, two passes over them; the model is in evaluation mode."""
        device = next(model.parameters()).device
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = {}

        def add(name: str, rows: Tensor) -> None:
            sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64, device=device)) + rows.double().sum(dim=0)
            counts[name] = counts.get(name, 0) + len(rows)

        batches = PredictionBatches(gatherer, reference, max_tokens=max_tokens, targets=False)
        for batch, _ in batches:
            batch = batch.to(device)
            for name, vectors_ND in field_vectors(layers.events, batch).items():
                add(f"field {name}", vectors_ND)
            for name, rows in _others(layers, batch).items():
                add(name, rows[batch.last_event_Q >= 0] if name == SILENCE else rows)
        means = {name: (total / max(counts[name], 1)).float() for name, total in sums.items()}
        prefix = "field "
        baseline = cls(
            {name.removeprefix(prefix): mean for name, mean in means.items() if name.startswith(prefix)},
            {name: mean for name, mean in means.items() if not name.startswith(prefix)},
            prediction=0.0,
            num_customers=len(reference),
        )
        total = 0.0
        for batch, _ in batches:
            batch = batch.to(device)
            chosen_Q = answer.choose(answer.predict(model, batch))
            with moved(layers, batch, baseline.ends(layers, batch).baseline) as average:
                total += float(answer.of(answer.predict(model, average), chosen_Q).double().sum())
        baseline.prediction = total / max(len(reference), 1)
        return baseline

    @torch.no_grad()
    def ends(self, layers: Layers, batch: JourneyBatch) -> Ends:
        """Both ends of the path for a batch."""
        fields = list(self.fields)
        vectors = field_vectors(layers.events, batch)
        start_D = torch.stack(list(self.fields.values())).sum(dim=0) + bias_of(layers.events)
        field_FND = torch.stack([vectors[name] - self.fields[name] for name in fields])
        start_ND = start_D.expand(batch.num_events, -1)
        actual = _others(layers, batch)
        baseline = {name: self.others[name].expand_as(rows) for name, rows in actual.items()}
        # Nothing is known of silence where there is no event: that stays as it is.
        baseline[SILENCE] = torch.where(batch.last_event_Q >= 0, baseline[SILENCE], actual[SILENCE])
        if layers.repeats is not None:
            ones_Q = torch.ones_like(batch.since_last_days_Q)
            actual[PAST_PRODUCTS], baseline[PAST_PRODUCTS] = ones_Q, torch.zeros_like(ones_Q)
        return Ends(
            baseline | {EVENTS: start_ND}, actual | {EVENTS: start_ND + field_FND.sum(dim=0)}, fields, field_FND
        )


def _others(layers: Layers, batch: JourneyBatch) -> dict[str, Tensor]:
    """Inputs beside the events, rows of [Q] or [B]; here each journey has one question, so both are the same rows."""
    found = {AGGREGATES: batch.aggregates_QF, SILENCE: batch.since_last_days_Q}
    found |= {name: layer(layers.codes(name, batch)) for name, layer in layers.embedded.items()}
    return found | {ATTRIBUTE + name: batch.attributes_numeric[name] for name in layers.numbers}
