"""Better actions more often: a soft greedy policy, which explores and can be judged from its own log."""

from __future__ import annotations

import numpy as np

from constellation.errors import InputError
from constellation.policies.policy import Policy, Situation


class Softmax(Policy):
    """Probability proportional to ``exp(expected / scale)`` over the eligible actions, mixed with ``exploration``.

    temperature: scale over the mean spread (standard deviation over actions) of the predictions of the training folds,
    so that it does not depend on the currency; small is greedy, large is uniform.
    exploration: share of decisions taken by equal chances, so that every propensity is at least exploration / A.
    """

    name = "softmax"

    def __init__(self, *, temperature: float = 0.5, exploration: float = 0.0) -> None:
        if temperature <= 0:
            raise InputError(f"policy.softmax.temperature must be above 0, found {temperature}.")
        if not 0 <= exploration <= 1:
            raise InputError(f"policy.softmax.exploration must lie in [0, 1], found {exploration}.")
        self.temperature, self.exploration = temperature, exploration
        self.scale = 1.0

    def fit(self, situation: Situation, scores_QA: np.ndarray, customer_Q: np.ndarray) -> None:
        spread = float(situation.expected_QA.std(axis=1).mean())
        self.scale = self.temperature * spread if spread > 0 else 1.0

    def probabilities(self, situation: Situation) -> np.ndarray:
        logits_QA = np.where(situation.eligible_QA, situation.expected_QA / self.scale, -np.inf)
        odds_QA = np.exp(logits_QA - logits_QA.max(axis=1, keepdims=True))
        soft_QA = odds_QA / odds_QA.sum(axis=1, keepdims=True)
        even_QA = situation.eligible_QA / situation.eligible_QA.sum(axis=1, keepdims=True)
        return (1 - self.exploration) * soft_QA + self.exploration * even_QA
