"""Totals over customers: their own chances, and a shock that all of them share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

SIMULATED = 2000
"""Draws of a total; above ``EXACT_CUSTOMERS`` customers the sum is as good as normal."""

EXACT_CUSTOMERS = 10_000


@dataclass(frozen=True)
class Shock:
    """A factor common to all customers: ``exp(sd t)``, with ``t`` of Student's distribution of ``dof`` degrees.

    num_windows: how many independent earlier windows it was learned from; 0 is the prior alone.
    """

    sd: float = 0.0
    dof: float = 30.0
    num_windows: float = 0.0


@dataclass(frozen=True)
class PastTotal:
    """A total that was predicted at an earlier origin and has come true since.

    origin: microseconds. noise_sd: what the customers' own chances put into the total, relative to it.
    """

    origin: int
    horizon_days: int
    expected: float
    realised: float
    noise_sd: float


def relative_noise(expected_Q: np.ndarray, quantiles_QL: np.ndarray) -> float:
    """Standard deviation over mean of a sum of independent customers, by their quantiles as equally likely members."""
    total = float(np.sum(expected_Q))
    variance = float(np.var(np.asarray(quantiles_QL, dtype=np.float64), axis=1).sum())
    return float(np.sqrt(variance) / total) if total > 0 else 0.0


def total_interval(
    expected_Q: np.ndarray, quantiles_QL: np.ndarray, shock: Shock | None = None, *, level: float = 0.9, seed: int = 0
) -> tuple[float, float]:
    """Central interval of the customers' total: independent draws of each, about the sum of their expected values.

    The draws take the quantiles as equally likely members, whose mean misses the outermost tail, so their sum is
    brought to the expected total. With a shock each draw is multiplied by a draw of it.
    """
    expected_Q, quantiles_QL = np.asarray(expected_Q, dtype=np.float64), np.asarray(quantiles_QL)
    total, num_levels = float(expected_Q.sum()), quantiles_QL.shape[1]
    if len(expected_Q) > EXACT_CUSTOMERS:
        variance = (relative_noise(expected_Q, quantiles_QL) * total) ** 2
        return normal_interval(total, variance, shock, level=level, seed=seed)
    rng, draws_S = np.random.default_rng(seed), np.zeros(SIMULATED)
    for start in range(0, len(expected_Q), 1024):
        members_QL = quantiles_QL[start : start + 1024]
        drawn_QS = rng.integers(num_levels, size=(len(members_QL), SIMULATED))
        draws_S += np.take_along_axis(members_QL, drawn_QS, axis=1).sum(axis=0, dtype=np.float64)
    middle = float(np.asarray(quantiles_QL, dtype=np.float64).mean(axis=1).sum())
    return _between(draws_S * (total / middle) if middle > 0 else draws_S, shock, rng, level)


def normal_interval(
    total: float, variance: float, shock: Shock | None = None, *, level: float = 0.9, seed: int = 0
) -> tuple[float, float]:
    """The same for so many customers that their sum is as good as normal: from its mean and variance alone."""
    rng = np.random.default_rng(seed)
    return _between(total + np.sqrt(variance) * rng.standard_normal(SIMULATED), shock, rng, level)


def _between(draws_S: np.ndarray, shock: Shock | None, rng: np.random.Generator, level: float) -> tuple[float, float]:
    """The central interval of draws, each with its own draw of the shock."""
    if shock is not None and shock.sd > 0:
        draws_S = draws_S * np.exp(shock.sd * rng.standard_t(shock.dof, SIMULATED))
    low, high = np.quantile(draws_S, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Total:
    """The expected total of customers, and its central 90 % interval."""

    expected: float
    low: float
    high: float


class Totals:
    """Totals of every ``value_<h>d`` and ``purchases_<h>d`` in answers that come batch by batch.

    Up to ``EXACT_CUSTOMERS`` rows the members are kept and drawn from; of more, mean and variance are enough.
    """

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self.expected: dict[str, np.ndarray] = {}
        self.members: dict[str, np.ndarray] = {}
        self.variance: dict[str, float] = {}

    def add(self, rows: np.ndarray, answers: Mapping[str, np.ndarray]) -> None:
        """Answers to ``rows``, with quantiles at the levels of equally likely members."""
        for name, quantiles_QL in answers.items():
            if re.fullmatch(r"(value|purchases)_\d+d_quantiles", name) is None:
                continue
            target = name.removesuffix("_quantiles")
            self.expected.setdefault(target, np.zeros(self.num_rows))[rows] = answers[f"{target}_expected"]
            if self.num_rows <= EXACT_CUSTOMERS:
                shape = (self.num_rows, quantiles_QL.shape[1])
                self.members.setdefault(target, np.zeros(shape, dtype=np.float32))[rows] = quantiles_QL
            else:
                spread = float(np.var(np.asarray(quantiles_QL, dtype=np.float64), axis=1).sum())
                self.variance[target] = self.variance.get(target, 0.0) + spread

    def intervals(self, shocks: Mapping[str, Shock]) -> dict[str, Total]:
        """By target; shocks: of ``value`` and ``purchases``, where there are some."""
        found = {}
        for target, expected_Q in self.expected.items():
            shock = shocks.get(target.split("_")[0])
            if target in self.members:
                low, high = total_interval(expected_Q, self.members[target], shock)
            else:
                low, high = normal_interval(float(expected_Q.sum()), self.variance[target], shock)
            found[target] = Total(float(expected_Q.sum()), low, high)
        return found
