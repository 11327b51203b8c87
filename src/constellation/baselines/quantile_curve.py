"""A quantile function from a handful of quantiles."""

from __future__ import annotations

import numpy as np
from scipy import special


def interpolate_quantiles(
    knot_levels_P: np.ndarray, knots_QP: np.ndarray, p_zero_Q: np.ndarray, levels_L: np.ndarray
) -> np.ndarray:
    """Quantiles [Q, L] of y >= 0 at ``levels_L``, never falling in the level, 0 up to level P(zero).

    knot_levels_P: ascending, in (0, 1), at least two. knots_QP: quantiles of log(1 + y) there; crossed ones are put in
    order (Chernozhukov, Fernández-Val, Galichon 2010). Between knots log(1 + y) is linear in the normal score of the
    level and goes on so beyond the outer ones: log-normal tails, as money has.
    """
    knots_QP = np.sort(knots_QP, axis=1)
    score_P, score_L = special.ndtri(knot_levels_P), special.ndtri(np.asarray(levels_L, dtype=np.float64))
    right_L = np.clip(np.searchsorted(score_P, score_L), 1, len(score_P) - 1)
    share_L = (score_L - score_P[right_L - 1]) / (score_P[right_L] - score_P[right_L - 1])
    left_QL = knots_QP[:, right_L - 1]
    log_QL = left_QL + share_L * (knots_QP[:, right_L] - left_QL)
    value_QL = np.expm1(np.maximum(log_QL, 0.0))
    return np.where(np.asarray(levels_L) <= p_zero_Q[:, None], 0.0, value_QL)
