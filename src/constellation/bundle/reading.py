"""From a raw table to the store that a bundle predicts on: the same validation, nothing after the cutoff."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from constellation import zones
from constellation.errors import InputError
from constellation.journeys.store import Store
from constellation.journeys.vocabulary import UNKNOWN, Vocabulary
from constellation.journeys.windows import format_time, parse_cutoff
from constellation.schema import (
    CUSTOMER_ID,
    EVENT_TIME,
    REQUIRED,
    EventSchema,
    numbers,
    reject_message,
    texts,
    validate,
)

if TYPE_CHECKING:
    import polars as pl

log = logging.getLogger(__name__)

MUCH_UNKNOWN = 0.1
"""Over this share of values that training never saw, somebody should look."""


@dataclass
class Reading:
    """A store of the events at or before the cutoff, and what was left out of it."""

    store: Store
    cutoff: int
    events_ignored: int
    events_rejected: int
    unknown_share: dict[str, float]

    @classmethod
    def of(cls, events: Any, attributes: Any, cutoff: Any, schema: EventSchema, vocabulary: Vocabulary) -> Reading:
        """Read, check, cut, build. Raises InputError; see :meth:`Bundle.predict`."""
        import polars as pl

        from constellation.journeys.build import store_from_frame

        frame = as_polars(events, "events")
        _check_columns(frame, vocabulary)
        customers = None if attributes is None else _attributes(as_polars(attributes, "attributes"), vocabulary)
        if customers is None and vocabulary.attribute_names:
            log.info("no attributes were given; the model reads %s as missing", ", ".join(vocabulary.attribute_names))
        accepted, rejected = validate(frame, schema)
        check_rejects(rejected, frame.height, schema)
        if cutoff is None:
            time = _last_moment(accepted, schema)
        else:
            time = cutoff_time(cutoff, schema)
        # Cutting the table itself, before anything is built, is the plainest proof that the future is not read.
        seen = accepted.filter(pl.col(EVENT_TIME) <= time)
        ignored = accepted.height - seen.height
        if ignored:
            log.info("%d events after the cutoff were ignored", ignored)
        if seen.height == 0 and (customers is None or customers.height == 0):
            raise InputError(
                f"Nobody can be scored: of {accepted.height:,} events none lies at or before the cutoff "
                f"{_show(time, schema)}. Move the cutoff later, or give attributes of customers without events."
            )
        # Back from the canonical form to a table: a missing number is null there, and a time is a time.
        seen = seen.with_columns(pl.col(pl.Float64).fill_nan(None))
        if schema.clock == "time":
            seen = seen.with_columns(pl.col(EVENT_TIME).cast(pl.Datetime("us", "UTC")))
        store = store_from_frame(seen, schema, customers)
        unknown = unknown_share(store, vocabulary)
        for name, share in unknown.items():
            if share > MUCH_UNKNOWN:
                log.warning("%.0f %% of the values of %s were never seen in training", 100 * share, name)
        return cls(store, time, ignored, rejected.height, unknown)

    def facts(self) -> dict[str, Any]:
        """For ``attrs`` of the result: plain values, because they travel into Parquet as JSON."""
        return {
            "cutoff": _show(self.cutoff, self.store.schema),
            "events": self.store.num_events,
            "events_ignored": self.events_ignored,
            "events_rejected": self.events_rejected,
            "unknown_share": self.unknown_share,
        }


def as_polars(table: Any, name: str) -> pl.DataFrame:
    """A pandas, polars or pyarrow table as polars. Raises InputError for anything else, and for mixed columns."""
    import polars as pl

    from constellation.journeys import build

    try:
        return build.as_polars(table)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    except (TypeError, ValueError, pl.exceptions.PolarsError) as error:  # those of Arrow are TypeErrors or ValueErrors
        raise InputError(f"{name} cannot be read: {error}. Give each column values of one kind.") from error


def cutoff_time(cutoff: Any, schema: EventSchema) -> int:
    """Microseconds UTC of a date or time, or the rank where only the order is known."""
    if schema.clock == "time":
        return parse_cutoff(str(cutoff), schema.timezone)
    try:
        return int(cutoff)
    except (TypeError, ValueError):
        raise InputError(f"The cutoff {cutoff!r} is no rank: this bundle knows only the order of events.") from None


def unknown_share(store: Store, vocabulary: Vocabulary) -> dict[str, float]:
    """Share of the values of each categorical or list column that are unknown to the vocabulary; missing ones aside."""
    shares = {}
    for name in [*vocabulary.categorical, *vocabulary.lists]:
        if name not in store.dictionaries:
            continue
        codes = store.lists[name][0] if name in store.lists else store.categorical[name]
        counts = np.bincount(codes, minlength=len(store.dictionaries[name]))
        known = int(counts[1:].sum())
        unknown = int(counts[vocabulary.table(name, store.dictionaries[name]) == UNKNOWN].sum())
        shares[name] = round(unknown / known, 6) if known else 0.0
    return shares


def _check_columns(frame: pl.DataFrame, vocabulary: Vocabulary) -> None:
    """A column that training knew and scoring lacks is more often a slip than a wish."""
    missing = [name for name in dict.fromkeys([*REQUIRED, *vocabulary.kinds]) if name not in frame.columns]
    if missing:
        raise InputError(
            f"The events lack {', '.join(missing)}, which the model was trained with; they have "
            f"{', '.join(frame.columns) or 'no columns'}. "
            "Rename what has another name; add what is unknown as an empty column."
        )


def check_rejects(rejected: pl.DataFrame, num_rows: int, schema: EventSchema) -> None:
    """Raise InputError where more rows could not be read than the schema allows; a few are logged."""
    if not rejected.height:
        return
    reasons = dict(rejected.group_by("reason").len().iter_rows())
    if rejected.height > schema.max_reject_share * num_rows:
        raise InputError(reject_message(reasons, num_rows, rejected.row(0, named=True), schema))
    log.warning("%d of %d events were rejected: %s", rejected.height, num_rows, reasons)


def _attributes(frame: pl.DataFrame, vocabulary: Vocabulary) -> pl.DataFrame:
    """The attributes that the model knows, each of the kind it had in training whatever the file says."""
    names = vocabulary.attribute_names
    missing = [name for name in [CUSTOMER_ID, *names] if name not in frame.columns]
    if missing:
        raise InputError(
            f"The attributes lack {', '.join(missing)}, which the model was trained with; they have "
            f"{', '.join(frame.columns) or 'no columns'}. "
            "Rename what has another name; add what is unknown as an empty column."
        )
    columns = [frame[CUSTOMER_ID]]
    for name in names:
        column = frame[name]
        if name not in vocabulary.attributes_numeric:
            columns.append(texts(column))
            continue
        if column.dtype.is_temporal():  # the build makes days of it, as it did for training
            columns.append(column)
            continue
        number = numbers(column)
        bad = number.is_null() & column.is_not_null()
        if bad.any():
            raise InputError(f"The attribute {name} is a number, found {column.filter(bad)[0]!r}. Mend or empty it.")
        columns.append(number)
    return frame.select(columns)


def _last_moment(accepted: pl.DataFrame, schema: EventSchema) -> int:
    last = accepted[EVENT_TIME].max()
    if last is None:
        raise InputError("There are no events, so the cutoff cannot be theirs. Name a cutoff.")
    assert isinstance(last, int)
    return zones.end_of_day(last, schema.timezone) if schema.clock == "time" else last


def _show(time: int, schema: EventSchema) -> str:
    return format_time(time, schema.timezone) if schema.clock == "time" else str(time)
