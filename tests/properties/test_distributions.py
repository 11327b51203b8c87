"""What every distribution must satisfy, on generated parameters."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from constellation.baselines.quantile_curve import interpolate_quantiles
from constellation.distributions.bgnbd import BgNbd
from constellation.distributions.gamma_gamma import GammaGamma
from constellation.distributions.negative_binomial import NegativeBinomial
from constellation.distributions.pareto_nbd import ParetoNbd
from constellation.distributions.ziln import ZeroInflatedLogNormal
from constellation.metrics import LEVELS

real = st.floats(-4, 4)
scale = st.floats(0.1, 8)


@given(real, real, st.floats(0.05, 2.5))
def test_ziln_cdf_inverts_quantile(logit, mu, sigma):
    family = ZeroInflatedLogNormal(*(torch.tensor([each], dtype=torch.float64) for each in (logit, mu, sigma)))
    quantile_L = family.quantile(LEVELS)
    assert (quantile_L.diff() >= 0).all()
    expected_L = torch.maximum(torch.as_tensor(np.array(LEVELS)), family.p_zero())
    torch.testing.assert_close(family.cdf(quantile_L)[0], expected_L, rtol=1e-8, atol=1e-8)


@given(real, real, st.floats(0.1, 1.5))
def test_ziln_mean_is_the_integral_of_its_quantiles(logit, mu, sigma):
    family = ZeroInflatedLogNormal(*(torch.tensor([each], dtype=torch.float64) for each in (logit, mu, sigma)))
    levels = (np.arange(50_000) + 0.5) / 50_000
    np.testing.assert_allclose(family.quantile(levels).mean(), family.mean().item(), rtol=0.02)


@given(st.floats(-3, 5), st.floats(-3, 1.5), st.none() | real)
def test_counts_sum_to_one_and_quantile_is_the_least_count_that_reaches_its_level(log_mean, log_dispersion, logit):
    inflation = None if logit is None else torch.tensor([logit], dtype=torch.float64)
    parameters = [torch.tensor([each], dtype=torch.float64) for each in (log_mean, log_dispersion)]
    family = NegativeBinomial(*parameters, inflation)
    quantile_L = family.quantile(LEVELS)[0]
    levels_L = torch.as_tensor(np.array(LEVELS))
    assert (family.cdf(quantile_L[None])[0] >= levels_L - 1e-12).all()
    assert (family.cdf(quantile_L[None] - 1)[0] < levels_L + 1e-12).all()
    counts = torch.arange(int(quantile_L[-1]) + 1, dtype=torch.float64)
    every = NegativeBinomial(
        *(each.expand(len(counts)) for each in parameters), None if inflation is None else inflation.expand(len(counts))
    )
    pmf = every.log_likelihood(counts).exp()
    assert abs(pmf.sum().item() - family.cdf(quantile_L[-1:]).item()) < 1e-9


@st.composite
def record(draw: st.DrawFn) -> tuple[float, float, float]:
    x = draw(st.sampled_from([0, 1, 2, 7, 60, 300]))
    watched = draw(st.floats(0.5, 80))
    return float(x), watched * draw(st.floats(0.05, 1)) if x else 0.0, watched


@given(scale, scale, scale, scale, record(), st.floats(0.5, 60))
@settings(max_examples=60)
def test_purchase_processes_are_consistent(first, second, third, fourth, row, h):
    x, t_x, T = (np.array([each]) for each in row)
    for model in (BgNbd(first, second, third, fourth), ParetoNbd(first, second, third, fourth)):
        alive = model.p_alive(x, t_x, T)[0]
        p_zero = model.p_zero(x, t_x, T, h)[0]
        expected = model.expected_purchases(x, t_x, T, h)[0]
        assert 0 <= alive <= 1
        assert 0 <= p_zero <= 1
        assert 1 - alive <= p_zero + 1e-4  # who has left buys nothing
        assert expected >= (1 - p_zero) * (1 - 1e-3) - 1e-9  # an integer count is at least 1 when it is not 0
        assert model.expected_purchases(x, t_x, T, h / 2)[0] <= expected * (1 + 1e-9)
        # No more than a customer who never leaves: the posterior mean rate times the horizon.
        assert expected <= alive * (model.r + x[0]) / (model.alpha + T[0]) * h * (1 + 1e-6)


@settings(max_examples=50)
@given(scale, scale, st.floats(1, 500), st.integers(1, 40), st.floats(0.5, 300))
def test_gamma_gamma_density_integrates_to_one_and_shrinks_towards_the_population(p, q, v, x, mean_spend):
    model = GammaGamma(p, q + 1, v)
    # Substitute z = exp(u); the density falls like exp(p x u) to the left and like exp(-q u) to the right.
    reach = min(40 / min(p * x, q + 1), 600)
    u = np.linspace(math.log(v) - reach, math.log(v) + reach, 6001)
    mass = np.exp(model.log_likelihood(np.full(len(u), float(x)), np.exp(u)) + u)
    assert abs(np.trapezoid(mass, u) - 1) < 1e-3
    population = model.expected_spend(np.array([0.0]), np.array([0.0]))[0]
    spend = model.expected_spend(np.array([float(x)]), np.array([mean_spend]))[0]
    assert min(population, mean_spend) * (1 - 1e-9) <= spend <= max(population, mean_spend) * (1 + 1e-9)


@given(st.lists(st.floats(-2, 9), min_size=5, max_size=5), st.floats(0, 1))
def test_interpolated_quantiles_never_fall(knots, p_zero):
    levels = np.array([0.05, 0.25, 0.5, 0.75, 0.95])
    curve = interpolate_quantiles(levels, np.array([knots]), np.array([p_zero]), LEVELS)[0]
    assert (np.diff(curve) >= -1e-9 * curve[1:]).all()
    assert (curve[p_zero >= LEVELS] == 0).all()
    exact = interpolate_quantiles(levels, np.array([sorted(knots)]), np.array([0.0]), levels)[0]
    np.testing.assert_allclose(exact, np.expm1(np.maximum(sorted(knots), 0)), rtol=1e-9, atol=1e-12)
