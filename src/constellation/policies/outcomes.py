"""Models of the reward from a table of features: one model for all actions, which may be described by features too."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from constellation.errors import InputError
from constellation.policies.trees import Trees

MAX_STANDARD = 5.0


def binnable(features_QX: np.ndarray) -> np.ndarray:
    """The same, with 0 in columns without any value: the boosting library cannot bin them, and never splits on a
    constant."""
    empty_X = np.isnan(features_QX).all(axis=0)
    return np.where(empty_X, 0.0, features_QX) if empty_X.any() else features_QX


class OutcomeModel(ABC):
    """``fit`` on logged decisions, then ``predict`` the reward of every action, [Q, A].

    action_AY: features of the actions, perhaps none. An action that was never logged can be scored where it is
    described; without a description its prediction is that of the mean action.
    """

    name: str
    reads_propensities = False
    """Whether ``fit`` takes ``logging_QA``, the propensities of all actions [Q, A]."""
    shrinks_itself = False
    """Whether ``fit`` draws effects to 0 as far as rows that were not learned from ask for; nobody else does, then."""

    @abstractmethod
    def fit(
        self,
        features_QX: np.ndarray,
        action_Q: np.ndarray,
        reward_Q: np.ndarray,
        action_AY: np.ndarray,
        num_actions: int,
        *,
        weight_Q: np.ndarray | None = None,
        seed: int = 0,
    ) -> None:
        """weight_Q: of the rows, such as the counts of a bootstrap or those of MRDR."""

    @abstractmethod
    def predict(self, features_QX: np.ndarray, action_AY: np.ndarray) -> np.ndarray:
        """Expected reward [Q, A]."""

    def arrays(self) -> dict[str, np.ndarray]:
        """What was fitted, as plain arrays: what a bundle holds. ``from_arrays`` makes the model of it again."""
        raise InputError(
            f"The outcome model {self.name} cannot be exported: give {type(self).__name__} arrays() and from_arrays()."
        )

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> OutcomeModel:
        """A model that predicts as the one that ``arrays`` came from."""
        raise InputError(f"{cls.__name__} cannot be read from a bundle: it has no from_arrays().")


class BoostedOutcome(OutcomeModel):
    """Gradient boosting in two steps: the reward from the features, then what is left from features and action.

    A single ensemble spends its splits on who spends much and few on what the action adds; the second step has the
    action, its features and the rest to itself (the order of the R-learner, Nie and Wager 2021, with known
    propensities).
    """

    name = "gradient_boosting"

    def __init__(
        self,
        *,
        num_trees: int = 50,
        effect_trees: int = 30,
        learning_rate: float = 0.1,
        max_leaf_nodes: int = 12,
        min_samples_leaf: int = 200,
        l2: float = 1.0,
        num_threads: int = 1,
    ) -> None:
        if num_trees < 1 or effect_trees < 1:
            raise InputError("outcome.gradient_boosting needs num_trees and effect_trees of at least 1.")
        self.num_trees, self.effect_trees, self.num_threads = num_trees, effect_trees, num_threads
        self.settings: dict[str, Any] = {
            "learning_rate": learning_rate,
            "max_leaf_nodes": max_leaf_nodes,
            "min_samples_leaf": min_samples_leaf,
            "l2_regularization": l2,
            "early_stopping": False,
            "max_bins": 63,  # of little loss beside the noise of rewards, and much faster
        }

    def fit(
        self,
        features_QX: np.ndarray,
        action_Q: np.ndarray,
        reward_Q: np.ndarray,
        action_AY: np.ndarray,
        num_actions: int,
        *,
        weight_Q: np.ndarray | None = None,
        seed: int = 0,
    ) -> None:
        import sklearn.ensemble  # the thread limit reaches libraries that are loaded by then
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        boosting = sklearn.ensemble.HistGradientBoostingRegressor
        self.num_actions = num_actions
        smallest = min(self.settings["min_samples_leaf"], max(len(reward_Q) // 20, 1))
        settings = self.settings | {"min_samples_leaf": smallest}
        weight_Q = np.ones(len(reward_Q)) if weight_Q is None else weight_Q
        with threadpool_limits(self.num_threads, user_api="openmp"):
            self.base = boosting(max_iter=self.num_trees, random_state=seed, **settings)
            self.base.fit(binnable(features_QX), reward_Q, sample_weight=weight_Q)
            left_Q = reward_Q - self.base.predict(features_QX)
            # What an action adds on average goes in as a feature: trees then part the actions by it at once.
            mass_A = np.bincount(action_Q, weights=weight_Q, minlength=num_actions)
            mean_A = np.bincount(action_Q, weights=weight_Q * left_Q, minlength=num_actions) / np.maximum(mass_A, 1e-9)
            self.described_AY = np.column_stack([np.where(mass_A > 0, mean_A, np.nan), action_AY])
            design = np.concatenate([features_QX, self.described_AY[action_Q]], axis=1)
            self.effect = boosting(max_iter=self.effect_trees, random_state=seed, **settings)
            self.effect.fit(binnable(design), left_Q, sample_weight=weight_Q)

    def predict(self, features_QX: np.ndarray, action_AY: np.ndarray) -> np.ndarray:
        num_new = len(action_AY) - len(self.described_AY)
        unseen = np.full((max(num_new, 0), 1), np.nan)
        described_AY = np.column_stack([np.concatenate([self.described_AY[:, :1], unseen]), action_AY])
        if isinstance(self.effect, Trees):
            known = [self.effect.add(features_QX, row_Y.tolist())[:, 0] for row_Y in described_AY]
            return np.asarray(self.base.predict(features_QX)[:, None] + np.stack(known, axis=1))
        from threadpoolctl import threadpool_limits

        with threadpool_limits(self.num_threads, user_api="openmp"):
            base_Q = self.base.predict(features_QX)
            effects = [
                self.effect.predict(np.concatenate([features_QX, np.tile(row_Y, (len(base_Q), 1))], axis=1))
                for row_Y in described_AY
            ]
        return base_Q[:, None] + np.stack(effects, axis=1)

    def arrays(self) -> dict[str, np.ndarray]:
        parts = {"base": self.base, "effect": self.effect}
        found = {"described_AY": self.described_AY}
        for part, fitted in parts.items():
            trees = fitted if isinstance(fitted, Trees) else Trees.of(fitted)
            found |= {f"{part}.{name}": value for name, value in trees.arrays().items()}
        return found

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> BoostedOutcome:
        model = cls()
        model.described_AY = arrays["described_AY"]
        model.num_actions = len(model.described_AY)
        parts = {}
        for part in ("base", "effect"):
            of_part = {name.removeprefix(f"{part}."): arrays[name] for name in arrays if name.startswith(f"{part}.")}
            parts[part] = Trees.from_arrays(of_part)
        model.base, model.effect = parts["base"], parts["effect"]
        return model


class RidgeOutcome(OutcomeModel):
    """Linear: features, actions, action features, and actions by features; the last shrunk the most.

    ridge: penalty per training row of the features; effect_ridge: of what an action adds for each feature.
    """

    name = "ridge"

    def __init__(self, *, ridge: float = 0.001, effect_ridge: float = 0.02) -> None:
        if ridge <= 0 or effect_ridge <= 0:
            raise InputError("outcome.ridge needs ridge and effect_ridge above 0.")
        self.ridge, self.effect_ridge = ridge, effect_ridge

    def fit(
        self,
        features_QX: np.ndarray,
        action_Q: np.ndarray,
        reward_Q: np.ndarray,
        action_AY: np.ndarray,
        num_actions: int,
        *,
        weight_Q: np.ndarray | None = None,
        seed: int = 0,
    ) -> None:
        del seed  # nothing is drawn
        weight_Q = np.ones(len(reward_Q)) if weight_Q is None else np.asarray(weight_Q, dtype=np.float64)
        known_QX = np.where(np.isfinite(features_QX), features_QX, np.nan)
        empty_X = ~np.isfinite(known_QX).any(axis=0)
        known_QX[:, empty_X] = 0.0
        self.middle_X = np.nanmean(known_QX, axis=0)
        self.spread_X = np.nanstd(known_QX, axis=0)
        self.spread_X[self.spread_X == 0] = 1.0
        design_QX = self._design(features_QX)
        total = max(weight_Q.sum(), 1.0)
        rewards = reward_Q - np.average(reward_Q, weights=weight_Q) if weight_Q.any() else reward_Q
        self.mean = float(reward_Q.mean() if not weight_Q.any() else np.average(reward_Q, weights=weight_Q))
        self.base_X = _solve(design_QX, rewards, weight_Q, self.ridge * total)
        left_Q = rewards - design_QX @ self.base_X
        # An action's own intercept is not penalised; its slopes are.
        self.effect_AX = np.zeros((num_actions, design_QX.shape[1]))
        for action in range(num_actions):
            rows = action_Q == action
            if rows.any():
                penalty = self.effect_ridge * total / num_actions
                self.effect_AX[action] = _solve(design_QX[rows], left_Q[rows], weight_Q[rows], penalty)

    def predict(self, features_QX: np.ndarray, action_AY: np.ndarray) -> np.ndarray:
        if len(action_AY) > len(self.effect_AX):
            raise InputError(
                "outcome.ridge knows the actions that it was fitted on and cannot score a new one. "
                "Use outcome=[gradient_boosting] with decisions.action_features."
            )
        design_QX = self._design(features_QX)
        return self.mean + (design_QX @ self.base_X)[:, None] + design_QX @ self.effect_AX.T

    def arrays(self) -> dict[str, np.ndarray]:
        names = ("middle_X", "spread_X", "mean", "base_X", "effect_AX")
        return {name: np.asarray(getattr(self, name), dtype=np.float64) for name in names}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> RidgeOutcome:
        model = cls()
        for name, value in arrays.items():
            setattr(model, name, float(value) if name == "mean" else value)
        return model

    def _design(self, features_QX: np.ndarray) -> np.ndarray:
        scaled_QX = (features_QX - self.middle_X) / self.spread_X
        scaled_QX = np.clip(np.where(np.isfinite(scaled_QX), scaled_QX, 0.0), -MAX_STANDARD, MAX_STANDARD)
        return np.concatenate([np.ones((len(scaled_QX), 1)), scaled_QX], axis=1)


def _solve(design_QX: np.ndarray, aim_Q: np.ndarray, weight_Q: np.ndarray, penalty: float) -> np.ndarray:
    """Weighted least squares with a penalty on all but the intercept in the first column."""
    weighted = design_QX * weight_Q[:, None]
    ridge = penalty * np.eye(design_QX.shape[1])
    ridge[0, 0] = 1e-9
    return np.linalg.solve(design_QX.T @ weighted + ridge, weighted.T @ aim_Q)
