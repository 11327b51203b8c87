"""Properties of the world of loyalty, whatever the seed, the people and the policy."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from constellation.worlds.loyalty.simulation import Policy, Simulation
from constellation.worlds.loyalty.state import State
from constellation.worlds.loyalty.value import started, value_of
from constellation.worlds.loyalty.world import LoyaltyWorld

WORLD = LoyaltyWorld(joining_weeks=4, num_weeks=30, referral_logit=-2.5)
"""With many friends, so that what reaches them is seen."""
MIRROR = LoyaltyWorld(joining_weeks=4, num_weeks=30, referral_logit=-2.5, mirror=True)
NUM_ACTIONS = len(WORLD.action_names)
seeds = st.integers(0, 2**31)


def drawn_policy(seed: int) -> Policy:
    """A softmax over random weights of the features, scaled so that every action comes up."""
    weight_FA = np.random.default_rng(seed).normal(size=(200, NUM_ACTIONS))

    def policy(features_CF: np.ndarray) -> np.ndarray:
        score_CA = np.tanh(features_CF @ weight_FA[: features_CF.shape[1]] / 10)
        weight_CA = np.exp(2 * score_CA)
        return weight_CA / weight_CA.sum(axis=1, keepdims=True)

    return policy


def differing_rows(one: State, two: State) -> set[int]:
    found: set[int] = set()
    for entry in fields(State):
        left, right = getattr(one, entry.name), getattr(two, entry.name)
        same = (left == right) | ((left != left) & (right != right))
        same = same.reshape(len(same), -1).all(axis=1)
        found |= set(np.flatnonzero(~same).tolist())
    return found


@settings(max_examples=15, deadline=None)
@given(seed=seeds, num_customers=st.integers(1, 40), num_weeks=st.integers(1, 15))
def test_propensities_are_probabilities_with_support(seed: int, num_customers: int, num_weeks: int) -> None:
    simulation = Simulation(WORLD, num_customers, seed).run(num_weeks)
    probability_CA = simulation.logging()
    np.testing.assert_allclose(probability_CA.sum(axis=1), 1.0)
    assert (probability_CA >= WORLD.exploration / NUM_ACTIONS).all()


@settings(max_examples=15, deadline=None)
@given(seed=seeds, policy_seed=seeds, num_customers=st.integers(1, 40))
def test_the_same_policy_twice_has_the_same_value_customer_by_customer(
    seed: int, policy_seed: int, num_customers: int
) -> None:
    values = [
        value_of(drawn_policy(policy_seed), started(WORLD, num_customers, seed), num_weeks=8).net_C for _ in range(2)
    ]
    np.testing.assert_array_equal(*values)


@settings(max_examples=15, deadline=None)
@given(seed=seeds, policy_seed=seeds, num_customers=st.integers(2, 40))
def test_in_the_mirror_no_policy_beats_another(seed: int, policy_seed: int, num_customers: int) -> None:
    start = started(MIRROR, num_customers, seed)
    values = [value_of(drawn_policy(policy_seed + shift), start, num_weeks=8).net_C for shift in (0, 1)]
    np.testing.assert_array_equal(*values)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, num_customers=st.integers(2, 30), chosen=st.data())
def test_an_action_changes_its_customer_and_the_friend_and_nobody_else(seed: int, num_customers: int, chosen) -> None:
    start = started(WORLD, num_customers, seed)
    present = start.present().rows_C
    place = chosen.draw(st.integers(0, len(present) - 1), label="place")
    row = int(present[place])
    twins = []
    for action in (0, chosen.draw(st.integers(1, NUM_ACTIONS - 1), label="action")):
        twin = start.copy()
        probability_CA = twin.logging()
        action_C = twin.choose(probability_CA)
        action_C[place] = action
        twin.step(probability_CA, action_C)
        # The others must be treated alike afterwards, too: they are, for their features are the same.
        twins.append(twin.run(10))
    own = row % num_customers
    allowed = {own, own + num_customers} if row < num_customers else {row}
    assert differing_rows(twins[0].state, twins[1].state) <= allowed
    assert row in differing_rows(twins[0].state, twins[1].state)
    other = np.delete(np.arange(2 * num_customers), sorted(allowed))
    np.testing.assert_array_equal(twins[0].net_R[other], twins[1].net_R[other])


@settings(max_examples=15, deadline=None)
@given(seed=seeds, num_few=st.integers(1, 20), num_more=st.integers(1, 20))
def test_the_first_customers_of_many_are_the_customers_of_few(seed: int, num_few: int, num_more: int) -> None:
    few, many = (Simulation(WORLD, num, seed).run(15) for num in (num_few, num_few + num_more))
    np.testing.assert_array_equal(few.net_of_customers(), many.net_of_customers()[:num_few])


@settings(max_examples=10, deadline=None)
@given(seed=seeds, branch=st.integers(1, 9), num_futures=st.integers(1, 5))
def test_futures_start_from_now_and_go_their_own_ways(seed: int, branch: int, num_futures: int) -> None:
    now = started(WORLD, 30, seed)
    one, two = now.futures(num_futures, branch), now.futures(num_futures, branch)
    np.testing.assert_array_equal(one.features(), two.features())
    of_own = one.state.satisfaction_R[: 30 * num_futures].reshape(num_futures, 30)
    np.testing.assert_array_equal(of_own, np.tile(now.state.satisfaction_R[:30], (num_futures, 1)))
    np.testing.assert_array_equal(one.run(6).net_R, two.run(6).net_R)
    other = now.futures(num_futures, branch + 1).run(6)
    assert not np.array_equal(one.net_R, other.net_R)
