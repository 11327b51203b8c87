"""The club as Gymnasium environments."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from constellation.errors import InputError
from constellation.worlds.loyalty.value import constant_policy, started, value_of
from constellation.worlds.loyalty.world import LoyaltyWorld

gymnasium = pytest.importorskip("gymnasium", reason="needs the extra worlds")

WORLD = LoyaltyWorld(joining_weeks=5)


def make(kind: str, **settings):
    from constellation.worlds.loyalty.environment import ClubEnvironment, CustomersEnvironment

    return {"club": ClubEnvironment, "customers": CustomersEnvironment}[kind](WORLD, **settings)


def test_gymnasium_finds_no_fault_with_the_club() -> None:
    from gymnasium.utils.env_checker import check_env

    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=UserWarning, message=".*WARN.*")
        # Money and counts have no upper end; and we need no registry.
        warnings.filterwarnings("ignore", message=".*maximum value is infinity.*")
        warnings.filterwarnings("ignore", message=".*not having a spec.*")
        check_env(make("club", num_customers=8, num_weeks=4))


def test_rewards_add_up_to_the_value_of_the_policy() -> None:
    """Without friends, who in an environment are led by habit, an episode's rewards are the simulated value."""
    from constellation.worlds.loyalty.environment import ClubEnvironment, CustomersEnvironment

    world = LoyaltyWorld(joining_weeks=5, referral_logit=-60.0)
    number = world.action_names.index("voucher")
    truth = value_of(constant_policy(world, "voucher"), started(world, 30, seed=9), num_weeks=6)
    club = ClubEnvironment(world, num_customers=30, num_weeks=6)
    customers = CustomersEnvironment(world, num_customers=30, num_weeks=6)
    observed, _ = club.reset(seed=9)
    np.testing.assert_array_equal(observed, customers.reset(seed=9)[0])
    total, total_C, ends = 0.0, np.zeros(30), []
    for _ in range(6):
        observed, reward, _, over, info = club.step(np.full(30, number))
        seen, reward_C, gone_C, over_C, _ = customers.step(np.full(30, number))
        np.testing.assert_array_equal(observed, seen)
        np.testing.assert_array_equal(info["net_C"], reward_C)
        assert customers.observation_space.contains(seen)
        assert over == over_C.all() == over_C.any()
        assert not gone_C.any(), "nobody tells when a customer leaves"
        total, total_C = total + reward, total_C + reward_C
        ends.append(over)
    np.testing.assert_allclose(total_C, truth.net_C)
    assert total == pytest.approx(truth.mean)
    assert ends == [False] * 5 + [True]


def test_the_step_after_the_end_starts_anew() -> None:
    customers = make("customers", num_customers=6, num_weeks=1)
    first, _ = customers.reset(seed=1)
    customers.step(customers.action_space.sample())
    observed, reward_C, gone_C, over_C, _ = customers.step(customers.action_space.sample())
    assert not reward_C.any() and not gone_C.any() and not over_C.any()
    assert observed.shape == first.shape
    assert not np.array_equal(observed, first), "other customers"
    np.testing.assert_array_equal(customers.reset(seed=1)[0], first)


def test_seeds_and_misuse() -> None:
    club = make("club", num_customers=5, num_weeks=2)
    with pytest.raises(InputError, match="before it was reset"):
        club.step(np.zeros(5, dtype=int))
    np.testing.assert_array_equal(club.reset(seed=0)[0], club.reset(seed=0)[0])
    assert not np.array_equal(club.reset()[0], club.reset()[0])
    with pytest.raises(InputError, match="one seed"):
        make("customers", num_customers=2, num_weeks=2).reset(seed=[0, 1])
    with pytest.raises(InputError, match="num_weeks must be 1 or more"):
        make("club", num_customers=2, num_weeks=0)
