"""Ask a model the questions of a store: the one path that validation, evaluation and the bundle share."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from constellation.journeys.batch import Gatherer
from constellation.journeys.decision_batches import DecisionBatches
from constellation.journeys.sampling import PredictionBatches
from constellation.journeys.windows import Queries
from constellation.model import JourneyModel
from constellation.recalibration import Corrections

MAX_SCORES = 1 << 22
"""Product scores in one batch, at most, 16 MiB: a large catalogue is asked about a few customers at a time."""


def answer(
    model: JourneyModel,
    gatherer: Gatherer,
    queries: Queries,
    levels: np.ndarray | tuple[float, ...],
    *,
    max_tokens: int = 32_768,
    max_journeys: int = 1024,
    corrections: Corrections | None = None,
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Rows of ``queries`` and the model's answers to them, batch by batch, so that memory stays bounded.

    Names and shapes of the answers are those of ``Predictions`` in docs/design.md; ``levels`` [L] lie in (0, 1).
    The model is used in evaluation mode on the device it is on, and left in the mode it was in. corrections: what
    recalibration learned for this model; its answers are then asked at ``corrections.asked_levels`` and corrected.
    """
    was_training, device = model.training, next(model.parameters()).device
    max_journeys = min(max_journeys, max(16, MAX_SCORES // max(len(gatherer.vocabulary.products), 1)))
    asked = np.asarray(levels) if corrections is None else corrections.asked_levels(levels)
    levels_L = torch.tensor(asked, dtype=torch.float32, device=device)
    model.eval()
    try:
        batches = PredictionBatches(gatherer, queries, max_tokens=max_tokens, max_journeys=max_journeys, targets=False)
        for batch, rows in batches:
            with torch.inference_mode():
                answers = model.predict(batch.to(device), levels_L)
            said = {name: values.float().cpu().numpy() for name, values in answers.items()}
            yield rows, said if corrections is None else corrections.apply(said, asked, levels)
    finally:
        model.train(was_training)


def answer_all(
    model: JourneyModel,
    gatherer: Gatherer,
    queries: Queries,
    levels: np.ndarray | tuple[float, ...],
    *,
    corrections: Corrections | None = None,
    beginning: tuple[str, ...] = ("",),
    **limits: int,
) -> dict[str, np.ndarray]:
    """All answers at once, in the order of ``queries``; for as many questions as fit in memory.

    beginning: only answers whose names begin so are kept; product scores of many customers would not fit.
    """
    whole: dict[str, np.ndarray] = {}
    for rows, answers in answer(model, gatherer, queries, levels, corrections=corrections, **limits):
        for name, values in answers.items():
            if not name.startswith(beginning):
                continue
            if name not in whole:
                whole[name] = np.empty((len(queries), *values.shape[1:]), dtype=values.dtype)
            whole[name][rows] = values
    return whole


def answer_decisions(model: JourneyModel, batches: DecisionBatches, device: torch.device) -> np.ndarray:
    """Rewards [Q, A, M] of every action by every member, in the order of the decisions of ``batches``."""
    was_training = model.training
    model.eval()
    whole: np.ndarray | None = None
    try:
        for batch, rows in batches.one_by_one():
            with torch.inference_mode():
                members_QAM = model.predict(batch.to(device), [0.5])["reward_members"].float().cpu().numpy()
            if whole is None:
                whole = np.empty((len(batches.journey_Q), *members_QAM.shape[1:]))
            whole[rows] = members_QAM
    finally:
        model.train(was_training)
    assert whole is not None, "no decisions to answer"
    return whole
