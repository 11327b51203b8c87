"""Off-policy estimators: what a target policy would have earned, from decisions that another policy made.

METHODS: ``w = target(a|x) / logging(a|x)`` for the chosen action, ``q`` a model of the reward. Each function returns
:class:`~constellation.policies.terms.Terms`, whose ``value`` is the estimate and whose rows the intervals read.
``model_QA`` must be cross-fitted: never fitted on the rows it is used for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from constellation.policies.intervals import standard_error
from constellation.policies.log import Log
from constellation.policies.terms import Terms

SLOPE_CONSTANT = np.sqrt(6.0) - 1.0
LAMBDAS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 1000.0, np.inf)
"""Candidates of the shrinkage; infinity is doubly robust without it."""
NUM_THRESHOLDS = 21
"""Of the switch; infinity beside them."""


def direct(log: Log, target_QA: np.ndarray, model_QA: np.ndarray) -> Terms:
    """The model's own expectation. Shown beside the others, never alone: its bias shows in no interval."""
    del log  # asked of every estimator
    return Terms.mean_of(_expected(target_QA, model_QA))


def ips(log: Log, target_QA: np.ndarray, *, clip: float = np.inf) -> Terms:
    """Inverse propensity scoring, mean(w r) (Horvitz and Thompson 1952); weights above ``clip`` are cut to it."""
    return Terms.mean_of(np.minimum(log.weights(target_QA), clip) * log.reward_Q)


def snips(log: Log, target_QA: np.ndarray) -> Terms:
    """Self-normalised, sum(w r) / sum(w) (Swaminathan and Joachims 2015)."""
    weights_Q = log.weights(target_QA)
    return Terms(np.zeros(len(log)), weights_Q * log.reward_Q, weights_Q)


def doubly_robust(log: Log, target_QA: np.ndarray, model_QA: np.ndarray) -> Terms:
    """mean(q(x, target) + w (r - q(x, a))) (Dudik, Langford and Li 2011)."""
    return Terms.mean_of(_expected(target_QA, model_QA) + log.weights(target_QA) * _residual(log, model_QA))


def self_normalised_doubly_robust(log: Log, target_QA: np.ndarray, model_QA: np.ndarray) -> Terms:
    """Doubly robust with the correction over the mean weight."""
    weights_Q = log.weights(target_QA)
    return Terms(_expected(target_QA, model_QA), weights_Q * _residual(log, model_QA), weights_Q)


def switch_doubly_robust(log: Log, target_QA: np.ndarray, model_QA: np.ndarray, *, switch: float) -> Terms:
    """The correction only where w <= switch (Wang, Agarwal and Dudik 2017)."""
    weights_Q = log.weights(target_QA)
    kept_Q = np.where(weights_Q <= switch, weights_Q, 0.0)
    return Terms.mean_of(_expected(target_QA, model_QA) + kept_Q * _residual(log, model_QA))


def switch_threshold(log: Log, target_QA: np.ndarray, model_QA: np.ndarray, *, reach: float | None = None) -> float:
    """Where to switch: the threshold of the least estimated mean squared error (as Wang, Agarwal and Dudik 2017 do).

    ``variance + bias^2``: the variance of the estimate, by customer, and for the bias its bound, ``reach`` times the
    target's mean probability of actions whose weight is above the threshold. reach: by how much a model may be off
    the expected reward; by default the span of all that this one expects, 0 included. Candidates: ``NUM_THRESHOLDS``
    from the least weight above 0 to the greatest, evenly on the log scale, and infinity. Equal estimates keep the
    greater threshold.
    """
    weights_Q = log.weights(target_QA)
    if not (weights_Q > 0).any():
        return float("inf")
    every_QA = np.divide(target_QA, log.logging_QA, out=np.zeros(target_QA.shape), where=log.logging_QA > 0)
    expected_QA = np.where(target_QA > 0, model_QA, 0.0)
    span = float(expected_QA.max() - min(expected_QA.min(), 0.0)) if reach is None else reach
    inside = np.geomspace(weights_Q[weights_Q > 0].min(), weights_Q.max(), NUM_THRESHOLDS)
    inside[-1] = weights_Q.max()  # of the steps between, rounding must not leave the last below the greatest weight
    found = []
    for threshold in (np.inf, *inside[::-1]):
        terms = switch_doubly_robust(log, target_QA, model_QA, switch=threshold)
        above = float(np.where(every_QA > threshold, target_QA, 0.0).sum(axis=1).mean())
        found.append((standard_error(terms, log.customer_Q) ** 2 + (span * above) ** 2, float(threshold)))
    least = min(error for error, _ in found)
    return next(threshold for error, threshold in found if error <= least)


def shrunk_doubly_robust(log: Log, target_QA: np.ndarray, model_QA: np.ndarray, *, shrinkage: float) -> Terms:
    """DRos: weights shrunk to ``shrinkage w / (w^2 + shrinkage)`` (Su, Dimakopoulou, Krishnamurthy and Dudik 2020)."""
    weights_Q = log.weights(target_QA)
    kept_Q = weights_Q if np.isinf(shrinkage) else shrinkage * weights_Q / (weights_Q**2 + shrinkage)
    return Terms.mean_of(_expected(target_QA, model_QA) + kept_Q * _residual(log, model_QA))


def mrdr_weights(log: Log, target_QA: np.ndarray) -> np.ndarray:
    """Weights [Q] with which a model is fitted for "more robust doubly robust" (Farajtabar, Chow, Ghavamzadeh 2018).

    ``target(a|x) (1 - logging(a|x)) / logging(a|x)^2``: the model that makes the variance of DR least. Fit the outcome
    model with them on other folds, then call :func:`doubly_robust` with it.
    """
    propensity_Q = log.propensity_Q
    return log.weights(target_QA) * (1.0 - propensity_Q) / propensity_Q


def slope(candidates: Sequence[Terms], *, delta: float = 0.1) -> int:
    """Which of several estimates to take, by SLOPE (Su, Srinath and Krishnamurthy 2020); returns its place.

    From the widest interval to the narrowest; the last one that all before agree with, within their widths. It needs
    no estimate of a bias, only that bias grows where the width falls. delta: of each one-sided Student bound.
    """
    from scipy import stats

    assert candidates
    value_J = np.array([terms.value for terms in candidates])
    num = len(candidates[0])
    spread_J = np.array([terms.rows().std() for terms in candidates])
    width_J = stats.t(num - 1).ppf(1 - delta) * spread_J / np.sqrt(num - 1)
    order = np.argsort(width_J)[::-1]
    for place in range(1, len(order)):
        now, before = order[place], order[:place]
        if not (np.abs(value_J[before] - value_J[now]) <= width_J[now] + SLOPE_CONSTANT * width_J[before]).all():
            return int(order[place - 1])
    return int(order[-1])


def tuned(
    estimator: Callable[[float], Terms], lambdas: Sequence[float] = LAMBDAS, *, delta: float = 0.1
) -> tuple[Terms, float]:
    """The estimate at the setting that SLOPE takes, and the setting: ``tuned(lambda s: shrunk(.., shrinkage=s))``."""
    candidates = [estimator(setting) for setting in lambdas]
    place = slope(candidates, delta=delta)
    return candidates[place], float(lambdas[place])


def scores(log: Log, model_QA: np.ndarray) -> np.ndarray:
    """Doubly-robust scores [Q, A] of every action, ``q + 1[a chosen] (r - q) / propensity``.

    ``mean(sum_a target * scores)`` is :func:`doubly_robust` of the target: the scores are what policies are learned
    from (Athey and Wager 2021) and what uplift curves add up.
    """
    scores_QA = np.array(model_QA, dtype=np.float64)
    rows = np.arange(len(log))
    scores_QA[rows, log.action_Q] += _residual(log, model_QA) / log.propensity_Q
    return scores_QA


def _expected(target_QA: np.ndarray, model_QA: np.ndarray) -> np.ndarray:
    # An action without probability may have no prediction: 0 * NaN must not spoil the sum.
    return np.where(target_QA > 0, target_QA * model_QA, 0.0).sum(axis=1)


def _residual(log: Log, model_QA: np.ndarray) -> np.ndarray:
    return log.reward_Q - model_QA[np.arange(len(log)), log.action_Q]
