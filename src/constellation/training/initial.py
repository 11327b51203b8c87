"""Where training starts: at the weights of an earlier model, taken over by what each row and column stands for."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from constellation.building import TARGET
from constellation.errors import InputError
from constellation.journeys.vocabulary import Vocabulary
from constellation.model import JourneyModel
from constellation.training.learner import OptimizerFactory
from constellation.training.named_axes import Labels, is_described, named_axes

FREE = ("dropout",)
"""Settings of an encoder that may change between pretraining and fine-tuning: they are no part of its function."""

SHOWN_FIELDS = 6


@dataclass
class Taken:
    """What a model took from its initial one. Counts are of single weights, by part: encoder, readout, each objective.

    whole: places among the model's parameters of those that were taken entire. fresh: values without a row in the
    initial model, by column. left: values, by column, and parts of the initial model that have no place here.
    """

    taken: Counter[str] = field(default_factory=Counter)
    total: Counter[str] = field(default_factory=Counter)
    whole: set[int] = field(default_factory=set)
    fresh: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    other_shape: list[str] = field(default_factory=list)
    other_kind: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Of all weights of the model."""
        return sum(self.taken.values()) / max(sum(self.total.values()), 1)

    def lines(self) -> list[str]:
        """What was taken, what not, and why, for people."""
        said = []
        for part, total in self.total.items():
            found = self.taken[part]
            how = "nothing: it starts fresh" if not found else "all" if found == total else f"{found / total:.1%}"
            said.append(f"  {part}: {how} of {total:,} weights" if found else f"  {part}: {how}")
        if self.fresh:
            said.append(f"  new values, which start fresh: {_listed(self.fresh)}")
        if self.left:
            said.append(f"  values of the initial model that are not known here: {_listed(self.left)}")
        if self.other_shape:
            said.append(f"  left, for its shape is another: {', '.join(self.other_shape)}")
        if self.other_kind:
            said.append(f"  left, for it is of another kind here: {', '.join(self.other_kind)}")
        if self.unused:
            said.append(f"  left, for nobody asks for it here: {', '.join(self.unused)}")
        return said

    def to_json(self) -> dict[str, Any]:
        parts = {part: {"taken": self.taken[part], "of": total} for part, total in self.total.items()}
        return {"weights": parts, "fresh_values": dict(self.fresh), "left_values": dict(self.left)} | {
            "other_shape": self.other_shape,
            "other_kind": self.other_kind,
            "unused": self.unused,
            "share": self.share,
        }


@dataclass(frozen=True)
class Initial:
    """A trained model to start from.

    rate: learning rate of the parameters that were taken whole, as a share of that of the others: what has been learned
    moves slowly, and tables with rows of new values learn like everything new. tell: hears what each start took.
    """

    model: JourneyModel
    vocabulary: Vocabulary
    rate: float = 1.0
    tell: Callable[[Taken], None] = lambda taken: None

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise InputError(f"init_rate must lie in (0, 1], found {self.rate}. At 1 all weights learn alike.")

    @torch.no_grad()
    def start(self, model: JourneyModel, vocabulary: Vocabulary) -> Taken:
        """Fill ``model`` in place with what this one knows; weights alone, no statistics of the data."""
        taken = Taken()
        theirs, mine = named_axes(self.model, self.vocabulary), named_axes(model, vocabulary)
        sources = {
            theirs[name].name: (parameter.detach(), theirs[name].axes)
            for name, parameter in self.model.named_parameters()
        }
        kinds = {name: type(part) for name, part in model.objectives.items()}
        taken.other_kind = sorted(
            f"objective {name} ({type(part).__name__} there, {kinds[name].__name__} here)"
            for name, part in self.model.objectives.items()
            if name in kinds and type(part) is not kinds[name]
        )
        alike: set[str | None] = {None}
        for name, part in self.model.objectives.items():
            if type(part) is kinds.get(name) and (is_described(part) or _same_horizons(part, model.objectives[name])):
                alike.add(name)
        learned = [item for item in model.named_parameters() if item[1].requires_grad]
        for place, (name, parameter) in enumerate(learned):
            own, named = _part(name), mine[name]
            taken.total[own] += parameter.numel()
            if named.name not in sources or _objective(name) not in alike:
                continue
            number = _copy(parameter, named.axes, *sources[named.name], taken)
            if number is None:
                taken.other_shape.append(named.name)
                continue
            taken.taken[own] += number
            if number == parameter.numel():
                taken.whole.add(place)
        taken.unused = sorted({_part(name) for name in sources} - set(taken.total))
        self.tell(taken)
        return taken

    def begin(self, model: JourneyModel, vocabulary: Vocabulary, optimizer: OptimizerFactory) -> OptimizerFactory:
        """:meth:`start`, and the optimizer in which what was taken whole learns at ``rate`` of the others' rate."""
        taken = self.start(model, vocabulary)
        return optimizer if self.rate == 1 or not taken.whole else Slowed(optimizer, frozenset(taken.whole), self.rate)


@dataclass(frozen=True)
class Slowed:
    """An optimizer factory with two groups. slow: places among the parameters it is handed."""

    optimizer: OptimizerFactory
    slow: frozenset[int]
    rate: float

    def __call__(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        groups: tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]] = ([], [])
        for place, parameter in enumerate(parameters):
            groups[place in self.slow].append(parameter)
        made = self.optimizer([{"params": group} for group in groups if group])  # type: ignore[misc]
        made.param_groups[-1]["lr"] *= self.rate  # the slow ones are never none, and stand last
        return made


def check_encoder(mine: Mapping[str, Any], theirs: Mapping[str, Any], initial: JourneyModel) -> None:
    """Raise InputError where the encoder described by ``mine`` is not the one of the initial model, ``theirs``.

    A trained encoder is taken as it is or not at all: half of one computes nothing that was ever trained.
    """
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(type(initial.encoder)).parameters.items()
        if parameter.default is not parameter.empty
    }
    ours, given = defaults | dict(mine), defaults | dict(theirs)
    if ours.get(TARGET) != given.get(TARGET):
        raise InputError(
            f"init holds another encoder ({given.get(TARGET)}) than this run asks for ({ours.get(TARGET)}). Choose "
            f"encoder={str(given.get(TARGET)).rpartition('.')[2].lower()}, or pretrain the encoder that you want."
        )
    different = sorted(key for key in ours.keys() | given.keys() if key not in FREE and ours.get(key) != given.get(key))
    if different:
        found = ", ".join(f"encoder.{key}={given.get(key)} (here {ours.get(key)})" for key in different)
        cure = " ".join(f"encoder.{key}={given.get(key)}" for key in different)
        raise InputError(
            f"init was trained with {found}, and an encoder is taken as it is or not at all. Write {cure}, or pretrain "
            "again with the sizes that you want."
        )


def _same_horizons(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    """Where an objective does not say what its rows stand for, they may stand for horizons."""
    return getattr(first, "horizons_days", None) == getattr(second, "horizons_days", None)


def _copy(
    target: Tensor, axes: tuple[Labels | None, ...], source: Tensor, from_axes: tuple[Labels | None, ...], taken: Taken
) -> int | None:
    """Copy what both have; number of weights copied, None where the shapes cannot be brought together."""
    if target.dim() != source.dim():
        return None
    places: list[tuple[Tensor, Tensor]] = []
    for axis, (mine, theirs) in enumerate(zip(axes, from_axes, strict=True)):
        if (mine is None) != (theirs is None):
            return None
        if mine is None or theirs is None:
            if target.shape[axis] != source.shape[axis]:
                return None
            everything = torch.arange(target.shape[axis])
            places.append((everything, everything))
        else:
            places.append(_common(mine, theirs, taken))
    into = torch.meshgrid(*(mine for mine, _ in places), indexing="ij")
    out_of = torch.meshgrid(*(theirs for _, theirs in places), indexing="ij")
    target[into] = source[out_of].to(target.dtype)
    return int(into[0].numel())


def _common(mine: Labels, theirs: Labels, taken: Taken) -> tuple[Tensor, Tensor]:
    """Places of the labels that both have, in the one and in the other."""
    place_of = {label: place for place, label in enumerate(theirs)}
    pairs = [(place, place_of[label]) for place, label in enumerate(mine) if label in place_of]
    known = set(mine)
    # Values of columns and bins of numbers; a product is told about once, where events are read.
    taken.fresh.update(column for label in mine if label not in place_of for column in _column_of(label))
    taken.left.update(column for label in theirs if label not in known for column in _column_of(label))
    table = torch.tensor(pairs, dtype=torch.long).view(-1, 2)
    return table[:, 0], table[:, 1]


def _column_of(label: Hashable) -> list[str]:
    """The column that a row of an embedding belongs to; other labels are told about by their weights alone."""
    return [str(label[0])] if isinstance(label, tuple) and len(label) == 3 else []


def _objective(name: str) -> str | None:
    """The objective that a parameter belongs to, None for those of the encoder and the readout."""
    words = name.split(".")
    return words[1] if words[0] == "objectives" else None


def _part(name: str) -> str:
    objective = _objective(name)
    return name.split(".")[0] if objective is None else f"objective {objective}"


def _listed(counts: Counter[str]) -> str:
    listed = [f"{name} {number:,}" for name, number in counts.most_common(SHOWN_FIELDS)]
    more = len(counts) - len(listed)
    return ", ".join(listed) + (f" and {more} more columns" if more > 0 else "")
