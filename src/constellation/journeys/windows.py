"""Cutoffs, horizons and splits: when it is asked, over how long, and of whom nothing is learned."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol
from zoneinfo import ZoneInfo

import numpy as np

from constellation import zones
from constellation.errors import InputError
from constellation.journeys.questions import CLOCK_CHANGE, Queries, Until, ask, at_risk, days_before
from constellation.journeys.store import MICROSECONDS_PER_DAY, Store

TAUGHT_SHARE = 0.25
"""A horizon can be learned where training cutoffs spread over this share of it: on fewer days everybody is new."""


def can_teach(history_days: float, horizon_days: int, *, num_held_out: int = 0) -> bool:
    """Whether a history holds labels enough of a horizon, beside so many whole ones kept to select on."""
    return history_days >= (1 + num_held_out + TAUGHT_SHARE) * horizon_days


DERIVED = "auto"
"""In place of a cutoff: derived from the span of the data, see ``journeys/derived_windows.py``."""


def parse_cutoff(text: str, timezone: str) -> int:
    """Microseconds since 1970 UTC. A date without a time is the last microsecond of that day in ``timezone``."""
    text = str(text).strip()
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        raise InputError(
            f"The cutoff {text!r} is not a time. Write a date (2017-09-30, its whole day is seen) "
            "or an ISO time (2017-09-30T12:00:00)."
        ) from None
    if moment.tzinfo is not None:
        return _microseconds(moment - zones.EPOCH)
    local = _microseconds(moment - zones.EPOCH.replace(tzinfo=None))
    if not _is_date(text):
        return int(zones.to_utc(np.array([local]), timezone)[0])
    # Up to the first moment of the next day: a day may have 23 or 25 hours, and its last one may come twice.
    return int(zones.to_utc(np.array([local + MICROSECONDS_PER_DAY]), timezone)[0]) - 1


def _is_date(text: str) -> bool:
    """A date alone, in any of the spellings of ISO 8601 (2017-09-30, 20170930, 2017-W39-6)."""
    try:
        dt.date.fromisoformat(text)
    except ValueError:
        return False
    return True


def _microseconds(since: dt.timedelta) -> int:
    return since // dt.timedelta(microseconds=1)


def format_time(time: int, timezone: str) -> str:
    """``2017-09-30 23:59`` in the zone of the data set."""
    # Somebody's 9999-12-31 plus a horizon lies beyond what a datetime can hold.
    time = min(max(int(time), zones.year_start(2)), zones.year_start(9999))
    moment = zones.EPOCH + dt.timedelta(microseconds=time)
    return f"{moment.astimezone(ZoneInfo(timezone)):%Y-%m-%d %H:%M}"


@dataclass(frozen=True)
class Windows:
    """The split by time and by customer.

    val_cutoff, test_cutoff: models are selected with horizons that end at or before the first, and refitted with
    horizons that end at or before the second. horizons_days: what is asked, ascending. Left out (or ``auto`` and an
    empty list) they follow from the span of the data, see :func:`constellation.journeys.derived_windows.settle`.
    holdout_share: customers never trained on, by a stable hash of their id; reported as ``test_new``.
    train_cutoffs_every_days: the grid of training cutoffs.
    first_cutoff: the earliest training cutoff, for data whose first weeks are no fair history; null: the first event.
    room_days: training cutoffs leave at least so many days for what follows them; null: the shortest horizon. Fewer
        serve questions of time and buy-till-you-die models, which learn from answers that are censored.
    exclude_seen: leave what a customer already has out of the ranking of next products (films), or not (groceries).
    backtest_horizons_days, backtest_origins: what a backtest asks where it is not told; empty: ``horizons_days``, and
    the ends of months.
    """

    val_cutoff: str = DERIVED
    test_cutoff: str = DERIVED
    horizons_days: tuple[int, ...] = ()
    holdout_share: float = 0.1
    train_cutoffs_every_days: int = 7
    first_cutoff: str | None = None
    exclude_seen: bool = False
    room_days: int | None = None
    backtest_horizons_days: tuple[int, ...] = ()
    backtest_origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("val_cutoff", "test_cutoff"):
            object.__setattr__(self, name, str(getattr(self, name) or DERIVED))  # YAML may say null
        object.__setattr__(self, "horizons_days", _whole_days(self.horizons_days))
        horizons = self.horizons_days
        if any(days < 1 for days in horizons) or any(b <= a for a, b in itertools.pairwise(horizons)):
            raise InputError(f"horizons_days must be whole days, ascending, found {list(horizons)}.")
        if self.room_days is not None and (self.room_days < 1 or (horizons and self.room_days > horizons[0])):
            most = horizons[0] if horizons else "that"
            raise InputError(f"room_days must lie in 1 .. {most}, the shortest horizon, found {self.room_days}.")
        if not 0 <= self.holdout_share < 1:
            raise InputError(f"holdout_share must lie in [0, 1), found {self.holdout_share}.")
        if self.train_cutoffs_every_days < 1:
            raise InputError(f"train_cutoffs_every_days must be at least 1, found {self.train_cutoffs_every_days}.")

    @property
    def is_open(self) -> bool:
        """Whether a cutoff or the horizons still have to be derived from the data."""
        return DERIVED in (self.val_cutoff, self.test_cutoff) or not self.horizons_days

    @property
    def least_room_days(self) -> int:
        """Between a training cutoff and the end of what is known."""
        return self.horizons_days[0] if self.room_days is None else self.room_days

    def earliest(self, store: Store) -> int:
        """Training cutoffs lie at or after this moment."""
        if self.first_cutoff is None:
            return store.manifest.first_time
        return parse_cutoff(self.first_cutoff, store.schema.timezone)

    def taught_days(self, store: Store, until: int) -> tuple[int, ...]:
        """The horizons that labels known by ``until``, microseconds UTC, can teach."""
        history_days = (until - self.earliest(store)) / MICROSECONDS_PER_DAY
        return tuple(days for days in self.horizons_days if can_teach(history_days, days))

    def cutoffs(self, store: Store) -> tuple[int, int]:
        """Validation and test cutoff in microseconds, checked against each other and against the data."""
        if not store.has_clock:
            raise InputError(
                "The windows are dates, but of these events only the order is known (clock: order). "
                "Split them by the last events of each customer: `_target_: "
                "constellation.journeys.last_events.LastEvents` under windows."
            )
        assert not self.is_open, "derived_windows.settle comes first"
        zone = store.schema.timezone
        val, test = parse_cutoff(self.val_cutoff, zone), parse_cutoff(self.test_cutoff, zone)
        if val >= test:
            raise InputError(f"val_cutoff {self.val_cutoff} must lie before test_cutoff {self.test_cutoff}.")
        check_horizon(store, test, self.horizons_days[-1])
        first = self.earliest(store)
        if val - self.least_room_days * MICROSECONDS_PER_DAY <= first:
            raise InputError(
                f"No training cutoff fits: the first may lie at {format_time(first, zone)} and the shortest horizon "
                f"({self.least_room_days} days) must end at or before val_cutoff {self.val_cutoff}. "
                "Move val_cutoff later or shorten the horizons."
            )
        return val, test

    def known_until(self, store: Store) -> tuple[Until, Until]:
        """What selection may know, and what the refit may know: the two cutoffs."""
        return self.cutoffs(store)

    def panel(self, store: Store, until: Until, journeys: np.ndarray) -> Queries:
        """Training questions; see :func:`panel`."""
        assert isinstance(until, int)
        return panel(store, self, known_until=until, journeys=journeys)

    def questions(self, store: Store, cutoff: Until, known_until: Until, journeys: np.ndarray) -> Queries:
        """Everybody at risk at the cutoff, with the answers known by ``known_until``."""
        assert isinstance(cutoff, int)
        risk = at_risk(store, cutoff, journeys)
        return ask(store, risk, np.full(len(risk), cutoff), self.horizons_days, known_until)

    def describe(self, store: Store) -> str:
        """One line for the terminal."""
        val, test = (format_time(cutoff, store.schema.timezone) for cutoff in self.cutoffs(store))
        horizons = ", ".join(str(days) for days in self.horizons_days)
        return f"select at {val}, refit and test at {test}, horizons {horizons} days"

    def facts(self) -> dict[str, str | int | bool]:
        """For the model card."""
        seen: dict[str, str | int | bool] = {"exclude_seen": True} if self.exclude_seen else {}
        return {"val_cutoff": self.val_cutoff, "test_cutoff": self.test_cutoff} | seen


def latest_cutoff(store: Store, horizon_days: int) -> dt.date:
    """The last local date whose whole day leaves ``horizon_days`` until the data end."""
    return latest_date(store.manifest.observed_until, horizon_days, store.schema.timezone)


def latest_date(until: int, horizon_days: int, timezone: str) -> dt.date:
    """The last local date whose whole day leaves ``horizon_days`` until the moment ``until``, microseconds UTC."""
    latest = until - horizon_days * MICROSECONDS_PER_DAY + CLOCK_CHANGE
    date = dt.date.fromisoformat(format_time(latest, timezone)[:10])
    while parse_cutoff(date.isoformat(), timezone) > latest:
        date -= dt.timedelta(days=1)  # the moment may lie within a day, and a clock change moves it
    return date


def check_horizon(store: Store, cutoff: int, horizon_days: int) -> None:
    """Raise InputError where the horizon ends after the data do, naming the latest possible cutoff."""
    zone = store.schema.timezone
    end, last = cutoff + horizon_days * MICROSECONDS_PER_DAY, store.manifest.observed_until
    if end > last + CLOCK_CHANGE:
        latest_day = latest_cutoff(store, horizon_days)
        cure = f"Move the cutoff to {latest_day} or earlier, or shorten horizons_days."
        if parse_cutoff(latest_day.isoformat(), zone) <= store.manifest.first_time:
            cure = (
                f"That is longer than the data, which begin {format_time(store.manifest.first_time, zone)}: shorten it."
            )
        raise InputError(
            f"The horizon of {horizon_days} days ends {format_time(end, zone)}, after the data do "
            f"({format_time(last, zone)}). {cure}"
        )


def _whole_days(given: object) -> tuple[int, ...]:
    """Horizons as YAML may give them: a list, nothing, or ``auto`` for nothing."""
    if given is None or given == DERIVED:
        return ()
    if not isinstance(given, Iterable) or isinstance(given, str):
        raise InputError(f"horizons_days must be a list of whole days, such as [30, 91], found {given!r}.")
    return tuple(int(days) for days in given)


class HoldsOut(Protocol):
    """A split by customer."""

    @property
    def holdout_share(self) -> float: ...


def held_out(store: Store, windows: HoldsOut) -> np.ndarray:
    """Mask [C] of customers never trained on: a stable hash of the id, so the same people in every run and store."""
    if windows.holdout_share == 0:
        return np.zeros(store.num_customers, dtype=bool)
    import pandas as pd

    names = pd.Index(store.customer_id_C).astype(str).to_numpy(dtype=object)
    hashes = pd.util.hash_array(names, hash_key="constellation!!!", categorize=False)
    return (hashes >> np.uint64(11)).astype(np.float64) / 2.0**53 < windows.holdout_share


def panel(store: Store, windows: Windows, *, known_until: int, journeys: np.ndarray) -> Queries:
    """Training questions on a grid of cutoffs, every ``train_cutoffs_every_days`` back from ``known_until``.

    The latest cutoff leaves room for the shortest horizon; longer horizons that do not fit are censored.
    Only customers at risk at each cutoff are asked about.
    """
    latest = known_until - windows.least_room_days * MICROSECONDS_PER_DAY
    grid = days_before(store, latest, windows.earliest(store), windows.train_cutoffs_every_days)
    journey_parts, cutoff_parts = [], []
    for cutoff in grid.tolist():
        risk = at_risk(store, cutoff, journeys)
        if len(risk):
            journey_parts.append(risk)
            cutoff_parts.append(np.full(len(risk), cutoff))
    if not journey_parts:
        zone = store.schema.timezone
        raise InputError(
            f"No training question fits: no customer has an event {windows.horizons_days[0]} days before "
            f"{format_time(known_until, zone)}. Move the cutoff later or shorten horizons_days."
        )
    return ask(store, np.concatenate(journey_parts), np.concatenate(cutoff_parts), windows.horizons_days, known_until)
