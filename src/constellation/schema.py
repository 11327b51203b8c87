"""The event table: column names, kinds, and the one validation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from constellation import zones
from constellation.errors import InputError

if TYPE_CHECKING:
    import polars as pl

CUSTOMER_ID = "customer_id"
EVENT_TIME = "event_time"
EVENT_TYPE = "event_type"
AMOUNT = "amount"
PRODUCT = "product"
CHANNEL = "channel"
SCORE = "score"
ACTION = "action"

REQUIRED = (CUSTOMER_ID, EVENT_TIME, EVENT_TYPE)

CATEGORICAL, NUMERIC, LIST = "categorical", "numeric", "list"
"""The kinds of column. Missing is code 0, NaN, and the empty list."""

STANDARD_KINDS = {
    EVENT_TYPE: CATEGORICAL,
    AMOUNT: NUMERIC,
    PRODUCT: LIST,
    CHANNEL: CATEGORICAL,
    SCORE: NUMERIC,
    ACTION: CATEGORICAL,
}


@dataclass(frozen=True)
class EventSchema:
    """What a data set declares about its event table.

    timezone: IANA zone of naive times and of calendar features; the store keeps UTC.
    clock: ``time``, or ``order`` where only the order is known (``event_time`` is then an integer rank).
    currency: of ``amount``; one per data set.
    categorical, lists, numeric: names of further columns beyond the standard ones.
    order_by: columns that break ties of time; without them the column values do, never the order of rows.
    purchase_types: the event types that count as purchases; empty means any event with a positive amount.
    churn_types: the event types that end a relationship (cancelled, lapsed); each is a cause of its own. Empty: no
        contract ends, and customers are lost by falling silent.
    max_reject_share: over this share of rejected rows preparation stops.
    attributes: columns of the customers table to keep; None keeps all.
    """

    timezone: str = "UTC"
    clock: str = "time"
    currency: str | None = None
    categorical: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()
    order_by: tuple[str, ...] = ()
    purchase_types: tuple[str, ...] = ()
    churn_types: tuple[str, ...] = ()
    max_reject_share: float = 0.01
    attributes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        # YAML and JSON hand us lists; a frozen schema that is hashed into a fingerprint wants tuples.
        for name in ("categorical", "lists", "numeric", "order_by", "purchase_types", "churn_types", "attributes"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, tuple(value))
        if self.clock not in ("time", "order"):
            raise InputError(f"clock must be 'time' or 'order', found {self.clock!r}.")
        if not 0 <= self.max_reject_share <= 1:
            raise InputError(f"max_reject_share must lie in [0, 1], found {self.max_reject_share}.")
        declared = [*self.categorical, *self.lists, *self.numeric]
        repeated = sorted({name for name in declared if declared.count(name) > 1 or name in STANDARD_KINDS})
        if repeated:
            raise InputError(
                f"The schema declares {', '.join(repeated)} twice. Standard columns ({', '.join(STANDARD_KINDS)}) "
                "need no declaration, and a further column has one kind: categorical, lists or numeric."
            )

    def kinds(self) -> dict[str, str]:
        """Kind of every column that may appear, standard columns first."""
        declared = dict.fromkeys(self.categorical, CATEGORICAL)
        declared |= dict.fromkeys(self.lists, LIST)
        declared |= dict.fromkeys(self.numeric, NUMERIC)
        return STANDARD_KINDS | declared


def check_columns(columns: list[str], schema: EventSchema) -> None:
    """Raise InputError where a required or declared column is missing from the event table."""
    wanted = [*REQUIRED, *schema.categorical, *schema.lists, *schema.numeric, *schema.order_by]
    missing = [name for name in dict.fromkeys(wanted) if name not in columns]
    if missing:
        raise InputError(
            f"The event table lacks {', '.join(missing)}; it has {', '.join(columns)}. Name the columns in the SELECT "
            "(for example `SELECT client AS customer_id`), or take undeclared ones out of the schema."
        )


def validate(frame: pl.DataFrame, schema: EventSchema) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split an event table into rows we can use, in one canonical form, and rows we cannot, with the reason.

    accepted: ``customer_id`` Int64 or String; ``event_time`` Int64 (microseconds UTC, or the rank where
    ``clock: order``); categorical columns String (missing null); numeric columns Float64 (missing NaN); list columns
    List(String), or String where the source has one value per row; ``order_by`` columns that are nothing else as
    they are. Undeclared columns are left out. An empty string is missing, and NaN is a missing number.
    rejected: the rows as they came, with a column ``reason``.

    Raises InputError where no row could be right: missing columns, a type that cannot be a time.
    """
    import polars as pl

    check_columns(frame.columns, schema)
    columns: list[pl.Series] = []
    reasons: list[tuple[pl.Series, str]] = []

    def reject(bad: pl.Series, reason: str) -> None:
        if bad.any():
            reasons.append((bad, reason))

    customer = identifier(frame[CUSTOMER_ID])
    whole = customer.is_null() & frame[CUSTOMER_ID].is_not_null() if customer.dtype == pl.Int64 else None
    if whole is not None:
        reject(whole, f"{CUSTOMER_ID} is not a whole number")
    reject(customer.is_null(), f"{CUSTOMER_ID} is missing")
    columns.append(customer)

    given = frame[EVENT_TIME]
    time = times(given, schema)
    reject(given.is_null(), f"{EVENT_TIME} is missing")
    reject(time.is_null() & given.is_not_null(), f"{EVENT_TIME} is not a time")
    if schema.clock == "time":
        first, last = zones.year_start(zones.FIRST_YEAR), zones.year_start(zones.LAST_YEAR + 1)
        reject(
            ((time < first) | (time >= last)).fill_null(False),
            f"{EVENT_TIME} lies outside {zones.FIRST_YEAR} to {zones.LAST_YEAR}",
        )
    columns.append(time)

    for name, kind in schema.kinds().items():
        if name not in frame.columns:
            continue
        series = frame[name]
        if kind == NUMERIC:
            number = numbers(series)
            reject(number.is_null() & series.is_not_null(), f"{name} is not a number")
            reject(number.is_infinite().fill_null(False), f"{name} is not finite")
            if name == AMOUNT:
                # Running sums keep whole millionths in 64 bits.
                reject((number.is_finite() & (number.abs() >= 1e11)).fill_null(False), f"{name} is beyond 1e11")
            # Equal values must be equal bits: one NaN, and no -0.0, which adding zero removes (polars would skip it).
            columns.append(pl.Series(name, number.fill_null(float("nan")).fill_nan(float("nan")).to_numpy() + 0.0))
        elif kind == LIST and isinstance(series.dtype, pl.List | pl.Array):
            columns.append(_list_texts(series))
        else:
            text = texts(series)
            if name == EVENT_TYPE:
                reject(text.is_null(), f"{EVENT_TYPE} is missing")
            columns.append(text)
    taken = {series.name for series in columns}
    columns += [frame[name] for name in schema.order_by if name not in taken]

    accepted = pl.DataFrame(columns)
    if not reasons:
        return accepted, frame.clear().with_columns(pl.lit(None, dtype=pl.String).alias("reason"))
    reason = pl.Series("reason", [None], dtype=pl.String).new_from_index(0, frame.height)
    for bad, why in reversed(reasons):  # the first reason found is the one reported
        reason = pl.Series("reason", [why]).new_from_index(0, frame.height).zip_with(bad, reason)
    good = reason.is_null()
    return accepted.filter(good), frame.with_columns(reason.alias("reason")).filter(~good)


def reject_message(reasons: dict[str, int], num_rows: int, example: dict[str, object], schema: EventSchema) -> str:
    """One paragraph on why preparation stopped: counts of the commonest reasons, one row, the cure."""
    total = sum(reasons.values())
    top = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))[:3]
    counted = "; ".join(f"{reason} ({count:,} rows)" for reason, count in top)
    shown = ", ".join(f"{name}={value!r}" for name, value in list(example.items())[:8])
    return (
        f"{total:,} of {num_rows:,} rows of the event table were rejected ({total / num_rows:.1%}), more than "
        f"max_reject_share={schema.max_reject_share:g} allows: {counted}. For example: {shown}. "
        "Mend them in the SELECT or the file, or raise max_reject_share if they may be left out."
    )


def texts(series: pl.Series) -> pl.Series:
    """Values of a categorical column as String; whole floats lose their ``.0``, the empty string is missing."""
    import polars as pl

    name, dtype = series.name, series.dtype
    if dtype == pl.String:
        return series if not (series == "").any() else series.set(series == "", None)
    if dtype.is_float():
        # pandas turns integers with gaps into floats: 330.0 and 330 are one value, row by row.
        whole = (series == series.floor()) & (series.abs() < 2**53)
        text = series.cast(pl.String)
        text = series.cast(pl.Int64, strict=False).cast(pl.String).zip_with(whole.fill_null(False), text)
        return text.set(series.is_nan().fill_null(False), None).alias(name)
    if dtype in (pl.Null, pl.Object) or dtype.is_nested():
        if dtype == pl.Null:
            return series.cast(pl.String)
        raise InputError(f"The column {name} has type {dtype}; one value per row was expected. Declare it under lists?")
    text = series.cast(pl.String)
    return text.set(text == "", None) if (text == "").any() else text


def numbers(series: pl.Series) -> pl.Series:
    """Values of a numeric column as Float64; what is no number becomes null, a missing one stays null or NaN."""
    import polars as pl

    if series.dtype.is_nested() or series.dtype.is_temporal() or series.dtype == pl.Object:
        raise InputError(f"The column {series.name} has type {series.dtype}; a number per row was expected.")
    return series.cast(pl.Float64, strict=False)


def identifier(series: pl.Series) -> pl.Series:
    """Customer ids as Int64 or String; null where a value is missing or is no whole number."""
    import polars as pl

    if series.dtype.is_integer():
        return series.cast(pl.Int64, strict=False)
    if series.dtype.is_float():
        # Floats are integers that met a missing value; anything else is nobody's key.
        whole = series.is_finite() & (series == series.floor()) & (series.abs() < 2**53)
        return series.set(~whole.fill_null(False), None).cast(pl.Int64, strict=False)
    return texts(series)


def _list_texts(series: pl.Series) -> pl.Series:
    import polars as pl

    if isinstance(series.dtype, pl.Array):
        series = series.arr.to_list()
    if series.dtype.inner != pl.String:  # type: ignore[attr-defined]
        series = series.list.eval(pl.element().map_batches(texts, return_dtype=pl.String))
    flat = series.list.explode()
    if flat.null_count() or (flat == "").any():
        series = series.list.eval(pl.element().filter(pl.element() != ""))
    return series.fill_null([]) if series.null_count() else series


def times(series: pl.Series, schema: EventSchema) -> pl.Series:
    """Int64 microseconds UTC (or ranks, with ``clock: order``), null where a value is missing or is no time."""
    import polars as pl

    name, dtype = series.name, series.dtype
    if schema.clock == "order":
        if not dtype.is_integer():
            raise InputError(f"With clock: order, {name} must be an integer rank; found {dtype}. Cast it in SQL.")
        return series.cast(pl.Int64, strict=False)
    if dtype == pl.Null:
        return series.cast(pl.Int64)
    if dtype == pl.Date:
        return _end_of_days(series, schema.timezone)
    if isinstance(dtype, pl.Datetime):
        micros = series.cast(pl.Datetime("us", dtype.time_zone)).to_physical().cast(pl.Int64)
        return micros if dtype.time_zone else _local_to_utc(micros, schema.timezone)
    if dtype == pl.String:
        return _parse_times(series, schema.timezone)
    raise InputError(
        f"{name} has type {dtype}; a timestamp, a date or an ISO text was expected. For seconds since 1970 write "
        "`to_timestamp(seconds)` in the SELECT; where only the order is known, declare clock: order."
    )


def _local_to_utc(micros: pl.Series, timezone: str) -> pl.Series:
    import polars as pl

    if timezone == "UTC":
        return micros
    utc = pl.Series(micros.name, zones.to_utc(micros.fill_null(0).to_numpy(), timezone))
    return utc.set(micros.is_null(), None) if micros.null_count() else utc


def _end_of_days(dates: pl.Series, timezone: str) -> pl.Series:
    """A date without a time is the last microsecond of that local day."""
    import polars as pl

    midnight = (dates.to_physical().cast(pl.Int64) + 1) * zones.MICROSECONDS_PER_DAY
    return _local_to_utc(midnight, timezone) - 1


def _parse_times(text: pl.Series, timezone: str) -> pl.Series:
    """ISO texts: a date, a date and a time, or those with an offset or Z; null where it is none of them."""
    import polars as pl

    text = text.str.strip_chars()
    is_date = text.str.contains(r"^\d{4}-\d{2}-\d{2}$").fill_null(False)
    has_offset = text.str.contains(r"\d{2}:\d{2}.*(?:[Zz]|[+-]\d{2}:?\d{2})$").fill_null(False)
    time = pl.Series(text.name, [None], dtype=pl.Int64).new_from_index(0, len(text))
    if is_date.any():
        dates = text.set(~is_date, None).str.to_date("%Y-%m-%d", strict=False)
        time = _end_of_days(dates, timezone)
    if has_offset.any():
        zoned = text.set(~has_offset, None).str.replace("[Zz]$", "+00:00").str.replace(" ", "T")
        parsed = zoned.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%:z", time_unit="us", time_zone="UTC", strict=False)
        time = parsed.to_physical().cast(pl.Int64).zip_with(parsed.is_not_null(), time)
    naive = text.set(is_date | has_offset, None).str.replace("T", " ")
    if naive.null_count() < len(naive):
        parsed = naive.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us", strict=False)
        short = naive.str.to_datetime("%Y-%m-%d %H:%M", time_unit="us", strict=False)
        micros = parsed.zip_with(parsed.is_not_null(), short).to_physical().cast(pl.Int64)
        time = _local_to_utc(micros, timezone).zip_with(micros.is_not_null(), time)
    return time.alias(text.name)
