"""The plan's linear and integer programs by HiGHS (Huangfu & Hall 2018), as it comes with SciPy."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from constellation.allocation.problem import NOTHING, Prices, Problem

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

WHOLE = 1e-6
NUM_WHOLE_VARIABLES = 5_000
"""Integer programs up to this size are solved as they are; larger ones are rounded from the linear one."""

GAP = 5e-5
"""A rounded plan may be worse than the linear program's value by this share before more search is worth its time."""

NUM_NEAR = 60
"""Customers that are decided anew beside those whom the linear program splits."""


@dataclass(frozen=True)
class Linear:
    """The linear program's answer: shares of the allowed options in the order of ``Program``, prices, value."""

    share_N: np.ndarray
    prices: Prices
    value: float


class Program:
    """Columns: the ``N`` allowed options of all customers, and the level of contact where a gap is limited."""

    def __init__(self, problem: Problem, *, whole_limits: bool = True) -> None:
        from scipy.sparse import csr_matrix, vstack

        self.problem = problem
        self.customer_N, self.option_N = np.nonzero(np.isfinite(problem.gain_CO))
        self.gain_N = problem.gain_CO[self.customer_N, self.option_N].astype(np.float64)
        self.num_columns = len(self.gain_N) + problem.is_fair
        self.labels: list[tuple[str, int]] = []
        rows: list[csr_matrix] = []
        limits: list[float] = []

        def add(kind: str, index: int, coefficients: Any, limit: float) -> None:
            self.labels.append((kind, index))
            rows.append(coefficients)
            limits.append(limit)

        def one_row(columns: np.ndarray, values: np.ndarray, level: float = 0.0) -> Any:
            if problem.is_fair:
                columns, values = np.append(columns, self.num_columns - 1), np.append(values, level)
            zero = np.zeros(len(columns), dtype=np.int64)
            return csr_matrix((values, (zero, columns)), shape=(1, self.num_columns))

        if np.isfinite(problem.budget):
            cost_N = problem.cost_of(self.customer_N, self.option_N)
            add("budget", 0, one_row(np.arange(len(cost_N)), cost_N), problem.budget)
        row_N = problem.row_O[self.option_N]
        for row, (low, high) in enumerate(zip(problem.low_R, problem.high_R, strict=True)):
            (columns,) = np.nonzero(row_N == row)
            if np.isfinite(high):
                add(
                    "high",
                    row,
                    one_row(columns, np.ones(len(columns))),
                    np.floor(high + WHOLE) if whole_limits else high,
                )
            if low > 0:
                add(
                    "low",
                    row,
                    one_row(columns, -np.ones(len(columns))),
                    -np.ceil(low - WHOLE) if whole_limits else -low,
                )
        if problem.gap is not None and problem.group_C is not None:
            group_N = problem.group_C[self.customer_N]
            for group, (size, made) in enumerate(zip(problem.size_G, problem.contacted_G, strict=True)):
                (columns,) = np.nonzero(group_N == group)
                if size > 0:
                    ones = np.ones(len(columns))
                    add("more", group, one_row(columns, ones, -size), size * problem.gap - made)
                    add("less", group, one_row(columns, -ones, size), made)
        once = csr_matrix(
            (np.ones(len(self.gain_N)), (self.customer_N, np.arange(len(self.gain_N)))),
            shape=(len(problem), self.num_columns),
        )
        self.matrix = vstack([*rows, once], format="csr")
        self.limits = np.append(np.array(limits), np.ones(len(problem)))
        self.num_shared = len(limits)
        self.objective = -np.append(self.gain_N, np.zeros(int(problem.is_fair)))

    def linear(self) -> Linear | None:
        """The relaxed program; None where no plan keeps the limits."""
        from scipy.optimize import linprog

        if not len(self.gain_N):
            is_sound = bool((self.limits >= 0).all())
            return Linear(np.zeros(0), Prices.zero(self.problem), 0.0) if is_sound else None
        small = self.num_columns < 50_000
        found = linprog(
            self.objective,
            A_ub=self.matrix,
            b_ub=self.limits,
            bounds=(0, 1),
            method="highs-ds" if small else "highs-ipm",
        )
        if found.status == 2:
            return None
        if found.status != 0:
            raise RuntimeError(f"HiGHS ended without an answer: {found.message}")
        return Linear(found.x[: len(self.gain_N)], self._prices(-found.ineqlin.marginals), -float(found.fun))

    def _prices(self, dual: np.ndarray) -> Prices:
        budget, row_R = 0.0, np.zeros(len(self.problem.low_R))
        group_G = np.zeros(len(self.problem.size_G))
        for (kind, index), price in zip(self.labels, np.maximum(dual, 0), strict=False):
            if kind == "budget":
                budget = float(price)
            elif kind in ("high", "low"):
                row_R[index] += price if kind == "high" else -price
            else:
                group_G[index] += price if kind == "more" else -price
        return Prices(budget, row_R, group_G)

    def integer(self, seconds: float = 10.0, relative_gap: float = 1e-7) -> tuple[np.ndarray, float] | None:
        """Choice of every customer and the proven bound on the value; None where no plan was found."""
        from scipy.optimize import Bounds, LinearConstraint, milp

        choice_C = np.full(len(self.problem), NOTHING, dtype=np.int16)
        if not len(self.gain_N):
            return (choice_C, 0.0) if (self.limits >= 0).all() else None
        whole = np.ones(self.num_columns)
        if self.problem.is_fair:
            whole[-1] = 0
        with _silence():
            found = milp(
                self.objective,
                constraints=LinearConstraint(self.matrix, -np.inf, self.limits),
                bounds=Bounds(0, 1),
                integrality=whole,
                options={"time_limit": seconds, "mip_rel_gap": relative_gap},
            )
        if found.x is None:
            return None
        chosen = found.x[: len(self.gain_N)] > 0.5
        choice_C[self.customer_N[chosen]] = self.option_N[chosen]
        return choice_C, -float(found.mip_dual_bound)


def solve_linear_and_round(problem: Problem, worthless: float | None = None) -> tuple[np.ndarray, Prices, float] | None:
    """Choices, prices and an upper bound on the value; None where no plan keeps the limits.

    The search for whole customers ends when not even ``worthless`` can be gained; None: at the optimum itself for
    few customers, and within ``GAP`` of the linear program's value for many.

    Few customers: the integer program itself. Many: the linear program leaves at most as many customers split as there
    are shared limits; they, and some of the nearest to being so, are decided anew by an integer program over what
    the others leave.
    """
    program = Program(problem)
    linear = program.linear()
    if linear is None:
        return None
    if len(program.gain_N) <= NUM_WHOLE_VARIABLES:
        gap = 1e-7 if worthless is None else max(1e-7, worthless / max(abs(linear.value), 1e-12))
        found = program.integer(seconds=10.0 if worthless is None else 3.0, relative_gap=gap)
        if found is None:
            return None
        return found[0], linear.prices, min(found[1], linear.value)
    choice_C = np.full(len(problem), NOTHING, dtype=np.int16)
    chosen = linear.share_N > 1 - WHOLE
    choice_C[program.customer_N[chosen]] = program.option_N[chosen]
    split = np.unique(program.customer_N[(linear.share_N > WHOLE) & ~chosen])
    margin_C = margins(problem, linear.prices)
    margin_C[split] = -1
    open_customers = len(split) + NUM_NEAR
    while True:
        again = np.argsort(margin_C, kind="stable")[:open_customers]
        decided = decide_again(problem, choice_C, again, worthless=worthless or GAP * abs(linear.value))
        if decided is not None:
            return decided, linear.prices, linear.value
        if open_customers >= len(problem):
            return None
        open_customers = min(8 * open_customers, len(problem))


def decide_again(
    problem: Problem, choice_C: np.ndarray, again: np.ndarray, *, worthless: float = 0.0
) -> np.ndarray | None:
    """A plan in which only the customers ``again`` are decided anew; None where no plan was found.

    The search ends when not even ``worthless`` can be gained, or after a few seconds.
    """
    fixed_C = choice_C.copy()
    fixed_C[again] = NOTHING
    rest = problem.take(again).without(problem.uses_of(fixed_C))
    program = Program(rest)
    most = np.maximum(rest.gain_CO.max(axis=1, initial=0), 0).sum(dtype=np.float64)
    found = program.integer(seconds=2.0, relative_gap=max(1e-7, worthless / max(float(most), 1e-12)))
    if found is None:
        return None
    fixed_C[again] = found[0]
    return fixed_C


def margins(problem: Problem, prices: Prices) -> np.ndarray:
    """How far each customer's best choice is from the next best, ``none`` among them, float32 [C]."""
    margin_C = np.empty(len(problem), dtype=np.float32)
    for part in problem.chunks():
        reduced = prices.reduced(problem, part)
        with_none = np.concatenate([reduced, np.zeros((len(reduced), 1), np.float32)], axis=1)
        two = np.partition(with_none, -2, axis=1)[:, -2:]
        margin_C[part] = two[:, 1] - two[:, 0]
    return margin_C


@contextmanager
def _silence() -> Iterator[None]:
    """Keep HiGHS, which tells the terminal of its inner solver past all its options, from writing there."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # no standard output to keep clean
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
