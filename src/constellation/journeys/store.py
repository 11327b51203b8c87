"""The store: every journey end to end, sorted by customer and time, as flat memory-mapped arrays."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from constellation import zones
from constellation.errors import InputError
from constellation.schema import EVENT_TYPE, PRODUCT, EventSchema
from constellation.zones import MICROSECONDS_PER_DAY

if TYPE_CHECKING:
    from constellation.journeys.decisions import Decisions
    from constellation.journeys.recency import PurchaseIndex

SCHEMA_VERSION = 1
MONEY_SCALE = 1_000_000  # running sums of money are whole millionths, so that differences of sums are exact


@dataclass(frozen=True)
class Manifest:
    """What a store holds. Times are microseconds since 1970, UTC; ``kinds`` names the kind of each event column."""

    name: str
    schema: EventSchema
    kinds: dict[str, str]
    num_customers: int
    num_events: int
    first_time: int
    last_time: int
    observed_until: int
    fingerprint: str
    content: str = ""
    version: int = SCHEMA_VERSION
    profile: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Manifest:
        if data.get("version") != SCHEMA_VERSION:
            raise InputError(
                f"The store has schema version {data.get('version')}, this release reads {SCHEMA_VERSION}. "
                "Run `constellation prepare rebuild=true`."
            )
        return cls(**{**data, "schema": EventSchema(**data["schema"])})


@dataclass
class Store:
    """Events of all customers; customer ``c`` owns rows ``first_event_C[c] : first_event_C[c + 1]``.

    Arrays are numpy, in memory or memory-mapped. Categorical columns hold storage codes (0 is missing) of
    ``dictionaries``; the storage dictionary learns nothing, the model's own codes are a
    :class:`~constellation.journeys.vocabulary.Vocabulary`.
    ``amount_sum_N`` and ``purchase_sum_N`` have one entry more than there are events and start at 0.
    """

    manifest: Manifest
    customer_id_C: np.ndarray
    first_event_C: np.ndarray
    time_N: np.ndarray
    categorical: dict[str, np.ndarray]
    numeric: dict[str, np.ndarray]
    lists: dict[str, tuple[np.ndarray, np.ndarray]]
    dictionaries: dict[str, list[str | None]]
    attributes_categorical: dict[str, np.ndarray]
    attributes_numeric: dict[str, np.ndarray]
    purchase_N: np.ndarray
    amount_sum_N: np.ndarray
    purchase_sum_N: np.ndarray
    decisions: Decisions | None = None

    @classmethod
    def open(cls, directory: str | Path) -> Store:
        """Memory-map a store that ``prepare`` wrote. Raises InputError where there is none."""
        from constellation.journeys import layout
        from constellation.journeys.decisions import Decisions

        directory = Path(directory)
        path = directory / "manifest.json"
        if not path.exists():
            raise InputError(f"No store in {directory}: manifest.json is missing. Run `constellation prepare` first.")
        manifest = Manifest.from_json(json.loads(path.read_text()))
        arrays = layout.read(directory)
        decisions = arrays.pop("decisions", None)
        store = cls(manifest=manifest, decisions=None if decisions is None else Decisions(**decisions), **arrays)
        store.__dict__["_directory"] = directory.absolute()
        return store

    def __getstate__(self) -> dict[str, Any]:
        # A mapped store travels to another process as the name of its folder, not as gigabytes.
        directory = self.__dict__.get("_directory")
        return self.__dict__ if directory is None else {"_directory": directory}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(vars(Store.open(state["_directory"])) if "_directory" in state else state)

    @property
    def num_customers(self) -> int:
        return len(self.first_event_C) - 1

    @property
    def num_events(self) -> int:
        return len(self.time_N)

    @property
    def schema(self) -> EventSchema:
        return self.manifest.schema

    @property
    def has_clock(self) -> bool:
        """False where only the order of events is known; then durations mean nothing and time features are off."""
        return self.schema.clock == "time"

    def last_event(self, journey_Q: np.ndarray, time_Q: np.ndarray) -> np.ndarray:
        """Index of the last event at or before ``time_Q`` in each journey, -1 where there is none.

        A bisection of all rows at once: log2(longest journey) passes over Q, never a loop over customers.
        """
        start_Q = self.first_event_C[journey_Q].astype(np.int64)
        last_Q = self.first_event_C[np.asarray(journey_Q) + 1].astype(np.int64) - 1
        found_Q = start_Q - 1  # the last event known to be seen; the row before the journey stands for none
        longest = int((last_Q - found_Q).max(initial=0))
        for power in reversed(range(longest.bit_length())):
            ahead_Q = found_Q + (1 << power)
            seen_Q = (ahead_Q <= last_Q) & (self.time_N[np.minimum(ahead_Q, last_Q)] <= time_Q)
            found_Q = np.where(seen_Q, ahead_Q, found_Q)
        return np.where(found_Q >= start_Q, found_Q, -1)

    def end_event(self, journey_Q: np.ndarray, time_Q: np.ndarray) -> np.ndarray:
        """One past the last event at or before ``time_Q``: the right bound of a half-open range of running sums."""
        last_Q = self.last_event(journey_Q, time_Q)
        return np.where(last_Q >= 0, last_Q + 1, self.first_event_C[journey_Q].astype(np.int64))

    def money_between(self, start_Q: np.ndarray, end_Q: np.ndarray) -> np.ndarray:
        """Exact net money of events ``start_Q : end_Q``, in units of the currency, float64."""
        return (self.amount_sum_N[end_Q] - self.amount_sum_N[start_Q]) / MONEY_SCALE

    def purchases_between(self, start_Q: np.ndarray, end_Q: np.ndarray) -> np.ndarray:
        return self.purchase_sum_N[end_Q] - self.purchase_sum_N[start_Q]

    @cached_property
    def purchase_events(self) -> np.ndarray:
        """Store indices of all purchases, ascending; the k-th purchase of a range follows from ``purchase_sum_N``."""
        return np.flatnonzero(self.purchase_N)

    @cached_property
    def purchase_index(self) -> PurchaseIndex:
        """Running sums over the purchases, made at the first question about purchase days."""
        from constellation.journeys.recency import PurchaseIndex

        return PurchaseIndex.of(self)

    @cached_property
    def basket_events(self) -> np.ndarray:
        """Store indices of all events that name a product, ascending."""
        if PRODUCT not in self.lists:
            return np.empty(0, dtype=np.int64)
        return np.flatnonzero(np.diff(self.lists[PRODUCT][1]))

    def first_basket(self, start_Q: np.ndarray, end_Q: np.ndarray) -> np.ndarray:
        """Index of the first event in ``start_Q : end_Q`` that names a product, -1 where there is none."""
        baskets = self.basket_events
        if len(baskets) == 0:
            return np.full(len(start_Q), -1, dtype=np.int64)
        place_Q = np.searchsorted(baskets, start_Q)
        found_Q = baskets[np.minimum(place_Q, len(baskets) - 1)]
        return np.where((place_Q < len(baskets)) & (found_Q < end_Q), found_Q, -1)

    def type_sum(self, event_type: str) -> np.ndarray:
        """Running number [N + 1] of events of one type, cached."""
        if event_type not in self._type_sums:
            dictionary = self.dictionaries[EVENT_TYPE]
            sum_N = np.zeros(self.num_events + 1, dtype=np.int32 if self.num_events < 2**31 else np.int64)
            if event_type in dictionary:
                np.cumsum(self.categorical[EVENT_TYPE] == dictionary.index(event_type), out=sum_N[1:])
            self._type_sums[event_type] = sum_N
        return self._type_sums[event_type]

    def events_of_type(self, event_type: str) -> np.ndarray:
        """Store indices of all events of one type, ascending, cached; empty for a type that the store lacks."""
        if event_type not in self._type_events:
            dictionary = self.dictionaries[EVENT_TYPE]
            code = dictionary.index(event_type) if event_type in dictionary else -1
            self._type_events[event_type] = np.flatnonzero(self.categorical[EVENT_TYPE] == code)
        return self._type_events[event_type]

    @cached_property
    def _type_events(self) -> dict[str, np.ndarray]:
        return {}

    @cached_property
    def _type_sums(self) -> dict[str, np.ndarray]:
        return {}

    def local_parts(self, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weekday (Monday is 0) and hour of the day in the zone of the schema, int64."""
        local = to_local(time, self.schema.timezone)
        return (local // MICROSECONDS_PER_DAY + 3) % 7, local % MICROSECONDS_PER_DAY // 3_600_000_000


def to_local(time: np.ndarray, timezone: str) -> np.ndarray:
    """Wall-clock microseconds since 1970 of UTC microseconds, in an IANA zone."""
    if timezone == "UTC" or len(time) == 0:
        return time
    starts, offsets = zones.offsets(timezone)
    # Of the changes of two centuries only those between the first and the last time matter, seldom more than a few.
    low, high = np.searchsorted(starts, [time.min(), time.max()], side="right")
    return time + offsets[low - 1 + np.searchsorted(starts[low:high], time, side="right")]
