"""Hurdle-gamma, mixtures of log-normals, discrete hazards: bounds, order, inverses, gradients, scipy as the oracle."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from constellation.distributions.discrete_hazard import DiscreteHazard
from constellation.distributions.hurdle_gamma import HurdleGamma, gamma_log_quantile
from constellation.distributions.log_normal_mixture import LogNormalMixture
from constellation.errors import InputError
from constellation.metrics import LEVELS

real = st.floats(-3, 3)
LEVELS_L = torch.as_tensor(np.array(LEVELS))


def double(*values):
    return [torch.tensor([value], dtype=torch.float64) for value in values]


@st.composite
def mixtures(draw):
    parts = draw(st.integers(2, 4))
    lists = [[draw(real) for _ in range(parts)] for _ in range(2)]
    sigma = [draw(st.floats(0.05, 2.0)) for _ in range(parts)]
    weight, mu, deviation = (torch.tensor([each], dtype=torch.float64) for each in (*lists, sigma))
    return LogNormalMixture(torch.tensor([draw(real)], dtype=torch.float64), weight, mu, deviation)


families = st.builds(lambda p, mean, shape: HurdleGamma(*double(p, mean, shape)), real, real, real) | mixtures()


@settings(max_examples=60)
@given(families)
def test_quantiles_rise_and_the_cdf_undoes_them(family):
    quantile_L = family.quantile(LEVELS)
    assert (quantile_L.diff() >= 0).all()
    assert (quantile_L >= 0).all()
    expected_L = torch.maximum(LEVELS_L, family.p_zero())
    torch.testing.assert_close(family.cdf(quantile_L)[0], expected_L, rtol=1e-6, atol=1e-6)
    assert torch.equal(quantile_L[0] == 0, family.p_zero() >= LEVELS_L)
    assert family.cdf(torch.tensor([-1.0], dtype=torch.float64)).item() == 0


@settings(max_examples=30)
@given(families)
def test_density_integrates_to_one_and_to_the_mean(family):
    u = np.linspace(-60, 14, 40_001)
    density = family.log_density_of_log(torch.from_numpy(u).unsqueeze(-1)).exp().numpy().ravel()
    mass = integrate.trapezoid(density, u)
    # A small shape leaves a little below exp(-60).
    assert mass == pytest.approx(1.0, abs=0.06)
    mean = (1 - family.p_zero().item()) * integrate.trapezoid(density * np.exp(u), u)
    assert family.mean().item() == pytest.approx(mean, rel=1e-3)


@settings(max_examples=40)
@given(st.floats(-2.5, 4.0), st.floats(1e-6, 1 - 1e-6))
def test_gamma_quantile_is_scipys(log_shape, upper):
    shape = math.exp(log_shape)
    found = gamma_log_quantile(*double(shape, upper)).item()
    assert stats.gamma.sf(math.exp(found), shape) == pytest.approx(upper, rel=1e-5)


def test_hurdle_gamma_is_scipys():
    family = HurdleGamma(*double(0.4, 1.2, 0.0))
    shape = family.log_shape_Q.exp().item()
    gamma = stats.gamma(shape, scale=math.exp(1.2) / shape)
    p = 1 / (1 + math.exp(-0.4))
    value = torch.tensor([3.0], dtype=torch.float64)
    assert family.log_likelihood(value).item() == pytest.approx(math.log(p) + gamma.logpdf(3.0))
    assert family.log_likelihood(torch.zeros(1)).item() == pytest.approx(math.log(1 - p))
    assert family.cdf(value).item() == pytest.approx(1 - p + p * gamma.cdf(3.0))
    assert family.mean().item() == pytest.approx(p * math.exp(1.2))


def test_a_mixture_of_one_kind_is_the_log_normal():
    family = LogNormalMixture(
        *double(0.4), *(torch.tensor([[each] * 2], dtype=torch.float64) for each in (0.0, 1.0, 0.7))
    )
    value = torch.tensor([3.0], dtype=torch.float64)
    p, law = 1 / (1 + math.exp(-0.4)), stats.lognorm(0.7, scale=math.e)
    assert family.log_likelihood(value).item() == pytest.approx(math.log(p) + law.logpdf(3.0))
    assert family.quantile([0.9]).item() == pytest.approx(law.ppf((0.9 - 1 + p) / p), rel=1e-9)


@settings(max_examples=15)
@given(families, st.integers(0, 99))
def test_draws_follow_the_law(family, seed):
    drawn = family.sample(4000, generator=torch.Generator().manual_seed(seed))[:, 0]
    assert (drawn == 0).double().mean().item() == pytest.approx(family.p_zero().item(), abs=0.04)
    for level in (0.5, 0.9):
        quantile = family.quantile([level])[0, 0]
        if quantile > 0:
            assert (drawn <= quantile).double().mean().item() == pytest.approx(level, abs=0.04)


@pytest.mark.parametrize("value", [0.0, 0.3, 7.0])
def test_gradients(value):
    value_Q = torch.tensor([value], dtype=torch.float64)
    free = [each.requires_grad_() for each in double(0.3, 1.0, -0.5)]
    assert torch.autograd.gradcheck(lambda *each: HurdleGamma(*each).log_likelihood(value_Q), free)
    assert torch.autograd.gradcheck(lambda *each: HurdleGamma(*each).mean(), free)
    logit = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    parts = [torch.rand(1, 3, dtype=torch.float64).add(0.2).requires_grad_() for _ in range(3)]
    assert torch.autograd.gradcheck(lambda *each: LogNormalMixture(*each).log_likelihood(value_Q), [logit, *parts])
    assert torch.autograd.gradcheck(lambda *each: LogNormalMixture(*each).mean(), [logit, *parts])


def test_wild_parameters_stay_finite_and_half_precision_is_lifted():
    wild = torch.tensor([1e4, -1e4, 50.0])
    for family in (HurdleGamma(wild, wild, wild), LogNormalMixture(wild, *(wild.unsqueeze(-1).expand(3, 2),) * 3)):
        for answer in (
            family.mean(),
            family.quantile([0.1, 0.9]),
            family.p_zero(),
            family.log_likelihood(torch.ones(3)),
        ):
            assert torch.isfinite(answer).all()
    assert HurdleGamma(*(torch.zeros(1, dtype=torch.bfloat16) for _ in range(3))).mean().dtype == torch.float32
    with pytest.raises(InputError):
        HurdleGamma(*double(0.0, 0.0, 0.0)).quantile([0.0])


EDGES = torch.tensor([1.0, 3.0, 7.0, 20.0], dtype=torch.float64)
logits = st.lists(st.floats(-5, 3), min_size=8, max_size=8).map(
    lambda values: torch.tensor(values, dtype=torch.float64).reshape(1, 4, 2)
)


@settings(max_examples=20)
@given(logits)
def test_hazards_keep_their_books(logits_QJR):
    family = DiscreteHazard(EDGES, logits_QJR)
    survival = family.log_survival().exp()
    torch.testing.assert_close(survival + family.incidence().sum(-1), torch.ones_like(survival))
    assert (survival.diff() <= 0).all()
    for place, edge in enumerate(EDGES.tolist()):
        assert family.survival_at(edge).item() == pytest.approx(survival[0, place].item(), rel=1e-9)
    days = np.linspace(0, 20, 401)
    curve = np.array([family.survival_at(float(day)).item() for day in days])
    assert (np.diff(curve) <= 1e-12).all()
    area = integrate.trapezoid(curve, days)
    assert family.restricted_mean().item() == pytest.approx(area, rel=5e-3)
    levels = [0.05, 0.4, 0.9]
    for level, day in zip(levels, family.quantile(levels)[0].tolist(), strict=True):
        if math.isinf(day):
            assert 1 - survival[0, -1].item() <= level + 1e-9
        else:
            assert 1 - family.survival_at(day).item() == pytest.approx(level, abs=1e-9)


def test_hazard_likelihood_by_hand():
    # Hazards of the two causes: e / (1 + e + 1) and 1 / (2 + e) in the first interval, a third each later.
    logits_QJR = torch.zeros(1, 4, 2, dtype=torch.float64)
    logits_QJR[0, 0, 0] = 1.0
    whole = math.e + 2
    cases = {
        # days to each cause, watched: log likelihood
        ((0.5, 9.0), 30.0): math.log(math.e / whole),
        ((3.0, math.inf), 30.0): math.log(1 / whole) + math.log(1 / 3),  # an edge belongs to the interval it ends
        ((math.inf, 5.0), 30.0): math.log(1 / whole) + 2 * math.log(1 / 3),
        ((math.inf, math.inf), 7.0): math.log(1 / whole) + 2 * math.log(1 / 3),
        # Watched for 6 of the days up to 7: that interval says nothing, event or not.
        ((5.0, math.inf), 6.0): math.log(1 / whole) + math.log(1 / 3),
        ((math.inf, math.inf), 6.0): math.log(1 / whole) + math.log(1 / 3),
        ((25.0, math.inf), 30.0): math.log(1 / whole) + 3 * math.log(1 / 3),
    }
    for (days, watched), wanted in cases.items():
        found, asked = DiscreteHazard(EDGES, logits_QJR).log_likelihood(
            torch.tensor([days], dtype=torch.float64), torch.tensor([watched], dtype=torch.float64)
        )
        assert found.item() == pytest.approx(wanted), (days, watched)
        assert asked.item()
    nothing, asked = DiscreteHazard(EDGES, logits_QJR).log_likelihood(
        torch.tensor([[0.2, 0.4]], dtype=torch.float64), torch.tensor([0.9], dtype=torch.float64)
    )
    assert nothing.item() == 0
    assert not asked.item()


def test_hazards_have_gradients_and_draws():
    logits_QJR = torch.randn(3, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    days = torch.tensor([[0.5, 2.0], [math.inf, 5.0], [math.inf, math.inf]], dtype=torch.float64)
    watched = torch.tensor([30.0, 30.0, 8.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda each: DiscreteHazard(EDGES, each).log_likelihood(days, watched)[0], [logits_QJR]
    )
    assert torch.autograd.gradcheck(lambda each: DiscreteHazard(EDGES, each).restricted_mean(), [logits_QJR])
    family = DiscreteHazard(EDGES, logits_QJR.detach())
    drawn = family.sample(20_000, generator=torch.Generator().manual_seed(1))
    share = (drawn <= 3.0).double().mean(0)
    torch.testing.assert_close(share, 1 - family.survival_at(3.0), atol=0.015, rtol=0)
