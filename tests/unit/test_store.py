"""Bisection, running sums and local time of the store, against loops."""

from __future__ import annotations

import datetime as dt
from dataclasses import asdict
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest

from constellation.errors import InputError
from constellation.journeys.store import Manifest, Store, to_local
from constellation.schema import EventSchema
from tests.helpers import (
    BASE,
    DAY,
    HOUR,
    at,
    built_store,
    events_frame,
    events_of,
    make_store,
    random_attributes,
    random_events,
    random_store,
)

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def tiny() -> Store:
    """``a`` and ``z`` have no events, ``b`` three (two at one time), ``c`` one; ``d`` none in between, ``e`` two."""
    rows = [("b", 1), ("b", 4), ("b", 4), ("c", 2), ("e", 0), ("e", 9)]
    return make_store(
        events_frame([{"customer_id": c, "event_time": at(day), "event_type": "visit"} for c, day in rows]),
        attributes=pd.DataFrame({"customer_id": ["a", "d", "z"], "age": [1.0, 2.0, None]}),
    )


def test_last_event_by_hand() -> None:
    store = tiny()
    assert store.customer_id_C.tolist() == ["a", "b", "c", "d", "e", "z"]
    everyone = np.arange(6)

    def last(time: int) -> list[int]:
        return store.last_event(everyone, np.full(6, time)).tolist()

    assert last(at(0) - 1) == [-1, -1, -1, -1, -1, -1]
    assert last(at(0)) == [-1, -1, -1, -1, 4, -1]
    assert last(at(2)) == [-1, 0, 3, -1, 4, -1]
    assert last(at(4) - 1) == [-1, 0, 3, -1, 4, -1]
    assert last(at(4)) == [-1, 2, 3, -1, 4, -1]
    assert last(at(99)) == [-1, 2, 3, -1, 5, -1]


def test_end_event_is_the_right_bound_of_a_range() -> None:
    store = tiny()
    assert store.end_event(np.arange(6), np.full(6, at(4))).tolist() == [0, 3, 4, 4, 5, 6]
    assert store.end_event(np.arange(6), np.full(6, at(-1))).tolist() == store.first_event_C[:-1].tolist()


def test_one_time_for_all_and_no_question_at_all() -> None:
    store = tiny()
    assert store.last_event(np.array([1, 4]), np.int64(at(4))).tolist() == [2, 4]
    assert store.last_event(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)).tolist() == []


def test_a_store_without_events() -> None:
    store = make_store(events_frame([]), attributes=pd.DataFrame({"customer_id": ["a", "b"], "age": [1.0, None]}))
    assert store.last_event(np.arange(2), np.full(2, at(5))).tolist() == [-1, -1]
    assert store.end_event(np.arange(2), np.full(2, at(5))).tolist() == [0, 0]
    assert store.first_basket(np.zeros(2, dtype=np.int64), np.zeros(2, dtype=np.int64)).tolist() == [-1, -1]


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 9, 31, 32, 33])
def test_last_event_in_journeys_of_every_length(length: int) -> None:
    # Even days only, so that every gap is asked about too; a neighbour on either side must never be found.
    rows = [(customer, 2 * place) for customer in "abc" for place in range(length)]
    store = make_store(events_frame([{"customer_id": c, "event_time": at(d), "event_type": "visit"} for c, d in rows]))
    days = np.arange(-1, 2 * length + 1)
    found = store.last_event(np.ones(len(days), dtype=np.int64), BASE + days * DAY)
    assert found.tolist() == [-1 if day < 0 else length + min(day // 2, length - 1) for day in days.tolist()]


def test_money_and_purchases_between() -> None:
    store = random_store(1)
    rng = np.random.default_rng(0)
    for journey in rng.integers(0, store.num_customers, 20).tolist():
        events = events_of(store, journey)
        begin = int(store.first_event_C[journey])
        low, high = sorted(rng.integers(0, len(events) + 1, 2).tolist())
        start, end = np.array([begin + low]), np.array([begin + high])
        cents = sum(round(100 * event["amount"]) for event in events[low:high] if not np.isnan(event["amount"]))
        assert store.money_between(start, end)[0] == cents / 100
        assert store.purchases_between(start, end)[0] == sum(event["purchase"] for event in events[low:high])


def test_purchase_and_basket_events_and_type_sums() -> None:
    store = random_store(2)
    events = [event for journey in range(store.num_customers) for event in events_of(store, journey)]
    assert store.purchase_events.tolist() == [event["row"] for event in events if event["purchase"]]
    assert store.basket_events.tolist() == [event["row"] for event in events if event["product"]]
    for name in ("purchase", "refund", "never seen"):
        expected = np.cumsum([0] + [event["event_type"] == name for event in events])
        assert store.type_sum(name).tolist() == expected.tolist()


def test_first_basket_of_every_range() -> None:
    store = random_store(3, num_customers=3, num_events=25)
    has_basket = np.diff(store.lists["product"][1]) > 0
    starts, ends = np.meshgrid(np.arange(26), np.arange(26), indexing="ij")
    found = store.first_basket(starts.ravel(), ends.ravel())
    for start, end, row in zip(starts.ravel().tolist(), ends.ravel().tolist(), found.tolist(), strict=True):
        assert row == next((event for event in range(start, end) if has_basket[event]), -1)


def test_first_basket_without_products() -> None:
    assert tiny().first_basket(np.array([0, 4]), np.array([3, 6])).tolist() == [-1, -1]


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Europe/Berlin", "Asia/Kolkata", "America/Santiago"])
def test_to_local_agrees_with_the_standard_library(zone: str) -> None:
    rng = np.random.default_rng(0)
    spans = [(1950, 2060), (2017, 2018), (2017, 2017)]
    for first, last in spans:
        low, high = (dt.datetime(year, month, 1, tzinfo=dt.UTC) - EPOCH for year, month in ((first, 3), (last, 12)))
        time = rng.integers(low // dt.timedelta(microseconds=1), high // dt.timedelta(microseconds=1), 300)
        for moment, local in zip(time.tolist(), to_local(time, zone).tolist(), strict=True):
            wall = (EPOCH + dt.timedelta(microseconds=moment)).astimezone(ZoneInfo(zone)).replace(tzinfo=dt.UTC)
            assert local == (wall - EPOCH) // dt.timedelta(microseconds=1)


def test_to_local_at_the_very_change() -> None:
    # Berlin, 26 March 2017: 01:00 UTC is 03:00, a microsecond earlier 01:59:59.999999.
    change = BASE + 25 * DAY + HOUR
    assert (to_local(np.array([change - 1, change]), "Europe/Berlin") - change).tolist() == [HOUR - 1, 2 * HOUR]
    assert to_local(np.empty(0, dtype=np.int64), "Europe/Berlin").tolist() == []


def test_local_parts() -> None:
    # 1 March 2017 was a Wednesday. 02:00 UTC is 21:00 on Tuesday in New York.
    store = make_store(
        events_frame([{"customer_id": "a", "event_time": at(0), "event_type": "visit"}]),
        EventSchema(timezone="America/New_York"),
    )
    weekday, hour = store.local_parts(np.array([at(0, 2), at(0, 5), at(14, 2), -1]))
    assert weekday.tolist() == [1, 2, 1, 2]
    assert hour.tolist() == [21, 0, 22, 18]


def test_the_store_by_hand_is_the_store_of_the_builder() -> None:
    """Most tests stand on ``make_store``; here it is held against what users get."""
    frame, attributes = random_events(3), random_attributes(3)
    schema = EventSchema(timezone="America/New_York", lists=("tags",))
    by_hand, built = make_store(frame, schema, attributes), built_store(frame, schema, attributes)
    for name in ("customer_id_C", "first_event_C", "time_N", "purchase_N", "amount_sum_N", "purchase_sum_N"):
        assert np.array_equal(getattr(by_hand, name), getattr(built, name)), name
    for name in ("schema", "kinds", "num_customers", "num_events", "first_time", "last_time", "observed_until"):
        assert getattr(by_hand.manifest, name) == getattr(built.manifest, name), name
    for journey in range(by_hand.num_customers):
        assert repr(events_of(by_hand, journey)) == repr(events_of(built, journey))
    for store in (by_hand, built):
        segments = store.dictionaries["attributes.segment"]
        found = [segments[code] for code in store.attributes_categorical["segment"]]
        assert found == [None if pd.isna(segment) else segment for segment in attributes["segment"]]
        assert np.array_equal(store.attributes_numeric["age"], attributes["age"], equal_nan=True)


def test_manifest_round_trip_and_version() -> None:
    manifest = tiny().manifest
    assert Manifest.from_json(manifest.to_json()) == manifest
    with pytest.raises(InputError, match="rebuild=true"):
        Manifest.from_json({**asdict(manifest), "version": 0})


def test_open_says_what_to_do_where_there_is_no_store(tmp_path) -> None:
    with pytest.raises(InputError, match="constellation prepare"):
        Store.open(tmp_path)
