"""The logging policy as far as features tell it, kept: probabilities of each action for customers to come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from constellation.policies.trees import Trees

FLOOR = 0.001
"""As in ``fitted_propensities``."""


@dataclass(frozen=True)
class KeptPropensities:
    """One multinomial ensemble per group of customers, which it has not seen; strangers get the mean of all.

    classes: the actions that each ensemble knows, in the order of its outputs. num_actions: of all.
    """

    groups: tuple[Trees, ...]
    classes: tuple[tuple[int, ...], ...]
    num_actions: int

    @classmethod
    def of(cls, classifiers: Sequence[Any], num_actions: int) -> KeptPropensities:
        """From the fitted classifiers of ``fitted_propensities``."""
        known = tuple(tuple(int(code) for code in model.classes_) for model in classifiers)
        return cls(tuple(Trees.of(model) for model in classifiers), known, num_actions)

    def probabilities(self, features_QX: np.ndarray, group_Q: np.ndarray, eligible_QA: np.ndarray) -> np.ndarray:
        """[Q, A], rows sum to 1 over the eligible; group_Q: of each customer, -1 for strangers."""
        chance_QA = np.zeros((len(features_QX), self.num_actions))
        for group, (trees, known) in enumerate(zip(self.groups, self.classes, strict=True)):
            for rows, share in ((group_Q == group, 1.0), (group_Q < 0, 1.0 / len(self.groups))):
                if rows.any():
                    raw_QO = trees.add(features_QX[rows], ())
                    chance_QA[np.ix_(rows, np.array(known))] += share * _softmax(raw_QO)
        chance_QA = np.maximum(chance_QA, FLOOR)
        chance_QA = np.where(eligible_QA, chance_QA / chance_QA.sum(axis=1, keepdims=True), 0.0)
        return np.asarray(chance_QA / chance_QA.sum(axis=1, keepdims=True))

    def arrays(self) -> dict[str, np.ndarray]:
        found = {"num_actions": np.array([self.num_actions])}
        for place, (trees, known) in enumerate(zip(self.groups, self.classes, strict=True)):
            found[f"{place}.classes"] = np.array(known, dtype=np.int64)
            found |= {f"{place}.trees.{name}": array for name, array in trees.arrays().items()}
        return found

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> KeptPropensities:
        groups, classes = [], []
        for place in range(sum(name.endswith(".classes") for name in arrays)):
            head = f"{place}.trees."
            groups.append(
                Trees.from_arrays({name.removeprefix(head): arrays[name] for name in arrays if name.startswith(head)})
            )
            classes.append(tuple(int(code) for code in arrays[f"{place}.classes"]))
        return cls(tuple(groups), tuple(classes), int(arrays["num_actions"][0]))


def _softmax(raw_QO: np.ndarray) -> np.ndarray:
    if raw_QO.shape[1] == 1:  # of two classes the library keeps the logit of the second
        raw_QO = np.concatenate([np.zeros_like(raw_QO), raw_QO], axis=1)
    odds_QO = np.exp(raw_QO - raw_QO.max(axis=1, keepdims=True))
    return np.asarray(odds_QO / odds_QO.sum(axis=1, keepdims=True))
