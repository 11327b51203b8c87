"""Batches cut out on a device, and batches made ahead: the same as those of the plain way, bit for bit."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from constellation.journeys.batch import Gatherer, JourneyBatch
from constellation.journeys.device_gather import DeviceGatherer, device_bytes
from constellation.journeys.packing import map_tensors
from constellation.journeys.prefetch import DEPTH, Prefetched
from constellation.journeys.store import Store
from constellation.journeys.vocabulary import Vocabulary
from constellation.journeys.windows import ask
from constellation.schema import EventSchema
from tests.golden.tiny import tiny_batch, tiny_batches, tiny_store, tiny_vocabulary
from tests.helpers import (
    assert_same_tensors,
    at,
    fit_vocabulary,
    make_store,
    questions,
    random_events,
    random_store,
    stores,
)

UNTIL = at(50)
CPU = torch.device("cpu")
VOCABULARY = fit_vocabulary(random_store(11), UNTIL)
"""Fitted on another log, so that every store has values that it does not know, or lacks columns that it does."""


def assert_same_batches(found: JourneyBatch, expected: JourneyBatch) -> None:
    assert_same_tensors(found, expected)
    assert found.max_length == expected.max_length and found.num_past_products == expected.num_past_products
    assert np.array_equal(found.lengths_on_host, expected.lengths_on_host)
    assert np.array_equal(found.lengths_on_host, found.lengths_B.numpy())


@given(stores(min_events=0), st.sampled_from([2, 5, 1024]), st.booleans(), st.data())
@settings(max_examples=60, deadline=None)
def test_a_batch_cut_on_the_device_is_that_of_the_host(
    store: Store, max_events: int, targets: bool, data: st.DataObject
) -> None:
    plain = Gatherer(store, VOCABULARY, max_events)
    resident = DeviceGatherer.of(plain, CPU)
    journey_Q, cutoff_Q = data.draw(questions(store))
    queries = ask(store, journey_Q, np.minimum(cutoff_Q, UNTIL), (3, 10), UNTIL)
    journeys = np.array(data.draw(st.permutations(range(store.num_customers))))
    asked = (journeys, UNTIL, queries)
    assert_same_batches(resident.gather(*asked, targets=targets), plain.gather(*asked, targets=targets))
    some = journeys[: data.draw(st.integers(0, len(journeys)))]
    until = np.array(data.draw(st.lists(st.integers(at(-5), UNTIL), min_size=len(some), max_size=len(some))))
    until = until.astype(np.int64)
    assert_same_batches(resident.gather(some, until), plain.gather(some, until))


def test_an_order_without_times_is_cut_alike() -> None:
    events = random_events(5).assign(event_time=lambda frame: frame.groupby("customer_id").cumcount())
    store = make_store(events, EventSchema(clock="order", lists=("tags",)), observed_until=400)
    everybody, until = np.arange(store.num_customers), store.manifest.last_time
    panel = ask(store, everybody, np.full(len(everybody), until), (), until)
    vocabulary = Vocabulary.fit(store, panel, journeys=everybody, until=until)
    plain = Gatherer(store, vocabulary, 7)
    batch = DeviceGatherer.of(plain, CPU).gather(everybody, until)
    assert_same_batches(batch, plain.gather(everybody, until))
    assert batch.num_events > 0 and not batch.elapsed_days_N.any()


def test_the_bytes_on_the_device_are_foretold() -> None:
    store = tiny_store()
    resident = DeviceGatherer(store, tiny_vocabulary(store), 1024, CPU)
    columns: list[torch.Tensor] = []
    for name in ("_time", "_calendar", "_categorical", "_numbers", "_bins", "_lists"):
        map_tensors(getattr(resident, name), columns.append)
    assert sum(column.nbytes for column in columns) == device_bytes(store, resident.vocabulary)


def test_batches_made_ahead_are_the_same_in_the_same_order() -> None:
    ahead = Prefetched(iter(tiny_batches()), CPU)
    pairs = list(itertools.zip_longest(ahead, tiny_batches()))
    assert len(pairs) > 2
    for found, expected in pairs:
        assert_same_batches(found, expected)
    with pytest.raises(StopIteration):
        next(ahead)


def test_only_a_few_are_made_ahead_and_closing_ends_the_thread() -> None:
    made = []
    enough = threading.Event()

    def endless() -> Iterator[JourneyBatch]:
        for place in itertools.count():
            made.append(place)
            if place == DEPTH:
                enough.set()
            yield tiny_batch()

    ahead = Prefetched(endless(), CPU)
    assert enough.wait(20)
    assert len(made) == DEPTH + 1  # so many lie ready, and one waits for its place
    next(ahead)
    ahead.close()
    assert not ahead._thread.is_alive()
    assert len(made) <= DEPTH + 3
    with pytest.raises(StopIteration):
        next(ahead)


def test_a_mistake_is_raised_where_its_batch_would_have_come() -> None:
    def broken() -> Iterator[JourneyBatch]:
        yield tiny_batch()
        raise ValueError("no more")

    ahead = Prefetched(broken(), CPU)
    next(ahead)
    with pytest.raises(ValueError, match="no more"):
        next(ahead)
    assert not ahead._thread.is_alive()
