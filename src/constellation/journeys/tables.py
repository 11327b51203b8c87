"""Tables as they come: frames of any library, ids, and the table of customers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from constellation import zones
from constellation.errors import InputError
from constellation.journeys import order
from constellation.journeys.spool import NUM_EVENTS
from constellation.schema import CATEGORICAL, CUSTOMER_ID, EventSchema, identifier, texts

if TYPE_CHECKING:
    import polars as pl


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
    ids = identifier(series)
    if ids.null_count():
        raise InputError(f"{ids.null_count():,} rows of {where} have no valid {CUSTOMER_ID}. Filter them out in SQL.")
    return ids


CodedAttributes = dict[str, tuple[np.ndarray, list[str | None] | None]]
"""Per attribute: values [C] and dictionary; codes int32 (0 missing), or float64 (NaN missing) and no dictionary."""


def code_attributes(customers: pl.DataFrame, attributes: pl.DataFrame | None) -> CodedAttributes:
    """Attributes in the order of ``customers``; who has none is missing in all."""
    import polars as pl

    if attributes is None:
        return {}
    aligned = customers.select(CUSTOMER_ID).join(attributes, on=CUSTOMER_ID, how="left", maintain_order="left")
    result: CodedAttributes = {}
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


def add_customers(customers: pl.DataFrame, ids: pl.Series, what: str) -> pl.DataFrame:
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
