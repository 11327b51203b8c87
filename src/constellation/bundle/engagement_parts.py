"""The reward models of an engagement bundle, fold by fold, and how they are written and read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from constellation.answering import answer_decisions
from constellation.building import build_model, targets
from constellation.errors import InputError
from constellation.journeys.batch import Gatherer
from constellation.journeys.decision_batches import DecisionBatches
from constellation.journeys.decision_questions import Asked
from constellation.journeys.vocabulary import Vocabulary
from constellation.policies.cross_fit import EffectShrinkage
from constellation.policies.kept import class_of
from constellation.policies.outcomes import OutcomeModel

if TYPE_CHECKING:
    from constellation.journeys.store import Store
    from constellation.model import JourneyModel

Arrays = dict[str, np.ndarray]


class FoldPart(Protocol):
    """Members that have not seen the customers of ``fold``; of the fold ``EVERYBODY``, that learned from all."""

    fold: int
    shrinkage: EffectShrinkage

    def raw_members(self, store: Store, asked: Asked, features_QX: np.ndarray) -> np.ndarray:
        """Rewards [M, Q, A] of the known actions, before shrinkage."""

    def to_parts(self) -> tuple[dict[str, Any], Arrays]:
        """As JSON and arrays."""


def shrunk_members(
    part: FoldPart, store: Store, asked: Asked, features_QX: np.ndarray, logging_QA: np.ndarray
) -> np.ndarray:
    """Rewards [M, Q, A] as ``evaluate`` uses them, net of the costs of the training."""
    raw_MQA = part.raw_members(store, asked, features_QX)
    return np.stack([part.shrinkage(raw_QA, logging_QA) for raw_QA in raw_MQA])


@dataclass
class OutcomeFold:
    """Members on a table of features."""

    fold: int
    members: tuple[OutcomeModel, ...]
    shrinkage: EffectShrinkage
    action_AY: np.ndarray

    def raw_members(self, store: Store, asked: Asked, features_QX: np.ndarray) -> np.ndarray:
        del store, asked  # the table says all that they read
        return np.stack([member.predict(features_QX, self.action_AY) for member in self.members])

    def to_parts(self) -> tuple[dict[str, Any], Arrays]:
        kind = type(self.members[0])
        arrays = {
            f"{place}.{name}": array
            for place, member in enumerate(self.members)
            for name, array in member.arrays().items()
        }
        words = {"class": f"{kind.__module__}.{kind.__qualname__}", "num_members": len(self.members)}
        return words, arrays | {"action_AY": self.action_AY}

    @classmethod
    def from_parts(
        cls, fold: int, shrinkage: EffectShrinkage, words: Mapping[str, Any], arrays: Arrays, trusted: Sequence[str]
    ) -> OutcomeFold:
        kind = class_of(str(words["class"]), OutcomeModel, trusted)  # type: ignore[type-abstract]
        members = tuple(kind.from_arrays(below(arrays, str(place))) for place in range(int(words["num_members"])))
        return cls(fold, members, shrinkage, arrays["action_AY"])


@dataclass
class SequenceFold:
    """Encoder, readout and the objective ``engagement`` with its vocabulary. max_events: of a journey, the last."""

    fold: int
    model: JourneyModel
    vocabulary: Vocabulary
    model_config: Mapping[str, Any]
    shrinkage: EffectShrinkage
    max_events: int

    def raw_members(self, store: Store, asked: Asked, features_QX: np.ndarray) -> np.ndarray:
        del features_QX  # the journey says all that it reads
        num = len(asked)
        batches = DecisionBatches(
            Gatherer(store, self.vocabulary, self.max_events),
            asked.journey_Q,
            asked.time_Q,
            asked.last_event_Q,
            np.zeros(num, dtype=np.int64),
            np.full(num, np.nan),
            np.ones((num, 1)),
        )
        found_QAM = answer_decisions(self.model, batches, next(self.model.parameters()).device)
        return np.moveaxis(found_QAM, 2, 0)

    def to_parts(self) -> tuple[dict[str, Any], Arrays]:
        weights = {name: tensor.detach().cpu().numpy() for name, tensor in self.model.state_dict().items()}
        words = {
            "model": dict(self.model_config),
            "vocabulary": self.vocabulary.to_json(),
            "max_events": self.max_events,
        }
        return words, weights

    @classmethod
    def from_parts(
        cls, fold: int, shrinkage: EffectShrinkage, words: Mapping[str, Any], arrays: Arrays, trusted: Sequence[str]
    ) -> SequenceFold:
        vocabulary = Vocabulary.from_json(words["vocabulary"])
        model = build_model(words["model"], vocabulary, vocabulary.horizons_days, trusted=trusted)
        try:
            model.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()})
        except RuntimeError as error:
            raise InputError(
                f"The weights of fold {fold} do not fit the model that the bundle describes: {error}"
            ) from None
        return cls(fold, model.eval(), vocabulary, words["model"], shrinkage, int(words["max_events"]))

    @property
    def classes(self) -> tuple[str, ...]:
        """Dotted names of what the model is made of."""
        return targets(self.model_config)


KINDS: dict[str, type[OutcomeFold] | type[SequenceFold]] = {"outcome": OutcomeFold, "sequence": SequenceFold}


def below(arrays: Mapping[str, np.ndarray], head: str) -> Arrays:
    """The arrays whose names begin with ``head.``, without it."""
    return {name.removeprefix(f"{head}."): array for name, array in arrays.items() if name.startswith(f"{head}.")}


def write_fold(part: FoldPart) -> tuple[dict[str, Any], Arrays]:
    """A fold as JSON and arrays."""
    words, arrays = part.to_parts()
    kind = next(name for name, each in KINDS.items() if isinstance(part, each))
    shrinkage = vars(part.shrinkage)
    numbers = {name: float(value) for name, value in shrinkage.items() if not isinstance(value, np.ndarray)}
    named = {name: value for name, value in shrinkage.items() if isinstance(value, np.ndarray)}
    head = {"kind": kind, "fold": part.fold, "shrinkage": numbers}
    return head | words, _under("model", arrays) | _under("shrinkage", named)


def read_fold(words: Mapping[str, Any], arrays: Arrays, trusted: Sequence[str]) -> OutcomeFold | SequenceFold:
    """The fold of :func:`write_fold`."""
    told: dict[str, Any] = {**words["shrinkage"], **below(arrays, "shrinkage")}
    shrinkage = EffectShrinkage(**told)
    return KINDS[str(words["kind"])].from_parts(int(words["fold"]), shrinkage, words, below(arrays, "model"), trusted)


def _under(head: str, arrays: Mapping[str, np.ndarray]) -> Arrays:
    return {f"{head}.{name}": array for name, array in arrays.items()}
