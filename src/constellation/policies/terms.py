"""An off-policy estimate as columns: its value, its rows, and what a resample of customers makes of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Terms:
    """value = mean(base) + sum(numerator) / sum(denominator), over decisions.

    Every estimator of this room has this form: a plain mean has a denominator of ones, a self-normalised one has the
    weights there. So one bootstrap, one variance and one paired difference serve all of them.
    """

    base_Q: np.ndarray
    numerator_Q: np.ndarray
    denominator_Q: np.ndarray

    @classmethod
    def mean_of(cls, rows_Q: np.ndarray) -> Terms:
        return cls(np.asarray(rows_Q, dtype=np.float64), np.zeros(len(rows_Q)), np.ones(len(rows_Q)))

    def __len__(self) -> int:
        return len(self.base_Q)

    @property
    def ratio(self) -> float:
        total = float(self.denominator_Q.sum())
        return float(self.numerator_Q.sum()) / total if total > 0 else float("nan")

    @property
    def value(self) -> float:
        """NaN where a self-normalised estimate has no weight at all: nothing in the log looks like the target."""
        return float(self.base_Q.mean()) + self.ratio

    def rows(self) -> np.ndarray:
        """[Q], with mean ``value``; their variance is that of the estimate (the delta method for ratios)."""
        ratio = self.ratio
        return self.base_Q + ratio + (self.numerator_Q - ratio * self.denominator_Q) / self.denominator_Q.mean()

    def resampled(self, counts_RC: np.ndarray, customers: np.ndarray) -> np.ndarray:
        """Values [R] with customer c drawn ``counts_RC[r, c]`` times; ``customers`` [Q] numbers them from 0."""
        num = counts_RC.shape[1]

        def total(column_Q: np.ndarray) -> np.ndarray:
            return counts_RC @ np.bincount(customers, weights=column_Q, minlength=num)

        rows_R = total(np.ones(len(self)))
        with np.errstate(divide="ignore", invalid="ignore"):
            return total(self.base_Q) / rows_R + total(self.numerator_Q) / total(self.denominator_Q)
