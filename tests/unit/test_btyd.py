"""The classical models on CDNOW: published parameters, likelihoods, and the `lifetimes` package as an oracle.

Parameters of the sample are Fader and Hardie's; those of the master, likelihoods and totals are of independent fits.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import special

from constellation.distributions.bgnbd import BgNbd
from constellation.distributions.gamma_gamma import GammaGamma
from constellation.distributions.maximum_likelihood import grouped
from constellation.distributions.pareto_nbd import ParetoNbd
from constellation.errors import InputError

HOLDOUT_WEEKS = 39.0
CALIBRATION_END = pd.Timestamp("1997-09-30")

SAMPLE = (np.array([0.0, 1, 4, 25]), np.array([0.0, 5, 20, 38.5]), np.array([38.0, 30, 39, 39]))


@lru_cache
def cdnow(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x, t_x, T (weeks) and mean spend of repeat days, by the classical protocol."""
    package = importlib.util.find_spec("lifetimes")
    if package is None or package.origin is None:
        pytest.skip("the CDNOW text files come with the package lifetimes, which is not installed")
    path = Path(package.origin).parent / "datasets" / f"CDNOW_{name}.txt"
    rows = [line.split() for line in path.read_text().splitlines()]
    rows = [(row[0], row[-3], float(row[-1])) for row in rows if row and row[-3].isdigit()]
    table = pd.DataFrame(rows, columns=["customer", "day", "spend"])
    table["day"] = pd.to_datetime(table["day"])
    table = table[table["day"] <= CALIBRATION_END].groupby(["customer", "day"], as_index=False)["spend"].sum()
    by_customer = table.groupby("customer")
    first = by_customer["day"].transform("min")
    days = by_customer["day"].agg(["min", "max", "size"])
    spend = table[table["day"] > first].groupby("customer")["spend"].mean().reindex(days.index)
    return (
        (days["size"] - 1).to_numpy(dtype=np.float64),
        ((days["max"] - days["min"]).dt.days / 7).to_numpy(),
        ((CALIBRATION_END - days["min"]).dt.days / 7).to_numpy(),
        spend.to_numpy(),
    )


PUBLISHED = [
    ("sample", BgNbd, (0.2426, 4.414, 0.793, 2.426), -9582.43, 1653.4),
    ("sample", ParetoNbd, (0.5533, 10.578, 0.6062, 11.669), -9594.98, 1665.5),
    ("master", BgNbd, (0.2516, 4.789, 0.723, 2.161), -95368.44, 16873.7),
    ("master", ParetoNbd, (0.5974, 11.586, 0.522, 8.828), -95415.12, 17153.2),
]


@pytest.mark.parametrize(("name", "model", "parameters", "log_likelihood", "holdout"), PUBLISHED)
def test_published_parameters_to_three_digits(name, model, parameters, log_likelihood, holdout):
    x, t_x, T, _ = cdnow(name)
    fitted = model.fit(x, t_x, T)
    np.testing.assert_allclose(list(vars(fitted).values()), parameters, rtol=1e-3)
    assert fitted.log_likelihood(x, t_x, T).sum() == pytest.approx(log_likelihood, abs=0.01)
    assert fitted.expected_purchases(x, t_x, T, HOLDOUT_WEEKS).sum() == pytest.approx(holdout, abs=0.1)


def test_published_gamma_gamma_to_three_digits():
    x, _, _, spend = cdnow("sample")
    repeated = (x > 0) & (spend > 0)
    fitted = GammaGamma.fit(x[repeated], spend[repeated])
    np.testing.assert_allclose([fitted.p, fitted.q, fitted.v], [6.25, 3.74, 15.44], rtol=2e-3)


def test_gamma_gamma_does_not_depend_on_the_currency():
    x, _, _, spend = cdnow("sample")
    repeated = (x > 0) & (spend > 0)
    dollars, cents = (GammaGamma.fit(x[repeated], spend[repeated] * unit) for unit in (1, 100))
    assert cents.v == pytest.approx(100 * dollars.v, rel=1e-4)
    assert cents.p == pytest.approx(dollars.p, rel=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_lifetimes_agrees_on_p_alive_and_expected_purchases():
    lifetimes = pytest.importorskip("lifetimes", reason="the oracle package lifetimes is not installed")
    x, t_x, T, _ = cdnow("sample")
    rows = slice(0, 400)
    x, t_x, T = x[rows], t_x[rows], T[rows]
    ours_bg, ours_pareto = BgNbd(0.2426, 4.414, 0.793, 2.426), ParetoNbd(0.5533, 10.578, 0.6062, 11.669)
    bg, pareto = lifetimes.BetaGeoFitter(), lifetimes.ParetoNBDFitter()
    bg.params_, pareto.params_ = pd.Series(vars(ours_bg)), pd.Series(vars(ours_pareto))
    for ours, theirs in ((ours_bg, bg), (ours_pareto, pareto)):
        alive = theirs.conditional_probability_alive(x, t_x, T)
        np.testing.assert_allclose(ours.p_alive(x, t_x, T), np.asarray(alive), rtol=1e-6)
        purchases = theirs.conditional_expected_number_of_purchases_up_to_time(HOLDOUT_WEEKS, x, t_x, T)
        np.testing.assert_allclose(ours.expected_purchases(x, t_x, T, HOLDOUT_WEEKS), np.asarray(purchases), rtol=1e-5)


def test_pareto_likelihood_equals_the_hypergeometric_form():
    """Eq. (17) of Fader and Hardie's note, where the library's function is well-behaved."""
    model = ParetoNbd(0.5533, 10.578, 0.6062, 11.669)
    r, alpha, s, beta = 0.5533, 10.578, 0.6062, 11.669
    x, t_x, T = (each[:3] for each in SAMPLE)

    def a_0(t: np.ndarray) -> np.ndarray:
        z = (beta - alpha) / (beta + t)
        return special.hyp2f1(r + s + x, r + x, r + s + x + 1, z) / (beta + t) ** (r + s + x)

    alive = (alpha + T) ** -(r + x) * (beta + T) ** -s
    died = s / (r + s + x) * (a_0(t_x) - a_0(T))
    constant = special.gammaln(r + x) - special.gammaln(r) + r * np.log(alpha) + s * np.log(beta)
    np.testing.assert_allclose(model.log_likelihood(x, t_x, T), constant + np.log(alive + died), rtol=1e-9)


@pytest.mark.parametrize("model", [BgNbd(0.24, 4.4, 0.8, 2.4), ParetoNbd(0.55, 10.6, 0.61, 11.7), BgNbd(2, 3, 1.0, 9)])
def test_gradients_are_those_of_the_likelihood(model):
    _, gradient = model._log_likelihood_and_gradient(*SAMPLE)
    parameters = np.array(list(vars(model).values()))
    for place, parameter in enumerate(parameters):
        step = np.zeros(4)
        step[place] = 1e-6 * parameter
        up, down = (type(model)(*(parameters + sign * step)).log_likelihood(*SAMPLE) for sign in (1, -1))
        np.testing.assert_allclose(gradient[:, place], (up - down) / (2 * step[place]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", [BgNbd(1.2, 5, 0.8, 2.4), ParetoNbd(1.2, 5, 0.61, 11.7), BgNbd(1.2, 5, 1.0, 4)])
def test_samples_have_the_closed_form_mean_and_share_of_zeros(model):
    draws = model.sample_purchases(*SAMPLE, 13.0, 40_000, np.random.default_rng(0))
    np.testing.assert_allclose(draws.mean(axis=1), model.expected_purchases(*SAMPLE, 13.0), rtol=0.03)
    np.testing.assert_allclose((draws == 0).mean(axis=1), model.p_zero(*SAMPLE, 13.0), atol=0.01)


def test_very_frequent_buyers_get_a_finite_forecast():
    """Library hypergeometric functions give NaN or a wrong sign here."""
    x, t_x, T = np.array([50.0, 300.0, 2000.0]), np.array([25.0, 40.0, 50.0]), np.array([25.5, 41.0, 52.0])
    forecast = BgNbd(0.94, 0.22, 1.39, 19.9).expected_purchases(x, t_x, T, 9.0)
    assert np.isfinite(forecast).all()
    assert (forecast > 0).all()
    assert (forecast < x / T * 9.0 * 1.1).all()


def test_gamma_gamma_samples_have_the_closed_form_mean():
    model = GammaGamma(6.25, 3.74, 15.44)
    x, mean_spend = np.array([0.0, 1.0, 10.0]), np.array([0.0, 80.0, 20.0])
    purchases = np.full((3, 60_000), 4)
    purchases[:, :1000] = 0
    total = model.sample_total(x, mean_spend, purchases, np.random.default_rng(0))
    assert (total[:, :1000] == 0).all()
    np.testing.assert_allclose(total[:, 1000:].mean(axis=1), 4 * model.expected_spend(x, mean_spend), rtol=0.02)
    # (p (v + x z)) / (p x + q - 1) by hand for the second customer.
    assert model.expected_spend(x, mean_spend)[1] == pytest.approx(6.25 * (15.44 + 80) / (6.25 + 2.74))


def test_parameters_are_recovered_from_a_simulated_population():
    rng, truth = np.random.default_rng(3), ParetoNbd(1.5, 8.0, 0.8, 12.0)
    num_customers, T = 4000, 52.0
    rate, death = rng.gamma(truth.r, 1 / truth.alpha, num_customers), rng.gamma(truth.s, 1 / truth.beta, num_customers)
    end = np.minimum(rng.exponential(1 / death), T)
    x = rng.poisson(rate * end).astype(float)
    t_x = np.where(x > 0, end * rng.random(num_customers) ** (1 / np.maximum(x, 1)), 0.0)  # the last of x uniform times
    fitted = ParetoNbd.fit(x, t_x, np.full(num_customers, T))
    at_truth = truth.log_likelihood(x, t_x, np.full(num_customers, T)).sum()
    at_fit = fitted.log_likelihood(x, t_x, np.full(num_customers, T)).sum()
    assert 0 <= at_fit - at_truth < 8  # half a chi-squared of four degrees is 2 on average
    assert fitted.r / fitted.alpha == pytest.approx(truth.r / truth.alpha, rel=0.1)


def test_equal_rows_are_grouped():
    (x, t_x), weight = grouped(np.array([1, 2, 1, 1]), np.array([5.0, 6.0, 5.0, 4.0]))
    rows = sorted(zip(x.tolist(), t_x.tolist(), weight.tolist(), strict=True))
    assert rows == [(1.0, 4.0, 1.0), (1.0, 5.0, 2.0), (2.0, 6.0, 1.0)]


@pytest.mark.parametrize("row", [(-1, 0, 5), (2, 6, 5), (0, 1, 5), (1, np.nan, 5)])
def test_impossible_records_are_named(row):
    columns = [np.array([1.0, each]) for each in row]
    columns[1][0], columns[2][0] = 2.0, 4.0
    for model in (BgNbd, ParetoNbd):
        with pytest.raises(InputError, match="found 1 rows"):
            model.fit(*columns)


def test_gamma_gamma_refuses_customers_without_spend():
    with pytest.raises(InputError, match="1 of them without"):
        GammaGamma.fit(np.array([1.0, 2.0]), np.array([10.0, 0.0]))
