"""Raw tables from files, and from a prepared store back into a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from constellation.errors import InputError
from constellation.journeys.store import Store
from constellation.journeys.vocabulary import ragged_arange
from constellation.schema import CUSTOMER_ID, EVENT_TIME, LIST, NUMERIC, EventSchema

if TYPE_CHECKING:
    import polars as pl

LIST_SEPARATOR = "|"
"""Between the values of a list column in a CSV file, which has no lists of its own."""


def read_events(path: str | Path, schema: EventSchema, wanted: Sequence[str]) -> pl.DataFrame:
    """The ``wanted`` columns of a Parquet or CSV file of events, those that are there.

    CSV cells are read as text and made numbers or times by the one validation, so that a product ``007`` stays one;
    customer ids that are plain whole numbers become numbers. Raises InputError where the file cannot be read.
    """
    import polars as pl

    frame, is_csv = _read(Path(path), wanted)
    if not is_csv:
        return frame
    lists = [name for name, kind in schema.kinds().items() if kind == LIST and name in frame.columns]
    changed = [pl.col(name).str.split(LIST_SEPARATOR) for name in lists]
    if schema.clock == "order" and EVENT_TIME in frame.columns:
        changed.append(pl.col(EVENT_TIME).cast(pl.Int64, strict=False))
    frame = frame.with_columns(changed)
    return _with_whole_numbers(frame) if CUSTOMER_ID in frame.columns else frame


def _with_whole_numbers(frame: pl.DataFrame) -> pl.DataFrame:
    """Customer ids as numbers where all of them are plain whole ones."""
    import polars as pl

    numbers = frame[CUSTOMER_ID].cast(pl.Int64, strict=False)
    is_number = (numbers.cast(pl.String) == frame[CUSTOMER_ID]).fill_null(frame[CUSTOMER_ID].is_null()).all()
    return frame.with_columns(numbers) if is_number else frame


def read_attributes(path: str | Path, wanted: Sequence[str], customer_id: pl.Series | None) -> pl.DataFrame:
    """The customers table from a Parquet or CSV file, its ids of the type that those of the events have, if any."""
    frame, is_csv = _read(Path(path), wanted)
    return _with_ids_like(frame, path, customer_id, is_csv)


def read_decisions(path: str | Path, customer_id: pl.Series | None) -> pl.DataFrame:
    """A table of decisions with all its columns; in CSV the actions of ``eligible`` are separated by ``|``, and an
    empty cell is missing. customer_id: of the events, for the type of the ids."""
    import polars as pl

    frame, is_csv = _read(Path(path), None)
    if is_csv and "eligible" in frame.columns:
        words = frame["eligible"].str.to_lowercase()
        if words.drop_nulls().is_in(["true", "false"]).all():
            frame = frame.with_columns(eligible=words == "true")
        else:
            frame = frame.with_columns(pl.col("eligible").str.split(LIST_SEPARATOR))
    return _with_ids_like(frame, path, customer_id, is_csv)


def _with_ids_like(frame: pl.DataFrame, path: str | Path, customer_id: pl.Series | None, is_csv: bool) -> pl.DataFrame:
    import polars as pl

    if CUSTOMER_ID not in frame.columns:
        return frame
    if customer_id is None:
        return _with_whole_numbers(frame) if is_csv else frame
    if frame[CUSTOMER_ID].dtype == customer_id.dtype:
        return frame
    try:
        return frame.with_columns(pl.col(CUSTOMER_ID).cast(customer_id.dtype))
    except pl.exceptions.InvalidOperationError:
        raise InputError(
            f"{CUSTOMER_ID} is {customer_id.dtype} in the events, and in {path} it is {frame[CUSTOMER_ID].dtype} and "
            "cannot be made that. Write the ids alike in both files."
        ) from None


def _read(path: Path, wanted: Sequence[str] | None) -> tuple[pl.DataFrame, bool]:
    import polars as pl

    name = path.name.lower()
    is_csv = name.endswith((".csv", ".csv.gz", ".tsv", ".tsv.gz"))
    if not is_csv and not name.endswith((".parquet", ".pq")):
        raise InputError(f"{path} should be a Parquet file (.parquet, .pq) or a CSV file (.csv, .tsv, also with .gz).")
    if not path.is_file():
        raise InputError(f"There is no file {path}.")
    try:
        if is_csv:
            separator = "\t" if ".tsv" in name else ","
            frame = pl.read_csv(path, separator=separator, infer_schema=False, encoding="utf8")
            return frame.select(_kept(frame.columns, wanted)), True
        columns = _kept(list(pl.read_parquet_schema(path)), wanted)
        return pl.read_parquet(path, columns=columns), False
    except (pl.exceptions.PolarsError, OSError) as error:
        first_line = next(iter(str(error).splitlines()), "")
        raise InputError(f"{path} cannot be read as {'CSV' if is_csv else 'Parquet'}: {first_line}") from None


def _kept(columns: list[str], wanted: Sequence[str] | None) -> list[str]:
    """The wanted columns; all of them where one is absent, so that whoever misses it can say what is there instead."""
    if wanted is None or any(name not in columns for name in wanted):
        return columns
    return [column for column in columns if column in wanted]


def raw_events(store: Store, journeys: np.ndarray) -> pl.DataFrame:
    """The events of ``journeys`` (rows of the store) as the table they came from, in the order of the store."""
    import polars as pl

    journeys = np.asarray(journeys, dtype=np.int64)
    begin, end = store.first_event_C[journeys].astype(np.int64), store.first_event_C[journeys + 1].astype(np.int64)
    rows_N = ragged_arange(begin, end - begin)
    journey_N = np.repeat(journeys, end - begin)
    time = pl.Series(store.time_N[rows_N])
    columns = {
        CUSTOMER_ID: pl.Series(np.asarray(store.customer_id_C)[journey_N].tolist()),
        EVENT_TIME: time.cast(pl.Datetime("us", "UTC")) if store.has_clock else time,
    }
    for name, kind in store.manifest.kinds.items():
        if kind == NUMERIC:
            columns[name] = pl.Series(store.numeric[name][rows_N], dtype=pl.Float64).fill_nan(None)
            continue
        dictionary = pl.Series(store.dictionaries[name], dtype=pl.String)
        if kind == LIST:
            values_M, offsets = store.lists[name]
            first_N = offsets[rows_N].astype(np.int64)
            length_N = offsets[rows_N + 1].astype(np.int64) - first_N
            values = dictionary.gather(values_M[ragged_arange(first_N, length_N)])
            columns[name] = _as_lists(values, length_N)
        else:
            columns[name] = dictionary.gather(store.categorical[name][rows_N])
    for name in store.schema.order_by:
        # The store is in order already; a column that was only there to say so is the place in it.
        columns.setdefault(name, pl.Series(rows_N))
    return pl.DataFrame(columns)


def raw_attributes(store: Store, journeys: np.ndarray) -> pl.DataFrame | None:
    """The attributes of ``journeys`` as a table, None where the store has none."""
    import polars as pl

    columns = {CUSTOMER_ID: pl.Series(np.asarray(store.customer_id_C)[journeys].tolist())}
    for name, codes_C in store.attributes_categorical.items():
        columns[name] = pl.Series(store.dictionaries[f"attributes.{name}"], dtype=pl.String).gather(codes_C[journeys])
    for name, values_C in store.attributes_numeric.items():
        columns[name] = pl.Series(values_C[journeys], dtype=pl.Float64).fill_nan(None)
    return pl.DataFrame(columns) if len(columns) > 1 else None


def _as_lists(values: pl.Series, length_N: np.ndarray) -> pl.Series:
    import polars as pl
    import pyarrow as pa

    offsets = np.concatenate([[0], np.cumsum(length_N)]).astype(np.int64)
    lists = pl.from_arrow(pa.LargeListArray.from_arrays(pa.array(offsets), values.to_arrow()))
    assert isinstance(lists, pl.Series)
    return lists
