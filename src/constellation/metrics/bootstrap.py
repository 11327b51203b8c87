"""Intervals that respect customers: the bootstrap draws whole customers, never single rows.

A statistic is a function of weights `[R, Q]` (R resamples of Q rows) that returns one value per resample. Because the
draw is tied to the sorted customer ids and the seed, two systems on the same customers see the same resamples, so the
difference of their samples is already the paired bootstrap.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

Statistics = Callable[[np.ndarray], dict[str, np.ndarray]]
"""weights [R, Q] -> name -> [R]"""

# Values of one block of weights: 1M float64 stay near the cache and bound memory for any number of customers.
_BLOCK_VALUES = 1_000_000


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its percentile interval (95 % unless said otherwise)."""

    estimate: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


class CustomerBootstrap:
    """Multinomial resampling of customers (Efron 1979), all rows of a customer together.

    Args:
        customer_Q: customer of each row, any sortable dtype; one customer may have many rows.
        num_resamples: R.
        seed: of the draw; 0 is a seed.
    """

    def __init__(self, customer_Q: np.ndarray, *, num_resamples: int = 500, seed: int = 0) -> None:
        assert num_resamples > 0
        assert len(customer_Q) > 0
        customers_C, self.cluster_Q = np.unique(np.asarray(customer_Q), return_inverse=True)
        self.num_customers = len(customers_C)
        self.num_rows = len(self.cluster_Q)
        self.num_resamples = num_resamples
        self.seed = seed
        # One row per customer in id order is the usual case; then the expansion to rows is the identity.
        self._is_identity = np.array_equal(self.cluster_Q, np.arange(self.num_customers))

    def blocks(self) -> Iterator[np.ndarray]:
        """Yields weights `[r, Q]` (how often each row was drawn), in total R resamples, the same on every call."""
        generator = np.random.default_rng(self.seed)
        block = max(1, min(self.num_resamples, _BLOCK_VALUES // self.num_rows))
        num_customers = self.num_customers
        for start in range(0, self.num_resamples, block):
            size = min(block, self.num_resamples - start)
            weights_RC = np.empty((size, num_customers))
            for row in range(size):
                drawn = generator.integers(num_customers, size=num_customers)
                weights_RC[row] = np.bincount(drawn, minlength=num_customers)
            yield weights_RC if self._is_identity else weights_RC[:, self.cluster_Q]

    def samples(self, statistics: Statistics) -> dict[str, np.ndarray]:
        """Every statistic on every resample: name -> `[R]`."""
        parts = [statistics(weights_RQ) for weights_RQ in self.blocks()]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def estimates(self, statistics: Statistics) -> dict[str, float]:
        """Every statistic on the rows as they are."""
        return {name: float(value[0]) for name, value in statistics(np.ones((1, self.num_rows))).items()}

    def intervals(self, statistics: Statistics, level: float = 0.95) -> dict[str, Interval]:
        return intervals(self.estimates(statistics), self.samples(statistics), level)


def interval(estimate: float, samples_R: np.ndarray, level: float = 0.95) -> Interval:
    """Percentile interval; resamples on which the statistic is undefined (NaN) are left out, NaN ends if all are."""
    defined = samples_R[np.isfinite(samples_R)]
    if len(defined) == 0:
        return Interval(estimate, float("nan"), float("nan"))
    tail = (1 - level) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return Interval(estimate, float(low), float(high))


def intervals(
    estimates: Mapping[str, float], samples: Mapping[str, np.ndarray], level: float = 0.95
) -> dict[str, Interval]:
    return {name: interval(estimate, samples[name], level) for name, estimate in estimates.items()}


def paired_p_value(difference_R: np.ndarray) -> float:
    """Two-sided bootstrap p-value of "no difference": the percentile interval, inverted.

    At least 2 / (R + 1), because R resamples cannot witness less. Identical systems give 1.
    """
    defined = difference_R[np.isfinite(difference_R)]
    if len(defined) == 0:
        return 1.0
    tail = min(np.count_nonzero(defined <= 0), np.count_nonzero(defined >= 0))
    return float(min(1.0, 2 * (tail + 1) / (len(defined) + 1)))


def holm(p_values: np.ndarray) -> np.ndarray:
    """p-values adjusted for the number of comparisons (Holm 1979): smallest times m, next times m - 1, monotone."""
    p_values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p_values, kind="stable")
    scaled = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(scaled))
    return adjusted
