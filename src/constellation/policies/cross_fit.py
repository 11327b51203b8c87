"""Cross-fitting: every prediction comes from a model that has not seen the customer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from constellation.errors import InputError
from constellation.policies.intervals import numbered
from constellation.policies.lookahead import Lookahead
from constellation.policies.outcomes import OutcomeModel, binnable

TRAIN_ONLY, LEFT_OUT = -1, -2
"""Folds of rows that are learned from and never judged, and of rows that are neither."""

EVERYBODY = -1
"""In place of a fold: what is learned from the whole log, and who is answered by it."""

NUM_GROUPS = 3
"""Of customers, for propensities: each is told by a model of the others."""


@dataclass(frozen=True)
class Predictions:
    """members_MQA: of each member of an ensemble, for the fold's own rows by a model of the others (NaN where a row is
    in no fold). inner_KQA: for each fold, its training rows by models of other customers among them: what a policy may
    be learned from without having seen the fold. kept_K2: the shares of what customers were said to differ by, in how
    strongly they respond and in which action suits them, that held on other customers; predictions are shrunk to
    them."""

    members_MQA: np.ndarray
    inner_KQA: np.ndarray
    kept_K2: np.ndarray

    @property
    def expected_QA(self) -> np.ndarray:
        return self.members_MQA.mean(axis=0)


@dataclass(frozen=True)
class FoldModels:
    """What answers the customers of one fold: members fitted on the others, and the shrinkage of what they say. Of the
    fold ``EVERYBODY``: members fitted on the whole log, who act."""

    fold: int
    members: tuple[OutcomeModel, ...]
    shrinkage: EffectShrinkage


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
    refit: bool = False,
    ahead: Lookahead | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
    keep: Callable[[FoldModels], None] = lambda fitted: None,
) -> Predictions:
    """Ensembles by bootstrap of customers for each fold, and inner cross-fits of its training rows.

    num_members: 1 fits the training rows once, as they are. clip_quantile: models are fitted on rewards cut at this
    quantile of the training rows and scaled back to their mean: a few great rewards would drown what actions add.
    Estimates never use the cut rewards. ahead: what models learn beyond the rewards, anew for each fold.
    keep: is handed the models of each fold, which are forgotten otherwise.
    refit: last of all, members are fitted on the whole log and handed to ``keep`` as the fold ``EVERYBODY``, with the
    shrinkage that the folds' predictions for customers they had not seen deserve: for who acts, never for estimates.
    """
    num, num_actions = len(action_Q), len(action_AY)
    folds = [int(fold) for fold in np.unique(fold_Q) if fold >= 0]
    members_MQA = np.full((num_members, num, num_actions), np.nan)
    inner_KQA = np.full((len(folds), num, num_actions), np.nan)
    kept_K2 = np.ones((len(folds), 2))
    apart_QA = np.zeros((num, num_actions)) if refit else None
    customers = numbered(customer_Q)
    num_customers = int(customers.max()) + 1
    done, steps = 0, len(folds) * (num_members + num_inner) + num_members * refit

    def fitted(mask_Q: np.ndarray, weight_Q: np.ndarray | None, cut_Q: np.ndarray, part_seed: int) -> OutcomeModel:
        nonlocal done
        if progress is not None:
            progress(model.name, done, steps)
        done += 1
        part = copy.deepcopy(model)
        # All rows are taken as they are: a copy of a great table costs as much memory as the table.
        rows = slice(None) if mask_Q.all() else np.flatnonzero(mask_Q)
        weights = None if weight_Q is None else weight_Q[rows]
        more = {"logging_QA": logging_QA[rows]} if part.reads_propensities else {}
        part.fit(
            features_QX[rows], action_Q[rows], cut_Q[rows], action_AY, num_actions, weight_Q=weights, seed=part_seed,
            **more,
        )  # fmt: skip
        return part

    def ensemble(learned_Q: np.ndarray, cut_Q: np.ndarray, rng: np.random.Generator) -> list[OutcomeModel]:
        members = []
        for member in range(num_members):
            counts_C = np.bincount(rng.integers(0, num_customers, num_customers), minlength=num_customers)
            weight_Q = counts_C[customers].astype(np.float64) if num_members > 1 else None
            rows_Q = learned_Q if weight_Q is None else learned_Q & (weight_Q > 0)
            members.append(fitted(rows_Q, weight_Q, cut_Q, seed + member))
        return members

    def believed(unseen_QA: np.ndarray, cut_Q: np.ndarray, mask_Q: np.ndarray) -> EffectShrinkage:
        if model.shrinks_itself:
            return EffectShrinkage(1.0, np.zeros(num_actions), 1.0)
        return EffectShrinkage.learn(unseen_QA[mask_Q], action_Q[mask_Q], cut_Q[mask_Q], logging_QA[mask_Q])

    for place, fold in enumerate(folds):
        judged, learned = fold_Q == fold, training_rows(fold_Q, fold)
        check_actions(action_Q, judged, learned, num_actions)
        cut_Q = learned_rewards(reward_Q, learned, clip_quantile, ahead, seed)
        rng = np.random.default_rng([seed, fold])
        inner_C = rng.integers(0, num_inner, num_customers)
        for inner in range(num_inner):
            own = learned & (inner_C[customers] == inner)
            part = fitted(learned & ~own, None, cut_Q, seed)
            inner_KQA[place, own] = part.predict(features_QX[own], action_AY)
        shrinkage = believed(inner_KQA[place], cut_Q, learned)
        kept_K2[place] = shrinkage.kept_size, shrinkage.kept
        inner_KQA[place, learned] = shrinkage(inner_KQA[place, learned], logging_QA[learned])
        members = ensemble(learned, cut_Q, rng)
        for member, part in enumerate(members):
            raw_QA = part.predict(features_QX[judged], action_AY)
            members_MQA[member, judged] = shrinkage(raw_QA, logging_QA[judged])
            if apart_QA is not None:
                apart_QA[judged] += raw_QA / num_members
        keep(FoldModels(fold, tuple(members), shrinkage))
    if apart_QA is not None:
        everything, judged = np.ones(num, dtype=bool), fold_Q >= 0
        cut_Q = learned_rewards(reward_Q, everything, clip_quantile, ahead, seed)
        shrinkage = believed(apart_QA, cut_Q, judged)
        del apart_QA
        members = ensemble(everything, cut_Q, np.random.default_rng([seed, len(folds)]))
        keep(FoldModels(EVERYBODY, tuple(members), shrinkage))
    return Predictions(members_MQA, inner_KQA, kept_K2)


@dataclass(frozen=True)
class EffectShrinkage:
    """How much of a predicted difference between customers to believe.

    A prediction is the mean of the customer under the logging policy + the mean effect of the action + what this
    customer's effects differ by. That has two parts: how strongly the customer responds to anything (``size - 1`` times
    the mean effects, with ``size`` the projection on them), which orders customers, and the rest, which alone says that
    another action suits this customer. They are multiplied by ``kept_size`` and ``kept`` in [0, 1]: their least-squares
    slopes b on customers that the model has not seen, as ``b (1 - se^2 / b^2)_+`` (the positive part of James and Stein
    1961), so that what is not told from noise is not believed. Models of rewards much noisier than effects differ
    mostly by noise, and the greatest noise would win; one slope for both parts would let the first, which is easily
    seen, vouch for the second.
    """

    kept: float
    mean_A: np.ndarray
    kept_size: float

    @classmethod
    def learn(
        cls, model_QA: np.ndarray, action_Q: np.ndarray, reward_Q: np.ndarray, logging_QA: np.ndarray
    ) -> EffectShrinkage:
        """From predictions for rows that their models have not seen."""
        customer_Q1 = _under(logging_QA, model_QA)
        mean_A = (model_QA - customer_Q1).mean(axis=0)
        rows, num_actions = np.arange(len(action_Q)), len(mean_A)
        mass_A = np.maximum(np.bincount(action_Q, minlength=num_actions), 1)

        def within(column_Q: np.ndarray) -> np.ndarray:
            # A mean effect that is itself off must not pass for a difference between customers.
            return column_Q - (np.bincount(action_Q, weights=column_Q, minlength=num_actions) / mass_A)[action_Q]

        size_QA, rest_QA = _differences(model_QA - customer_Q1, mean_A)
        parts_Q2 = np.stack([within(size_QA[rows, action_Q]), within(rest_QA[rows, action_Q])], axis=1)
        left_Q = within(reward_Q - customer_Q1[:, 0] - mean_A[action_Q])
        kept_size, kept = _believed(parts_Q2, left_Q)
        return cls(kept, mean_A, kept_size)

    def __call__(self, model_QA: np.ndarray, logging_QA: np.ndarray) -> np.ndarray:
        """Shrunk predictions; the mean under the logging policy stays what it was but for the mean effects."""
        customer_Q1 = _under(logging_QA, model_QA)
        size_QA, rest_QA = _differences(model_QA - customer_Q1, self.mean_A)
        return customer_Q1 + self.mean_A + self.kept_size * size_QA + self.kept * rest_QA


def _differences(effect_QA: np.ndarray, mean_A: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What each customer's effects differ from the mean effects by: along these, and across them."""
    square = float(mean_A @ mean_A)
    size_QA = (effect_QA @ mean_A / square if square > 0 else np.ones(len(effect_QA)))[:, None] * mean_A
    return size_QA - mean_A, effect_QA - size_QA


def _believed(parts_Q2: np.ndarray, left_Q: np.ndarray) -> tuple[float, float]:
    """Slopes of ``left_Q`` on both parts, each drawn to that on their sum as far as the two are not told apart."""
    whole_Q = parts_Q2.sum(axis=1)
    square = float(whole_Q @ whole_Q)
    if square == 0:
        return 1.0, 1.0
    slope = np.full(2, float(whole_Q @ left_Q) / square)
    if ((parts_Q2**2).sum(axis=0) > 1e-9 * square).all():  # of two actions there is no rest
        inverse = np.linalg.pinv(parts_Q2.T @ parts_Q2)
        own = inverse @ (parts_Q2.T @ left_Q)
        # Rewards vary more where they are high: the sandwich of White (1980).
        scatter = parts_Q2 * (left_Q - parts_Q2 @ own)[:, None]
        variance = inverse @ (scatter.T @ scatter) @ inverse
        apart, noise = float(own[0] - own[1]) ** 2, float(variance[0, 0] + variance[1, 1] - 2 * variance[0, 1])
        slope = slope + max(0.0, 1.0 - noise / apart if apart > 0 else 0.0) * (own - slope)
    kept = slope.clip(0.0, 1.0)
    return float(kept[0]), float(kept[1])


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


def learned_rewards(
    reward_Q: np.ndarray, learned: np.ndarray, clip_quantile: float, ahead: Lookahead | None, seed: int
) -> np.ndarray:
    """What models learn from: rewards cut as in ``cut_rewards``, and what lies ahead of them."""
    cut_Q = cut_rewards(reward_Q, learned, clip_quantile)
    return cut_Q if ahead is None else ahead.rewards(cut_Q, learned, seed=seed)


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
    keep: Callable[[Any], None] = lambda model: None,
) -> np.ndarray:
    """Probabilities [Q, A] of each action given the features, cross-fitted by customers, where none were logged.

    Multinomial boosting; no probability is below ``floor``. They describe what the features tell of the choice: where
    it followed something that the log does not hold, every estimate that uses them is biased, and no interval shows it.
    keep: is handed the fitted classifiers, in the order of ``person_folds(customer_Q, 3, seed)``.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    chance_QA = np.zeros((len(action_Q), num_actions))
    groups_Q = person_folds(customer_Q, NUM_GROUPS, seed)
    usable_Q = fold_Q != LEFT_OUT
    for group in range(NUM_GROUPS):
        learned, own = (groups_Q != group) & usable_Q, groups_Q == group
        model = HistGradientBoostingClassifier(
            max_iter=40, max_leaf_nodes=8, min_samples_leaf=100, early_stopping=False, random_state=seed
        )
        if len(np.unique(action_Q[learned])) < 2:
            raise InputError("All decisions chose the same action: no propensity can be learned, and nothing compared.")
        model.fit(binnable(features_QX[learned]), action_Q[learned])
        chance_QA[np.ix_(own, model.classes_)] = model.predict_proba(features_QX[own])
        keep(model)
    chance_QA = np.maximum(chance_QA, floor)
    return chance_QA / chance_QA.sum(axis=1, keepdims=True)
