"""Random numbers that belong to a customer, a week and a purpose, whatever anybody does: common random numbers.

Every number is addressed by (seed, branch, generation, week, stream, row): the counter of a Philox generator (Salmon,
Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"). So two policies meet the same luck, a
customer's luck does not hang on what was done to another, and the first customers of a larger draw are those of a
smaller one.
"""

from __future__ import annotations

from enum import IntEnum, auto

import numpy as np

from constellation.errors import InputError


class Stream(IntEnum):
    """What a number is for. Only ever add at the end: the place is part of the address."""

    JOIN = auto()
    TRAIT = auto()
    TASTE = auto()
    CURIOSITY_OF_TASTE = auto()
    ACTION = auto()
    VISIT = auto()
    BUY = auto()
    AMOUNT = auto()
    LEAD = auto()
    COMPANION = auto()
    COMPLAIN = auto()
    RESOLVE = auto()
    SURVEY = auto()
    SCORE = auto()
    REFER = auto()
    LEAVE = auto()
    MOMENT = auto()
    SHOP = auto()


class Draws:
    """Uniform numbers in (0, 1) for ``2 * num_customers`` rows: the customers, then the friend each may bring.

    branch: 0 is what happened; others are futures that might have.
    """

    def __init__(self, seed: int, num_customers: int, branch: int = 0) -> None:
        if seed < 0:
            raise InputError(f"seed must be 0 or more, found {seed}.")
        self.num_customers, self.branch = num_customers, branch
        self.key = np.random.SeedSequence(seed).generate_state(2, np.uint64)

    def uniform(self, week: int, stream: Stream, rows: np.ndarray, width: int | None = None) -> np.ndarray:
        """One number (or ``width`` numbers) per row of ``rows``, which ascend."""
        num_own = int(np.searchsorted(rows, self.num_customers))
        own = self._generation(0, week, stream, rows[:num_own], width)
        if num_own == len(rows):
            return own
        return np.concatenate([own, self._generation(1, week, stream, rows[num_own:] - self.num_customers, width)])

    def _generation(
        self, generation: int, week: int, stream: Stream, places: np.ndarray, width: int | None
    ) -> np.ndarray:
        num = int(places[-1]) + 1 if len(places) else 0
        # The lowest word of the counter runs over rows; the others are the address. Weeks start at -1 (traits).
        counter = np.array([0, week + 1, stream, 2 * self.branch + generation], dtype=np.uint64)
        generator = np.random.Generator(np.random.Philox(key=self.key, counter=counter))
        drawn = generator.random(num if width is None else (num, width))
        # The middle of each of the 2^53 cells, so that neither 0 nor 1 comes up and every inverse is finite.
        drawn += 2.0**-54
        return drawn if num == len(places) else drawn[places]
