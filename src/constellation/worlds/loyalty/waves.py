"""Decisions of a few weeks as arrays, and what a policy would truly earn at them: for studies of estimators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from constellation.errors import InputError
from constellation.worlds.loyalty.simulation import Policy, Simulation

if TYPE_CHECKING:
    from constellation.worlds.loyalty.world import LoyaltyWorld


@dataclass(frozen=True)
class Waves:
    """``Q`` decisions, wave after wave, each over all customers in order; friends are left out.

    features_QF: what was known. probability_QA: of the habit. reward_Q: the customer's own money over ``reward_weeks``
    from the decision on, less the cost of this contact. customer_Q: number of the customer.
    """

    features_QF: np.ndarray
    probability_QA: np.ndarray
    action_Q: np.ndarray
    reward_Q: np.ndarray
    customer_Q: np.ndarray

    def of_customers(self, first: int, last: int) -> Waves:
        """The decisions of customers ``first`` up to, not including, ``last``: a log of its own."""
        rows = (self.customer_Q >= first) & (self.customer_Q < last)
        return Waves(**{name: array[rows] for name, array in vars(self).items()})


def draw_waves(
    world: LoyaltyWorld, num_customers: int, seed: int, weeks: Sequence[int], *, reward_weeks: int = 8
) -> Waves:
    """The habit's decisions in ``weeks`` (ascending, after all have joined). Rewards of two waves may overlap."""
    _check(world, weeks)
    simulation = Simulation(world, num_customers, seed)
    own = np.arange(num_customers)
    paid_CW = np.zeros((num_customers, weeks[-1] + reward_weeks))
    parts = []
    for week in range(weeks[-1] + reward_weeks):
        features_CF = simulation.features() if week in weeks else None
        lived = simulation.step(simulation.logging())
        present = np.searchsorted(lived.rows_C, num_customers)
        paid_CW[lived.rows_C[:present], week] = lived.amount_C[:present]
        if features_CF is not None:
            assert present == num_customers, "all have joined"
            parts.append(
                (
                    features_CF[:present],
                    lived.probability_CA[:present],
                    lived.action_C[:present],
                    lived.cost_C[:present],
                )
            )
    reward_Q = np.concatenate(
        [
            paid_CW[:, week : week + reward_weeks].sum(axis=1) - cost_C
            for week, (*_, cost_C) in zip(weeks, parts, strict=True)
        ]
    )
    features_QF, probability_QA, action_Q = (np.concatenate([part[place] for part in parts]) for place in range(3))
    return Waves(features_QF, probability_QA, action_Q, reward_Q, np.tile(own, len(weeks)))


def true_rewards(
    world: LoyaltyWorld,
    policies: Mapping[str, Policy],
    num_customers: int,
    seed: int,
    weeks: Sequence[int],
    *,
    reward_weeks: int = 8,
) -> dict[str, np.ndarray]:
    """Mean reward over the waves [num_customers] where each decision alone had been the policy's, the habit before and
    after. All policies meet the same luck."""
    _check(world, weeks)
    simulation = Simulation(world, num_customers, seed)
    earned = {name: np.zeros(num_customers) for name in policies}
    for week in range(weeks[-1] + 1):
        if week in weeks:
            features_CF = simulation.features()
            for name, policy in policies.items():
                branch = simulation.copy()
                for ahead in range(reward_weeks):
                    lived = branch.step(policy(features_CF) if ahead == 0 else branch.logging())
                    paid_C = lived.net_C if ahead == 0 else lived.amount_C
                    earned[name] += paid_C[:num_customers] / len(weeks)
        simulation.step(simulation.logging())
    return earned


def _check(world: LoyaltyWorld, weeks: Sequence[int]) -> None:
    if not weeks or list(weeks) != sorted(set(weeks)) or weeks[0] < world.joining_weeks:
        raise InputError(
            f"weeks of decisions must ascend and start at {world.joining_weeks} or later, when all have joined, "
            f"found {list(weeks)}."
        )
