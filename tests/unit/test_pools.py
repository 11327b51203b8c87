"""The linear pool of two forecasts: its quantiles, its CRPS, and the share that the evidence asks for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from constellation.distributions.pools import Evidence, crps_of, pool_quantiles, squared_distance
from constellation.metrics.value import crps, gini_normalised, spearman

MANY = torch.tensor((np.arange(2000) + 0.5) / 2000)


def members(rng: np.random.Generator, num_rows: int = 20, scale: float = 1.0) -> np.ndarray:
    """[Q, 50], with a point mass at zero, ascending."""
    drawn = scale * rng.gamma(1.0, 1.0, (num_rows, 50)) * (rng.random((num_rows, 50)) < 0.6)
    return np.sort(drawn, axis=1)


def test_pool_by_hand() -> None:
    first, second = torch.tensor([[0.0, 4.0]]), torch.tensor([[1.0, 2.0]])
    # A quarter on the first: 0 up to 1/8, 1 up to 4/8, 2 up to 7/8, then 4.
    found = pool_quantiles(first, second, 0.25, torch.tensor([0.1, 0.2, 0.5, 0.6, 0.8, 0.9]))
    assert found.tolist() == [[0.0, 1.0, 1.0, 2.0, 2.0, 4.0]]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_one_part_alone_is_itself(share: float) -> None:
    rng = np.random.default_rng(0)
    first, second = (torch.tensor(members(rng)) for _ in range(2))
    levels = torch.tensor((np.arange(50) + 0.5) / 50)
    torch.testing.assert_close(pool_quantiles(first, second, share, levels), first if share else second)


@settings(max_examples=30, deadline=None)
@given(share=st.floats(0, 1), seed=st.integers(0, 1000))
def test_crps_of_a_pool_follows_from_its_parts(share: float, seed: int) -> None:
    """w A + (1 - w) C - w (1 - w) D, with the house's CRPS of the pool's own quantiles on the other side."""
    rng = np.random.default_rng(seed)
    first, second, realised = members(rng), members(rng, scale=2.0), rng.gamma(1.0, 1.0, 20)
    pooled = pool_quantiles(torch.tensor(first), torch.tensor(second), share, MANY).numpy()
    parts = share * crps(realised, first) + (1 - share) * crps(realised, second)
    wanted = parts - share * (1 - share) * squared_distance(first, second)
    np.testing.assert_allclose(crps(realised, pooled), wanted, atol=5e-3)
    np.testing.assert_allclose(crps_of(realised, first), crps(realised, first))


def test_with_many_customers_the_share_is_the_best_one() -> None:
    rng = np.random.default_rng(1)
    rate = rng.gamma(2.0, 1.0, 4000)
    first, second = (np.sort(rng.poisson(part * rate[:, None], (4000, 50)), axis=1) for part in (0.8, 1.6))
    realised = rng.poisson(rate).astype(float)
    found = Evidence.share([Evidence.of(realised, first, second)], prior_sd=0.5)
    apart = squared_distance(first, second)
    grid = np.linspace(0, 1, 101)
    scores = [(w * crps(realised, first) + (1 - w) * crps(realised, second) - w * (1 - w) * apart).mean() for w in grid]
    assert abs(found - grid[int(np.argmin(scores))]) < 0.03
    assert 0.5 < found < 1.0


def test_noise_draws_the_share_towards_a_half() -> None:
    better = np.random.default_rng(2).normal(0.02, 1.0, 10_000)
    many, few = Evidence(better, 0.05), Evidence(better[:20] - better[:20].mean() + 0.02, 0.05)
    # Both say 1/2 + 0.02 / 0.1 = 0.7; the noise of the first is 0.01 / 0.1, that of the second over 2.
    noise = few.better_Q.std() / np.sqrt(20) / 0.1
    assert Evidence.share([few], prior_sd=0.5) == pytest.approx(0.5 + 0.2 * 0.25 / (0.25 + noise**2))
    assert abs(Evidence.share([few], prior_sd=0.5) - 0.5) < 0.02
    assert Evidence.share([many], prior_sd=0.5) == pytest.approx(0.7, abs=0.15)
    assert Evidence.share([many], prior_sd=0.5) > Evidence.share([few], prior_sd=0.5)


def test_the_share_stays_a_share_and_equal_parts_get_halves() -> None:
    assert Evidence.share([Evidence(np.full(100, 0.5), 0.01)], prior_sd=0.5) == 1.0
    assert Evidence.share([Evidence(np.full(100, -0.5), 0.01)], prior_sd=0.5) == 0.0
    same = members(np.random.default_rng(3))
    assert Evidence.share([Evidence.of(np.ones(20), same, same)], prior_sd=0.5) == 0.5


def test_of_ranks_by_hand() -> None:
    # Centred ranks of what came are -1/3, 0, 1/3; the Gini's weights are y / (y r) = y, Spearman's r / (r r) = 4.5 r.
    realised = np.array([0.0, 1.0, 3.0])
    weights = 3 * (realised / 1.0 + 4.5 * np.array([-1, 0, 1]) / 3)
    first, second = np.array([0.5, 1.5, 2.0]), np.array([3.0, 0.0, 1.0])
    found = Evidence.of_ranks(realised, first, second)
    ranks_first, ranks_second = np.array([-1, 0, 1]) / 3, np.array([1, -1, 0]) / 3
    np.testing.assert_allclose(found.better_Q, weights * (ranks_first - ranks_second))
    assert (weights * ranks_first).mean() == pytest.approx(2.0)  # first is right: 1 for each of the two measures
    halves = np.array([1, -1, 0]) / 3  # of 1.75, 0.75, 1.5
    both = (weights * (ranks_first + ranks_second)).mean() / 2
    assert found.apart == pytest.approx(4 * ((weights * halves).mean() - both))


def ranked(seed: int, num: int = 3000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What came, a forecast of it, and one that is further off."""
    rng = np.random.default_rng(seed)
    truth = rng.gamma(0.5, 20.0, num)
    realised = np.where(rng.random(num) < 0.3, 0.0, truth * rng.lognormal(0.0, 0.7, num))
    return realised, truth * rng.lognormal(0.0, 0.4, num), truth * rng.lognormal(0.0, 0.7, num)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_evidence_of_ranks_is_the_house_s_gini_and_spearman(seed: int) -> None:
    realised, near, far = ranked(seed, 200)

    def score(expected: np.ndarray) -> float:
        return gini_normalised(realised, expected) + spearman(realised, expected)

    found = Evidence.of_ranks(realised, near, far)
    assert found.better_Q.mean() == pytest.approx(score(near) - score(far))
    halves = near / near.sum() + far / far.sum()
    assert found.apart == pytest.approx(4 * (score(halves) - (score(near) + score(far)) / 2))


def test_the_share_by_ranks_is_near_the_best_whatever_the_level_and_the_currency() -> None:
    realised, near, far = ranked(4)
    found = Evidence.share([Evidence.of_ranks(realised, near, far)], prior_sd=0.5)
    grid = np.linspace(0, 1, 41)
    near, far = near / near.mean(), far / far.mean()
    blends = [share * near + (1 - share) * far for share in grid]
    scores = [gini_normalised(realised, blend) + spearman(realised, blend) for blend in blends]
    assert max(scores) - np.interp(found, grid, scores) < 0.1 * (max(scores) - scores[0])
    # A total that is a third too high says nothing of who is worth more.
    for levels in ((1.33, 1.0), (0.01, 90.0)):
        again = Evidence.of_ranks(90 * realised, levels[0] * near, levels[1] * far)
        assert Evidence.share([again], prior_sd=0.5) == pytest.approx(found)
    swapped = Evidence.of_ranks(realised, far, near)
    assert Evidence.share([swapped], prior_sd=0.5) == pytest.approx(1 - found)


def test_few_customers_leave_the_share_by_ranks_where_the_prior_is() -> None:
    many, few = (Evidence.of_ranks(*ranked(5, num)) for num in (20_000, 30))
    said = [Evidence.share([part], prior_sd=0.2, prior=0.1) for part in (many, few)]
    free = [Evidence.share([part], prior_sd=1e6, prior=0.1) for part in (many, few)]
    assert said[0] == pytest.approx(free[0], abs=0.05)
    assert free[0] > 0.5
    assert abs(said[1] - 0.1) < 0.4 * abs(free[1] - 0.1)


def test_where_ranks_tell_nothing_the_prior_stays() -> None:
    nothing, some = np.zeros(10), np.arange(10.0)
    for realised, first, second in ((nothing, some, some[::-1]), (some, nothing, nothing), (some, some, 2 * some)):
        found = Evidence.of_ranks(realised, first, second)
        assert Evidence.share([found], prior_sd=0.5, prior=0.3) == 0.3
