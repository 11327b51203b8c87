"""What must hold for journeys of any lengths."""

from functools import lru_cache

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from constellation.encoders.attention import Spans, causal_attention, turns
from constellation.encoders.bag import Bag
from constellation.encoders.gru import Gru, packed_order
from constellation.encoders.transformer import Transformer
from tests.golden.tiny import KNOWN_UNTIL, gather, tiny_queries, tiny_store, tiny_vocabulary

lengths_of_journeys = st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(lambda lengths: sum(lengths) > 0)


@lru_cache(maxsize=1)
def encoders():
    torch.manual_seed(0)
    vocabulary = tiny_vocabulary()
    return vocabulary, [kind(vocabulary, width=8, layers=1).eval() for kind in (Bag, Gru, Transformer)]


def batch_of(lengths, vocabulary):
    store = tiny_store(seed=1, lengths=tuple(lengths))
    return store, gather(store, vocabulary, np.arange(len(lengths)), tiny_queries(store))


@given(lengths_of_journeys)
@settings(max_examples=25, deadline=None)
def test_a_journey_in_company_is_the_journey_alone(lengths):
    vocabulary, kinds = encoders()
    store, batch = batch_of(lengths, vocabulary)
    chosen = int(np.argmax(lengths))
    queries = tiny_queries(store)
    alone = gather(store, vocabulary, np.array([chosen]), queries.take(queries.journey_Q == chosen))
    own = batch.journey_N == chosen
    for encoder in kinds:
        torch.testing.assert_close(encoder(batch)[own], encoder(alone), atol=1e-5, rtol=1e-5)


@given(lengths_of_journeys, st.integers(1, 399))
@settings(max_examples=25, deadline=None)
def test_states_do_not_know_what_was_gathered_after_them(lengths, until_days):
    """A journey cut off earlier has the same states up to there: what is served equals what was trained."""
    vocabulary, kinds = encoders()
    store, batch = batch_of(lengths, vocabulary)
    until = until_days * 86_400_000_000
    from constellation.journeys.batch import Gatherer

    early = Gatherer(store, vocabulary).gather(np.arange(len(lengths)), until)
    assert until <= KNOWN_UNTIL
    seen = batch.time_N <= until
    for encoder in kinds:
        torch.testing.assert_close(encoder(batch)[seen], encoder(early), atol=1e-5, rtol=1e-5)


@given(lengths_of_journeys)
@settings(max_examples=25, deadline=None)
def test_bands_and_packs_hold_every_event_once(lengths):
    vocabulary, _ = encoders()
    _, batch = batch_of(lengths, vocabulary)
    bands = Spans(batch).bands
    flat = torch.cat([rows.flatten() for rows in bands.rows])
    assert torch.equal(flat[bands.place_N], torch.arange(batch.num_events))
    order_N, place_N, batch_sizes = packed_order(batch)
    assert torch.equal(order_N[place_N], torch.arange(batch.num_events))
    assert batch_sizes.sum() == batch.num_events
    assert (batch_sizes.diff() <= 0).all()


@given(lengths_of_journeys)
@settings(max_examples=15, deadline=None)
def test_attention_is_an_average_of_the_past(lengths):
    """Weights are positive and sum to one: a constant value comes back, and nothing leaves the range of the values."""
    vocabulary, _ = encoders()
    _, batch = batch_of(lengths, vocabulary)
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(batch.num_events, 24, generator=generator)
    qkv[:, 16:] = torch.rand(batch.num_events, 8, generator=generator)
    spans, turn = Spans(batch), turns(batch, 4)
    mixed = causal_attention(qkv, turn, spans, heads=2)
    assert mixed.min() >= 0
    assert mixed.max() <= 1
    first = batch.position_N == 0
    torch.testing.assert_close(mixed[first], qkv[first, 16:])
    qkv[:, 16:] = 1.0
    torch.testing.assert_close(causal_attention(qkv, turn, spans, heads=2), torch.ones_like(mixed))
