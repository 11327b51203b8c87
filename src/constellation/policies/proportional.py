"""What an action adds, learned apart from what a customer brings anyway, and in proportion to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from constellation.errors import InputError
from constellation.policies.moments import Moments
from constellation.policies.outcomes import MAX_STANDARD, OutcomeModel, binnable
from constellation.policies.response import Responses, responded
from constellation.policies.trees import Trees

CHUNK_ROWS = 32_768
NUM_LEVELS = 20
"""Of the expected reward, each with a variance of its own."""
LEAST_VARIANCE = 0.05
"""Of a level, over the mean variance: no customer is known without noise."""
MAX_SCALE = 10.0
RELEVANCE = "relevance"
MAX_RELEVANT = 2_000
"""Coefficients up to which relevance is tried: every turn inverts their matrix."""


class ProportionalOutcome(OutcomeModel):
    """``q(x, a) = m(x) + e(x, a) - mean of e under the logging policy``, e linear in ``[1, x, m, m x]``.

    m is boosted: the expected reward whatever is done. e minimises the R-loss (Nie and Wager 2021, eq. 4, with known
    propensities, for many actions): ``sum w (r - m(x) - sum_a (1[chosen = a] - logging(a|x)) e(x, a))^2``. Since the
    indicators less their propensities average to 0 for every customer, what a customer brings anyway cannot pass for
    an effect, however poorly m tells it. Products with m let an effect grow with what the customer spends, as effects
    on the rate of purchases do. w is 1 / variance at the customer's level of m: who spends much is noisy.

    e is drawn to 0 by the prior with the least R-loss on other rows: each half of the blocks of rows is learned from
    and judged by the other. Either every coefficient by the same share of the information that the rows hold about
    it, one of ``ridges``; or each by its own relevance (``Moments.relevant``), so that of hundreds of coefficients
    those few are left that are told from noise, taken ``caution`` times as great as it is: coefficients one by one, or
    a feature's for all actions together. Then all effects of a customer get two factors of how strongly she responds
    (``Responses``), counted from the action most often chosen. An empty ``caution``, the default, leaves both out:
    they tell single decisions better, but no better policy was shown where one decision leads to the next
    (experiments/0010-loyalty). base_rows: m is boosted on at most so many, drawn by the seed.
    """

    name = "proportional"
    reads_propensities = True
    shrinks_itself = True

    def __init__(
        self,
        *,
        num_trees: int = 50,
        learning_rate: float = 0.1,
        max_leaf_nodes: int = 16,
        min_samples_leaf: int = 200,
        base_rows: int = 300_000,
        ridges: tuple[float, ...] = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
        caution: tuple[float, ...] = (),
        num_threads: int = 1,
    ) -> None:
        if num_trees < 1 or base_rows < 1 or not ridges or min(ridges) <= 0:
            raise InputError(
                "outcome.proportional needs num_trees and base_rows of 1 or more, and ridges above 0, "
                f"found {num_trees}, {base_rows}, {list(ridges)}."
            )
        if caution and min(caution) <= 0:
            raise InputError(f"outcome.proportional.caution must be above 0, found {list(caution)}.")
        self.num_trees, self.base_rows, self.num_threads = num_trees, base_rows, num_threads
        self.ridges, self.caution = tuple(ridges), tuple(caution)
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
        halves = [Moments(), Moments()]
        for block, rows in enumerate(_blocks(len(action_Q))):
            design = self._design(features_QX[rows], base_Q[rows])
            root_Q1 = np.sqrt(certainty_Q[rows]).astype(np.float32)[:, None]
            meet = (root_Q1 * moved_QA[rows])[:, :, None] * design[:, None, :]
            halves[block % 2].add(meet.reshape(len(design), -1), root_Q1[:, 0] * left_Q[rows].astype(np.float32))
        noise = float(np.mean(certainty_Q * left_Q**2))
        self.prior, effects_KAX = self._chosen(halves, noise, num_actions)
        self.effect_AX = effects_KAX[2]
        self.reference = int(np.bincount(action_Q, weights=weight_Q, minlength=num_actions).argmax())
        self.response_2G = np.zeros((2, features_QX.shape[1] + 2))
        if self.prior.startswith(RELEVANCE):
            responses = Responses(effects_KAX, self.reference)
            for block, rows in enumerate(_blocks(len(action_Q))):
                design = self._design(features_QX[rows], base_Q[rows])
                root_Q = np.sqrt(certainty_Q[rows]).astype(np.float32)
                responses.add(block % 2, design, self._common(design), moved_QA[rows], left_Q[rows], root_Q)
            self.response_2G = responses.learned(noise, self.caution)
        # Under the logging policy effects average to 0, so that m stays the mean: their mean is told from x alone.
        mean = Moments()
        for rows in _blocks(len(action_Q)):
            design = self._design(features_QX[rows], base_Q[rows])
            average_Q = (logging_QA[rows] * self._effects(design)).sum(axis=1)
            mean.add(design, average_Q.astype(np.float32))
        self.shift_X = mean.solve(1e-6, 1)

    def _effects(self, design_QX: np.ndarray) -> np.ndarray:
        """[Q, A], but for what is the same for all actions."""
        return responded(design_QX @ self.effect_AX.T, self._common(design_QX), self.response_2G, self.reference)

    def _common(self, design_QX: np.ndarray) -> np.ndarray:
        """One, m, and the features."""
        return design_QX[:, : self.response_2G.shape[1]]

    def _chosen(self, halves: list[Moments], noise: float, num_actions: int) -> tuple[str, list[np.ndarray]]:
        """The prior that tells the other half best, in words; under it the coefficients [A, X] of the first half, of
        the second and of all rows."""
        num = len(np.asarray(halves[0].aim))
        priors: dict[str, Callable[[Moments], np.ndarray]] = {
            f"ridge {ridge:g}": lambda part, ridge=ridge: part.solve(ridge, num_actions)  # type: ignore[misc]
            for ridge in self.ridges
        }
        place_Z = np.arange(num) % (num // num_actions)  # of the feature within its action
        groups = {"coefficient": np.where(place_Z > 0, np.arange(num), -1), "feature": place_Z - 1}
        for caution in self.caution if num <= MAX_RELEVANT else ():
            for what, group_Z in groups.items():
                priors[f"{RELEVANCE} of each {what}, caution {caution:g}"] = (
                    lambda part, caution=caution, group_Z=group_Z: part.relevant(caution * noise, group_Z)  # type: ignore[misc]
                )
        if min(half.num for half in halves) == 0:
            name = next(iter(priors))
        else:
            loss = {
                name: sum(other.loss(prior(one)) for one, other in (halves, halves[::-1]))
                for name, prior in priors.items()
            }
            name = min(loss, key=lambda each: loss[each])
        parts = [*halves, halves[0] + halves[1]] if min(half.num for half in halves) else [halves[0] + halves[1]] * 3
        return name, [priors[name](part).reshape(num_actions, -1) for part in parts]

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
            design = self._design(features_QX[rows], base_Q[rows])
            found_QA[rows] = (base_Q[rows] - design @ self.shift_X)[:, None] + self._effects(design)
        return found_QA

    def arrays(self) -> dict[str, np.ndarray]:
        trees = self.base if isinstance(self.base, Trees) else Trees.of(self.base)
        found = {"effect_AX": self.effect_AX, "middle_X": self.middle_X, "spread_X": self.spread_X}
        found |= {"shift_X": self.shift_X, "response_2G": self.response_2G}
        found |= {"scale": np.array([self.scale]), "reference": np.array([self.reference])}
        return found | {f"base.{name}": value for name, value in trees.arrays().items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> ProportionalOutcome:
        model = cls()
        head = "base."
        model.base = Trees.from_arrays({n.removeprefix(head): arrays[n] for n in arrays if n.startswith(head)})
        model.effect_AX, model.scale = arrays["effect_AX"], float(arrays["scale"][0])
        model.middle_X, model.spread_X = arrays["middle_X"], arrays["spread_X"]
        # Bundles of an earlier release know no factors, and have the shift within the effects.
        model.shift_X = arrays.get("shift_X", np.zeros(model.effect_AX.shape[1]))
        model.response_2G = arrays.get("response_2G", np.zeros((2, len(model.middle_X) + 2)))
        model.reference = int(arrays["reference"][0]) if "reference" in arrays else 0
        return model

    def _boost(self, features_QX: np.ndarray, reward_Q: np.ndarray, weight_Q: np.ndarray, seed: int) -> None:
        import sklearn.ensemble  # the thread limit reaches libraries that are loaded by then
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        rows = np.arange(len(reward_Q))
        if len(rows) > self.base_rows:
            rows = np.sort(np.random.default_rng(seed).choice(len(rows), self.base_rows, replace=False))
        smallest = min(self.settings["min_samples_leaf"], max(len(rows) // 20, 1))
        settings = self.settings | {"min_samples_leaf": smallest}
        with threadpool_limits(self.num_threads, user_api="openmp"):
            self.base: Any = sklearn.ensemble.HistGradientBoostingRegressor(
                max_iter=self.num_trees, random_state=seed, **settings
            ).fit(binnable(features_QX[rows]), reward_Q[rows], sample_weight=weight_Q[rows])

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
