"""Who gains from a contact: Qini and AUUC, TOC and RATE, each with interval and null distribution.

All read one column, the doubly-robust score of the gain, ``scores[:, arm] - scores[:, none]``: in an experiment with
known propensities and no model it is the plain difference of weighted means, and in a log it does not mistake who was
contacted for who gained (METHODS 2.2, 6).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from constellation.policies.intervals import numbered


@dataclass(frozen=True)
class Curve:
    """Gain per customer against the share contacted.

    share_P, gain_P: points of the curve, from (0, 0). area: its mean height over that of contacting at random, the
    unnormalised Qini; auuc: its mean height alone. low, high: 95 % interval of ``area`` over resamples of customers;
    null_low, null_high: where ``area`` lies in 95 of 100 random orders. p_value: share of random orders that do as
    well.
    """

    share_P: np.ndarray
    gain_P: np.ndarray
    area: float
    auuc: float
    low: float
    high: float
    null_low: float
    null_high: float
    p_value: float

    @property
    def shown(self) -> bool:
        """Whether the order is told from a random one and its interval lies above 0."""
        return self.area > self.null_high and self.low > 0


def qini(
    priority_Q: np.ndarray,
    gain_Q: np.ndarray,
    customer_Q: np.ndarray | None = None,
    *,
    num_resamples: int = 300,
    seed: int = 0,
    num_points: int = 101,
) -> Curve:
    """Contact in the order of ``priority_Q``, greatest first; ``gain_Q`` is the doubly-robust score of the gain.

    gain(s) = sum of the scores of the first share s over the number of decisions; area = mean over s of
    gain(s) - s gain(1). Not normalised: dividing by the area of a perfect order, as some do, has no bound where effects
    are negative and lets no two data sets be compared. Ties share their order evenly.
    """
    rng = np.random.default_rng(seed)
    customer_Q = np.arange(len(gain_Q)) if customer_Q is None else numbered(customer_Q)
    weight_Q = np.ones(len(gain_Q))
    groups_Q = _ranked(priority_Q)
    area, auuc = _area(groups_Q, gain_Q, weight_Q)
    num = int(customer_Q.max()) + 1
    resampled, random = [], []
    for _ in range(num_resamples):
        counts_C = np.bincount(rng.integers(0, num, num), minlength=num)
        resampled.append(_area(groups_Q, gain_Q, counts_C[customer_Q].astype(np.float64))[0])
        random.append(_area(rng.permutation(groups_Q), gain_Q, weight_Q)[0])
    low, high = np.quantile(resampled, [0.025, 0.975])
    null_low, null_high = np.quantile(random, [0.025, 0.975])
    share_P = np.linspace(0, 1, num_points)
    share_G, gain_G = _curve(groups_Q, gain_Q, weight_Q)
    p_value = (1 + np.sum(np.array(random) >= area)) / (1 + num_resamples)
    return Curve(
        share_P, np.interp(share_P, share_G, gain_G), area, auuc, float(low), float(high), float(null_low),
        float(null_high), float(p_value),
    )  # fmt: skip


def targeting(
    priority_Q: np.ndarray, gain_Q: np.ndarray, shares: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """TOC (Yadlowsky, Fleming, Shah, Brunskill and Wager 2024): mean gain of the first share, less that of all.

    Returns shares [P] and TOC [P].
    """
    shares = np.linspace(0.01, 1.0, 100) if shares is None else shares
    share_G, gain_G = _curve(_ranked(priority_Q), gain_Q, np.ones(len(gain_Q)))
    return shares, np.interp(shares, share_G, gain_G) / shares - gain_G[-1]


@dataclass(frozen=True)
class Rate:
    """Rank-weighted average treatment effect with its standard error; 0 where the order knows nothing of the gain."""

    value: float
    standard_error: float
    low: float
    high: float
    p_value: float


def rate(
    priority_Q: np.ndarray,
    gain_Q: np.ndarray,
    customer_Q: np.ndarray | None = None,
    *,
    weighting: str = "autoc",
    num_resamples: int = 300,
    seed: int = 0,
) -> Rate:
    """RATE of Yadlowsky et al. (2024): the area under TOC, ``autoc``, or weighted by the share, ``qini``.

    The standard error is that of half-sample resampling of customers, as the authors do it. The two-sided p-value is
    for "the order knows nothing of the gain".
    """
    from scipy import stats

    assert weighting in ("autoc", "qini")
    rng = np.random.default_rng(seed)
    customer_Q = np.arange(len(gain_Q)) if customer_Q is None else numbered(customer_Q)
    groups_Q = _ranked(priority_Q)

    def value(weight_Q: np.ndarray) -> float:
        share_G, gain_G = _curve(groups_Q, gain_Q, weight_Q)
        widths, ends = np.diff(share_G), share_G[1:]
        middle = (gain_G[1:] + gain_G[:-1]) / 2
        if weighting == "qini":
            return float((widths * middle).sum() - gain_G[-1] / 2)
        kept = ends > 0
        return float((widths[kept] * (gain_G[1:][kept] / ends[kept] - gain_G[-1])).sum())

    estimate = value(np.ones(len(gain_Q)))
    num = int(customer_Q.max()) + 1
    halves = []
    for _ in range(num_resamples):
        half_C = np.zeros(num)
        half_C[rng.permutation(num)[: num // 2]] = 1.0
        halves.append(value(half_C[customer_Q]))
    error = float(np.std(halves, ddof=1))  # a half-sample differs from the whole as the whole from the truth
    p_value = 2 * float(stats.norm.sf(abs(estimate) / error)) if error > 0 else 1.0
    return Rate(estimate, error, estimate - 1.96 * error, estimate + 1.96 * error, p_value)


def _ranked(priority_Q: np.ndarray) -> np.ndarray:
    """Rank [Q] from 0 for the greatest priority; equal priorities have the same."""
    return np.unique(-np.asarray(priority_Q, dtype=np.float64), return_inverse=True)[1]


def _curve(groups_Q: np.ndarray, gain_Q: np.ndarray, weight_Q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share contacted and gain per decision after each group of equals, both from 0."""
    count_G = np.bincount(groups_Q, weights=weight_Q)
    sum_G = np.bincount(groups_Q, weights=weight_Q * gain_Q)
    total = weight_Q.sum()
    return np.concatenate([[0.0], count_G.cumsum() / total]), np.concatenate([[0.0], sum_G.cumsum() / total])


def _area(groups_Q: np.ndarray, gain_Q: np.ndarray, weight_Q: np.ndarray) -> tuple[float, float]:
    share_G, gain_G = _curve(groups_Q, gain_Q, weight_Q)
    height = float(((gain_G[1:] + gain_G[:-1]) / 2 * np.diff(share_G)).sum())
    return height - float(gain_G[-1]) / 2, height
