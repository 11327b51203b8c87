"""Any eligible action, with equal chances: the yardstick of no knowledge."""

from __future__ import annotations

import numpy as np

from constellation.policies.policy import Policy, Situation


class Uniform(Policy):
    name = "uniform"

    def probabilities(self, situation: Situation) -> np.ndarray:
        return situation.eligible_QA / situation.eligible_QA.sum(axis=1, keepdims=True)
