"""The next event and its products: sets, softmaxes, ties."""

import copy
import math

import pytest
import torch

from constellation.building import build_model
from constellation.encoders.transformer import Transformer
from constellation.errors import InputError
from constellation.objectives import softmaxes
from constellation.objectives.next_event import (
    NextEvent,
    code_cross_entropy,
    events_before,
    set_cross_entropy,
)
from constellation.objectives.softmaxes import (
    FullSoftmax,
    GeneralisedCrossEntropy,
    Products,
    ProductSets,
    SampledSoftmax,
)
from tests.golden.tiny import HORIZONS_DAYS, steady_parameters, tiny_batch, tiny_vocabulary


@pytest.fixture(scope="module")
def vocabulary():
    return tiny_vocabulary()


@pytest.fixture(scope="module")
def batch():
    return tiny_batch()


def test_code_cross_entropy_leaves_out_missing_and_unknown():
    logits = torch.tensor([[0.0, math.log(3.0)], [5.0, 5.0], [1.0, 2.0]])
    total, count = code_cross_entropy(logits, torch.tensor([3, 1, 0]))
    assert count == 1
    torch.testing.assert_close(total, torch.tensor(-math.log(0.75)))


# Row 0: {0, 2}; row 1: empty; row 2: {1} and an unknown product that asks for nothing.
BASKETS = (torch.tensor([2, 4, 3, 1]), torch.tensor([0, 2, 2, 4]))


def test_sets_share_among_known_members():
    sets = ProductSets.of(*BASKETS)
    assert sets.share_M.tolist() == [0.5, 0.5, 1.0, 0.0]
    assert sets.asked_R.tolist() == [1.0, 0.0, 1.0]
    assert sets.row_M.tolist() == [0, 0, 2, 2]
    assert ProductSets.of(*BASKETS, torch.tensor([False, True, True])).asked_R.tolist() == [0.0, 0.0, 1.0]


def test_set_cross_entropy_by_hand():
    logits = torch.log(torch.tensor([[0.2, 0.3, 0.5], [0.1, 0.1, 0.8], [0.6, 0.2, 0.2]]))
    total, count = set_cross_entropy(logits, ProductSets.of(*BASKETS))
    assert count == 2
    torch.testing.assert_close(total, torch.tensor(-0.5 * math.log(0.2) - 0.5 * math.log(0.5) - math.log(0.2)))


def products_and_queries(size=40, rows=3, width=6, spread=1.0):
    torch.manual_seed(0)
    products = Products(size, width, std=spread)
    torch.nn.init.normal_(products.bias_V)
    return products, torch.randn(rows, width, requires_grad=True)


def test_full_softmax_is_the_plain_one():
    products, query = products_and_queries(size=3)
    sets = ProductSets.of(*BASKETS)
    ours, (plain, _) = FullSoftmax()(query, products, sets), set_cross_entropy(products(query), sets)
    torch.testing.assert_close(ours, plain)
    inputs = [query, *products.parameters()]
    for found, expected in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(plain, inputs), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("negatives", ["uniform", "log_uniform"])
def test_sampled_softmax_estimates_the_sum_without_bias(negatives):
    """The sum of exponentials, averaged over many draws, is the full one; few draws lose a little by the log."""
    products, query = products_and_queries()
    sets = ProductSets.of(*BASKETS)
    full = FullSoftmax()(query, products, sets).item()
    sampled = SampledSoftmax(num_negatives=4000, negatives=negatives)
    losses = torch.stack([sampled(query, products, sets).detach() for _ in range(60)])
    assert losses.mean().item() == pytest.approx(full, abs=4 * losses.std().item() / 60**0.5 + 0.01)


def test_sampled_softmax_by_hand():
    """With given negatives: exp of own members plus weighted exp of the negatives that are not members."""
    products, query = products_and_queries()
    sets = ProductSets.of(*BASKETS)
    loss = SampledSoftmax(num_negatives=5, negatives="uniform")
    chosen, log_weight = torch.tensor([0, 1, 7]), torch.tensor([0.3, -0.2, 1.0])
    loss.draw = lambda size, device: (chosen, log_weight)
    scores = products(query)
    row_0 = scores[0, [0, 2]].exp().sum() + ((scores[0, [1, 7]] + log_weight[[1, 2]]).exp()).sum()
    row_2 = scores[2, 1].exp() + ((scores[2, [0, 7]] + log_weight[[0, 2]]).exp()).sum()
    expected = row_0.log() + row_2.log() - (scores[0, 0] + scores[0, 2]) / 2 - scores[2, 1]
    torch.testing.assert_close(loss(query, products, sets), expected)


def test_sampled_softmax_learns_where_every_negative_is_a_member():
    products, query = products_and_queries(size=1)
    loss = SampledSoftmax(num_negatives=3)(
        query, products, ProductSets.of(torch.tensor([2, 2]), torch.tensor([0, 1, 1, 2]))
    )
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(loss, [query, *products.parameters()]))


@pytest.mark.parametrize("loss", [SampledSoftmax(num_negatives=40), GeneralisedCrossEntropy(num_negatives=40)])
def test_losses_are_the_same_where_nobody_waits_for_the_number_of_negatives(loss, monkeypatch):
    """On a GPU products that were drawn twice stand there twice, once for nothing."""
    torch.manual_seed(0)
    products, query = Products(9, 4, std=1.0), torch.randn(3, 4, requires_grad=True)
    sets = ProductSets.of(torch.tensor([3, 4, 9, 2]), torch.tensor([0, 2, 2, 4]))
    counted, found = softmaxes._counted, []
    for is_on in (True, False):
        monkeypatch.setattr(
            softmaxes, "_counted", lambda drawn, *, shortened, is_on=is_on: counted(drawn, shortened=is_on)
        )
        torch.manual_seed(1)
        total = loss(query, products, sets)
        found.append((total, *torch.autograd.grad(total, [query, *products.parameters()])))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_gbce_by_hand():
    products, query = products_and_queries()
    sets = ProductSets.of(*BASKETS)
    loss = GeneralisedCrossEntropy(num_negatives=4, calibration=0.75)
    chosen = torch.tensor([1, 7, 9, 30])
    loss.draw = lambda size, device: (chosen, torch.zeros(4))
    rate = 4 / 39
    beta = rate * (0.75 * (1 - 1 / rate) + 1 / rate)
    assert loss.power(40) == pytest.approx(beta)
    scores = products(query)

    def log_sigmoid(x):
        return torch.nn.functional.logsigmoid(x)

    row_0 = beta * (log_sigmoid(scores[0, 0]) + log_sigmoid(scores[0, 2])) / 2 + log_sigmoid(-scores[0, chosen]).sum()
    row_2 = beta * log_sigmoid(scores[2, 1]) + log_sigmoid(-scores[2, chosen[1:]]).sum()
    torch.testing.assert_close(loss(query, products, sets), -(row_0 + row_2) / 5)


def test_gbce_without_calibration_is_binary_cross_entropy():
    assert GeneralisedCrossEntropy(num_negatives=10, calibration=0.0).power(1000) == pytest.approx(1.0)
    assert GeneralisedCrossEntropy(num_negatives=10, calibration=1.0).power(1001) == pytest.approx(0.01)


@pytest.mark.parametrize("bad", [{"num_negatives": 0}, {"negatives": "all"}])
def test_bad_settings_are_named(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        SampledSoftmax(**bad)


def test_events_before_are_the_inverse_of_events_after(batch):
    before_N, follows_N = events_before(batch.targets.next_N)
    for row in range(batch.num_events):
        following = int(batch.targets.next_N[row])
        assert bool(follows_N[row]) == (following >= 0)
        if following >= 0:
            assert int(before_N[following]) == row
    assert (before_N[batch.position_N == 0] == -1).all()


def test_loss_of_the_products_equals_a_loop(vocabulary, batch):
    objective = steady_parameters(NextEvent(vocabulary, 6, 5, HORIZONS_DAYS, width=4))
    states, readout = torch.randn(batch.num_events, 6), torch.randn(batch.num_queries, 5)
    log_softmax = objective.products(objective.from_state(states)).log_softmax(1)
    values_M, offsets = batch.lists["product"]
    terms = []
    for row, following in enumerate(batch.targets.next_N.tolist()):
        codes = [int(code) - 2 for code in values_M[offsets[following] : offsets[following + 1]] if code >= 2]
        if following >= 0 and codes:
            terms.append(-log_softmax[row, codes].mean())
    at_cutoffs, number = objective._next_basket(readout, objective.from_readout(readout), batch)
    expected = (torch.stack(terms).sum() + at_cutoffs) / (len(terms) + number)
    torch.testing.assert_close(objective.loss(states, readout, batch).parts["product"], expected)


def tied_model(vocabulary):
    config = {
        "encoder": {"_target_": "constellation.encoders.transformer.Transformer", "width": 8, "dropout": 0.0},
        "readout": {"_target_": "constellation.encoders.readout.StateReadout"},
        "objective": {
            "next_event": {
                "_target_": "constellation.objectives.next_event.NextEvent",
                "width": 8,
                "tied": True,
                "shared": True,
                "max_repeat_products": 0,
            }
        },
    }
    return build_model(config, vocabulary, ())


def test_tied_products_are_scored_with_the_embeddings_they_are_read_with(vocabulary, batch):
    model = tied_model(vocabulary)
    events, products = model.encoder.events, model.objectives["next_event"].products
    first = events.start_of["product"] + 2
    assert torch.equal(products.embedding, events.table.weight[first : first + len(vocabulary.products)])
    assert not any("products.embedding" in name for name in model.state_dict())
    averaged = copy.deepcopy(model)
    with torch.no_grad():
        averaged.encoder.events.table.weight.zero_()
    assert float(averaged.objectives["next_event"].products.embedding.abs().sum()) == 0.0
    assert float(products.embedding.abs().sum()) > 0.0
    model.loss(batch)["next_event"].mean.backward()
    assert events.table.weight.grad[first:].abs().sum() > 0


def test_a_shared_projection_answers_cutoffs_from_what_events_taught(vocabulary, batch):
    model = tied_model(vocabulary).eval()
    states, _ = model(batch)
    scores = model.predict(batch, [0.5])["next_product_scores"]
    seen = batch.last_event_Q >= 0
    objective = model.objectives["next_event"]
    expected = objective.products(objective.from_state(states[batch.last_event_Q[seen]]))
    torch.testing.assert_close(scores[seen], expected)


def test_ties_that_cannot_be_are_refused(vocabulary):
    with pytest.raises(InputError, match="width=6"):
        NextEvent(vocabulary, 6, 5, (), width=4, tied=True)
    with pytest.raises(InputError, match="readout=state"):
        NextEvent(vocabulary, 6, 5, (), width=6, shared=True)
    with pytest.raises(InputError, match="multiple"):
        Transformer(vocabulary, width=30, heads=4)
