"""The action with the highest predicted reward."""

from __future__ import annotations

import numpy as np

from constellation.policies.policy import Policy, Situation, best_eligible, one_hot


class Greedy(Policy):
    """Takes predictions at their word, noise and all: among many actions the largest error tends to win."""

    name = "greedy"

    def probabilities(self, situation: Situation) -> np.ndarray:
        choice_Q = best_eligible(situation.expected_QA, situation.eligible_QA)
        return one_hot(choice_Q, len(situation.actions))
