"""What holds for any data: order of rows, monotone transforms, weights as copies, the truth as its own forecast."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from constellation.metrics import LEVELS, value
from constellation.metrics.ranking import product_columns
from constellation.metrics.value import ValueColumns, ValueStatistics

seeds = st.integers(0, 2**32 - 1)


def made_up(seed: int, num_rows: int = 60) -> ValueColumns:
    """Zero-inflated values with refunds and ties in values and predictions; no two totals cancel."""
    generator = np.random.default_rng(seed)
    realised = np.where(generator.random(num_rows) < 0.4, 0.0, np.round(generator.lognormal(3, 1, num_rows)))
    realised[generator.random(num_rows) < 0.05] = -3.0
    realised[:2] = 500.0, 0.0
    predicted = np.round(np.abs(realised) * generator.lognormal(0, 1, num_rows) + generator.integers(0, 4, num_rows))
    return ValueColumns.of(
        realised,
        predicted,
        np.round(predicted / 2),
        np.round(generator.random(num_rows), 1),
        generator.random(num_rows),
        generator.random(num_rows),
    )


def metrics_of(columns: ValueColumns, weights: np.ndarray | None = None) -> dict[str, float]:
    weights = np.ones(len(columns.realised)) if weights is None else weights
    return {name: float(found[0]) for name, found in ValueStatistics(columns)(weights[None].astype(float)).items()}


@given(seeds)
def test_order_of_rows_does_not_matter(seed: int):
    columns = made_up(seed)
    order = np.random.default_rng(seed).permutation(len(columns.realised))
    assert metrics_of(columns.take(order)) == pytest.approx(metrics_of(columns), nan_ok=True)


@given(seeds)
def test_a_weight_is_a_number_of_copies(seed: int):
    columns = made_up(seed)
    weights = np.random.default_rng(seed).integers(0, 4, len(columns.realised))
    weights[:2] = 1
    copies = columns.take(np.repeat(np.arange(len(weights)), weights))
    assert metrics_of(columns, weights) == pytest.approx(metrics_of(copies), nan_ok=True)


@given(seeds)
def test_gini_and_spearman_depend_on_the_order_of_predictions_only(seed: int):
    columns = made_up(seed)
    for transformed in (np.log1p(columns.expected), columns.expected**3 + 7, columns.expected * 1e-6):
        for metric in (value.gini_normalised, value.spearman):
            assert metric(columns.realised, transformed) == pytest.approx(metric(columns.realised, columns.expected))


@given(seeds)
def test_gini_of_a_perfect_ranking_is_one_and_never_more(seed: int):
    columns = made_up(seed)
    assert value.gini_normalised(columns.realised, np.exp(columns.realised / 100)) == pytest.approx(1)
    assert value.gini_normalised(columns.realised, -columns.realised) == pytest.approx(-1)
    assert abs(value.gini_normalised(columns.realised, columns.expected)) <= 1 + 1e-12


@given(seeds)
def test_rank_metrics_agree_with_scipy(seed: int):
    from scipy.stats import mannwhitneyu, spearmanr

    columns = made_up(seed)
    assert columns.p_zero is not None
    found = metrics_of(columns)
    assert found["spearman"] == pytest.approx(spearmanr(columns.realised, columns.expected).statistic)
    chance, buys = 1 - columns.p_zero, columns.realised > 0
    pairs_won = mannwhitneyu(chance[buys], chance[~buys]).statistic
    assert found["auc_any"] == pytest.approx(pairs_won / (buys.sum() * (~buys).sum()))


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=1, max_size=20))
def test_crps_of_a_point_forecast_is_the_absolute_error(pairs: list[tuple[float, float]]):
    realised, point = np.array(pairs).T
    found = value.crps(realised, np.repeat(point[:, None], 100, axis=1))
    np.testing.assert_allclose(found, np.abs(point - realised), rtol=1e-9, atol=1e-6)


@given(seeds)
def test_crps_is_the_energy_form_of_the_ensemble(seed: int):
    generator = np.random.default_rng(seed)
    members, realised = np.round(generator.normal(size=(5, 11)), 1), generator.normal(size=5)
    pairs = np.abs(members[:, :, None] - members[:, None, :]).mean(axis=(1, 2))
    energy = np.abs(members - realised[:, None]).mean(axis=1) - pairs / 2
    np.testing.assert_allclose(value.crps(realised, members), energy, atol=1e-12)


@pytest.mark.parametrize("family", ["continuous", "zero_inflated", "count"])
def test_pit_is_uniform_when_the_forecast_is_the_truth(family: str):
    from scipy.stats import expon, kstest, poisson

    generator = np.random.default_rng(7)
    scale = generator.lognormal(1, 0.7, 20_000)
    if family == "count":
        rates = np.array([0.2, 0.9, 3.0, 12.0])
        kind = generator.integers(0, 4, len(scale))
        realised = generator.poisson(rates[kind]).astype(float)
        quantiles = poisson.ppf(LEVELS, rates[:, None])[kind]
    else:
        p_zero = 0.35 if family == "zero_inflated" else 0.0
        is_zero = generator.random(len(scale)) < p_zero
        realised = np.where(is_zero, 0.0, generator.exponential(scale))
        positive_levels = np.clip((LEVELS - p_zero) / (1 - p_zero), 0, 1)
        quantiles = scale[:, None] * expon.ppf(positive_levels)
    pit = value.randomised_pit(realised, quantiles, seed=1)
    assert np.mean((pit >= 0.05) & (pit <= 0.95)) == pytest.approx(0.90, abs=0.007)  # three standard errors
    # A hundred members know the distribution to half a hundredth; the rest is the noise of 20,000 draws.
    assert kstest(pit, "uniform").statistic < 0.005 + 1.63 / np.sqrt(len(pit))


@given(seeds)
def test_ranking_agrees_with_a_full_sort(seed: int):
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 5, (6, 25)).astype(float)
    sets = [np.unique(generator.integers(0, 25, generator.integers(1, 6))) for _ in range(6)]
    recent = [np.unique(generator.integers(0, 25, generator.integers(0, 6))) for _ in range(6)]

    def ragged(parts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        return np.concatenate(parts), np.cumsum([0, *map(len, parts)])

    columns = product_columns(scores, ragged(sets), ragged(recent), k=4)
    for row, bought in enumerate(sets):
        ranking = sorted(range(25), key=lambda product, row=row: (-scores[row, product], product))
        gain = sum(1 / np.log2(place + 2) for place, product in enumerate(ranking[:4]) if product in bought)
        best = sum(1 / np.log2(place + 2) for place in range(min(4, len(bought))))
        assert columns["ndcg_at_4"][row] == pytest.approx(gain / best)
        assert columns["hit_rate_at_4"][row] == bool(set(ranking[:4]) & set(bought))
        new = set(bought) - set(recent[row])
        ranking_of_new = [product for product in ranking if product not in recent[row]][:4]
        wanted = len(new & set(ranking_of_new)) / len(new) if new else np.nan
        assert columns["recall_new_at_4"][row] == pytest.approx(wanted, nan_ok=True)


@settings(max_examples=20)
@given(seeds)
def test_the_truth_beats_a_distorted_forecast_by_crps(seed: int):
    from scipy.stats import expon

    realised = np.random.default_rng(seed).exponential(size=4000)
    truth = np.tile(expon.ppf(LEVELS), (4000, 1))
    scores = [value.crps(realised, truth * factor).mean() for factor in (1.0, 0.6, 1.6)]
    assert scores[0] == min(scores)
