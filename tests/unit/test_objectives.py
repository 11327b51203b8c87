"""Heads and losses against hand-made expectations."""

import math

import numpy as np
import pytest
import torch

from constellation.objectives.base import Loss
from constellation.objectives.families import Quantiles, Ziln, inverse_softplus, ordered, ordered_start, pinball
from constellation.objectives.next_event import NextEvent
from constellation.objectives.repeats import HALF_LIFE_EVENTS, HALF_LIVES_DAYS, past_counts, ragged_rows
from constellation.objectives.value import Value, poisson_deviance
from tests.golden.tiny import HORIZONS_DAYS, replaced, tiny_batch, tiny_store, tiny_vocabulary

DAY = 86_400_000_000
WIDTH = 8


@pytest.fixture(scope="module")
def vocabulary():
    return tiny_vocabulary()


@pytest.fixture(scope="module")
def batch():
    return tiny_batch()


def test_mean_of_a_loss_without_targets_is_zero():
    assert Loss(torch.zeros(()), torch.zeros((), dtype=torch.int64)).mean == 0
    assert Loss(torch.tensor(6.0), torch.tensor(4)).mean == 1.5


def test_ordered_start_is_undone_by_ordered():
    wanted = torch.tensor([-2.0, 0.5, 0.6])
    torch.testing.assert_close(ordered(ordered_start(wanted).unsqueeze(0)).squeeze(0), wanted)
    falling = ordered(ordered_start(torch.tensor([1.0, 0.0])).unsqueeze(0)).squeeze(0)
    torch.testing.assert_close(falling, torch.tensor([1.0, 1.01]))


def test_inverse_softplus():
    wanted = torch.tensor([0.01, 1.0, 30.0])
    torch.testing.assert_close(torch.nn.functional.softplus(inverse_softplus(wanted)), wanted)


def test_poisson_deviance_by_hand():
    # y = 2, m = e: 2 ln(2 / e) - (2 - e); y = 0: m.
    loss = poisson_deviance(torch.tensor([1.0, 1.0]), torch.tensor([2.0, 0.0]))
    torch.testing.assert_close(loss, torch.tensor([2 * math.log(2) - 2 - 2 + math.e, math.e]))
    log_mean = torch.tensor(0.7, requires_grad=True)
    poisson_deviance(log_mean, torch.tensor(5.0)).backward()
    torch.testing.assert_close(log_mean.grad, torch.tensor(math.exp(0.7) - 5.0))


def test_pinball_by_hand():
    # Errors +1 at level 0.2 and -1 at level 0.8: 0.2 and 0.2, mean 0.2, twice.
    torch.testing.assert_close(pinball(torch.tensor([[1.0, -1.0]]), torch.tensor([0.2, 0.8])), torch.tensor([0.4]))


@pytest.mark.parametrize("family", [Ziln(), Quantiles(), Quantiles(num_levels=5)], ids=["ziln", "quantiles", "five"])
def test_a_family_starts_as_the_standard_normal(family):
    raw_QKP = family.start().expand(1, 2, -1)
    certain = torch.full((1, 2), 40.0)
    levels = [0.005, 0.1, 0.5, 0.9, 0.995]
    normal = torch.special.ndtri(torch.tensor(levels, dtype=torch.float64)).float()
    torch.testing.assert_close(family.quantile(certain, raw_QKP, levels)[0, 1], normal, atol=2e-3, rtol=1e-3)
    # With half of the customers at zero, level 0.75 is the median of the rest.
    half = family.quantile(torch.zeros(1, 2), raw_QKP, [0.25, 0.75])[0, 0]
    assert half[0] == -math.inf
    torch.testing.assert_close(half[1], torch.tensor(0.0), atol=2e-3, rtol=0)


def test_ziln_loss_is_the_likelihood_by_hand():
    family, raw = Ziln(), Ziln().start()
    logit = torch.tensor([[math.log(3.0), math.log(3.0)]])  # buys with 3/4
    loss = family.loss(logit, raw.expand(1, 2, -1), torch.tensor([[True, False]]), torch.tensor([[0.5, 99.0]]))
    expected = [-math.log(0.75) + 0.5 * math.log(2 * math.pi) + 0.125, -math.log(0.25)]
    torch.testing.assert_close(loss[0], torch.tensor(expected), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("money_weight", [0.0, 0.5, 1.0])
def test_quantiles_find_the_quantiles(money_weight):
    """Fitted to a skewed sample, the grid is the sample's own quantiles: no log-normal is assumed."""
    rng = np.random.default_rng(0)
    u = torch.from_numpy(np.minimum(rng.exponential(1.0, 1000), 3.0).astype(np.float32) - 1.0).unsqueeze(1)
    family = Quantiles(money_weight=money_weight)
    raw = torch.nn.Parameter(family.start())
    optimizer = torch.optim.Adam([raw], lr=0.05)
    certain = torch.full((len(u), 1), 20.0)
    for step in range(150):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 150)
        loss = family.loss(certain, raw.expand(len(u), 1, -1), torch.ones_like(u, dtype=torch.bool), u).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    levels = [0.1, 0.5, 0.9]
    found = family.quantile(certain[:1], raw.detach().expand(1, 1, -1), levels)[0, 0]
    wanted = torch.quantile(u[:, 0], torch.tensor(levels))
    torch.testing.assert_close(found, wanted, atol=0.07, rtol=0)


@pytest.mark.parametrize("family", [Ziln(), Quantiles()], ids=["ziln", "quantiles"])
def test_value_starts_from_the_training_targets(vocabulary, family):
    objective = Value(vocabulary, 4, WIDTH, HORIZONS_DAYS, family=family)
    with torch.no_grad():
        objective.head.weight.zero_()
    answers = objective.predict(torch.zeros(1, WIDTH), tiny_batch(), [0.5])
    money, purchases = vocabulary.targets["value"], vocabulary.targets["purchases"]
    for place, days in enumerate(HORIZONS_DAYS):
        assert answers[f"value_{days}d_expected"].item() == pytest.approx(money["mean"][place], rel=1e-3)
        assert answers[f"value_{days}d_p_zero"].item() == pytest.approx(money["p_zero"][place], rel=1e-3)
        assert answers[f"purchases_{days}d_expected"].item() == pytest.approx(purchases["mean"][place], rel=1e-3)
        variance = purchases["mean"][place] + purchases["mean"][place] ** 2 / purchases["dispersion"][place]
        size = purchases["mean"][place] ** 2 / (variance - purchases["mean"][place])
        p_zero = (size / (size + purchases["mean"][place])) ** size
        assert answers[f"purchases_{days}d_p_zero"].item() == pytest.approx(p_zero, rel=1e-2)


@pytest.mark.parametrize("family", [Ziln(), Quantiles()], ids=["ziln", "quantiles"])
def test_no_quantile_lies_far_beyond_what_was_ever_spent(family):
    known = tiny_vocabulary()
    money = known.targets["value"]
    money["highest"] = [50.0, 40.0]  # the longer horizon was seen less often: its bound is no lower
    objective = Value(known, 4, WIDTH, HORIZONS_DAYS, family=family)
    with torch.no_grad():
        objective.head.weight.zero_()
        objective.head.bias.fill_(30.0)
    answers = objective.predict(torch.zeros(1, WIDTH), tiny_batch(), [0.5, 0.995])
    for days in HORIZONS_DAYS:
        assert answers[f"value_{days}d_quantiles"][0, 1].item() == pytest.approx(100.0)
    # A whale of ten million times the mean may be expected to come again; nobody more than twice as large.
    money["highest"] = [1e7 * money["mean"][0], 1e7 * money["mean"][0]]
    objective = Value(known, 4, WIDTH, HORIZONS_DAYS, family=family)
    with torch.no_grad():
        objective.head.weight.zero_()
        objective.head.bias.fill_(30.0)
    expected = objective.predict(torch.zeros(1, WIDTH), tiny_batch(), [0.5])["value_30d_expected"].item()
    assert expected == pytest.approx(2e7 * money["mean"][0], rel=1e-3)


def test_value_without_statistics_still_starts(vocabulary):
    bare = tiny_vocabulary()
    bare.targets = None
    objective = Value(bare, 4, WIDTH, HORIZONS_DAYS, family=Ziln())
    answers = objective.predict(torch.zeros(2, WIDTH), tiny_batch(), [0.5])
    assert all(torch.isfinite(answer).all() for answer in answers.values())


def test_the_total_of_expected_money_is_right_where_the_log_normal_is_wrong(vocabulary):
    """Two sorts of customers cannot be told apart; the log-normal's mean is far off, the head's is not."""
    torch.manual_seed(0)
    batch = tiny_batch()
    queries = batch.num_queries
    value_QK = torch.where(torch.arange(queries)[:, None] % 4 == 0, 400.0, 1.0) * torch.tensor([0.5, 1.0])
    targets = batch.targets
    batch = replaced(batch, targets=replaced(targets, value_QK=value_QK, observed_QK=value_QK > 0))
    objective = Value(vocabulary, 4, WIDTH, HORIZONS_DAYS, family=Ziln())
    readout = torch.zeros(queries, WIDTH)
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.05)
    for step in range(250):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 250)
        optimizer.zero_grad()
        objective.loss(torch.zeros(0, 4), readout, batch).mean.backward()
        optimizer.step()
    answers = objective.predict(readout, batch, [0.5])
    assert answers["value_91d_expected"].sum().item() == pytest.approx(value_QK[:, 1].sum().item(), rel=0.02)
    log_normal = value_QK[:, 1].log().mean() + value_QK[:, 1].log().var() / 2
    assert math.exp(log_normal) > 1.3 * value_QK[:, 1].mean()


def test_ragged_rows():
    rows, offsets = ragged_rows(torch.tensor([5, 9, 0]), torch.tensor([2, 0, 3]))
    assert rows.tolist() == [5, 6, 0, 1, 2]
    assert offsets.tolist() == [0, 2, 2, 5]


def test_past_counts_equal_a_loop(vocabulary, batch):
    counts_CQV = past_counts(batch, len(vocabulary.products))
    expected = np.zeros(counts_CQV.shape)
    values_M, offsets = (each.numpy() for each in batch.lists["product"])
    for query in range(batch.num_queries):
        last = int(batch.last_event_Q[query])
        for event in range(int(batch.offsets_B[batch.query_journey_Q[query]]), last + 1):
            days = float(batch.cutoff_Q[query] - batch.time_N[event]) / DAY
            for code in values_M[offsets[event] : offsets[event + 1]]:
                decays = [0.5 ** (days / half_life) for half_life in HALF_LIVES_DAYS]
                expected[:, query, code - 2] += [1.0, *decays, 0.5 ** ((last - event) / HALF_LIFE_EVENTS)]
    np.testing.assert_allclose(counts_CQV.numpy(), expected, atol=1e-5)
    assert expected.sum() > 0


def test_favourites_rank_first_before_anything_is_learned(vocabulary, batch):
    torch.manual_seed(0)
    objective = NextEvent(vocabulary, 4, WIDTH, HORIZONS_DAYS, width=4).eval()
    scores = objective.predict(torch.zeros(batch.num_queries, WIDTH), batch, [])["next_product_scores"]
    counts = past_counts(batch, len(vocabulary.products))[0]
    bought = counts.sum(1) > 3
    assert bought.sum() > 2
    top = scores.argmax(1)
    assert (counts[bought].gather(1, top[bought, None]).squeeze(1) >= 0.6 * counts[bought].max(1).values).all()


def test_data_without_products(batch):
    store = tiny_store()
    del store.lists["product"], store.manifest.kinds["product"], store.dictionaries["product"]
    vocabulary = tiny_vocabulary(store)
    plain = tiny_batch(store, vocabulary)
    objective = NextEvent(vocabulary, 4, WIDTH, HORIZONS_DAYS)
    loss = objective.loss(torch.randn(plain.num_events, 4), torch.randn(plain.num_queries, WIDTH), plain)
    assert set(loss.parts) == {"type"}
    answers = objective.predict(torch.zeros(plain.num_queries, WIDTH), plain, [])
    assert set(answers) == {"next_type_scores"}


def test_many_products_go_without_the_repeats(vocabulary, batch):
    objective = NextEvent(vocabulary, 4, WIDTH, HORIZONS_DAYS, max_repeat_products=3)
    assert objective.repeats is None
    loss = objective.loss(torch.randn(batch.num_events, 4), torch.randn(batch.num_queries, WIDTH), batch)
    assert torch.isfinite(loss.total)
