"""From a store with decisions to a log with features and folds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from constellation.commands.engagement.options import EngagementOptions
from constellation.errors import InputError
from constellation.journeys.decision_derivation import window_end
from constellation.journeys.decision_features import FeatureRecipe, FeatureTable, action_features
from constellation.journeys.decisions import DecisionRule, Decisions
from constellation.journeys.following import following
from constellation.journeys.store import MICROSECONDS_PER_DAY, Store
from constellation.journeys.windows import parse_cutoff
from constellation.policies.cross_fit import LEFT_OUT, TRAIN_ONLY, fitted_propensities, person_folds
from constellation.policies.log import Log
from constellation.policies.lookahead import Lookahead

if TYPE_CHECKING:
    from constellation.journeys.dataset import DataSet

LOGGED, PARTLY, FITTED = "logged", "logged for the chosen action", "fitted"


@dataclass(frozen=True)
class Decided:
    """decisions: those used, matured and with a known action. propensities: where they come from, in words.
    num_immature: left out, for their reward was not known yet. recipe: of the features. propensity_models: fitted
    classifiers, none where the logging policy is known. ahead: what models learn beyond the rewards, None: nothing."""

    decisions: Decisions
    log: Log
    fold_Q: np.ndarray
    features: FeatureTable
    action_AY: np.ndarray
    propensities: str
    num_immature: int
    recipe: FeatureRecipe
    propensity_models: tuple[Any, ...]
    ahead: Lookahead | None = None


def decided(data: DataSet, store: Store, options: EngagementOptions, seed: int) -> Decided:
    """The decisions of a store, ready to learn from. Raises InputError where there are none or they cannot be
    compared."""
    whole = store.decisions
    if whole is None or data.decisions is None:
        raise InputError(
            f"The data set {data.name} says nothing about decisions. objective=engagement needs a block "
            f"`decisions` in its "
            "YAML: contacts among the events, a grid, or a table of decisions."
        )
    rows = usable(whole)
    num_immature = int((~whole.matured_Q).sum())
    if len(rows) < 100:
        raise InputError(
            f"Of {len(whole):,} decisions only {len(rows):,} have an action and a matured reward; at least 100 "
            f"are needed. "
            f"Shorten reward_days ({data.decisions.reward_days:g}) or bring later data."
        )
    # Features know decisions before these, matured or not: they are the past all the same.
    recipe = FeatureRecipe.of(store, whole, options.windows_days, context_alone=options.context_alone)
    table = recipe.compute(store, whole)
    features = FeatureTable(table.names, table.values_QX[rows])
    kept = _take(whole, rows)
    actions = tuple(str(name) for name in kept.actions[1:])
    action_Q = kept.action_Q.astype(np.int64) - 1
    fold_Q = _folds(kept, store, options, data.decisions.reward_days, seed)
    eligible_QA = kept.eligible_QA()
    fitted: list[Any] = []
    logging_QA, source = _logging(data, kept, features, action_Q, fold_Q, eligible_QA, seed, fitted)
    log = Log(actions, action_Q, np.asarray(kept.reward_Q, dtype=np.float64), logging_QA, kept.journey_Q, eligible_QA)
    _, action_AY = action_features(list(actions), data.decisions.action_features)
    ahead = None
    if options.lookahead:
        ahead = _lookahead(data.decisions, store, whole, rows, fold_Q, features.values_QX, table.values_QX, options)
    return Decided(kept, log, fold_Q, features, action_AY, source, num_immature, recipe, tuple(fitted), ahead)


def _lookahead(
    rule: DecisionRule,
    store: Store,
    whole: Decisions,
    rows: np.ndarray,
    fold_Q: np.ndarray,
    features_QX: np.ndarray,
    features_WX: np.ndarray,
    options: EngagementOptions,
) -> Lookahead:
    """W: all decisions, of which ``rows`` are kept, in the folds ``fold_Q``.

    Raises InputError where most decisions that models learn from are followed by none.
    """
    span = int(window_end(rule, store, np.zeros(1, dtype=np.int64))[0])
    until = _judged_from(options, store)
    next_Q = following(whole.journey_Q, whole.time_Q, span, until)[rows]
    learned_Q = fold_Q == TRAIN_ONLY if options.test_from is not None else np.ones(len(rows), dtype=bool)
    num_learned, num_without = int(learned_Q.sum()), int((learned_Q & (next_Q < 0)).sum())
    by_then = "" if options.test_from is None else f" by engagement.test_from={options.test_from}"
    if 2 * num_without > num_learned:
        raise InputError(
            f"engagement.lookahead={options.lookahead} looks at the customer's next decision after the reward, in the "
            f"{rule.reward_days:g} days that follow it; {num_without:,} of {num_learned:,} decisions have none"
            f"{by_then}. Take engagement.lookahead=0, and a longer reward_days to see further."
        )
    if num_without:
        print(f"  {num_without:,} decisions are followed by none in time: of these only the reward itself is learned")
    place_W = np.full(len(whole), -1)
    place_W[rows] = np.arange(len(rows))
    late = np.setdiff1d(next_Q[next_Q >= 0], rows)
    place_W[late] = len(rows) + np.arange(len(late))
    return Lookahead(features_QX, features_WX[late], np.where(next_Q >= 0, place_W[next_Q], -1), options.lookahead)


def _judged_from(options: EngagementOptions, store: Store) -> int | None:
    return None if options.test_from is None else parse_cutoff(options.test_from, store.schema.timezone)


def usable(decisions: Decisions) -> np.ndarray:
    """Rows with a known action and a matured reward, in the order of the decisions."""
    return np.flatnonzero(decisions.matured_Q & (decisions.action_Q > 0) & np.isfinite(decisions.reward_Q))


def _take(decisions: Decisions, rows: np.ndarray) -> Decisions:
    arrays = {
        name: np.asarray(value)[rows]
        for name, value in vars(decisions).items()
        if name.endswith(("_Q", "_QA", "_QX")) and value is not None
    }
    return replace(decisions, **arrays)


def _folds(decisions: Decisions, store: Store, options: EngagementOptions, reward_days: float, seed: int) -> np.ndarray:
    start = _judged_from(options, store)
    if start is None:
        return person_folds(decisions.journey_Q, options.num_folds, seed)
    known_Q = decisions.time_Q + round(reward_days * MICROSECONDS_PER_DAY) <= start
    fold_Q = np.where(decisions.time_Q > start, 0, np.where(known_Q, TRAIN_ONLY, LEFT_OUT))
    for fold, what in {0: "after", TRAIN_ONLY: "whose reward was known by"}.items():
        if not (fold_Q == fold).any():
            raise InputError(f"engagement.test_from={options.test_from}: no decision {what} then. Choose another date.")
    return fold_Q


def _logging(
    data: DataSet,
    decisions: Decisions,
    features: FeatureTable,
    action_Q: np.ndarray,
    fold_Q: np.ndarray,
    eligible_QA: np.ndarray,
    seed: int,
    fitted: list[Any],
) -> tuple[np.ndarray, str]:
    """Probabilities of all actions: by rule, else completed from those of the chosen ones, else fitted (the models are
    put into ``fitted``)."""
    assert data.decisions is not None
    if decisions.propensity_QA is not None:
        return np.where(eligible_QA, decisions.propensity_QA, 0.0), LOGGED
    by_rule_QA = data.decisions.logging_QA(decisions)
    known_Q = np.isfinite(decisions.propensity_Q)
    if by_rule_QA is not None and (not known_Q.any() or _agrees(by_rule_QA, action_Q, decisions.propensity_Q)):
        return by_rule_QA, LOGGED
    if known_Q.any() and not known_Q.all():
        raise InputError(
            f"{int((~known_Q).sum()):,} of {len(known_Q):,} decisions lack a propensity. Give all of them, or none, in "
            "which case they are fitted."
        )
    num_actions = eligible_QA.shape[1]
    chance_QA = fitted_propensities(
        features.values_QX, action_Q, num_actions, fold_Q, decisions.journey_Q, seed=seed, keep=fitted.append
    )
    chance_QA = np.where(eligible_QA, chance_QA, 0.0)
    chance_QA /= chance_QA.sum(axis=1, keepdims=True)
    if not known_Q.any():
        return chance_QA, FITTED
    # The chosen action's own is known; the others share the rest as the fitted ones do.
    rows = np.arange(len(action_Q))
    chance_QA[rows, action_Q] = 0.0
    rest_Q = np.maximum(chance_QA.sum(axis=1), 1e-12)
    chance_QA *= ((1.0 - decisions.propensity_Q) / rest_Q)[:, None]
    chance_QA[rows, action_Q] = decisions.propensity_Q
    return chance_QA, PARTLY


def _agrees(by_rule_QA: np.ndarray, action_Q: np.ndarray, propensity_Q: np.ndarray) -> bool:
    return bool(np.allclose(by_rule_QA[np.arange(len(action_Q)), action_Q], propensity_Q, rtol=1e-3))
