"""Intervals of off-policy estimates. Rows of one customer belong together: all of these see customers, not rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from constellation.policies.terms import Terms


@dataclass(frozen=True)
class Interval:
    value: float
    low: float
    high: float


def numbered(customer_Q: np.ndarray) -> np.ndarray:
    """Customers numbered from 0 without gaps, [Q]."""
    return np.unique(customer_Q, return_inverse=True)[1]


def customer_rows(terms: Terms, customer_Q: np.ndarray) -> np.ndarray:
    """One row per customer [C], with the estimate as their mean: the sum of the customer's rows times C / Q."""
    place_Q = numbered(customer_Q)
    total_C = np.bincount(place_Q, weights=terms.rows())
    return total_C * (len(total_C) / len(terms))


def standard_error(terms: Terms, customer_Q: np.ndarray) -> float:
    """Of the estimate, clustered by customer; the number of rows of a customer is taken as it fell out."""
    place_Q = numbered(customer_Q)
    num = int(place_Q.max()) + 1
    if num < 2:
        return float("nan")
    # Around the mean row by row, so that customers with more decisions do not add to the variance by their number.
    total_C = np.bincount(place_Q, weights=terms.rows() - terms.value, minlength=num)
    return float(np.sqrt((total_C**2).sum() / (num - 1) * num) / len(terms))


def skewness(terms: Terms, customer_Q: np.ndarray) -> float:
    """Of the estimate, clustered by customer: ``sum c^3 / (sum c^2)^(3/2)``, c each customer's part around the mean.

    0 where nobody stands out, towards 1 or -1 where one customer carries it all. A log that has not yet seen its
    greatest rewards shows too little of it.
    """
    place_Q = numbered(customer_Q)
    total_C = np.bincount(place_Q, weights=terms.rows() - terms.value)
    square = float((total_C**2).sum())
    return float((total_C**3).sum()) / square**1.5 if square > 0 else 0.0


def miss_chances(skew: float, chance: float) -> tuple[float, float]:
    """How likely the truth lies below and above a Student interval that allows ``chance`` on either side.

    First order of the Edgeworth expansion of a studentised mean, ``chance -+ skew (2 z^2 + 1) phi(z) / 6`` (Hall 1992,
    "The Bootstrap and Edgeworth Expansion", section 2.6), not below 0: an estimate that hangs on few great rewards is
    small, and sure of itself, as long as they have not come.
    """
    from scipy import stats

    z = float(stats.norm.isf(chance))
    shift = skew * (2 * z**2 + 1) * float(stats.norm.pdf(z)) / 6
    return max(chance - shift, 0.0), max(chance + shift, 0.0)


def student(terms: Terms, customer_Q: np.ndarray, *, level: float = 0.95) -> Interval:
    """Two-sided Student interval; for large numbers of customers."""
    from scipy import stats

    num = int(numbered(customer_Q).max()) + 1
    width = stats.t(max(num - 1, 1)).ppf(0.5 + level / 2) * standard_error(terms, customer_Q)
    return Interval(terms.value, terms.value - float(width), terms.value + float(width))


def bootstrap(
    terms: Terms, customer_Q: np.ndarray, *, level: float = 0.95, num_resamples: int = 1000, seed: int = 0
) -> Interval:
    """Percentile interval over resamples of customers; self-normalised estimates are normalised anew in each."""
    place_Q = numbered(customer_Q)
    num, rng = int(place_Q.max()) + 1, np.random.default_rng(seed)
    values, left = [], num_resamples
    block = max(1, min(num_resamples, 20_000_000 // num))
    while left > 0:
        counts_RC = rng.multinomial(num, np.full(num, 1 / num), size=min(block, left))
        counts_RC = counts_RC.astype(np.float64)  # or each of the three sums of a resample would convert it anew
        values.append(terms.resampled(counts_RC, place_Q))
        left -= block
    low, high = np.nanquantile(np.concatenate(values), [0.5 - level / 2, 0.5 + level / 2])
    return Interval(terms.value, float(low), float(high))


def empirical_bernstein(terms: Terms, customer_Q: np.ndarray, *, reach: float, level: float = 0.95) -> Interval:
    """Valid at any number of customers where their rows span at most ``reach`` (Maurer and Pontil 2009, theorem 4).

    ``7 M ln(2/d) / (3 (n - 1)) + sqrt(2 var ln(2/d) / (n - 1))`` on either side, each at d = (1 - level) / 2.
    reach: a span KNOWN beforehand, the largest possible row less the least. The span of the sample is no bound.
    """
    rows_C = customer_rows(terms, customer_Q)
    width = bernstein_width(rows_C, reach=reach, delta=(1 - level) / 2)
    return Interval(terms.value, terms.value - width, terms.value + width)


def bernstein_width(rows_C: np.ndarray, *, reach: float, delta: float) -> float:
    """One-sided width of the empirical Bernstein bound of a mean; ``rows_C`` independent."""
    num, log_term = len(rows_C), np.log(2.0 / delta)
    return float(7 * reach * log_term / (3 * (num - 1)) + np.sqrt(2 * log_term * np.var(rows_C) / (num - 1)))


def confidence_sequence(
    terms: Terms, customer_Q: np.ndarray, *, level: float = 0.95, planned: int | None = None
) -> Interval:
    """Holds at all numbers of customers at once, so one may look daily and stop when one likes.

    The asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas (2024), theorem 2.2:
    ``sd sqrt((n rho^2 + 1) / (n^2 rho^2) 2 ln(sqrt(n rho^2 + 1) / a))``, with rho such that it is narrowest at
    ``planned`` customers (by default those at hand). Two-sided at a = 1 - level.
    """
    rows_C = customer_rows(terms, customer_Q)
    num, alpha = len(rows_C), 1 - level
    aim = num if planned is None else planned
    rho2 = (-2 * np.log(alpha) + np.log(-2 * np.log(alpha) + 1)) / aim
    spread = standard_error(terms, customer_Q) * np.sqrt(num)
    width = spread * np.sqrt((num * rho2 + 1) / (num**2 * rho2) * 2 * np.log(np.sqrt(num * rho2 + 1) / alpha))
    return Interval(terms.value, float(terms.value - width), float(terms.value + width))


def difference(left: Terms, right: Terms) -> Terms:
    """``left - right`` row by row: the paired difference, which halves the variance of two separate values."""
    return Terms.mean_of(left.rows() - right.rows())
