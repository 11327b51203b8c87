"""What every world hands back: an event table, attributes, how to cut it, and the truth."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol
from zoneinfo import ZoneInfo

import numpy as np

from constellation import zones
from constellation.errors import InputError
from constellation.schema import EventSchema

if TYPE_CHECKING:
    import polars

MICROSECONDS_PER_DAY = zones.MICROSECONDS_PER_DAY


class Truth(Protocol):
    """Expectations that follow from how the world was made, not from what happened to come out of it."""

    def expected(self, cutoff: int, horizon_days: float) -> polars.DataFrame:
        """One row per customer at risk at ``cutoff`` (microseconds UTC, inclusive), ascending by ``customer_id``.

        ``value_expected`` (money) and ``purchases_expected`` (number) in ``(cutoff, cutoff + horizon]`` given the full
        hidden state at the cutoff; ``value_from_history`` and ``purchases_from_history`` given only the events at or
        before it, which is the best that any model can do; a world in which nobody can say leaves these two out.
        """
        ...


class World(Protocol):
    """A recipe for customers. ``simulate`` with the same seed gives the same tables."""

    def simulate(self, num_customers: int, seed: int) -> Simulated: ...


@dataclass(frozen=True)
class Simulated:
    """One draw of a world.

    events: the event table, columns as in :mod:`constellation.schema`, sorted by customer and time.
    attributes: one row per customer. truth: see :class:`Truth`.
    windows: keyword arguments of ``Windows`` that suit the world. observed_until: last day that was simulated.
    decisions: of a world with a logging policy, columns as ``DecisionRule`` of kind ``table`` reads them.
    decision_rule: keyword arguments of that rule. further: tables of truth beside ``truth``, by name, made when called.
    """

    name: str
    events: polars.DataFrame
    attributes: polars.DataFrame
    schema: EventSchema
    windows: dict[str, Any]
    observed_until: str
    truth: Truth
    decisions: polars.DataFrame | None = None
    decision_rule: Mapping[str, Any] | None = None
    further: Mapping[str, Callable[[], polars.DataFrame]] = field(default_factory=dict)


def start_of_day(date: str, timezone: str) -> int:
    """Microseconds since 1970 UTC of the first moment of a date (``2023-01-01``) in a zone."""
    zones.check_zone(timezone)
    try:
        midnight = dt.datetime.combine(dt.date.fromisoformat(str(date)), dt.time(), tzinfo=ZoneInfo(timezone))
    except ValueError:
        raise InputError(f"A world starts on a date such as 2023-01-01, found {date!r}.") from None
    return round((midnight - zones.EPOCH).total_seconds()) * 1_000_000


def tables(world: World, num_customers: int, seed: int) -> dict[str, polars.DataFrame]:
    """Events, attributes and, where there are some, decisions of one draw, as a function source hands them on."""
    simulated = world.simulate(num_customers, seed)
    given = {"events": simulated.events, "attributes": simulated.attributes}
    return given if simulated.decisions is None else given | {"decisions": simulated.decisions}


def plus_days(date: str, days: int) -> str:
    """The date ``days`` later, as text."""
    return str(dt.date.fromisoformat(str(date)) + dt.timedelta(days=days))


def check_people(num_customers: int) -> None:
    if num_customers < 1:
        raise InputError(f"A world needs at least one customer, found num_customers={num_customers}.")


def check_positive(**parameters: float) -> None:
    """Raise InputError for a parameter that is not a finite number above zero."""
    for name, value in parameters.items():
        if not (np.isfinite(value) and value > 0):
            raise InputError(f"{name} must be a number above 0, found {value}.")


def check_share(**parameters: float) -> None:
    """Raise InputError for a probability outside [0, 1]."""
    for name, value in parameters.items():
        if not 0 <= value <= 1:
            raise InputError(f"{name} must lie in [0, 1], found {value}.")


def streams(seed: int, num_streams: int) -> list[np.random.Generator]:
    """Independent generators, one per part of a world, so that changing one part leaves the draws of the others."""
    if seed < 0:
        raise InputError(f"seed must be 0 or more, found {seed}.")
    return [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(num_streams)]


def times_column(name: str, time_N: np.ndarray, timezone: str) -> polars.Series:
    """Microseconds UTC as a column of moments that carry their zone: no local hour is ambiguous."""
    import polars as pl

    return (
        pl.Series(name, np.asarray(time_N, dtype=np.int64))
        .cast(pl.Datetime("us", "UTC"))
        .dt.convert_time_zone(timezone)
    )
