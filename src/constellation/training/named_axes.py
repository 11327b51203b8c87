"""What the rows and columns of a model's weights stand for: products, event types, bins, aggregates, horizons.

Two models that were fitted on different data give the same product different rows. Weights pass from one to the other
by these names, never by position.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from constellation.encoders.events import ELAPSED_SCALES_DAYS, EventEmbedding
from constellation.encoders.readout import Readout
from constellation.journeys.vocabulary import FIRST_KNOWN, Vocabulary
from constellation.model import JourneyModel
from constellation.objectives.next_event import NextEvent
from constellation.objectives.time_to_event import TimeToEvent
from constellation.objectives.value import Value
from constellation.objectives.value_btyd import ValueBtyd
from constellation.schema import EVENT_TYPE

Labels = Sequence[Hashable]


@dataclass(frozen=True)
class Named:
    """name: of the parameter, the same in every model that has it. axes: labels, or None where places mean the same."""

    name: str
    axes: tuple[Labels | None, ...]


def named_axes(model: JourneyModel, vocabulary: Vocabulary) -> dict[str, Named]:
    """Every parameter of the model, by the name it has there.

    A part of one's own whose weights hang on the vocabulary says so by a method ``named_axes(vocabulary)`` with pairs
    of a parameter's name within the part and its :class:`Named`; without one its places are taken to mean the same.
    """
    found = {
        name: Named(name, (None,) * parameter.dim())
        for name, parameter in model.named_parameters(remove_duplicate=True)
    }
    for prefix, module in model.named_modules():
        for own, named in _of_module(module, vocabulary):
            if f"{prefix}.{own}" in found:
                found[f"{prefix}.{own}"] = Named(f"{prefix}.{named.name}", tuple(named.axes))
    return found


def is_described(module: nn.Module) -> bool:
    """Whether the rows of the module's weights have names, and do not hang on their places."""
    return isinstance(module, tuple(_DESCRIBED)) or callable(getattr(module, "named_axes", None))


def _of_module(module: nn.Module, vocabulary: Vocabulary) -> Iterator[tuple[str, Named]]:
    for kind, describe in _DESCRIBED.items():
        if isinstance(module, kind):
            yield from describe(module, vocabulary)
            return
    own: Callable[[Vocabulary], Iterator[tuple[str, Named]]] | None = getattr(module, "named_axes", None)
    if callable(own):
        yield from own(vocabulary)


def _events(module: EventEmbedding, vocabulary: Vocabulary) -> Iterator[tuple[str, Named]]:
    known = {name: _codes(name, vocabulary) for name in (*module.categorical, *module.lists)}
    # Bins are quantiles: the third of sixteen means the same in another currency, and not the third of eight.
    known |= {
        f"bin of {name}": [(f"bin of {name}", vocabulary.num_bins(name), place) for place in range(size)]
        for name in module.numeric
        for size in [vocabulary.num_bins(name)]
    }
    fields = sorted(module.start_of, key=module.start_of.__getitem__)
    ends = [*(module.start_of[field] for field in fields[1:]), module.table.num_embeddings]
    rows: list[Hashable] = []
    for field, end in zip(fields, ends, strict=True):
        rows += known.get(field, [(field, place) for place in range(end - module.start_of[field])])
    yield "table.weight", Named("table.weight", (rows, None))
    numbers: list[Hashable] = [("number", name) for name in module.numeric]
    if module.has_clock:
        numbers += [("elapsed", scale) for scale in (0.0, *ELAPSED_SCALES_DAYS)]
    yield "amounts.weight", Named("amounts.weight", (None, numbers))


def _readout(module: Readout, vocabulary: Vocabulary) -> Iterator[tuple[str, Named]]:
    if module.use_aggregates:
        names = vocabulary.aggregates.names
        kept = [names[place] for place in module.kept_F.tolist()]
        yield "from_aggregates.weight", Named("from_aggregates.weight", (None, kept))
    for place, name in enumerate(module.attributes):
        rows = _codes(f"attributes.{name}", vocabulary)
        yield f"from_attributes.{place}.weight", Named(f"from_attributes.{name}.weight", (rows, None))
    yield "from_numbers.weight", Named("from_numbers.weight", (None, list(module.attributes_numeric)))


def _next_event(module: NextEvent, vocabulary: Vocabulary) -> Iterator[tuple[str, Named]]:
    for part, values in (("types", vocabulary.categories[EVENT_TYPE]), ("products", vocabulary.products)):
        yield f"{part}.embedding_VD", Named(f"{part}.embedding_VD", (values, None))
        yield f"{part}.bias_V", Named(f"{part}.bias_V", (values,))
    yield "repeats.weight_CV", Named("repeats.weight_CV", (None, vocabulary.products))


def _time_to_event(module: TimeToEvent, vocabulary: Vocabulary) -> Iterator[tuple[str, Named]]:
    del vocabulary
    # Logits are sums of steps: what a row says hangs on the intervals before its own.
    intervals = [tuple(module.edges_days[: place + 1]) for place in range(len(module.edges_days))]
    ends = [(interval, cause) for interval in intervals for cause in module.causes]
    for part, rows in (("purchase", intervals), ("ends", ends)):
        yield f"{part}.weight", Named(f"{part}.weight", (rows, None))
        yield f"{part}.bias", Named(f"{part}.bias", (rows,))


def _value(module: Value, vocabulary: Vocabulary) -> Iterator[tuple[str, Named]]:
    del vocabulary
    outputs: list[Hashable] = ["logit", "log_mean", "log_purchases"]
    for part, width in zip((module.mean_family, module.family), module.widths, strict=True):
        outputs += [(type(part).__qualname__, width, place) for place in range(width)]
    # Horizons rise by steps: what a row says hangs on the horizons before its own.
    spans = [module.horizons_days[: place + 1] for place in range(len(module.horizons_days))]
    rows = [(span, output) for span in spans for output in outputs]
    yield "head.weight", Named("head.weight", (rows, None))
    yield "head.bias", Named("head.bias", (rows,))
    if module.spread_family is not None:
        width = module.spread_family.num_parameters
        spread = [(type(module.spread_family).__qualname__, width, place) for place in range(width)]
        rows = [(span, output) for span in spans for output in spread]
        yield "spread_head.weight", Named("spread_head.weight", (rows, None))
        yield "spread_head.bias", Named("spread_head.bias", (rows,))


def _value_btyd(module: ValueBtyd, vocabulary: Vocabulary) -> Iterator[tuple[str, Named]]:
    del vocabulary
    rows = [(type(module.process).__qualname__, place) for place in range(len(module.base_P))]
    yield "base_P", Named("base_P", (rows,))
    yield "head.weight", Named("head.weight", (rows, None))
    yield "head.bias", Named("head.bias", (rows,))


def _codes(name: str, vocabulary: Vocabulary) -> list[Hashable]:
    """Labels of the model codes of a column: missing, unknown, then the known values."""
    codes = range(FIRST_KNOWN)
    return [*((name, code) for code in codes), *((name, "value", value) for value in vocabulary.categories[name])]


_DESCRIBED: dict[type[nn.Module], Callable[..., Iterator[tuple[str, Named]]]] = {
    EventEmbedding: _events,
    Readout: _readout,
    NextEvent: _next_event,
    TimeToEvent: _time_to_event,
    Value: _value,
    ValueBtyd: _value_btyd,
}
