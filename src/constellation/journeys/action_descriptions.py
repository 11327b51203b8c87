"""Actions that were never tried, told by those that were: how much each known action says about a described one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from constellation.errors import InputError
from constellation.journeys.decision_features import action_features

RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, float("inf"))


@dataclass(frozen=True)
class Likeness:
    """weight_NA: a new action's reward is that sum over the known actions' rewards, for every customer and every model;
    rows sum to 1. error_N: root of the mean squared error of the same made for each known action from the others, in
    units of the reward: what a description leaves open. ridge: chosen by it; infinite is the mean of the known ones."""

    weight_NA: np.ndarray
    error_N: np.ndarray
    ridge: float


def likeness(
    known: Sequence[str],
    mean_A: np.ndarray,
    described: Mapping[str, Mapping[str, Any]] | None,
    new: Mapping[str, Mapping[str, Any]],
) -> Likeness:
    """Ridge regression of effects on descriptions, written as weights of the known actions (a linear smoother).

    With standardised descriptions ``Z`` of the known actions and ``z`` of a new one, its effect is
    ``mean + z (Z'Z + r I)^-1 Z' (v - mean)``, which is linear in the known effects ``v``: the same weights serve every
    customer. The ridge ``r`` is chosen by leaving out one known action at a time, on their mean effects ``mean_A``.
    Raises InputError where actions are not described, or not by the same keys.
    """
    if not described:
        raise InputError(
            f"The actions {', '.join(new)} are new, and the training had no decisions.action_features to tell them by. "
            "Describe all actions there and train again, or leave the new ones out."
        )
    keys = set(next(iter(described.values())))
    for name, features in new.items():
        if set(features) != keys:
            raise InputError(
                f"The new action {name} must be described by {', '.join(sorted(keys))}, "
                f"found {', '.join(sorted(features)) or 'nothing'}."
            )
    told = [name for name in known if name in described]
    _, all_BY = action_features([*told, *new], {**described, **new})
    known_BY, new_NY = all_BY[: len(told)], all_BY[len(told) :]
    spread_Y = known_BY.std(axis=0)
    kept = spread_Y > 0  # what all known actions share tells nothing apart
    known_BY = (known_BY[:, kept] - known_BY[:, kept].mean(axis=0)) / spread_Y[kept]
    new_NY = (new_NY[:, kept] - all_BY[: len(told), kept].mean(axis=0)) / spread_Y[kept]
    places = [list(known).index(name) for name in told]
    value_B = np.asarray(mean_A, dtype=np.float64)[places]
    best, error = float("inf"), _left_out(known_BY, value_B, float("inf"))
    for ridge in RIDGES:
        found = _left_out(known_BY, value_B, ridge)
        if found < error:
            best, error = ridge, found
    weight_NA = np.zeros((len(new), len(known)))
    weight_NA[:, places] = _weights(known_BY, new_NY, best)
    return Likeness(weight_NA, np.full(len(new), error), best)


def _weights(known_BY: np.ndarray, new_NY: np.ndarray, ridge: float) -> np.ndarray:
    """[N, B], rows sum to 1, for descriptions centred on the known actions."""
    num, width = known_BY.shape
    even = np.full((len(new_NY), num), 1.0 / num)
    if not np.isfinite(ridge) or width == 0:
        return even
    inner = known_BY.T @ known_BY + ridge * np.eye(width)
    return even + np.asarray(new_NY @ np.linalg.solve(inner, known_BY.T))


def _left_out(known_BY: np.ndarray, value_B: np.ndarray, ridge: float) -> float:
    """Root mean squared error of each known action's value by the weights of the others."""
    num = len(value_B)
    if num < 3:
        return float(value_B.std())
    errors = []
    for place in range(num):
        others = np.arange(num) != place
        middle_Y = known_BY[others].mean(axis=0)
        weights = _weights(known_BY[others] - middle_Y, known_BY[place : place + 1] - middle_Y, ridge)
        errors.append(float(value_B[place] - (weights @ value_B[others])[0]))
    return float(np.sqrt(np.mean(np.square(errors))))
