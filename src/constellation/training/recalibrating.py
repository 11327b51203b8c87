"""What a study learns about its own answers from time, or customers, that the answering model did not learn from.

The selected model knows everything up to the validation cutoff, and what followed has come true by the test cutoff: a
slice of time. Its number of epochs was chosen there, a choice among few. Where that slice is too short for a horizon,
the refit is repeated without some of the customers and asked about them. The test split is never looked at.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import torch

from constellation.answering import answer_all
from constellation.journeys.batch import Gatherer
from constellation.journeys.splits import Splits, time_windows
from constellation.journeys.store import MICROSECONDS_PER_DAY
from constellation.journeys.vocabulary import Vocabulary
from constellation.journeys.windows import Queries, Windows, ask, at_risk, panel
from constellation.metrics import LEVELS
from constellation.model import JourneyModel
from constellation.recalibration import (
    Corrections,
    PastTotal,
    Recalibrator,
    Swings,
    measured_swings,
    relative_noise,
)
from constellation.training.fit import fit
from constellation.training.initial import Initial
from constellation.training.learner import OptimizerFactory
from constellation.training.options import TrainingOptions
from constellation.training.settling import settle_as
from constellation.training.study import BuildModel, Study, fit_vocabulary, training_batches

TIME_SLICE, CROSS_FITTED = "time slice", "cross-fitted by customer"
KINDS = ("value", "purchases")
MOST_QUESTIONS = 50_000
"""Tens of thousands tell a distribution to a percent; more would only take memory."""

KEPT = "recalibration.json"

Answers = dict[str, np.ndarray]
Refit = Callable[[np.ndarray], tuple[JourneyModel, Vocabulary]]
"""Train anew on these journeys alone."""


def learn_corrections(
    study: Study, splits: Splits, recalibrator: Recalibrator, options: TrainingOptions, folder: Path, refit: Refit
) -> Corrections:
    """Corrections of the refitted model, kept in ``folder`` for a run that resumes.

    Empty where there are no horizons (data of which only the order is known) or the model says nothing of value.
    """
    path, settings = folder / KEPT, asdict(recalibrator)
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["settings"] == settings:
            return Corrections.from_json(kept["corrections"])
    if not isinstance(splits.windows, Windows) or not splits.windows.horizons_days:
        return Corrections()
    corrections = Corrections()
    past: dict[str, list[PastTotal]] = {kind: [] for kind in KINDS}
    questions = _some(splits.val)
    answers = _answers(study.selected.model, splits, study.selected_vocabulary, options, questions)
    _learn(corrections, past, recalibrator, questions, answers, TIME_SLICE)
    missing = tuple(
        days for column, days in enumerate(questions.horizons_days) if not questions.observed_QK[:, column].any()
    )
    if missing and study.is_refitted:
        for asked, said in _cross_fitted(splits, recalibrator.folds, missing, options, refit):
            _learn(corrections, past, recalibrator, asked, said, CROSS_FITTED)
    if recalibrator.shock is not None:
        swings = _swings(splits)
        corrections.shocks = {
            kind: recalibrator.learn_shock(totals, swings.get(kind)) for kind, totals in past.items() if totals
        }
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{KEPT}.{os.getpid()}"
    partial.write_text(json.dumps({"settings": settings, "corrections": corrections.to_json()}), encoding="utf-8")
    os.replace(partial, path)
    return corrections


def refit_without(
    study: Study,
    splits: Splits,
    train: np.ndarray,
    build: BuildModel,
    optimizer: OptimizerFactory,
    options: TrainingOptions,
    folder: Path,
    seed: int,
    initial: Initial | None = None,
) -> tuple[JourneyModel, Vocabulary]:
    """The refit on some customers, with as many passes over them as the whole refit had and the shares of its pools."""
    some = Splits(splits.store, splits.windows)
    some.train_journeys = train
    until = splits.test_cutoff
    questions = panel(splits.store, time_windows(splits.windows), known_until=until, journeys=train)
    vocabulary = fit_vocabulary(some, options, questions, until)
    gatherer = Gatherer(splits.store, vocabulary, options.max_events)
    batches = training_batches(gatherer, some, until, options, seed, study.passes)
    torch.manual_seed(seed)
    model = build(vocabulary)
    optimizer = optimizer if initial is None else initial.begin(model, vocabulary, optimizer)
    share = len(train) / max(len(splits.train_journeys), 1)
    fit(
        model,
        batches,
        optimizer,
        options,
        folder,
        label=f"without a fold (seed {seed})",
        num_steps=max(round(study.selected.num_steps * share), 1),
        schedule_steps=options.max_epochs * len(batches),
    )
    settle_as(model, study.selected.model)
    return model, vocabulary


def _cross_fitted(
    splits: Splits, folds: int, horizons_days: tuple[int, ...], options: TrainingOptions, refit: Refit
) -> list[tuple[Queries, Answers]]:
    """Per horizon, questions about each customer's last known window, answered by a fit on the other customers."""
    earliest, everybody = time_windows(splits.windows).earliest(splits.store), splits.train_journeys
    cutoffs = {days: splits.test_cutoff - days * MICROSECONDS_PER_DAY for days in horizons_days}
    cutoffs = {days: cutoff for days, cutoff in cutoffs.items() if cutoff > earliest}
    parts: dict[int, list[tuple[Queries, Answers]]] = {days: [] for days in cutoffs}
    fold_C = np.arange(len(everybody)) % folds
    for number in range(folds if cutoffs else 0):
        model, vocabulary = refit(everybody[fold_C != number])
        for days, cutoff in cutoffs.items():
            risk = at_risk(splits.store, cutoff, everybody[fold_C == number])
            questions = _some(ask(splits.store, risk, np.full(len(risk), cutoff), (days,), splits.test_cutoff))
            if len(questions):
                parts[days].append((questions, _answers(model, splits, vocabulary, options, questions)))
    return [(_joined([asked for asked, _ in found]), _whole([said for _, said in found])) for found in parts.values()]


def _learn(
    corrections: Corrections,
    past: dict[str, list[PastTotal]],
    recalibrator: Recalibrator,
    questions: Queries,
    answers: Answers,
    method: str,
) -> None:
    """Add what these answered questions say to ``corrections`` and to the ``past`` totals."""
    for kind, realised_QK in (("value", questions.value_QK), ("purchases", questions.purchases_QK)):
        for column, days in enumerate(questions.horizons_days):
            target, seen_Q = f"{kind}_{days}d", questions.observed_QK[:, column]
            if f"{target}_expected" not in answers or not seen_Q.any():
                continue
            said = {name: values[seen_Q] for name, values in answers.items() if name.startswith(f"{target}_")}
            realised_Q = realised_QK[seen_Q, column].astype(np.float64)
            corrections.targets[target] = recalibrator.learn(target, realised_Q, said, method)
            if f"{target}_quantiles" in said:
                expected_Q = said[f"{target}_expected"].astype(np.float64)
                noise = relative_noise(expected_Q, said[f"{target}_quantiles"])
                origin = int(questions.cutoff_Q[0])
                past[kind].append(PastTotal(origin, days, float(expected_Q.sum()), float(realised_Q.sum()), noise))


def _answers(
    model: JourneyModel, splits: Splits, vocabulary: Vocabulary, options: TrainingOptions, questions: Queries
) -> Answers:
    """What the model says of money and purchases; product scores would not fit."""
    wanted = tuple(f"{kind}_{days}d_" for kind in KINDS for days in questions.horizons_days)
    gatherer = Gatherer(splits.store, vocabulary, options.max_events)
    return answer_all(model, gatherer, questions, LEVELS, beginning=wanted)


def _swings(splits: Splits) -> dict[str, Swings]:
    """Of the training customers' activity before the test cutoff."""
    windows = time_windows(splits.windows)
    return measured_swings(
        splits.store,
        splits.test_cutoff,
        first=windows.earliest(splits.store),
        longest_days=windows.horizons_days[0],
        journeys=splits.train_journeys,
    )


def _some(questions: Queries) -> Queries:
    if len(questions) <= MOST_QUESTIONS:
        return questions
    return questions.take(np.sort(np.random.default_rng(0).permutation(len(questions))[:MOST_QUESTIONS]))


def _joined(parts: Sequence[Queries]) -> Queries:
    def both(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    columns = (each.name for each in fields(Queries) if each.name != "horizons_days")
    return Queries(horizons_days=parts[0].horizons_days, **{name: both(name) for name in columns})


def _whole(parts: Sequence[Answers]) -> Answers:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
