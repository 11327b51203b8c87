"""A data set: one YAML in ``configs/data``."""

from __future__ import annotations

from dataclasses import dataclass, field

from constellation.journeys.decisions import DecisionRule
from constellation.journeys.last_events import LastEvents
from constellation.journeys.sources import FunctionSource, SqlSource
from constellation.journeys.windows import Windows
from constellation.schema import EventSchema


@dataclass
class DataSet:
    """Where events come from, what their columns mean, where we cut, and what was decided.

    windows: by default cutoffs and horizons that follow from the span of the data (``journeys/derived_windows.py``).
    observed_until: the last moment the data speak about, a date (its whole day) or a time; by default the end of the
    last event's local day. Horizons are checked against it.
    root: folder of raw data; by default the environment variable CONSTELLATION_DATA, else ``./data``.
    cache: folder of prepared stores; by default CONSTELLATION_CACHE, else ``./.constellation``.
    """

    name: str
    source: SqlSource | FunctionSource
    windows: Windows | LastEvents = field(default_factory=Windows)
    schema: EventSchema = field(default_factory=EventSchema)
    decisions: DecisionRule | None = None
    observed_until: str | None = None
    root: str | None = None
    cache: str | None = None
