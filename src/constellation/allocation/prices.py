"""Dual prices for any number of customers: the Lagrangian dual, smoothed, minimised by L-BFGS over chunks.

The dual function of the plan is ``sum_i max_o (gain_io - price_io) + prices * limits``. Replacing each maximum by
``t log sum exp(. / t)`` (Nesterov, "Smooth minimization of non-smooth functions", 2005) makes it differentiable; its
gradient is what the limits leave unused, and its optimum a fractional plan that keeps them, off by at most
``C t log(1 + O)``. ``t`` falls step by step on a sample of customers; the last prices are found on all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from constellation.allocation.problem import Prices, Problem

SAMPLE = 40_000
TEMPERATURES = (0.3, 0.1, 0.03, 0.01, 0.003)
"""In units of the mean best gain. The last leaves about one customer in fifty undecided between two options."""


@dataclass(frozen=True)
class Dual:
    """Value of the dual function and its gradient's ingredients, scaled up where a sample was asked."""

    value: float
    cost: float
    uses_R: np.ndarray
    contacts_G: np.ndarray


def gain_scale(problem: Problem) -> float:
    """Mean of the best gains above zero of a few customers, at least a tiny number: the unit of prices."""
    step = max(1, len(problem) // SAMPLE)
    best = problem.gain_CO[::step].max(axis=1, initial=0)
    best = best[np.isfinite(best) & (best > 0)]
    return float(best.mean()) if len(best) else 1.0


def solve_prices(problem: Problem, *, seed: int = 0) -> tuple[Prices, float]:
    """Prices near the optimum of the dual, and the temperature at which all customers were asked last."""
    scale = gain_scale(problem)
    coordinates = _Coordinates(problem, scale)
    if not coordinates.size:
        return Prices.zero(problem), scale * TEMPERATURES[-1]
    point = np.zeros(coordinates.size)
    if len(problem) > SAMPLE:
        sample = np.sort(np.random.default_rng(seed).choice(len(problem), SAMPLE, replace=False))
        part, times = problem.take(sample), len(problem) / SAMPLE
    else:
        part, times = problem, 1.0
    for temperature in TEMPERATURES:
        point = coordinates.minimise(part, point, temperature * scale, times, num_steps=60)
    if part is not problem:
        point = coordinates.minimise(problem, point, TEMPERATURES[-1] * scale, 1.0, num_steps=25)
    return coordinates.prices(point), TEMPERATURES[-1] * scale


def bound(problem: Problem, prices: Prices) -> float:
    """No plan brings more than this: the dual function at any prices of the right sign."""
    best = 0.0
    for part in problem.chunks():
        best += float(np.maximum(prices.reduced(problem, part).max(axis=1, initial=0), 0).sum(dtype=np.float64))
    return best + worth_of_limits(problem, prices)


def worth_of_limits(problem: Problem, prices: Prices) -> float:
    """The part of the dual function that is about the limits alone."""
    worth = prices.budget * problem.budget if prices.budget > 0 else 0.0
    positive = prices.row_R > 0
    worth += float((prices.row_R[positive] * problem.high_R[positive]).sum())
    worth += float((prices.row_R[~positive] * problem.low_R[~positive]).sum())
    if problem.gap is not None:
        weighted = prices.group_G * problem.size_G
        worth += problem.gap * float(np.maximum(weighted, 0).sum()) + max(0.0, float(weighted.sum()))
        worth -= float((prices.group_G * problem.contacted_G).sum())
    return worth


def smoothed(problem: Problem, prices: Prices, temperature: float, times: float = 1.0) -> Dual:
    """The customers' part of the smoothed dual function at ``temperature``, in money."""
    value, use_O, cost = 0.0, np.zeros(problem.num_options), 0.0
    contacts_G = np.zeros(len(problem.size_G))
    for part in problem.chunks():
        reduced = prices.reduced(problem, part)
        best = np.maximum(reduced.max(axis=1, initial=0), 0)
        reduced -= best[:, None]
        reduced /= np.float32(temperature)
        weight = np.exp(reduced, out=reduced)
        total = weight.sum(axis=1) + np.exp(-best / np.float32(temperature))
        value += float((best + temperature * np.log(total)).sum(dtype=np.float64))
        weight /= total[:, None]
        of_option = weight.sum(axis=0, dtype=np.float64)
        use_O += of_option
        if problem.cost.ndim == 2:
            cost += float((weight * problem.cost_of(part)).sum(dtype=np.float64))
        else:
            cost += float(of_option @ problem.cost)
        if problem.is_fair and problem.group_C is not None:
            contacts_G += np.bincount(problem.group_C[part], weight.sum(axis=1), len(problem.size_G))
    row = problem.row_O >= 0
    uses_R = np.bincount(problem.row_O[row], use_O[row], len(problem.low_R))
    return Dual(value * times, cost * times, uses_R * times, contacts_G * times)


class _Coordinates:
    """Prices as a vector of numbers at or above zero, each in a unit in which the dual curves about alike."""

    def __init__(self, problem: Problem, scale: float) -> None:
        self.problem = problem
        num = max(1, len(problem))
        costs = problem.cost[problem.cost > 0]
        self.has_budget = math.isfinite(problem.budget) and len(costs) > 0
        self.high_rows = np.flatnonzero(np.isfinite(problem.high_R))
        self.low_rows = np.flatnonzero(problem.low_R > 0)
        self.groups = np.arange(len(problem.size_G)) if problem.is_fair else np.zeros(0, dtype=np.int64)
        # A price moves about so many customers as the limit holds, so its curvature is their share.
        budget_unit = [scale / float(costs.mean())] if self.has_budget else []
        row_unit = np.clip(np.sqrt(num / np.maximum(problem.high_R, 1.0)), 1, 100)
        low_unit = np.clip(np.sqrt(num / np.maximum(problem.low_R, 1.0)), 1, 100)
        group_unit = np.sqrt(num / np.maximum(problem.size_G[self.groups], 1.0))
        parts = [budget_unit, scale * row_unit[self.high_rows], scale * low_unit[self.low_rows]]
        self.unit = np.concatenate([*parts, scale * group_unit, scale * group_unit])
        self.size = len(self.unit)
        self.scale = scale * num

    def _split(self, vector: np.ndarray) -> list[np.ndarray]:
        sizes = [int(self.has_budget), len(self.high_rows), len(self.low_rows), len(self.groups), len(self.groups)]
        return np.split(vector, np.cumsum(sizes)[:-1])

    def prices(self, point: np.ndarray) -> Prices:
        budget, high, low, more, less = self._split(point * self.unit)
        row_R = np.zeros(len(self.problem.low_R))
        row_R[self.high_rows] += high
        row_R[self.low_rows] -= low
        group_G = more - less if len(self.groups) else np.zeros(len(self.problem.size_G))
        return Prices(float(budget[0]) if self.has_budget else 0.0, row_R, group_G)

    def minimise(
        self, part: Problem, start: np.ndarray, temperature: float, times: float, *, num_steps: int
    ) -> np.ndarray:
        from scipy.optimize import minimize

        found = minimize(
            self._dual,
            start,
            args=(part, temperature, times),
            jac=True,
            method="L-BFGS-B",
            bounds=[(0, None)] * self.size,
            options={"maxiter": num_steps, "maxfun": 2 * num_steps, "maxcor": 20, "ftol": 1e-13, "gtol": 1e-9},
        )
        return np.asarray(found.x)

    def _dual(self, point: np.ndarray, part: Problem, temperature: float, times: float) -> tuple[float, np.ndarray]:
        problem, prices = self.problem, self.prices(point)
        asked = smoothed(part, prices, temperature, times)
        _, high, low, more, less = self._split(point * self.unit)
        value = asked.value + float(high @ problem.high_R[self.high_rows]) - float(low @ problem.low_R[self.low_rows])
        slope = [
            problem.high_R[self.high_rows] - asked.uses_R[self.high_rows],
            asked.uses_R[self.low_rows] - problem.low_R[self.low_rows],
        ]
        if self.has_budget:
            value += prices.budget * problem.budget
            slope.insert(0, np.array([problem.budget - asked.cost]))
        if len(self.groups):
            assert problem.gap is not None
            size_G = problem.size_G
            level, level_value = _soft_level(float(((more - less) * size_G).sum()), temperature * float(size_G.sum()))
            contacts_G = asked.contacts_G + problem.contacted_G
            value += problem.gap * float(more @ size_G) + level_value - float((more - less) @ problem.contacted_G)
            slope += [size_G * (level + problem.gap) - contacts_G, contacts_G - size_G * level]
        return value / self.scale, np.concatenate(slope) * self.unit / self.scale


def _soft_level(pull: float, temperature: float) -> tuple[float, float]:
    """The smoothed maximum over levels m in [0, 1] of ``m * pull``: the level, and the value."""
    ratio = pull / temperature
    level = 0.5 * (1 + math.tanh(ratio / 2))
    return level, temperature * float(np.logaddexp(0, ratio))
