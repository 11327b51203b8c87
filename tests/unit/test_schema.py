"""The one validation: canonical columns, times, and a reason for every rejected row."""

from __future__ import annotations

import datetime as dt
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from constellation import zones
from constellation.errors import InputError
from constellation.schema import EventSchema, reject_message, validate

NEW_YORK = EventSchema(timezone="America/New_York")


def micros(text: str) -> int:
    """Microseconds since 1970 of an ISO text with offset."""
    since = dt.datetime.fromisoformat(text) - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    return since // dt.timedelta(microseconds=1)


def events(**columns: object) -> pl.DataFrame:
    size = len(next(iter(columns.values())))  # type: ignore[arg-type]
    rest = {"customer_id": list(range(size)), "event_time": ["2020-01-01"] * size, "event_type": ["visit"] * size}
    return pl.DataFrame(rest | columns)


def times_of(values: object, schema: EventSchema = NEW_YORK) -> list[int | None]:
    accepted, rejected = validate(events(event_time=values), schema)
    kept = dict(zip(accepted["customer_id"], accepted["event_time"], strict=True))
    return [kept.get(row) for row in range(accepted.height + rejected.height)]


def test_texts_are_read_as_iso_times_and_dates_end_their_local_day() -> None:
    given_texts = [
        "2017-03-01",
        "2017-03-01 10:00:00",
        "2017-03-01T10:00:00.25",
        "2017-03-01 10:00",
        "2017-03-01T10:00:00Z",
        "2017-03-01 10:00:00+02:00",
        "1 March 2017",
        "2017-02-30",
    ]
    assert times_of(given_texts) == [
        micros("2017-03-01T23:59:59.999999-05:00"),
        micros("2017-03-01T10:00:00-05:00"),
        micros("2017-03-01T10:00:00.250000-05:00"),
        micros("2017-03-01T10:00:00-05:00"),
        micros("2017-03-01T10:00:00+00:00"),
        micros("2017-03-01T10:00:00+02:00"),
        None,
        None,
    ]


def test_typed_times_agree_with_texts() -> None:
    day = pl.Series([dt.date(2017, 3, 1)])
    naive = pl.Series([dt.datetime(2017, 3, 1, 10)])
    aware = naive.dt.replace_time_zone("Europe/Berlin")
    assert times_of(day) == times_of(["2017-03-01"])
    assert times_of(naive) == times_of(naive.cast(pl.Datetime("ns"))) == times_of(["2017-03-01 10:00:00"])
    assert times_of(aware) == [micros("2017-03-01T10:00:00+01:00")]


def test_a_day_of_23_and_of_25_hours_end_at_local_midnight() -> None:
    forward, back = times_of(["2017-03-12", "2017-11-05"])
    assert forward == micros("2017-03-12T23:59:59.999999-04:00")
    assert back == micros("2017-11-05T23:59:59.999999-05:00")


def test_gap_is_read_with_the_offset_before_and_a_repeated_hour_is_its_first() -> None:
    assert times_of(["2017-03-12 02:30:00"]) == [micros("2017-03-12T03:30:00-04:00")]
    assert times_of(["2017-11-05 01:30:00"]) == [micros("2017-11-05T01:30:00-04:00")]


@settings(max_examples=200, deadline=None)
@given(
    st.datetimes(dt.datetime(1905, 1, 1), dt.datetime(2099, 1, 1)),
    st.sampled_from(
        ["America/New_York", "Europe/Berlin", "Australia/Lord_Howe", "America/Sao_Paulo", "Asia/Kolkata", "UTC"]
    ),
)
def test_to_utc_is_the_rule_of_zoneinfo(wall: dt.datetime, timezone: str) -> None:
    wall = wall.replace(fold=0)
    epoch = dt.datetime(1970, 1, 1)
    local = np.array([(wall - epoch) // dt.timedelta(microseconds=1)], dtype=np.int64)
    offset = wall.replace(tzinfo=ZoneInfo(timezone)).utcoffset()
    assert offset is not None
    assert zones.to_utc(local, timezone)[0] == local[0] - offset // dt.timedelta(microseconds=1)


def test_end_of_day_is_the_last_microsecond_before_local_midnight() -> None:
    assert zones.end_of_day(micros("2018-01-01T03:00:00+00:00"), "America/New_York") == micros(
        "2017-12-31T23:59:59.999999-05:00"
    )


def test_unknown_zone_is_named() -> None:
    with pytest.raises(InputError, match="Middle/Earth"):
        times_of(["2020-01-01"], EventSchema(timezone="Middle/Earth"))


def test_every_rejected_row_has_its_reason() -> None:
    frame = pl.DataFrame(
        {
            "customer_id": [1, None, 3, 4, 5, 6, 7],
            "event_time": ["2020-01-01", "2020-01-01", None, "soon", "9999-12-31", "2020-01-01", "2020-01-01"],
            "event_type": ["a", "a", "a", "a", "a", "", "a"],
            "amount": [None, 1.0, 1.0, 1.0, 1.0, 1.0, float("inf")],
        }
    )
    accepted, rejected = validate(frame, EventSchema())
    assert accepted["customer_id"].to_list() == [1]
    assert rejected["reason"].to_list() == [
        "customer_id is missing",
        "event_time is missing",
        "event_time is not a time",
        "event_time lies outside 1900 to 2100",
        "event_type is missing",
        "amount is not finite",
    ]
    assert rejected.drop("reason").equals(frame[1:])


def test_missing_is_a_value_in_optional_columns() -> None:
    accepted, rejected = validate(
        events(amount=[None, float("nan"), -0.0], channel=["web", "", None], product=["tea", None, ""]), EventSchema()
    )
    assert rejected.height == 0
    amounts = accepted["amount"].to_numpy()
    assert np.isnan(amounts[:2]).all() and not np.signbit(amounts[2])
    assert accepted["channel"].to_list() == ["web", None, None]
    assert accepted["product"].to_list() == ["tea", None, None]


def test_numbers_that_pandas_made_floats_keep_their_names() -> None:
    schema = EventSchema(categorical=("store",), lists=("tags",))
    accepted, _ = validate(events(customer_id=[7.0, 8.0], store=[330.0, 1.5], tags=[[1, None, 2], None]), schema)
    assert accepted["customer_id"].to_list() == [7, 8] and accepted["customer_id"].dtype == pl.Int64
    assert accepted["store"].to_list() == ["330", "1.5"]
    assert accepted["tags"].to_list() == [["1", "2"], []]


def test_text_that_is_no_number_is_rejected_and_numeric_text_is_read() -> None:
    accepted, rejected = validate(events(amount=["1.5", "much", None]), EventSchema())
    assert accepted["amount"][0] == 1.5 and accepted.height == 2
    assert rejected["reason"].to_list() == ["amount is not a number"]


def test_order_clock_takes_ranks_and_nothing_else() -> None:
    schema = EventSchema(clock="order")
    assert times_of([3, 1, None], schema) == [3, 1, None]
    with pytest.raises(InputError, match="integer rank"):
        times_of(["2020-01-01"], schema)
    with pytest.raises(InputError, match="to_timestamp"):
        times_of([3, 1], EventSchema())


def test_missing_columns_are_named_beside_those_found() -> None:
    with pytest.raises(InputError, match=r"lacks customer_id, event_type, store; it has client, event_time"):
        validate(pl.DataFrame({"client": [1], "event_time": ["2020-01-01"]}), EventSchema(categorical=("store",)))


def test_a_schema_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(InputError, match="amount"):
        EventSchema(numeric=("amount",))
    with pytest.raises(InputError, match="clock"):
        EventSchema(clock="sundial")


def test_reject_message_counts_and_shows_a_row() -> None:
    message = reject_message(
        {"event_time is not a time": 3, "amount is not finite": 40}, 100, {"customer_id": 9, "amount": 1.0}, NEW_YORK
    )
    assert "43 of 100" in message
    assert message.index("amount is not finite (40") < message.index("event_time is not a time (3")
    assert "customer_id=9" in message and "max_reject_share" in message
