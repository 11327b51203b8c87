"""Whether any plan keeps the limits; if none does, which limits contradict each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from constellation.allocation.problem import Problem
from constellation.errors import InputError

SLACK = 1e-6


def check_feasible(problem: Problem, names_R: Sequence[str], groups: Sequence[str]) -> None:
    """Raise InputError that names a smallest set of limits which no plan keeps together.

    Values do not matter here, so customers with the same allowed options and group count as one kind, which keeps the
    program small for any number of them. Where each customer has costs of their own the lowest stand for all, so
    what is refused is impossible indeed, though a tight budget may still be found out later.
    """
    if problem.can_only_shrink:
        return
    limits = _limits(problem, names_R, groups)
    kinds = _Kinds(problem)
    shortfall, involved = kinds.shortfall(limits)
    if shortfall <= SLACK:
        return
    conflict = [limit for limit in limits if limit in involved] or limits
    for limit in list(conflict):  # deletion filter: what is not needed for the contradiction goes
        fewer = [other for other in conflict if other != limit]
        if fewer and kinds.shortfall(fewer)[0] > SLACK:
            conflict = fewer
    said = "; ".join(limit.words(problem) for limit in conflict)
    raise InputError(
        f"No plan keeps these constraints together: {said}. "
        f"They are {shortfall:,.6g} short at the least. Loosen one of them."
    )


class Limit:
    """One shared limit as ``coefficients over kinds' options <= limit``; elastic ones may be missed at a price."""

    def __init__(self, kind: str, index: int, name: str, *, elastic: bool = False) -> None:
        self.kind, self.index, self.name, self.elastic = kind, index, name, elastic

    def words(self, problem: Problem) -> str:
        if self.kind == "budget":
            return f"a budget of at most {problem.budget:,.6g}"
        if self.kind == "high":
            return f"at most {problem.high_R[self.index]:,.0f} contacts of capacity/{self.name}"
        if self.kind == "low":
            row = problem.row_O == self.index
            able = sum(int(np.isfinite(problem.gain_CO[part][:, row]).any(axis=1).sum()) for part in problem.chunks())
            wanted = problem.low_R[self.index]
            return (
                f"at least {wanted:,.0f} contacts of min_use/{self.name}, for which {able:,} customers are left "
                "by eligibility, caps and cool-downs"
            )
        return f"max_gap {problem.gap:g} for group {self.name}"


def _limits(problem: Problem, names_R: Sequence[str], groups: Sequence[str]) -> list[Limit]:
    limits = [Limit("budget", 0, "budget")] if np.isfinite(problem.budget) else []
    for row, name in enumerate(names_R):
        if np.isfinite(problem.high_R[row]):
            limits.append(Limit("high", row, name))
        if problem.low_R[row] > 0:
            limits.append(Limit("low", row, name, elastic=True))
    if problem.is_fair:
        limits += [Limit("gap", group, name, elastic=True) for group, name in enumerate(groups)]
    return limits


class _Kinds:
    """Customers with the same allowed options and group, counted."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        keys = []
        for part in problem.chunks():
            packed = np.packbits(np.isfinite(problem.gain_CO[part]), axis=1)
            group = np.zeros(len(packed), np.uint8) if problem.group_C is None else problem.group_C[part]
            code = np.stack([group & 255, group >> 8], axis=1).astype(np.uint8)
            key = np.ascontiguousarray(np.concatenate([packed, code], axis=1))
            keys.append(key.view([("", np.void, key.shape[1])]).ravel())
        unique, self.count_T = np.unique(np.concatenate(keys), return_counts=True)
        packed_T = unique.view(np.uint8).reshape(len(unique), -1)
        self.allowed_TO = np.unpackbits(packed_T[:, :-2], axis=1, count=problem.num_options).astype(bool)
        self.group_T = packed_T[:, -2].astype(np.int64) + 256 * packed_T[:, -1].astype(np.int64)
        if problem.cost.ndim == 1:
            self.cost_O = problem.cost
        else:
            self.cost_O = np.full(problem.num_options, np.inf)
            for part in problem.chunks():
                allowed = np.where(np.isfinite(problem.gain_CO[part]), problem.cost[part], np.inf)
                self.cost_O = np.minimum(self.cost_O, allowed.min(axis=0))

    def shortfall(self, limits: Sequence[Limit]) -> tuple[float, set[Limit]]:
        """By how much the elastic limits are missed at the least, and the limits with a price in that program."""
        from scipy.optimize import linprog
        from scipy.sparse import coo_matrix

        problem = self.problem
        kind_N, option_N = np.nonzero(self.allowed_TO)
        num, num_limits = len(kind_N), len(limits)
        level = num  # the level of contact; after it one slack per limit
        row_N, group_N = problem.row_O[option_N], self.group_T[kind_N]
        entries: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        bounds: list[float] = []
        owner: list[Limit] = []

        def add(limit: Limit, columns: np.ndarray, values: np.ndarray, size: float, bound: float) -> None:
            at = len(bounds)
            columns = np.concatenate([columns, [level, level + 1 + limits.index(limit)]])
            values = np.concatenate([values, [size, -1.0]])
            entries.append((np.full(len(columns), at), columns, values))
            bounds.append(bound)
            owner.append(limit)

        for limit in limits:
            if limit.kind == "budget":
                add(limit, np.arange(num), self.cost_O[option_N], 0, problem.budget)
            elif limit.kind == "gap":
                assert problem.gap is not None
                (columns,) = np.nonzero(group_N == limit.index)
                size, made, ones = problem.size_G[limit.index], problem.contacted_G[limit.index], np.ones(len(columns))
                add(limit, columns, ones, -size, size * problem.gap - made)
                add(limit, columns, -ones, size, made)
            else:
                (columns,) = np.nonzero(row_N == limit.index)
                sign = 1.0 if limit.kind == "high" else -1.0
                bound = problem.high_R[limit.index] if limit.kind == "high" else problem.low_R[limit.index]
                add(limit, columns, np.full(len(columns), sign), 0, sign * bound)
        once = (kind_N + len(bounds), np.arange(num), np.ones(num))
        at, columns, values = (np.concatenate(parts) for parts in zip(*entries, once, strict=True))
        num_columns = num + 1 + num_limits
        matrix = coo_matrix((values, (at, columns)), shape=(len(bounds) + len(self.count_T), num_columns)).tocsr()
        objective = np.zeros(num_columns)
        objective[num + 1 :] = 1
        most = np.concatenate([np.full(num, np.inf), [1.0], [np.inf if limit.elastic else 0.0 for limit in limits]])
        found = linprog(
            objective,
            A_ub=matrix,
            b_ub=np.concatenate([bounds, self.count_T]),
            bounds=np.stack([np.zeros(num_columns), most], axis=1),
            method="highs",
        )
        if found.status == 2:  # even with slack: a limit that has none contradicts itself
            return float("inf"), set(limits)
        if found.status != 0:
            raise RuntimeError(f"HiGHS ended without an answer: {found.message}")
        priced = np.abs(found.ineqlin.marginals[: len(bounds)]) > 1e-9
        return float(found.fun), {limit for limit, is_priced in zip(owner, priced, strict=True) if is_priced}
