"""What a model reads, as tensors that can be moved: event fields, aggregates, silence, calendar, attributes.

Codes cannot be moved, their embeddings can. So the embedded events, and the other embeddings that the readout adds, are
replaced where they come out of their layers; numbers are replaced in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from constellation.encoders.events import EventEmbedding
from constellation.encoders.readout import Readout
from constellation.errors import InputError
from constellation.explanation.answers import Answer
from constellation.objectives.repeats import RepeatedProducts

if TYPE_CHECKING:
    from constellation.journeys.batch import JourneyBatch
    from constellation.model import JourneyModel

TIME = "time"
"""Elapsed days, weekday, hour and being the first event: what an event says about time by its own embedding."""

EVENTS, AGGREGATES, SILENCE, WEEKDAY, PAST_PRODUCTS = "events", "aggregates", "silence", "weekday", "past_products"
ATTRIBUTE = "attribute "


@dataclass(frozen=True)
class Layers:
    """The layers of a model whose outputs are moved. embedded: by input name, the layer and what indexes it."""

    events: EventEmbedding
    embedded: dict[str, nn.Module]
    numbers: list[str]
    repeats: RepeatedProducts | None

    @classmethod
    def of(cls, model: JourneyModel, answer: Answer) -> Layers:
        """Raises InputError where the encoder embeds its events in a way of its own."""
        found = [part for part in model.encoder.modules() if isinstance(part, EventEmbedding)]
        if len(found) != 1:
            raise InputError(
                f"The encoder {type(model.encoder).__name__} has {len(found)} EventEmbedding layers; an explanation "
                "follows one. Embed the events with constellation.encoders.events.EventEmbedding."
            )
        readout, numbers = model.readout, []
        embedded: dict[str, nn.Module] = {}
        if isinstance(readout, Readout):
            if readout.use_calendar:
                embedded[WEEKDAY] = readout.from_weekday
            for name, layer in zip(readout.attributes, readout.from_attributes, strict=True):
                embedded[ATTRIBUTE + name] = layer
            numbers = list(readout.attributes_numeric)
        repeats = getattr(model.objectives[answer.objective], "repeats", None) if answer.is_of_products else None
        return cls(found[0], embedded, numbers, repeats if isinstance(repeats, RepeatedProducts) else None)

    def codes(self, name: str, batch: JourneyBatch) -> Tensor:
        """What the layer of an embedded input is asked with: [Q] weekdays, or [B] codes of an attribute."""
        return batch.weekday_Q if name == WEEKDAY else batch.attributes[name.removeprefix(ATTRIBUTE)]


def field_vectors(events: EventEmbedding, batch: JourneyBatch) -> dict[str, Tensor]:
    """Vector [N, D] of each field of each event; with the bias of the numbers they sum to the event's embedding."""
    weight = events.table.weight
    found = {name: weight[batch.categorical[name] + events.start_of[name]] for name in events.categorical}
    for name in events.lists:
        values_M, offsets = batch.lists[name]
        found[name] = functional.embedding_bag(
            values_M + events.start_of[name], weight, offsets, mode="sum", include_last_offset=True
        )
    if events.amounts is not None:
        numbers_NG, columns_DG = events.numbers(batch), events.amounts.weight
    for place, name in enumerate(events.numeric):
        scaled_N1 = numbers_NG[:, place : place + 1]
        found[name] = weight[batch.numeric_bin[name] + events.start_of[f"bin of {name}"]]
        found[name] = found[name] + scaled_N1 * columns_DG[:, place]
    found[TIME] = weight[batch.first_N.long() + events.start_of["is first"]]
    if events.has_clock:
        found[TIME] = found[TIME] + weight[batch.weekday_N + events.start_of["its weekday"]]
        found[TIME] = found[TIME] + weight[batch.hour_N + events.start_of["its hour"]]
        elapsed = slice(len(events.numeric), None)
        found[TIME] = found[TIME] + numbers_NG[:, elapsed] @ columns_DG[:, elapsed].T
    return found


def bias_of(events: EventEmbedding) -> Tensor:
    """[D], what every event's embedding has whatever its fields say."""
    return torch.zeros_like(events.table.weight[0]) if events.amounts is None else events.amounts.bias


@dataclass(frozen=True)
class Ends:
    """The two ends of the path by name of the input: at the baseline, and as the customer has it; same shapes.

    field_NFD: what each field of each event adds to the way of its event, in the order of ``fields``.
    """

    baseline: dict[str, Tensor]
    actual: dict[str, Tensor]
    fields: list[str]
    field_FND: Tensor

    def at(self, share: float) -> dict[str, Tensor]:
        """Inputs so far along the straight way, as leaves that gradients reach."""
        return {
            name: torch.lerp(start, self.actual[name], share).detach().requires_grad_()
            for name, start in self.baseline.items()
        }


@contextmanager
def moved(layers: Layers, batch: JourneyBatch, inputs: dict[str, Tensor]) -> Iterator[JourneyBatch]:
    """The batch with ``inputs`` in the place of what it holds; within the block the layers give what they say.

    Not moved: number, order and times of the events as attention and recurrence see them, and the purchase record that
    buy-till-you-die objectives read beside.
    """

    def instead(name: str) -> Callable[..., Tensor]:
        return lambda module, given, output: inputs[name]

    with ExitStack() as hooks:
        hooks.callback(layers.events.register_forward_hook(instead(EVENTS)).remove)
        for name, layer in layers.embedded.items():
            hooks.callback(layer.register_forward_hook(instead(name)).remove)
        if layers.repeats is not None:
            scaled = layers.repeats.register_forward_hook(
                lambda module, given, output: output * inputs[PAST_PRODUCTS].unsqueeze(1)
            )
            hooks.callback(scaled.remove)
        yield replace(
            batch,
            aggregates_QF=inputs[AGGREGATES],
            since_last_days_Q=inputs[SILENCE],
            attributes_numeric=batch.attributes_numeric | {name: inputs[ATTRIBUTE + name] for name in layers.numbers},
        )
