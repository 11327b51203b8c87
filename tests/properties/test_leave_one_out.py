"""The events held out by ``LastEvents`` show nowhere: not in a batch, not in what is learned, not in an answer.

Each property makes two logs that agree but for what the held-out events say (film, type, channel), and wants bit for
bit the same of both. Selection must not know the last two moments of a customer, the refit not the last one.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from constellation.baselines.most_popular import MostPopular
from constellation.baselines.own_favourites import OwnFavourites
from constellation.encoders.readout import Readout
from constellation.encoders.transformer import Transformer
from constellation.journeys.batch import Gatherer, JourneyBatch
from constellation.journeys.last_events import LastEvents
from constellation.journeys.sampling import PredictionBatches, TrainingBatches
from constellation.journeys.splits import Splits
from constellation.journeys.store import Store
from constellation.journeys.vocabulary import Vocabulary
from constellation.journeys.windows import Queries, Until
from constellation.model import JourneyModel
from constellation.objectives.next_event import NextEvent
from constellation.schema import CHANNEL, CUSTOMER_ID, EVENT_TIME, EVENT_TYPE, PRODUCT, EventSchema
from tests.helpers import assert_same_tensors, events_frame, make_store

FILMS = tuple("abcdefgh")
TYPES = ("rating", "visit")
SCHEMA = EventSchema(clock="order")


@st.composite
def cells(draw: st.DrawFn) -> dict[str, Any]:
    return {
        EVENT_TYPE: draw(st.sampled_from(TYPES)),
        PRODUCT: draw(st.lists(st.sampled_from(FILMS), max_size=2)),
        CHANNEL: draw(st.sampled_from((None, "web", "app"))),
    }


@st.composite
def twins(draw: st.DrawFn, num_hidden: int) -> tuple[Store, Store]:
    """Two stores that differ in what each customer's last ``num_hidden`` moments hold. Ranks may tie and have gaps.

    Customers with fewer than three moments are whole in both, for they only train.
    """
    left: list[dict[str, Any]] = []
    right: list[dict[str, Any]] = []
    for customer in range(draw(st.integers(1, 5))):
        ranks = sorted(draw(st.lists(st.integers(0, 12), min_size=1, max_size=9)))
        moments = sorted(set(ranks))
        hidden = set(moments[-num_hidden:]) if len(moments) >= 3 else set()
        for rank in ranks:
            key = {CUSTOMER_ID: f"c{customer}", EVENT_TIME: rank}
            event = {**key, **draw(cells())}
            left.append(event)
            right.append({**key, **draw(cells())} if rank in hidden else event)
    # A film, a type and a channel that both know, so that no column or dictionary goes missing.
    spare = [{CUSTOMER_ID: "z", EVENT_TIME: 0, EVENT_TYPE: "rating", PRODUCT: ["a"], CHANNEL: "web"}]
    stores = [make_store(events_frame(rows + spare), SCHEMA, observed_until=12) for rows in (left, right)]
    return stores[0], stores[1]


def learned(store: Store, train: Queries, until: Until) -> Vocabulary:
    return Vocabulary.fit(store, train, journeys=np.arange(store.num_customers), until=until, num_bins=4)


def training(store: Store, vocabulary: Vocabulary, until: Until, cutoffs: int, max_events: int) -> list[JourneyBatch]:
    gatherer = Gatherer(store, vocabulary, max_events)
    everybody = np.arange(store.num_customers)
    return list(TrainingBatches(gatherer, everybody, until, (), cutoffs_per_journey=cutoffs, max_tokens=12))


def answers(store: Store, vocabulary: Vocabulary, queries: Queries, until: Until, train: Queries) -> list[Any]:
    """Of a model and of the baselines, to the questions of a phase."""
    torch.manual_seed(0)
    encoder = Transformer(vocabulary, width=8, layers=1).eval()
    readout = Readout(vocabulary, encoder.width, width=8, layers=1)
    objective = NextEvent(vocabulary, encoder.width, readout.width, (), width=8)
    model = JourneyModel(encoder, readout, {"next_event": objective}).eval()
    found: list[Any] = []
    for batch, rows in PredictionBatches(Gatherer(store, vocabulary), queries, targets=False):
        with torch.inference_mode():
            found.append((torch.from_numpy(rows), model.predict(batch, [0.5])))
    for system in (MostPopular(), OwnFavourites()):
        system.fit(store, vocabulary, train, until=until)
        scores = system.predict(store, queries, np.array([0.5])).get("next_product_scores", np.zeros((0, 0)))
        found.append((torch.from_numpy(np.array(scores)),))
    return found


def check(left: Store, right: Store, phase: str, cutoffs: int, max_events: int) -> None:
    found = []
    for store in (left, right):
        splits = Splits(store, LastEvents())
        if phase == "select":
            until, train, asked = splits.select_until, splits.select_panel, splits.val
        else:
            until, train, asked = splits.refit_until, splits.refit_panel, splits.test
        vocabulary = learned(store, train, until)
        batches = training(store, vocabulary, until, cutoffs, max_events)
        said = answers(store, vocabulary, asked, until, train)
        found.append((json.dumps(vocabulary.to_json()), batches, asked, said))
    one, other = found
    assert one[0] == other[0]
    assert len(one[1]) == len(other[1])
    for batch, twin in zip(one[1], other[1], strict=True):
        assert_same_tensors(batch, twin)  # targets included
    assert one[2].journey_Q.tolist() == other[2].journey_Q.tolist()
    assert one[2].cutoff_Q.tolist() == other[2].cutoff_Q.tolist()
    for this, that in zip(one[3], other[3], strict=True):
        assert_same_tensors(this, that)


@given(twins(2), st.sampled_from([0, 2]), st.sampled_from([2, 100]))
@settings(max_examples=20)
def test_selection_knows_nothing_of_the_last_two_moments(
    stores: tuple[Store, Store], cutoffs: int, max_events: int
) -> None:
    check(*stores, "select", cutoffs, max_events)


@given(twins(1), st.sampled_from([0, 2]), st.sampled_from([2, 100]))
@settings(max_examples=20)
def test_the_refit_knows_nothing_of_the_last_moment(stores: tuple[Store, Store], cutoffs: int, max_events: int) -> None:
    check(*stores, "refit", cutoffs, max_events)


def test_the_check_finds_a_leak() -> None:
    """The properties would pass on anything if this did not hold: the validation event does show in the refit."""
    rows = [
        {CUSTOMER_ID: "c", EVENT_TIME: rank, EVENT_TYPE: "rating", PRODUCT: [film], CHANNEL: "web"}
        for rank, film in enumerate("abcab")
    ]
    changed = [row if row[EVENT_TIME] != 3 else {**row, PRODUCT: ["h"]} for row in rows]
    left, right = (make_store(events_frame(log), SCHEMA, observed_until=4) for log in (rows, changed))
    check(left, right, "select", 0, 100)
    with pytest.raises(AssertionError):
        check(left, right, "refit", 0, 100)
