"""One plan: offers and constraints in, one engagement (or none) for each customer out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from constellation.allocation.constraints import Constraints
from constellation.allocation.contacts import Contacts, check_rules, open_options
from constellation.allocation.exploration import Exploration, explore
from constellation.allocation.feasibility import check_feasible
from constellation.allocation.offers import Offers
from constellation.allocation.problem import NOTHING, Problem, Uses
from constellation.allocation.solve import EXACT_VARIABLES, Solution, solve
from constellation.errors import InputError

UTILITIES = ("lower", "expected")


@dataclass(frozen=True)
class Plan:
    """A plan and all that explains it. Options ``O`` are engagements ``A`` in time windows, windows outermost.

    choice_C: option, -1 for none. is_open_CO: what caps and cool-downs leave. rules_C: a bit for each cap or
    cool-down that forbids something in every window. problem: all customers under all limits, exploration not taken
    off. solution: of the customers that do not explore, in their order.
    """

    offers: Offers
    constraints: Constraints
    utility: str
    problem: Problem
    row_names: tuple[str, ...]
    is_open_CO: np.ndarray | None
    rules_C: np.ndarray
    exploration: Exploration | None
    solution: Solution
    choice_C: np.ndarray
    propensity_C: np.ndarray
    start: int | None

    @property
    def num_actions(self) -> int:
        return len(self.offers.action)

    @property
    def used(self) -> Uses:
        return self.problem.uses_of(self.choice_C)

    def action_of(self, choice_C: np.ndarray) -> np.ndarray:
        """Place of the engagement of each option, -1 for none."""
        return np.where(choice_C == NOTHING, NOTHING, choice_C % self.num_actions)

    def window_of(self, choice_C: np.ndarray) -> np.ndarray:
        """Time window of each option, -1 for none."""
        return np.where(choice_C == NOTHING, NOTHING, choice_C // self.num_actions)

    def value_of(self, choice_C: np.ndarray, which: str) -> np.ndarray:
        """``expected`` or ``lower`` of each customer under a plan, float64 [C]; waiting is taken off."""
        contact_CA, none_C = values_of(self.offers, which)
        action, window = self.action_of(choice_C), np.maximum(self.window_of(choice_C), 0)
        none_C = none_C.astype(np.float64)
        chosen = contact_CA[np.arange(len(choice_C)), np.maximum(action, 0)]
        kept = self.constraints.kept_per_window**window
        return np.where(action == NOTHING, none_C, none_C + kept * (chosen - none_C))


def values_of(offers: Offers, which: str) -> tuple[np.ndarray, np.ndarray]:
    """Values of engagements [C, A] and of none [C]: ``expected`` or ``lower``."""
    if which == "lower":
        return offers.lower_CA, offers.none_lower_C
    return offers.expected_CA, offers.none_expected_C


def make_plan(
    offers: Offers,
    constraints: Constraints,
    *,
    contacts: Contacts | None = None,
    start: int | None = None,
    utility: str = "lower",
    solver: str = "auto",
    exact_up_to: int = EXACT_VARIABLES,
    seed: int = 0,
) -> Plan:
    """The plan of highest ``utility`` (the sum of lower bounds, or of expectations) within the constraints.

    contacts, start: what was done before, and the plan's first moment in microseconds UTC; needed for caps and
    cool-downs. Raises InputError for limits that contradict each other (they are named), or do not fit the offers.
    """
    if utility not in UTILITIES:
        raise InputError(f"utility must be one of {', '.join(UTILITIES)}, found {utility!r}.")
    if utility == "lower" and np.isnan(offers.lower_CA[offers.eligible_CA]).any():
        raise InputError("utility=lower needs `lower` for every eligible action. Give it, or plan by utility=expected.")
    check_rules(constraints, offers.action, offers.channel)
    is_open_CO, rules_C = None, np.zeros(len(offers), dtype=np.uint64)
    if constraints.looks_back:
        if contacts is None or start is None:
            raise InputError("Caps and cool-downs look back: give contacts=FILE and constraints.start=DATE.")
        is_open_CO, rules_C = open_options(constraints, contacts, start, offers.action, offers.channel, len(offers))
    problem, row_names = build_problem(offers, constraints, is_open_CO, utility)
    exploration, planned = None, problem
    if constraints.exploration > 0:
        allowed_CO = np.isfinite(problem.gain_CO)
        exploration = explore(
            problem, allowed_CO, constraints.exploration, seed, offers.weight_CA, offers.none_weight_C
        )
        used = problem.uses_of(exploration.choice_C)
        planned = problem.take(np.flatnonzero(~exploration.is_explorer_C)).without(used)
    check_feasible(planned, row_names, offers.groups)
    solution = solve(planned, method=solver, exact_up_to=exact_up_to, seed=seed)
    choice_C, propensity_C = _with_exploration(problem, solution, exploration)
    assert problem.keeps_limits(choice_C)
    return Plan(
        offers=offers,
        constraints=constraints,
        utility=utility,
        problem=problem,
        row_names=row_names,
        is_open_CO=is_open_CO,
        rules_C=rules_C,
        exploration=exploration,
        solution=solution,
        choice_C=choice_C,
        propensity_C=propensity_C,
        start=start,
    )


def build_problem(
    offers: Offers, constraints: Constraints, is_open_CO: np.ndarray | None, utility: str
) -> tuple[Problem, tuple[str, ...]]:
    """The linear program of offers under constraints, and the names of its rows: ``email``, by window ``email/2``."""
    num_actions, num_windows = len(offers.action), constraints.num_windows
    contact_CA, none_C = values_of(offers, utility)
    gain_CO = np.empty((len(offers), num_actions * num_windows), dtype=np.float32)
    for window in range(num_windows):
        part = gain_CO[:, window * num_actions : (window + 1) * num_actions]
        np.subtract(contact_CA, none_C[:, None], out=part)
        part *= np.float32(constraints.kept_per_window**window)
        part[~offers.eligible_CA] = -np.inf
    if is_open_CO is not None:
        gain_CO[~is_open_CO] = -np.inf
    names: list[str] = []
    low: list[float] = []
    high: list[float] = []
    row_O = np.full(num_actions * num_windows, -1, dtype=np.int64)
    for channel in sorted(set(offers.channel)):
        highs, lows = constraints.uses("capacity", channel), constraints.uses("min_use", channel)
        for window in range(num_windows):
            if np.isfinite(highs[window]) or lows[window] > 0:
                columns = [at for at, name in enumerate(offers.channel) if name == channel]
                row_O[window * num_actions + np.array(columns)] = len(names)
                names.append(channel if num_windows == 1 else f"{channel}/{window}")
                high.append(float(np.floor(highs[window] + 1e-9)))
                low.append(float(np.ceil(lows[window] - 1e-9)))
    is_fair = constraints.max_gap is not None
    if is_fair and offers.group_C is None:
        raise InputError("constraints.max_gap needs a column `group` in the predictions.")
    size_G = np.zeros(0)
    if is_fair and offers.group_C is not None:
        size_G = np.bincount(offers.group_C, minlength=len(offers.groups)).astype(np.float64)
    repeats = (num_windows,) if offers.cost.ndim == 1 else (1, num_windows)
    problem = Problem(
        gain_CO=gain_CO,
        cost=np.tile(offers.cost, repeats) if num_windows > 1 else offers.cost,
        row_O=row_O,
        low_R=np.array(low),
        high_R=np.array(high),
        budget=float("inf") if constraints.budget is None else float(constraints.budget),
        group_C=offers.group_C if is_fair else None,
        size_G=size_G,
        contacted_G=np.zeros(len(size_G)),
        gap=constraints.max_gap,
    )
    return problem, tuple(names)


def _with_exploration(
    problem: Problem, solution: Solution, exploration: Exploration | None
) -> tuple[np.ndarray, np.ndarray]:
    """Choices of all customers, and the probability with which each was made.

    A planned customer would have explored with probability ``e``, and then drawn this choice with ``q``:
    ``1 - e + e q``. An explorer drew it: ``e q``, and ``1 - e`` more where the plan, at its prices, is the same.
    """
    if exploration is None:
        return solution.choice_C, np.ones(len(problem))
    choice_C = exploration.choice_C.copy()
    choice_C[~exploration.is_explorer_C] = solution.choice_C
    propensity_C = np.empty(len(problem))
    for part in problem.chunks():
        drawn = exploration.probabilities(np.isfinite(problem.gain_CO[part]), part)
        at = np.arange(len(drawn))
        reduced = solution.prices.reduced(problem, part)
        by_plan = np.where(reduced.max(axis=1) > 0, reduced.argmax(axis=1), NOTHING)
        by_plan = np.where(exploration.is_explorer_C[part], by_plan, choice_C[part])
        propensity_C[part] = exploration.share * drawn[at, choice_C[part]]  # none is the last column, and is -1
        propensity_C[part] += (1 - exploration.share) * (by_plan == choice_C[part])
    return choice_C, propensity_C
