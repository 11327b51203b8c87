"""Boosted trees as plain arrays: what a fitted ensemble of scikit-learn knows, without a pickle or the library.

Every leaf of a tree is a bit; a condition that fails clears the bits of its left subtree, one that holds those of its
right subtree, and the bit that is left is the leaf (Lucchese et al. 2015, "QuickScorer"). So a tree costs two passes
over the rows per condition, and no walk of each row through the tree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

WORD = 64
CHUNK_ROWS = 16_384


@dataclass(frozen=True)
class Trees:
    """Sum of ``T`` trees over ``X`` features, for ``O`` outputs.

    baseline_O: of each output. output_T: the output that a tree adds to. tree_N, feature_N, threshold_N,
    missing_left_N: the conditions of all trees, ``x <= threshold`` goes left, NaN where ``missing_left``. fails_NW,
    holds_NW: uint64 masks of the leaves that remain where a condition fails or holds.
    value_L, leaf_start_T: leaves of all trees, from left to right, and where those of each tree begin.
    """

    baseline_O: np.ndarray
    output_T: np.ndarray
    tree_N: np.ndarray
    feature_N: np.ndarray
    threshold_N: np.ndarray
    missing_left_N: np.ndarray
    fails_NW: np.ndarray
    holds_NW: np.ndarray
    value_L: np.ndarray
    leaf_start_T: np.ndarray

    @classmethod
    def of(cls, model: Any) -> Trees:
        """From a fitted ``HistGradientBoostingRegressor`` or ``-Classifier`` of numeric features; values on the scale
        of its link."""
        baseline_O = np.asarray(model._baseline_prediction, dtype=np.float64).ravel()
        trees = [(output, each.nodes) for turn in model._predictors for output, each in enumerate(turn)]
        words = max([1, *(-(-int(nodes["is_leaf"].sum()) // WORD) for _, nodes in trees)])
        conditions: list[tuple[int, int, float, bool]] = []
        fails: list[np.ndarray] = []
        holds: list[np.ndarray] = []
        values: list[float] = []
        starts = [0]
        for place, (_, nodes) in enumerate(trees):
            leaves = _leaves_below(nodes)
            first = len(values)
            for node, (begin, end) in enumerate(leaves):
                row = nodes[node]
                if row["is_leaf"]:
                    continue
                assert not row["is_categorical"]
                conditions.append(
                    (place, int(row["feature_idx"]), float(row["num_threshold"]), bool(row["missing_go_to_left"]))
                )
                middle = leaves[int(row["left"])][1]
                fails.append(_all_but(begin, middle, words))
                holds.append(_all_but(middle, end, words))
            order = [node for node in range(len(nodes)) if nodes[node]["is_leaf"]]
            order.sort(key=lambda node: leaves[node][0])
            values += [float(nodes[node]["value"]) for node in order]
            starts.append(first + len(order))
        columns = list(zip(*conditions, strict=True)) or [(), (), (), ()]
        empty = np.zeros((0, words), dtype=np.uint64)
        return cls(
            baseline_O=baseline_O,
            output_T=np.array([output for output, _ in trees], dtype=np.int64),
            tree_N=np.array(columns[0], dtype=np.int64),
            feature_N=np.array(columns[1], dtype=np.int64),
            threshold_N=np.array(columns[2], dtype=np.float64),
            missing_left_N=np.array(columns[3], dtype=bool),
            fails_NW=np.stack(fails) if fails else empty,
            holds_NW=np.stack(holds) if holds else empty,
            value_L=np.array(values, dtype=np.float64),
            leaf_start_T=np.array(starts, dtype=np.int64),
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """By field, in kinds that safetensors hold."""
        found = {name: np.asarray(value) for name, value in vars(self).items()}
        return {
            name: value.astype(np.int64)
            if value.dtype == bool
            else value.view(np.int64)
            if name.endswith("_NW")
            else value
            for name, value in found.items()
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Trees:
        found = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
        found["missing_left_N"] = found["missing_left_N"].astype(bool)
        for name in ("fails_NW", "holds_NW"):
            found[name] = found[name].view(np.uint64)
        return cls(**found)

    def predict(self, features_QX: np.ndarray) -> np.ndarray:
        """[Q] where there is one output, else [Q, O]; float64."""
        found_QO = self.add(features_QX, ())
        return found_QO[:, 0] if len(self.baseline_O) == 1 else found_QO

    def add(self, features_QX: np.ndarray, constants: Sequence[float]) -> np.ndarray:
        """Outputs [Q, O] where ``constants`` are the same further features for every row, behind those of the table:
        conditions on them are decided once, not row by row."""
        num, num_own = len(features_QX), features_QX.shape[1]
        found_QO = np.tile(self.baseline_O, (num, 1))
        bounds_T = np.searchsorted(self.tree_N, np.arange(len(self.output_T) + 1))
        for start in range(0, num, CHUNK_ROWS):
            part_XQ = np.ascontiguousarray(features_QX[start : start + CHUNK_ROWS].T, dtype=np.float64)
            missing_XQ = np.isnan(part_XQ)
            for tree in range(len(self.output_T)):
                conditions = range(bounds_T[tree], bounds_T[tree + 1])
                leaf_Q = self._leaves(tree, conditions, part_XQ, missing_XQ, constants, num_own)
                found_QO[start : start + CHUNK_ROWS, self.output_T[tree]] += self.value_L[leaf_Q]
        return found_QO

    def _leaves(
        self,
        tree: int,
        conditions: range,
        part_XQ: np.ndarray,
        missing_XQ: np.ndarray,
        constants: Sequence[float],
        num_own: int,
    ) -> np.ndarray:
        words = self.fails_NW.shape[1]
        left_WQ = np.full((words, part_XQ.shape[1]), ~np.uint64(0))
        for condition in conditions:
            feature = int(self.feature_N[condition])
            if feature >= num_own:
                value = constants[feature - num_own]
                holds = bool(self.missing_left_N[condition]) if value != value else value <= self.threshold_N[condition]
                left_WQ &= (self.holds_NW if holds else self.fails_NW)[condition][:, None]
                continue
            holds_Q = part_XQ[feature] <= self.threshold_N[condition]
            if self.missing_left_N[condition]:
                holds_Q |= missing_XQ[feature]
            for word in range(words):
                left_WQ[word] &= np.where(holds_Q, self.holds_NW[condition, word], self.fails_NW[condition, word])
        leaf_Q = np.zeros(part_XQ.shape[1], dtype=np.int64)
        for word in reversed(range(words)):
            lowest_Q = left_WQ[word] & (~left_WQ[word] + np.uint64(1))
            # A power of two is exact as a float, and its exponent is the place of the bit.
            place_Q = np.frexp(lowest_Q.astype(np.float64))[1] - 1 + word * WORD
            leaf_Q = np.where(lowest_Q != 0, place_Q, leaf_Q)
        return leaf_Q + self.leaf_start_T[tree]


def _leaves_below(nodes: np.ndarray) -> list[tuple[int, int]]:
    """For each node of a tree the half-open range of the leaves below it, counted from the left."""
    found: list[tuple[int, int]] = [(0, 0)] * len(nodes)
    count, todo = 0, [(0, False)]
    while todo:
        node, is_done = todo.pop()
        row = nodes[node]
        if row["is_leaf"]:
            found[node] = (count, count + 1)
            count += 1
        elif is_done:
            found[node] = (found[int(row["left"])][0], found[int(row["right"])][1])
        else:
            todo += [(node, True), (int(row["right"]), False), (int(row["left"]), False)]
    return found


def _all_but(begin: int, end: int, words: int) -> np.ndarray:
    """uint64 [W]: all bits but those from ``begin`` up to ``end``."""
    bits = ((1 << (words * WORD)) - 1) & ~(((1 << (end - begin)) - 1) << begin)
    return np.array([(bits >> (WORD * word)) & ((1 << WORD) - 1) for word in range(words)], dtype=np.uint64)
