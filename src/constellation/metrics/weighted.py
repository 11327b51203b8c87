"""Weighted rank and decile statistics that sort once and then cost a cumulative sum per resample.

Weights are `[R, Q]`: R resamples (or one row of ones) over Q rows. Ties never depend on the order of rows: tied rows
share their middle rank, and share the bins they fall into.
"""

import numpy as np


class CentredRanks:
    """Weighted mid-ranks of one column, minus half the total weight (so their weighted mean is 0)."""

    def __init__(self, values_Q: np.ndarray) -> None:
        self.order_Q = np.argsort(values_Q, kind="stable")
        sorted_Q = values_Q[self.order_Q]
        self.below_Q = np.searchsorted(sorted_Q, values_Q, side="left")
        self.through_Q = np.searchsorted(sorted_Q, values_Q, side="right")

    def __call__(self, weights_RQ: np.ndarray) -> np.ndarray:
        """-> `[R, Q]`, in the order of the rows."""
        num_resamples, num_rows = weights_RQ.shape
        cumulative = np.zeros((num_resamples, num_rows + 1))
        np.cumsum(np.take(weights_RQ, self.order_Q, axis=1), axis=1, out=cumulative[:, 1:])
        ranks_RQ = np.take(cumulative, self.below_Q, axis=1)
        ranks_RQ += np.take(cumulative, self.through_Q, axis=1)
        ranks_RQ -= cumulative[:, -1:]
        ranks_RQ *= 0.5
        return ranks_RQ


class EqualCountBins:
    """Means of prediction and outcome in bins of equal weight, lowest predictions first.

    A bin boundary may cut a row, and a group of equal predictions is spread evenly over the bins it spans: bins are
    differences of the piecewise linear cumulative curves at `k / num_bins` of the weight.
    """

    def __init__(self, realised_Q: np.ndarray, predicted_Q: np.ndarray, num_bins: int = 10) -> None:
        self.num_bins = num_bins
        self.order_Q = np.argsort(predicted_Q, kind="stable")
        self.predicted_Q = predicted_Q[self.order_Q]
        self.realised_Q = realised_Q[self.order_Q]
        is_last_Q = np.append(self.predicted_Q[1:] != self.predicted_Q[:-1], True)
        self.ends_G = np.flatnonzero(is_last_Q)

    def __call__(self, weights_RQ: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """-> (predicted mean `[R, num_bins]`, realised mean `[R, num_bins]`)."""
        sorted_RQ = np.take(weights_RQ, self.order_Q, axis=1)
        weight_RG = self._curve(sorted_RQ)
        predicted_RG = self._curve(sorted_RQ * self.predicted_Q)
        realised_RG = self._curve(sorted_RQ * self.realised_Q)
        means = np.empty((2, len(weights_RQ), self.num_bins))
        shares = np.arange(self.num_bins + 1) / self.num_bins
        for row, weight_G in enumerate(weight_RG):
            total = weight_G[-1]
            bounds = shares * total
            means[0, row] = np.diff(np.interp(bounds, weight_G, predicted_RG[row]))
            means[1, row] = np.diff(np.interp(bounds, weight_G, realised_RG[row]))
            means[:, row] *= self.num_bins / total
        return means[0], means[1]

    def _curve(self, terms_RQ: np.ndarray) -> np.ndarray:
        """Cumulative sums at the end of each group of equal predictions, from 0."""
        curve_RG = np.zeros((len(terms_RQ), len(self.ends_G) + 1))
        curve_RG[:, 1:] = np.cumsum(terms_RQ, axis=1)[:, self.ends_G]
        return curve_RG


def divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Ratio; NaN, silently, where the denominator is 0: the statistic is undefined there."""
    result = np.full(np.broadcast_shapes(np.shape(numerator), np.shape(denominator)), np.nan)
    return np.divide(numerator, denominator, out=result, where=np.asarray(denominator) != 0)


def dot(left_RQ: np.ndarray, right_RQ: np.ndarray) -> np.ndarray:
    return np.einsum("rq,rq->r", left_RQ, right_RQ)


def spearman(weights_RQ: np.ndarray, ranks_RQ: np.ndarray, other_RQ: np.ndarray) -> np.ndarray:
    """Weighted Pearson correlation of centred mid-ranks; NaN where a column is constant."""
    weighted_RQ = weights_RQ * ranks_RQ
    square = dot(weighted_RQ, ranks_RQ) * dot(weights_RQ * other_RQ, other_RQ)
    return divide(dot(weighted_RQ, other_RQ), np.sqrt(square))


def gini_normalised(
    weights_RQ: np.ndarray, realised_Q: np.ndarray, predicted_ranks_RQ: np.ndarray, realised_ranks_RQ: np.ndarray
) -> np.ndarray:
    """Gini of the model's ranking over the Gini of the perfect ranking.

    Gini = 2 cov(y, rank) / (mean(y) W), the area between diagonal and Lorenz curve (Lerman & Yitzhaki 1984); mean and W
    cancel in the ratio. So refunds (negative y) need no clipping, a total of zero or below does no harm, and the ratio
    stays in [-1, 1] by the rearrangement inequality. NaN where all realised values are equal.
    """
    value_RQ = weights_RQ * realised_Q
    return divide(dot(value_RQ, predicted_ranks_RQ), dot(value_RQ, realised_ranks_RQ))


def auc(weights_RQ: np.ndarray, positive_Q: np.ndarray, score_ranks_RQ: np.ndarray) -> np.ndarray:
    """P(score of a positive > score of a negative) + half the ties (Mann-Whitney); NaN with one class only."""
    positive_RQ = weights_RQ * positive_Q
    num_positive = positive_RQ.sum(axis=1)
    num_negative = weights_RQ.sum(axis=1) - num_positive
    return 0.5 + divide(dot(positive_RQ, score_ranks_RQ), num_positive * num_negative)
