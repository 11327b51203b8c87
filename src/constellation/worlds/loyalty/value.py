"""What policies are truly worth, by simulation with common random numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from constellation.errors import InputError
from constellation.worlds.loyalty.oracle import Oracle
from constellation.worlds.loyalty.simulation import Policy, Simulation

if TYPE_CHECKING:
    from constellation.worlds.loyalty.world import LoyaltyWorld


@dataclass(frozen=True)
class PolicyValue:
    """Money less cost of contacts [num_customers] under a policy, a friend's counted with who brought the friend.

    num_weeks: over which it was counted. share_A: of decisions that went to each action.
    """

    net_C: np.ndarray
    num_weeks: int
    share_A: np.ndarray

    @property
    def mean(self) -> float:
        """Per customer."""
        return float(self.net_C.mean())

    @property
    def standard_error(self) -> float:
        """Of the mean, over customers."""
        return float(self.net_C.std(ddof=1) / np.sqrt(len(self.net_C)))

    def gain_over(self, other: PolicyValue) -> tuple[float, float]:
        """Mean difference per customer, and its standard error from differences customer by customer.

        Meant for two values of the same customers and seed, who then had the same luck.
        """
        difference_C = self.net_C - other.net_C
        return float(difference_C.mean()), float(difference_C.std(ddof=1) / np.sqrt(len(difference_C)))


def logging_policy(world: LoyaltyWorld) -> Policy:
    """The rule that made the log, as a policy."""
    from constellation.worlds.loyalty.state import logging_probabilities

    return lambda features_CF: logging_probabilities(world, features_CF)


def constant_policy(world: LoyaltyWorld, action: str) -> Policy:
    """The same action for everybody, always. Raises InputError for an unknown one."""
    if action not in world.action_names:
        raise InputError(f"The action must be one of {', '.join(world.action_names)}, found {action!r}.")
    row_A = np.eye(len(world.action_names))[world.action_names.index(action)]
    return lambda features_CF: np.broadcast_to(row_A, (len(features_CF), len(row_A)))


def uniform_policy(world: LoyaltyWorld) -> Policy:
    """Every action with the same probability."""
    num_actions = len(world.action_names)
    return lambda features_CF: np.full((len(features_CF), num_actions), 1.0 / num_actions)


def started(world: LoyaltyWorld, num_customers: int, seed: int) -> Simulation:
    """Customers after the weeks of joining, led by the logging policy: where every policy takes over."""
    return Simulation(world, num_customers, seed).run(world.joining_weeks)


def value_of(policy: Policy, start: Simulation, *, num_weeks: int = 52) -> PolicyValue:
    """Value of acting by ``policy`` (features [C, F] to probabilities [C, A]) for ``num_weeks`` from ``start`` on.

    ``start`` is left as it is, so that several policies can be led from it: they meet the same luck.
    """
    return _played(start, num_weeks, lambda running, _: policy(running.features()))


def value_of_oracle(start: Simulation, *, num_weeks: int = 52, oracle: Oracle | None = None) -> PolicyValue:
    """The same for the near-oracle of :mod:`constellation.worlds.loyalty.oracle`."""
    known = oracle or Oracle(start.world, num_weeks)
    return _played(start, num_weeks, lambda running, week: known.probabilities(running, num_weeks - week))


def value_of_one_decision(policy: Policy, start: Simulation, *, reward_weeks: int = 8) -> PolicyValue:
    """What a table of decisions calls reward, in truth: one decision by ``policy``, then the logging policy goes on.

    Money of the customer's own (no friend's) over ``reward_weeks`` from the decision on, less the cost of this one
    contact; one row per member who was there at ``start``. This is what off-policy estimators with ``reward_days`` of
    as many weeks estimate.
    """
    running = start.copy()
    first = running.step(policy(running.features()))
    net_R = np.zeros(len(running.net_R))
    net_R[first.rows_C] += first.net_C
    for _ in range(reward_weeks - 1):
        week = running.step(running.logging())
        net_R[week.rows_C] += week.amount_C
    return PolicyValue(net_R[first.rows_C], reward_weeks, _shares(first.action_C, start.world))


def _played(start: Simulation, num_weeks: int, choose: Callable[[Simulation, int], np.ndarray]) -> PolicyValue:
    running = start.copy()
    before_C = running.net_of_customers()
    count_A = np.zeros(len(start.world.action_names))
    for week in range(num_weeks):
        lived = running.step(choose(running, week))
        count_A += np.bincount(lived.action_C, minlength=len(count_A))
    return PolicyValue(running.net_of_customers() - before_C, num_weeks, count_A / max(count_A.sum(), 1.0))


def _shares(action_C: np.ndarray, world: LoyaltyWorld) -> np.ndarray:
    return np.bincount(action_C, minlength=len(world.action_names)) / max(len(action_C), 1)
