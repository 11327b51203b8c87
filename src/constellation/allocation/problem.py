"""The plan as a linear program: at most one option per customer, and limits that all customers share.

maximise the sum of gains over ``none``, subject to
    cost of the chosen options <= budget
    low_R <= uses of each row <= high_R                   (a channel in a time window)
    |contacted_g / size_g - contacted_h / size_h| <= gap  for all groups g, h

The last line is written with a free level ``m``: size_g * m <= contacted_g <= size_g * (m + gap) for every group.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

CHUNK = 65_536
"""Customers at a time: a chunk of a dozen options stays in the processor's cache."""

NOTHING = -1
"""The choice of ``none``."""

TOLERANCE = 1e-9


@dataclass(frozen=True)
class Problem:
    """``C`` customers, ``O`` contact options, ``R`` rows of uses, ``G`` groups.

    gain_CO: float32, value over that of ``none``; -inf where not allowed. cost: float64 [O], or [C, O].
    budget: inf for none. row_O: int64, the row that an option uses up by one, -1 for no row. low_R, high_R: float64.
    group_C: codes or None. size_G: all customers of a group; contacted_G: those of them contacted already, outside
    of these customers. gap: None for no limit between groups.
    """

    gain_CO: np.ndarray
    cost: np.ndarray
    row_O: np.ndarray
    low_R: np.ndarray
    high_R: np.ndarray
    budget: float = float("inf")
    group_C: np.ndarray | None = None
    size_G: np.ndarray = field(default_factory=lambda: np.zeros(0))
    contacted_G: np.ndarray = field(default_factory=lambda: np.zeros(0))
    gap: float | None = None

    def __len__(self) -> int:
        return len(self.gain_CO)

    @property
    def num_options(self) -> int:
        return int(self.gain_CO.shape[1])

    @property
    def is_fair(self) -> bool:
        """Whether a gap between groups is limited."""
        return self.gap is not None

    @property
    def can_only_shrink(self) -> bool:
        """Whether any part of a plan that keeps the limits keeps them too: none asks for contacts."""
        return not self.is_fair and not bool((self.low_R > 0).any())

    def cost_of(self, customers: np.ndarray | slice, options: np.ndarray | None = None) -> np.ndarray:
        """Cost [n, O] of all options, broadcastable, or [n] of one option each."""
        if options is None:
            return self.cost[None, :] if self.cost.ndim == 1 else self.cost[customers]
        return self.cost[options] if self.cost.ndim == 1 else self.cost[customers, options].astype(np.float64)

    def take(self, customers: np.ndarray) -> Problem:
        """The same limits over some of the customers."""
        return replace(
            self,
            gain_CO=self.gain_CO[customers],
            cost=self.cost if self.cost.ndim == 1 else self.cost[customers],
            group_C=None if self.group_C is None else self.group_C[customers],
        )

    def without(self, used: Uses) -> Problem:
        """The same customers with what is left of the limits once ``used`` is taken."""
        return replace(
            self,
            budget=self.budget - used.cost,
            low_R=np.maximum(self.low_R - used.uses_R, 0),
            high_R=self.high_R - used.uses_R,
            contacted_G=self.contacted_G + used.contacts_G,
        )

    def chunks(self) -> Iterator[slice]:
        for start in range(0, len(self), CHUNK):
            yield slice(start, min(start + CHUNK, len(self)))

    def uses_of(self, choice_C: np.ndarray, customers: np.ndarray | None = None) -> Uses:
        """What a plan uses; ``customers`` names the rows that ``choice_C`` is about, if not all."""
        chosen = np.flatnonzero(choice_C != NOTHING)
        options = choice_C[chosen].astype(np.int64)
        who = chosen if customers is None else customers[chosen]
        row = self.row_O[options]
        contacts_G = np.zeros(len(self.size_G))
        if self.group_C is not None and len(self.size_G):
            contacts_G = np.bincount(self.group_C[who], minlength=len(self.size_G)).astype(np.float64)
        return Uses(
            cost=float(self.cost_of(who, options).sum()),
            uses_R=np.bincount(row[row >= 0], minlength=len(self.low_R)).astype(np.float64),
            contacts_G=contacts_G,
        )

    def gain_of(self, choice_C: np.ndarray) -> float:
        """Sum of the gains of a plan."""
        chosen = np.flatnonzero(choice_C != NOTHING)
        return float(self.gain_CO[chosen, choice_C[chosen]].sum(dtype=np.float64))

    def excess(self, used: Uses) -> Excess:
        """By how much a plan's uses pass the limits; zeros where it keeps them."""
        over = used.cost - self.budget
        gap = 0.0
        if self.gap is not None:
            rate_G = (self.contacted_G + used.contacts_G) / np.maximum(self.size_G, 1)
            gap = float(np.ptp(rate_G[self.size_G > 0])) - self.gap
        return Excess(
            budget=over if over > TOLERANCE * max(1.0, abs(self.budget)) else 0.0,
            over_R=np.maximum(used.uses_R - self.high_R, 0),
            under_R=np.maximum(self.low_R - used.uses_R, 0),
            gap=gap if gap > TOLERANCE else 0.0,
        )

    def keeps_limits(self, choice_C: np.ndarray) -> bool:
        """Whether a plan, one option or -1 for every customer, breaks nothing."""
        chosen = np.flatnonzero(choice_C != NOTHING)
        if not np.isfinite(self.gain_CO[chosen, choice_C[chosen]]).all():
            return False
        return not self.excess(self.uses_of(choice_C))


@dataclass(frozen=True)
class Uses:
    """What a plan, or a part of one, uses of the limits."""

    cost: float
    uses_R: np.ndarray
    contacts_G: np.ndarray


@dataclass(frozen=True)
class Excess:
    """By how much limits are passed."""

    budget: float
    over_R: np.ndarray
    under_R: np.ndarray
    gap: float

    def __bool__(self) -> bool:
        return bool(self.budget > 0 or self.over_R.any() or self.under_R.any() or self.gap > 0)


@dataclass(frozen=True)
class Prices:
    """Dual prices: the gain in value per unit of budget, per use of a row, per contact in a group.

    A row's price is below zero where its minimum binds, a group's where it must be contacted more.
    """

    budget: float
    row_R: np.ndarray
    group_G: np.ndarray

    @classmethod
    def zero(cls, problem: Problem) -> Prices:
        return cls(0.0, np.zeros(len(problem.low_R)), np.zeros(len(problem.size_G)))

    def reduced(self, problem: Problem, part: slice | np.ndarray) -> np.ndarray:
        """Gains less prices [n, O] of some customers, float32: a customer's best, or ``none`` at 0, is chosen."""
        toll_O = np.where(problem.row_O >= 0, np.append(self.row_R, 0.0)[problem.row_O], 0.0)
        reduced = problem.gain_CO[part] - (self.budget * problem.cost_of(part) + toll_O).astype(np.float32)
        if problem.group_C is not None and self.group_G.any():
            reduced -= self.group_G[problem.group_C[part]].astype(np.float32)[:, None]
        return reduced
