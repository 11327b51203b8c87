"""What is true of a draw: expected value of each customer, effects of actions, worth of policies, planted structure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from constellation.errors import InputError
from constellation.schema import CUSTOMER_ID, PRODUCT
from constellation.worlds.loyalty.people import BLACK_HOLES, CONSTELLATION_V, CONSTELLATIONS, HOLE_V, PRODUCTS
from constellation.worlds.loyalty.simulation import Simulation
from constellation.worlds.loyalty.value import (
    constant_policy,
    logging_policy,
    started,
    uniform_policy,
    value_of,
    value_of_oracle,
)
from constellation.worlds.simulated import MICROSECONDS_PER_DAY

if TYPE_CHECKING:
    import polars

    from constellation.worlds.loyalty.world import LoyaltyWorld

ROWS_AT_ONCE = 200_000
"""Customers times futures that are simulated together, for the sake of memory."""


@dataclass(frozen=True)
class LoyaltyTruth:
    """The truth about the draw of ``num_customers`` customers with ``seed``, by ``world.num_futures`` futures each."""

    world: LoyaltyWorld
    num_customers: int
    seed: int

    def expected(self, cutoff: int, horizon_days: float) -> polars.DataFrame:
        """Columns and rows as :class:`~constellation.worlds.simulated.Truth` says, given the hidden state.

        Means over futures under the logging policy, with ``value_standard_error``; ``friend_value_expected`` is the
        money of the friend, here or to come, and ``is_active`` is hidden. What history alone tells has no closed form
        here, and is left out. Raises InputError unless the cutoff is the end of a week, the horizon whole weeks.
        """
        import polars as pl

        num_weeks = round(horizon_days / 7)
        if num_weeks < 1 or num_weeks * 7 != horizon_days:
            raise InputError(f"This world counts in weeks: the horizon must be 7, 14, .. days, found {horizon_days}.")
        now = self._at(cutoff)
        rows = now.present().rows_C
        sums = _Sums()
        for future in self._futures(now):
            value_R, purchases_R = np.zeros(len(future.net_R)), np.zeros(len(future.net_R))
            for _ in range(num_weeks):
                week = future.step(future.logging())
                value_R[week.rows_C] += week.amount_C
                purchases_R[week.rows_C] += week.bought_C
            value_2FC = value_R.reshape(2, -1, self.num_customers)
            sums.add("value", _by_row(value_2FC))
            sums.add("purchases", _by_row(purchases_R.reshape(2, -1, self.num_customers)))
            friend_2FC = np.stack([value_2FC[1], np.zeros_like(value_2FC[1])])
            sums.add("friend", _by_row(friend_2FC))
        return pl.DataFrame(
            {
                CUSTOMER_ID: rows + 1,
                "value_expected": sums.mean("value")[rows],
                "value_standard_error": sums.standard_error("value")[rows],
                "purchases_expected": sums.mean("purchases")[rows],
                "friend_value_expected": sums.mean("friend")[rows],
                "is_active": now.state.active_R[rows],
            }
        )

    def effects(self, cutoff: int, horizon_days: float) -> polars.DataFrame:
        """What each action does for each customer, chosen for the week after ``cutoff``, the logging policy going on.

        One row per customer and action: ``effect``, expected own money over the horizon less the cost of this contact,
        minus the same of ``none``, with ``standard_error``: differences within futures, which share their luck.
        """
        import polars as pl

        num_weeks = round(horizon_days / 7)
        now = self._at(cutoff)
        rows = now.present().rows_C
        sums = _Sums()
        names = self.world.action_names
        for start in self._futures(now):
            none_2FC: np.ndarray | None = None
            for action, name in enumerate(names):
                future = start.copy()
                net_R = np.zeros(len(future.net_R))
                probability_CA = np.eye(len(names))[np.full(len(future.present().rows_C), action)]
                first = future.step(probability_CA)
                net_R[first.rows_C] += first.net_C
                for _ in range(num_weeks - 1):
                    week = future.step(future.logging())
                    net_R[week.rows_C] += week.amount_C
                net_2FC = net_R.reshape(2, -1, self.num_customers)
                none_2FC = net_2FC if none_2FC is None else none_2FC
                sums.add(name, _by_row(net_2FC - none_2FC))
        return pl.concat(
            pl.DataFrame(
                {
                    CUSTOMER_ID: rows + 1,
                    "action": pl.repeat(name, len(rows), eager=True),
                    "effect": sums.mean(name)[rows],
                    "standard_error": sums.standard_error(name)[rows],
                }
            )
            for name in names
        )

    def policies(self, *, num_weeks: int = 52) -> polars.DataFrame:
        """Value per customer over ``num_weeks`` after the weeks of joining, of the logging policy, the near-oracle and
        simple rules, and the gain over the logging policy, for this draw's customers and their luck."""
        import polars as pl

        start = started(self.world, self.num_customers, self.seed)
        logged = value_of(logging_policy(self.world), start, num_weeks=num_weeks)
        values = {"logging": logged, "uniform": value_of(uniform_policy(self.world), start, num_weeks=num_weeks)}
        for name in self.world.action_names:
            values[f"always_{name}"] = value_of(constant_policy(self.world, name), start, num_weeks=num_weeks)
        values["oracle"] = value_of_oracle(start, num_weeks=num_weeks)
        gains = [value.gain_over(logged) for value in values.values()]
        return pl.DataFrame(
            {
                "policy": list(values),
                "value": [value.mean for value in values.values()],
                "standard_error": [value.standard_error for value in values.values()],
                "gain_over_logging": [gain for gain, _ in gains],
                "gain_standard_error": [error for _, error in gains],
                "share_none": [float(value.share_A[0]) for value in values.values()],
            }
        )

    def products(self) -> polars.DataFrame:
        """The planted structure: constellation of each product (null for none), and whether it is a black hole."""
        import polars as pl

        groups = list(CONSTELLATIONS)
        change_V = np.where(HOLE_V, -self.world.hole_hurt, self.world.purchase_joy)
        return pl.DataFrame(
            {
                PRODUCT: PRODUCTS,
                "constellation": [groups[number] if number >= 0 else None for number in CONSTELLATION_V],
                "is_black_hole": [name in BLACK_HOLES for name in PRODUCTS],
                "satisfaction_per_basket": change_V,
            }
        )

    def links(self) -> polars.DataFrame:
        """The pairs of products that are linked, each once, in alphabetical order."""
        import polars as pl

        pairs = sorted(tuple(sorted(pair)) for group in CONSTELLATIONS.values() for pair in combinations(group, 2))
        return pl.DataFrame({"product": [pair[0] for pair in pairs], "linked_with": [pair[1] for pair in pairs]})

    def tastes(self) -> polars.DataFrame:
        """Probability that a customer's basket starts with each product: one row per customer ever here, as columns."""
        import polars as pl

        simulation = Simulation(self.world, self.num_customers, self.seed).run(self.world.num_weeks)
        rows = np.flatnonzero(simulation.state.joined_week_R < self.world.num_weeks)
        taste_CV = simulation.people.taste_RV[rows]
        return pl.DataFrame({CUSTOMER_ID: rows + 1} | {name: taste_CV[:, v] for v, name in enumerate(PRODUCTS)})

    def tables(self) -> dict[str, Callable[[], polars.DataFrame]]:
        """What ``constellation simulate`` writes beside the log, made when asked for."""
        from constellation.worlds.loyalty.log import feature_table, start_of_week
        from constellation.worlds.loyalty.world import HORIZON_WEEKS, REWARD_WEEKS

        test_cutoff = start_of_week(self.world.num_weeks - HORIZON_WEEKS) - 1
        return {
            "truth_effects": lambda: self.effects(test_cutoff, 7 * REWARD_WEEKS),
            "truth_policies": self.policies,
            "truth_products": self.products,
            "truth_links": self.links,
            "truth_tastes": self.tastes,
            "decision_features": lambda: feature_table(self.world, self.num_customers, self.seed),
        }

    def _at(self, cutoff: int) -> Simulation:
        """The customers after the last week that ends at ``cutoff``, led by the logging policy."""
        from constellation.worlds.loyalty.log import start_of_week

        week, rest = divmod(cutoff + 1 - start_of_week(0), 7 * MICROSECONDS_PER_DAY)
        if rest or not 1 <= week <= self.world.num_weeks:
            raise InputError(
                "The truth of this world is known at the ends of its weeks, which are Sundays: give a Sunday within "
                f"the {self.world.num_weeks} weeks of the log."
            )
        return Simulation(self.world, self.num_customers, self.seed).run(int(week))

    def _futures(self, now: Simulation) -> Iterator[Simulation]:
        at_once = max(1, ROWS_AT_ONCE // self.num_customers)
        for branch, first in enumerate(range(0, self.world.num_futures, at_once), start=1):
            yield now.futures(min(at_once, self.world.num_futures - first), branch=branch)


def _by_row(sums_2FC: np.ndarray) -> np.ndarray:
    """From [generation, future, customer] to [future, row]."""
    return np.concatenate([sums_2FC[0], sums_2FC[1]], axis=1)


class _Sums:
    """Running mean and standard error over futures of named quantities."""

    def __init__(self) -> None:
        self.total: dict[str, np.ndarray] = {}
        self.square: dict[str, np.ndarray] = {}
        self.num: dict[str, int] = {}

    def add(self, name: str, value_FR: np.ndarray) -> None:
        self.total[name] = self.total.get(name, 0.0) + value_FR.sum(axis=0)
        self.square[name] = self.square.get(name, 0.0) + (value_FR**2).sum(axis=0)
        self.num[name] = self.num.get(name, 0) + len(value_FR)

    def mean(self, name: str) -> np.ndarray:
        return self.total[name] / self.num[name]

    def standard_error(self, name: str) -> np.ndarray:
        num = self.num[name]
        variance_R = np.maximum(self.square[name] / num - self.mean(name) ** 2, 0.0)
        return np.sqrt(variance_R / max(num - 1, 1))
