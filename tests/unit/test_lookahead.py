"""What a decision changes beyond its reward: planted in states that stay, and told by the next decision."""

from __future__ import annotations

import numpy as np
import pytest

from constellation.commands.engagement.options import EngagementOptions
from constellation.errors import InputError
from constellation.policies.cross_fit import cross_fit, learned_rewards, person_folds
from constellation.policies.lookahead import Lookahead
from constellation.policies.outcomes import RidgeOutcome

STEPS = 6


def club(seed: int, num: int = 3000):
    """Customers are well or not; a step pays 10 if they are, whatever is done in it. Action 1 costs 1 and makes half of
    those well who are not; of the others one in ten turns. Actions are drawn with equal chances."""
    rng = np.random.default_rng(seed)
    well_C = rng.random(num) < 0.5
    columns: dict[str, list[np.ndarray]] = {"state": [], "action": [], "reward": []}
    for _ in range(STEPS):
        action_C = rng.integers(0, 2, num)
        columns["state"].append(well_C.astype(float))
        columns["action"].append(action_C)
        columns["reward"].append(10.0 * well_C - action_C + rng.normal(size=num))
        turned_C = rng.random(num) < np.where(well_C, 0.1, 0.5 * action_C)
        well_C = well_C ^ turned_C
    # Rewards of the last step are not known yet; its states are.
    state_QX = np.concatenate(columns["state"][:-1])[:, None]
    action_Q, reward_Q = (np.concatenate(columns[name][:-1]) for name in ("action", "reward"))
    return state_QX, columns["state"][-1][:, None], action_Q, reward_Q, np.arange(len(action_Q)) + num


def ill_gain(reward_Q, state_QX, action_Q) -> float:
    ill = state_QX[:, 0] == 0
    return float(reward_Q[ill & (action_Q == 1)].mean() - reward_Q[ill & (action_Q == 0)].mean())


def test_a_step_ahead_tells_what_the_reward_does_not() -> None:
    state_QX, late_SX, action_Q, reward_Q, next_Q = club(0)
    everybody = np.ones(len(reward_Q), dtype=bool)
    assert ill_gain(reward_Q, state_QX, action_Q) == pytest.approx(-1, abs=0.1)
    one = Lookahead(state_QX, late_SX, next_Q, 1).rewards(reward_Q, everybody)
    # Half of the ill are well a step later, which pays 10.
    assert ill_gain(one, state_QX, action_Q) == pytest.approx(-1 + 0.5 * 10, abs=0.3)
    two = Lookahead(state_QX, late_SX, next_Q, 2).rewards(reward_Q, everybody)
    # Of those who are well, .9 stay so; of those who are not, .25 are well a step later under the log's policy.
    assert ill_gain(two, state_QX, action_Q) == pytest.approx(-1 + 0.5 * (10 + (0.9 - 0.25) * 10), abs=0.4)
    for found in (one, two):  # what the state alone promises is taken off, so means stay those of the rewards
        for state in (0, 1):
            rows = state_QX[:, 0] == state
            assert found[rows].mean() == pytest.approx(reward_Q[rows].mean(), abs=0.05)


def test_a_decision_that_none_follows_keeps_its_reward_and_others_are_not_read() -> None:
    state_QX, late_SX, _, reward_Q, next_Q = club(1)
    alone = np.arange(len(next_Q)) % 5 == 0
    ahead = Lookahead(state_QX, late_SX, np.where(alone, -1, next_Q), 2)
    learned = np.arange(len(next_Q)) % 2 == 0
    found = ahead.rewards(reward_Q, learned)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[alone], reward_Q[alone])
    assert (found[~alone] != reward_Q[~alone]).all()
    other = reward_Q + np.where(learned, 0.0, 1000.0)
    np.testing.assert_allclose(ahead.rewards(other, learned)[learned], found[learned])


def test_cross_fitted_models_learn_it_and_estimates_keep_the_rewards() -> None:
    state_QX, late_SX, action_Q, reward_Q, next_Q = club(2)
    customer_Q = np.arange(len(next_Q)) % 3000
    given = (state_QX, action_Q, reward_Q, np.zeros((2, 0)), customer_Q, person_folds(customer_Q, 2, 0))
    chance_QA = np.full((len(next_Q), 2), 0.5)
    near = cross_fit(RidgeOutcome(), *given, chance_QA, num_members=1)
    ahead = Lookahead(state_QX, late_SX, next_Q, 1)
    far = cross_fit(RidgeOutcome(), *given, chance_QA, num_members=1, ahead=ahead)
    ill = state_QX[:, 0] == 0
    assert (near.expected_QA[ill].argmax(axis=1) == 0).all()
    assert (far.expected_QA[ill].argmax(axis=1) == 1).all()
    assert (far.expected_QA[~ill].argmax(axis=1) == 0).all()  # it costs, and helps nobody who is well
    assert (far.expected_QA * chance_QA).sum(axis=1).mean() == pytest.approx(reward_Q.mean(), abs=0.1)


def test_rewards_are_cut_before_anything_is_added() -> None:
    state_QX, late_SX, _, reward_Q, next_Q = club(3)
    everybody = np.ones(len(reward_Q), dtype=bool)
    reward_Q[0] = 1e6
    ahead = Lookahead(state_QX, late_SX, next_Q, 1)
    assert learned_rewards(reward_Q, everybody, 0.99, None, 0).max() < 1000
    assert learned_rewards(reward_Q, everybody, 0.99, ahead, 0).max() < 1000
    assert learned_rewards(reward_Q, everybody, 1.0, ahead, 0).max() > 9e5


def test_a_negative_number_of_windows_is_refused() -> None:
    with pytest.raises(InputError, match=r"engagement\.lookahead must be at least 0, found -1"):
        EngagementOptions(lookahead=-1)
