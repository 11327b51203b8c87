"""A near-oracle: the action whose true long-run effect is best, seen with eyes that no log gives.

It knows traits, mood, interest, and who has left. For each action it adds what the action brings this week to what the
state it leads to is worth if nobody is contacted again, and takes the best. That worth comes by backward induction over
the weeks left, on a grid of pace, baseline satisfaction, satisfaction, interest and open complaint, in units of the
customer's mean amount. What later contacts lose to fatigue enters as a price: an action is taken only if it gains more
than ``patience`` times what the best action would gain from a rested customer. It is not the optimum: the look-ahead
stops at one contact, what baskets do to moods enters by its mean, and a friend by the worth of an average customer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from constellation.worlds.loyalty.dynamics import (
    churn_probability,
    complaint_probability,
    impulses,
    referral_probability,
    sigmoid,
)
from constellation.worlds.loyalty.people import HOLE_V, People, reasons
from constellation.worlds.loyalty.simulation import Present, Simulation
from constellation.worlds.loyalty.state import State

if TYPE_CHECKING:
    from constellation.worlds.loyalty.world import LoyaltyWorld

PATIENCE = 0.45
"""Best of 0, 0.15, .., 0.9 by simulated value (20,000 customers, 52 weeks, seed 1000); up to 0.45 it matters little."""
PACE, BASELINE, MOOD, INTEREST = (-3.5, 0.5, 9), (-1.6, 1.4, 9), (-3.6, 2.4, 25), (-1.0, 2.0, 13)
"""Lowest, highest and number of points of each axis of the grid; what lies outside is taken at the edge."""


class Oracle:
    """Worth of every state for up to ``num_weeks`` weeks ahead, and the policy that follows."""

    def __init__(self, world: LoyaltyWorld, num_weeks: int, *, patience: float = PATIENCE) -> None:
        self.world, self.effects, self.patience = world, world.effects(), patience
        self.worth_T = _worth(world, num_weeks)

    def probabilities(self, simulation: Simulation, weeks_left: int) -> np.ndarray:
        """1 for the best action of each present customer, 0 for the others, [C, A]."""
        gain_CA = self.advantages(simulation.present(), weeks_left)
        rested_CA = self.advantages(simulation.present(), weeks_left, rested=True)
        contact_CA = gain_CA - self.patience * np.maximum(rested_CA.max(axis=1, keepdims=True), 0.0)
        contact_CA[:, 0] = 0.0
        return np.eye(contact_CA.shape[1])[contact_CA.argmax(axis=1)]

    def advantages(self, now: Present, weeks_left: int, *, rested: bool = False) -> np.ndarray:
        """Expected money less cost over the weeks left of each action, less that of ``none``, [C, A].

        No further contact is counted. rested: as if no contact had gone before.
        """
        world, effects, state, people = self.world, self.effects, now.state, now.people
        num, num_actions = len(now.rows_C), len(effects.cost_A)
        reason_CJ = reasons(people, state.complaint_R, state.satisfaction_R)
        fatigue_C = np.zeros(num) if rested else state.fatigue_R
        interest_CA, satisfaction_CA, boost_CA = impulses(world, effects, reason_CJ, fatigue_C)
        interest_CA += state.interest_R[:, None]
        satisfaction_CA += state.satisfaction_R[:, None]
        worth_CA = np.empty((num, num_actions))
        drift_C = _drift(world, people)
        for action in range(num_actions):
            worth_CA[:, action] = self._worth_of(
                state, people, drift_C, satisfaction_CA[:, action], interest_CA[:, action], weeks_left,
                resolution=max(world.resolution, float(effects.resolves_A[action])),
            )  # fmt: skip
        logit_CA = people.rate_R[:, None] + interest_CA + world.purchase_slope * satisfaction_CA
        worth_CA += sigmoid(logit_CA + boost_CA) * (1.0 - effects.discount_A) - sigmoid(logit_CA)
        value_CA = np.exp(people.log_amount_R)[:, None] * worth_CA * state.active_R[:, None] - effects.cost_A
        return value_CA - value_CA[:, :1]

    def _worth_of(
        self,
        state: State,
        people: People,
        drift_C: np.ndarray,
        satisfaction_C: np.ndarray,
        interest_C: np.ndarray,
        weeks_left: int,
        *,
        resolution: float,
    ) -> np.ndarray:
        from scipy.ndimage import map_coordinates

        values = (people.rate_R, people.baseline_R + drift_C, satisfaction_C, interest_C)
        axes = (PACE, BASELINE, MOOD, INTEREST)
        place_JC = np.stack(
            [(v - low) / (high - low) * (num - 1) for v, (low, high, num) in zip(values, axes, strict=True)]
        )
        calm, troubled, helped = self.worth_T[weeks_left]
        worth_C = map_coordinates(calm, place_JC, order=1, mode="nearest")
        waiting = np.flatnonzero(state.complaint_R)
        mixed = helped * resolution + troubled * (1 - resolution)
        worth_C[waiting] = map_coordinates(mixed, place_JC[:, waiting], order=1, mode="nearest")
        return worth_C


def _drift(world: LoyaltyWorld, people: People) -> np.ndarray:
    """What the customer's baskets do to the level around which satisfaction moves, in the mean."""
    pace_C = sigmoid(people.rate_R + world.purchase_slope * people.baseline_R)
    hole_C = people.taste_RV[:, HOLE_V].sum(axis=1)
    return pace_C * (world.purchase_joy * (1 - hole_C) - world.hole_hurt * hole_C) / max(world.reversion, 0.02)


def _worth(world: LoyaltyWorld, num_weeks: int) -> list[np.ndarray]:
    """For 0, 1, .. weeks left: worth [3, pace, baseline, mood, interest] after this week's contact, the last one.

    The three: no complaint open; one open that stays so this week; one open that is resolved this week.
    """
    pace_P, baseline_B, mood_M, interest_I = (np.linspace(*axis) for axis in (PACE, BASELINE, MOOD, INTEREST))
    buys = sigmoid(pace_P[:, None, None, None] + interest_I + world.purchase_slope * mood_M[:, None])
    hole_share = 0.12  # of an average customer's baskets; it enters through the hazard of a complaint alone
    complaint_M = complaint_probability(world, mood_M, np.full(len(mood_M), hole_share))
    complains = buys * complaint_M[:, None]
    refers_M1 = referral_probability(world, mood_M)[:, None]

    def settle(shift: float, open_after: bool) -> tuple[np.ndarray, np.ndarray]:
        """Mood moves by ``shift``, then part of the way to the baseline: weights [B, M, M'], and who stays [M, 1]."""
        moved_M = mood_M + shift
        stays_M1 = 1.0 - churn_probability(world, moved_M, np.full(len(mood_M), float(open_after)))[:, None]
        target_BM = moved_M + world.reversion * (baseline_B[:, None] - moved_M)
        return _hats(target_BM, mood_M), stays_M1

    fade_II = _hats(world.interest_memory * interest_I, interest_I)
    settled = {
        "calm": settle(0.0, False),
        "complains": settle(-world.complaint_hurt, True),
        "festers": settle(-world.festering_hurt, True),
        "resolved": settle(world.recovery, False),
    }

    def after(name: str, table: np.ndarray) -> np.ndarray:
        weight_BMM, stays_M1 = settled[name]
        faded = table @ fade_II.T
        return np.einsum("bmn,pbni->pbmi", weight_BMM, faded) * stays_M1

    tables = [np.zeros((3, len(pace_P), len(baseline_B), len(mood_M), len(interest_I)))]
    middle = tuple(length // 2 for length in tables[0].shape[1:])
    for left in range(1, num_weeks + 1):
        calm, troubled, helped = tables[-1]
        open_next = world.resolution * helped + (1 - world.resolution) * troubled
        friend = tables[max(left - 2, 0)][0][middle]
        now = buys + refers_M1 * friend
        tables.append(
            np.stack(
                [
                    now + (1 - complains) * after("calm", calm) + complains * after("complains", open_next),
                    now + after("festers", open_next),
                    now + after("resolved", calm),
                ]
            )
        )
    return tables


def _hats(target: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Weights [..., grid] of linear interpolation at ``target`` on an even grid, clipped to its ends."""
    place = np.clip((target - grid[0]) / (grid[1] - grid[0]), 0, len(grid) - 1)
    return np.maximum(1.0 - np.abs(place[..., None] - np.arange(len(grid))), 0.0)
