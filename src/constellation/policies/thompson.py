"""Thompson sampling for the next round: as likely as each action is to be the best, with exact propensities to log."""

from __future__ import annotations

import numpy as np

from constellation.errors import InputError
from constellation.policies.policy import Policy, Situation

NUM_NODES = 40
NEGLIGIBLE = 1e-8
"""Weight of a node beyond which its chance is not worth the time."""
MIN_SPREAD_SHARE = 1e-6


class Thompson(Policy):
    """P(action is the best) where each action's reward is normal, independent, with the ensemble's mean and spread.

    Sampling once from each and taking the greatest chooses with just these probabilities (Thompson 1933), so they are
    computed instead, by Gauss-Hermite quadrature of ``integral of density_a times product of cdf_b``: the logged
    propensity is exact, not a count of draws. spread: multiplies the standard deviations.
    exploration: share of decisions taken by equal chances, a floor under every propensity.
    """

    name = "thompson"

    def __init__(self, *, spread: float = 1.0, exploration: float = 0.05) -> None:
        if spread <= 0:
            raise InputError(f"policy.thompson.spread must be above 0, found {spread}.")
        if not 0 <= exploration <= 1:
            raise InputError(f"policy.thompson.exploration must lie in [0, 1], found {exploration}.")
        self.spread, self.exploration = spread, exploration

    def probabilities(self, situation: Situation) -> np.ndarray:
        sd_QA = self.spread * situation.members_MQA.std(axis=0)
        scale = max(float(np.abs(situation.expected_QA).max()), 1e-12)
        best_QA = chance_of_best(
            situation.expected_QA, np.maximum(sd_QA, MIN_SPREAD_SHARE * scale), situation.eligible_QA
        )
        even_QA = situation.eligible_QA / situation.eligible_QA.sum(axis=1, keepdims=True)
        return (1 - self.exploration) * best_QA + self.exploration * even_QA


def chance_of_best(mean_QA: np.ndarray, sd_QA: np.ndarray, eligible_QA: np.ndarray) -> np.ndarray:
    """[Q, A], rows sum to 1: chance that a draw from each independent normal is the greatest of the eligible."""
    from scipy import special

    nodes, weights = np.polynomial.hermite_e.hermegauss(NUM_NODES)
    best_QA = np.zeros(mean_QA.shape)
    for action in range(mean_QA.shape[1]):
        for node, weight in zip(nodes, weights, strict=True):
            if weight < NEGLIGIBLE:
                continue
            point_Q1 = mean_QA[:, action, None] + sd_QA[:, action, None] * node
            below_QA = np.where(eligible_QA, special.ndtr((point_Q1 - mean_QA) / sd_QA), 1.0)
            below_QA[:, action] = 1.0
            best_QA[:, action] += weight * below_QA.prod(axis=1)
    best_QA = np.where(eligible_QA, best_QA, 0.0)
    # Of two nearly certain rewards the quadrature may see a tie; whatever it misses is shared in proportion.
    return best_QA / best_QA.sum(axis=1, keepdims=True)
