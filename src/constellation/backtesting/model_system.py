"""Our own model in a backtest."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np

from constellation.backtesting.systems import (
    TARGETS,
    TIME_SLICE,
    Answers,
    Fit,
    Known,
    Task,
    cross_fitted,
    known,
)
from constellation.journeys.splits import Splits
from constellation.journeys.vocabulary import Vocabulary
from constellation.journeys.windows import Queries
from constellation.metrics import LEVELS

if TYPE_CHECKING:
    from constellation.model import JourneyModel
    from constellation.objectives.base import Objective
    from constellation.training.learner import OptimizerFactory
    from constellation.training.options import TrainingOptions
    from constellation.training.study import Study


@dataclass
class ModelSystem:
    """Selected before the origin and refitted up to it, once per seed; silent about horizons that cannot be taught yet.

    any_history: it needs no horizon to have been seen whole, and answers all. max_learned: it learns from so many
    customers at most, the same ones at every origin; 0: from everybody.
    build(vocabulary, horizons_days) makes it untrained; report(origin, seed, phase, row) hears of every epoch.
    """

    build: Callable[[Vocabulary, tuple[int, ...]], JourneyModel]
    optimizer: OptimizerFactory
    training: TrainingOptions
    seeds: tuple[int, ...]
    report: Callable[[str, int, str, dict[str, float]], None]
    any_history: bool = False
    max_learned: int = 0
    name: str = "model"

    def fit(self, task: Task, seed: int) -> Fit:
        """Train twice and answer. A fit that was stopped goes on in ``task.training_folder``."""
        from constellation.training.study import select_then_refit

        start = time.perf_counter()
        origin = task.origin
        asked_days = origin.horizons_days if self.any_history else origin.trainable_days
        if not asked_days:
            return Fit({})
        learned_days = self._learned_days(task)
        splits = Splits(task.store, origin.windows(task.base_windows, task.holdout_share, learned_days))
        splits.train_journeys = self._learned_from(splits.train_journeys)
        folder = task.training_folder
        study = select_then_refit(
            splits,
            lambda vocabulary: self._built(vocabulary, task),
            self.optimizer,
            self.training,
            folder,
            seed=seed,
            report=lambda phase, row: self.report(origin.name, seed, phase, row),
        )
        fit = Fit(self._answers(task, study.refitted.model, study.vocabulary, task.queries, asked_days))
        without: dict[int, tuple[JourneyModel, Vocabulary]] = {}
        for days in origin.trainable_days if task.folds else ():
            fit.known |= self._known(task, study, splits, days, seed, without)
        fit.seconds = time.perf_counter() - start
        return fit

    def _learned_from(self, journeys: np.ndarray) -> np.ndarray:
        if not self.max_learned or len(journeys) <= self.max_learned:
            return journeys
        return np.sort(np.random.default_rng(0).choice(journeys, self.max_learned, replace=False))

    def _built(self, vocabulary: Vocabulary, task: Task) -> JourneyModel:
        """Untrained; its objectives are told which horizons have labels enough to learn from."""
        model = self.build(vocabulary, self._learned_days(task))
        for objective in model.objectives.values():
            cast("Objective", objective).teach(task.origin.learned_days)
        return model

    def _learned_days(self, task: Task) -> tuple[int, ...]:
        return task.origin.all_days if self.any_history else task.origin.learned_days

    def _answers(
        self,
        task: Task,
        model: JourneyModel,
        vocabulary: Vocabulary,
        queries: Queries,
        horizons_days: tuple[int, ...],
    ) -> Answers:
        from constellation.answering import answer_all
        from constellation.journeys.batch import Gatherer

        wanted = tuple(f"{name}_{days}d_" for name in TARGETS for days in horizons_days)
        gatherer = Gatherer(task.store, vocabulary, self.training.max_events)
        return answer_all(model, gatherer, queries, LEVELS, beginning=wanted)

    def _known(
        self,
        task: Task,
        study: Study,
        splits: Splits,
        days: int,
        seed: int,
        without: dict[int, tuple[JourneyModel, Vocabulary]],
    ) -> dict[str, Known]:
        """The selected model learned up to the validation cutoff, and what followed has come true by the origin.

        Its number of steps was chosen on that slice, a choice of few alternatives; where the slice is too short for a
        horizon, the refit is repeated without some of the customers; ``without`` keeps these for the next horizon.
        """
        from constellation.training.recalibrating import refit_without

        select_days = task.origin.select_days
        if days <= select_days:
            questions = task.known_questions(select_days, days)
            model, vocabulary = study.selected.model, study.selected_vocabulary
            return known(questions, self._answers(task, model, vocabulary, questions, (days,)), TIME_SLICE)

        def answers(train: np.ndarray, rows: Queries) -> Answers:
            fold = int(np.setdiff1d(splits.train_journeys, train)[0])  # named by the first customer left out
            if fold not in without:
                folder = task.training_folder / f"without_{fold}"
                build = partial(self._built, task=task)
                without[fold] = refit_without(study, splits, train, build, self.optimizer, self.training, folder, seed)
            return self._answers(task, *without[fold], rows, (days,))

        return cross_fitted(task, days, splits.train_journeys, answers)
