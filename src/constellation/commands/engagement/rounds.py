"""Rounds of acting and learning in a simulated club: every decision is logged with the propensity it had."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from constellation.commands.engagement.acting import Advisor, acting
from constellation.policies.cross_fit import EVERYBODY, FoldModels, cross_fit, person_folds
from constellation.policies.evaluation import Evaluated, Experiment, evaluate_policies
from constellation.policies.kept import fitted_on_all
from constellation.policies.log import Log
from constellation.policies.outcomes import OutcomeModel
from constellation.policies.policy import Policy

if TYPE_CHECKING:
    import polars

    from constellation.worlds.loyalty.simulation import Simulation
    from constellation.worlds.loyalty.world import LoyaltyWorld


@dataclass
class Diary:
    """Decisions as they were made, and the money of every customer and week; by week, arrays over who was present."""

    world: LoyaltyWorld
    reward_weeks: int
    first_week: int
    rows: list[np.ndarray] = field(default_factory=list)
    features: list[np.ndarray] = field(default_factory=list)
    chances: list[np.ndarray] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    costs: list[np.ndarray] = field(default_factory=list)
    paid: list[np.ndarray] = field(default_factory=list)

    def live(self, simulation: Simulation, choose: Callable[[np.ndarray], np.ndarray] | None) -> float:
        """A week under a policy (None: the habit), written down. Returns money less costs over all customers."""
        features_CF = simulation.features()
        chance_CA = simulation.logging() if choose is None else choose(features_CF)
        week = simulation.step(chance_CA)
        paid_R = np.zeros(len(simulation.net_R))
        paid_R[week.rows_C] = week.amount_C
        self.rows.append(week.rows_C)
        self.features.append(features_CF)
        self.chances.append(np.asarray(chance_CA))
        self.actions.append(week.action_C)
        self.costs.append(week.cost_C)
        self.paid.append(paid_R)
        return float(week.net_C.sum())

    @property
    def num_weeks(self) -> int:
        return len(self.rows)

    def log(self) -> tuple[Log, np.ndarray]:
        """The decisions whose reward is known by now, and their features; younger ones are not zero, they wait."""
        known = self.num_weeks - self.reward_weeks + 1
        paid_WR = np.stack(self.paid)
        reward = [
            paid_WR[week : week + self.reward_weeks, self.rows[week]].sum(axis=0) - self.costs[week]
            for week in range(known)
        ]
        log = Log.of(
            np.concatenate(self.actions[:known]),
            np.concatenate(reward),
            np.concatenate(self.chances[:known]),
            actions=self.world.action_names,
            customer_Q=np.concatenate(self.rows[:known]),
        )
        return log, np.concatenate(self.features[:known])

    def frame(self) -> polars.DataFrame:
        """polars, one row per decision: what a club would hand to the next training, as ``decisions_sql`` reads it."""
        import polars as pl

        from constellation.worlds.loyalty.log import CONTACT_HOUR, DECISION_HOUR, HOUR, start_of_week
        from constellation.worlds.loyalty.state import FEATURES

        assert DECISION_HOUR < CONTACT_HOUR
        names = self.world.action_names
        parts = []
        for week, (rows_C, chance_CA, action_C) in enumerate(zip(self.rows, self.chances, self.actions, strict=True)):
            time = start_of_week(self.first_week + week) + DECISION_HOUR * HOUR
            parts.append(
                pl.DataFrame(
                    {
                        "customer_id": rows_C + 1,
                        "decision_time": pl.Series(np.full(len(rows_C), time)).cast(pl.Datetime("us", "UTC")),
                        "action": pl.Series(names).gather(action_C),
                        "propensity": chance_CA[np.arange(len(rows_C)), action_C],
                        "cost": self.costs[week],
                        **{f"propensity_{name}": chance_CA[:, place] for place, name in enumerate(names)},
                        **{f"context_{name}": self.features[week][:, place] for place, name in enumerate(FEATURES)},
                    }
                )
            )
        return pl.concat(parts).sort("customer_id", "decision_time")


@dataclass(frozen=True)
class Lesson:
    """What was learned from a diary: judged: the policy by the log, before it acts. choose: the policy, acting."""

    judged: Evaluated
    choose: Callable[[np.ndarray], np.ndarray]
    num_decisions: int


def learned(
    diary: Diary, outcome: OutcomeModel, policy: Policy, *, num_folds: int, num_members: int, seed: int
) -> Lesson:
    """Cross-fit the outcome model on all decisions that are known, judge the policy by them, and let it act on models
    refitted on all of them.

    The logging policy of a later round is a mixture of the habit and of earlier policies: each row knows its own
    propensities, which is all that the estimators ask for.
    """
    log, features_QX = diary.log()
    fold_Q = person_folds(log.customer_Q, num_folds, seed)
    none_AY = np.zeros((len(log.actions), 0))
    kept: list[FoldModels] = []
    predictions = cross_fit(
        outcome, features_QX, log.action_Q, log.reward_Q, none_AY, log.customer_Q, fold_Q, log.logging_QA,
        num_members=num_members, refit=True, seed=seed, keep=kept.append,
    )  # fmt: skip
    experiment = Experiment(log, fold_Q, features_QX, predictions)
    judged = evaluate_policies(experiment, {policy.name: policy}, num_resamples=100, seed=seed)[policy.name]
    parts = tuple((whole.members, none_AY, whole.shrinkage) for whole in kept if whole.fold == EVERYBODY)
    advisor = Advisor(log.actions, parts, experiment.noise, len(log))
    return Lesson(judged, acting(diary.world, advisor, fitted_on_all(experiment, policy)), len(log))
