"""A share of customers whose engagement is drawn, so that the next round can learn; with propensities to log."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from constellation.allocation.problem import CHUNK, NOTHING, Problem


@dataclass(frozen=True)
class Exploration:
    """share: of the customers, as drawn. is_explorer_C: who they are. choice_C: their options, -1 for none.

    num_withdrawn: draws that were turned into ``none`` because a limit was full, which the propensities leave out.
    """

    share: float
    is_explorer_C: np.ndarray
    choice_C: np.ndarray
    num_withdrawn: int
    scale_O: np.ndarray
    weight_CA: np.ndarray | None
    none_weight_C: np.ndarray | None

    def probabilities(self, allowed_CO: np.ndarray, part: slice) -> np.ndarray:
        """What an explorer draws, [n, O + 1], ``none`` last; ``allowed_CO`` is that of the part."""
        if self.weight_CA is None or self.none_weight_C is None:
            weight, none = allowed_CO.astype(np.float64), np.ones(len(allowed_CO))
        else:
            num_windows = allowed_CO.shape[1] // self.weight_CA.shape[1]
            weight = np.tile(self.weight_CA[part], (1, num_windows)).astype(np.float64) / num_windows * allowed_CO
            none = self.none_weight_C[part].astype(np.float64)
        total = weight.sum(axis=1) + none
        none = np.where(total > 0, none, 1.0)
        drawn = weight / np.where(total > 0, total, 1.0)[:, None] * self.scale_O
        return np.concatenate([drawn, 1 - drawn.sum(axis=1, keepdims=True)], axis=1)


def explore(
    problem: Problem,
    allowed_CO: np.ndarray,
    share: float,
    seed: int,
    weight_CA: np.ndarray | None = None,
    none_weight_C: np.ndarray | None = None,
) -> Exploration:
    """Draw ``ceil(share * C)`` customers, and an allowed option or ``none`` for each.

    Options are equally likely (``none`` among them), or as ``weight_CA`` has it. Where that would take more of a limit
    than the explorers' own share of it, its options are drawn more rarely and ``none`` more often, so that exploration
    never starves the plan.
    """
    num = len(problem)
    num_explorers = math.ceil(share * num - 1e-9)
    generator = np.random.default_rng(seed)
    explorers = np.sort(generator.choice(num, num_explorers, replace=False))
    is_explorer_C = np.zeros(num, dtype=bool)
    is_explorer_C[explorers] = True
    share = num_explorers / num
    plain = Exploration(
        share=share,
        is_explorer_C=is_explorer_C,
        choice_C=np.full(num, NOTHING, dtype=np.int16),
        num_withdrawn=0,
        scale_O=np.ones(problem.num_options),
        weight_CA=weight_CA,
        none_weight_C=none_weight_C,
    )
    found = Exploration(**{**plain.__dict__, "scale_O": _scale(problem, allowed_CO, plain)})
    choice_C = found.choice_C
    for start in range(0, num, CHUNK):
        part = slice(start, min(start + CHUNK, num))
        who = np.flatnonzero(is_explorer_C[part])
        running = np.cumsum(found.probabilities(allowed_CO[part], part)[who], axis=1)
        option = (running < generator.random((len(who), 1)) * running[:, -1:]).sum(axis=1)
        choice_C[start + who] = np.where(option >= problem.num_options, NOTHING, option)
    num_withdrawn = _withdraw(problem, choice_C, generator)
    return Exploration(**{**found.__dict__, "choice_C": choice_C, "num_withdrawn": num_withdrawn})


def _scale(problem: Problem, allowed_CO: np.ndarray, plain: Exploration) -> np.ndarray:
    """By how much each option is drawn more rarely, so that limits are shared in proportion [O]."""
    expected_O, cost_O = np.zeros(problem.num_options), np.zeros(problem.num_options)
    for part in problem.chunks():
        drawn = plain.probabilities(allowed_CO[part], part)[:, :-1]
        expected_O += drawn.sum(axis=0)
        cost_O += (drawn * problem.cost_of(part)).sum(axis=0)
    # Both sides of each limit are times the share of explorers, which cancels.
    scale_O = np.ones(problem.num_options)
    for row, high in enumerate(problem.high_R):
        columns = problem.row_O == row
        scale_O[columns] = min(1.0, high / max(float(expected_O[columns].sum()), 1e-12))
    cost = float((cost_O * scale_O).sum())
    if cost > problem.budget:
        scale_O = np.where(cost_O > 0, scale_O * problem.budget / cost, scale_O)
    return scale_O


def _withdraw(problem: Problem, choice_C: np.ndarray, generator: np.random.Generator) -> int:
    """Turn draws beyond a limit into ``none``, in random order; how many. Changes ``choice_C``."""
    chosen = generator.permutation(np.flatnonzero(choice_C != NOTHING))
    option = choice_C[chosen].astype(np.int64)
    row, kept = problem.row_O[option], np.ones(len(chosen), dtype=bool)
    for index, high in enumerate(problem.high_R):
        if np.isfinite(high):
            kept[np.flatnonzero(row == index)[int(high) :]] = False
    cost = problem.cost_of(chosen, option)
    kept &= (np.cumsum(np.where(kept, cost, 0)) <= problem.budget) | (cost == 0)
    choice_C[chosen[~kept]] = NOTHING
    return int((~kept).sum())
