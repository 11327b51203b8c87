"""The club running: who is there this week, what is known of them, and what an action makes of it."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from constellation.errors import InputError
from constellation.worlds.loyalty.draws import Draws, Stream
from constellation.worlds.loyalty.dynamics import Week, live_a_week
from constellation.worlds.loyalty.people import People, draw_people
from constellation.worlds.loyalty.state import NEVER, State, features, logging_probabilities

if TYPE_CHECKING:
    from constellation.worlds.loyalty.world import LoyaltyWorld

Policy = Callable[[np.ndarray], np.ndarray]
"""Features [C, F] (the columns of ``FEATURES``) to probabilities of actions [C, A]."""


@dataclass(frozen=True)
class Present:
    """The customers who are members at the start of a week: rows, and their state and traits, aligned."""

    rows_C: np.ndarray
    state: State
    people: People


class Simulation:
    """A draw of customers that lives week by week.

    week: the week that comes next. net_R: money paid less cost of contacts so far, per row (see :class:`People`).
    """

    def __init__(self, world: LoyaltyWorld, num_customers: int, seed: int) -> None:
        if num_customers < 1:
            raise InputError(f"A world needs at least one customer, found num_customers={num_customers}.")
        self.world, self.effects = world, world.effects()
        self.draws = Draws(seed, num_customers)
        self.people = draw_people(world, self.draws)
        own = np.arange(num_customers)
        joined_week_R = np.full(2 * num_customers, NEVER)
        joined_week_R[:num_customers] = self.draws.uniform(-1, Stream.JOIN, own) * world.joining_weeks
        self.state = State.fresh(self.people, joined_week_R)
        self.week = 0
        self.net_R = np.zeros(2 * num_customers)
        self._present: Present | None = None

    @property
    def num_customers(self) -> int:
        return self.draws.num_customers

    def present(self) -> Present:
        """Members of at least a week: those for whom something can be decided now."""
        if self._present is None:
            rows_C = np.flatnonzero(self.state.joined_week_R < self.week)
            self._present = Present(rows_C, self.state.take(rows_C), self.people.take(rows_C))
        return self._present

    def features(self) -> np.ndarray:
        """What a policy may know of those who are present, float32 [C, F]."""
        now = self.present()
        return features(now.state, now.people, self.week)

    def logging(self) -> np.ndarray:
        """Probabilities [C, A] of the logging policy for those who are present."""
        return logging_probabilities(self.world, self.features())

    def choose(self, probability_CA: np.ndarray) -> np.ndarray:
        """Actions [C] drawn by inversion, from one number per customer and week whatever the policy."""
        rows_C = self.present().rows_C
        probability_CA = np.asarray(probability_CA, dtype=np.float64)
        wanted = (len(rows_C), len(self.world.actions))
        if probability_CA.shape != wanted:
            raise InputError(
                f"A policy must answer features {(len(rows_C), 'F')} with probabilities {wanted}, "
                f"found {probability_CA.shape}."
            )
        total_C = probability_CA.sum(axis=1)
        if not ((probability_CA >= 0).all() and np.allclose(total_C, 1.0, atol=1e-5)):
            raise InputError("The action probabilities of a policy must be 0 or more and sum to 1 for each customer.")
        reached_CA = np.cumsum(probability_CA[:, :-1], axis=1)
        uniform_C = self.draws.uniform(self.week, Stream.ACTION, rows_C) * total_C
        return (reached_CA <= uniform_C[:, None]).sum(axis=1)

    def step(self, probability_CA: np.ndarray, action_C: np.ndarray | None = None) -> Week:
        """Live a week under a policy's probabilities (or given actions; the probabilities are then for the record)."""
        now = self.present()
        if action_C is None:
            action_C = self.choose(probability_CA)
        week = live_a_week(
            self.world,
            self.effects,
            now.people,
            self.people.taste_RV,
            now.state,
            self.draws,
            self.week,
            now.rows_C,
            probability_CA,
            action_C,
        )
        self.state.put(now.rows_C, now.state)
        self.net_R[now.rows_C] += week.net_C
        friends = now.rows_C[week.referred_C] + self.num_customers
        self.state.joined_week_R[friends] = self.week + 1
        self.week += 1
        self._present = None
        return week

    def run(self, num_weeks: int, policy: Policy | None = None) -> Simulation:
        """Live so many weeks under a policy, by default the logging policy; returns itself."""
        for _ in range(num_weeks):
            self.step(self.logging() if policy is None else policy(self.features()))
        return self

    def copy(self) -> Simulation:
        """The same customers at the same moment with the same luck ahead, to be led elsewhere."""
        twin = copy(self)
        twin.state, twin.net_R, twin._present = deepcopy(self.state), self.net_R.copy(), None
        return twin

    def futures(self, num_futures: int, branch: int = 1) -> Simulation:
        """Every customer ``num_futures`` times (future f of customer c is row ``f * num_customers + c``), luck anew.

        branch: 1 or more; two calls with the same branch meet the same luck, so their difference is of actions alone.
        """
        assert branch >= 1, "branch 0 is what happened"
        num = self.num_customers
        rows = np.concatenate([np.tile(np.arange(num), num_futures), np.tile(np.arange(num, 2 * num), num_futures)])
        twin = copy(self)
        twin.draws = copy(self.draws)
        twin.draws.num_customers, twin.draws.branch = num * num_futures, branch
        twin.people, twin.state = self.people.take(rows), self.state.take(rows)
        twin.net_R, twin._present = np.zeros(len(rows)), None
        return twin

    def net_of_customers(self) -> np.ndarray:
        """Money less costs so far [num_customers], the friend's counted with who brought the friend."""
        return self.net_R[: self.num_customers] + self.net_R[self.num_customers :]
