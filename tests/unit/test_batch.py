"""The gathered batch, by hand and at its edges; tests/properties/test_batch.py has the loops over random logs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from constellation.errors import InputError
from constellation.journeys.batch import Gatherer, JourneyBatch
from constellation.journeys.store import Store
from constellation.journeys.vocabulary import UNKNOWN
from constellation.journeys.windows import Queries, ask
from constellation.schema import EventSchema
from tests.helpers import (
    assert_same_tensors,
    at,
    events_frame,
    fit_vocabulary,
    make_store,
    random_store,
    tensors,
)

HORIZONS = (3, 10)


def hand_store() -> Store:
    """New York, five hours behind. ``b`` has no events."""
    rows = [
        ("a", at(0, 2), "visit", None, []),
        ("a", at(1, 14), "purchase", 4.0, ["milk", "tea"]),
        ("a", at(3, 14), "refund", -4.0, ["tea"]),
        ("c", at(2, 5), "purchase", 8.0, ["milk"]),
        ("c", at(9, 5), "visit", None, []),
    ]
    names = ("customer_id", "event_time", "event_type", "amount", "product")
    attributes = pd.DataFrame(
        {"customer_id": ["a", "b", "c"], "segment": ["gold", None, "iron"], "age": [20.0, 40.0, None]}
    )
    events = events_frame([dict(zip(names, row, strict=True)) for row in rows])
    return make_store(events, EventSchema(timezone="America/New_York"), attributes)


STORE = hand_store()
VOCABULARY = fit_vocabulary(STORE, at(20))
GATHERER = Gatherer(STORE, VOCABULARY)


def code(column: str, value: str) -> int:
    return VOCABULARY.categories[column].index(value) + 2


def gather(journeys: list[int], until: int, asked: list[tuple[int, int]] = (), **options) -> JourneyBatch:
    journey_Q, cutoff_Q = np.array(asked, dtype=np.int64).reshape(-1, 2).T
    queries = ask(STORE, journey_Q, cutoff_Q, HORIZONS, at(30))
    return options.pop("gatherer", GATHERER).gather(np.array(journeys), until, queries, **options)


def test_events_by_hand() -> None:
    batch = gather([2, 1, 0], at(5))
    assert batch.lengths_B.tolist() == [1, 0, 3]
    assert batch.offsets_B.tolist() == [0, 1, 1, 4]
    assert (batch.max_length, batch.num_journeys, batch.num_events, batch.num_queries) == (3, 3, 4, 0)
    assert batch.journey_N.tolist() == [0, 2, 2, 2]
    assert batch.position_N.tolist() == [0, 0, 1, 2]
    assert batch.first_N.tolist() == [True, True, False, False]
    assert batch.time_N.tolist() == [at(2, 5), at(0, 2), at(1, 14), at(3, 14)]
    assert batch.elapsed_days_N.tolist() == [0, 0, 1.5, 2]
    # Wednesday 1 March, 02:00 UTC, is Tuesday 21:00 in New York.
    assert batch.weekday_N.tolist() == [4, 1, 3, 5]
    assert batch.hour_N.tolist() == [0, 21, 9, 9]
    types = [code("event_type", name) for name in ("purchase", "visit", "purchase", "refund")]
    assert batch.categorical["event_type"].tolist() == types
    assert np.array_equal(batch.numeric["amount"].numpy(), [8, np.nan, 4, -4], equal_nan=True)
    assert batch.numeric_bin["amount"].tolist()[1] == 0
    milk, tea = code("product", "milk"), code("product", "tea")
    values_M, offsets = batch.lists["product"]
    assert values_M.tolist() == [milk, milk, tea, tea]
    assert offsets.tolist() == [0, 1, 1, 3, 4]
    gold, iron = code("attributes.segment", "gold"), code("attributes.segment", "iron")
    assert batch.attributes["segment"].tolist() == [iron, 0, gold]
    # Missing is the mean of training, which is 0 after scaling.
    assert batch.attributes_numeric["age"].tolist()[0] == 0


def test_queries_by_hand() -> None:
    cutoff = at(2, 2)
    batch = gather([2, 0], at(20), [(0, cutoff), (2, at(1)), (0, at(-3))])
    assert batch.query_journey_Q.tolist() == [1, 0, 1]
    assert batch.cutoff_Q.tolist() == [cutoff, at(1), at(-3)]
    assert batch.last_event_Q.tolist() == [3, -1, -1]
    assert batch.since_last_days_Q.tolist() == [0.5, 0, 0]
    # Early on Friday 3 March, Thursday 2 March and Sunday 26 February in UTC: the evening before in New York.
    assert batch.weekday_Q.tolist() == [3, 2, 5]
    assert batch.targets is not None
    assert batch.targets.value_QK.tolist() == [[-4, -4], [8, 8], [0, 0]]
    assert batch.targets.purchases_QK.tolist() == [[0, 0], [1, 1], [0, 1]]
    assert batch.targets.observed_QK.all()
    names = ["refund", "purchase", "visit"]
    assert batch.targets.next_type_Q.tolist() == [code("event_type", name) for name in names]
    milk, tea = code("product", "milk"), code("product", "tea")
    values_M, offsets = batch.targets.next_products
    assert values_M.tolist() == [tea, milk, milk, tea]
    assert offsets.tolist() == [0, 1, 2, 4]


def test_next_event_stays_within_the_journey_and_the_span() -> None:
    batch = gather([0, 1, 2], at(5))
    assert batch.targets is not None
    assert batch.targets.next_N.tolist() == [1, 2, -1, -1]
    assert gather([2], at(20)).targets.next_N.tolist() == [1, -1]


def test_one_span_end_per_journey() -> None:
    batch = GATHERER.gather(np.array([0, 2]), np.array([at(1, 14), at(0)]))
    assert batch.lengths_B.tolist() == [2, 0]


def test_aggregates_are_those_of_the_cutoff() -> None:
    asked = [(0, at(2)), (2, at(10)), (1, at(10))]
    queries = ask(STORE, np.array([0, 2, 1]), np.array([time for _, time in asked]), HORIZONS, at(30))
    raw = VOCABULARY.aggregates.compute(STORE, queries.journey_Q, queries.cutoff_Q, queries.last_event_Q)
    batch = gather([0, 1, 2], at(20), asked)
    assert np.array_equal(batch.aggregates_QF.numpy(), VOCABULARY.aggregates_scaler(raw))


def test_truncation_keeps_the_last_events_and_their_history() -> None:
    gatherer = Gatherer(STORE, VOCABULARY, max_events=2)
    asked = [(0, at(1)), (0, at(2)), (0, at(20))]
    batch = gather([0, 2], at(20), asked, gatherer=gatherer)
    whole = gather([0, 2], at(20), asked)
    assert batch.lengths_B.tolist() == [2, 2]
    assert batch.time_N.tolist()[:2] == [at(1, 14), at(3, 14)]
    # Not the customer's first event, and the time since the event before it is still known.
    assert batch.first_N.tolist() == [False, False, True, False]
    assert batch.elapsed_days_N.tolist()[0] == 1.5
    assert batch.position_N.tolist() == [0, 1, 0, 1]
    # The event before the truncation is seen by the first question, but is not in the batch.
    assert batch.last_event_Q.tolist() == [-1, 0, 1]
    assert torch.equal(batch.aggregates_QF, whole.aggregates_QF)
    assert torch.equal(batch.since_last_days_Q, whole.since_last_days_Q)
    assert batch.targets.next_N.tolist() == [1, -1, 3, -1]


def test_questions_that_the_batch_cannot_answer_are_our_mistake() -> None:
    with pytest.raises(AssertionError, match="not in the batch"):
        gather([0], at(20), [(2, at(1))])
    with pytest.raises(AssertionError, match="does not hold"):
        gather([0], at(2), [(0, at(5))])


def test_the_same_customer_twice_with_rows_of_its_own() -> None:
    queries = ask(STORE, np.array([0, 0]), np.array([at(1), at(4)]), HORIZONS, at(30))
    batch = GATHERER.gather(queries.journey_Q, queries.cutoff_Q, queries, row_of_Q=np.arange(2))
    assert batch.lengths_B.tolist() == [1, 3]
    assert batch.last_event_Q.tolist() == [0, 3]


def test_without_targets() -> None:
    with_targets = gather([0, 2], at(20), [(0, at(2))])
    without = gather([0, 2], at(20), [(0, at(2))], targets=False)
    assert without.targets is None
    assert_same_tensors(replace(with_targets, targets=None), without)


def test_a_store_that_lacks_columns_gives_the_same_shapes() -> None:
    events = events_frame([{"customer_id": "a", "event_time": at(day), "event_type": "complaint"} for day in range(3)])
    poor = make_store(events)
    queries = ask(poor, np.array([0]), np.array([at(1)]), HORIZONS, at(2))
    batch = Gatherer(poor, VOCABULARY).gather(np.array([0]), at(2), queries)
    rich = gather([0], at(20), [(0, at(2))])
    assert tensors(batch).keys() == tensors(rich).keys()
    for name, tensor in tensors(rich).items():
        assert tensors(batch)[name].dtype == tensor.dtype, name
    assert batch.categorical["event_type"].tolist() == [UNKNOWN] * 3
    assert batch.numeric["amount"].isnan().all()
    assert batch.numeric_bin["amount"].tolist() == [0, 0, 0]
    assert [part.tolist() for part in batch.lists["product"]] == [[], [0, 0, 0, 0]]
    assert batch.attributes["segment"].tolist() == [0]
    assert batch.attributes_numeric["age"].tolist() == [0]
    assert batch.aggregates_QF.shape == rich.aggregates_QF.shape
    assert batch.targets.next_type_Q.tolist() == [UNKNOWN]
    assert [part.tolist() for part in batch.targets.next_products] == [[], [0, 0]]


def test_a_store_without_events_still_answers() -> None:
    empty = make_store(
        events_frame([{"customer_id": "a", "event_time": at(0), "event_type": "visit", "product": ["milk"]}]).iloc[:0],
        attributes=pd.DataFrame({"customer_id": ["a", "b"], "segment": ["gold", "new"], "age": [20.0, None]}),
    )
    queries = ask(empty, np.array([1, 0]), np.full(2, at(5)), HORIZONS, at(30))
    batch = Gatherer(empty, VOCABULARY).gather(np.array([0, 1]), at(5), queries)
    assert (batch.num_events, batch.max_length) == (0, 0)
    assert batch.last_event_Q.tolist() == [-1, -1]
    assert batch.attributes["segment"].tolist() == [code("attributes.segment", "gold"), UNKNOWN]


def test_a_column_that_changed_its_kind_is_refused() -> None:
    events = events_frame([{"customer_id": "a", "event_time": at(0), "event_type": "visit", "store": "x"}])

    def store_with(age: object) -> Store:
        attributes = pd.DataFrame({"customer_id": ["a"], "age": [age]})
        return make_store(events, EventSchema(categorical=("store",)), attributes)

    texts, numbers = store_with("old"), store_with(70.0)
    vocabulary = fit_vocabulary(texts, at(10))
    with pytest.raises(InputError, match="column 'store' was categorical"):
        Gatherer(make_store(events.assign(store=3.0), EventSchema(numeric=("store",))), vocabulary)
    with pytest.raises(InputError, match="attribute 'age' was categorical"):
        Gatherer(numbers, vocabulary)
    with pytest.raises(InputError, match="attribute 'age' was numeric"):
        Gatherer(texts, fit_vocabulary(numbers, at(10)))
    # Nothing but missing values has no kind that could be wrong.
    batch = Gatherer(store_with(None), vocabulary).gather(np.array([0]), at(5))
    assert batch.attributes["age"].tolist() == [0]


def test_without_a_clock_time_features_are_off() -> None:
    events = events_frame(
        [{"customer_id": "a", "event_time": rank, "event_type": "visit", "product": ["milk"]} for rank in range(40)]
    )
    store = make_store(events, EventSchema(clock="order"), observed_until=39)
    queries = ask(store, np.array([0]), np.array([20]), HORIZONS, 39)
    batch = Gatherer(store, VOCABULARY).gather(np.array([0]), 39, queries)
    for name in ("elapsed_days_N", "weekday_N", "hour_N", "since_last_days_Q", "weekday_Q"):
        assert not getattr(batch, name).any(), name
    assert batch.last_event_Q.tolist() == [20]
    assert batch.position_N.tolist() == list(range(40))


def test_moving_maps_every_tensor() -> None:
    batch = gather([0, 2], at(20), [(0, at(2))])
    moved = batch.to("cpu")
    assert_same_tensors(batch, moved)
    assert moved.max_length == batch.max_length
    assert moved.targets.horizons_days == HORIZONS
    meta = tensors(batch.to("meta"))
    assert meta.keys() == tensors(batch).keys()
    assert {tensor.device.type for tensor in meta.values()} == {"meta"}


def test_dtypes() -> None:
    store = random_store()
    queries = ask(store, np.array([3]), np.array([at(20)]), HORIZONS, at(40))
    batch = Gatherer(store, fit_vocabulary(store, at(40))).gather(np.arange(6), at(40), queries)
    floats = {"elapsed_days_N", "since_last_days_Q", "aggregates_QF", "targets.value_QK", "targets.purchases_QK"}
    floats |= {name for name in tensors(batch) if name.startswith(("numeric.", "attributes_numeric."))}
    floats |= {name for name in tensors(batch) if name.startswith(("record.", "targets.after."))} - {"record.left_Q"}
    bools = {"first_N", "targets.observed_QK", "record.left_Q"}
    for name, tensor in tensors(batch).items():
        expected = torch.float32 if name in floats else torch.bool if name in bools else torch.int64
        assert tensor.dtype == expected, name


def test_no_queries() -> None:
    batch = GATHERER.gather(np.array([0]), at(20))
    assert batch.num_queries == 0
    assert batch.aggregates_QF.shape == (0, len(VOCABULARY.aggregates.names))
    assert batch.targets.value_QK.shape == (0, len(HORIZONS))
    assert isinstance(ask(STORE, np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), HORIZONS, 0), Queries)
