"""The questions of a data set: what selection learns from and is scored on, what the refit learns from, the test."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from constellation.journeys.store import Store
from constellation.journeys.windows import Queries, Windows, ask, at_risk, held_out, panel


@dataclass
class Splits:
    """All questions follow from the store and the windows.

    Selection trains on horizons that end at or before the validation cutoff and is scored at it, on horizons that end
    at or before the test cutoff; the refit trains on horizons that end at or before the test cutoff. Customers held out
    are in neither; the test asks everybody at risk.
    """

    store: Store
    windows: Windows

    def __post_init__(self) -> None:
        self.val_cutoff, self.test_cutoff = self.windows.cutoffs(self.store)
        self.held_out_C = held_out(self.store, self.windows)
        self.train_journeys = np.flatnonzero(~self.held_out_C)

    @cached_property
    def select_panel(self) -> Queries:
        return panel(self.store, self.windows, known_until=self.val_cutoff, journeys=self.train_journeys)

    @cached_property
    def refit_panel(self) -> Queries:
        return panel(self.store, self.windows, known_until=self.test_cutoff, journeys=self.train_journeys)

    @cached_property
    def val(self) -> Queries:
        return self._at(self.val_cutoff, self.train_journeys, self.test_cutoff)

    @cached_property
    def test(self) -> Queries:
        return self._at(self.test_cutoff, None, self.store.manifest.observed_until)

    @cached_property
    def test_is_new_Q(self) -> np.ndarray:
        """Mask over ``test``: customers never trained on."""
        return self.held_out_C[self.test.journey_Q]

    def _at(self, cutoff: int, journeys: np.ndarray | None, known_until: int) -> Queries:
        risk = at_risk(self.store, cutoff, journeys)
        return ask(self.store, risk, np.full(len(risk), cutoff), self.windows.horizons_days, known_until)
