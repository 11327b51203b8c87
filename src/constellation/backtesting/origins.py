"""Where a backtest cuts: origins that the data allow, and what can be learned and selected before each."""

from __future__ import annotations

import calendar
import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from constellation.errors import InputError
from constellation.journeys.derived_windows import settle
from constellation.journeys.store import MICROSECONDS_PER_DAY, Store
from constellation.journeys.windows import CLOCK_CHANGE, Windows, can_teach, format_time, parse_cutoff

MONTH_GRACE_DAYS = 3
"""Months are 28 to 31 days long, so a quarter that ends with a month may lack so many days of three times 30."""


@dataclass(frozen=True)
class Origin:
    """One cutoff of a backtest.

    name: the date as given. horizons_days: those that end inside the data. trainable_days: of those, the ones that
    labels before the origin can teach. select_days: models are selected at a cutoff so many days before the origin.
    learned_days: the horizons a model is trained on: the trainable ones, and a shorter one where the history is too
    short to select on any of them.
    """

    name: str
    cutoff: int
    horizons_days: tuple[int, ...]
    trainable_days: tuple[int, ...]
    select_days: int
    learned_days: tuple[int, ...]

    @property
    def all_days(self) -> tuple[int, ...]:
        """What is asked and what is learned, for whoever learns from any history."""
        return tuple(sorted({*self.horizons_days, *self.learned_days}))

    def windows(self, windows: Windows, holdout_share: float, horizons_days: tuple[int, ...] | None = None) -> Windows:
        """The windows of a study at this origin: it selects ``select_days`` before and refits up to the origin."""
        return replace(
            windows,
            val_cutoff=days_earlier(self.name, self.select_days),
            test_cutoff=self.name,
            horizons_days=horizons_days or self.learned_days,
            holdout_share=holdout_share,
        )


def plan(
    store: Store,
    windows: Windows,
    *,
    origins: Sequence[str] | None = None,
    horizons_days: Sequence[int] | None = None,
    max_origins: int = 10,
) -> list[Origin]:
    """The origins in order of time; by default month ends, see :func:`default_origins`.

    Raises InputError where an origin is not a time, or none leaves room for the shortest horizon.
    """
    if not store.has_clock:
        raise InputError(
            "A backtest moves its origin along the calendar, but these data know the order of events only "
            "(clock: order). Use `constellation train`, which splits by order."
        )
    horizons_days = horizons_days or windows.backtest_horizons_days or windows.horizons_days
    horizons_days = horizons_days or settle(windows, store).horizons_days
    origins = origins or windows.backtest_origins
    chosen = sorted({int(days) for days in horizons_days})
    if not chosen or chosen[0] < 1:
        raise InputError(f"horizons_days must be whole days of at least 1, found {list(horizons_days)}.")
    names = [str(name) for name in origins] if origins else default_origins(store, windows, chosen[0], max_origins)
    zone, last, first = store.schema.timezone, store.manifest.observed_until, windows.earliest(store)
    planned = []
    for name in names:
        cutoff = parse_cutoff(name, zone)
        inside = [days for days in chosen if cutoff + days * MICROSECONDS_PER_DAY <= last + CLOCK_CHANGE]
        if not inside:
            raise InputError(
                f"From the origin {name} even the shortest horizon ({chosen[0]} days) ends after the data do "
                f"({format_time(last, zone)}). Choose earlier origins or shorter horizons_days."
            )
        history_days = (cutoff - first) / MICROSECONDS_PER_DAY
        if history_days < 2:
            raise InputError(
                f"The origin {name} has no history: training may begin {format_time(first, zone)}. Choose later ones."
            )
        trainable = [days for days in inside if can_teach(history_days, days)]
        selectable = [days for days in trainable if can_teach(history_days, days, num_held_out=1)]
        select_days = selectable[-1] if selectable else max(1, int(history_days / 4))
        learned = sorted({*trainable, *([] if selectable else [select_days])})
        planned.append(Origin(name, cutoff, tuple(inside), tuple(trainable), select_days, tuple(learned)))
    return sorted(planned, key=lambda origin: origin.cutoff)


def default_origins(store: Store, windows: Windows, shortest_days: int, max_origins: int = 10) -> list[str]:
    """Month ends with room for the shortest horizon after them, and twice that and a third of the data before them.

    Where fewer than three fit, dates half a horizon apart. More than ``max_origins`` are thinned evenly.
    """
    zone, first, last = store.schema.timezone, windows.earliest(store), store.manifest.observed_until
    span_days = (last - first) / MICROSECONDS_PER_DAY
    least_days = max(2 * shortest_days, span_days / 3)

    def fits(date: dt.date, grace_days: int) -> bool:
        cutoff = parse_cutoff(date.isoformat(), zone)
        before = (cutoff - first) / MICROSECONDS_PER_DAY >= least_days - grace_days
        return before and cutoff + shortest_days * MICROSECONDS_PER_DAY <= last + CLOCK_CHANGE

    start, end = (dt.date.fromisoformat(format_time(moment, zone)[:10]) for moment in (first, last))
    days = [start + dt.timedelta(days=number) for number in range((end - start).days + 1)]
    month_ends = [day for day in days if day.day == calendar.monthrange(day.year, day.month)[1]]
    dates = [day for day in month_ends if fits(day, MONTH_GRACE_DAYS)]
    if len(dates) < 3:
        dates = [day for day in days if fits(day, 0)][:: -max(1, shortest_days // 2)][::-1]
    if not dates:
        raise InputError(
            f"No origin leaves twice {shortest_days} days of history and {shortest_days} days to come: training may "
            f"begin {format_time(first, zone)} and the data end {format_time(last, zone)}. Give shorter horizons_days."
        )
    places = np.unique(np.linspace(0, len(dates) - 1, min(max_origins, len(dates))).round().astype(int))
    return [dates[place].isoformat() for place in places]


def days_earlier(name: str, days: int) -> str:
    """A date, or an ISO time, so many days before another."""
    moment = dt.datetime.fromisoformat(name) - dt.timedelta(days=days)
    is_date = len(name) <= 10 and "T" not in name
    return moment.date().isoformat() if is_date else moment.isoformat()


def independent_windows(origins: Sequence[Origin], horizon_days: int) -> int:
    """How many windows of this horizon follow one another without overlap: what a spread over origins is worth."""
    count, end = 0, -(1 << 62)
    for origin in sorted(origins, key=lambda origin: origin.cutoff):
        if horizon_days in origin.horizons_days and origin.cutoff >= end - CLOCK_CHANGE:
            count, end = count + 1, origin.cutoff + horizon_days * MICROSECONDS_PER_DAY
    return count
