"""Encoders against hand-made expectations."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from constellation.encoders.attention import Rotation, bands_of, padded_length, ragged_causal_attention
from constellation.encoders.bag import Bag, running_mean
from constellation.encoders.events import EventEmbedding
from constellation.encoders.gru import Gru
from constellation.encoders.readout import Readout
from constellation.encoders.transformer import Transformer
from constellation.errors import InputError
from tests.golden.tiny import KNOWN_UNTIL, replaced, tiny_batch, tiny_queries, tiny_store, tiny_vocabulary

WIDTH = 16


@pytest.fixture(scope="module")
def vocabulary():
    return tiny_vocabulary()


@pytest.fixture(scope="module")
def batch():
    return tiny_batch()


def test_event_vector_is_the_sum_of_its_fields(vocabulary, batch):
    embedding = EventEmbedding(vocabulary, WIDTH)
    events_ND = embedding(batch)
    values_M, offsets = batch.lists["product"]
    row = int(torch.nonzero(offsets.diff() >= 2)[0])

    def field(name, code):
        return embedding.table.weight[embedding.start_of[name] + int(code)]

    expected = sum(field("product", code) for code in values_M[offsets[row] : offsets[row + 1]])
    expected = expected + sum(field(name, batch.categorical[name][row]) for name in ("event_type", "channel"))
    expected = expected + sum(field(f"bin of {name}", batch.numeric_bin[name][row]) for name in ("amount", "score"))
    expected = expected + field("its weekday", batch.weekday_N[row]) + field("its hour", batch.hour_N[row])
    expected = expected + field("is first", batch.first_N[row])
    scaled = [
        float(np.nan_to_num(vocabulary.numeric_scaler[name](np.array([[float(batch.numeric[name][row])]]))[0, 0]))
        for name in ("amount", "score")
    ]
    days = float(batch.elapsed_days_N[row])
    numbers = torch.tensor([*scaled, math.log1p(days) / 3, *(math.exp(-days / scale) for scale in (1, 7, 30))])
    torch.testing.assert_close(events_ND[row], expected + embedding.amounts(numbers), atol=1e-6, rtol=1e-5)


def test_running_mean_by_hand():
    events_ND = torch.tensor([[1.0], [3.0], [10.0], [5.0], [7.0], [0.0]])
    means = running_mean(
        events_ND, torch.tensor([0, 2, 3, 6]), torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([0, 1, 0, 0, 1, 2])
    )
    torch.testing.assert_close(means.squeeze(1), torch.tensor([1.0, 2.0, 10.0, 5.0, 6.0, 4.0]))


def test_bag_is_blind_to_the_order_and_the_others_are_not(vocabulary, batch):
    # Two events of journey 3 exchange everything they carry; the clock stays.
    first = int(batch.offsets_B[3])
    a, b = first + 2, first + 5
    order = torch.arange(batch.num_events)
    order[a], order[b] = b, a
    values_M, offsets = batch.lists["product"]
    sets = [values_M[offsets[row] : offsets[row + 1]] for row in order.tolist()]
    lists = {"product": (torch.cat(sets), functional.pad(torch.tensor([len(s) for s in sets]).cumsum(0), (1, 0)))}
    swapped = replaced(
        batch,
        categorical={name: codes[order] for name, codes in batch.categorical.items()},
        numeric={name: values[order] for name, values in batch.numeric.items()},
        numeric_bin={name: bins[order] for name, bins in batch.numeric_bin.items()},
        lists=lists,
    )
    assert any(not torch.equal(batch.categorical[name][a], batch.categorical[name][b]) for name in batch.categorical)
    for kind, blind in ((Bag, True), (Gru, False), (Transformer, False)):
        encoder = kind(vocabulary, width=WIDTH).eval()
        gap = (encoder(batch)[b] - encoder(swapped)[b]).abs().max().item()
        assert (gap < 1e-5) == blind, f"{kind.__name__}: {gap}"
        assert (encoder(batch)[a] - encoder(swapped)[a]).abs().max() > 1e-3


def test_padded_lengths_are_few_and_waste_little():
    lengths = np.arange(1, 2000)
    padded = padded_length(lengths)
    assert (padded >= lengths).all()
    assert sorted(set(padded_length(np.arange(1, 100)))) == [8, 12, 16, 24, 32, 48, 64, 96, 128]
    assert (padded[lengths > 8] <= 1.5 * lengths[lengths > 8]).all()


def test_attention_equals_one_journey_at_a_time(batch):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, batch.num_events, 2, 8, dtype=torch.float32).unbind(0)
    output = ragged_causal_attention(q, k, v, bands_of(batch))
    for start, end in zip(batch.offsets_B[:-1].tolist(), batch.offsets_B[1:].tolist(), strict=True):
        for row in range(start, end):
            scores = torch.einsum("hd,nhd->hn", q[row], k[start : row + 1]) / math.sqrt(8)
            expected = torch.einsum("hn,nhd->hd", scores.softmax(-1), v[start : row + 1])
            torch.testing.assert_close(output[row], expected, atol=1e-5, rtol=1e-4)


def test_padding_takes_no_gradient(batch):
    torch.manual_seed(0)
    q, k, v = (torch.randn(batch.num_events, 1, 4, requires_grad=True) for _ in range(3))
    ragged_causal_attention(q, k, v, bands_of(batch)).sum().backward()
    last = int(batch.offsets_B[1]) - 1  # journey 0 has 5 events and is padded to 8 with copies of its last row
    # Only its own query reads the last row, so its share of the value's gradient is that query's softmax weight.
    weight = torch.softmax((q[last, 0] * k[last - 4 : last + 1, 0]).sum(-1) / 2, dim=0)[-1]
    torch.testing.assert_close(v.grad[last, 0], weight.detach().expand(4))


def test_rotation_leaves_only_distances(batch):
    """The product of a turned query and key depends on the distance in events and days, not on where they stand."""
    torch.manual_seed(0)
    query, key = torch.randn(1, 1, 16), torch.randn(1, 1, 16)
    rows = torch.arange(batch.num_events)
    shifted = replaced(
        batch,
        position_N=batch.position_N + 5,
        time_N=torch.where(batch.position_N == 0, batch.time_N, batch.time_N + 3_000_000_000_000),
    )
    products = []
    for each in (batch, shifted):
        turn = Rotation(each, 16)
        q, k = turn(query.expand(len(rows), 1, 16)), turn(key.expand(len(rows), 1, 16))
        products.append(torch.einsum("nhd,mhd->nm", q, k))
    inner = torch.nonzero((batch.position_N > 0) & (batch.journey_N == 3)).squeeze(1)
    torch.testing.assert_close(products[0][inner][:, inner], products[1][inner][:, inner], atol=2e-4, rtol=1e-4)
    assert (products[0][inner[0], inner] - products[0][inner[0], inner[0]]).abs().max() > 0.1


def test_transformer_wants_even_heads(vocabulary):
    with pytest.raises(InputError, match="width=30 and heads=4"):
        Transformer(vocabulary, width=30, heads=4)


def test_sixteen_layers_start_near_the_identity_and_learn(vocabulary, batch):
    torch.manual_seed(0)
    encoder = Transformer(vocabulary, width=WIDTH, layers=16, dropout=0.0)
    shallow = encoder.norm_out(encoder.norm_in(encoder.events(batch)))
    assert functional.cosine_similarity(encoder(batch), shallow).mean() > 0.5
    head = torch.nn.Linear(WIDTH, 1)
    # Needs the past: is the event before this one a purchase?
    types, inner = batch.categorical["event_type"], batch.position_N > 0
    wanted = (types.roll(1) == types[0]).float()
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=1e-2)
    losses = []
    for _ in range(25):
        loss = functional.binary_cross_entropy_with_logits(head(encoder(batch)).squeeze(1)[inner], wanted[inner])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < 0.5 * losses[0]


def test_readout_flags_change_what_is_said(vocabulary, batch):
    """A part that is left out may change as it likes; a part that is read may not."""
    torch.manual_seed(0)
    states_ND = torch.randn(batch.num_events, 8)
    changes = {
        "use_state": (torch.randn(batch.num_events, 8), batch),
        "use_aggregates": (states_ND, replaced(batch, aggregates_QF=batch.aggregates_QF + 1)),
        "use_elapsed": (states_ND, replaced(batch, since_last_days_Q=batch.since_last_days_Q + 9)),
        "use_calendar": (states_ND, replaced(batch, weekday_Q=(batch.weekday_Q + 1) % 7)),
        "use_attributes": (states_ND, replaced(batch, attributes={"region": 3 - batch.attributes["region"]})),
    }
    for flag, (states, other) in changes.items():
        for used in (True, False):
            readout = Readout(vocabulary, 8, width=WIDTH, **{flag: used}).eval()
            gap = (readout(states_ND, batch) - readout(states, other)).abs().max().item()
            assert (gap > 1e-4) == used, f"{flag}={used}: {gap}"


def test_readout_needs_something_to_read(vocabulary):
    flags = ("use_state", "use_aggregates", "use_elapsed", "use_calendar", "use_attributes")
    with pytest.raises(InputError, match="nothing to read"):
        Readout(vocabulary, 8, width=WIDTH, **dict.fromkeys(flags, False))


def test_no_event_reads_the_start_state(vocabulary, batch):
    readout = Readout(
        vocabulary, 8, width=WIDTH, use_aggregates=False, use_calendar=False, use_attributes=False, dropout=0.0
    )
    states_ND = torch.randn(batch.num_events, 8)
    unseen = batch.last_event_Q < 0
    before = readout(states_ND, batch)
    assert unseen.sum() >= 4  # the customer without events, at four cutoffs
    torch.testing.assert_close(before[unseen], before[unseen][:1].expand(int(unseen.sum()), -1))
    with torch.no_grad():
        readout.start_state_D.add_(1.0)
    after = readout(states_ND, batch)
    torch.testing.assert_close(before[~unseen], after[~unseen])
    assert (before[unseen] - after[unseen]).abs().min(dim=1).values.min() > 0


@pytest.mark.parametrize("kind", [Bag, Gru, Transformer])
def test_a_batch_without_events(vocabulary, kind):
    """Customers of whom nothing but attributes is known still get a readout."""
    from constellation.journeys.batch import Gatherer

    store = tiny_store()
    queries = tiny_queries(store)
    queries = queries.take(queries.journey_Q == 2)
    batch = Gatherer(store, vocabulary).gather(np.array([2]), KNOWN_UNTIL, queries)
    encoder = kind(vocabulary, width=WIDTH)
    readout = Readout(vocabulary, encoder.width, width=WIDTH)
    assert batch.num_events == 0
    assert torch.isfinite(readout(encoder(batch), batch)).all()
