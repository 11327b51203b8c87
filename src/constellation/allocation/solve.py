"""From a problem to a plan that breaks no limit: exactly, or by prices for any number of customers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from constellation.allocation.exact import GAP, solve_linear_and_round
from constellation.allocation.prices import bound, solve_prices
from constellation.allocation.problem import NOTHING, Excess, Prices, Problem
from constellation.errors import InputError

EXACT_VARIABLES = 1_000_000
CERTAIN = 0.999
"""A customer whose best choice has this share at the last temperature takes it; the others are open."""

FEWEST_OPEN, MOST_OPEN = 500, 6_000
NUM_PER_ROW = 100
"""Customers nearest to taking or leaving each row's options, who join the open ones, so that scarce rows are filled."""

NO_PLAN = (
    "The constraints leave room for shares of customers but not for whole ones: no plan was found that keeps all "
    "minimum uses and gaps. Loosen min_use, max_gap or the budget a little."
)


@dataclass(frozen=True)
class Solution:
    """choice_C: int16 option of each customer, -1 for none. prices: what one more of each limit is worth.

    value: sum of gains over ``none``. bound: no plan brings more. method: ``exact`` or ``prices``.
    """

    choice_C: np.ndarray
    prices: Prices
    value: float
    bound: float
    method: str


def solve(problem: Problem, *, method: str = "auto", exact_up_to: int = EXACT_VARIABLES, seed: int = 0) -> Solution:
    """The best plan, or one within a small gap of it that is told.

    method: ``exact`` (HiGHS over all customers), ``prices`` (dual prices, HiGHS over the undecided few), or ``auto``:
    exact up to ``exact_up_to`` options of all customers. The problem is to be feasible (``check_feasible``). Raises
    InputError where limits that ask for contacts cannot be met by whole customers.
    """
    if method not in ("auto", "exact", "prices"):
        raise InputError(f"solver must be auto, exact or prices, found {method!r}.")
    if method == "auto":
        num_variables = sum(int(np.isfinite(problem.gain_CO[part]).sum()) for part in problem.chunks())
        method = "exact" if num_variables <= exact_up_to else "prices"
    if problem.can_only_shrink:  # nobody is asked to take what does not pay
        gain_CO = problem.gain_CO
        gain_CO = np.where(gain_CO > 0, gain_CO, np.float32(-np.inf))
        problem = replace(problem, gain_CO=gain_CO)
    tight = problem
    for attempt in range(4):
        found = _exact(tight) if method == "exact" else _by_prices(tight, seed + attempt)
        if found is None:
            raise InputError(NO_PLAN)
        choice_C, prices, highest = found
        excess = problem.excess(problem.uses_of(choice_C))
        if excess and problem.can_only_shrink:
            choice_C = shrink(problem, prices, choice_C)
            excess = problem.excess(problem.uses_of(choice_C))
        if not excess:
            assert problem.keeps_limits(choice_C)
            value = problem.gain_of(choice_C)
            return Solution(choice_C, prices, value, max(highest, value), method)
        tight = _tightened(tight, excess)  # the solver's own tolerance was taken for room
    raise InputError(NO_PLAN)


def _exact(problem: Problem) -> tuple[np.ndarray, Prices, float] | None:
    asked = np.flatnonzero(_has_option(problem))
    part = problem.take(asked)
    found = solve_linear_and_round(part)
    if found is None:
        return None
    choice_C = np.full(len(problem), NOTHING, dtype=np.int16)
    choice_C[asked] = found[0]
    return choice_C, found[1], found[2]


def _by_prices(problem: Problem, seed: int) -> tuple[np.ndarray, Prices, float] | None:
    prices, temperature = solve_prices(problem, seed=seed)
    choice_C, open_C = _draw(problem, prices, temperature, np.random.default_rng(seed))
    num_open = int(np.clip(4 * math.sqrt(len(problem)), FEWEST_OPEN, MOST_OPEN))
    highest = bound(problem, prices)
    for _ in range(4):
        again = open_C[:num_open]
        again = np.union1d(again, _over(problem, prices, choice_C, again))
        decided = _decide(problem, choice_C, again, GAP * abs(highest))
        if decided is not None:
            plan_C, sharper = decided
            if problem.can_only_shrink:
                plan_C = fill(problem, shrink(problem, prices, plan_C))
            bounds = [(highest, prices)]
            if sharper is not None:  # the few at the edge know the prices best, if they are enough
                bounds.append((bound(problem, sharper), sharper))
            lowest = min(bounds, key=lambda pair: pair[0])
            return plan_C, lowest[1], lowest[0]
        num_open *= 4
    return None


def _decide(
    problem: Problem, choice_C: np.ndarray, again: np.ndarray, worthless: float
) -> tuple[np.ndarray, Prices | None] | None:
    """The customers ``again`` by the linear program over what the others leave, rounded; and its prices."""
    fixed_C = choice_C.copy()
    fixed_C[again] = NOTHING
    rest = problem.take(again).without(problem.uses_of(fixed_C))
    if problem.can_only_shrink and problem.excess(problem.uses_of(fixed_C)):
        return fixed_C, None  # so much is over that the many must shrink first
    found = solve_linear_and_round(rest, worthless)
    if found is None:
        return None
    fixed_C[again] = found[0]
    return fixed_C, found[1]


def _draw(
    problem: Problem, prices: Prices, temperature: float, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Each customer's choice drawn from the smoothed plan, and the customers to decide anew, the most open first.

    The smoothed plan keeps the limits in sum, so the draw of the many whom the open few cannot make up for misses
    them by chance only. First come those next to every scarce row, then those with the smallest margin.
    """
    choice_C = np.empty(len(problem), dtype=np.int16)
    margin_C = np.empty(len(problem), dtype=np.float32)
    num_rows = len(problem.low_R)
    near: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(num_rows)]
    columns_R = [np.flatnonzero(problem.row_O == row) for row in range(num_rows)]
    for part in problem.chunks():
        reduced = prices.reduced(problem, part)
        with_none = np.concatenate([np.zeros((len(reduced), 1), np.float32), reduced], axis=1)
        two = np.partition(with_none, -2, axis=1)[:, -2:]
        margin_C[part] = two[:, 1] - two[:, 0]
        for row, columns in enumerate(columns_R):
            if not len(columns):
                continue
            inside = reduced[:, columns].max(axis=1)
            outside = np.where(inside >= two[:, 1], two[:, 0], two[:, 1])
            with np.errstate(invalid="ignore"):
                distance = np.abs(inside - outside)
            kept = np.argpartition(distance, min(NUM_PER_ROW, len(distance) - 1))[:NUM_PER_ROW]
            kept = kept[np.isfinite(distance[kept])]
            near[row].append((distance[kept], kept + part.start))
        weight = np.exp((with_none - two[:, 1:]) / np.float32(temperature))
        running = np.cumsum(weight, axis=1)
        drawn = (running < generator.random((len(weight), 1), dtype=np.float32) * running[:, -1:]).sum(axis=1)
        best = with_none.argmax(axis=1)
        sure = weight.max(axis=1) >= CERTAIN * running[:, -1]
        choice_C[part] = np.where(sure, best, np.minimum(drawn, problem.num_options)) - 1
    first: list[np.ndarray] = []
    for found in near:
        if found:
            distance = np.concatenate([pair[0] for pair in found])
            who = np.concatenate([pair[1] for pair in found])
            first.append(who[np.argsort(distance, kind="stable")[:NUM_PER_ROW]])
    num_rest = min(len(problem), 64 * MOST_OPEN)
    rest = np.argpartition(margin_C, num_rest - 1)[:num_rest] if num_rest < len(problem) else np.arange(len(problem))
    rest = rest[np.lexsort((generator.random(len(rest)), margin_C[rest]))]
    order = np.concatenate([*first, rest])
    _, places = np.unique(order, return_index=True)
    return choice_C, order[np.sort(places)]


def _over(problem: Problem, prices: Prices, choice_C: np.ndarray, again: np.ndarray) -> np.ndarray:
    """Customers to be opened because even without the open ones a limit is passed: those who lose least."""
    fixed_C = choice_C.copy()
    fixed_C[again] = NOTHING
    excess = problem.excess(problem.uses_of(fixed_C))
    if not (excess.over_R.any() or excess.budget > 0):
        return np.zeros(0, dtype=np.int64)
    chosen = np.flatnonzero(fixed_C != NOTHING)
    option = fixed_C[chosen].astype(np.int64)
    worth = _reduced_of(problem, prices, chosen, option)
    order = np.argsort(worth, kind="stable")
    opened = []
    for row in np.flatnonzero(excess.over_R):
        users = order[problem.row_O[option[order]] == row]
        opened.append(chosen[users[: int(2 * excess.over_R[row]) + 10]])
    if excess.budget > 0:
        spent = np.cumsum(problem.cost_of(chosen[order], option[order]))
        opened.append(chosen[order[: int(np.searchsorted(spent, 2 * excess.budget)) + 10]])
    found = np.unique(np.concatenate(opened))
    return found if len(found) <= 4 * MOST_OPEN else np.zeros(0, dtype=np.int64)


def shrink(problem: Problem, prices: Prices, choice_C: np.ndarray) -> np.ndarray:
    """Take contacts back until nothing is passed: those worth least at the prices (per cost, where money is short)."""
    choice_C = choice_C.copy()
    chosen = np.flatnonzero(choice_C != NOTHING)
    option = choice_C[chosen].astype(np.int64)
    worth = _reduced_of(problem, prices, chosen, option)
    order = np.argsort(-worth, kind="stable")
    kept = np.ones(len(chosen), dtype=bool)
    row = problem.row_O[option]
    for index, high in enumerate(problem.high_R):
        if np.isfinite(high):
            users = order[row[order] == index]
            kept[users[math.floor(high + 1e-9) :]] = False
    cost = problem.cost_of(chosen, option)
    if float(cost[kept].sum()) > problem.budget:
        gain = problem.gain_CO[chosen, option]
        rank = np.where(cost > 0, worth + gain * 1e-6, np.inf)
        order = np.argsort(-rank, kind="stable")
        order = order[kept[order]]
        room = problem.budget - np.cumsum(cost[order])
        kept[order[(room < 0) & (cost[order] > 0)]] = False
    choice_C[chosen[~kept]] = NOTHING
    return choice_C


def fill(problem: Problem, choice_C: np.ndarray, num_rounds: int = 3) -> np.ndarray:
    """Use what room is left: give customers a better option where its row and the budget allow, best first.

    Only for limits that do not ask for contacts. Each round moves customers into one row at a time.
    """
    choice_C = choice_C.copy()
    used = problem.uses_of(choice_C)
    uses_R, money = used.uses_R.copy(), problem.budget - used.cost
    for _ in range(num_rounds):
        moved = 0
        for row in [*range(len(uses_R)), NOTHING]:
            room = float("inf") if row == NOTHING else problem.high_R[row] - uses_R[row]
            columns = np.flatnonzero(problem.row_O == row)
            if room < 1 or not len(columns):
                continue
            who, option, better, dearer = _better(problem, choice_C, columns, money)
            order = np.argsort(-better, kind="stable")
            order = order[: int(min(room, len(order)))]
            fits = np.cumsum(np.maximum(dearer[order], 0)) <= money
            order = order[fits]
            if not len(order):
                continue
            before = choice_C[who[order]].astype(np.int64)
            left = problem.row_O[before[before != NOTHING]]
            uses_R -= np.bincount(left[left >= 0], minlength=len(uses_R))
            if row != NOTHING:
                uses_R[row] += len(order)
            choice_C[who[order]] = option[order]
            money -= float(dearer[order].sum())
            moved += len(order)
        if not moved:
            break
    return choice_C


def _better(
    problem: Problem, choice_C: np.ndarray, columns: np.ndarray, money: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Customers who would gain by one of ``columns`` and whom the money left allows: who, option, gain, extra cost."""
    parts = []
    for part in problem.chunks():
        gain = problem.gain_CO[part]
        choice = choice_C[part].astype(np.int64)
        at = np.arange(len(gain))
        now = np.where(choice != NOTHING, gain[at, choice], 0)
        paid = np.where(choice != NOTHING, problem.cost_of(np.arange(part.start, part.stop), choice), 0.0)
        extra = problem.cost_of(part)[:, columns] - paid[:, None]
        inside = np.where(extra <= money, gain[:, columns], -np.inf)
        best = inside.argmax(axis=1)
        better = inside[at, best] - now
        if problem.row_O[columns[0]] != NOTHING:  # within a row nobody moves: the room would be counted twice
            same = (choice != NOTHING) & (problem.row_O[choice] == problem.row_O[columns[0]])
            better = np.where(same, 0, better)
        found = np.flatnonzero(better > 0)
        parts.append((found + part.start, columns[best[found]], better[found], extra[found, best[found]]))
    who, option, better, dearer = (np.concatenate(column) for column in zip(*parts, strict=True))
    return who, option, better, dearer


def _reduced_of(problem: Problem, prices: Prices, who: np.ndarray, option: np.ndarray) -> np.ndarray:
    """Gain less prices of one option each, float64."""
    toll_O = np.where(problem.row_O >= 0, np.append(prices.row_R, 0.0)[problem.row_O], 0.0)
    worth = problem.gain_CO[who, option] - prices.budget * problem.cost_of(who, option) - toll_O[option]
    if problem.group_C is not None and prices.group_G.any():
        worth = worth - prices.group_G[problem.group_C[who]]
    return worth


def _has_option(problem: Problem) -> np.ndarray:
    return np.concatenate([np.isfinite(problem.gain_CO[part]).any(axis=1) for part in problem.chunks()])


def _tightened(problem: Problem, excess: Excess) -> Problem:
    gap = problem.gap
    return replace(
        problem,
        budget=problem.budget - 2 * excess.budget,
        gap=None if gap is None else max(0.0, gap - 2 * excess.gap),
    )
