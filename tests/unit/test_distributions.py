"""Zero-inflated log-normal and negative binomial, against hand computation and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from constellation.distributions.negative_binomial import MAX_COUNT, NegativeBinomial
from constellation.distributions.ziln import MAX_SIGMA, ZeroInflatedLogNormal, capped_sigma
from constellation.errors import InputError


def ziln(p: float, mu: float, sigma: float) -> ZeroInflatedLogNormal:
    parameters = (math.log(p / (1 - p)), mu, sigma)
    return ZeroInflatedLogNormal(*(torch.tensor([each], dtype=torch.float64) for each in parameters))


def test_ziln_log_likelihood_of_zero_and_of_money_by_hand():
    # p = 0.25, mu = ln 100, sigma = 1: at y = 100 the density is 0.25 / (100 sqrt(2 pi)).
    family = ziln(0.25, math.log(100), 1.0)
    assert family.log_likelihood(torch.tensor([0.0])).item() == pytest.approx(math.log(0.75))
    expected = math.log(0.25 / (100 * math.sqrt(2 * math.pi)))
    assert family.log_likelihood(torch.tensor([100.0])).item() == pytest.approx(expected)


def test_ziln_mean_quantile_and_cdf_by_hand():
    family = ziln(0.5, 2.0, 0.8)
    assert family.mean().item() == pytest.approx(0.5 * math.exp(2.0 + 0.32))
    # Level 0.75 is the median of those who buy; levels up to P(zero) are zero.
    assert family.quantile([0.3, 0.5, 0.75])[0].tolist() == pytest.approx([0.0, 0.0, math.exp(2.0)])
    assert family.p_zero().item() == pytest.approx(0.5)
    assert family.cdf(torch.tensor([[-1.0, 0.0, math.exp(2.0)]]))[0].tolist() == pytest.approx([0.0, 0.5, 0.75])


def test_ziln_gradients_are_finite_at_zero_huge_and_tiny_values():
    raw = torch.tensor([[0.0, 3.0, 1.0], [50.0, 60.0, 90.0], [-50.0, -60.0, -90.0]]).repeat(3, 1).requires_grad_()
    value = torch.tensor([0.0, 1e6, 1e-3]).repeat_interleave(3)
    family = ZeroInflatedLogNormal.from_raw(raw)
    (family.log_likelihood(value).sum() + family.mean().sum()).backward()
    assert raw.grad is not None
    assert torch.isfinite(raw.grad).all()
    assert torch.isfinite(family.quantile([0.005, 0.995])).all()


def test_quantile_can_be_differentiated():
    raw = torch.tensor([[0.0, 3.0, 1.0], [-5.0, 3.0, 1.0]], requires_grad=True)
    ZeroInflatedLogNormal.from_raw(raw).quantile([0.1, 0.9]).sum().backward()
    assert raw.grad is not None
    assert torch.isfinite(raw.grad).all()


def test_sigma_is_capped_smoothly_and_hard():
    raw = torch.tensor([-100.0, 0.0, 4.0, 1e4], requires_grad=True)
    sigma = capped_sigma(raw)
    assert (sigma > 0).all()
    assert (sigma <= MAX_SIGMA).all()
    sigma[2].backward()
    assert raw.grad is not None
    assert raw.grad[2] > 0.05  # an overshooting head can come back
    assert ziln(0.5, 0.0, 99.0).sigma_Q.item() == MAX_SIGMA


def test_half_precision_is_promoted():
    raw = torch.randn(7, 3, dtype=torch.bfloat16)
    assert ZeroInflatedLogNormal.from_raw(raw).log_likelihood(torch.ones(7)).dtype == torch.float32


def test_ziln_sample_has_the_stated_mean_and_share_of_zeros():
    generator = torch.Generator().manual_seed(0)
    draws = ziln(0.3, 1.0, 0.5).sample(200_000, generator=generator)
    assert (draws == 0).double().mean().item() == pytest.approx(0.7, abs=0.005)
    assert draws.mean().item() == pytest.approx(0.3 * math.exp(1.125), rel=0.02)


@pytest.mark.parametrize("levels", [[0.0, 0.5], [0.5, 1.0], [[0.5]], [float("nan")]])
def test_impossible_levels_are_named(levels):
    with pytest.raises(InputError, match="strictly between 0 and 1"):
        ziln(0.5, 0.0, 1.0).quantile(levels)


COUNTS = [(0.02, 3.0), (2.5, 0.4), (40.0, 1.2), (300.0, 0.01)]


@pytest.mark.parametrize(("mean", "dispersion"), COUNTS)
def test_negative_binomial_agrees_with_scipy(mean, dispersion):
    family = NegativeBinomial(torch.tensor([mean]).log(), torch.tensor([dispersion]).log())
    oracle = stats.nbinom(1 / dispersion, 1 / (1 + dispersion * mean))
    counts = torch.tensor([0.0, 1.0, 7.0, 60.0])
    ours = NegativeBinomial(torch.full((4,), mean).log(), torch.full((4,), dispersion).log()).log_likelihood(counts)
    np.testing.assert_allclose(ours, oracle.logpmf(counts.numpy()), rtol=1e-4)
    levels = [0.005, 0.25, 0.5, 0.9, 0.995]
    assert family.quantile(levels)[0].tolist() == oracle.ppf(levels).tolist()
    np.testing.assert_allclose(family.cdf(counts[None])[0], oracle.cdf(counts.numpy()), rtol=1e-5, atol=1e-12)
    assert family.cdf(torch.tensor([-1.0])).item() == 0.0
    assert family.mean().item() == pytest.approx(mean, rel=1e-5)


def test_zero_inflation_by_hand():
    # Poisson-like would be e^-1; geometric with mean 1 has P(0) = 1/2. Active with probability 0.4.
    logit = torch.tensor([math.log(0.4 / 0.6)])
    family = NegativeBinomial(torch.tensor([0.0]), torch.tensor([0.0]), logit)
    assert family.p_zero().item() == pytest.approx(0.6 + 0.4 * 0.5)
    assert family.mean().item() == pytest.approx(0.4)
    assert family.log_likelihood(torch.tensor([2])).exp().item() == pytest.approx(0.4 * 0.125)
    # cdf: 0.8, 0.9, 0.95, ..
    assert family.quantile([0.79, 0.81, 0.94, 0.951])[0].tolist() == [0.0, 1.0, 2.0, 3.0]


def test_negative_binomial_sample_has_mean_and_variance():
    family = NegativeBinomial(torch.tensor([4.0]).log(), torch.tensor([0.5]).log())
    draws = family.sample(100_000, generator=torch.Generator().manual_seed(0)).double()
    assert draws.mean().item() == pytest.approx(4.0, rel=0.02)
    assert draws.var().item() == pytest.approx(4.0 + 0.5 * 16, rel=0.05)


def test_wild_parameters_stay_finite():
    wild = torch.tensor([-200.0, 200.0, 0.0, 5.0])
    parameters = [each.clone().requires_grad_() for each in (wild, wild.flip(0), wild)]
    family = NegativeBinomial(*parameters)
    family.log_likelihood(torch.tensor([0.0, 3.0, 10.0, 1000.0])).sum().backward()
    assert all(each.grad is not None and torch.isfinite(each.grad).all() for each in parameters)
    with torch.no_grad():
        assert family.quantile([0.5, 0.995]).max() <= MAX_COUNT
