"""Families of counts against hand-made expectations, and the head that asks them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from constellation.metrics import LEVELS
from constellation.objectives.count_families import (
    JITTER,
    CountFamily,
    CountMixture,
    CountQuantiles,
    NegativeBinomial,
    inverse_capped_sigma,
    whole,
)
from constellation.objectives.families import Ziln
from constellation.objectives.purchase_processes import ParetoNbd
from constellation.objectives.value import Value
from constellation.objectives.value_pooled import ValuePooled
from tests.golden.tiny import HORIZONS_DAYS, tiny_batch, tiny_vocabulary

FAMILIES = [NegativeBinomial, CountQuantiles, CountMixture]
HURDLES = [CountQuantiles, CountMixture]
MEAN_K, SIZE_K = torch.tensor([0.3, 2.0, 20.0]), torch.tensor([0.3, 0.5, 2.0])
WIDTH = 8

each_family = pytest.mark.parametrize("kind", FAMILIES, ids=lambda kind: kind.__name__)


@each_family
def test_a_family_begins_near_the_negative_binomial_of_the_training(kind: type[CountFamily]) -> None:
    family = kind()
    raw_QKP = family.begin(MEAN_K, SIZE_K).unsqueeze(0)
    assert raw_QKP.shape == (1, 3, family.num_parameters)
    # P(0) = (k / (k + m))^k: .3 and .3 give sqrt(1/2)^.6, 2 and .5 (1/5)^.5, 20 and 2 (1/11)^2.
    expected_K = torch.tensor([0.5**0.3, 0.2**0.5, 1 / 121])
    torch.testing.assert_close(family.p_zero(MEAN_K.log().unsqueeze(0), raw_QKP)[0], expected_K)
    found_KL = family.quantile(MEAN_K.log().unsqueeze(0), raw_QKP, [0.3, 0.5, 0.7, 0.9])[0]
    laws = [stats.nbinom(k, k / (k + m)) for m, k in zip(MEAN_K.tolist(), SIZE_K.tolist(), strict=True)]
    for place, law in enumerate(laws):
        for found, level in zip(found_KL[place].tolist(), [0.3, 0.5, 0.7, 0.9], strict=True):
            assert found == pytest.approx(law.ppf(level), abs=1, rel=0.1)


def test_negative_binomial_is_scipys() -> None:
    family, count = NegativeBinomial(), torch.tensor([[0.0, 3.0]])
    log_mean_QK, raw_QKP = torch.tensor([[2.0, 5.0]]).log(), torch.tensor([[[0.5], [2.0]]]).log()
    expected = [-stats.nbinom(2, 2 / 4).logpmf(0), -stats.nbinom(0.5, 0.5 / 5.5).logpmf(3)]
    torch.testing.assert_close(family.loss(log_mean_QK, raw_QKP, count)[0], torch.tensor(expected, dtype=torch.float32))
    assert family.quantile(log_mean_QK, raw_QKP, [0.6, 0.9])[0].tolist() == [
        [stats.nbinom(2, 0.5).ppf(level) for level in (0.6, 0.9)],
        [stats.nbinom(0.5, 0.5 / 5.5).ppf(level) for level in (0.6, 0.9)],
    ]


def test_quantiles_of_counts_by_hand() -> None:
    family = CountQuantiles(num_levels=3, count_weight=0.0)
    family.begin(torch.ones(1), torch.ones(1))
    # A location of ln 2, a median of e^0 times that, and gaps of 1 to the levels .01 and .99.
    family.location_K = torch.tensor([math.log(2.0)])
    step = math.log(math.e - 1)
    raw_QKP = torch.tensor([[[0.0, 0.0, step, step]]]).expand(2, 1, -1)
    grid, levels = [-1.0, 0.0, 1.0], [0.01, 0.5, 0.99]
    pinball = 0.0
    for jitter in JITTER:
        u = math.log((3 + jitter) / 2)
        errors = [max(level * (u - at), (level - 1) * (u - at)) for level, at in zip(levels, grid, strict=True)]
        pinball += 2 * sum(errors) / 3 / 4
    found = family.loss(torch.zeros(2, 1), raw_QKP, torch.tensor([[3.0], [0.0]]))
    torch.testing.assert_close(found, torch.tensor([[math.log(2.0) + pinball], [math.log(2.0)]]))
    # Half buy nothing; of the others the median is 2 (level .75), and 2 / e and 2 e are nearest to 1 and to 5.
    quantiles_L = family.quantile(torch.zeros(1, 1), raw_QKP[:1], [0.25, 0.505, 0.75, 0.995])[0, 0]
    assert quantiles_L.tolist() == [0, 1, 2, 5]


def test_mixture_of_counts_by_hand() -> None:
    family = CountMixture(num_parts=2)
    family.begin(torch.ones(1), torch.ones(1))
    family.location_K = torch.tensor([1.0])
    sigma = inverse_capped_sigma(torch.tensor([0.2, 0.8]))
    weights, mu = torch.tensor([math.log(0.3), math.log(0.7)]), torch.tensor([1.0, -0.5])
    raw_QKP = torch.cat([torch.tensor([math.log(3.0)]), weights, mu, sigma]).expand(3, 1, -1)
    narrow, wide = stats.lognorm(0.2, scale=math.exp(2.0)), stats.lognorm(0.8, scale=math.exp(0.5))

    def mass(low: float, high: float) -> float:
        return 0.75 * (0.3 * (narrow.cdf(high) - narrow.cdf(low)) + 0.7 * (wide.cdf(high) - wide.cdf(low)))

    expected = [-math.log(0.25), -math.log(mass(0, 1.5)), -math.log(mass(6.5, 7.5))]
    found = family.loss(torch.zeros(3, 1), raw_QKP, torch.tensor([[0.0], [1.0], [7.0]]))
    torch.testing.assert_close(found[:, 0], torch.tensor(expected, dtype=torch.float32), rtol=1e-4, atol=1e-5)


def test_whole_numbers_of_those_who_buy_are_at_least_one() -> None:
    assert whole(torch.tensor([-math.inf, -3.0, math.log(2.4), math.log(2.6), 99.0])).tolist()[:4] == [0, 1, 2, 3]
    assert whole(torch.tensor([99.0])).item() < 60_000


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(FAMILIES), st.integers(0, 10_000), st.floats(0.1, 2.0))
def test_quantiles_are_ordered_whole_and_zero_up_to_p_zero(kind: type[CountFamily], seed: int, wild: float) -> None:
    family, generator = kind(), torch.Generator().manual_seed(seed)
    start_KP = family.begin(MEAN_K, SIZE_K)
    raw_QKP = start_KP + wild * torch.randn((4, *start_KP.shape), generator=generator)
    log_mean_QK = MEAN_K.log().expand(4, -1)
    found_QKL, zero_QK = family.quantile(log_mean_QK, raw_QKP, LEVELS), family.p_zero(log_mean_QK, raw_QKP)
    assert (found_QKL.diff(dim=-1) >= 0).all()
    assert torch.equal(found_QKL, found_QKL.round())
    assert (found_QKL >= 0).all()
    levels_L = torch.tensor(LEVELS)
    apart_QKL = (levels_L - zero_QK.unsqueeze(-1)).abs() > 1e-5
    assert torch.equal((found_QKL == 0)[apart_QKL], (levels_L <= zero_QK.unsqueeze(-1))[apart_QKL])
    if kind in HURDLES:
        assert (zero_QK.diff(dim=1) <= 0).all()


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([NegativeBinomial, CountMixture]), st.integers(0, 10_000))
def test_likelihoods_sum_to_one_over_all_counts(kind: type[CountFamily], seed: int) -> None:
    family, generator = kind(), torch.Generator().manual_seed(seed)
    start_KP = family.begin(MEAN_K, SIZE_K)
    raw_KP = start_KP + 0.2 * torch.randn(start_KP.shape, generator=generator)
    count_Q1 = torch.arange(4000.0).unsqueeze(1)
    loss_QK = family.loss(MEAN_K.log().expand(4000, -1), raw_KP.expand(4000, -1, -1), count_Q1.expand(-1, 3))
    torch.testing.assert_close((-loss_QK).exp().sum(0), torch.ones(3), rtol=0, atol=2e-3)


def learned(kind: type[CountFamily], counts_Q: torch.Tensor, levels: list[float]) -> tuple[float, torch.Tensor]:
    """P(zero) and quantiles [L] of one distribution that the family learns for all of these counts."""
    family, mean = kind(), counts_Q.mean()
    excess = (counts_Q.var() - mean).clamp(min=1e-3 * float(mean))
    start_KP = family.begin(mean.unsqueeze(0), (mean.square() / excess).clamp(0.05, 100.0).unsqueeze(0))
    raw_KP, log_mean_K = start_KP.clone().requires_grad_(), mean.log().unsqueeze(0).clone().requires_grad_()
    optimizer = torch.optim.Adam([raw_KP, log_mean_K], lr=0.05)
    found_Q, times_Q = counts_Q.unique(return_counts=True)
    each = len(found_Q)
    for _ in range(300):
        optimizer.zero_grad()
        loss_Q = family.loss(log_mean_K.expand(each, 1), raw_KP.expand(each, 1, -1), found_Q.unsqueeze(1))[:, 0]
        (loss_Q @ (times_Q / times_Q.sum())).backward()
        optimizer.step()
    with torch.no_grad():
        asked = log_mean_K.unsqueeze(0), raw_KP.unsqueeze(0)
        return family.p_zero(*asked).item(), family.quantile(*asked, levels)[0, 0]


@each_family
def test_regular_buyers_are_narrower_than_poisson_where_the_family_can(kind: type[CountFamily]) -> None:
    # Gamma gaps of shape 8: about 26 purchases with a variance of 26 / 8, where Poisson's is 26.
    gaps = torch.from_numpy(stats.gamma(8, scale=2 / 8).rvs((1000, 60), random_state=0))
    counts_Q = (gaps.cumsum(1) < 52).sum(1).float()
    _, found_L = learned(kind, counts_Q, [0.05, 0.95])
    width, true = (found_L[1] - found_L[0]).item(), (counts_Q.quantile(0.95) - counts_Q.quantile(0.05)).item()
    poisson = stats.poisson(float(counts_Q.mean()))
    assert true == pytest.approx(6, abs=1)
    if kind is NegativeBinomial:
        assert width >= poisson.ppf(0.95) - poisson.ppf(0.05) - 1
    else:
        assert width == pytest.approx(true, abs=1)


@pytest.mark.parametrize("kind", HURDLES, ids=lambda kind: kind.__name__)
def test_either_gone_or_every_week(kind: type[CountFamily]) -> None:
    # A third never comes again, the others come 50 to 54 times: nothing with one middle can say so.
    generator = torch.Generator().manual_seed(0)
    some_Q = torch.randint(50, 55, (900,), generator=generator).float()
    counts_Q = torch.where(torch.arange(900) % 3 == 0, 0.0, some_Q)
    p_zero, found_L = learned(kind, counts_Q, [0.3, 0.4, 0.6, 0.97])
    assert p_zero == pytest.approx(1 / 3, abs=0.01)
    assert found_L[0] == 0
    assert 49 <= found_L[1] <= found_L[2] <= found_L[3] <= 55


@pytest.mark.parametrize("kind", HURDLES, ids=lambda kind: kind.__name__)
def test_wide_counts_are_wider_than_poisson(kind: type[CountFamily]) -> None:
    counts_Q = torch.from_numpy(stats.nbinom(0.6, 0.6 / 5.6).rvs(2000, random_state=1)).float()
    p_zero, found_L = learned(kind, counts_Q, [0.5, 0.9, 0.98])
    assert p_zero == pytest.approx(float((counts_Q == 0).float().mean()), abs=0.02)
    for found, true in zip(found_L.tolist(), counts_Q.quantile(torch.tensor([0.5, 0.9, 0.98])).tolist(), strict=True):
        assert found == pytest.approx(true, rel=0.15, abs=1)


def head(**choices: CountFamily) -> Value:
    torch.manual_seed(0)
    return Value(tiny_vocabulary(), WIDTH, WIDTH, HORIZONS_DAYS, family=Ziln(), **choices)


def test_weights_from_before_the_choice_answer_as_they_did() -> None:
    """A head without the key has the outputs of before, in their order, and reads purchases off them as then."""
    objective, batch = head(), tiny_batch()
    num_horizons = len(HORIZONS_DAYS)
    assert set(objective.state_dict()) == {"location_K", "scale_K", "mean_K", "head.weight", "head.bias"}
    assert objective.head.weight.shape == (num_horizons * (4 + 2), WIDTH)
    generator = torch.Generator().manual_seed(1)
    kept = {
        "location_K": torch.zeros(num_horizons),
        "scale_K": torch.ones(num_horizons),
        "mean_K": torch.ones(num_horizons),
        "head.weight": 0.1 * torch.randn((num_horizons * 6, WIDTH), generator=generator),
        "head.bias": torch.randn(num_horizons * 6, generator=generator),
    }
    objective.load_state_dict(kept)
    readout_QD = torch.randn((batch.num_queries, WIDTH), generator=generator)
    with torch.no_grad():
        answers = objective.predict(readout_QD, batch, [0.5, 0.9])
        raw_QK6 = objective.head(readout_QD).unflatten(-1, (num_horizons, 6))
    log_mean_Q = raw_QK6[:, 0, 2]
    for place, days in enumerate(HORIZONS_DAYS):
        if place:
            log_mean_Q = log_mean_Q + torch.nn.functional.softplus(raw_QK6[:, place, 2])
        size_Q = (-raw_QK6[:, place, 3]).exp()
        law = stats.nbinom(size_Q.double(), (size_Q / (size_Q + log_mean_Q.exp())).double())
        torch.testing.assert_close(answers[f"purchases_{days}d_expected"], log_mean_Q.exp())
        zero_Q = torch.from_numpy(law.pmf(0)).float()
        torch.testing.assert_close(answers[f"purchases_{days}d_p_zero"], zero_Q, rtol=1e-4, atol=1e-6)
        for column, level in enumerate([0.5, 0.9]):
            expected_Q = torch.from_numpy(law.ppf(level)).float()
            torch.testing.assert_close(answers[f"purchases_{days}d_quantiles"][:, column], expected_Q)


@pytest.mark.parametrize("kind", HURDLES, ids=lambda kind: kind.__name__)
def test_a_family_of_counts_takes_nothing_from_money_and_means(kind: type[CountFamily]) -> None:
    """The gradient of all that was there before, and of the readout, is the same with any family."""
    heads, batch = (head(), head(count_family=kind())), tiny_batch()
    generator = torch.Generator().manual_seed(2)
    readouts = [torch.randn((batch.num_queries, WIDTH), generator=generator)]
    readouts.append(readouts[0].clone())
    for objective, readout_QD in zip(heads, readouts, strict=True):
        objective.loss(torch.zeros(0, WIDTH), readout_QD.requires_grad_(), batch).total.backward()
    for name in ("weight", "bias"):
        torch.testing.assert_close(getattr(heads[1].head, name).grad, getattr(heads[0].head, name).grad)
    torch.testing.assert_close(readouts[1].grad, readouts[0].grad)
    assert heads[1].spread_head.weight.grad.abs().sum() > 0
    with torch.no_grad():
        answers = [objective.predict(readouts[0], batch, [0.5]) for objective in heads]
    for name in answers[0]:
        if not name.startswith("purchases") or name.endswith("expected"):
            torch.testing.assert_close(answers[1][name], answers[0][name])


@each_family
def test_longer_horizons_promise_no_less(kind: type[CountFamily]) -> None:
    objective, batch = head(count_family=kind()), tiny_batch()
    for layer in (objective.head, objective.spread_head or objective.head):
        torch.nn.init.normal_(layer.weight, std=0.5)
    readout_QD = torch.randn((batch.num_queries, WIDTH), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        answers = objective.predict(readout_QD, batch, [0.1, 0.5, 0.9])
    short, long = HORIZONS_DAYS
    assert (answers[f"purchases_{long}d_expected"] >= answers[f"purchases_{short}d_expected"]).all()
    if kind in HURDLES:
        assert (answers[f"purchases_{long}d_p_zero"] <= answers[f"purchases_{short}d_p_zero"]).all()


def test_no_quantile_lies_beyond_twice_the_highest_count_of_training() -> None:
    vocabulary, batch = tiny_vocabulary(), tiny_batch()
    highest = vocabulary.targets["purchases"]["highest"]
    objective = Value(vocabulary, WIDTH, WIDTH, HORIZONS_DAYS, family=Ziln(), count_family=CountMixture())
    torch.nn.init.normal_(objective.spread_head.weight, std=30.0)
    readout_QD = torch.randn((batch.num_queries, WIDTH), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        answers = objective.predict(readout_QD, batch, LEVELS)
    for place, days in enumerate(HORIZONS_DAYS):
        assert answers[f"purchases_{days}d_quantiles"].max() == 2 * max(highest[: place + 1])


def test_a_pool_without_the_key_keeps_the_negative_binomial() -> None:
    pool = ValuePooled(tiny_vocabulary(), WIDTH, WIDTH, HORIZONS_DAYS, family=Ziln(), process=ParetoNbd())
    assert isinstance(pool.heads.count_families[-1], NegativeBinomial)
