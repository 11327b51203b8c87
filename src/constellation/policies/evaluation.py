"""Evaluate policies on cross-fitted decisions: values with intervals, diagnostics, verdicts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from constellation.policies import estimators
from constellation.policies.asked import DIRECT, DROS, IPS, MRDR, SNDR, Asked, Estimate, estimate, estimates
from constellation.policies.best_constant import BestConstant
from constellation.policies.cross_fit import Predictions, training_rows
from constellation.policies.diagnostics import Diagnosis, diagnose
from constellation.policies.intervals import Interval, bootstrap, difference, miss_chances, skewness, student
from constellation.policies.log import Log
from constellation.policies.logged import LoggedPolicy
from constellation.policies.outcomes import OutcomeModel
from constellation.policies.policy import Policy, Situation, abstention
from constellation.policies.terms import Terms
from constellation.policies.verdict import Verdict, joint, judge

if TYPE_CHECKING:
    import pandas as pd

LOGGED, CONSTANT = "logged", "best_constant"
NOMINAL_MISS = 0.025
"""On either side of a 95 % interval."""


@dataclass(frozen=True)
class Learned:
    """What a policy does where it was learned from: ``rows`` of the whole log, for those in no ``fold`` other than its
    own, and its probabilities there. What estimates fit for a policy is fitted with these, never with the fold."""

    fold: int
    rows: np.ndarray
    target_QA: np.ndarray


@dataclass(frozen=True)
class Refit:
    """Whoever is fitted anew for an estimate, on features of the log: a copy of ``model`` each time."""

    model: OutcomeModel
    action_AY: np.ndarray


@dataclass(frozen=True)
class Evaluated:
    """One policy on the judged rows. target_QA: its probabilities there. skewness: of ``value_dr``. asked: estimates
    beyond the usual ones, by name. learned: for each fold, where that was asked for."""

    name: str
    target_QA: np.ndarray
    value_dr: Interval
    value_snips: Interval
    others: dict[str, float]
    diagnosis: Diagnosis
    skewness: float
    abstention: float
    over_logging: Verdict
    over_constant: Verdict
    asked: dict[str, Estimate] = field(default_factory=dict)
    learned: tuple[Learned, ...] = ()

    @property
    def answer(self) -> int:
        """1 better than both references, -1 worse than either, else 0."""
        return joint([self.over_logging, self.over_constant])

    @property
    def misses(self) -> tuple[float, float]:
        """Estimated chances that the true value lies below and above the 95 % interval; .025 each if all is well."""
        return miss_chances(self.skewness, NOMINAL_MISS)

    def numbers(self) -> dict[str, float]:
        """By the names of ``metrics.json``, below ``policy/<name>/``."""
        return {
            "value_dr": self.value_dr.value,
            "value_dr_low": self.value_dr.low,
            "value_dr_high": self.value_dr.high,
            "value_snips": self.value_snips.value,
            "value_snips_low": self.value_snips.low,
            "value_snips_high": self.value_snips.high,
            **self.others,
            **{key: value for name, each in self.asked.items() for key, value in each.numbers(name).items()},
            "value_dr_skewness": self.skewness,
            "value_dr_miss_below": self.misses[0],
            "value_dr_miss_above": self.misses[1],
            "effective_sample_size": self.diagnosis.effective_sample_size,
            "effective_sample_share": self.diagnosis.effective_sample_share,
            "mean_weight": self.diagnosis.mean_weight,
            "max_weight_share": self.diagnosis.max_weight_share,
            "unsupported": self.diagnosis.unsupported,
            "abstention": self.abstention,
            "gain_over_logging": self.over_logging.gain,
            "gain_over_logging_low": self.over_logging.low,
            "gain_over_logging_high": self.over_logging.high,
            "wrong_claim_over_logging": self.over_logging.wrong,
            "wrong_claim_over_best_constant": self.over_constant.wrong,
            "gain_over_best_constant": self.over_constant.gain,
            "gain_over_best_constant_low": self.over_constant.low,
            "gain_over_best_constant_high": self.over_constant.high,
            "detectable_gain_over_best_constant": self.over_constant.detectable,
            "verdict_over_logging": float(self.over_logging.answer),
            "verdict_over_best_constant": float(self.over_constant.answer),
            "verdict": float(self.answer),
        }


@dataclass
class Experiment:
    """Cross-fitted decisions, ready for any policy.

    log: all rows; fold_Q: as in ``cross_fit``. Rows in no fold are learned from at most. ``predictions``,
    ``features_QX`` are aligned with the log.
    """

    log: Log
    fold_Q: np.ndarray
    features_QX: np.ndarray
    predictions: Predictions
    noise: float = field(init=False)

    def __post_init__(self) -> None:
        self.judged = np.flatnonzero(self.fold_Q >= 0)
        self.folds = [int(fold) for fold in np.unique(self.fold_Q) if fold >= 0]
        learned = self.fold_Q > -2
        self.noise = float(self.log.reward_Q[learned].std())
        self.judged_log = self.log.take(self.judged)
        self.model_QA = self.predictions.expected_QA[self.judged]

    def situation(self, rows: np.ndarray, members_MQA: np.ndarray, num_training: int) -> Situation:
        return Situation(
            self.log.actions,
            members_MQA.mean(axis=0),
            members_MQA,
            self.noise,
            self.log.eligible_QA[rows],
            self.log.logging_QA[rows],
            self.features_QX[rows],
            num_training,
        )

    def target(self, policy: Policy) -> np.ndarray:
        """Probabilities [judged, A]: for each fold the policy is learned from the other customers alone."""
        target_QA = np.full(self.log.logging_QA.shape, np.nan)
        for own, there_QA, _ in self._by_fold(policy, with_learned=False):
            target_QA[own] = there_QA
        return target_QA[self.judged]

    def target_and_learned(self, policy: Policy) -> tuple[np.ndarray, tuple[Learned, ...]]:
        """The same, and what each fold's policy does on the rows that it was learned from."""
        target_QA, learned = np.full(self.log.logging_QA.shape, np.nan), []
        for own, there_QA, each in self._by_fold(policy, with_learned=True):
            target_QA[own] = there_QA
            assert each is not None
            learned.append(each)
        return target_QA[self.judged], tuple(learned)

    def _by_fold(
        self, policy: Policy, *, with_learned: bool
    ) -> Iterator[tuple[np.ndarray, np.ndarray, Learned | None]]:
        for place, fold in enumerate(self.folds):
            own = np.flatnonzero(self.fold_Q == fold)
            learned = np.flatnonzero(training_rows(self.fold_Q, fold))
            inner_QA = self.predictions.inner_KQA[place, learned]
            before = self.log.take(learned)
            known = self.situation(learned, inner_QA[None], len(learned))
            policy.fit(known, estimators.scores(before, inner_QA), before.customer_Q)
            there = self.situation(own, self.predictions.members_MQA[:, own], len(learned))
            on_learned = Learned(fold, learned, policy.probabilities(known)) if with_learned else None
            yield own, policy.probabilities(there), on_learned

    def robust_model(self, learned: tuple[Learned, ...], refit: Refit) -> np.ndarray:
        """Rewards [judged, A] by models fitted, fold by fold on the others, with the weights of MRDR for a policy."""
        model_QA = np.full(self.log.logging_QA.shape, np.nan)
        for each in learned:
            own = np.flatnonzero(self.fold_Q == each.fold)
            before = self.log.take(each.rows)
            model = copy.deepcopy(refit.model)
            more = {"logging_QA": before.logging_QA} if model.reads_propensities else {}
            model.fit(
                self.features_QX[each.rows], before.action_Q, before.reward_Q, refit.action_AY, len(before.actions),
                weight_Q=estimators.mrdr_weights(before, each.target_QA), seed=0, **more,
            )  # fmt: skip
            model_QA[own] = model.predict(self.features_QX[own], refit.action_AY)
        return model_QA[self.judged]

    def doubly_robust(self, target_QA: np.ndarray) -> Terms:
        return estimators.doubly_robust(self.judged_log, target_QA, self.model_QA)

    def scores(self) -> np.ndarray:
        """Doubly-robust scores [judged, A]."""
        return estimators.scores(self.judged_log, self.model_QA)


def evaluate_policies(
    experiment: Experiment,
    policies: Mapping[str, Policy],
    *,
    num_resamples: int = 500,
    num_candidates: int | None = None,
    asked: Asked | None = None,
    refit: Refit | None = None,
    keep_learned: bool = False,
    seed: int = 0,
    progress: Callable[[str], None] = lambda name: None,
) -> dict[str, Evaluated]:
    """All policies beside the logging policy and the best constant one, which are always there.

    num_candidates: how many policies share the chance of a wrong claim; by default those given, the references aside.
    asked: further estimates and intervals; ``refit`` says who is fitted for MRDR. keep_learned: leave ``learned``.
    """
    asked = asked or Asked()
    asked.check(experiment.judged_log)
    with_mrdr = MRDR in asked.estimators
    assert refit is not None or not with_mrdr
    everyone: dict[str, Policy] = {LOGGED: LoggedPolicy(), CONSTANT: BestConstant()}
    everyone |= policies
    log, model_QA = experiment.judged_log, experiment.model_QA
    targets: dict[str, np.ndarray] = {}
    learned: dict[str, tuple[Learned, ...]] = {}
    for name, policy in everyone.items():
        progress(name)
        if with_mrdr or keep_learned:
            targets[name], learned[name] = experiment.target_and_learned(policy)
        else:
            targets[name] = experiment.target(policy)
    references = {name: experiment.doubly_robust(targets[name]) for name in (LOGGED, CONSTANT)}
    diagnoses = {name: diagnose(log, target_QA) for name, target_QA in targets.items()}
    paid = max(1, len(everyone) - 2) if num_candidates is None else num_candidates
    evaluated = {}
    for name, target_QA in targets.items():
        terms, diagnosis = experiment.doubly_robust(target_QA), diagnoses[name]
        over = {
            against: judge(
                terms, reference, log.customer_Q, diagnosis, against=against, reference_diagnosis=diagnoses[against],
                num_candidates=paid,
            )
            for against, reference in references.items()
        }  # fmt: skip
        snips = estimators.snips(log, target_QA)
        others: dict[str, float] = {}
        for other in (DIRECT, IPS, SNDR, DROS):
            found, settings = estimate(other, log, target_QA, model_QA)
            others |= {f"value_{other}": found.value} | settings
        mrdr_QA = experiment.robust_model(learned[name], refit) if with_mrdr and refit is not None else None
        evaluated[name] = Evaluated(
            name=name,
            target_QA=target_QA,
            value_dr=bootstrap(terms, log.customer_Q, num_resamples=num_resamples, seed=seed),
            value_snips=bootstrap(snips, log.customer_Q, num_resamples=num_resamples, seed=seed),
            others=others,
            diagnosis=diagnosis,
            skewness=skewness(terms, log.customer_Q),
            abstention=abstention(target_QA, log.actions),
            over_logging=over[LOGGED],
            over_constant=over[CONSTANT],
            asked=estimates(log, target_QA, model_QA, mrdr_QA, asked, num_resamples=num_resamples, seed=seed),
            learned=learned.get(name, ()) if keep_learned else (),
        )
    return evaluated


def compare(experiment: Experiment, left_QA: np.ndarray, right_QA: np.ndarray) -> Interval:
    """What one policy earns more than another, paired, with a 95 % interval by customer."""
    gained = difference(experiment.doubly_robust(left_QA), experiment.doubly_robust(right_QA))
    return student(gained, experiment.judged_log.customer_Q)


def table(evaluated: Mapping[str, Evaluated]) -> pd.DataFrame:
    """One row per policy, with the verdicts in words; pandas."""
    import pandas as pd

    rows = []
    for name, each in evaluated.items():
        rows.append(
            {"policy": name}
            | each.numbers()
            | {
                "over_logging": f"{each.over_logging.word}: {each.over_logging.reason}",
                "over_best_constant": f"{each.over_constant.word}: {each.over_constant.reason}",
            }
        )
    return pd.DataFrame(rows)
