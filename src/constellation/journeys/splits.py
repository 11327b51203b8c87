"""The questions of a data set: what selection learns from and is scored on, what the refit learns from, the test."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from constellation.errors import InputError
from constellation.journeys.derived_windows import settle
from constellation.journeys.last_events import LastEvents
from constellation.journeys.store import Store
from constellation.journeys.windows import Queries, Until, Windows, held_out


@dataclass
class Splits:
    """All questions follow from the store and the windows.

    Selection trains on horizons that end at or before the validation cutoff and is scored at it, on horizons that end
    at or before the test cutoff; the refit trains on horizons that end at or before the test cutoff. Customers held out
    are in neither; the test asks everybody at risk.

    select_until, refit_until: the last moment that each phase may know, one for all (the cutoffs of :class:`Windows`)
    or one for each customer (:class:`LastEvents`). windows: as given; what they leave open is derived from the store.
    """

    store: Store
    windows: Windows | LastEvents

    def __post_init__(self) -> None:
        self.windows = settle(self.windows, self.store)
        self.select_until, self.refit_until = self.windows.known_until(self.store)
        self.held_out_C = held_out(self.store, self.windows)
        self.train_journeys = np.flatnonzero(~self.held_out_C)

    @property
    def val_cutoff(self) -> int:
        """Microseconds UTC. Raises InputError where customers have cutoffs of their own."""
        return _one_date(self.select_until)

    @property
    def test_cutoff(self) -> int:
        """Microseconds UTC. Raises InputError where customers have cutoffs of their own."""
        return _one_date(self.refit_until)

    @cached_property
    def select_panel(self) -> Queries:
        return self.windows.panel(self.store, self.select_until, self.train_journeys)

    @cached_property
    def refit_panel(self) -> Queries:
        return self.windows.panel(self.store, self.refit_until, self.train_journeys)

    @cached_property
    def val(self) -> Queries:
        return self.windows.questions(self.store, self.select_until, self.refit_until, self.train_journeys)

    @cached_property
    def test(self) -> Queries:
        everybody = np.arange(self.store.num_customers)
        return self.windows.questions(self.store, self.refit_until, self.store.manifest.observed_until, everybody)

    @cached_property
    def test_is_new_Q(self) -> np.ndarray:
        """Mask over ``test``: customers never trained on."""
        return self.held_out_C[self.test.journey_Q]


def time_windows(windows: Windows | LastEvents) -> Windows:
    """The windows, where they are dates; else InputError."""
    if isinstance(windows, Windows):
        return windows
    raise InputError(_NO_DATE)


def _one_date(until: Until) -> int:
    if isinstance(until, np.ndarray):
        raise InputError(_NO_DATE)
    return until


_NO_DATE = (
    "This needs a cutoff that is one date for all, but these data are split by the last events of each customer "
    "(windows: LastEvents). Use a data set whose windows have val_cutoff and test_cutoff."
)
