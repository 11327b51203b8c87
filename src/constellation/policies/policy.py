"""What every policy is: probabilities of actions from what is known at a decision."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from constellation.errors import InputError
from constellation.policies.log import NONE

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Situation:
    """What a policy may read about ``Q`` decisions; nothing of what was chosen or came of it.

    expected_QA: predicted reward, net of cost, of every action, by a model that has not seen these customers.
    members_MQA: the same of each member of its ensemble; their spread says how sure it is. M = 1 says nothing.
    noise: standard deviation of a single reward. eligible_QA: what may be chosen; at least one action per row.
    logging_QA: probabilities of the logging policy. features_QX: raw features, NaN where undefined.
    num_training: decisions the model learned from.
    """

    actions: tuple[str, ...]
    expected_QA: np.ndarray
    members_MQA: np.ndarray
    noise: float
    eligible_QA: np.ndarray
    logging_QA: np.ndarray
    features_QX: np.ndarray
    num_training: int

    def __post_init__(self) -> None:
        shape = (len(self.expected_QA), len(self.actions))
        assert self.expected_QA.shape == self.eligible_QA.shape == self.logging_QA.shape == shape
        assert self.members_MQA.shape[1:] == shape
        if not self.eligible_QA.any(axis=1).all():
            raise InputError(
                f"{int((~self.eligible_QA.any(axis=1)).sum()):,} decisions have no eligible action. "
                f"Make {NONE!r} eligible, or leave them out."
            )

    def __len__(self) -> int:
        return len(self.expected_QA)

    @property
    def none(self) -> int | None:
        """Place of the action of not engaging, where there is one."""
        return self.actions.index(NONE) if NONE in self.actions else None

    def take(self, rows: np.ndarray) -> Situation:
        return replace(
            self,
            expected_QA=self.expected_QA[rows],
            members_MQA=self.members_MQA[:, rows],
            eligible_QA=self.eligible_QA[rows],
            logging_QA=self.logging_QA[rows],
            features_QX=self.features_QX[rows],
        )


class Policy(ABC):
    """``fit`` on the training folds, then ``probabilities`` on others; one file and one YAML each.

    policy.fit(situation, scores_QA, customer_Q); target_QA = policy.probabilities(other)
    """

    name: str

    def fit(self, situation: Situation, scores_QA: np.ndarray, customer_Q: np.ndarray) -> None:  # noqa: B027
        """Learn from decisions whose doubly-robust ``scores_QA`` are known; most policies have nothing to learn."""

    @abstractmethod
    def probabilities(self, situation: Situation) -> np.ndarray:
        """[Q, A]; each row sums to 1, and an action that is not eligible has 0."""


def one_hot(choice_Q: np.ndarray, num_actions: int) -> np.ndarray:
    """Probabilities of a policy that is sure of itself."""
    target_QA = np.zeros((len(choice_Q), num_actions))
    target_QA[np.arange(len(choice_Q)), choice_Q] = 1.0
    return target_QA


def best_eligible(utility_QA: np.ndarray, eligible_QA: np.ndarray) -> np.ndarray:
    """Place [Q] of the greatest utility among the eligible; the first of equals."""
    return np.where(eligible_QA, utility_QA, -np.inf).argmax(axis=1)


def abstention(target_QA: np.ndarray, actions: Sequence[str]) -> float:
    """Mean probability of not engaging; 0 where ``none`` is no action of the data."""
    return float(target_QA[:, list(actions).index(NONE)].mean()) if NONE in actions else 0.0


def draw(target_QA: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An action per row and its probability: what to do, and what to log so that the next round can be judged."""
    sums_QA = target_QA.cumsum(axis=1)
    point_Q = np.random.default_rng(seed).random(len(target_QA)) * sums_QA[:, -1]
    choice_Q = np.minimum((sums_QA <= point_Q[:, None]).sum(axis=1), target_QA.shape[1] - 1)
    return choice_Q, target_QA[np.arange(len(choice_Q)), choice_Q]


def predictions_frame(
    customer_ids: Sequence[object],
    situation: Situation,
    *,
    kappa: float = 1.0,
    propensity_QA: np.ndarray | None = None,
) -> pd.DataFrame:
    """pandas, long: ``customer_id, action, expected, lower, eligible, propensity``, one row per customer and action.

    lower: expected less ``kappa`` standard deviations of the ensemble. propensity: of the policy that will act, by
    default of the logging policy. This is what allocation reads; several decisions of one customer give several rows.
    """
    import pandas as pd

    num, num_actions = situation.expected_QA.shape
    chances_QA = situation.logging_QA if propensity_QA is None else propensity_QA
    return pd.DataFrame(
        {
            "customer_id": np.repeat(np.asarray(customer_ids, dtype=object), num_actions),
            "action": np.tile(np.array(situation.actions, dtype=object), num),
            "expected": situation.expected_QA.ravel(),
            "lower": (situation.expected_QA - kappa * situation.members_MQA.std(axis=0)).ravel(),
            "eligible": situation.eligible_QA.ravel(),
            "propensity": chances_QA.ravel(),
        }
    )
