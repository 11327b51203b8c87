"""What a plan must respect: budget, capacity, contact caps, cool-downs, exploration, and the gap between groups."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from constellation.errors import InputError

MOST_RULES = 64

PerWindow = float | Sequence[float]
"""A number of contacts, the same in each time window, or one number per window."""


@dataclass(frozen=True)
class Cap:
    """At most ``contacts`` in any ``days`` in a row per customer. ``of``: a channel or an action; None: any contact."""

    contacts: int
    days: float
    of: str | None = None

    def words(self) -> str:
        return f"{self.contacts} contact{'s' * (self.contacts != 1)}{_of(self.of)} in {self.days:g} days"


@dataclass(frozen=True)
class CoolDown:
    """No contact of kind ``of`` sooner than ``days`` after one of kind ``after``. Each a channel, an action, or any."""

    days: float
    of: str | None = None
    after: str | None = None

    def words(self) -> str:
        return f"{self.days:g} days of rest{_of(self.of)} after {self.after or 'any contact'}"


@dataclass(frozen=True)
class Constraints:
    """The limits of one plan, in which each customer gets one engagement or ``none``.

    start: first moment of the plan, a date or time in UTC; needed with caps and cool-downs, which look back from it.
    num_windows, window_days: the plan's time windows; an engagement is planned into one of them.
    kept_per_window: share of the gain over ``none`` that is left when an engagement waits for one more window.
    budget: the most that all contacts may cost together.
    costs: cost by action, where the predictions have no column ``cost`` (an action not named costs nothing).
    channels: channel by action, where the predictions have no column ``channel`` (else an action is its own channel).
    capacity: the most contacts by channel, per time window. min_use: the fewest (a commitment), per time window.
    caps, cool_downs: see :class:`Cap` and :class:`CoolDown`; as mappings in YAML. A cap counts past contacts together
    with the planned one, which is taken to happen at the beginning of its window: the strictest moment.
    exploration: share of customers whose engagement is drawn with known probability.
    max_gap: the most by which the shares of customers contacted may differ between any two groups, in [0, 1].

    Raises InputError for values outside their range.
    """

    start: str | None = None
    num_windows: int = 1
    window_days: float = 7.0
    kept_per_window: float = 1.0
    budget: float | None = None
    costs: Mapping[str, float] | None = None
    channels: Mapping[str, str] | None = None
    capacity: Mapping[str, PerWindow] | None = None
    min_use: Mapping[str, PerWindow] | None = None
    caps: Sequence[Cap | Mapping[str, Any]] | None = None
    cool_downs: Sequence[CoolDown | Mapping[str, Any]] | None = None
    exploration: float = 0.0
    max_gap: float | None = None
    all_caps: tuple[Cap, ...] = field(init=False, default=())
    all_cool_downs: tuple[CoolDown, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "all_caps", tuple(_built(Cap, "caps", entry) for entry in self.caps or ()))
        rests = tuple(_built(CoolDown, "cool_downs", entry) for entry in self.cool_downs or ())
        object.__setattr__(self, "all_cool_downs", rests)
        if self.num_windows < 1:
            raise InputError(f"constraints.num_windows must be 1 or more, found {self.num_windows}.")
        _check("window_days", self.window_days, 0, math.inf, open_low=True)
        _check("kept_per_window", self.kept_per_window, 0, 1, open_low=True)
        _check("exploration", self.exploration, 0, 1, open_high=True)
        if self.budget is not None:
            _check("budget", self.budget, 0, math.inf)
        if self.max_gap is not None:
            _check("max_gap", self.max_gap, 0, 1)
        for action, cost in (self.costs or {}).items():
            _check(f"costs.{action}", cost, 0, math.inf)
        if len(self.rules) > MOST_RULES:
            raise InputError(f"At most {MOST_RULES} caps and cool-downs can be kept, found {len(self.rules)}.")
        for cap in self.all_caps:
            _check("caps: contacts", cap.contacts, 0, math.inf)
            _check("caps: days", cap.days, 0, math.inf, open_low=True)
        for rest in self.all_cool_downs:
            _check("cool_downs: days", rest.days, 0, math.inf, open_low=True)
        for name in ("capacity", "min_use"):
            for channel in getattr(self, name) or {}:
                for uses in self.uses(name, channel):
                    _check(f"{name}.{channel}", uses, 0, math.inf)

    def uses(self, name: str, channel: str) -> list[float]:
        """``capacity`` or ``min_use`` of a channel, one number per time window; infinity or 0 where none is set."""
        given = (getattr(self, name) or {}).get(channel, math.inf if name == "capacity" else 0.0)
        if isinstance(given, Sequence) and not isinstance(given, str):
            if len(given) != self.num_windows:
                raise InputError(
                    f"constraints.{name}.{channel} has {len(given)} numbers; one for all or one for each of the "
                    f"{self.num_windows} time windows was expected."
                )
            return [float(number) for number in given]
        return [float(given)] * self.num_windows

    @property
    def rules(self) -> list[Cap | CoolDown]:
        """What past contacts forbid: caps, then cool-downs."""
        return [*self.all_caps, *self.all_cool_downs]

    @property
    def looks_back(self) -> bool:
        """Whether past contacts matter."""
        return bool(self.all_caps or self.all_cool_downs)


def _built(kind: type, name: str, entry: Any) -> Any:
    if isinstance(entry, kind):
        return entry
    try:
        return kind(**entry)
    except TypeError as error:
        keys = ", ".join(inspect.signature(kind).parameters)
        raise InputError(f"constraints.{name} has an entry {entry!r}; keys {keys} were expected.") from error


def _check(name: str, value: Any, low: float, high: float, *, open_low: bool = False, open_high: bool = False) -> None:
    fits = isinstance(value, int | float) and not math.isnan(value)
    fits = fits and (low < value if open_low else low <= value) and (value < high if open_high else value <= high)
    if not fits:
        interval = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if open_high or high == math.inf else ']'}"
        raise InputError(f"constraints.{name} must be a number in {interval}, found {value!r}.")


def _of(kind: str | None) -> str:
    return f" of {kind}" if kind else ""
