"""The future never shows: not in an input, not in what is learned, not in a prediction (docs/design.md, windows).

Each property makes two logs that agree on every event at or before a moment and differ in any way after it (amounts,
types, products, events added, all deleted), and wants bit for bit the same of both.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from constellation.encoders.bag import Bag
from constellation.encoders.gru import Gru
from constellation.encoders.readout import Readout
from constellation.encoders.transformer import Transformer
from constellation.journeys.batch import Gatherer, JourneyBatch
from constellation.journeys.sampling import PredictionBatches, TrainingBatches
from constellation.journeys.store import Store
from constellation.journeys.vocabulary import Vocabulary
from constellation.journeys.windows import Windows, ask, panel
from constellation.model import JourneyModel
from constellation.objectives.families import Ziln
from constellation.objectives.next_event import NextEvent
from constellation.objectives.value import Value
from constellation.schema import CUSTOMER_ID, EVENT_TIME, EventSchema
from tests.helpers import (
    BASE,
    COLUMNS,
    DAY,
    SPAN_DAYS,
    ZONES,
    assert_same_tensors,
    attribute_tables,
    built_store,
    events,
    events_frame,
    fit_vocabulary,
    make_store,
    random_store,
)

HORIZONS = (3, 10)
CUT_QUARTER = 2 * SPAN_DAYS
"""The moment between past and future, in quarters of a day after 1 March 2017: the middle of the span."""
CUTOFF = BASE + CUT_QUARTER * DAY // 4
VOCABULARY = fit_vocabulary(random_store(11), CUTOFF)
past = st.lists(events(0, CUT_QUARTER), min_size=1, max_size=15)
future = st.lists(events(CUT_QUARTER + 1, 4 * SPAN_DAYS), max_size=12)


@st.composite
def twins(draw: st.DrawFn, build: Callable[..., Store] = make_store) -> tuple[Store, Store]:
    """Two stores of the same customers with one past and two futures."""
    before = draw(past)
    schema = EventSchema(timezone=draw(st.sampled_from(ZONES)), lists=("tags",))
    attributes = draw(attribute_tables)

    def store(after: list[dict]) -> Store:
        after = [event for event in after if event[EVENT_TIME] > CUTOFF]
        # The span of the data is a setting here: it would move with its last event.
        frame = events_frame(before + after).reindex(columns=COLUMNS)
        return build(frame, schema, attributes, observed_until=BASE + SPAN_DAYS * DAY)

    left, right = store(draw(future)), store(draw(future))
    assert left.customer_id_C.tolist() == right.customer_id_C.tolist()
    return left, right


def at_cutoff(store: Store, vocabulary: Vocabulary = VOCABULARY, max_events: int = 1024) -> list[JourneyBatch]:
    """What the model is given to answer for everybody at the cutoff and a week before it."""
    journey_Q = np.tile(np.arange(store.num_customers), 2)
    cutoff_Q = np.repeat([CUTOFF, CUTOFF - 7 * DAY], store.num_customers)
    queries = ask(store, journey_Q, cutoff_Q, HORIZONS, store.manifest.observed_until)
    batches = PredictionBatches(Gatherer(store, vocabulary, max_events), queries, max_tokens=40)
    return [batch for batch, _ in batches]


@lru_cache(maxsize=1)
def models() -> list[JourneyModel]:
    """One untrained model per encoder, with every part a prediction can pass through."""
    torch.manual_seed(0)
    found = []
    for kind in (Bag, Gru, Transformer):
        encoder = kind(VOCABULARY, width=8, layers=1)
        readout = Readout(VOCABULARY, encoder.width, width=8, layers=1)
        sizes = (VOCABULARY, encoder.width, readout.width, HORIZONS)
        objectives = {"next_event": NextEvent(*sizes, width=8), "value": Value(*sizes, family=Ziln())}
        found.append(JourneyModel(encoder, readout, objectives).eval())
    return found


@given(twins(), st.sampled_from([3, 1024]))
@settings(max_examples=40, deadline=None)
def test_no_input_knows_what_comes_after_its_cutoff(stores: tuple[Store, Store], max_events: int) -> None:
    left, right = (at_cutoff(store, max_events=max_events) for store in stores)
    for one, other in zip(left, right, strict=True):
        assert_same_tensors(one, other, leave_out=("targets",))
        assert one.max_length == other.max_length


@given(twins(built_store))
@settings(max_examples=15, deadline=None)
def test_nor_does_the_builder_of_stores_let_the_future_in(stores: tuple[Store, Store]) -> None:
    """Validation, storage codes and the order of ties see the whole log; nothing of it reaches inputs or vocabulary."""
    for one, other in zip(*map(at_cutoff, stores), strict=True):
        assert_same_tensors(one, other, leave_out=("targets",))
    everybody = np.arange(stores[0].num_customers)
    if anybody_to_ask(stores[0], everybody):
        assert learned(stores[0], everybody) == learned(stores[1], everybody)


@given(twins())
@settings(max_examples=12, deadline=None)
def test_no_prediction_knows_what_comes_after_its_cutoff(stores: tuple[Store, Store]) -> None:
    left, right = map(at_cutoff, stores)
    for model in models():
        for one, other in zip(left, right, strict=True):
            with torch.inference_mode():
                assert_same_tensors(model.predict(one, [0.05, 0.5, 0.95]), model.predict(other, [0.05, 0.5, 0.95]))


@given(twins())
@settings(max_examples=12, deadline=None)
def test_a_question_reads_only_what_it_may_see_of_a_longer_journey(stores: tuple[Store, Store]) -> None:
    """In training a journey is gathered beyond the cutoffs asked about it: encoders must not look ahead."""
    answers = []
    for store in stores:
        journeys = np.arange(store.num_customers)
        end = store.manifest.observed_until
        queries = ask(store, journeys, np.full(len(journeys), CUTOFF), HORIZONS, end)
        batch = Gatherer(store, VOCABULARY).gather(journeys, end, queries)
        with torch.inference_mode():
            answers.append([model.predict(batch, [0.5]) for model in models()])
    for one, other in zip(*answers, strict=True):
        assert one.keys() == other.keys()
        # Batches of other lengths sum in another order: equal up to rounding.
        for name, answer in one.items():
            torch.testing.assert_close(answer, other[name], rtol=1e-4, atol=1e-5)


@given(twins(), st.integers(0, 2), st.sampled_from([3, 1024]))
@settings(max_examples=40, deadline=None)
def test_training_batches_know_nothing_after_known_until(
    stores: tuple[Store, Store], epoch: int, max_events: int
) -> None:
    """Targets included: what happens after the end of training is neither seen nor asked."""
    left, right = (
        list(
            TrainingBatches(
                Gatherer(store, VOCABULARY, max_events),
                np.arange(store.num_customers),
                CUTOFF,
                HORIZONS,
                cutoffs_per_journey=3,
                max_tokens=20,
                epoch=epoch,
            )
        )
        for store in stores
    )
    for one, other in zip(left, right, strict=True):
        assert_same_tensors(one, other)


def learned(store: Store, journeys: np.ndarray) -> str:
    """All that is fitted on ``journeys`` up to the cutoff, as text."""
    train = panel(store, Windows("2017-04-01", "2017-04-10", HORIZONS), known_until=CUTOFF, journeys=journeys)
    vocabulary = Vocabulary.fit(
        store, train, journeys=journeys, until=CUTOFF, windows_days=(2, 7, 14, 21, 28), num_bins=4
    )
    return json.dumps(vocabulary.to_json())


def anybody_to_ask(store: Store, journeys: np.ndarray) -> bool:
    return bool((store.last_event(journeys, np.full(len(journeys), CUTOFF - HORIZONS[0] * DAY)) >= 0).any())


@given(twins())
@settings(max_examples=30, deadline=None)
def test_nothing_is_learned_after_until(stores: tuple[Store, Store]) -> None:
    everybody = np.arange(stores[0].num_customers)
    assume(anybody_to_ask(stores[0], everybody))
    assert learned(stores[0], everybody) == learned(stores[1], everybody)


@given(past, past, past, st.sets(st.integers(0, 8), min_size=1, max_size=5), attribute_tables, attribute_tables)
@settings(max_examples=40, deadline=None)
def test_nothing_is_learned_from_customers_held_out(
    trained: list[dict],
    one: list[dict],
    other: list[dict],
    held_out: set[int],
    attributes: pd.DataFrame,
    other_attributes: pd.DataFrame,
) -> None:
    names = attributes[CUSTOMER_ID].tolist()
    hidden = {names[place] for place in held_out}
    is_hidden = attributes[CUSTOMER_ID].isin(hidden)
    journeys = np.flatnonzero(~is_hidden)

    def store(theirs: list[dict], attributes_of_hidden: pd.DataFrame) -> Store:
        rows = [event for event in trained if event[CUSTOMER_ID] not in hidden]
        rows += [event for event in theirs if event[CUSTOMER_ID] in hidden]
        table = pd.concat([attributes[~is_hidden], attributes_of_hidden[is_hidden]]).sort_values(CUSTOMER_ID)
        # Whether a column exists is known before anything is learned.
        table = table.astype({"segment": object})
        assume(table["segment"].notna().any())
        return make_store(events_frame(rows).reindex(columns=COLUMNS), EventSchema(lists=("tags",)), table)

    left, right = store(one, attributes), store(other, other_attributes)
    assume(anybody_to_ask(left, journeys))
    assert learned(left, journeys) == learned(right, journeys)


@given(past, attribute_tables)
@settings(max_examples=15, deadline=None)
def test_who_first_comes_after_until_teaches_nothing(before: list[dict], attributes: pd.DataFrame) -> None:
    """A customer of tomorrow is in the store, attributes and all, but was unknown when training ended."""
    frame = events_frame(before).reindex(columns=COLUMNS)
    tomorrow = pd.DataFrame({CUSTOMER_ID: ["tomorrow"], "segment": ["platinum"], "age": [99.0]})
    left = make_store(frame, EventSchema(lists=("tags",)), attributes)
    right = make_store(frame, EventSchema(lists=("tags",)), pd.concat([attributes, tomorrow]).sort_values(CUSTOMER_ID))
    assume("segment" in left.attributes_categorical)
    assume(anybody_to_ask(left, np.arange(left.num_customers)))
    assert learned(left, np.arange(left.num_customers)) == learned(right, np.arange(right.num_customers))


def test_the_test_would_see_a_leak() -> None:
    """The mirror: an event moved from just after the cutoff to the cutoff itself changes inputs and predictions."""
    rows = [{CUSTOMER_ID: "c0", EVENT_TIME: BASE + DAY, "event_type": "purchase", "amount": 3.0, "product": ["milk"]}]
    attributes = pd.DataFrame({CUSTOMER_ID: ["c0", "c1"], "segment": ["gold", "iron"], "age": [20.0, None]})

    def store(late: int) -> Store:
        frame = events_frame([*rows, {**rows[0], EVENT_TIME: CUTOFF + late, "amount": 2000.0}]).reindex(columns=COLUMNS)
        return make_store(frame, EventSchema(lists=("tags",)), attributes, observed_until=BASE + SPAN_DAYS * DAY)

    seen, unseen, later = at_cutoff(store(0)), at_cutoff(store(1)), at_cutoff(store(5 * DAY))
    for one, other in zip(unseen, later, strict=True):
        assert_same_tensors(one, other, leave_out=("targets",))
    with pytest.raises(AssertionError):
        for one, other in zip(seen, unseen, strict=True):
            assert_same_tensors(one, other, leave_out=("targets",))
    for model in models():
        with torch.inference_mode(), pytest.raises(AssertionError):
            for one, other in zip(seen, unseen, strict=True):
                assert_same_tensors(model.predict(one, [0.5]), model.predict(other, [0.5]))
