"""From a trial to a log and back: thin a randomised trial with a known rule, estimate from the log, compare with the
trial.

METHODS 4.6, H3. Works on any data set whose decisions were randomised with known propensities.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from constellation.commands.engagement.decided import LOGGED, decided
from constellation.commands.engagement.options import EngagementOptions
from constellation.errors import InputError
from constellation.policies import estimators
from constellation.policies.diagnostics import diagnose
from constellation.policies.intervals import student
from constellation.policies.log import Log
from constellation.policies.outcomes import RidgeOutcome
from constellation.policies.policy import one_hot
from constellation.policies.verdict import MIN_SAMPLE_SHARE

if TYPE_CHECKING:
    from constellation.journeys.dataset import DataSet

MAX_SCORE = 1.5
"""Scores of the business rule are cut here, in standard deviations, so that strength alone sets the least
propensity."""


def rct_to_log(
    data: DataSet,
    *,
    strengths: Sequence[float] = (0.5, 1.0, 2.0),
    num_replicates: int = 200,
    seed: int = 0,
    progress: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """One row per strength of the rule and policy (each action for all, and greedy).

    Half of the customers train the greedy policy's reward model. The other half is the truth, by its own randomisation,
    and is thinned by rejection to logs in which action a was chosen with ``softmax(strength score_a(x))``. Columns:
    effective sample share, bias of the naive mean of those who happened to get the action, root mean squared errors,
    bias of the direct method, share of 95 % intervals that hold the truth, share of logs in which the gate would have
    held a claim back, and coverage among the logs that it let through (NaN where there are none). Replicates re-use
    the same half, which flatters coverage where most of it is kept.
    Raises InputError where propensities are not known.
    """
    from constellation.journeys.prepare import prepare

    if num_replicates < 2 or not strengths or min(strengths) < 0:
        raise InputError("rct_to_log needs two replicates or more, and strengths of 0 or more.")
    store = prepare(data)
    ground = decided(data, store, EngagementOptions(num_folds=2), seed)
    if ground.propensities != LOGGED:
        raise InputError(f"rct_to_log needs a trial: the propensities of {data.name} are {ground.propensities}.")
    log, features_QX = ground.log, ground.features.values_QX
    half = ground.fold_Q == 0
    num_actions = len(log.actions)
    model = RidgeOutcome()
    none_AY = np.zeros((num_actions, 0))
    model.fit(features_QX[half], log.action_Q[half], log.reward_Q[half], none_AY, num_actions)
    trial, there_QX = log.take(~half), features_QX[~half]
    greedy_Q = model.predict(there_QX, none_AY).argmax(axis=1)
    policies = {name: one_hot(np.full(len(trial), place), num_actions) for place, name in enumerate(log.actions)}
    policies["greedy"] = one_hot(greedy_Q, num_actions)
    truth = {name: estimators.snips(trial, target_QA).value for name, target_QA in policies.items()}
    score_QA = business_scores(there_QX, num_actions, seed)
    rows = []
    for strength in strengths:
        rule_QA = _softmax(strength * score_QA)
        keep_Q = _kept(trial, rule_QA)
        progress(f"strength {strength:g}: least propensity {rule_QA.min():.3f}, {keep_Q.sum():,.0f} decisions a log")
        found: dict[str, list[dict[str, float]]] = {name: [] for name in policies}
        rng = np.random.default_rng([seed, round(1000 * strength)])
        for replicate in range(num_replicates):
            taken = np.flatnonzero(rng.random(len(trial)) < keep_Q)
            for name, row in _estimate(trial, taken, rule_QA, there_QX, policies, truth, replicate).items():
                found[name].append(row)
        for name, replicates in found.items():
            rows.append(_summary(strength, name, float(rule_QA.min()), truth[name], replicates))
    return rows


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    print(
        f"{'':<24}{'effective':>10}{'naive':>10}{'IPS':>10}{'SNIPS':>10}{'direct':>10}{'DR':>10}{'IPS':>9}{'DR':>9}"
        f"{'held':>7}{'DR covers,':>12}"
    )
    print(
        f"{'strength, policy':<24}{'sample':>10}{'bias':>10}{'rmse':>10}{'rmse':>10}{'bias':>10}{'rmse':>10}"
        f"{'covers':>9}{'covers':>9}{'back':>7}{'let through':>12}"
    )
    for row in rows:
        errors = "".join(f"{row[name]:>10.4f}" for name in ("ips_rmse", "snips_rmse", "dm_bias", "dr_rmse"))
        print(
            f"{row['strength']:<5g}{row['policy']:<19}{row['effective_sample_share']:>10.1%}{row['naive_bias']:>10.4f}"
            f"{errors}{row['ips_coverage']:>9.1%}{row['dr_coverage']:>9.1%}{row['gated']:>7.0%}"
            f"{row['dr_coverage_let_through']:>12.1%}"
        )


def metrics_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """``rct_to_log/<strength>/<policy>/<metric>``, every column of the table that is a number, where there is one."""
    return {
        f"rct_to_log/{row['strength']:g}/{row['policy']}/{name}": float(value)
        for row in rows
        for name, value in row.items()
        if name not in ("strength", "policy") and np.isfinite(value)
    }


def business_scores(features_QX: np.ndarray, num_actions: int, seed: int) -> np.ndarray:
    """[Q, A]: what a business might go by, a fixed mixture of the features for each action, standardised and cut."""
    known_QX = np.where(np.isfinite(features_QX), features_QX, np.nan)
    empty_X = ~np.isfinite(known_QX).any(axis=0)
    known_QX[:, empty_X] = 0.0
    spread_X = np.nanstd(known_QX, axis=0)
    scaled_QX = np.nan_to_num((known_QX - np.nanmean(known_QX, axis=0)) / np.where(spread_X > 0, spread_X, 1.0))
    mixed_QA = scaled_QX @ np.random.default_rng(seed).normal(size=(features_QX.shape[1], num_actions))
    spread_A = mixed_QA.std(axis=0)
    return np.clip(mixed_QA / np.where(spread_A > 0, spread_A, 1.0), -MAX_SCORE, MAX_SCORE)


def _kept(trial: Log, rule_QA: np.ndarray) -> np.ndarray:
    """Chance [Q] of keeping a row, by rejection: the log then follows the rule, and its customers are those of the
    trial."""
    ratio_QA = np.where(trial.logging_QA > 0, rule_QA / np.maximum(trial.logging_QA, 1e-300), 0.0)
    return ratio_QA[np.arange(len(trial)), trial.action_Q] / ratio_QA.max()


def _estimate(
    trial: Log,
    taken: np.ndarray,
    rule_QA: np.ndarray,
    features_QX: np.ndarray,
    policies: dict[str, np.ndarray],
    truth: dict[str, float],
    seed: int,
) -> dict[str, dict[str, float]]:
    num_actions = len(trial.actions)
    log = Log.of(
        trial.action_Q[taken], trial.reward_Q[taken], rule_QA[taken], actions=trial.actions,
        customer_Q=trial.customer_Q[taken],
    )  # fmt: skip
    halves = np.random.default_rng(seed).random(len(taken)) < 0.5
    model_QA, none_AY = np.zeros(rule_QA[taken].shape), np.zeros((num_actions, 0))
    for part in (halves, ~halves):
        model = RidgeOutcome()
        model.fit(features_QX[taken][~part], log.action_Q[~part], log.reward_Q[~part], none_AY, num_actions)
        model_QA[part] = model.predict(features_QX[taken][part], none_AY)
    rows = {}
    for name, whole_QA in policies.items():
        target_QA = whole_QA[taken]
        terms = {
            "ips": estimators.ips(log, target_QA),
            "snips": estimators.snips(log, target_QA),
            "dr": estimators.doubly_robust(log, target_QA, model_QA),
        }
        agrees = target_QA[np.arange(len(log)), log.action_Q] > 0
        diagnosis = diagnose(log, target_QA)
        row = {
            "size": float(len(log)),
            "effective": diagnosis.effective_sample_share,
            "naive": (float(log.reward_Q[agrees].mean()) if agrees.any() else float("nan")) - truth[name],
            "dm": estimators.direct(log, target_QA, model_QA).value - truth[name],
        }
        for key, term in terms.items():
            interval = student(term, log.customer_Q)
            row[key] = term.value - truth[name]
            row[f"{key}_covers"] = float(interval.low <= truth[name] <= interval.high)
        rows[name] = row
    return rows


def _summary(
    strength: float, name: str, least: float, truth: float, replicates: list[dict[str, float]]
) -> dict[str, Any]:
    columns = {key: np.array([row[key] for row in replicates]) for key in replicates[0]}

    def rmse(key: str) -> float:
        return float(np.sqrt(np.mean(columns[key] ** 2)))

    held = columns["effective"] < MIN_SAMPLE_SHARE
    return {
        "strength": strength,
        "policy": name,
        "least_propensity": least,
        "decisions": float(columns["size"].mean()),
        "truth": truth,
        "effective_sample_share": float(columns["effective"].mean()),
        "naive_bias": float(np.nanmean(columns["naive"])),
        "ips_rmse": rmse("ips"),
        "snips_rmse": rmse("snips"),
        "dm_bias": float(columns["dm"].mean()),
        "dr_rmse": rmse("dr"),
        "ips_coverage": float(columns["ips_covers"].mean()),
        "dr_coverage": float(columns["dr_covers"].mean()),
        "gated": float(held.mean()),
        "dr_coverage_let_through": float(columns["dr_covers"][~held].mean()) if not held.all() else float("nan"),
    }


def _softmax(logits_QA: np.ndarray) -> np.ndarray:
    odds_QA = np.exp(logits_QA - logits_QA.max(axis=1, keepdims=True))
    return odds_QA / odds_QA.sum(axis=1, keepdims=True)
