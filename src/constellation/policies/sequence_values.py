"""What policies are worth over the whole sequence of a customer's decisions, each reward with what led to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from constellation.errors import InputError
from constellation.policies import sequences
from constellation.policies.asked import checked
from constellation.policies.diagnostics import diagnose_weights
from constellation.policies.evaluation import CONSTANT, LOGGED, Evaluated, Experiment, Refit
from constellation.policies.intervals import Interval, bootstrap
from constellation.policies.log import Log
from constellation.policies.sequences import Steps
from constellation.policies.terms import Terms
from constellation.policies.verdict import NOT_SHOWN, Verdict, judge

PER_DECISION, SELF_NORMALISED, DOUBLY_ROBUST, MARGINAL = "per_decision", "self_normalised", "doubly_robust", "marginal"
SEQUENCE_ESTIMATORS = (PER_DECISION, SELF_NORMALISED, DOUBLY_ROBUST, MARGINAL)


@dataclass(frozen=True)
class SequenceOptions:
    """estimators: names of ``SEQUENCE_ESTIMATORS``; none: sequences are not looked at. num_steps: decisions of a
    customer, from the first that is judged on. discount: per step. num_states: of the marginal estimator, equal shares
    of the decisions by what the reward models expect there under the logging policy.

    Raises InputError for unknown names and for numbers that mean nothing.
    """

    estimators: tuple[str, ...] = ()
    num_steps: int = 4
    discount: float = 1.0
    num_states: int = 10

    def __post_init__(self) -> None:
        object.__setattr__(self, "estimators", checked(self.estimators, SEQUENCE_ESTIMATORS, "sequence.estimators"))
        for name, least in {"num_steps": 2, "num_states": 1}.items():
            if getattr(self, name) < least:
                raise InputError(f"sequence.{name} must be at least {least}, found {getattr(self, name)}.")
        if not 0 < self.discount <= 1:
            raise InputError(f"sequence.discount must lie in (0, 1], found {self.discount:g}.")


@dataclass(frozen=True)
class SequenceValue:
    """Of one policy by one estimator, per customer. effective_T: effective sequences up to and with each step, in
    customers (marginal: effective decisions of each step). over_logging: against what was done, paired."""

    value: Interval
    effective_T: np.ndarray
    effective_share: float
    over_logging: Verdict

    def numbers(self) -> dict[str, float]:
        """By the names of ``metrics.json``, below ``policy/<name>/sequence/<estimator>/``. What is no number is left
        out: nothing in the log looks like the policy then."""
        found = {
            "value": self.value.value,
            "value_low": self.value.low,
            "value_high": self.value.high,
            "effective_sample_size": float(self.effective_T.min()),
            "effective_sample_share": self.effective_share,
            "gain_over_logging": self.over_logging.gain,
            "gain_over_logging_low": self.over_logging.low,
            "gain_over_logging_high": self.over_logging.high,
            "verdict": float(self.over_logging.answer),
        }
        return {name: number for name, number in found.items() if np.isfinite(number)}


def evaluate_sequences(
    experiment: Experiment,
    evaluated: Mapping[str, Evaluated],
    time_Q: np.ndarray,
    step_reward_Q: np.ndarray,
    options: SequenceOptions,
    *,
    refit: Refit | None = None,
    num_resamples: int = 500,
    seed: int = 0,
) -> dict[tuple[str, str], SequenceValue]:
    """By policy and estimator. time_Q, step_reward_Q: of the whole log; the second counts nothing twice.

    refit: whose copies model the value to go, for ``doubly_robust``; ``evaluated`` must then hold what was learned.
    The chance of a wrong claim is shared by all policies and estimators. Verdicts are held back where the effective
    sequences are too few, at the last step or, of the marginal estimator, at its worst; and this one claims nothing by
    itself, for who is lifted into a state need not go on like those who were there by nature.
    Raises InputError where no customer has a second decision.
    """
    log, judged = experiment.judged_log, experiment.judged
    steps = Steps.of(log.customer_Q, time_Q[judged], options.num_steps)
    if steps.row_JT.shape[1] < 2:
        raise InputError(
            "sequence.estimators asks for sequences of decisions, but no customer has more than one that is judged. "
            "Leave it out: the values of single decisions say it all."
        )
    reward_JT = steps(step_reward_Q[judged])
    state_JT = _states(steps, log, experiment.model_QA, options.num_states)
    customers = np.arange(len(reward_JT))
    was_done = Terms.mean_of((reward_JT * options.discount ** np.arange(reward_JT.shape[1])).sum(axis=1))
    candidates = len(evaluated.keys() - {LOGGED, CONSTANT})
    found: dict[tuple[str, str], SequenceValue] = {}
    for name, each in evaluated.items():
        weight_JT = np.where(steps.present_JT, steps(log.weights(each.target_QA)), 1.0)
        plain = (weight_JT, reward_JT, steps.present_JT)
        effective_T = sequences.effective_sample_size_by_step(weight_JT, steps.present_JT)
        whole_J = sequences.cumulated(weight_JT, steps.present_JT)[:, -1]
        for estimator in options.estimators:
            telling_T, telling_J = effective_T, whole_J
            if estimator == MARGINAL:
                moved = sequences.marginal(*plain, state_JT, discount=options.discount)
                terms = moved.terms
                telling_T = moved.weight_JT.sum(axis=0) ** 2 / np.maximum((moved.weight_JT**2).sum(axis=0), 1e-300)
                telling_J = moved.weight_JT[:, int(telling_T.argmin())]
            elif estimator == DOUBLY_ROBUST:
                assert refit is not None
                q_JT, v_JT = to_go(experiment, each, steps, step_reward_Q[judged], refit, options, seed)
                terms = sequences.doubly_robust_sequence(*plain, q_JT, v_JT, discount=options.discount)
            else:
                normalised = estimator == SELF_NORMALISED
                terms = sequences.per_decision(*plain, discount=options.discount, self_normalised=normalised)
            # Whether weights average to 1 is told by single decisions: products of weights hide it.
            diagnosis = replace(
                diagnose_weights(telling_J, customers, each.diagnosis.unsupported),
                weights_fit=each.diagnosis.weights_fit,
                mean_weight=each.diagnosis.mean_weight,
                mean_weight_low=each.diagnosis.mean_weight_low,
                mean_weight_high=each.diagnosis.mean_weight_high,
            )
            over_logging = judge(
                terms, was_done, customers, diagnosis, against=LOGGED,
                num_candidates=max(1, candidates) * len(options.estimators),
                counted="decisions" if estimator == MARGINAL else "sequences",
            )  # fmt: skip
            if estimator == MARGINAL and over_logging.answer != NOT_SHOWN:
                said = f"{over_logging.reason}, but only if its states tell all that comes, which no interval shows"
                over_logging = replace(over_logging, answer=NOT_SHOWN, reason=said)
            value = Interval(terms.value, np.nan, np.nan)
            if np.isfinite(terms.value):
                value = bootstrap(terms, customers, num_resamples=num_resamples, seed=seed)
            found[name, estimator] = SequenceValue(value, telling_T, diagnosis.effective_sample_share, over_logging)
    return found


def to_go(
    experiment: Experiment,
    evaluated: Evaluated,
    steps: Steps,
    step_reward_Q: np.ndarray,
    refit: Refit,
    options: SequenceOptions,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Modelled values to go [J, T] of what was done and of what the policy would do, from models of other customers.

    With several folds, those of the other folds, and what the policy that was learned there does there; with a single
    one (``engagement.test_from``), halves of the judged customers. step_reward_Q: of the judged rows.
    """
    log, num_steps = experiment.judged_log, steps.row_JT.shape[1]
    first_J = steps.row_JT[:, 0]
    fold_J = experiment.fold_Q[experiment.judged][first_J]
    if len(experiment.folds) > 1:
        parts = [(fold_J == each.fold, _on_judged(experiment, each.rows, each.target_QA)) for each in evaluated.learned]
    else:
        half_J = np.random.default_rng(seed).permutation(len(first_J)) % 2 == 0
        parts = [(half_J, evaluated.target_QA), (~half_J, evaluated.target_QA)]
    features_JTX = experiment.features_QX[experiment.judged[steps.row_JT]]  # after the end whatever: nobody reads it
    action_JT, reward_JT = steps(log.action_Q), steps(step_reward_Q)
    logging_JTA, target_JTA = steps(log.logging_QA), steps(evaluated.target_QA)
    q_JT, v_JT = np.zeros(reward_JT.shape), np.zeros(reward_JT.shape)
    for own_J, learned_QA in parts:
        others = np.flatnonzero(~own_J)
        models = sequences.fitted_q(
            refit.model, features_JTX[others], action_JT[others], reward_JT[others], steps.present_JT[others],
            steps(learned_QA)[others], refit.action_AY, logging_JTA[others], discount=options.discount, seed=seed,
        )  # fmt: skip
        for step in range(num_steps):
            there = np.flatnonzero(own_J & steps.present_JT[:, step])
            model = models[step]
            if len(there) and model is not None:  # without any model 0 is as right, for the weights correct it
                model_QA = model.predict(features_JTX[there, step], refit.action_AY)
                q_JT[there, step] = model_QA[np.arange(len(there)), action_JT[there, step]]
                v_JT[there, step] = sequences.expected(model_QA, target_JTA[there, step])
    return q_JT, v_JT


def _on_judged(experiment: Experiment, rows: np.ndarray, target_QA: np.ndarray) -> np.ndarray:
    """[judged, A]: probabilities that are known for some rows of the log, 0 elsewhere."""
    whole_QA = np.zeros(experiment.log.logging_QA.shape)
    whole_QA[rows] = target_QA
    return whole_QA[experiment.judged]


def _states(steps: Steps, log: Log, model_QA: np.ndarray, num_states: int) -> np.ndarray:
    """[J, T]: place of each decision among all by what the model expects there under the logging policy."""
    level_Q = sequences.expected(model_QA, log.logging_QA)
    edges = np.unique(np.quantile(level_Q[steps.row_JT[steps.present_JT]], np.arange(1, num_states) / num_states))
    return steps(np.searchsorted(edges, level_Q, side="right"))
