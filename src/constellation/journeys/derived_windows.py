"""Cutoffs and horizons that a data set leaves open, derived from the span of its events."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

from constellation.errors import InputError
from constellation.journeys.last_events import LastEvents
from constellation.journeys.purchases import median_wait_days
from constellation.journeys.store import MICROSECONDS_PER_DAY, Store
from constellation.journeys.windows import DERIVED, Windows, format_time, latest_cutoff, parse_cutoff

CHOICES_OF_HORIZONS = ((182, 365), (91, 182), (30, 91), (30, 60), (14, 30), (7, 14), (7,), (3,), (1,))
"""A month and a quarter where the history is long enough, ever shorter ones where it is not."""

USUAL_DAYS = 91
WAITS_OF_THE_LONGEST = 2
"""Longer than usual only where customers are slow: over twice the median wait most who come back have done so."""

SPANS_OF_THE_LONGEST = 4
"""Two horizons of history before the validation cutoff, one between the cutoffs, one after the test cutoff."""


def settle(windows: Windows | LastEvents, store: Store) -> Windows | LastEvents:
    """The windows with dates and horizons where they were left open; those that were given stay.

    Horizons: the longest of ``CHOICES_OF_HORIZONS`` that fits between the cutoffs that were given, or four times into
    the span of the data, and is no longer than customers are slow. The test cutoff is the latest day that leaves the
    longest horizon, the validation cutoff one longest horizon before it. Raises InputError where the data are too short
    for any horizon.
    """
    if not isinstance(windows, Windows) or not windows.is_open or not store.has_clock:
        return windows  # where only the order is known, Windows says itself what to do
    windows = replace(windows, horizons_days=windows.horizons_days or _horizons(windows, store))
    longest = windows.horizons_days[-1]
    if windows.test_cutoff == DERIVED:
        latest = latest_cutoff(store, longest).isoformat()
        if windows.val_cutoff != DERIVED and latest <= windows.val_cutoff:
            zone = store.schema.timezone
            raise InputError(
                f"After val_cutoff {windows.val_cutoff} no test cutoff leaves {longest} days: the data end "
                f"{format_time(store.manifest.observed_until, zone)}. Move val_cutoff earlier or shorten horizons_days."
            )
        windows = replace(windows, test_cutoff=latest)
    if windows.val_cutoff == DERIVED:
        test = dt.datetime.fromisoformat(windows.test_cutoff)
        windows = replace(windows, val_cutoff=(test - dt.timedelta(days=longest)).date().isoformat())
    return windows


def _horizons(windows: Windows, store: Store) -> tuple[int, ...]:
    """The longest that what was given leaves room for: a horizon after the test cutoff, one between the two cutoffs,
    and two before the validation cutoff, each piece shared by the cutoffs that are still open in it."""
    zone = store.schema.timezone
    given = [
        None if text == DERIVED else parse_cutoff(text, zone) for text in (windows.val_cutoff, windows.test_cutoff)
    ]
    marks = [windows.earliest(store), *given, store.manifest.observed_until]
    room_days, start, needed = float("inf"), marks[0], 0
    assert start is not None
    for mark, horizons in zip(marks[1:], (SPANS_OF_THE_LONGEST - 2, 1, 1), strict=True):
        needed += horizons
        if mark is not None:
            # A day of grace: the first day and the last are seldom whole.
            room_days = min(room_days, ((mark - start) / MICROSECONDS_PER_DAY + 1) / needed)
            start, needed = mark, 0
    wait_days = median_wait_days(store) or 0.0
    wanted_days = min(
        (horizons[-1] for horizons in CHOICES_OF_HORIZONS if horizons[-1] >= WAITS_OF_THE_LONGEST * wait_days),
        default=float("inf"),
    )
    for horizons_days in CHOICES_OF_HORIZONS:
        if horizons_days[-1] <= min(room_days, max(wanted_days, USUAL_DAYS)):
            return horizons_days
    raise InputError(
        f"The data span {format_time(marks[0] or 0, zone)} to {format_time(marks[-1] or 0, zone)}, which leaves no "
        f"room for history, validation and test of even one day each. Give windows.val_cutoff, windows.test_cutoff and "
        "windows.horizons_days, or bring a longer log."
    )
