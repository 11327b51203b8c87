"""A gathered batch equals loops over the customers; company, order and packing never matter."""

from __future__ import annotations

import math
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from constellation.journeys.batch import Gatherer, JourneyBatch
from constellation.journeys.sampling import token_budget_batches
from constellation.journeys.store import Store
from constellation.journeys.vocabulary import Vocabulary
from constellation.journeys.windows import ask
from constellation.schema import CATEGORICAL, LIST
from tests.helpers import BASE, DAY, assert_same_tensors, at, events_of, fit_vocabulary, questions, random_store, stores

HORIZONS = (3, 10)
UNTIL = at(50)
VOCABULARY = fit_vocabulary(random_store(11), UNTIL)
"""Fitted on another log, so that every store has values that it does not know, or lacks columns that it does."""


def code(name: str, value: str | None) -> int:
    known = VOCABULARY.categories[name]
    return 0 if value is None else 2 + known.index(value) if value in known else 1


def local(time: int, zone: str) -> pd.Timestamp:
    return (pd.Timestamp(0, tz="UTC") + pd.Timedelta(time, unit="us")).tz_convert(ZoneInfo(zone))


def draw_batch(store: Store, data: st.DataObject, max_events: int) -> tuple[np.ndarray, np.ndarray, JourneyBatch]:
    """A permutation of the customers with a few questions at or before ``UNTIL`` about them."""
    journey_Q, cutoff_Q = data.draw(questions(store))
    cutoff_Q = np.minimum(cutoff_Q, UNTIL)
    journeys = np.array(data.draw(st.permutations(range(store.num_customers))))
    queries = ask(store, journey_Q, cutoff_Q, HORIZONS, UNTIL)
    return journeys, journey_Q, Gatherer(store, VOCABULARY, max_events).gather(journeys, UNTIL, queries)


@given(stores(min_events=0), st.sampled_from([2, 5, 1024]), st.data())
@settings(max_examples=60, deadline=None)
def test_events_against_a_loop(store: Store, max_events: int, data: st.DataObject) -> None:
    journeys, _, batch = draw_batch(store, data, max_events)
    row = 0
    for place, journey in enumerate(journeys.tolist()):
        events = [event for event in events_of(store, journey) if event["event_time"] <= UNTIL]
        kept = events[-max_events:]
        assert batch.lengths_B[place] == len(kept)
        assert batch.offsets_B[place] == row
        for position, event in enumerate(kept):
            index = len(events) - len(kept) + position
            time = event["event_time"]
            assert batch.journey_N[row] == place
            assert batch.position_N[row] == position
            assert batch.time_N[row] == time
            assert bool(batch.first_N[row]) == (index == 0)
            elapsed = (time - events[index - 1]["event_time"]) / DAY if index else 0
            assert batch.elapsed_days_N[row] == np.float32(elapsed)
            moment = local(time, store.schema.timezone)
            assert (batch.weekday_N[row], batch.hour_N[row]) == (moment.weekday(), moment.hour)
            assert batch.targets.next_N[row] == (row + 1 if position + 1 < len(kept) else -1)
            assert_columns(batch, row, event)
            row += 1
    assert row == batch.num_events
    assert batch.max_length == max(batch.lengths_B.tolist())


def assert_columns(batch: JourneyBatch, row: int, event: dict) -> None:
    for name, kind in VOCABULARY.kinds.items():
        if kind == CATEGORICAL:
            assert batch.categorical[name][row] == code(name, event.get(name))
        elif kind == LIST:
            values_M, offsets = batch.lists[name]
            found = values_M[offsets[row] : offsets[row + 1]].tolist()
            assert found == [code(name, value) for value in event.get(name, [])]
        else:
            value, found = event.get(name, math.nan), float(batch.numeric[name][row])
            edges = VOCABULARY.bin_edges[name]
            assert found == np.float32(value) or (math.isnan(value) and math.isnan(found))
            bin_of_value = 0 if math.isnan(value) else 1 + sum(edge <= value for edge in edges)
            assert batch.numeric_bin[name][row] == bin_of_value


@given(stores(min_events=0), st.sampled_from([2, 5, 1024]), st.data())
@settings(max_examples=60, deadline=None)
def test_queries_against_a_loop(store: Store, max_events: int, data: st.DataObject) -> None:
    journeys, journey_Q, batch = draw_batch(store, data, max_events)
    for place, journey in enumerate(journey_Q.tolist()):
        cutoff, row_of_journey = int(batch.cutoff_Q[place]), journeys.tolist().index(journey)
        assert batch.query_journey_Q[place] == row_of_journey
        events = [event for event in events_of(store, journey) if event["event_time"] <= UNTIL]
        seen = [event for event in events if event["event_time"] <= cutoff]
        cut = max(len(events) - max_events, 0)
        begin = int(batch.offsets_B[row_of_journey])
        assert batch.last_event_Q[place] == (begin + len(seen) - 1 - cut if len(seen) > cut else -1)
        since = (cutoff - seen[-1]["event_time"]) / DAY if seen else 0
        assert batch.since_last_days_Q[place] == np.float32(since)
        if store.num_events:
            assert batch.weekday_Q[place] == local(cutoff, store.schema.timezone).weekday()
        after = events[len(seen) :]
        assert batch.targets.next_type_Q[place] == (code("event_type", after[0]["event_type"]) if after else 0)
        basket = next((event["product"] for event in after if event.get("product")), [])
        values_M, offsets = batch.targets.next_products
        assert values_M[offsets[place] : offsets[place + 1]].tolist() == [code("product", value) for value in basket]


@given(stores(min_events=0), st.data())
@settings(max_examples=30, deadline=None)
def test_attributes_against_a_loop(store: Store, data: st.DataObject) -> None:
    journeys, _, batch = draw_batch(store, data, 1024)
    for place, journey in enumerate(journeys.tolist()):
        if "segment" in store.attributes_categorical:
            value = store.dictionaries["attributes.segment"][store.attributes_categorical["segment"][journey]]
            assert batch.attributes["segment"][place] == code("attributes.segment", value)
        else:
            assert batch.attributes["segment"][place] == 0
        age = store.attributes_numeric["age"][journey : journey + 1, None]
        assert batch.attributes_numeric["age"][place] == VOCABULARY.attribute_scaler["age"](age)[0, 0]


def one_customer(batch: JourneyBatch, row: int) -> dict[str, list]:
    """All that a batch says about the customer in ``row``, with indices counted from the customer's own first event."""
    begin, end = batch.offsets_B[row : row + 2].tolist()
    asked = (batch.query_journey_Q == row).nonzero().squeeze(1)
    own = {name: getattr(batch, name)[begin:end] for name in ("time_N", "elapsed_days_N", "first_N", "position_N")}
    own |= {name: getattr(batch, name)[begin:end] for name in ("weekday_N", "hour_N")}
    for group in (batch.categorical, batch.numeric, batch.numeric_bin):
        own |= {f"{name} {group is batch.numeric_bin}": part[begin:end] for name, part in group.items()}
    for name, (values_M, offsets) in batch.lists.items():
        own[name] = values_M[offsets[begin] : offsets[end]]
        own[f"sizes of {name}"] = offsets[begin : end + 1].diff()
    own |= {f"attribute {name}": part[row] for name, part in (batch.attributes | batch.attributes_numeric).items()}
    own |= {
        name: getattr(batch, name)[asked] for name in ("cutoff_Q", "since_last_days_Q", "weekday_Q", "aggregates_QF")
    }
    last = batch.last_event_Q[asked]
    own["last_event_Q"] = (last - begin).where(last >= 0, -1)
    following = batch.targets.next_N[begin:end]
    own["next_N"] = (following - begin).where(following >= 0, -1)
    for name in ("value_QK", "purchases_QK", "observed_QK", "next_type_Q"):
        own[name] = getattr(batch.targets, name)[asked]
    return {name: part.nan_to_num(nan=-9.0).tolist() for name, part in own.items()}


@given(stores(), st.data())
@settings(max_examples=40, deadline=None)
def test_neither_order_nor_company_matters(store: Store, data: st.DataObject) -> None:
    journeys, journey_Q, batch = draw_batch(store, data, 5)
    gatherer = Gatherer(store, VOCABULARY, 5)
    for row, journey in enumerate(journeys.tolist()):
        own = journey_Q == journey
        queries = ask(store, journey_Q[own], batch.cutoff_Q.numpy()[own], HORIZONS, UNTIL)
        alone = gatherer.gather(np.array([journey]), UNTIL, queries)
        assert one_customer(alone, 0) == one_customer(batch, row)


@given(stores(), st.data())
@settings(max_examples=20, deadline=None)
def test_codes_do_not_depend_on_the_order_of_the_storage_dictionary(store: Store, data: st.DataObject) -> None:
    _, _, batch = draw_batch(store, data, 1024)
    journeys, journey_Q = np.arange(store.num_customers), np.array([0])
    queries = ask(store, journey_Q, np.array([UNTIL]), HORIZONS, UNTIL)
    before = Gatherer(store, VOCABULARY).gather(journeys, UNTIL, queries)
    for name, codes_N in store.categorical.items():
        dictionary = store.dictionaries[name]
        order = [0, *data.draw(st.permutations(range(1, len(dictionary))))]
        store.dictionaries[name] = [dictionary[code] for code in order]
        store.categorical[name] = np.argsort(order)[codes_N].astype(np.int32)
    assert_same_tensors(before, Gatherer(store, VOCABULARY).gather(journeys, UNTIL, queries))
    assert batch.num_journeys == store.num_customers


@given(st.lists(st.integers(0, 30), max_size=40), st.integers(1, 60), st.integers(1, 9), st.none() | st.integers(0, 9))
@settings(max_examples=100, deadline=None)
def test_packing_keeps_its_budgets_and_every_row(
    lengths: list[int], max_tokens: int, max_journeys: int, seed: int | None
) -> None:
    rng = None if seed is None else np.random.default_rng(seed)
    plan = token_budget_batches(np.array(lengths), max_tokens=max_tokens, max_journeys=max_journeys, rng=rng)
    assert sorted(row for rows in plan for row in rows.tolist()) == list(range(len(lengths)))
    for rows in plan:
        # An empty journey costs one token: it takes part in every product of matrices all the same.
        cost = sum(max(lengths[row], 1) for row in rows)
        assert 1 <= len(rows) <= max_journeys
        assert cost <= max_tokens or len(rows) == 1


def test_the_vocabulary_of_these_tests_knows_columns_of_every_kind() -> None:
    assert isinstance(VOCABULARY, Vocabulary)
    assert set(VOCABULARY.kinds.values()) == {"categorical", "numeric", "list"}
    assert UNTIL > BASE
