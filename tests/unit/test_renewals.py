"""Renewals against the recursion that defines them, and against coins."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from constellation.distributions.discrete_hazard import DiscreteHazard
from constellation.distributions.renewals import Renewals

DAYS = 60


def survival(mass_QD: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(1 - mass_QD.cumsum(axis=1))


@given(st.integers(0, 10_000))
def test_expected_days_and_counts_are_those_of_the_recursion(seed: int) -> None:
    rng = np.random.default_rng(seed)

    def drawn() -> np.ndarray:
        mass = rng.random((3, DAYS + 1)) ** 6
        mass[:, 0] = 0.0
        return mass / mass.sum(axis=1, keepdims=True) * rng.uniform(0.3, 1.0, (3, 1))

    first, gap = drawn(), drawn()
    per_day = np.zeros_like(first)
    for day in range(DAYS + 1):
        per_day[:, day] = first[:, day]
        for back in range(1, day + 1):
            per_day[:, day] += per_day[:, day - back] * gap[:, back]
    renewals = Renewals(survival(first), survival(gap))
    np.testing.assert_allclose(renewals.expected_per_day().numpy(), per_day, atol=1e-7)
    for days in (1, 17, DAYS):
        pmf = renewals.count_pmf(days).numpy()
        np.testing.assert_allclose(pmf[:, 0], 1 - first.cumsum(axis=1)[:, days], atol=1e-7)
        assert (pmf >= 0).all()
        np.testing.assert_allclose(pmf.sum(axis=1), 1.0, atol=2e-4)
        mean = (pmf * np.arange(pmf.shape[1])).sum(axis=1)
        np.testing.assert_allclose(mean, per_day[:, : days + 1].sum(axis=1), atol=0.01)


def test_a_coin_each_day_is_binomial() -> None:
    chance = 0.3
    stays = torch.tensor(0.7, dtype=torch.float64) ** torch.arange(DAYS + 1, dtype=torch.float64)
    renewals = Renewals(stays.unsqueeze(0), stays.unsqueeze(0))
    np.testing.assert_allclose(renewals.expected()[0].numpy(), chance * np.arange(DAYS + 1), atol=1e-6)
    pmf = renewals.count_pmf(20)[0].numpy()
    np.testing.assert_allclose(pmf, stats.binom.pmf(np.arange(len(pmf)), 20, chance), atol=1e-6)


def test_discounted_days_are_a_geometric_series() -> None:
    # 0.3 a day, each worth 0.99 of the day before: 0.3 x 0.99 (1 - 0.99^60) / (1 - 0.99).
    stays = torch.tensor(0.7, dtype=torch.float64) ** torch.arange(DAYS + 1, dtype=torch.float64)
    found = Renewals(stays.unsqueeze(0), stays.unsqueeze(0)).discounted(0.99 ** torch.arange(DAYS + 1))
    assert found.item() == pytest.approx(0.3 * 0.99 * (1 - 0.99**60) / 0.01, rel=1e-5)


def test_daily_survival_is_survival_at_each_day() -> None:
    torch.manual_seed(0)
    hazard = DiscreteHazard(torch.tensor([1.0, 3.0, 10.0]), torch.randn(4, 3, 2))
    daily_QD = hazard.daily_survival(25)
    for day in range(26):
        torch.testing.assert_close(daily_QD[:, day].float(), hazard.survival_at(day))
