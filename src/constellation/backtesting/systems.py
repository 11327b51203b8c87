"""What competes: a system is fitted at an origin and answers there, and says what it would have answered before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from constellation.backtesting.origins import Origin, days_earlier
from constellation.journeys.store import Store
from constellation.journeys.vocabulary import Vocabulary
from constellation.journeys.windows import Queries, Windows, ask, at_risk, parse_cutoff

if TYPE_CHECKING:
    from constellation.training.options import TrainingOptions

Answers = dict[str, np.ndarray]
CHUNK_QUERIES = 8192
TARGETS = ("value", "purchases")
TIME_SLICE, CROSS_FITTED = "time slice", "cross-fitted by customer"


@dataclass
class Known:
    """Questions of one target whose outcome was known at the origin, and answers that did not learn from them."""

    realised_Q: np.ndarray
    answers: Answers
    method: str


@dataclass
class Fit:
    """What a system says at an origin; ``known`` by target is what recalibration learns from."""

    answers: Answers
    known: dict[str, Known] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass
class Task:
    """An origin, its questions, and who may be learned from.

    folds: of customers, for what has no slice of time; 0: nothing is asked of the past. folder: for checkpoints.
    """

    store: Store
    base_windows: Windows
    origin: Origin
    queries: Queries
    holdout_share: float
    folds: int
    folder: Path

    @property
    def windows(self) -> Windows:
        return self.origin.windows(self.base_windows, self.holdout_share)

    @property
    def training_folder(self) -> Path:
        """What a fit that was stopped goes on from; it is cleared away once all its cells are finished."""
        return self.folder / "training"

    def known_questions(self, days_before: int, days: int, journeys: np.ndarray | None = None) -> Queries:
        """The question about ``days`` that everybody could be asked so many days before the origin."""
        cutoff = parse_cutoff(days_earlier(self.origin.name, days_before), self.store.schema.timezone)
        risk = at_risk(self.store, cutoff, journeys)
        return ask(self.store, risk, np.full(len(risk), cutoff), (days,), self.origin.cutoff)


class System(Protocol):
    """``model`` and every baseline alike."""

    @property
    def name(self) -> str: ...

    @property
    def seeds(self) -> tuple[int, ...]: ...

    def fit(self, task: Task, seed: int) -> Fit:
        """Learn from what lies at or before the origin, and answer its questions."""
        ...


def targets_of(horizons_days: Iterable[int]) -> Iterator[tuple[str, str, int]]:
    """``value_91d``, ``value``, and the place of the horizon; money first."""
    horizons_days = tuple(horizons_days)
    for name in TARGETS:
        for place, days in enumerate(horizons_days):
            yield f"{name}_{days}d", name, place


def realised(queries: Queries, name: str, place: int) -> np.ndarray:
    """Net money or number of purchases [Q] over a horizon, float64."""
    values_QK = queries.value_QK if name == "value" else queries.purchases_QK
    return values_QK[:, place].astype(np.float64)


def known(questions: Queries, answers: Answers, method: str) -> dict[str, Known]:
    """By target, the observed questions that were answered."""
    found = {}
    for target, name, place in targets_of(questions.horizons_days):
        said = {key: values for key, values in answers.items() if key.startswith(f"{target}_")}
        seen_Q = questions.observed_QK[:, place]
        if f"{target}_expected" in said and seen_Q.any():
            found[target] = Known(
                realised(questions, name, place)[seen_Q], {key: values[seen_Q] for key, values in said.items()}, method
            )
    return found


def cross_fitted(
    task: Task, days: int, everybody: np.ndarray, answers: Callable[[np.ndarray, Queries], Answers]
) -> dict[str, Known]:
    """Answers about each customer's last known window by a fit on the other customers, the same days included."""
    fold_C = np.arange(len(everybody)) % task.folds
    found: list[dict[str, Known]] = []
    for number in range(task.folds):
        rows = task.known_questions(days, days, everybody[fold_C == number])
        if len(rows):
            found.append(known(rows, answers(everybody[fold_C != number], rows), CROSS_FITTED))
    return {
        target: Known(
            np.concatenate([part[target].realised_Q for part in found]),
            whole(part[target].answers for part in found),
            CROSS_FITTED,
        )
        for target in (found[0] if found else {})
        if all(target in part for part in found)
    }


def vocabulary_of(
    store: Store, training: TrainingOptions, train: Queries, journeys: np.ndarray, until: int
) -> Vocabulary:
    """As a study learns it, from these customers and questions."""
    return Vocabulary.fit(
        store, train, journeys=journeys, until=until, windows_days=training.windows_days, min_count=training.min_count
    )


def in_chunks(predict: Callable[[Queries], Mapping[str, np.ndarray]], queries: Queries) -> Iterator[Answers]:
    """Answers about money and purchases, some customers at a time."""
    for start in range(0, len(queries), CHUNK_QUERIES):
        rows = np.arange(start, min(start + CHUNK_QUERIES, len(queries)))
        yield {name: values for name, values in predict(queries.take(rows)).items() if name.startswith(TARGETS)}


def whole(parts: Iterable[Answers]) -> Answers:
    """Parts one after the other."""
    gathered = list(parts)
    return {name: np.concatenate([part[name] for part in gathered]) for name in (gathered[0] if gathered else {})}
