"""What was logged: the decisions that estimators read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from constellation.errors import InputError

NONE = "none"
"""The action of not engaging; by definition it costs nothing."""


@dataclass(frozen=True)
class Log:
    """One row per decision; all arrays aligned.

    action_Q: place of the chosen action in ``actions``. reward_Q: what came of it, less its cost, in any unit.
    logging_QA: probability of every action under the logging policy (rows sum to 1). customer_Q: the cluster, any
    integers; intervals resample customers, not rows. eligible_QA: what could have been chosen.
    Raises InputError where a logged propensity is not in (0, 1] or a chosen action was not eligible.
    """

    actions: tuple[str, ...]
    action_Q: np.ndarray
    reward_Q: np.ndarray
    logging_QA: np.ndarray
    customer_Q: np.ndarray
    eligible_QA: np.ndarray

    def __post_init__(self) -> None:
        num, shape = len(self.action_Q), (len(self.action_Q), len(self.actions))
        assert self.logging_QA.shape == self.eligible_QA.shape == shape
        assert len(self.reward_Q) == len(self.customer_Q) == num
        propensity_Q = self.propensity_Q
        wrong_Q = ~((propensity_Q > 0) & (propensity_Q <= 1 + 1e-9))
        if wrong_Q.any():
            raise InputError(
                f"{int(wrong_Q.sum()):,} of {num:,} decisions have a propensity outside (0, 1], such as "
                f"{propensity_Q[wrong_Q][0]:g}: the probability with which the logging policy chose what it chose."
            )
        outside_Q = ~self.eligible_QA[np.arange(num), self.action_Q]
        if outside_Q.any():
            name = self.actions[int(self.action_Q[outside_Q][0])]
            raise InputError(
                f"{int(outside_Q.sum()):,} decisions chose an action that was not eligible, such as {name!r}. "
                "Mend eligible, or leave these decisions out."
            )

    def __len__(self) -> int:
        return len(self.action_Q)

    @property
    def propensity_Q(self) -> np.ndarray:
        """Probability of the chosen action under the logging policy."""
        return self.logging_QA[np.arange(len(self)), self.action_Q]

    def weights(self, target_QA: np.ndarray) -> np.ndarray:
        """Importance weights [Q] of a target policy's probabilities."""
        assert target_QA.shape == self.logging_QA.shape
        return target_QA[np.arange(len(self)), self.action_Q] / self.propensity_Q

    def take(self, rows: np.ndarray) -> Log:
        return Log(
            self.actions,
            self.action_Q[rows],
            self.reward_Q[rows],
            self.logging_QA[rows],
            self.customer_Q[rows],
            self.eligible_QA[rows],
        )

    @classmethod
    def of(
        cls,
        action_Q: np.ndarray,
        reward_Q: np.ndarray,
        logging_QA: np.ndarray,
        *,
        actions: Sequence[str] | None = None,
        customer_Q: np.ndarray | None = None,
        eligible_QA: np.ndarray | None = None,
    ) -> Log:
        """With the defaults of an experiment: every row its own customer, every action eligible."""
        num, num_actions = logging_QA.shape
        return cls(
            tuple(actions) if actions is not None else tuple(str(place) for place in range(num_actions)),
            np.asarray(action_Q, dtype=np.int64),
            np.asarray(reward_Q, dtype=np.float64),
            np.asarray(logging_QA, dtype=np.float64),
            np.arange(num) if customer_Q is None else np.asarray(customer_Q),
            np.ones((num, num_actions), dtype=bool) if eligible_QA is None else np.asarray(eligible_QA, dtype=bool),
        )
