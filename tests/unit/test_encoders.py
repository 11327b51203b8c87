"""Encoders against hand-made expectations."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from constellation.encoders.attention import Spans, causal_attention, turns
from constellation.encoders.bag import Bag, running_mean
from constellation.encoders.events import EventEmbedding
from constellation.encoders.gru import Gru
from constellation.encoders.hstu import Hstu, distance_bucket, time_bucket
from constellation.encoders.readout import Readout
from constellation.encoders.transformer import Transformer
from constellation.errors import InputError
from constellation.kernels import products
from constellation.kernels.attention import turned
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


@pytest.mark.parametrize("precision", products.PRODUCTS)
def test_padding_takes_no_gradient(batch, precision):
    torch.manual_seed(0)
    qkv = torch.randn(batch.num_events, 12, requires_grad=True)
    turn = turns(batch, 4)
    with products.products_in(precision):
        causal_attention(qkv, turn, Spans(batch), heads=1).float().sum().backward()
    last = int(batch.offsets_B[1]) - 1  # journey 0 has 5 events and is padded to 8 with copies of its last row
    # Only its own query reads the last row, so its share of the value's gradient is that query's softmax weight.
    rows = slice(last - 4, last + 1)
    q, k = turned(qkv.detach()[:, :8], turn, 1).split(4, dim=1)
    weight = torch.softmax((q[last] * k[rows]).sum(-1) / 2, dim=0)[-1]
    tolerance = 1e-5 if precision == products.FLOAT32 else 1e-2
    torch.testing.assert_close(qkv.grad[last, 8:], weight.expand(4), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("time", [True, False])
def test_turns_leave_only_distances(batch, time):
    """The product of a turned query and key depends on the distance in events and days, not on where they stand."""
    torch.manual_seed(0)
    query_and_key = torch.randn(1, 32)
    shifted = replaced(
        batch,
        position_N=batch.position_N + 5,
        max_length=batch.max_length + 5,
        time_N=torch.where(batch.position_N == 0, batch.time_N, batch.time_N + 3_000_000_000_000),
    )
    scores = []
    for each in (batch, shifted):
        q, k = turned(query_and_key.expand(batch.num_events, 32), turns(each, 16, time=time), 1).split(16, dim=1)
        scores.append(q @ k.T)
    inner = torch.nonzero((batch.position_N > 0) & (batch.journey_N == 3)).squeeze(1)
    torch.testing.assert_close(scores[0][inner][:, inner], scores[1][inner][:, inner], atol=2e-4, rtol=1e-4)
    assert (scores[0][inner[0], inner] - scores[0][inner[0], inner[0]]).abs().max() > 0.02
    # Without time the clock says nothing at all.
    later = replaced(batch, time_N=batch.time_N + batch.position_N * 10**12)
    assert torch.equal(turns(batch, 16, time=time), turns(later, 16, time=time)) == (not time)


def test_both_precisions_give_the_same_states_but_for_rounding(vocabulary, batch):
    torch.manual_seed(0)
    encoder = Transformer(vocabulary, width=WIDTH, layers=4, dropout=0.0)
    exact = encoder(batch)
    with products.products_in(products.BFLOAT16):
        fast = encoder(batch)
    assert fast.dtype == exact.dtype == torch.float32
    assert 0 < (fast - exact).norm() < 0.01 * exact.norm()


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


def test_hstu_equals_its_formula_one_journey_at_a_time(vocabulary, batch):
    torch.manual_seed(0)
    layer = Hstu(vocabulary, width=8, heads=2, layers=1, dropout=0.0).layers[0]
    with torch.no_grad():
        layer.of_distance_PH.normal_()
        layer.of_time_TH.normal_()
    x_ND = torch.randn(batch.num_events, 8)
    found = layer(x_ND, batch.time_N, Spans(batch).bands)
    for start, end in zip(batch.offsets_B[:-1].tolist(), batch.offsets_B[1:].tolist(), strict=True):
        rows = slice(start, end)
        u, v, q, k = functional.silu(layer.uvqk(layer.norm(x_ND[rows]))).chunk(4, dim=1)
        heads = []
        for head in range(2):
            part = slice(4 * head, 4 * head + 4)
            weights = torch.zeros(end - start, end - start)
            for i in range(end - start):
                for j in range(i + 1):
                    seconds = max(1.0, float(batch.time_N[start + i] - batch.time_N[start + j]) / 1e6)
                    bias = layer.of_distance_PH[distance_bucket(torch.tensor(i - j)), head]
                    bias = bias + layer.of_time_TH[int(math.log2(seconds)), head]
                    score = (q[i, part] * k[j, part]).sum() / 2 + bias
                    weights[i, j] = functional.silu(score).detach() / (i + 1)
            heads.append(weights @ v[:, part])
        expected = x_ND[rows] + layer.gate_D * layer.join(layer.norm_sum(torch.cat(heads, 1)) * u)
        torch.testing.assert_close(found[rows], expected, atol=1e-5, rtol=1e-4)


def test_hstu_of_a_long_journey_does_not_hang_on_its_blocks(vocabulary, monkeypatch):
    batch = tiny_batch()
    torch.manual_seed(0)
    encoder = Hstu(vocabulary, width=8, layers=2, dropout=0.0)
    results = []
    for block in (256, 3):
        monkeypatch.setattr("constellation.encoders.hstu.QUERY_BLOCK", block)
        encoder.zero_grad()
        states = encoder(batch)
        states.square().sum().backward()
        results.append((states.detach(), [parameter.grad.clone() for parameter in encoder.parameters()]))
    torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=1e-4)


def test_buckets_of_distance_and_time():
    distances = torch.tensor([-3, 0, 1, 15, 16, 18, 19, 20, 32, 64, 8191, 10**6])
    assert distance_bucket(distances).tolist() == [0, 0, 1, 15, 16, 16, 16, 17, 20, 24, 51, 52]
    seconds = torch.tensor([-5.0, 0.0, 0.9, 1.0, 2.0, 3.9, 4.0, 86400.0, 1e12])
    assert time_bucket((seconds * 1e6).long()).tolist() == [0, 0, 0, 0, 1, 1, 2, 16, 31]


@pytest.mark.parametrize("kind", [Transformer, Hstu])
def test_journeys_of_8192_events_train(vocabulary, kind):
    from constellation.journeys.batch import Gatherer

    torch.manual_seed(0)
    store = tiny_store(lengths=[8192, 3])
    batch = Gatherer(store, vocabulary, max_events=8192).gather(np.array([0, 1]), KNOWN_UNTIL)
    assert batch.max_length == 8192
    encoder = kind(vocabulary, width=8, heads=2, layers=1)
    states = encoder(batch)
    assert states.isfinite().all()
    states.mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())
