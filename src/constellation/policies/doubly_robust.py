"""A policy learned from doubly-robust scores, with a price on variance and on leaving the logging policy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from constellation.errors import InputError
from constellation.policies.intervals import standard_error
from constellation.policies.policy import Policy, Situation
from constellation.policies.terms import Terms

MAX_STANDARD = 5.0
LEAST_VARIANCE = 1e-4
LEAST_ODDS = 0.01
"""Against the best action; below them none is taken. A softmax never quite lets go of what it has found to be worse."""

BIAS_RIDGE = 1e-5
"""On the bias row, whatever the other rows pay. A softmax that is one action for everybody has no slope to leave it by;
this price keeps logits finite, and odds still reach LEAST_ODDS where two actions differ by .005 of the unit."""

START_SPREAD = 3.0
"""Between the greatest and the least mean logit where more rows are begun with: odds of 1 in 20 for the worst."""

CHUNK_ROWS = 131_072
CACHED_ROWS = 8192
COARSE_ROWS, COARSER = 20_000, 8
"""A first part of the rows is one in ``COARSER`` (or in its square, and so on), but no fewer than ``COARSE_ROWS``."""


@dataclass(frozen=True)
class _Ground:
    """design_QX: float32, what the policy reads; eligible_QA, logging_QA, scores_QA: as everywhere; aligned."""

    design_QX: np.ndarray
    eligible_QA: np.ndarray
    logging_QA: np.ndarray
    scores_QA: np.ndarray

    def take(self, rows: np.ndarray | slice) -> _Ground:
        return _Ground(*(array[rows] for array in vars(self).values()))


class DoublyRobustLearned(Policy):
    """Softmax of a linear function of the features, learned by METHODS 3.7:

    ``max  mean_i sum_a pi(a|x_i) G_i(a)  -  variance sqrt(var_i / n)  -  logging KL(pi | logging)  -  ridge |theta|^2``
    with doubly-robust scores G (Athey and Wager 2021; the variance term of Swaminathan and Joachims 2015), in units of
    the scores' spread. ``ridges``: each tried on either half of the training customers; kept is the strongest whose
    doubly-robust value on the other halves is within a standard error of the best (the rule of Breiman et al. 1984).
    The strongest of all leaves little but the constant policy, so that nothing is personal unless it pays on customers
    not learned from.
    clip_quantile: the corrections ``G - model`` are cut at this quantile of those that are not 0, for a few great
    rewards over small propensities would choose the policy. Values are estimated elsewhere, from rewards as they were.
    As features: standardised, NaN as the mean. num_steps: of L-BFGS.
    """

    name = "doubly_robust"

    def __init__(
        self,
        *,
        variance: float = 1.0,
        logging: float = 0.0,
        ridges: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0, 10.0),
        clip_quantile: float = 0.99,
        num_steps: int = 40,
        max_features: int = 64,
        seed: int = 0,
    ) -> None:
        if variance < 0 or logging < 0 or not ridges or min(ridges) < 0 or num_steps < 1 or max_features < 1:
            raise InputError(
                "policy.doubly_robust needs variance, logging and ridges of 0 or more, "
                "and num_steps and max_features of 1 or more."
            )
        if not 0.5 < clip_quantile <= 1:
            raise InputError(f"policy.doubly_robust.clip_quantile must lie in (0.5, 1], found {clip_quantile}.")
        self.variance, self.logging, self.ridges = variance, logging, tuple(sorted(ridges, reverse=True))
        self.clip_quantile = clip_quantile
        self.num_steps, self.max_features, self.seed = num_steps, max_features, seed
        self.theta_XA: np.ndarray | None = None

    def fit(self, situation: Situation, scores_QA: np.ndarray, customer_Q: np.ndarray) -> None:
        self._standardise(situation.features_QX)
        ground = _Ground(
            self._design(situation.features_QX, np.dtype(np.float32)),
            situation.eligible_QA,
            situation.logging_QA,
            cut_corrections(scores_QA, situation.expected_QA, self.clip_quantile),
        )
        ridge = self.ridges[0]
        if len(self.ridges) > 1:
            halves_Q = np.random.default_rng(self.seed).integers(0, 2, int(customer_Q.max()) + 1)[customer_Q] == 0
            value_RQ = np.zeros((len(self.ridges), len(scores_QA)))
            for half_Q in (halves_Q, ~halves_Q):
                own, other = ground.take(half_Q), ground.take(~half_Q)
                for place, tried in enumerate(self.ridges):
                    theta = self._learn(own, tried)
                    target_QA = _policy(other.design_QX, theta, other.eligible_QA)
                    value_RQ[place, ~half_Q] = (target_QA * other.scores_QA).sum(axis=1)
            ridge = self.ridges[_strongest(value_RQ, customer_Q)]
        self.ridge = ridge
        self.theta_XA = self._learn(ground, ridge)

    def probabilities(self, situation: Situation) -> np.ndarray:
        assert self.theta_XA is not None, "fit first"
        target_QA = np.empty(situation.expected_QA.shape)
        for start in range(0, len(target_QA), CHUNK_ROWS):  # the design of millions of rows would fill the memory
            rows = slice(start, start + CHUNK_ROWS)
            design_QX = self._design(situation.features_QX[rows], np.dtype(np.float64))
            target_QA[rows] = _policy(design_QX, self.theta_XA, situation.eligible_QA[rows])
        return target_QA

    def _standardise(self, features_QX: np.ndarray) -> None:
        """Features that vary, by coverage: an all-missing column says nothing."""
        kept: list[int] = []
        middle: list[float] = []
        spread: list[float] = []
        for place, column_Q in enumerate(features_QX.T):
            seen_Q = column_Q[np.isfinite(column_Q)]
            if len(seen_Q) > 0.05 * len(column_Q) and seen_Q.std() > 0 and len(kept) < self.max_features:
                kept.append(place)
                middle.append(float(seen_Q.mean()))
                spread.append(float(seen_Q.std()))
        self.kept_X = np.array(kept, dtype=np.int64)
        self.middle_X, self.spread_X = np.array(middle, dtype=np.float64), np.array(spread, dtype=np.float64)

    def _design(self, features_QX: np.ndarray, dtype: np.dtype) -> np.ndarray:
        design_QX = np.ones((len(features_QX), 1 + len(self.kept_X)), dtype=dtype)
        for place, (kept, middle, spread) in enumerate(zip(self.kept_X, self.middle_X, self.spread_X, strict=True)):
            scaled_Q = (features_QX[:, kept] - middle) / spread
            scaled_Q = np.where(np.isfinite(scaled_Q), scaled_Q, 0.0)
            design_QX[:, 1 + place] = np.clip(scaled_Q, -MAX_STANDARD, MAX_STANDARD)
        return design_QX

    def _learn(self, ground: _Ground, ridge: float) -> np.ndarray:
        """From equal chances, where every action's slope is alive: a penalty that starts where a stronger one ended
        starts at one action for everybody. Of many rows a few first, evenly taken: from where those end, tempered for
        the same reason, few passes over all rows are left."""
        scores_QA = ground.scores_QA
        unit = max(float(scores_QA.mean(axis=0).std()), float(scores_QA.std()) / np.sqrt(len(scores_QA)), 1e-12)
        theta_XA = np.zeros((ground.design_QX.shape[1], scores_QA.shape[1]))
        steps = [1]
        while len(scores_QA) // (steps[0] * COARSER) >= COARSE_ROWS:
            steps.insert(0, steps[0] * COARSER)
        for step in steps:
            part = ground.take(slice(None, None, step))
            theta_XA = self._descend(part, ridge, _tempered(theta_XA), unit, len(scores_QA))
        return theta_XA

    def _descend(self, ground: _Ground, ridge: float, start_XA: np.ndarray, unit: float, num: int) -> np.ndarray:
        """num: decisions that the value is an average of, who may be more than those here."""
        from scipy.optimize import minimize

        sums = _Sums(ground, unit, with_logging=self.logging > 0)
        ridge_X1 = np.full((len(start_XA), 1), ridge)
        ridge_X1[0] = BIAS_RIDGE  # the bias row is the constant policy, which a penalty must hardly stand against

        def loss_and_slope(flat: np.ndarray) -> tuple[float, np.ndarray]:
            theta_XA = flat.reshape(start_XA.shape)
            found = sums.at(theta_XA)
            # At the start all actions are as likely and every value is 0: the root needs a slope there.
            root = np.sqrt((max(found.square - found.value**2, 0.0) + LEAST_VARIANCE) / num)
            loss = -found.value + self.variance * root + self.logging * found.divergence
            slope_XA = self.variance / (num * root) * (found.square_XA - found.value * found.value_XA) - found.value_XA
            slope_XA += self.logging * found.divergence_XA + 2 * ridge_X1 * theta_XA
            return float(loss + (ridge_X1 * theta_XA**2).sum()), slope_XA.ravel()

        # In units of what the actions differ by, so a ten-millionth is nothing.
        options = {"maxiter": self.num_steps, "ftol": 1e-7, "gtol": 1e-5}
        ended = minimize(loss_and_slope, start_XA.ravel(), jac=True, method="L-BFGS-B", options=options)
        return np.asarray(ended.x).reshape(start_XA.shape)


@dataclass(frozen=True)
class _Found:
    """Means over the rows: of the value, half of the slope of its square, of KL(pi | logging), and their slopes."""

    value: float
    square: float
    divergence: float
    value_XA: np.ndarray
    square_XA: np.ndarray
    divergence_XA: np.ndarray


class _Sums:
    """The loss's parts at a theta, in one pass over rows that fit the cache; actions lie first, for sums over them."""

    def __init__(self, ground: _Ground, unit: float, *, with_logging: bool) -> None:
        self.design_QX = np.ascontiguousarray(ground.design_QX)
        scores_QA = ground.scores_QA
        self.gain_AQ = np.ascontiguousarray(((scores_QA - scores_QA.mean(axis=1, keepdims=True)) / unit).T, np.float32)
        self.closed_AQ = None if ground.eligible_QA.all() else np.ascontiguousarray(~ground.eligible_QA.T)
        self.logged_AQ = None
        if with_logging:
            self.logged_AQ = np.log(np.clip(ground.logging_QA.T, 1e-6, None)).astype(np.float32)

    def at(self, theta_XA: np.ndarray) -> _Found:
        num_features, num_actions = theta_XA.shape
        theta_AX = np.ascontiguousarray(theta_XA.T, np.float32)
        value = square = divergence = 0.0
        slopes_XS = np.zeros((num_features, 3 * num_actions))
        for start in range(0, len(self.design_QX), CACHED_ROWS):
            rows = slice(start, start + CACHED_ROWS)
            design_QX, gain_AQ = self.design_QX[rows], self.gain_AQ[:, rows]
            logit_AQ = theta_AX @ design_QX.T
            if self.closed_AQ is not None:
                logit_AQ[self.closed_AQ[:, rows]] = -np.inf
            logit_AQ -= logit_AQ.max(axis=0)
            pi_AQ = np.exp(logit_AQ)
            whole_Q = pi_AQ.sum(axis=0)
            pi_AQ /= whole_Q
            value_Q = (pi_AQ * gain_AQ).sum(axis=0)
            slope_AQ = pi_AQ * (gain_AQ - value_Q)
            slopes = [slope_AQ, slope_AQ * value_Q]
            value += float(value_Q.sum(dtype=np.float64))
            square += float(np.square(value_Q, dtype=np.float64).sum())
            if self.logged_AQ is not None:
                ratio_AQ = np.where(pi_AQ > 0, logit_AQ - np.log(whole_Q) - self.logged_AQ[:, rows], 0.0)
                divergence_Q = (pi_AQ * ratio_AQ).sum(axis=0)
                divergence += float(divergence_Q.sum(dtype=np.float64))
                slopes.append(pi_AQ * (ratio_AQ - divergence_Q))
            stacked_SQ = np.concatenate(slopes)
            slopes_XS[:, : len(stacked_SQ)] += (stacked_SQ @ design_QX).T
        num = len(self.design_QX)
        value_XA, square_XA, divergence_XA = np.split(slopes_XS / num, 3, axis=1)
        return _Found(value / num, square / num, divergence / num, value_XA, square_XA, divergence_XA)


def _tempered(theta_XA: np.ndarray) -> np.ndarray:
    """The same choices with less certainty, so that no action's slope is gone; the bias row holds the mean logits."""
    return theta_XA * min(1.0, START_SPREAD / max(float(np.ptp(theta_XA[0])), 1e-12))


def _strongest(value_RQ: np.ndarray, customer_Q: np.ndarray) -> int:
    """The first place that the best does not beat by more than a standard error of the difference, by customer."""
    best = int(value_RQ.mean(axis=1).argmax())
    for place in range(best):
        lead = Terms.mean_of(value_RQ[best] - value_RQ[place])
        if lead.value <= standard_error(lead, customer_Q):
            return place
    return best


def cut_corrections(scores_QA: np.ndarray, model_QA: np.ndarray, clip_quantile: float) -> np.ndarray:
    """Scores [Q, A] whose distance from the model is at most its ``clip_quantile`` over those that differ from it."""
    correction_QA = scores_QA - model_QA
    there = np.abs(correction_QA[correction_QA != 0])
    if clip_quantile >= 1 or len(there) == 0:
        return scores_QA
    reach = float(np.quantile(there, clip_quantile))
    return np.asarray(model_QA + np.clip(correction_QA, -reach, reach))


def _policy(design_QX: np.ndarray, theta_XA: np.ndarray, eligible_QA: np.ndarray) -> np.ndarray:
    logits_QA = np.where(eligible_QA, design_QX @ theta_XA, -np.inf)
    odds_QA = np.exp(logits_QA - logits_QA.max(axis=1, keepdims=True))
    odds_QA = np.where(odds_QA < LEAST_ODDS, 0.0, odds_QA)
    return odds_QA / odds_QA.sum(axis=1, keepdims=True)
