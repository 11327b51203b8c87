"""Plans on random instances: no limit is ever broken, nothing better exists, and what cannot be is named."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from constellation.allocation.feasibility import check_feasible
from constellation.allocation.prices import bound, smoothed, worth_of_limits
from constellation.allocation.problem import NOTHING, Prices, Problem
from constellation.allocation.solve import Solution, solve
from constellation.errors import InputError


@st.composite
def problems(draw: st.DrawFn, max_customers: int = 6, max_options: int = 4) -> Problem:
    """Any mix of limits, tight and loose, possible and not; ties, empty rows and forbidden options among them."""
    num, options = draw(st.integers(1, max_customers)), draw(st.integers(1, max_options))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    gain_CO = np.round(generator.normal(0.5, 1, (num, options)), draw(st.sampled_from([0, 3]))).astype(np.float32)
    gain_CO[generator.random(gain_CO.shape) < draw(st.sampled_from([0.0, 0.3]))] = -np.inf
    shape = (num, options) if draw(st.booleans()) else (options,)
    cost = np.round(generator.uniform(0, 2, shape), 2)
    row_O = generator.integers(-1, 2, options)
    high_R = np.array([draw(st.sampled_from([0.0, 1.0, 2.0, np.inf])) for _ in range(2)])
    low_R = np.array([draw(st.sampled_from([0.0, 0.0, 1.0, 2.0])) for _ in range(2)])
    fair = draw(st.booleans())
    group_C = generator.integers(0, 2, num).astype(np.int16)
    return Problem(
        gain_CO=gain_CO,
        cost=cost,
        row_O=row_O,
        low_R=low_R,
        high_R=high_R,
        budget=draw(st.sampled_from([0.0, 1.5, 4.0, np.inf])),
        group_C=group_C if fair else None,
        size_G=np.bincount(group_C, minlength=2).astype(float) if fair else np.zeros(0),
        contacted_G=np.zeros(2 if fair else 0),
        gap=draw(st.sampled_from([0.0, 0.25, 0.6])) if fair else None,
    )


def by_hand(problem: Problem) -> tuple[float, np.ndarray] | None:
    """The best plan by trying all of them, each checked by plain loops; None where none keeps the limits."""
    best = None
    for choice in itertools.product(range(-1, problem.num_options), repeat=len(problem)):
        value, cost, uses, contacts = 0.0, 0.0, np.zeros(len(problem.low_R)), np.zeros(len(problem.size_G))
        for customer, option in enumerate(choice):
            if option < 0:
                continue
            value += float(problem.gain_CO[customer, option])
            cost += float(problem.cost[option] if problem.cost.ndim == 1 else problem.cost[customer, option])
            if problem.row_O[option] >= 0:
                uses[problem.row_O[option]] += 1
            if problem.group_C is not None:
                contacts[problem.group_C[customer]] += 1
        rates = [c / n for c, n in zip(contacts, problem.size_G, strict=True) if n]
        gap = max(rates) - min(rates) if rates else 0.0
        fits = cost <= problem.budget + 1e-9 and bool(((uses >= problem.low_R) & (uses <= problem.high_R)).all())
        fits = fits and (problem.gap is None or gap <= problem.gap + 1e-9)
        if fits and value > -np.inf and (best is None or value > best[0]):
            best = value, np.array(choice)
    return best


def attempt(problem: Problem, method: str) -> Solution | str:
    """A plan, or what is said where there is none."""
    try:
        check_feasible(problem, ["email", "phone"], ["old", "new"])
        return solve(problem, method=method)
    except InputError as error:
        return str(error)


@settings(max_examples=60, deadline=None)
@given(problem=problems(max_customers=4, max_options=3), method=st.sampled_from(["exact", "prices"]))
def test_small_plans_are_the_best_there_are(problem: Problem, method: str) -> None:
    best = by_hand(problem)
    found = attempt(problem, method)
    if isinstance(found, str):
        assert best is None, f"{best} keeps the limits, but: {found}"
        return
    assert best is not None, "a plan was found where there is none"
    assert problem.keeps_limits(found.choice_C)
    assert found.value == pytest.approx(best[0], abs=1e-5)
    assert found.bound >= best[0] - 1e-5


@settings(max_examples=25, deadline=None)
@given(problem=problems(max_customers=80, max_options=8), method=st.sampled_from(["exact", "prices"]))
def test_no_limit_is_ever_broken(problem: Problem, method: str) -> None:
    found = attempt(problem, method)
    if isinstance(found, str):
        assert re.search(r"min_use|max_gap", found), "what cannot be is a limit that asks for contacts, by name"
        return
    chosen = np.flatnonzero(found.choice_C != NOTHING)
    option = found.choice_C[chosen]
    assert np.isfinite(problem.gain_CO[chosen, option]).all()
    cost = problem.cost[option] if problem.cost.ndim == 1 else problem.cost[chosen, option]
    assert cost.sum() <= problem.budget + 1e-9 * max(1.0, problem.budget)
    for row, (low, high) in enumerate(zip(problem.low_R, problem.high_R, strict=True)):
        assert low <= (problem.row_O[option] == row).sum() <= high
    if problem.gap is not None and problem.group_C is not None:
        rates = [np.mean(found.choice_C[problem.group_C == group] != NOTHING) for group in set(problem.group_C)]
        assert max(rates) - min(rates) <= problem.gap + 1e-9


@settings(max_examples=40, deadline=None)
@given(problem=problems(max_customers=20), seed=st.integers(0, 1000))
def test_the_dual_bounds_every_plan_at_any_prices(problem: Problem, seed: int) -> None:
    """Weak duality, for random plans that keep the limits and random prices of the right sign."""
    generator = np.random.default_rng(seed)
    row_R = generator.normal(0, 1, 2)
    row_R = np.where(np.isinf(problem.high_R), np.minimum(row_R, 0), row_R)
    price = generator.exponential() if np.isfinite(problem.budget) else 0.0
    prices = Prices(price, row_R, generator.normal(0, 1, len(problem.size_G)))
    highest = bound(problem, prices)
    softened = smoothed(problem, prices, 0.05).value + worth_of_limits(problem, prices)
    assert highest - 1e-4 <= softened <= highest + len(problem) * 0.05 * np.log(1 + problem.num_options) + 1e-4
    for _ in range(30):
        choice = generator.integers(-1, problem.num_options, len(problem))
        if problem.keeps_limits(choice):
            assert problem.gain_of(choice) <= highest + 1e-3


@pytest.mark.parametrize("fair", [False, True])
@pytest.mark.parametrize("has_minimum", [False, True])
@pytest.mark.parametrize("ties", [False, True])
def test_prices_and_exact_agree_within_half_a_percent(fair: bool, has_minimum: bool, ties: bool) -> None:
    generator = np.random.default_rng(7)
    num, options = 3000, 10
    gain_CO = generator.normal(0.2, 1, (num, options)).astype(np.float32)
    if ties:  # whole segments with the same predictions: prices alone cannot tell customers apart
        gain_CO = gain_CO[generator.integers(0, 12, num)]
    gain_CO[generator.random(gain_CO.shape) < 0.2] = -np.inf
    group_C = generator.integers(0, 3, num).astype(np.int16)
    gain_CO += 0.2 * group_C[:, None]
    problem = Problem(
        gain_CO=gain_CO,
        cost=generator.uniform(0.2, 2, options),
        row_O=np.arange(options) % 4,
        low_R=np.array([0, 0, 900.0 if has_minimum else 0, 0]),
        high_R=np.array([300.0, 240.0, 1200.0, 25.0]),
        budget=700.0 if not has_minimum else 1000.0,
        group_C=group_C,
        size_G=np.bincount(group_C).astype(float),
        contacted_G=np.zeros(3),
        gap=0.02 if fair else None,
    )
    if not fair:
        problem = replace(problem, group_C=None, size_G=np.zeros(0), contacted_G=np.zeros(0))
    exact, priced = solve(problem, method="exact"), solve(problem, method="prices")
    assert problem.keeps_limits(exact.choice_C) and problem.keeps_limits(priced.choice_C)
    assert exact.value > 0
    assert abs(exact.value - priced.value) <= 0.005 * exact.value
    assert priced.value <= exact.bound + 1e-6 * exact.bound
    assert exact.value <= priced.bound + 1e-6 * priced.bound
