"""Cross-fitting: every prediction comes from a model that has not seen the customer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from constellation.errors import InputError
from constellation.policies.intervals import numbered
from constellation.policies.outcomes import OutcomeModel

TRAIN_ONLY, LEFT_OUT = -1, -2
"""Folds of rows that are learned from and never judged, and of rows that are neither."""


@dataclass(frozen=True)
class Predictions:
    """members_MQA: of each member of an ensemble, for the fold's own rows by a model of the others (NaN where a row is
    in no fold). inner_KQA: for each fold, its training rows by models of other customers among them: what a policy may
    be learned from without having seen the fold. kept_K: the share of what customers were said to differ by that held
    on other customers; predictions are shrunk to it."""

    members_MQA: np.ndarray
    inner_KQA: np.ndarray
    kept_K: np.ndarray

    @property
    def expected_QA(self) -> np.ndarray:
        return self.members_MQA.mean(axis=0)


def person_folds(customer_Q: np.ndarray, num_folds: int, seed: int) -> np.ndarray:
    """Fold [Q]: every customer in one, drawn by the seed."""
    place_Q = numbered(customer_Q)
    num = int(place_Q.max()) + 1
    if num < 2 * num_folds:
        raise InputError(f"{num_folds} folds need at least {2 * num_folds} customers with decisions, found {num}.")
    return (np.random.default_rng(seed).permutation(num) % num_folds)[place_Q]


def cross_fit(
    model: OutcomeModel,
    features_QX: np.ndarray,
    action_Q: np.ndarray,
    reward_Q: np.ndarray,
    action_AY: np.ndarray,
    customer_Q: np.ndarray,
    fold_Q: np.ndarray,
    logging_QA: np.ndarray,
    *,
    num_members: int = 2,
    num_inner: int = 2,
    clip_quantile: float = 1.0,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Predictions:
    """Ensembles by bootstrap of customers for each fold, and inner cross-fits of its training rows.

    num_members: 1 fits the training rows once, as they are. clip_quantile: models are fitted on rewards cut at this
    quantile of the training rows and scaled back to their mean: a few great rewards would drown what actions add.
    Estimates never use the cut rewards.
    """
    num, num_actions = len(action_Q), len(action_AY)
    folds = [int(fold) for fold in np.unique(fold_Q) if fold >= 0]
    members_MQA = np.full((num_members, num, num_actions), np.nan)
    inner_KQA = np.full((len(folds), num, num_actions), np.nan)
    kept_K = np.ones(len(folds))
    customers = numbered(customer_Q)
    num_customers = int(customers.max()) + 1
    done, steps = 0, len(folds) * (num_members + num_inner)

    def fitted(rows: np.ndarray, weight_Q: np.ndarray | None, part_seed: int) -> OutcomeModel:
        nonlocal done
        if progress is not None:
            progress(model.name, done, steps)
        done += 1
        part = copy.deepcopy(model)
        weights = None if weight_Q is None else weight_Q[rows]
        part.fit(
            features_QX[rows], action_Q[rows], cut_Q[rows], action_AY, num_actions, weight_Q=weights, seed=part_seed
        )
        return part

    for place, fold in enumerate(folds):
        judged, learned = fold_Q == fold, training_rows(fold_Q, fold)
        check_actions(action_Q, judged, learned, num_actions)
        cut_Q = cut_rewards(reward_Q, learned, clip_quantile)
        rng = np.random.default_rng([seed, fold])
        inner_C = rng.integers(0, num_inner, num_customers)
        for inner in range(num_inner):
            own = learned & (inner_C[customers] == inner)
            part = fitted(np.flatnonzero(learned & ~own), None, seed)
            inner_KQA[place, own] = part.predict(features_QX[own], action_AY)
        shrinkage = EffectShrinkage.learn(
            inner_KQA[place, learned], action_Q[learned], cut_Q[learned], logging_QA[learned]
        )
        kept_K[place] = shrinkage.kept
        inner_KQA[place, learned] = shrinkage(inner_KQA[place, learned], logging_QA[learned])
        for member in range(num_members):
            counts_C = np.bincount(rng.integers(0, num_customers, num_customers), minlength=num_customers)
            weight_Q = counts_C[customers].astype(np.float64) if num_members > 1 else None
            rows = learned if weight_Q is None else learned & (weight_Q > 0)
            part = fitted(np.flatnonzero(rows), weight_Q, seed + member)
            members_MQA[member, judged] = shrinkage(part.predict(features_QX[judged], action_AY), logging_QA[judged])
    return Predictions(members_MQA, inner_KQA, kept_K)


@dataclass(frozen=True)
class EffectShrinkage:
    """How much of a predicted difference between customers to believe.

    A prediction is the mean of the customer under the logging policy + the mean effect of the action + what this
    customer differs by; the last is multiplied by ``kept`` in [0, 1], its least-squares slope on customers that the
    model has not seen. Models of rewards much noisier than effects differ mostly by noise, and the greatest noise would
    win.
    """

    kept: float
    mean_A: np.ndarray

    @classmethod
    def learn(
        cls, model_QA: np.ndarray, action_Q: np.ndarray, reward_Q: np.ndarray, logging_QA: np.ndarray
    ) -> EffectShrinkage:
        """From predictions for rows that their models have not seen."""
        effect_QA = model_QA - _under(logging_QA, model_QA)
        mean_A = effect_QA.mean(axis=0)
        rows = np.arange(len(action_Q))
        differs_Q = effect_QA[rows, action_Q] - mean_A[action_Q]
        left_Q = reward_Q - (model_QA[rows, action_Q] - differs_Q)
        # A mean effect that is itself off must not pass for a difference between customers.
        mass_A = np.bincount(action_Q, minlength=len(mean_A))
        off_A = np.bincount(action_Q, weights=left_Q, minlength=len(mean_A)) / np.maximum(mass_A, 1)
        square = float((differs_Q**2).sum())
        kept = float((differs_Q * (left_Q - off_A[action_Q])).sum()) / square if square > 0 else 1.0
        return cls(float(np.clip(kept, 0.0, 1.0)), mean_A)

    def __call__(self, model_QA: np.ndarray, logging_QA: np.ndarray) -> np.ndarray:
        """Shrunk predictions; the mean under the logging policy stays what it was but for the mean effects."""
        customer_Q1 = _under(logging_QA, model_QA)
        return customer_Q1 + self.mean_A + self.kept * (model_QA - customer_Q1 - self.mean_A)


def _under(logging_QA: np.ndarray, model_QA: np.ndarray) -> np.ndarray:
    return np.where(logging_QA > 0, logging_QA * model_QA, 0.0).sum(axis=1, keepdims=True)


def cut_rewards(reward_Q: np.ndarray, learned: np.ndarray, clip_quantile: float) -> np.ndarray:
    """Rewards cut at a quantile of the training rows (and at its mirror, where some are negative), with their mean."""
    if clip_quantile >= 1:
        return reward_Q
    low, high = np.quantile(reward_Q[learned], [1 - clip_quantile, clip_quantile])
    if high <= low or high <= 0:
        return reward_Q  # of rare rewards the quantile is none at all, and a cut would leave nothing
    cut_Q = np.clip(reward_Q, min(low, 0.0), high)
    mean = float(cut_Q[learned].mean())
    return cut_Q * (float(reward_Q[learned].mean()) / mean) if mean > 0 else cut_Q


def training_rows(fold_Q: np.ndarray, fold: int) -> np.ndarray:
    """Mask [Q] of what a fold may learn from: all other folds and the rows that are for training only."""
    return (fold_Q != fold) & (fold_Q != LEFT_OUT)


def check_actions(action_Q: np.ndarray, judged: np.ndarray, learned: np.ndarray, num_actions: int) -> None:
    """Raise InputError for an action that occurs among the judged rows alone: nothing could be learned about it."""
    only = np.setdiff1d(np.unique(action_Q[judged]), np.unique(action_Q[learned]))
    if len(only):
        named = ", ".join(str(place) for place in only[:5])
        raise InputError(
            f"{len(only)} of {num_actions} actions are seen in the test part alone (number {named} in the order of the "
            "data). Merge rare actions, leave their decisions out, or take fewer folds."
        )


def fitted_propensities(
    features_QX: np.ndarray,
    action_Q: np.ndarray,
    num_actions: int,
    fold_Q: np.ndarray,
    customer_Q: np.ndarray,
    *,
    floor: float = 0.001,
    seed: int = 0,
) -> np.ndarray:
    """Probabilities [Q, A] of each action given the features, cross-fitted by customers, where none were logged.

    Multinomial boosting; no probability is below ``floor``. They describe what the features tell of the choice: where
    it followed something that the log does not hold, every estimate that uses them is biased, and no interval shows it.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    chance_QA = np.zeros((len(action_Q), num_actions))
    groups_Q = person_folds(customer_Q, 3, seed)
    usable_Q = fold_Q != LEFT_OUT
    for group in range(3):
        learned, own = (groups_Q != group) & usable_Q, groups_Q == group
        model = HistGradientBoostingClassifier(
            max_iter=40, max_leaf_nodes=8, min_samples_leaf=100, early_stopping=False, random_state=seed
        )
        if len(np.unique(action_Q[learned])) < 2:
            raise InputError("All decisions chose the same action: no propensity can be learned, and nothing compared.")
        model.fit(features_QX[learned], action_Q[learned])
        chance_QA[np.ix_(own, model.classes_)] = model.predict_proba(features_QX[own])
    chance_QA = np.maximum(chance_QA, floor)
    return chance_QA / chance_QA.sum(axis=1, keepdims=True)
