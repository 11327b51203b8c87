"""Recalibration against hand-computed factors, forecasts of known faults, and totals with a known common shock."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from constellation.errors import InputError
from constellation.metrics import LEVELS
from constellation.metrics.value import gini_normalised, randomised_pit
from constellation.recalibration import (
    EXACT_CUSTOMERS,
    PastTotal,
    Recalibration,
    Recalibrator,
    Shock,
    relative_noise,
    total_interval,
)

DAY = 86_400_000_000
TARGET = "value_91d"


def answers(expected_Q: np.ndarray, quantiles_QL: np.ndarray | None = None, **others: np.ndarray) -> dict:
    said = {f"{TARGET}_expected": expected_Q} | {f"{TARGET}_{name}": values for name, values in others.items()}
    return said if quantiles_QL is None else said | {f"{TARGET}_quantiles": quantiles_QL}


def gamma_forecast(mean_Q: np.ndarray, shape: float) -> np.ndarray:
    """Quantiles [Q, L] of gamma distributions of these means."""
    return stats.gamma.ppf(LEVELS, shape)[None] / shape * mean_Q[:, None]


def coverage(realised_Q: np.ndarray, quantiles_QL: np.ndarray) -> float:
    pit_Q = randomised_pit(realised_Q, quantiles_QL)
    return float(np.mean((pit_Q >= 0.05) & (pit_Q <= 0.95)))


def test_a_factor_is_believed_as_far_as_lasting_bias_exceeds_shock_and_noise() -> None:
    learned = Recalibrator("scale", intervals=None, lasting_sd=0.2, prior_sd=0.1).learn(
        TARGET, np.full(50, 2.0), answers(np.ones(50)), "time slice"
    )
    # Every customer realised just twice what was expected: no noise, so belief is .04 / (.04 + .01) = .8.
    said = learned.apply(answers(np.array([0.0, 1.0, 3.0])))
    assert said[f"{TARGET}_expected"] == pytest.approx(np.array([0.0, 1.0, 3.0]) * 2**0.8)


def test_noise_lowers_belief() -> None:
    realised = np.array([0.0, 0.0, 0.0, 8.0])
    learned = Recalibrator("scale", intervals=None).learn(TARGET, realised, answers(np.ones(4)), "time slice")
    # Ratio 2; the residuals are -2, -2, -2 and 6, so the total of 8 has the relative noise sqrt(48) / 8.
    belief = 0.01 / (0.01 + 0.01 + 48 / 64)
    assert learned.mean(np.ones(1)) == pytest.approx(2**belief)


def test_refunds_do_not_make_a_factor_negative() -> None:
    learned = Recalibrator("scale").learn(TARGET, np.array([-5.0, -1.0]), answers(np.ones(2)), "time slice")
    assert learned.mean(np.ones(2)).tolist() == [1.0, 1.0]


def test_a_calibrated_forecast_stays_as_it_is() -> None:
    rng = np.random.default_rng(0)
    mean_Q = rng.gamma(2.0, 10.0, size=20_000)
    realised_Q = rng.gamma(1.5, mean_Q / 1.5)
    said = answers(mean_Q, gamma_forecast(mean_Q, 1.5))
    new = Recalibrator("scale").learn(TARGET, realised_Q, said, "time slice").apply(said)
    np.testing.assert_allclose(new[f"{TARGET}_expected"], mean_Q, rtol=0.02)
    inner = slice(10, 90)
    np.testing.assert_allclose(new[f"{TARGET}_quantiles"][:, inner], said[f"{TARGET}_quantiles"][:, inner], rtol=0.2)
    assert coverage(realised_Q, new[f"{TARGET}_quantiles"]) == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize(("said_shape", "before"), [(8.0, "too narrow"), (0.3, "too wide")])
def test_other_customers_are_covered_after_recalibration(said_shape: float, before: str) -> None:
    rng = np.random.default_rng(1)
    mean_Q = rng.gamma(2.0, 10.0, size=8000)
    realised_Q = rng.gamma(1.5, mean_Q / 1.5)
    said = answers(mean_Q, gamma_forecast(mean_Q, said_shape))
    half = {name: values[:4000] for name, values in said.items()}
    rest = {name: values[4000:] for name, values in said.items()}
    raw = coverage(realised_Q[4000:], rest[f"{TARGET}_quantiles"])
    assert raw < 0.75 if before == "too narrow" else raw > 0.93
    learned = Recalibrator("scale", lasting_sd=10.0).learn(TARGET, realised_Q[:4000], half, "cross-fitted by customer")
    assert len(learned.transform_GP) == 10
    new = learned.apply(rest)
    # Each group's distribution is drawn towards the old one, which a fifth of its rows stand for.
    assert coverage(realised_Q[4000:], new[f"{TARGET}_quantiles"]) == pytest.approx(0.9, abs=0.025)


def test_groups_of_predicted_value_are_corrected_each_for_itself() -> None:
    rng = np.random.default_rng(2)
    mean_Q = np.repeat([1.0, 100.0], 3000)
    shape_Q = np.repeat([0.5, 5.0], 3000)  # the small ones scatter widely, the large ones hardly
    realised_Q = rng.gamma(shape_Q, mean_Q / shape_Q)
    said = answers(mean_Q * rng.uniform(0.99, 1.01, 6000), gamma_forecast(mean_Q, 1.5))
    new = Recalibrator(lasting_sd=10.0).learn(TARGET, realised_Q, said, "time slice").apply(said)
    for rows in (slice(0, 3000), slice(3000, 6000)):
        assert coverage(realised_Q[rows], new[f"{TARGET}_quantiles"][rows]) == pytest.approx(0.9, abs=0.04)
    assert not np.allclose(said[f"{TARGET}_quantiles"], new[f"{TARGET}_quantiles"])


def test_isotonic_bends_the_mean_and_keeps_the_order() -> None:
    rng = np.random.default_rng(3)
    expected_Q = rng.uniform(0, 10, size=20_000)
    realised_Q = rng.gamma(4.0, expected_Q**2 / 10 / 4.0)
    recalibrator = Recalibrator(mean="isotonic", intervals=None, lasting_sd=10.0)
    learned = recalibrator.learn(TARGET, realised_Q, answers(expected_Q), "time slice")
    new_Q = learned.mean(np.linspace(0, 12, 200))
    assert np.all(np.diff(new_Q) > 0)
    assert learned.mean(np.array([2.0, 5.0, 9.0])) == pytest.approx([0.4, 2.5, 8.1], rel=0.2)
    fresh = answers(expected_Q)
    assert gini_normalised(realised_Q, learned.apply(fresh)[f"{TARGET}_expected"]) == pytest.approx(
        gini_normalised(realised_Q, expected_Q), abs=1e-9
    )


@given(st.integers(0, 10_000), st.integers(5, 300), st.sampled_from(["value_91d", "purchases_91d"]))
def test_what_comes_out_is_a_distribution(seed: int, num_rows: int, target: str) -> None:
    rng = np.random.default_rng(seed)
    mean_Q = rng.gamma(1.0, 3.0, size=num_rows)
    quantiles_QL = np.sort(rng.poisson(mean_Q[:, None], size=(num_rows, 100)), axis=1).astype(float)
    p_zero_Q = np.mean(quantiles_QL == 0, axis=1)
    said = {f"{target}_expected": mean_Q, f"{target}_quantiles": quantiles_QL, f"{target}_p_zero": p_zero_Q}
    before = {name: values.copy() for name, values in said.items()}
    learned = Recalibrator("scale").learn(target, rng.poisson(mean_Q * 1.5).astype(float), said, "time slice")
    assert Recalibration.from_json(learned.to_json()) == learned
    new = learned.apply(said)
    assert np.all(np.diff(new[f"{target}_quantiles"], axis=1) >= 0)
    assert np.all((new[f"{target}_p_zero"] >= 0) & (new[f"{target}_p_zero"] <= 1))
    assert np.array_equal(np.argsort(new[f"{target}_expected"], kind="stable"), np.argsort(mean_Q, kind="stable"))
    for name, values in said.items():
        assert np.array_equal(values, before[name]), "the answers handed in must stay as they are"
    if target.startswith("purchases"):
        assert np.array_equal(new[f"{target}_quantiles"], np.rint(new[f"{target}_quantiles"])), "counts stay whole"
        # The share of members at zero and the chance of zero are one thing said twice.
        share_Q = np.mean(new[f"{target}_quantiles"] == 0, axis=1)
        assert np.abs(share_Q - new[f"{target}_p_zero"]).max() < 0.05


def test_a_total_of_independent_customers_is_their_convolution() -> None:
    quantiles_QL = np.repeat(stats.poisson.ppf(LEVELS, 2.0)[None], 400, axis=0)
    low, high = total_interval(np.full(400, 2.0), quantiles_QL)
    exact = stats.poisson.ppf([0.05, 0.95], 800.0)
    assert (low, high) == pytest.approx(tuple(exact), rel=0.012)
    assert relative_noise(np.full(400, 2.0), quantiles_QL) == pytest.approx(1 / np.sqrt(800), rel=0.02)


def test_many_customers_are_summed_by_the_normal() -> None:
    one = stats.gamma.ppf(LEVELS, 2.0)[None]
    few = np.repeat(one, EXACT_CUSTOMERS, axis=0)
    many = np.repeat(one, EXACT_CUSTOMERS + 1, axis=0)
    exact, normal = (total_interval(np.full(len(q), 2.0), q) for q in (few, many))
    assert normal == pytest.approx(exact, rel=0.005)


def test_without_a_past_the_shock_is_the_prior() -> None:
    assert Recalibrator(prior_sd=0.13, prior_windows=4).learn_shock([]) == Shock(pytest.approx(0.13), 4.0, 0.0)
    assert Recalibrator(shock=None).learn_shock([PastTotal(0, 91, 1.0, 2.0, 0.0)]) == Shock()


def test_the_shock_is_learned_from_windows_that_do_not_overlap() -> None:
    def past(day: float, ratio: float, noise: float = 0.0) -> PastTotal:
        return PastTotal(round(day * DAY), 30, 100.0, 100.0 * ratio, noise)

    apart = [past(0, np.exp(0.3)), past(30, np.exp(-0.3)), past(60, np.exp(0.3))]
    found = Recalibrator(prior_sd=0.1, prior_windows=3).learn_shock(apart)
    assert found.sd == pytest.approx(np.sqrt((3 * 0.01 + 3 * 0.09) / 6))
    assert (found.dof, found.num_windows) == (6.0, 3.0)
    same_days = Recalibrator().learn_shock([past(0, 1.3), past(0, 1.3), past(0, 1.3)])
    assert same_days.num_windows == 1.0
    chance = Recalibrator(prior_sd=0.1, prior_windows=3).learn_shock([past(0, np.exp(0.3), noise=0.3)])
    assert chance.sd == pytest.approx(np.sqrt(3 * 0.01 / 4)), "what chance explains is no shock"


def test_totals_with_a_common_shock_are_covered_only_by_who_learned_it() -> None:
    rng = np.random.default_rng(5)
    quantiles_QL = np.repeat(stats.gamma.ppf(LEVELS, 1.0)[None], 500, axis=0)
    noise = relative_noise(np.ones(500), quantiles_QL)
    num_tries = 60
    plain = wide = 0
    for seed in range(num_tries):
        totals = np.exp(0.2 * rng.standard_normal(9)) * rng.gamma(500.0, 1.0, size=9)
        past = [PastTotal(place * 91 * DAY, 91, 500.0, float(total), noise) for place, total in enumerate(totals[:8])]
        shock = Recalibrator().learn_shock(past)
        for learned in (None, shock):
            low, high = total_interval(np.ones(500), quantiles_QL, learned, seed=seed)
            covered = low <= totals[8] <= high
            plain, wide = (plain + covered, wide) if learned is None else (plain, wide + covered)
    assert plain / num_tries < 0.5
    assert 0.8 <= wide / num_tries <= 0.98


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mean": "spline"}, "recalibration.mean"),
        ({"intervals": "bootstrap"}, "recalibration.intervals"),
        ({"prior_sd": 0.0}, "above 0"),
        ({"folds": 1}, "at least 2"),
    ],
)
def test_settings_that_mean_nothing_are_refused(options: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Recalibrator(**options)


def test_a_distortion_seen_in_one_slice_is_believed_by_half() -> None:
    said = answers(np.ones(4000), np.repeat(np.arange(1.0, 101.0)[None], 4000, axis=0))
    realised_Q = np.full(4000, 50.5)  # the transform is 0.5 for everybody
    half, whole = (Recalibrator(lasting_sd=lasting).learn(TARGET, realised_Q, said, "slice") for lasting in (0.1, 1e6))
    grid = np.linspace(0, 1, len(whole.transform_GP[0]))
    np.testing.assert_allclose(half.transform_GP[0], (np.array(whole.transform_GP[0]) + grid) / 2, atol=1e-6)
    assert whole.transform_GP[0][len(grid) // 2 + 1] > 0.9
