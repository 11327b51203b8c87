"""What recalibration learned for one target: a map of the expected value, and distributions of the transform."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

GRID = 201
"""Points of [0, 1] at which the distribution of the transform is kept."""

TAIL_POINTS = 21
"""How many quantiles of what lay beyond the outermost quantile are kept."""


@dataclass
class Recalibration:
    """What was learned for one target; plain numbers, ``to_json`` and ``from_json``.

    mean_from, mean_to: points of a rising piecewise linear map of the expected value, beyond which its last ratio goes
    on; empty: unchanged. edges_G: inner edges of the groups of (recalibrated) expected value. transform_GP: in each
    group the distribution of the transform at ``GRID`` points; empty: the quantiles stay. above_GT, below_GT: how far
    outcomes lay beyond the outermost quantiles, in units of them, as ``TAIL_POINTS`` quantiles; 0 where few did.
    outermost: the lowest level of those quantiles, 1 less the highest. method: where it comes from.
    """

    target: str
    method: str
    mean_from: list[float] = field(default_factory=list)
    mean_to: list[float] = field(default_factory=list)
    edges_G: list[float] = field(default_factory=list)
    transform_GP: list[list[float]] = field(default_factory=list)
    above_GT: list[list[float]] = field(default_factory=list)
    below_GT: list[list[float]] = field(default_factory=list)
    num_rows: int = 0
    outermost: float = 0.005

    def mean(self, expected_Q: np.ndarray) -> np.ndarray:
        """The recalibrated expected value; 0 stays 0, and the order of customers stays."""
        if not self.mean_from:
            return expected_Q
        x, y = np.asarray(self.mean_from), np.asarray(self.mean_to)
        return np.where(expected_Q > x[-1], expected_Q * (y[-1] / x[-1]), np.interp(expected_Q, x, y))

    def apply(
        self,
        answers: Mapping[str, np.ndarray],
        asked: Sequence[float] | np.ndarray | None = None,
        levels: Sequence[float] | np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """Answers of this target in the place of those given: ``_expected``, and if there, ``_quantiles``, ``_p_zero``.

        The new distribution is ``G(F(y))``, where G is how the transform was distributed: its quantile at a level is
        the old one at ``G^-1(level)``, and P(zero) becomes ``G(P(zero))`` (Chernozhukov et al. 2021).
        asked: the levels of the quantiles given, ascending, by default the middles of equal shares; levels: those of
        the quantiles returned, by default the same. Between two levels asked quantiles are taken as straight.
        """
        old_Q = np.asarray(answers[f"{self.target}_expected"], dtype=np.float64)
        expected_Q = self.mean(old_Q)
        new = {f"{self.target}_expected": expected_Q}
        p_zero_Q, quantiles_QL = answers.get(f"{self.target}_p_zero"), answers.get(f"{self.target}_quantiles")
        group_Q = np.searchsorted(self.edges_G, expected_Q, side="right")
        groups = [(group, group_Q == group) for group in np.unique(group_Q).tolist()]
        if p_zero_Q is not None:
            new_p_Q = np.array(p_zero_Q, dtype=np.float64)
            for group, rows in groups if self.transform_GP and quantiles_QL is not None else ():
                new_p_Q[rows] = np.interp(new_p_Q[rows], _grid(), self.transform_GP[group])
            new[f"{self.target}_p_zero"] = new_p_Q
        if quantiles_QL is not None:
            asked_A = members(quantiles_QL.shape[1]) if asked is None else np.asarray(asked, dtype=np.float64)
            levels_L = asked_A if levels is None else np.asarray(levels, dtype=np.float64)
            new_QL = np.empty((len(old_Q), len(levels_L)))
            for group, rows in groups:
                old_RA = np.sort(np.asarray(quantiles_QL, dtype=np.float64)[rows], axis=1)
                new_QL[rows] = self._quantiles(old_RA, old_Q[rows], group, asked_A, levels_L)
            new[f"{self.target}_quantiles"] = new_QL
        return new

    def _quantiles(
        self, old_RA: np.ndarray, expected_R: np.ndarray, group: int, asked_A: np.ndarray, levels_L: np.ndarray
    ) -> np.ndarray:
        """The new quantiles of one group: inside the old ones by their places, beyond them by the tails."""
        transform = np.asarray(self.transform_GP[group]) if self.transform_GP else _grid()
        is_count = self.target.startswith("purchases")
        last_place = len(asked_A) - 1
        place_L = np.interp(np.interp(levels_L, transform, _grid()), asked_A, np.arange(len(asked_A)))
        place_L = np.rint(place_L) if is_count else place_L  # counts stay whole
        low_L = np.floor(place_L).astype(np.int64)
        share_L = place_L - low_L
        low_RL = old_RA[:, low_L]
        new_RL = low_RL + share_L * (old_RA[:, np.minimum(low_L + 1, last_place)] - low_RL)
        if self.transform_GP:
            bottom, top = (int(np.abs(asked_A - level).argmin()) for level in (self.outermost, 1 - self.outermost))
            first, last = np.interp([self.outermost, 1 - self.outermost], _grid(), transform)
            tail = np.linspace(0.0, 1.0, TAIL_POINTS)
            over_L, under_L = levels_L > last, levels_L < first
            if over_L.any() and any(self.above_GT[group]):
                beyond = np.interp((levels_L[over_L] - last) / max(1 - last, 1e-9), tail, self.above_GT[group])
                new_RL[:, over_L] = old_RA[:, [top]] + tail_unit(old_RA[:, top], expected_R)[:, None] * beyond
            if under_L.any() and any(self.below_GT[group]):
                short = np.interp(1 - levels_L[under_L] / max(first, 1e-9), tail, self.below_GT[group])
                new_RL[:, under_L] = old_RA[:, [bottom]] * (1 - short)
        return np.rint(new_RL) if is_count else new_RL

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Recalibration:
        return cls(**data)


def members(num_levels: int) -> np.ndarray:
    """Levels [L] of equally likely members: the middles of equal shares."""
    return (np.arange(num_levels) + 0.5) / num_levels


def _grid() -> np.ndarray:
    return np.linspace(0.0, 1.0, GRID)


def tail_unit(highest_Q: np.ndarray, expected_Q: np.ndarray) -> np.ndarray:
    """What a customer's upper tail is measured in: the uppermost quantile, or the mean where that is 0."""
    return np.where(highest_Q > 0, highest_Q, np.maximum(expected_Q, 0.0))
