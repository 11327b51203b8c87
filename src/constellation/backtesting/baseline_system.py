"""A baseline in a backtest."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from constellation.backtesting.systems import (
    TIME_SLICE,
    Answers,
    Fit,
    Known,
    Task,
    cross_fitted,
    in_chunks,
    known,
    vocabulary_of,
    whole,
)
from constellation.journeys.splits import Splits
from constellation.journeys.store import MICROSECONDS_PER_DAY
from constellation.journeys.windows import Queries, ask, at_risk, panel
from constellation.metrics import LEVELS

if TYPE_CHECKING:
    from constellation.baselines.baseline import Baseline
    from constellation.training.options import TrainingOptions


@dataclass
class BaselineSystem:
    """Refitted at every origin. It is taught the horizons that the history can teach; what needs no such labels, as a
    purchase process does not, answers the others too."""

    name: str
    baseline: Baseline
    training: TrainingOptions
    seeds: tuple[int, ...] = (0,)

    def fit(self, task: Task, seed: int) -> Fit:
        """Choose settings at the validation cutoff, refit up to the origin, answer; then the past, if asked for."""
        start = time.perf_counter()
        store, origin = task.store, task.origin
        splits = Splits(store, task.windows)
        risk = at_risk(store, splits.val_cutoff, splits.train_journeys)
        val = ask(store, risk, np.full(len(risk), splits.val_cutoff), task.origin.all_days, origin.cutoff)
        self._learn(task, splits.val_cutoff, splits.train_journeys, val)
        self._learn(task, origin.cutoff, splits.train_journeys)
        fit = Fit(self._answers(task, task.queries))
        for days in origin.horizons_days if task.folds else ():
            fit.known |= self._known(task, days, splits.train_journeys)
        fit.seconds = time.perf_counter() - start
        return fit

    def _learn(self, task: Task, until: int, journeys: np.ndarray, val: Queries | None = None) -> None:
        windows = replace(task.windows, horizons_days=task.origin.all_days)
        train = panel(task.store, windows, known_until=until, journeys=journeys)
        # A handful of labels, of customers who had all just come, teaches no horizon.
        train.observed_QK &= np.isin(train.horizons_days, task.origin.learned_days)
        vocabulary = vocabulary_of(task.store, self.training, train, journeys, until)
        self.baseline.fit(task.store, vocabulary, train, until=until, val=val)

    def _answers(self, task: Task, queries: Queries) -> Answers:
        def predict(rows: Queries) -> Mapping[str, np.ndarray]:
            return self.baseline.predict(task.store, rows, LEVELS)

        return whole(in_chunks(predict, queries))

    def _known(self, task: Task, days: int, journeys: np.ndarray) -> dict[str, Known]:
        """A fit that ends ``days`` before the origin is tried on what followed; else customers are left out of fits."""
        questions = task.known_questions(days, days)
        if not len(questions):
            return {}
        cutoff = int(questions.cutoff_Q[0])
        room_days = (cutoff - task.base_windows.earliest(task.store)) / MICROSECONDS_PER_DAY
        if room_days > max(2.0, 1.25 * task.origin.all_days[0]):
            self._learn(task, cutoff, journeys)
            found = known(questions, self._answers(task, questions), TIME_SLICE)
            if found:
                return found
        if days not in task.origin.trainable_days:
            return {}

        def answers(train: np.ndarray, rows: Queries) -> Answers:
            self._learn(task, task.origin.cutoff, train)
            return self._answers(task, rows)

        return cross_fitted(task, days, journeys, answers)
