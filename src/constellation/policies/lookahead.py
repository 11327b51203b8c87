"""What a decision changes beyond its reward: the worth of the state that it leaves the customer in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from constellation.policies.outcomes import binnable

SETTINGS = {
    "max_iter": 50,
    "learning_rate": 0.1,
    "max_leaf_nodes": 16,
    "min_samples_leaf": 200,
    "max_bins": 63,
    "early_stopping": False,
}
MAX_ROWS = 300_000
"""That each regression is fitted on, at most; drawn by the seed."""


@dataclass(frozen=True)
class Lookahead:
    """For ``num_windows`` windows of the reward more, told from the customer's next decision after the first.

    features_QX: of the decisions learned from. late_SX: of later ones, whose own reward is not known yet. next_Q: row
    in both, one below the other, of the decision that follows each one's reward (-1: none).
    """

    features_QX: np.ndarray
    late_SX: np.ndarray
    next_Q: np.ndarray
    num_windows: int

    def rewards(
        self, reward_Q: np.ndarray, learned_Q: np.ndarray, *, seed: int = 0, num_threads: int = 1
    ) -> np.ndarray:
        """Rewards [Q] plus what the state after them promises, less what it was expected to promise.

        The promise is ``V_n(x')`` with ``V_1(x) = E[r | x]`` and ``V_k(x) = E[r + V_(k-1)(x') | x]``, under the policy
        that made the log: fitted evaluation (Ernst, Geurts and Wehenkel 2005, with the action left out), whose greedy
        policy is one step of policy iteration ahead of the log's. As a surrogate index (Athey, Chetty, Imbens and Kang
        2019) it has far less noise than rewards of so many windows, and sees only what the features at ``x'`` tell.
        Less ``E[V_n(x') | x]``, so that means stay those of the rewards and only what an action adds grows. Regressions
        learn from the rows of ``learned_Q`` alone. A decision that none follows keeps its reward.
        """
        value_E = self._told(reward_Q, learned_Q, seed, num_threads)
        followed_Q = self.next_Q >= 0
        for _ in range(self.num_windows - 1):
            further_Q = np.where(followed_Q, reward_Q + value_E[self.next_Q], np.nan)
            value_E = self._told(further_Q, learned_Q & followed_Q, seed, num_threads)
        promise_Q = np.where(followed_Q, value_E[self.next_Q], np.nan)
        expected_Q = self._told(promise_Q, learned_Q & followed_Q, seed, num_threads, late=False)
        return np.where(followed_Q, reward_Q + promise_Q - expected_Q, reward_Q)

    def _told(
        self, aim_Q: np.ndarray, rows_Q: np.ndarray, seed: int, num_threads: int, *, late: bool = True
    ) -> np.ndarray:
        """Boosted expectation of the aim for every decision, and then the late ones."""
        import sklearn.ensemble  # the thread limit reaches libraries that are loaded by then
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        rows = np.flatnonzero(rows_Q)
        if len(rows) > MAX_ROWS:
            rows = np.sort(np.random.default_rng(seed).choice(rows, MAX_ROWS, replace=False))
        smallest = min(SETTINGS["min_samples_leaf"], max(len(rows) // 20, 1))
        with threadpool_limits(num_threads, user_api="openmp"):
            model = sklearn.ensemble.HistGradientBoostingRegressor(
                **(SETTINGS | {"min_samples_leaf": smallest}), random_state=seed
            ).fit(binnable(self.features_QX[rows]), aim_Q[rows])
            told = [model.predict(part) for part in (self.features_QX, self.late_SX)[: 1 + late] if len(part)]
        return np.concatenate(told)
