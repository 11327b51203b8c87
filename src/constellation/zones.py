"""Wall-clock times of a zone to UTC, vectorised, with one rule for gaps and repeated hours."""

from __future__ import annotations

import datetime as dt
from functools import lru_cache
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from constellation.errors import InputError

if TYPE_CHECKING:
    import numpy as np

MICROSECONDS_PER_DAY = 86_400_000_000
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
FIRST_YEAR, LAST_YEAR = 1900, 2100
"""Years a store can hold: outside them lie sentinels (0001-01-01, 9999-12-31), not events."""


def year_start(year: int) -> int:
    """Microseconds since 1970 of 1 January, UTC."""
    return (dt.datetime(year, 1, 1, tzinfo=dt.UTC) - EPOCH).days * MICROSECONDS_PER_DAY


def check_zone(timezone: str) -> None:
    """Raise InputError where ``timezone`` is no IANA zone."""
    try:
        ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InputError(
            f"The time zone {timezone!r} is unknown. Write an IANA name such as Europe/Berlin or UTC."
        ) from None


@lru_cache(maxsize=16)
def offsets(timezone: str) -> tuple[np.ndarray, np.ndarray]:
    """UTC microseconds from which each offset holds (ascending, the first is minus infinity), and the offsets."""
    import numpy as np

    check_zone(timezone)
    zone, minutes_per_day = ZoneInfo(timezone), 24 * 60

    def offset_at(minute: int) -> int:
        offset = (EPOCH + dt.timedelta(minutes=minute)).astimezone(zone).utcoffset()
        assert offset is not None
        return offset // dt.timedelta(microseconds=1)

    # A zone that changes twice and back within three days would be missed; none on record does.
    step = 3 * minutes_per_day
    first = year_start(FIRST_YEAR) // 60_000_000
    last = year_start(LAST_YEAR + 1) // 60_000_000
    starts, values = [np.iinfo(np.int64).min], [offset_at(first)]
    for minute in range(first + step, last, step):
        if offset_at(minute) != values[-1]:
            low, high = minute - step, minute
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if offset_at(middle) == values[-1] else (low, middle)
            starts.append(high * 60_000_000)
            values.append(offset_at(high))
    return np.array(starts, dtype=np.int64), np.array(values, dtype=np.int64)


def to_utc(local: np.ndarray, timezone: str) -> np.ndarray:
    """UTC microseconds of wall-clock microseconds (int64).

    An hour that occurs twice is its first occurrence; a wall-clock time inside a gap is read with the offset from
    before the gap, so 02:30 on the night clocks go forward is 03:30 (the rule of PEP 495 with ``fold=0``).
    """
    import numpy as np

    if timezone == "UTC":
        return local
    starts, values = offsets(timezone)
    # Both cases are one comparison: the new offset holds from the later of the two wall clocks at the change.
    boundaries = starts[1:] + np.maximum(values[1:], values[:-1])
    return local - values[np.searchsorted(boundaries, local, side="right")]


def end_of_day(time: int, timezone: str) -> int:
    """The last microsecond of the local day in which the UTC microsecond ``time`` lies."""
    import numpy as np

    starts, values = offsets(timezone)
    local = time + int(values[np.searchsorted(starts, time, side="right") - 1])
    next_midnight = (local // MICROSECONDS_PER_DAY + 1) * MICROSECONDS_PER_DAY
    return int(to_utc(np.array([next_midnight], dtype=np.int64), timezone)[0]) - 1
