"""What a prediction may not depend on: the order of rows, the future, and everybody else."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from constellation.bundle import Bundle
from constellation.bundle.table import largest_difference
from constellation.schema import CUSTOMER_ID, EVENT_TIME, EVENT_TYPE
from tests.bundles import CUTOFF, shop_attributes, shop_bundle, shop_events

few = settings(max_examples=20)
END = dt.datetime(2017, 4, 10, 23, 59, 59, 999_999)
"""The last moment of the cutoff's day, in the zone of the schema, in which the tables are."""


def tables(first: dt.datetime, last: dt.datetime, min_size: int) -> st.SearchStrategy[pd.DataFrame]:
    """Event tables with every column; few times, so that ties are common, and the two ends among them."""
    times = st.sampled_from([first, first, last]) | st.datetimes(first, last)
    columns = {
        CUSTOMER_ID: st.sampled_from(["c00", "c01", "n1"]),
        EVENT_TIME: times,
        EVENT_TYPE: st.sampled_from(["purchase", "visit", "strange"]),
        "amount": st.sampled_from([None, -5.0, 0.0, 0.1, 20.0, 1999.99]),
        "product": st.lists(st.sampled_from(["bread", "tea", "strange"]), max_size=2),
        "channel": st.sampled_from([None, "shop", "strange"]),
        "score": st.sampled_from([None, 1.0]),
        "action": st.sampled_from([None, "mail"]),
        "tags": st.lists(st.just("gift"), max_size=1),
    }
    rows = st.lists(st.fixed_dictionaries(columns), min_size=min_size, max_size=12)
    return rows.map(lambda found: pd.DataFrame(found, columns=list(columns)))


PAST = tables(dt.datetime(2017, 3, 1), END, min_size=1)
FUTURE = tables(END + dt.timedelta(microseconds=1), dt.datetime(2018, 3, 1), min_size=0)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return shop_bundle()


def predict(bundle: Bundle, events: pd.DataFrame) -> pd.DataFrame:
    return bundle.predict(events, CUTOFF, shop_attributes())


def is_late(events: pd.DataFrame) -> pd.Series:
    return events[EVENT_TIME] >= pd.Timestamp(CUTOFF) + pd.Timedelta(days=1)


@few
@given(events=PAST, seed=st.integers(0, 2**16))
def test_the_order_of_rows_does_not_matter(bundle: Bundle, events: pd.DataFrame, seed: int) -> None:
    shuffled = events.sample(frac=1.0, random_state=seed)
    pd.testing.assert_frame_equal(predict(bundle, events), predict(bundle, shuffled))


@few
@given(past=PAST, future=FUTURE)
def test_the_future_does_not_matter(bundle: Bundle, past: pd.DataFrame, future: pd.DataFrame) -> None:
    alone = predict(bundle, past)
    found = predict(bundle, pd.concat([past, future]) if len(future) else past)
    pd.testing.assert_frame_equal(found, alone)
    assert found.attrs["events_ignored"] == len(future)
    assert found.attrs["unknown_share"] == alone.attrs["unknown_share"]


def test_changing_every_later_event_changes_nothing(bundle: Bundle) -> None:
    events = shop_events(1)
    late = is_late(events)
    assert 20 < late.sum() < len(events) - 20
    changed = events.copy()
    changed.loc[late, "amount"] = 1e6
    changed.loc[late, EVENT_TYPE] = "purchase"
    changed.loc[late, EVENT_TIME] += pd.Timedelta(days=300)
    changed["product"] = [["soap"] if after else found for after, found in zip(late, events["product"], strict=True)]
    assert largest_difference(predict(bundle, changed), predict(bundle, events)) == 0
    changed.loc[np.flatnonzero(~late)[-1], "amount"] = 1e6
    assert largest_difference(predict(bundle, changed), predict(bundle, events)) > 1e-3, "the mirror: the past matters"


@few
@given(kept=st.sets(st.sampled_from([f"c{place:02d}" for place in range(12)]), min_size=1), seed=st.integers(0, 20))
def test_nobody_else_matters(bundle: Bundle, kept: set[str], seed: int) -> None:
    events, attributes = shop_events(seed, num_customers=12, num_events=120), shop_attributes()
    everybody = bundle.predict(events, CUTOFF, attributes)
    some = bundle.predict(
        events[events[CUSTOMER_ID].isin(kept)], CUTOFF, attributes[attributes[CUSTOMER_ID].isin(kept)]
    )
    same = everybody[everybody[CUSTOMER_ID].isin(kept)].reset_index(drop=True)
    assert list(same[CUSTOMER_ID]) == list(some[CUSTOMER_ID])
    assert largest_difference(same, some) < 1e-5
