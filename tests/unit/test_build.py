"""The arrays of a store, computed by hand on a table small enough to see through."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pytest

from constellation.errors import InputError
from constellation.journeys.build import first_pass, store_from_frame
from constellation.journeys.rejects import Rejects
from constellation.journeys.spool import Spool
from constellation.schema import EventSchema

DAY = 86_400_000_000
EVENTS = pl.DataFrame(
    {
        "customer_id": ["bob", "ann", "ann", "bob", "ann"],
        "event_time": ["2024-01-03", "2024-01-02", "2024-01-01", "2024-01-01", "2024-01-02"],
        "event_type": ["purchase", "visit", "purchase", "refund", "purchase"],
        "amount": [2.5, None, 10.0, -1.0, 0.1],
        "product": [["tea", "milk"], None, ["tea"], [], ["jam", "tea", "jam"]],
        "channel": ["shop", "web", None, "web", "web"],
    }
)
SCHEMA = EventSchema(purchase_types=("purchase",))


def test_events_are_sorted_by_customer_time_and_values() -> None:
    store = store_from_frame(EVENTS, SCHEMA)
    first_of_january = 1_704_153_599_999_999
    assert store.customer_id_C.tolist() == ["ann", "bob"]
    assert store.first_event_C.tolist() == [0, 3, 5]
    assert ((store.time_N - first_of_january) // DAY).tolist() == [0, 1, 1, 0, 2]
    assert store.dictionaries["event_type"] == [None, "purchase", "refund", "visit"]
    # On 2 January purchase comes before visit because its code does.
    assert store.categorical["event_type"].tolist() == [1, 1, 3, 2, 1]
    assert store.dictionaries["channel"] == [None, "shop", "web"]
    assert store.categorical["channel"].tolist() == [0, 2, 2, 2, 1]
    np.testing.assert_array_equal(store.numeric["amount"], [10.0, 0.1, np.nan, -1.0, 2.5])
    values, offsets = store.lists["product"]
    assert store.dictionaries["product"] == [None, "jam", "milk", "tea"]
    assert offsets.tolist() == [0, 1, 4, 4, 4, 6]
    assert values.tolist() == [3, 1, 1, 3, 2, 3]  # each list ascending, repeats kept
    assert store.purchase_N.tolist() == [True, True, False, False, True]
    assert store.amount_sum_N.tolist() == [0, 10_000_000, 10_100_000, 10_100_000, 9_100_000, 11_600_000]
    assert store.purchase_sum_N.tolist() == [0, 1, 2, 2, 2, 3]
    assert store.manifest.observed_until == first_of_january + 2 * DAY


def test_a_purchase_is_any_positive_amount_where_no_types_are_declared() -> None:
    assert store_from_frame(EVENTS, EventSchema()).purchase_N.tolist() == [True, True, False, False, True]
    free = EVENTS.drop("amount")
    assert not store_from_frame(free, EventSchema()).purchase_N.any()


def test_pandas_and_polars_give_the_same_store() -> None:
    frame = EVENTS.drop("product").with_columns(product=pl.col("channel"))
    ours, theirs = store_from_frame(frame, SCHEMA), store_from_frame(frame.to_pandas(), SCHEMA)
    assert ours.manifest.fingerprint == theirs.manifest.fingerprint
    values, offsets = theirs.lists["product"]  # one product per row is a list of one
    assert values.tolist() == [2, 2, 2, 1] and offsets.tolist() == [0, 0, 1, 2, 3, 4]


def test_customers_with_attributes_only_have_an_empty_journey() -> None:
    attributes = pd.DataFrame({"customer_id": ["zoe", "bob", "abe"], "region": ["N", None, "S"], "age": [30, 40, None]})
    store = store_from_frame(EVENTS, SCHEMA, attributes)
    assert store.customer_id_C.tolist() == ["abe", "ann", "bob", "zoe"]
    assert store.first_event_C.tolist() == [0, 0, 3, 5, 5]
    assert store.dictionaries["attributes.region"] == [None, "N", "S"]
    assert store.attributes_categorical["region"].tolist() == [2, 0, 0, 1]
    np.testing.assert_array_equal(store.attributes_numeric["age"], [np.nan, np.nan, 40.0, 30.0])
    chosen = store_from_frame(EVENTS, EventSchema(attributes=("age",)), attributes)
    assert not chosen.attributes_categorical and list(chosen.attributes_numeric) == ["age"]


def test_attribute_tables_that_cannot_be_joined_are_refused() -> None:
    with pytest.raises(InputError, match="1 rows too many"):
        store_from_frame(EVENTS, SCHEMA, pl.DataFrame({"customer_id": ["ann", "ann"], "age": [1, 2]}))
    with pytest.raises(InputError, match="Int64 in the attributes"):
        store_from_frame(EVENTS, SCHEMA, pl.DataFrame({"customer_id": [1], "age": [1]}))
    with pytest.raises(InputError, match="lacks height"):
        store_from_frame(
            EVENTS, EventSchema(attributes=("height",)), pl.DataFrame({"customer_id": ["ann"], "age": [1]})
        )


def test_declared_columns_break_ties_even_if_they_are_not_stored() -> None:
    frame = pl.DataFrame(
        {
            "customer_id": [1, 1, 1],
            "event_time": ["2024-01-01"] * 3,
            "event_type": ["a", "b", "c"],
            "line": [3, 1, 2],
        }
    )
    assert store_from_frame(frame, EventSchema()).categorical["event_type"].tolist() == [1, 2, 3]
    ordered = store_from_frame(frame, EventSchema(order_by=("line",)))
    assert ordered.categorical["event_type"].tolist() == [2, 3, 1]
    assert "line" not in ordered.manifest.kinds


def test_equal_rows_are_kept_and_counted() -> None:
    store = store_from_frame(pl.concat([EVENTS, EVENTS[:2], EVENTS[:1]]), SCHEMA)
    assert store.num_events == 8 and store.manifest.profile["num_duplicates"] == 3


def test_rejects_over_the_share_stop_with_a_paragraph() -> None:
    broken = EVENTS.with_columns(event_time=pl.Series(["2024-01-03", "yesterday", *EVENTS["event_time"][2:]]))
    with pytest.raises(InputError, match=r"1 of 5 rows.*event_time is not a time \(1 rows\).*yesterday"):
        store_from_frame(broken, SCHEMA)
    store = store_from_frame(broken, EventSchema(max_reject_share=0.2))
    assert store.num_events == 4 and store.manifest.profile["num_rejected"] == 1


def test_wide_ids_and_long_spans_sort_without_the_packed_key() -> None:
    generator = np.random.default_rng(0)
    ids = generator.integers(-(2**62), 2**62, 50)
    frame = pl.DataFrame(
        {
            "customer_id": generator.choice(ids, 400),
            "event_time": generator.integers(0, 2**62, 400),
            "event_type": ["x"] * 400,
        }
    )
    store = store_from_frame(frame, EventSchema(clock="order"))
    expected = frame.sort("customer_id", "event_time")
    assert store.time_N.tolist() == expected["event_time"].to_list()
    assert np.repeat(store.customer_id_C, np.diff(store.first_event_C)).tolist() == expected["customer_id"].to_list()


def test_observed_until_may_not_lie_before_the_last_event() -> None:
    assert store_from_frame(EVENTS, SCHEMA, observed_until="2024-02-01").manifest.observed_until > 1_706_000_000_000_000
    with pytest.raises(InputError, match="before the last event"):
        store_from_frame(EVENTS, SCHEMA, observed_until="2024-01-02")


def test_an_empty_table_with_attributes_gives_customers_without_events() -> None:
    store = store_from_frame(EVENTS.clear(), SCHEMA, pl.DataFrame({"customer_id": ["ann"], "region": ["N"]}))
    assert store.num_events == 0 and store.num_customers == 1
    assert store.last_event(np.array([0]), np.array([0])).tolist() == [-1]
    assert store.amount_sum_N.tolist() == [0]


def test_frames_of_a_source_must_agree_in_type() -> None:
    one = pl.DataFrame({"customer_id": [1], "event_time": ["2024-01-01"], "event_type": ["a"]})
    two = one.with_columns(customer_id=pl.lit("x"))
    with pytest.raises(InputError, match="customer_id: first Int64, then String"):
        first_pass([one, two], EventSchema(), None, spool=Spool(None), rejects=Rejects(None))
