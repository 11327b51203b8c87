"""The club as Gymnasium environments, for policies that act and see what comes of it. Needs ``gymnasium`` (extra
``worlds``).

An episode starts when the weeks of joining are over, and lasts ``num_weeks`` steps of a week. What is observed are the
features that policies know (columns ``FEATURES``); an action is a number into ``world.action_names``, 0 is ``none``;
the reward is money less cost of contacts in the week. The friend whom a customer brings is led by the logging policy,
and what the friend pays is the customer's reward. Nobody tells when a customer leaves, so no episode terminates: all
are truncated at the end. With the same seed, two policies meet the same luck.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from constellation.errors import InputError
from constellation.worlds.loyalty.simulation import Simulation
from constellation.worlds.loyalty.state import FEATURES
from constellation.worlds.loyalty.value import started
from constellation.worlds.loyalty.world import LoyaltyWorld

SEEDS = 2**31


class _Episode:
    """Customers after their weeks of joining; the caller acts for them, the habit for friends."""

    def __init__(self, world: LoyaltyWorld, num_customers: int, num_weeks: int) -> None:
        if num_weeks < 1:
            raise InputError(f"num_weeks must be 1 or more, found {num_weeks}.")
        self.world, self.num_customers, self.num_weeks = world, num_customers, num_weeks
        self.simulation: Simulation | None = None
        self.week = 0

    def begin(self, seed: int) -> np.ndarray:
        self.simulation, self.week = started(self.world, self.num_customers, seed), 0
        return self.observe()

    def running(self) -> Simulation:
        if self.simulation is None:
            raise InputError("The environment was stepped before it was reset: call reset() first.")
        return self.simulation

    def observe(self) -> np.ndarray:
        return self.running().features()[: self.num_customers]

    def step(self, action_C: np.ndarray) -> np.ndarray:
        """Reward [num_customers] of a week in which the customers get these actions."""
        simulation = self.running()
        probability_CA = simulation.logging()
        chosen_C = simulation.choose(probability_CA)
        chosen_C[: self.num_customers] = action_C
        before_C = simulation.net_of_customers()
        simulation.step(probability_CA, chosen_C)
        self.week += 1
        return simulation.net_of_customers() - before_C

    @property
    def over(self) -> bool:
        return self.week >= self.num_weeks


def _feature_space() -> spaces.Box:
    return spaces.Box(0.0, np.inf, shape=(len(FEATURES),), dtype=np.float32)


class ClubEnvironment(gymnasium.Env[np.ndarray, np.ndarray]):
    """The whole club as one agent's world: observation [num_customers, F], one action for each, reward their mean.

    ``info["net_C"]`` holds the reward of every customer.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - the name and the form are Gymnasium's

    def __init__(self, world: LoyaltyWorld | None = None, *, num_customers: int = 1000, num_weeks: int = 52) -> None:
        self.world = world or LoyaltyWorld()
        self.episode = _Episode(self.world, num_customers, num_weeks)
        self.observation_space = spaces.Box(0.0, np.inf, shape=(num_customers, len(FEATURES)), dtype=np.float32)
        self.action_space = spaces.MultiDiscrete(np.full(num_customers, len(self.world.action_names)))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start with new customers; ``seed`` is theirs. There are no options."""
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(SEEDS)) if seed is None else seed
        return self.episode.begin(drawn), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        net_C = self.episode.step(np.asarray(action))
        return self.episode.observe(), float(net_C.mean()), False, self.episode.over, {"net_C": net_C}


class CustomersEnvironment(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """Every customer a sub-environment: observations [num_envs, F], actions [num_envs], rewards [num_envs].

    All episodes end together; the step after the end resets, as ``AutoresetMode.NEXT_STEP`` says.
    """

    def __init__(self, world: LoyaltyWorld | None = None, *, num_customers: int = 1000, num_weeks: int = 52) -> None:
        self.world = world or LoyaltyWorld()
        self.episode = _Episode(self.world, num_customers, num_weeks)
        self.num_envs = num_customers
        self.metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}
        self.single_observation_space = _feature_space()
        self.single_action_space = spaces.Discrete(len(self.world.action_names))
        self.observation_space = batch_space(self.single_observation_space, num_customers)
        self.action_space = batch_space(self.single_action_space, num_customers)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start with new customers. One seed for all: they are a draw, not ``num_envs`` draws of one."""
        if isinstance(seed, list):
            raise InputError("The customers of this environment are one draw: give one seed, not a list.")
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(SEEDS)) if seed is None else seed
        return self.episode.begin(drawn), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        never_C = np.zeros(self.num_envs, dtype=bool)
        if self.episode.over:
            observed, info = self.reset()
            return observed, np.zeros(self.num_envs), never_C, never_C.copy(), info
        reward_C = self.episode.step(np.asarray(actions))
        over_C = np.full(self.num_envs, self.episode.over)
        return self.episode.observe(), reward_C, never_C, over_C, {}
