"""Learned policies in a simulated club: what they are truly worth, by simulation with the same luck for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from constellation.errors import InputError
from constellation.policies.cross_fit import EVERYBODY, EffectShrinkage
from constellation.policies.outcomes import OutcomeModel
from constellation.policies.policy import Policy, Situation

if TYPE_CHECKING:
    from constellation.policies.saved import Saved
    from constellation.worlds.loyalty.simulation import Simulation
    from constellation.worlds.loyalty.value import PolicyValue
    from constellation.worlds.loyalty.world import LoyaltyWorld

HABIT, ORACLE = "logged", "oracle"
STANDARD = 1.96
DEPLOYED_BEFORE = "the folds' models together"
"""Of runs that do not say."""


@dataclass(frozen=True)
class TrueValueOptions:
    """num_customers: simulated, none of the log's own. num_weeks: for which each policy acts. seed: of these customers.

    Raises InputError for numbers below 1.
    """

    num_customers: int = 20_000
    num_weeks: int = 52
    seed: int = 1_000_000

    def __post_init__(self) -> None:
        for name in ("num_customers", "num_weeks"):
            if getattr(self, name) < 1:
                raise InputError(f"true_value.{name} must be 1 or more, found {getattr(self, name)}.")


@dataclass(frozen=True)
class Advisor:
    """Reward models that were fitted on logs, ready to tell a policy about customers they have not seen.

    actions: in the order of the models, a rearrangement of the world's. parts: members, of each fold or refitted on the
    whole log, what they were fitted with [A, Y], and their shrinkage. noise, num_training: as in ``Situation``.
    """

    actions: tuple[str, ...]
    parts: tuple[tuple[tuple[OutcomeModel, ...], np.ndarray, EffectShrinkage], ...]
    noise: float
    num_training: int

    def situation(self, features_CF: np.ndarray, logging_CA: np.ndarray) -> Situation:
        """logging_CA: the habit's chances in the order of ``actions``; predictions are shrunk towards its mean."""
        members_MCA = np.stack(
            [
                shrinkage(member.predict(features_CF, action_AY), logging_CA)
                for members, action_AY, shrinkage in self.parts
                for member in members
            ]
        )
        eligible_CA = np.ones(logging_CA.shape, dtype=bool)
        return Situation(
            self.actions,
            members_MCA.mean(axis=0),
            members_MCA,
            self.noise,
            eligible_CA,
            logging_CA,
            features_CF,
            self.num_training,
        )


def acting(world: LoyaltyWorld, advisor: Advisor, policy: Policy) -> Callable[[np.ndarray], np.ndarray]:
    """The policy as the world wants it: from features [C, F] to probabilities [C, A] in the world's order."""
    from constellation.worlds.loyalty.state import logging_probabilities

    of_world = [world.action_names.index(name) for name in advisor.actions]
    back = np.argsort(of_world)

    def choose(features_CF: np.ndarray) -> np.ndarray:
        situation = advisor.situation(features_CF, logging_probabilities(world, features_CF)[:, of_world])
        return policy.probabilities(situation)[:, back]

    return choose


def check_actions(world: LoyaltyWorld, actions: Sequence[str]) -> None:
    """Raise InputError unless the actions are the world's."""
    if set(actions) != set(world.action_names):
        raise InputError(
            f"The run knows the actions {', '.join(actions)}, the world {', '.join(world.action_names)}. Give the "
            "world whose log the run learned from."
        )


@dataclass(frozen=True)
class TrueValues:
    """values: of each policy, of the habit and of the near-oracle, for the same customers with the same luck."""

    values: dict[str, PolicyValue]

    def numbers(self) -> dict[str, float]:
        """``policy/<name>/true_value`` per customer over the weeks, ``true_gain`` over the habit, and ``true_share`` of
        the gap between habit and oracle, each with its 95 % interval over customers (``_low``, ``_high``)."""
        habit, oracle = self.values[HABIT], self.values[ORACLE]
        gap_C = oracle.net_C - habit.net_C
        found: dict[str, float] = {}
        for name, value in self.values.items():
            gain, error = value.gain_over(habit)
            prefix = f"policy/{name}/true"
            found[f"{prefix}_value"] = value.mean
            found[f"{prefix}_gain"] = gain
            found[f"{prefix}_gain_low"] = gain - STANDARD * error
            found[f"{prefix}_gain_high"] = gain + STANDARD * error
            found[f"{prefix}_none"] = float(value.share_A[0])
            if gap_C.mean() > 0:
                share = gain / float(gap_C.mean())
                # Of a ratio of means over the same customers: the delta method.
                rest_C = (value.net_C - habit.net_C) - share * gap_C
                error = float(rest_C.std(ddof=1) / np.sqrt(len(rest_C)) / gap_C.mean())
                found[f"{prefix}_share"] = share
                found[f"{prefix}_share_low"] = share - STANDARD * error
                found[f"{prefix}_share_high"] = share + STANDARD * error
        return found

    def print(self) -> None:
        numbers = self.numbers()
        width = max(map(len, self.values))
        print(f"  {'policy':<{width}}  true value     gain  share of the gap to the oracle    none")
        for name in self.values:
            prefix = f"policy/{name}/true"
            share = numbers.get(f"{prefix}_share")
            told = ""
            if share is not None:
                told = f"{share:.1%} [{numbers[f'{prefix}_share_low']:.1%}, {numbers[f'{prefix}_share_high']:.1%}]"
            print(
                f"  {name:<{width}}  {numbers[f'{prefix}_value']:>10.2f}  {numbers[f'{prefix}_gain']:>+7.2f}  "
                f"{told:<32}{numbers[f'{prefix}_none']:>6.1%}"
            )


def true_values(
    world: LoyaltyWorld,
    policies: Mapping[str, Callable[[np.ndarray], np.ndarray]],
    options: TrueValueOptions,
    *,
    start: Simulation | None = None,
) -> TrueValues:
    """Lead the same customers by each policy, the habit and the near-oracle."""
    from constellation.worlds.loyalty.value import logging_policy, started, value_of, value_of_oracle

    start = started(world, options.num_customers, options.seed) if start is None else start
    values = {HABIT: value_of(logging_policy(world), start, num_weeks=options.num_weeks)}
    for name, policy in policies.items():
        values[name] = value_of(policy, start, num_weeks=options.num_weeks)
    values[ORACLE] = value_of_oracle(start, num_weeks=options.num_weeks)
    return TrueValues(values)


def true_values_of_run(
    trained: Path,
    saved: Saved,
    world: Any,
    policies: Mapping[str, Policy],
    options: TrueValueOptions,
    *,
    system: str | None = None,
) -> TrueValues:
    """Of policies on the deployed models of a run that read the context of the world's decisions and nothing else.

    A policy that learns does so from all judged decisions by their cross-fitted predictions, as in a bundle.
    """
    from constellation.bundle import EngagementBundle, locate
    from constellation.bundle.engagement_parts import OutcomeFold
    from constellation.policies.best_constant import BestConstant
    from constellation.policies.evaluation import CONSTANT
    from constellation.policies.kept import fitted_on_all
    from constellation.worlds.loyalty.state import FEATURES
    from constellation.worlds.loyalty.world import LoyaltyWorld

    if not isinstance(world, LoyaltyWorld):
        raise InputError("true values need a world in which policies can act: world=loyalty.")
    check_actions(world, saved.log.actions)
    wanted = tuple(f"context_{name}" for name in FEATURES)
    if saved.feature_names != wanted:
        raise InputError(
            "In the world, policies know the context of a decision and nothing else. Train with "
            "engagement.context_alone=true and engagement.sequence_model=false."
        )
    bundle = EngagementBundle.load(locate(trained))
    experiment = saved.experiment(system)
    name = system or next(iter(saved.systems))
    parts = [part for part in bundle.systems[name] if isinstance(part, OutcomeFold)]
    print(f"In the world acts: {name}, {bundle.trained_on.get('deployed', DEPLOYED_BEFORE)}")
    advisor = Advisor(
        bundle.actions,
        tuple((part.members, part.action_AY, part.shrinkage) for part in parts),
        bundle.noise,
        bundle.num_training[EVERYBODY],
    )
    everyone: dict[str, Policy] = {CONSTANT: BestConstant()} | dict(policies)
    chosen = {
        policy_name: acting(world, advisor, fitted_on_all(experiment, policy))
        for policy_name, policy in everyone.items()
        if policy_name != HABIT
    }
    return true_values(world, chosen, options)
