"""The same for everybody: the one action that did best in the training folds. What personalisation must beat."""

from __future__ import annotations

import numpy as np

from constellation.errors import InputError
from constellation.policies.policy import Policy, Situation, best_eligible, one_hot


class BestConstant(Policy):
    """action: name of the action; null takes the best mean doubly-robust score of the training folds.

    Where it is not eligible the next best is taken.
    """

    name = "best_constant"

    def __init__(self, *, action: str | None = None) -> None:
        self.action = action
        self.mean_A: np.ndarray | None = None

    def fit(self, situation: Situation, scores_QA: np.ndarray, customer_Q: np.ndarray) -> None:
        eligible_QA = situation.eligible_QA
        num_A = np.maximum(eligible_QA.sum(axis=0), 1)
        self.mean_A = np.where(eligible_QA, scores_QA, 0.0).sum(axis=0) / num_A
        self.mean_A[~eligible_QA.any(axis=0)] = -np.inf
        if self.action is not None:
            if self.action not in situation.actions:
                raise InputError(
                    f"policy.best_constant.action is {self.action!r}; the actions are {', '.join(situation.actions)}."
                )
            self.mean_A[situation.actions.index(self.action)] = np.inf

    def probabilities(self, situation: Situation) -> np.ndarray:
        assert self.mean_A is not None, "fit first"
        utility_QA = np.broadcast_to(self.mean_A, situation.expected_QA.shape)
        return one_hot(best_eligible(utility_QA, situation.eligible_QA), len(situation.actions))
