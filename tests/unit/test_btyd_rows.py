"""Purchase processes with parameters per row: equal to the classical models, and to `lifetimes` where it has them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import integrate, stats

from constellation.distributions.bgnbd import BgNbd
from constellation.distributions.bgnbd_rows import BgNbdRows, beta_nodes
from constellation.distributions.count_tables import quantile, wide_enough
from constellation.distributions.gamma_gamma import GammaGamma
from constellation.distributions.gamma_gamma_rows import GammaGammaRows, gamma_at
from constellation.distributions.maximum_likelihood import as_rows
from constellation.distributions.mbgnbd import MbgNbd
from constellation.distributions.pareto_nbd import ParetoNbd
from constellation.distributions.pareto_nbd_rows import ParetoNbdRows
from tests.unit.test_btyd import HOLDOUT_WEEKS, cdnow

RECORDS = (
    np.array([0.0, 1, 4, 25, 300, 2]),
    np.array([0.0, 5, 20, 38.5, 40, 1]),
    np.array([38.0, 30, 39, 39, 41, 60]),
)
MODELS = [
    BgNbd(0.2426, 4.414, 0.793, 2.426),
    BgNbd(2.0, 3.0, 30.0, 400.0),
    BgNbd(0.5, 3.0, 0.05, 0.3),
    MbgNbd(0.5, 6.0, 0.8, 2.4),
    ParetoNbd(0.5533, 10.578, 0.6062, 11.669),
    ParetoNbd(2.0, 3.0, 5.0, 200.0),
    ParetoNbd(2.0, 3.0, 1.0, 20.0),
]
models = pytest.mark.parametrize("model", MODELS, ids=lambda model: f"{type(model).__name__}_{model.r}_{model.alpha}")


@models
def test_rows_are_the_classical_model(model):
    rows, records = model.rows(6), as_rows(*RECORDS)
    np.testing.assert_allclose(rows.log_likelihood(*records), model.log_likelihood(*RECORDS), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(rows.p_alive(*records), model.p_alive(*RECORDS), rtol=1e-9)
    np.testing.assert_allclose(rows.p_zero(*records, 39.0), model.p_zero(*RECORDS, 39.0), rtol=1e-8)
    expected = model.expected_purchases(*RECORDS, 39.0)
    np.testing.assert_allclose(rows.expected_purchases(*records, 39.0), expected, rtol=1e-7)


@models
def test_count_probabilities_have_the_closed_form_mean_and_the_law_of_the_draws(model):
    pmf = model.count_pmf(*RECORDS, 39.0, 1200)
    assert (pmf >= 0).all()
    np.testing.assert_allclose(pmf.sum(axis=1), 1.0, atol=1e-9)
    np.testing.assert_allclose(pmf[:, 0], model.p_zero(*RECORDS, 39.0), atol=1e-9)
    np.testing.assert_allclose(pmf @ np.arange(1200), model.expected_purchases(*RECORDS, 39.0), rtol=1e-8)
    draws = model.sample_purchases(*RECORDS, 39.0, 20_000, np.random.default_rng(0)).astype(int)
    shares = np.stack([np.bincount(row, minlength=1200)[:1200] / 20_000 for row in draws])
    # Kolmogorov's distance at 20,000 draws: over 0.014 once in a thousand times.
    assert np.abs(shares.cumsum(1) - pmf.cumsum(1)).max() < 0.014


@pytest.mark.parametrize("rows", [BgNbdRows, ParetoNbdRows])
def test_gradients_of_the_likelihood(rows):
    records = [column[[0, 1, 2, 3, 5]] for column in as_rows(*RECORDS)]
    generator = torch.Generator().manual_seed(0)
    parameters = [(0.5 + torch.rand(5, generator=generator, dtype=torch.float64)).requires_grad_() for _ in range(4)]
    assert torch.autograd.gradcheck(lambda *each: rows(*each).log_likelihood(*records), parameters, atol=1e-6)


def test_gradient_of_gamma_gamma():
    record = as_rows(np.array([0.0, 1, 6]), np.array([0.0, 80, 120]), np.array([1.0, 3, 0]), np.array([30.0, 99, 0]))
    parameters = [
        torch.tensor(each, dtype=torch.float64, requires_grad=True) for each in ([6.0] * 3, [3.7] * 3, [15.0] * 3)
    ]
    assert torch.autograd.gradcheck(lambda *each: GammaGammaRows(*each).log_likelihood(*record), parameters, atol=1e-6)
    assert GammaGammaRows(*parameters).log_likelihood(*record)[2] == 0  # no new purchase: nothing said


def test_each_row_has_its_own_parameters():
    mixed = ParetoNbdRows(*as_rows([0.5, 2.0], [10.0, 3.0], [0.6, 5.0], [11.0, 200.0]))
    x, t_x, T = (column[1:3] for column in RECORDS)
    found = mixed.expected_purchases(*as_rows(x, t_x, T), 20.0)
    for row, model in enumerate([ParetoNbd(0.5, 10.0, 0.6, 11.0), ParetoNbd(2.0, 3.0, 5.0, 200.0)]):
        alone = model.expected_purchases(x[row : row + 1], t_x[row : row + 1], T[row : row + 1], 20.0)
        assert found[row].item() == pytest.approx(alone[0], rel=1e-9)


@pytest.mark.parametrize(("a", "b"), [(0.8, 2.4), (0.05, 25.3), (40.0, 3000.0), (0.3, 0.2), (5.0, 0.4)])
def test_means_over_beta(a, b):
    node, weight = beta_nodes(*as_rows([a], [b]))
    assert (weight * node).sum().item() == pytest.approx(a / (a + b), rel=1e-6)
    assert (weight * node.square()).sum().item() == pytest.approx(a * (a + 1) / ((a + b) * (a + b + 1)), rel=1e-5)
    wanted, _ = integrate.quad(lambda level: 1 / (1 + 7 * stats.beta.ppf(level, a, b)), 0, 1, limit=200)
    assert (weight / (1 + 7 * node)).sum().item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_lifetimes_agrees_on_mbg_nbd():
    lifetimes = pytest.importorskip("lifetimes", reason="the oracle package lifetimes is not installed")
    x, t_x, T, _ = cdnow("sample")
    ours = MbgNbd.fit(x, t_x, T)
    theirs = lifetimes.ModifiedBetaGeoFitter()
    theirs.params_ = pd.Series(vars(ours))
    log_likelihood = theirs._negative_log_likelihood(np.log(list(vars(ours).values())), x, t_x, T, np.ones_like(x), 0.0)
    assert ours.log_likelihood(x, t_x, T).mean() == pytest.approx(-float(log_likelihood), rel=1e-9)
    rows = slice(0, 400)
    alive = theirs.conditional_probability_alive(x[rows], t_x[rows], T[rows])
    np.testing.assert_allclose(ours.p_alive(x[rows], t_x[rows], T[rows]), np.asarray(alive), rtol=1e-8)
    expected = theirs.conditional_expected_number_of_purchases_up_to_time(HOLDOUT_WEEKS, x[rows], t_x[rows], T[rows])
    found = ours.expected_purchases(x[rows], t_x[rows], T[rows], HOLDOUT_WEEKS)
    np.testing.assert_allclose(found, np.asarray(expected), rtol=1e-5)
    # Their own fit is no better than ours.
    theirs.fit(x, t_x, T)
    best = [theirs.params_[name] for name in ("r", "alpha", "a", "b")]
    assert ours.log_likelihood(x, t_x, T).sum() >= MbgNbd(*best).log_likelihood(x, t_x, T).sum() - 1e-3


def test_mbg_nbd_gradient():
    model = MbgNbd(0.5, 6.0, 0.8, 2.4)
    _, gradient = model._log_likelihood_and_gradient(*RECORDS)
    parameters = np.array(list(vars(model).values()))
    for place, parameter in enumerate(parameters):
        step = np.zeros(4)
        step[place] = 1e-6 * parameter
        up, down = (MbgNbd(*(parameters + sign * step)).log_likelihood(*RECORDS) for sign in (1, -1))
        np.testing.assert_allclose(gradient[:, place], (up - down) / (2 * step[place]), rtol=1e-5, atol=1e-6)


def test_gamma_gamma_rows_are_the_classical_model():
    model = GammaGamma(6.25, 3.74, 15.44)
    rows = GammaGammaRows(*(torch.full((2,), each, dtype=torch.float64) for each in (6.25, 3.74, 15.44)))
    count, mean = np.array([1.0, 7.0]), np.array([80.0, 21.0])
    nothing = torch.zeros(2)
    found = rows.log_likelihood(nothing, nothing, *as_rows(count, count * mean))
    np.testing.assert_allclose(found, model.log_likelihood(count, mean), rtol=1e-12)
    # What is known of the past turns q into q + p x and v into v + total.
    later = rows.log_likelihood(*as_rows([2.0, 2.0], [60.0, 60.0], count, count * mean))
    np.testing.assert_allclose(later, GammaGamma(6.25, 3.74 + 12.5, 75.44).log_likelihood(count, mean), rtol=1e-12)
    spend = rows.expected_spend(*as_rows(count, count * mean))
    np.testing.assert_allclose(spend, model.expected_spend(count, mean), rtol=1e-12)


def test_money_quantiles_are_those_of_the_mixture():
    model = GammaGamma(6.25, 3.74, 15.44)
    pmf = np.array([[0.5, 0.2, 0.1, 0.2], [0.1, 0.0, 0.9, 0.0]])
    levels = np.array([0.3, 0.55, 0.7, 0.9, 0.99])
    found = model.total_ratio_quantiles(np.array([0.0, 3.0]), pmf, levels)
    for row, x in enumerate((0, 3)):
        parts = [stats.betaprime(6.25 * n, 6.25 * x + 3.74) for n in (1, 2, 3)]
        cdf = pmf[row, 0] + sum(p * part.cdf(found[row]) for p, part in zip(pmf[row, 1:], parts, strict=True))
        wanted = np.maximum(levels, pmf[row, 0])
        np.testing.assert_allclose(cdf, wanted, atol=1e-3)
    assert found[0, 0] == 0
    assert found[1, 0] > 0


@pytest.mark.parametrize("shape", [0.3, 1.0, 5.0, 50.0])
def test_gammas_at_uniforms_follow_their_law(shape):
    points = torch.quasirandom.SobolEngine(3, scramble=True, seed=1).draw(4096).double().clamp(1e-6, 1 - 1e-6)
    drawn = gamma_at(torch.tensor([[shape]], dtype=torch.float64), points)[0]
    assert stats.kstest(drawn.numpy(), stats.gamma(shape).cdf).statistic < 0.012
    assert drawn.mean().item() == pytest.approx(shape, rel=0.01)


def test_tables_are_as_wide_as_they_must_be():
    mean = torch.tensor([0.5, 30.0, 300.0], dtype=torch.float64)

    def table(rows, width):
        return torch.tensor(stats.poisson.pmf(np.arange(width), mean[rows].numpy()[:, None]))

    widths = {int(row): pmf.shape[1] for rows, pmf in wide_enough(table, 3) for row in rows}
    assert widths == {0: 32, 1: 64, 2: 512}
    found = quantile(table(torch.arange(3), 512), torch.tensor([0.05, 0.5, 0.95]))
    np.testing.assert_array_equal(found, stats.poisson.ppf([0.05, 0.5, 0.95], mean.numpy()[:, None]))
