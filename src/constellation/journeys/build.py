"""From an event table to the arrays of a store: validate, code, sort, sum. Out of core to disk, or in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from constellation import zones
from constellation.errors import InputError
from constellation.journeys import layout, order
from constellation.journeys.spool import NUM_EVENTS, Spool
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
    texts,
    validate,
)

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

    from constellation.journeys.store import Store

MONEY_SCALE = 1_000_000
Progress = Callable[[str, int, int | None], None]
"""Called with what is being done, rows done, and rows in all where that is known."""


@dataclass
class Rejects:
    """Rows that could not be used: counted, one shown, all kept in a Parquet file where there is a place for it."""

    path: Path | None
    num_rows: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    example: dict[str, Any] = field(default_factory=dict)
    _writer: Any = None

    def add(self, rejected: pl.DataFrame, num_rows: int) -> None:
        self.num_rows += num_rows
        if rejected.height == 0:
            return
        for reason, count in rejected["reason"].value_counts().iter_rows():
            self.reasons[reason] = self.reasons.get(reason, 0) + count
        self.example = self.example or rejected.row(0, named=True)
        if self.path is not None:
            import polars as pl
            import pyarrow as pa
            import pyarrow.parquet as pq

            table = rejected.to_arrow(compat_level=pl.CompatLevel.oldest())
            if self._writer is None:
                self._writer = pq.ParquetWriter(self.path, table.schema)
            elif table.schema != self._writer.schema:
                # A source in Python may yield frames that differ in type; as text any row can be kept.
                table = pa.table({name: table[name].cast(self._writer.schema.field(name).type) for name in table.column_names})
            self._writer.write_table(table)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    @property
    def total(self) -> int:
        return sum(self.reasons.values())

    def too_many(self, schema: EventSchema) -> bool:
        return self.total > schema.max_reject_share * self.num_rows


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
            rejects.add(rejected, frame.height)
            if not expected:
                expected = dict(accepted.schema)
            elif dict(accepted.schema) != expected:
                _raise_changed(expected, dict(accepted.schema))
            if accepted.height:
                first_time = min(first_time, accepted[EVENT_TIME].min())
                last_time = max(last_time, accepted[EVENT_TIME].max())
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
    for ids, what in ((None if attributes is None else attributes[CUSTOMER_ID], "attributes"), (further_customers, "decisions")):
        if ids is not None:
            customers = _add_customers(customers, ids, what)
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


def _add_customers(customers: pl.DataFrame, ids: pl.Series, what: str) -> pl.DataFrame:
    """Customers known from another table get a place, with no events."""
    import polars as pl

    if ids.dtype != customers[CUSTOMER_ID].dtype:
        if customers.height == 0:
            customers = customers.with_columns(pl.col(CUSTOMER_ID).cast(ids.dtype))
        else:
            raise InputError(
                f"{CUSTOMER_ID} is {customers[CUSTOMER_ID].dtype} in the events and {ids.dtype} in the {what}. "
                "Cast one of them in its SELECT."
            )
    new = pl.DataFrame({CUSTOMER_ID: ids.unique()}).join(customers, on=CUSTOMER_ID, how="anti")
    new = new.with_columns(pl.lit(0, dtype=pl.Int64).alias(NUM_EVENTS))
    return pl.concat([customers, new]).sort(CUSTOMER_ID)


def clean_attributes(frame: pl.DataFrame | None, schema: EventSchema) -> pl.DataFrame | None:
    """The customers table in canonical form: ids as in the events, texts String, numbers and days Float64.

    Raises InputError for missing columns, and for a customer who occurs twice or has no id.
    """
    import polars as pl

    if frame is None:
        return None
    wanted = [name for name in frame.columns if name != CUSTOMER_ID] if schema.attributes is None else schema.attributes
    missing = [name for name in (CUSTOMER_ID, *wanted) if name not in frame.columns]
    if missing:
        raise InputError(
            f"The table of customers lacks {', '.join(missing)}; it has {', '.join(frame.columns)}. "
            "Name them in attributes_sql, or change schema.attributes."
        )
    ids = identifiers(frame[CUSTOMER_ID], "the table of customers")
    if ids.n_unique() < len(ids):
        raise InputError(
            f"The table of customers has {len(ids) - ids.n_unique():,} rows too many: one row per {CUSTOMER_ID} was "
            "expected. Group or deduplicate in attributes_sql."
        )
    columns = [ids]
    for name in wanted:
        series = frame[name]
        if series.dtype.is_temporal():
            # A date of birth or of joining becomes a number: days since 1970.
            series = series.cast(pl.Datetime("us")).to_physical() / zones.MICROSECONDS_PER_DAY
        if series.dtype.is_numeric():
            columns.append(series.cast(pl.Float64).fill_null(float("nan")).alias(name))
        else:
            columns.append(texts(series).alias(name))
    return pl.DataFrame(columns)


def identifiers(series: pl.Series, where: str) -> pl.Series:
    """Customer ids as Int64 or String; InputError where one is missing."""
    from constellation.schema import identifier

    ids = identifier(series)
    if ids.null_count():
        raise InputError(f"{ids.null_count():,} rows of {where} have no valid {CUSTOMER_ID}. Filter them in its SELECT.")
    return ids


def code_attributes(
    ordered: Ordered, attributes: pl.DataFrame | None
) -> dict[str, tuple[np.ndarray, list[str | None] | None]]:
    """Per attribute: values [C] and dictionary; codes int32 (0 missing), or float64 (NaN missing) and no dictionary."""
    import polars as pl

    if attributes is None:
        return {}
    aligned = ordered.customers.select(CUSTOMER_ID).join(attributes, on=CUSTOMER_ID, how="left", maintain_order="left")
    result: dict[str, tuple[np.ndarray, list[str | None] | None]] = {}
    for name in attributes.columns[1:]:
        series = aligned[name]
        if series.dtype == pl.String:
            codes = order.StorageCodes({name: CATEGORICAL})
            encoded = codes.encode(series.to_frame())
            dictionary = codes.dictionaries()[name]
            result[name] = (codes.rank(encoded)[name].to_numpy(), dictionary)
        else:
            result[name] = (series.fill_null(float("nan")).to_numpy(), None)
    return result


class ContentHash:
    """Fingerprint of what a store holds, fed column by column in any chunks; equal for equal stores."""

    def __init__(self) -> None:
        self._hashes: dict[str, Any] = {}

    def update(self, name: str, values: np.ndarray) -> None:
        hasher = self._hashes.setdefault(name, hashlib.blake2b(digest_size=16))
        hasher.update(memoryview(np.ascontiguousarray(values)).cast("B"))

    def digest(self, ordered: Ordered, attributes: dict[str, tuple[np.ndarray, list[str | None] | None]]) -> str:
        for name, (values, dictionary) in attributes.items():
            if len(values):
                self.update(layout.ATTRIBUTE + name, values)
            self._hashes[layout.ATTRIBUTE + name + ".dictionary"] = _hash_json(dictionary)
        ids = ordered.customers[CUSTOMER_ID]
        if ids.len():
            self.update(CUSTOMER_ID, ids.to_numpy() if ids.dtype.is_integer() else _string_bytes(ids))
            self.update(NUM_EVENTS, ordered.customers[NUM_EVENTS].to_numpy())
        self._hashes["dictionaries"] = _hash_json(ordered.dictionaries)
        self._hashes["schema"] = _hash_json(asdict(ordered.schema))
        return _hash_json({name: hasher.hexdigest() for name, hasher in self._hashes.items()}).hexdigest()


def _hash_json(value: Any) -> Any:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=16)


def _string_bytes(ids: pl.Series) -> np.ndarray:
    return np.frombuffer("\x00".join(ids.to_list()).encode(), dtype=np.uint8)


class RunningSums:
    """Money in whole millionths and number of purchases, carried from range to range."""

    def __init__(self) -> None:
        self.amount = self.purchases = 0

    def extend(self, columns: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Sums up to and including each event, int64."""
        purchase_N = columns[layout.PURCHASE]
        purchases_N = np.cumsum(purchase_N, dtype=np.int64) + self.purchases
        if AMOUNT in columns:
            money_N = np.nan_to_num(columns[AMOUNT] * MONEY_SCALE)
            # Sums may wrap around 64 bits in very large stores; their differences stay exact.
            amounts_N = np.cumsum(np.rint(money_N, out=money_N).astype(np.int64)) + np.int64(self.amount)
        else:
            amounts_N = np.zeros(len(purchase_N), dtype=np.int64)
        if len(purchase_N):
            self.amount, self.purchases = amounts_N[-1], purchases_N[-1]
        return amounts_N, purchases_N


def as_polars(frame: Any) -> pl.DataFrame:
    """A pandas, polars or Arrow table as polars; NaN of pandas is missing."""
    import polars as pl

    if isinstance(frame, pl.DataFrame):
        return frame
    if isinstance(frame, pl.LazyFrame):
        return frame.collect()
    if type(frame).__module__.startswith("pandas"):
        return pl.from_pandas(frame)
    if type(frame).__module__.startswith("pyarrow"):
        converted = pl.from_arrow(frame)
        assert isinstance(converted, pl.DataFrame)
        return converted
    raise InputError(f"A pandas, polars or Arrow table was expected, found {type(frame).__name__}.")


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
    from constellation.journeys.store import Manifest, Store

    frame = as_polars(events)
    table = clean_attributes(None if attributes is None else as_polars(attributes), schema)
    ordered = first_pass([frame], schema, table, spool=Spool(None), rejects=Rejects(None))
    (columns,) = ordered.ranges()
    content, sums = ContentHash(), RunningSums()
    feed(content, columns, dict.fromkeys(columns, 0))
    coded = code_attributes(ordered, table)
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


def feed(content: ContentHash, columns: dict[str, Any], list_starts: dict[str, int]) -> None:
    """Hash a stretch of the store; what follows from other columns (sums, rows of customers) is left out."""
    for name, values in columns.items():
        if name == layout.JOURNEY:
            continue
        if isinstance(values, tuple):
            content.update(name, values[0])
            content.update(name + ".ends", values[1][1:] + list_starts[name])
        else:
            content.update(name, values)


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
        layout.SparseFile(
            directory / layout.EVENTS,
            kinds,
            num_events,
            dictionaries=ordered.dictionaries,
            list_lengths=ordered.list_lengths,
        ) as events,
        layout.SparseFile(directory / layout.SUMS, sum_kinds, num_events + 1) as running,
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
    coded = code_attributes(ordered, attributes)
    ids = ordered.customers[CUSTOMER_ID].to_arrow()
    layout.write_customers(directory, ids, ordered.first_event_C, coded)
    return content.digest(ordered, coded)
