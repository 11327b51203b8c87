"""Cutoffs and horizons that a data set leaves open, derived from the span of its events."""

from __future__ import annotations

from dataclasses import replace

from constellation.errors import InputError
from constellation.journeys.last_events import LastEvents
from constellation.journeys.purchases import median_wait_days
from constellation.journeys.store import MICROSECONDS_PER_DAY, Store
from constellation.journeys.windows import (
    DERIVED,
    Windows,
    can_teach,
    format_time,
    latest_cutoff,
    latest_date,
    parse_cutoff,
)

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
    longest horizon. The validation cutoff lies one horizon before it: the longest that labels before that can teach.
    Raises InputError where the data are too short for any horizon.
    """
    if not isinstance(windows, Windows) or not windows.is_open or not store.has_clock:
        return windows  # where only the order is known, Windows says itself what to do
    windows = replace(windows, horizons_days=windows.horizons_days or _horizons(windows, store))
    longest, follows = windows.horizons_days[-1], windows.test_cutoff == DERIVED
    if follows:
        latest = latest_cutoff(store, longest).isoformat()
        if windows.val_cutoff != DERIVED and latest <= windows.val_cutoff:
            zone = store.schema.timezone
            raise InputError(
                f"After val_cutoff {windows.val_cutoff} no test cutoff leaves {longest} days: the data end "
                f"{format_time(store.manifest.observed_until, zone)}. Move val_cutoff earlier or shorten horizons_days."
            )
        windows = replace(windows, test_cutoff=latest)
    if windows.val_cutoff == DERIVED:
        zone, select_days = store.schema.timezone, _select_days(windows, store, test_follows=follows)
        latest_val = latest_date(parse_cutoff(windows.test_cutoff, zone), select_days, zone)
        windows = replace(windows, val_cutoff=latest_val.isoformat())
    return windows


def _select_days(windows: Windows, store: Store, *, test_follows: bool) -> int:
    """The longest horizon that can be learned before a validation cutoff so many days before the test cutoff; of the
    shortest a first label will do. Raises InputError where there is not even that.

    test_follows: shorter horizons move the test cutoff later, for nobody gave it.
    """
    zone, first = store.schema.timezone, windows.earliest(store)
    history_days = (parse_cutoff(windows.test_cutoff, zone) - first) / MICROSECONDS_PER_DAY
    shortest = windows.horizons_days[0]
    for days in windows.horizons_days[:0:-1]:
        if can_teach(history_days, days, num_held_out=1):
            return days
    needed_days = shortest + windows.least_room_days
    if history_days > needed_days:
        return shortest
    longest = windows.horizons_days[-1]
    span_days = (store.manifest.observed_until - first) / MICROSECONDS_PER_DAY
    later, most_days = "Set", (span_days - 1) / 3
    if not test_follows:
        later, most_days = "Move windows.test_cutoff later, set", (history_days - 1) / 2
    raise InputError(
        f"The horizons {list(windows.horizons_days)} days leave no history to learn from: the data span "
        f"{format_time(first, zone)} to {format_time(store.manifest.observed_until, zone)}, {span_days:.0f} days; "
        f"a test over {longest} days begins {windows.test_cutoff}, after {max(history_days, 0):.0f} days, and learning "
        f"and validating need more than {needed_days}. {later} windows.horizons_days to at most "
        f"[{max(1, int(most_days))}], or leave it out and let it follow from the data."
    )


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
