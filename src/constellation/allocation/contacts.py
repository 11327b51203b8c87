"""Past contacts against caps and cool-downs: which options are still open to whom."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from constellation.allocation.constraints import Cap, Constraints, CoolDown
from constellation.errors import InputError
from constellation.journeys.decisions import NONE
from constellation.schema import ACTION, CHANNEL, CUSTOMER_ID, EVENT_TIME
from constellation.zones import MICROSECONDS_PER_DAY

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class Contacts:
    """Contacts made, one row each: row of the customer in the offers, microseconds UTC, action, channel."""

    customer_N: np.ndarray
    time_N: np.ndarray
    action_N: np.ndarray
    channel_N: np.ndarray

    def is_of(self, kind: str | None) -> np.ndarray:
        """bool [N]: contacts of a channel or an action of that name; all for None."""
        if kind is None:
            return np.ones(len(self.time_N), dtype=bool)
        return (self.action_N == kind) | (self.channel_N == kind)


def moment(text: str | dt.date) -> int:
    """Microseconds since 1970 of a date (its first moment) or time, in UTC where it names no zone."""
    try:
        found = dt.datetime.fromisoformat(str(text))
    except ValueError:
        raise InputError(f"constraints.start must be a date or time such as 2026-01-05, found {text!r}.") from None
    found = found if found.tzinfo else found.replace(tzinfo=dt.UTC)
    return round(found.timestamp()) * 1_000_000


def read_contacts(
    source: str | Path | pl.DataFrame, customer_id_C: np.ndarray, start: int, channels: dict[str, str]
) -> Contacts:
    """Contacts from Parquet, CSV or a frame: ``customer_id, event_time``, and as known ``action, channel``.

    channels: channel by action, where the table has no column ``channel``. Rows of customers that are not planned for,
    and of the action ``none``, are left out. Raises InputError for a contact at or after ``start``.
    """
    import polars as pl

    if isinstance(source, str | Path):
        if not Path(source).is_file():
            raise InputError(f"There are no contacts at {source}. A Parquet or CSV file was expected.")
        is_csv = Path(source).suffix.lower() == ".csv"
        frame = pl.read_csv(source, try_parse_dates=True) if is_csv else pl.read_parquet(source)
    else:
        frame = source
    missing = [name for name in (CUSTOMER_ID, EVENT_TIME) if name not in frame.columns]
    if missing:
        raise InputError(f"The contacts lack {', '.join(missing)}; they have {', '.join(frame.columns)}.")
    if ACTION in frame.columns:
        frame = frame.filter(pl.col(ACTION).cast(pl.String).fill_null("") != NONE)
    kind = frame.schema[EVENT_TIME]
    if not kind.is_temporal():
        raise InputError(f"The contacts' {EVENT_TIME} is {kind}; dates or times were expected.")
    times = frame[EVENT_TIME].cast(pl.Datetime("us", getattr(kind, "time_zone", None)))
    frame = frame.with_columns(times.dt.epoch("us").alias(EVENT_TIME)).drop_nulls([CUSTOMER_ID, EVENT_TIME])
    late = int((frame[EVENT_TIME] >= start).sum())
    if late:
        raise InputError(
            f"{late:,} contacts are at or after the plan's start, {_shown(start)}. A plan looks back on what was "
            "done: give contacts before it, or start later."
        )
    ids = pl.Series(CUSTOMER_ID, customer_id_C)
    planned = pl.DataFrame({CUSTOMER_ID: ids, "row": np.arange(len(ids))})
    if frame.schema[CUSTOMER_ID] != ids.dtype:
        frame = frame.with_columns(pl.col(CUSTOMER_ID).cast(pl.String))
        planned = planned.with_columns(pl.col(CUSTOMER_ID).cast(pl.String))
    frame = frame.join(planned, on=CUSTOMER_ID, how="inner")
    blank = pl.lit("", dtype=pl.String)
    action = pl.col(ACTION).cast(pl.String).fill_null("") if ACTION in frame.columns else blank
    known = action.replace_strict(channels, default=action) if channels else action
    channel = pl.col(CHANNEL).cast(pl.String).fill_null("") if CHANNEL in frame.columns else known
    frame = frame.select("row", EVENT_TIME, action.alias(ACTION), channel.alias(CHANNEL))
    return Contacts(
        customer_N=frame["row"].to_numpy(),
        time_N=frame[EVENT_TIME].to_numpy(),
        action_N=frame[ACTION].to_numpy(),
        channel_N=frame[CHANNEL].to_numpy(),
    )


def open_options(
    constraints: Constraints, contacts: Contacts, start: int, action: Sequence[str], channel: Sequence[str], num: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which of ``A`` engagements in which of ``T`` windows no rule forbids: bool [C, A * T], windows outermost.

    And the rules that forbid something in the last window, and so in all: uint64 [C], a bit for each of caps and then
    cool-downs.
    A contact counts against a cap in the ``days`` before the window's beginning, and rests until it is ``days`` old.
    """
    num_actions, num_windows = len(action), constraints.num_windows
    is_open_CO = np.ones((num, num_actions * num_windows), dtype=bool)
    rules_C = np.zeros(num, dtype=np.uint64)
    window_us = round(constraints.window_days * MICROSECONDS_PER_DAY)
    for place, rule in enumerate(constraints.rules):
        counted, allowed = (rule.of, rule.contacts) if isinstance(rule, Cap) else (rule.after, 1)
        touched = touched_by(rule, action, channel)
        rows = contacts.is_of(counted)
        customer_N, time_N = contacts.customer_N[rows], contacts.time_N[rows]
        span = round(rule.days * MICROSECONDS_PER_DAY)
        for window in range(num_windows):
            recent = start + window * window_us - time_N < span
            is_full_C = np.bincount(customer_N[recent], minlength=num) >= allowed
            columns = window * num_actions + np.flatnonzero(touched)
            is_open_CO[np.ix_(is_full_C, columns)] = False
        rules_C |= is_full_C.astype(np.uint64) << np.uint64(place)
    return is_open_CO, rules_C


def touched_by(rule: Cap | CoolDown, action: Sequence[str], channel: Sequence[str]) -> np.ndarray:
    """bool [A]: the engagements that a rule can forbid."""
    return np.array([rule.of in (None, name, kind) for name, kind in zip(action, channel, strict=True)])


def check_rules(constraints: Constraints, action: Sequence[str], channel: Sequence[str]) -> None:
    """Raise InputError for a limit that names what is no action and no channel of the predictions."""
    known = sorted({*action, *channel})
    named = [("caps: of", cap.of) for cap in constraints.all_caps]
    named += [("cool_downs: of", rest.of) for rest in constraints.all_cool_downs]
    for key, kind in named:
        if kind is not None and kind not in known:
            raise InputError(f"constraints.{key} names {kind!r}, which is no action or channel: {', '.join(known)}.")
    for key in ("capacity", "min_use"):
        for kind in getattr(constraints, key) or {}:
            if kind not in channel:
                raise InputError(
                    f"constraints.{key} names {kind!r}, which is no channel: {', '.join(sorted(set(channel)))}. "
                    "Without a column `channel` each action is its own; constraints.channels groups actions."
                )


def _shown(microseconds: int) -> str:
    return f"{dt.datetime.fromtimestamp(microseconds / 1e6, dt.UTC):%Y-%m-%d %H:%M}"
