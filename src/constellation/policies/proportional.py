"""What an action adds, learned apart from what a customer brings anyway, and in proportion to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from constellation.errors import InputError
from constellation.policies.outcomes import MAX_STANDARD, OutcomeModel
from constellation.policies.trees import Trees

CHUNK_ROWS = 32_768
NUM_LEVELS = 20
"""Of the expected reward, each with a variance of its own."""
LEAST_VARIANCE = 0.05
"""Of a level, over the mean variance: no customer is known without noise."""
MAX_SCALE = 10.0


class ProportionalOutcome(OutcomeModel):
    """``q(x, a) = m(x) + e(x, a) - mean of e under the logging policy``, e linear in ``[1, x, m, m x]``.

    m is boosted: the expected reward whatever is done. e minimises the R-loss (Nie and Wager 2021, eq. 4, with known
    propensities, for many actions): ``sum w (r - m(x) - sum_a (1[chosen = a] - logging(a|x)) e(x, a))^2``. Since the
    indicators less their propensities average to 0 for every customer, what a customer brings anyway cannot pass for
    an effect, however poorly m tells it. Products with m let an effect grow with what the customer spends, as effects
    on the rate of purchases do. w is 1 / variance at the customer's level of m: who spends much is noisy.

    ridges: prior of e in shares of the information that the rows hold about it, the one with the least R-loss on other
    rows is taken: each half of the blocks of rows is learned from and judged by the other. base_rows: m is boosted on
    at most so many, drawn by the seed.
    """

    name = "proportional"
    reads_propensities = True

    def __init__(
        self,
        *,
        num_trees: int = 50,
        learning_rate: float = 0.1,
        max_leaf_nodes: int = 16,
        min_samples_leaf: int = 200,
        base_rows: int = 300_000,
        ridges: tuple[float, ...] = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
        num_threads: int = 1,
    ) -> None:
        if num_trees < 1 or base_rows < 1 or not ridges or min(ridges) <= 0:
            raise InputError(
                "outcome.proportional needs num_trees and base_rows of 1 or more, and ridges above 0, "
                f"found {num_trees}, {base_rows}, {list(ridges)}."
            )
        self.num_trees, self.base_rows, self.ridges, self.num_threads = num_trees, base_rows, tuple(ridges), num_threads
        self.settings: dict[str, Any] = {
            "learning_rate": learning_rate,
            "max_leaf_nodes": max_leaf_nodes,
            "min_samples_leaf": min_samples_leaf,
            "early_stopping": False,
            "max_bins": 63,
        }

    def fit(
        self,
        features_QX: np.ndarray,
        action_Q: np.ndarray,
        reward_Q: np.ndarray,
        action_AY: np.ndarray,
        num_actions: int,
        *,
        weight_Q: np.ndarray | None = None,
        seed: int = 0,
        logging_QA: np.ndarray | None = None,
    ) -> None:
        """logging_QA: propensities of all actions; without them, how often each was chosen, as in a plain trial."""
        del action_AY  # every action has coefficients of its own
        weight_Q = np.ones(len(reward_Q)) if weight_Q is None else np.asarray(weight_Q, dtype=np.float64)
        if logging_QA is None:
            share_A = np.bincount(action_Q, weights=weight_Q, minlength=num_actions) / max(weight_Q.sum(), 1e-12)
            logging_QA = np.broadcast_to(share_A, (len(action_Q), num_actions))
        self._boost(features_QX, reward_Q, weight_Q, seed)
        base_Q = self._base(features_QX)
        left_Q = reward_Q - base_Q
        self.scale = max(float(np.average(np.abs(base_Q), weights=weight_Q + 1e-12)), 1e-12)
        self._standardise(features_QX)
        certainty_Q = weight_Q / _variances(base_Q, left_Q, weight_Q)
        certainty_Q *= len(certainty_Q) / max(certainty_Q.sum(), 1e-12)
        moved_QA = -np.asarray(logging_QA, dtype=np.float32)
        moved_QA[np.arange(len(action_Q)), action_Q] += 1.0
        halves = [_Moments(), _Moments()]
        for block, rows in enumerate(_blocks(len(action_Q))):
            design = self._design(features_QX[rows], base_Q[rows])
            root_Q1 = np.sqrt(certainty_Q[rows]).astype(np.float32)[:, None]
            meet = (root_Q1 * moved_QA[rows])[:, :, None] * design[:, None, :]
            halves[block % 2].add(meet.reshape(len(design), -1), root_Q1[:, 0] * left_Q[rows].astype(np.float32))
        whole = halves[0] + halves[1]
        loss_R = [
            sum(other.loss(one.solve(ridge, num_actions)) for one, other in (halves, halves[::-1]))
            if min(half.num for half in halves) > 0
            else 0.0
            for ridge in self.ridges
        ]
        self.ridge = self.ridges[int(np.argmin(loss_R))]
        effect_AX = whole.solve(self.ridge, num_actions).reshape(num_actions, -1)
        # Under the logging policy effects average to 0, so that m stays the mean: their mean is told from x alone.
        mean = _Moments()
        for rows in _blocks(len(action_Q)):
            design = self._design(features_QX[rows], base_Q[rows])
            average_Q = (logging_QA[rows] * (design @ effect_AX.T)).sum(axis=1)
            mean.add(design, average_Q.astype(np.float32))
        self.effect_AX = effect_AX - mean.solve(1e-6, 1)

    def predict(self, features_QX: np.ndarray, action_AY: np.ndarray) -> np.ndarray:
        num_actions = len(self.effect_AX)
        if len(action_AY) > num_actions:
            raise InputError(
                "outcome.proportional knows the actions that it was fitted on and cannot score a new one. "
                "Use outcome=[gradient_boosting] with decisions.action_features."
            )
        base_Q = self._base(features_QX)
        found_QA = np.empty((len(base_Q), num_actions))
        for rows in _blocks(len(base_Q)):
            found_QA[rows] = base_Q[rows, None] + self._design(features_QX[rows], base_Q[rows]) @ self.effect_AX.T
        return found_QA

    def arrays(self) -> dict[str, np.ndarray]:
        trees = self.base if isinstance(self.base, Trees) else Trees.of(self.base)
        found = {"effect_AX": self.effect_AX, "middle_X": self.middle_X, "spread_X": self.spread_X}
        found["scale"] = np.array([self.scale])
        return found | {f"base.{name}": value for name, value in trees.arrays().items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> ProportionalOutcome:
        model = cls()
        head = "base."
        model.base = Trees.from_arrays({n.removeprefix(head): arrays[n] for n in arrays if n.startswith(head)})
        model.effect_AX, model.scale = arrays["effect_AX"], float(arrays["scale"][0])
        model.middle_X, model.spread_X = arrays["middle_X"], arrays["spread_X"]
        return model

    def _boost(self, features_QX: np.ndarray, reward_Q: np.ndarray, weight_Q: np.ndarray, seed: int) -> None:
        import sklearn.ensemble  # the thread limit reaches libraries that are loaded by then
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        rows = np.arange(len(reward_Q))
        if len(rows) > self.base_rows:
            rows = np.sort(np.random.default_rng(seed).choice(len(rows), self.base_rows, replace=False))
        seen_QX = features_QX[rows]
        empty_X = np.isnan(seen_QX).all(axis=0)
        if empty_X.any():  # the library cannot bin a column without a value; a constant is never split on
            seen_QX = np.where(empty_X, 0.0, seen_QX)
        smallest = min(self.settings["min_samples_leaf"], max(len(rows) // 20, 1))
        settings = self.settings | {"min_samples_leaf": smallest}
        with threadpool_limits(self.num_threads, user_api="openmp"):
            self.base: Any = sklearn.ensemble.HistGradientBoostingRegressor(
                max_iter=self.num_trees, random_state=seed, **settings
            ).fit(seen_QX, reward_Q[rows], sample_weight=weight_Q[rows])

    def _base(self, features_QX: np.ndarray) -> np.ndarray:
        from threadpoolctl import threadpool_limits

        with threadpool_limits(self.num_threads, user_api="openmp"):
            return np.asarray(self.base.predict(features_QX), dtype=np.float64)

    def _standardise(self, features_QX: np.ndarray) -> None:
        """Mean and spread of each feature where it is known; one that does not vary, or never is, says nothing."""
        num_X, sum_X, square_X = (np.zeros(features_QX.shape[1]) for _ in range(3))
        origin_X = np.nan_to_num(np.asarray(features_QX[0], dtype=np.float64), posinf=0.0, neginf=0.0)
        for rows in _blocks(len(features_QX)):
            known = np.isfinite(features_QX[rows])
            moved = np.where(known, features_QX[rows] - origin_X, 0.0)
            num_X += known.sum(axis=0)
            sum_X += moved.sum(axis=0)
            square_X += (moved**2).sum(axis=0)
        num_X = np.maximum(num_X, 1)
        self.middle_X = origin_X + sum_X / num_X
        spread_X = np.sqrt(np.maximum(square_X / num_X - (sum_X / num_X) ** 2, 0.0))
        self.spread_X = np.where(spread_X > 1e-9 * (1.0 + np.abs(self.middle_X)), spread_X, np.inf)

    def _design(self, features_QX: np.ndarray, base_Q: np.ndarray) -> np.ndarray:
        """float32 [Q, 2 X + 2]: one, the features, m, and m times the features."""
        num, num_features = features_QX.shape
        scaled = (features_QX - self.middle_X) / self.spread_X
        scaled = np.clip(np.where(np.isfinite(scaled), scaled, 0.0), -MAX_STANDARD, MAX_STANDARD)
        size_Q = np.clip(base_Q / self.scale, -MAX_SCALE, MAX_SCALE)
        design = np.empty((num, 2 * num_features + 2), dtype=np.float32)
        design[:, 0], design[:, 1] = 1.0, size_Q
        design[:, 2 : num_features + 2] = scaled
        design[:, num_features + 2 :] = size_Q[:, None] * scaled
        return design


class _Moments:
    """Sums of products of a regression, from which it is solved and judged for any penalty."""

    def __init__(self) -> None:
        self.square: np.ndarray | float = 0.0
        self.aim: np.ndarray | float = 0.0
        self.num = 0

    def add(self, design_QZ: np.ndarray, aim_Q: np.ndarray) -> None:
        # Products of a block in float32, their sum in float64.
        self.square = self.square + (design_QZ.T @ design_QZ).astype(np.float64)
        self.aim = self.aim + (design_QZ.T @ aim_Q).astype(np.float64)
        self.num += len(aim_Q)

    def __add__(self, other: _Moments) -> _Moments:
        both = _Moments()
        both.square, both.aim, both.num = self.square + other.square, self.aim + other.aim, self.num + other.num
        return both

    def solve(self, ridge: float, num_parts: int) -> np.ndarray:
        """Coefficients [Z]; each but the first of each of ``num_parts`` is penalised by a share of its information."""
        square = np.asarray(self.square)
        own_Z = np.diag(square)
        per_part = len(own_Z) // num_parts
        penalty_Z = ridge * own_Z + 1e-6 * max(float(own_Z.mean()), 1e-12)
        penalty_Z[::per_part] = 1e-4 * own_Z[::per_part] + 1e-6 * max(float(own_Z.mean()), 1e-12)
        return np.linalg.solve(square + np.diag(penalty_Z), np.asarray(self.aim))

    def loss(self, coefficient_Z: np.ndarray) -> float:
        """Sum of squares that the coefficients leave here, but for a constant."""
        return float(coefficient_Z @ self.square @ coefficient_Z - 2 * coefficient_Z @ self.aim)


def _variances(base_Q: np.ndarray, left_Q: np.ndarray, weight_Q: np.ndarray) -> np.ndarray:
    """Variance [Q] of what is left, at each row's level of the base."""
    edges = np.unique(np.quantile(base_Q, np.linspace(0, 1, NUM_LEVELS + 1)[1:-1]))
    level_Q = np.searchsorted(edges, base_Q, side="right")
    mass_G = np.bincount(level_Q, weights=weight_Q, minlength=len(edges) + 1)
    square_G = np.bincount(level_Q, weights=weight_Q * left_Q**2, minlength=len(edges) + 1)
    mean = float(square_G.sum() / max(mass_G.sum(), 1e-12))
    variance_G = np.where(mass_G > 0, square_G / np.maximum(mass_G, 1e-12), mean)
    return np.asarray(np.maximum(variance_G, max(LEAST_VARIANCE * mean, 1e-12))[level_Q])


def _blocks(num: int) -> Iterator[slice]:
    """Slices of rows; a small table is cut in eight, so that both halves see all of it."""
    step = min(CHUNK_ROWS, max(-(-num // 8), 1))
    for start in range(0, num, step):
        yield slice(start, min(start + step, num))
