"""What the history of a data set can teach and select: told to the objectives, or said to whoever asked for more."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from constellation.errors import InputError
from constellation.journeys.splits import Splits
from constellation.journeys.store import MICROSECONDS_PER_DAY
from constellation.journeys.windows import CLOCK_CHANGE, TAUGHT_SHARE, Windows, format_time, latest_date
from constellation.model import JourneyModel

if TYPE_CHECKING:
    from constellation.objectives.base import Objective


def teach(model: JourneyModel, splits: Splits) -> None:
    """Tell the objectives which horizons have labels enough by the test cutoff.

    Raises InputError where one of them needs labels of a horizon that the history cannot hold.
    """
    windows = splits.windows
    if not isinstance(windows, Windows):
        return
    taught_days = windows.taught_days(splits.store, splits.test_cutoff)
    untaught_days = [days for days in windows.horizons_days if days not in taught_days]
    for name, part in model.objectives.items():
        objective = cast("Objective", part)
        if untaught_days and objective.needs_horizon_labels:
            zone, first = splits.store.schema.timezone, windows.earliest(splits.store)
            raise InputError(
                f"The objective {name} learns from horizons that have been seen whole, but from "
                f"{format_time(first, zone)} to test_cutoff {format_time(splits.test_cutoff, zone)} hardly any of "
                f"{' or '.join(str(days) for days in untaught_days)} days fits: they need {1 + TAUGHT_SHARE:g} times "
                "their length. Shorten windows.horizons_days, move the cutoffs later, or take an objective that needs "
                "no such labels: value_pooled, value_btyd, value_hazard."
            )
        objective.teach(taught_days)


def nothing_selects(splits: Splits) -> str:
    """Where even the shortest horizon from the validation cutoff ends after the test cutoff."""
    zone, shortest = splits.store.schema.timezone, splits.val.horizons_days[0]
    between_days = (splits.test_cutoff - splits.val_cutoff) / MICROSECONDS_PER_DAY
    most_days = int((splits.test_cutoff - splits.val_cutoff + CLOCK_CHANGE) // MICROSECONDS_PER_DAY)
    shorter = f", or ask windows.horizons_days of at most {most_days} days" if most_days else ""
    return (
        f"Nothing can be selected: of the horizons {list(splits.val.horizons_days)} days even the shortest, from "
        f"val_cutoff ({format_time(splits.val_cutoff, zone)}), ends after test_cutoff "
        f"({format_time(splits.test_cutoff, zone)}), which is {between_days:.4g} days later. Set windows.val_cutoff to "
        f"{latest_date(splits.test_cutoff, shortest, zone)} or earlier{shorter}."
    )
