"""Value against budget for several actions at once, and what targeting adds to contacting at random."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from constellation.errors import InputError
from constellation.policies.intervals import numbered, student
from constellation.policies.terms import Terms


@dataclass(frozen=True)
class Upgrades:
    """The steps of all decisions' upper convex hulls, best value for money first.

    row_S: the decision. action_S: what it is raised to; from_S: what from. cost_S: the extra cost; slope_S: predicted
    gain per unit of it, never rising within a decision.
    """

    row_S: np.ndarray
    action_S: np.ndarray
    from_S: np.ndarray
    cost_S: np.ndarray
    slope_S: np.ndarray


def upgrades(predicted_QA: np.ndarray, cost_QA: np.ndarray, none: int, eligible_QA: np.ndarray) -> Upgrades:
    """Greedy solution of the multiple-choice knapsack, exact but for one decision (Sverdrup et al. 2023, `maq`).

    Per decision, from ``none``: the action with the steepest gain per cost, then from there the next steepest, as long
    as the gain is positive; then all steps of all decisions by slope. Every prefix is the best use of what it costs.
    Costs of all actions but ``none`` must be positive.
    """
    num, num_actions = predicted_QA.shape
    others = [action for action in range(num_actions) if action != none]
    if (cost_QA[:, others] <= 0).any() or (cost_QA[:, none] != 0).any():
        raise InputError("A budget curve needs a cost above 0 for every action but none, and 0 for none.")
    rows = np.arange(num)
    present_Q = np.full(num, none)
    parts = []
    for _ in range(num_actions - 1):
        extra_QA = cost_QA - cost_QA[rows, present_Q][:, None]
        gain_QA = predicted_QA - predicted_QA[rows, present_Q][:, None]
        useful_QA = eligible_QA & (extra_QA > 0) & (gain_QA > 0)
        # An equal slope: the greater step, so that the smaller is not a step of its own.
        slope_QA = np.where(useful_QA, gain_QA / np.where(useful_QA, extra_QA, 1.0), -np.inf)
        next_Q = slope_QA.argmax(axis=1)
        moved_Q = useful_QA[rows, next_Q]
        # Free improvements (an action that costs the same or less and gives more) are taken up within the step before.
        if not moved_Q.any():
            break
        parts.append(
            (
                rows[moved_Q],
                next_Q[moved_Q],
                present_Q[moved_Q],
                extra_QA[rows, next_Q][moved_Q],
                slope_QA[rows, next_Q][moved_Q],
            )
        )
        present_Q = np.where(moved_Q, next_Q, present_Q)
    if not parts:
        nothing = np.empty(0, dtype=np.int64)
        return Upgrades(nothing, nothing, nothing, np.empty(0), np.empty(0))
    row_S, action_S, from_S, cost_S, slope_S = (np.concatenate([part[place] for part in parts]) for place in range(5))
    order = np.argsort(-slope_S, kind="stable")  # steps of a decision stand in the order of its hull already
    return Upgrades(row_S[order], action_S[order], from_S[order], cost_S[order], slope_S[order])


@dataclass(frozen=True)
class BudgetCurve:
    """spend_P: mean cost per decision. gain_P: doubly-robust gain over ``none`` per decision, low_P and high_P its
    95 % interval by customer; random_P: the gain of spending the same at random on ``random_action``."""

    spend_P: np.ndarray
    gain_P: np.ndarray
    low_P: np.ndarray
    high_P: np.ndarray
    random_P: np.ndarray


def spend_up_to(steps: Upgrades, num: int, none: int, spend: float) -> np.ndarray:
    """Action [Q] of each decision when the best steps are taken until ``spend`` per decision is used up."""
    taken = steps.cost_S.cumsum() <= spend * num * (1 + 1e-12)
    choice_Q = np.full(num, none)
    choice_Q[steps.row_S[taken]] = steps.action_S[taken]  # later steps of a decision overwrite its earlier ones
    return choice_Q


def budget_curve(
    predicted_QA: np.ndarray,
    scores_QA: np.ndarray,
    cost_QA: np.ndarray,
    none: int,
    *,
    random_action: int,
    customer_Q: np.ndarray | None = None,
    eligible_QA: np.ndarray | None = None,
    num_points: int = 21,
) -> BudgetCurve:
    """The gain of spending up to each budget in the order that ``predicted_QA`` says, judged by ``scores_QA``.

    predicted_QA by a model that has not seen these customers; scores_QA doubly-robust. Random contact sends
    ``random_action`` to a random share that costs the same.
    """
    num = len(predicted_QA)
    customers = np.arange(num) if customer_Q is None else numbered(customer_Q)
    eligible_QA = np.ones(predicted_QA.shape, dtype=bool) if eligible_QA is None else eligible_QA
    steps = upgrades(predicted_QA, cost_QA, none, eligible_QA)
    total = float(steps.cost_S.sum()) / num
    rows, points = np.arange(num), []
    full = (scores_QA[:, random_action] - scores_QA[:, none]).mean()
    price = cost_QA[:, random_action].mean()
    for spend in np.linspace(0.0, total, num_points):
        choice_Q = spend_up_to(steps, num, none, float(spend))
        gained = student(Terms.mean_of(scores_QA[rows, choice_Q] - scores_QA[:, none]), customers)
        used = float(cost_QA[rows, choice_Q].mean())
        points.append((used, gained.value, gained.low, gained.high, full * min(used / price, 1.0)))
    return BudgetCurve(*(np.array(column) for column in zip(*points, strict=True)))


@dataclass(frozen=True)
class GainOverRandom:
    """At one budget, per decision. gain: over nobody; over_random: more than contacting the same share at random with
    one action; error: standard error of ``over_random`` by customer."""

    share: float
    gain: float
    over_random: float
    error: float


def gain_over_random(
    predicted_QA: np.ndarray,
    scores_QA: np.ndarray,
    none: int,
    shares: tuple[float, ...] = (0.1, 0.25, 0.5),
    *,
    random_action: int,
    customer_Q: np.ndarray | None = None,
) -> list[GainOverRandom]:
    """METHODS 4.6 H2: contact the top share by the greatest predicted gain, the best action each.

    Against contacting every decision with chance ``share`` by ``random_action``: paired, row by row.
    """
    num = len(predicted_QA)
    customers = np.arange(num) if customer_Q is None else customer_Q
    rows, found = np.arange(num), []
    predicted_gain_QA = predicted_QA - predicted_QA[:, none : none + 1]
    predicted_gain_QA[:, none] = -np.inf
    best_Q = predicted_gain_QA.argmax(axis=1)
    order = np.argsort(-predicted_gain_QA[rows, best_Q], kind="stable")
    gain_Q = scores_QA[rows, best_Q] - scores_QA[:, none]
    random_Q = scores_QA[:, random_action] - scores_QA[:, none]
    for share in shares:
        contacted_Q = np.zeros(num)
        contacted_Q[order[: round(share * num)]] = 1.0
        gained = Terms.mean_of(contacted_Q * gain_Q)
        over = Terms.mean_of(contacted_Q * gain_Q - share * random_Q)
        interval = student(over, customers, level=0.6826894921370859)
        found.append(GainOverRandom(share, gained.value, over.value, interval.high - interval.value))
    return found
