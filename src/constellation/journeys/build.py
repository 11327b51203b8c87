"""From an event table to the arrays of a store: validate, code, sort, sum. Out of core to disk, or in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from constellation import zones
from constellation.errors import InputError
from constellation.journeys import layout, order
from constellation.journeys.content import ContentHash, RunningSums, feed
from constellation.journeys.rejects import Rejects
from constellation.journeys.sparse_file import SparseFile
from constellation.journeys.spool import NUM_EVENTS, Spool
from constellation.journeys.store import Manifest, Store
from constellation.journeys.tables import add_customers, as_polars, clean_attributes, code_attributes
from constellation.schema import (
    AMOUNT,
    CATEGORICAL,
    CUSTOMER_ID,
    EVENT_TIME,
    EVENT_TYPE,
    LIST,
    NUMERIC,
    REQUIRED,
    EventSchema,
    check_columns,
    reject_message,
    validate,
)

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

Progress = Callable[[str, int, int | None], None]
"""Called with what is being done, rows done, and rows in all where that is known."""


@dataclass
class Ordered:
    """The outcome of the first pass: everything but the events themselves, which `ranges` yields in order."""

    schema: EventSchema
    kinds: dict[str, str]
    dictionaries: dict[str, list[str | None]]
    customers: pl.DataFrame
    num_events: int
    list_lengths: dict[str, int]
    rejects: Rejects
    ignored: list[str]
    spool: Spool
    codes: order.StorageCodes
    first_time: int
    last_time: int
    num_duplicates: int = 0

    @property
    def first_event_C(self) -> np.ndarray:
        counts = self.customers[NUM_EVENTS].to_numpy()
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])

    def ranges(self) -> Iterator[dict[str, Any]]:
        """Consecutive stretches of the store: column -> array, or (values, offsets from 0) for lists."""
        import polars as pl

        purchases = self._purchase_codes()
        with_events = self.customers.filter(pl.col(NUM_EVENTS) > 0)
        position_C = np.flatnonzero(self.customers[NUM_EVENTS].to_numpy() > 0)
        counts_C = with_events[NUM_EVENTS].to_numpy()
        for frame, start, end in self.spool.ranges(with_events):
            frame, num_duplicates = order.sort_events(
                self.codes.rank(frame), self.schema, with_events[CUSTOMER_ID][start:end]
            )
            self.num_duplicates += num_duplicates
            columns: dict[str, Any] = {
                layout.JOURNEY: np.repeat(position_C[start:end], counts_C[start:end]),
                EVENT_TIME: frame[EVENT_TIME].to_numpy(),
            }
            for name, kind in self.kinds.items():
                series = frame[name]
                if kind != LIST:
                    columns[name] = series.to_numpy()
                elif isinstance(series.dtype, pl.List):
                    columns[name] = order.list_parts(series)
                else:
                    columns[name] = order.single_lists(series.to_numpy())
            columns[layout.PURCHASE] = self._is_purchase(columns, purchases)
            yield columns

    def _purchase_codes(self) -> list[int]:
        known = self.dictionaries[EVENT_TYPE]
        return [known.index(name) for name in self.schema.purchase_types if name in known]

    def _is_purchase(self, columns: dict[str, Any], purchase_codes: list[int]) -> np.ndarray:
        if self.schema.purchase_types:
            return np.isin(columns[EVENT_TYPE], purchase_codes)
        if AMOUNT not in columns:
            return np.zeros(len(columns[EVENT_TIME]), dtype=bool)
        return columns[AMOUNT] > 0  # NaN compares false


def first_pass(
    frames: Iterable[pl.DataFrame],
    schema: EventSchema,
    attributes: pl.DataFrame | None,
    further_customers: pl.Series | None = None,
    *,
    spool: Spool,
    rejects: Rejects,
    progress: Progress | None = None,
) -> Ordered:
    """Validate and code every chunk, and put it in the spool.

    further_customers: ids that have a place in the store with or without events, as those of ``attributes`` have.
    Raises InputError where columns are missing or too many rows are rejected.
    """
    import polars as pl

    codes: order.StorageCodes | None = None
    kinds: dict[str, str] = {}
    list_lengths: dict[str, int] = {}
    ignored: list[str] = []
    first_time, last_time = np.iinfo(np.int64).max, np.iinfo(np.int64).min
    expected: dict[str, Any] = {}
    try:
        for frame in frames:
            if codes is None:
                check_columns(frame.columns, schema)
                kinds = {name: kind for name, kind in schema.kinds().items() if name in frame.columns}
                ignored = [n for n in frame.columns if n not in kinds and n not in REQUIRED + schema.order_by]
                codes = order.StorageCodes(kinds)
            accepted, rejected = validate(frame, schema)
            if not expected:
                expected = dict(accepted.schema)
            elif dict(accepted.schema) != expected:
                _raise_changed(expected, dict(accepted.schema))
            rejects.add(rejected, frame.height)
            if accepted.height:
                time_N = accepted[EVENT_TIME].to_numpy()
                first_time, last_time = min(first_time, int(time_N.min())), max(last_time, int(time_N.max()))
            encoded = codes.encode(accepted)
            for name, kind in kinds.items():
                if kind == LIST:
                    column = encoded[name]
                    values = column.list.len().sum() if isinstance(column.dtype, pl.List) else column.count()
                    list_lengths[name] = list_lengths.get(name, 0) + int(values)
            spool.add(encoded)
            if progress is not None:
                progress("validate", rejects.num_rows, None)
    finally:
        rejects.close()
    if rejects.too_many(schema):
        raise InputError(reject_message(rejects.reasons, rejects.num_rows, rejects.example, schema))
    if codes is None:  # no frame at all: a table of decisions alone
        kinds = {EVENT_TYPE: CATEGORICAL}
        codes = order.StorageCodes(kinds)
        dtype = pl.Int64 if further_customers is None else further_customers.dtype
        spool.add(pl.DataFrame(schema={CUSTOMER_ID: dtype, EVENT_TIME: pl.Int64, EVENT_TYPE: pl.UInt32}))
    customers = spool.customers()
    if attributes is not None:
        customers = add_customers(customers, attributes[CUSTOMER_ID], "attributes")
    if further_customers is not None:
        customers = add_customers(customers, further_customers, "decisions")
    if customers.height >= 2**31:
        raise InputError(f"A store holds at most 2^31 customers; found {customers.height:,}. Split the data set.")
    return Ordered(
        schema=schema,
        kinds=kinds,
        dictionaries=codes.dictionaries(),
        customers=customers,
        num_events=spool.num_rows,
        list_lengths=list_lengths,
        rejects=rejects,
        ignored=ignored,
        spool=spool,
        codes=codes,
        first_time=int(first_time) if spool.num_rows else 0,
        last_time=int(last_time) if spool.num_rows else 0,
    )


def _raise_changed(expected: dict[str, Any], found: dict[str, Any]) -> None:
    changed = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    shown = "; ".join(f"{name}: first {expected.get(name)}, then {found.get(name)}" for name in changed)
    raise InputError(f"The frames of the source differ in their columns ({shown}). Yield the same columns and types.")


def observed_end(ordered: Ordered, observed_until: str | int | None) -> int:
    """Microseconds UTC of the last moment the data speak about; by default the end of the last event's local day."""
    schema = ordered.schema
    if observed_until is None:
        if schema.clock == "order" or ordered.num_events == 0:
            return ordered.last_time
        return zones.end_of_day(ordered.last_time, schema.timezone)
    if schema.clock == "order":
        until = int(observed_until)
    elif isinstance(observed_until, int):
        until = observed_until
    else:
        from constellation.journeys.windows import parse_cutoff

        until = parse_cutoff(observed_until, schema.timezone)
    if ordered.num_events and until < ordered.last_time:
        raise InputError(
            f"observed_until {observed_until} lies before the last event. Leave later events out in the SELECT, "
            "or move observed_until."
        )
    return until


def store_from_frame(
    events: pd.DataFrame | pl.DataFrame,
    schema: EventSchema,
    attributes: pd.DataFrame | pl.DataFrame | None = None,
    *,
    observed_until: str | int | None = None,
    name: str = "frame",
) -> Store:
    """A store in memory: the same validation, codes and order as on disk, so the same arrays bit for bit.

    events: pandas or polars, columns as in `EventSchema`. attributes: one row per customer; customers who occur only
    here have an empty journey. observed_until: a date (its whole day) or time; default the end of the last event's day.
    Raises InputError where more than ``schema.max_reject_share`` of the rows are rejected.
    """
    frame = as_polars(events)
    table = clean_attributes(None if attributes is None else as_polars(attributes), schema)
    ordered = first_pass([frame], schema, table, spool=Spool(None), rejects=Rejects(None))
    (columns,) = ordered.ranges()
    content, sums = ContentHash(), RunningSums()
    feed(content, columns, dict.fromkeys(columns, 0))
    coded = code_attributes(ordered.customers, table)
    amounts_N, purchases_N = sums.extend(columns)
    fingerprint = content.digest(ordered, coded)
    zero = np.zeros(1, dtype=np.int64)
    ids = ordered.customers[CUSTOMER_ID]
    return Store(
        manifest=Manifest(
            name=name,
            schema=schema,
            kinds=ordered.kinds,
            num_customers=ids.len(),
            num_events=ordered.num_events,
            first_time=ordered.first_time,
            last_time=ordered.last_time,
            observed_until=observed_end(ordered, observed_until),
            fingerprint=fingerprint,
            content=fingerprint,
            profile=build_profile(ordered),
        ),
        customer_id_C=ids.to_numpy(),
        first_event_C=ordered.first_event_C,
        time_N=columns[EVENT_TIME],
        categorical={n: columns[n] for n, kind in ordered.kinds.items() if kind == CATEGORICAL},
        numeric={n: columns[n] for n, kind in ordered.kinds.items() if kind == NUMERIC},
        lists={n: columns[n] for n, kind in ordered.kinds.items() if kind == LIST},
        dictionaries=ordered.dictionaries
        | {layout.ATTRIBUTE + n: dictionary for n, (_, dictionary) in coded.items() if dictionary is not None},
        attributes_categorical={n: values for n, (values, dictionary) in coded.items() if dictionary is not None},
        attributes_numeric={n: values for n, (values, dictionary) in coded.items() if dictionary is None},
        purchase_N=columns[layout.PURCHASE],
        amount_sum_N=np.concatenate([zero, amounts_N]),
        purchase_sum_N=np.concatenate([zero, purchases_N]),
    )


def build_profile(ordered: Ordered) -> dict[str, Any]:
    """What only the build knows about the data."""
    return {
        "num_rows": ordered.rejects.num_rows,
        "num_rejected": ordered.rejects.total,
        "reject_reasons": ordered.rejects.reasons,
        "num_duplicates": ordered.num_duplicates,
        "ignored_columns": ordered.ignored,
    }


def write_store(ordered: Ordered, attributes: pl.DataFrame | None, directory: Path, progress: Progress | None) -> str:
    """Write events, running sums and customers of a store; returns the fingerprint of the content."""
    from concurrent.futures import ThreadPoolExecutor

    num_events, content, sums = ordered.num_events, ContentHash(), RunningSums()
    kinds = layout.event_kinds(ordered.kinds, ordered.schema.clock)
    sum_kinds = {"amount_sum": np.dtype(np.int64), "purchase_sum": np.dtype(np.int64)}
    list_starts = dict.fromkeys(ordered.kinds, 0)
    done = 0
    with (
        ThreadPoolExecutor(1) as pool,
        SparseFile(
            directory / layout.EVENTS,
            kinds,
            num_events,
            dictionaries=ordered.dictionaries,
            list_lengths=ordered.list_lengths,
        ) as events,
        SparseFile(directory / layout.SUMS, sum_kinds, num_events + 1) as running,
    ):
        for name in sum_kinds:
            running.append(name, np.zeros(1, dtype=np.int64))
        hashing = None
        for columns in ordered.ranges():
            if hashing is not None:
                hashing.result()
            # Hashing lets go of the interpreter, so it runs beside writing and the next sort.
            hashing = pool.submit(feed, content, columns, dict(list_starts))
            for name, values in columns.items():
                if isinstance(values, tuple):
                    events.append_lists(name, values[0], values[1][1:] + list_starts[name])
                    list_starts[name] += len(values[0])
                else:
                    events.append(name, values)
            amounts_N, purchases_N = sums.extend(columns)
            running.append("amount_sum", amounts_N)
            running.append("purchase_sum", purchases_N)
            done += len(columns[EVENT_TIME])
            if progress is not None:
                progress("sort and write", done, num_events)
        if hashing is not None:
            hashing.result()
    coded = code_attributes(ordered.customers, attributes)
    ids = ordered.customers[CUSTOMER_ID].to_arrow()
    layout.write_customers(directory, ids, ordered.first_event_C, coded)
    return content.digest(ordered, coded)
