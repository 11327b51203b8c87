"""Act only on what is sure: a lower bound of each action's reward, and of what it adds to doing nothing."""

from __future__ import annotations

import numpy as np

from constellation.errors import InputError
from constellation.policies.policy import Policy, Situation, best_eligible, one_hot


class Pessimistic(Policy):
    """The greatest lower bound ``expected - kappa sd - support penalty`` wins (METHODS 3.7).

    sd: of the ensemble's members; where there is ``none``, of the *difference* to it, and an action is taken only where
    the lower bound of what it adds is above 0. Else the policy abstains.
    support: penalty in standard errors of a mean over the decisions that the log has of this action,
    ``support noise / sqrt(num_training logging(a|x))``; an action below ``min_propensity`` is not taken at all.
    """

    name = "pessimistic"

    def __init__(self, *, kappa: float = 1.0, support: float = 0.5, min_propensity: float = 0.005) -> None:
        for name, value in {"kappa": kappa, "support": support, "min_propensity": min_propensity}.items():
            if value < 0:
                raise InputError(f"policy.pessimistic.{name} must not be below 0, found {value}.")
        self.kappa, self.support, self.min_propensity = kappa, support, min_propensity

    def lower(self, situation: Situation) -> np.ndarray:
        """[Q, A]: bound of the reward, or of what it adds to ``none`` (whose own is then 0); -inf without support."""
        members_MQA, expected_QA, none = situation.members_MQA, situation.expected_QA, situation.none
        if none is not None:
            members_MQA = members_MQA - members_MQA[:, :, none : none + 1]
            expected_QA = expected_QA - expected_QA[:, none : none + 1]
        chance_QA = np.maximum(situation.logging_QA, 1e-12)
        penalty_QA = self.support * situation.noise / np.sqrt(situation.num_training * chance_QA)
        bound_QA = expected_QA - self.kappa * members_MQA.std(axis=0) - penalty_QA
        bound_QA = np.where(situation.logging_QA >= self.min_propensity, bound_QA, -np.inf)
        if none is not None:
            bound_QA[:, none] = 0.0
        return bound_QA

    def probabilities(self, situation: Situation) -> np.ndarray:
        return one_hot(best_eligible(self.lower(situation), situation.eligible_QA), len(situation.actions))
