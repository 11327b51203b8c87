"""What is believed of predicted differences, on worlds where it is known what should be; and several seeds together."""

from __future__ import annotations

import numpy as np
import pytest

from constellation.commands.engagement.seeds import over_seeds
from constellation.policies.cross_fit import EffectShrinkage
from constellation.policies.doubly_robust import DoublyRobustLearned, cut_corrections
from constellation.policies.greedy import Greedy
from constellation.policies.policy import Situation

NUM, MEAN_A = 40_000, np.array([0.0, 1.0, 2.0])


def world(size_noise: float, rest_noise: float, seed: int = 0, num: int = NUM):
    """Rewards and a model that is right about each customer's level; of how strongly the customer responds and of what
    suits the customer it knows the truth plus noise (standard deviations of both are 1)."""
    rng = np.random.default_rng(seed)
    logging_QA = np.tile([0.5, 0.25, 0.25], (num, 1))
    action_Q = rng.choice(3, num, p=logging_QA[0])
    effect_A = MEAN_A - logging_QA[0] @ MEAN_A
    across_A = np.cross(effect_A, logging_QA[0])  # at right angles to the mean effects, and 0 under the logging policy
    across_A /= np.linalg.norm(across_A)
    size_Q, suits_Q, level_Q = 1 + rng.normal(size=num) * 0.5, rng.normal(size=num), rng.normal(size=num)
    truth_QA = level_Q[:, None] + size_Q[:, None] * effect_A + suits_Q[:, None] * across_A
    model_QA = (
        truth_QA
        + size_noise * rng.normal(size=num)[:, None] * 0.5 * effect_A
        + rest_noise * rng.normal(size=num)[:, None] * across_A
    )
    reward_Q = truth_QA[np.arange(num), action_Q] + rng.normal(size=num)
    return model_QA, action_Q, reward_Q, logging_QA, truth_QA


@pytest.mark.parametrize(("size_noise", "rest_noise"), [(0.0, 3.0), (1.0, 0.0), (0.5, 2.0)])
def test_each_part_is_believed_as_far_as_it_holds(size_noise: float, rest_noise: float) -> None:
    model_QA, action_Q, reward_Q, logging_QA, truth_QA = world(size_noise, rest_noise)
    found = EffectShrinkage.learn(model_QA, action_Q, reward_Q, logging_QA)
    # Truth plus noise of relative variance v is worth 1 / (1 + v) of itself.
    assert found.kept_size == pytest.approx(1 / (1 + size_noise**2), abs=0.08)
    assert found.kept == pytest.approx(1 / (1 + rest_noise**2), abs=0.08)
    shrunk_QA = found(model_QA, logging_QA)
    np.testing.assert_allclose((shrunk_QA * logging_QA).sum(axis=1), (model_QA * logging_QA).sum(axis=1), atol=1e-9)
    assert ((shrunk_QA - truth_QA) ** 2).mean() < ((model_QA - truth_QA) ** 2).mean()


def test_slopes_that_are_not_told_apart_are_one() -> None:
    model_QA, action_Q, reward_Q, logging_QA, _ = world(0.5, 0.5, num=600)
    slopes = [EffectShrinkage.learn(*world(0.5, 0.5, seed, num=600)[:4]) for seed in range(30)]
    same = [each.kept == each.kept_size for each in slopes]
    assert 0.3 < np.mean(same) < 1.0  # the square of a normal deviate is below 1 in 68 of 100
    found = EffectShrinkage.learn(model_QA[:, :2], np.minimum(action_Q, 1), reward_Q, logging_QA[:, :2] / 0.75)
    assert found.kept == found.kept_size  # two actions have one difference


def test_a_model_of_noise_is_not_believed_and_greedy_is_constant() -> None:
    rng = np.random.default_rng(3)
    _, action_Q, _, logging_QA, _ = world(0.0, 0.0)
    reward_Q = MEAN_A[action_Q] + 10 * rng.normal(size=NUM)
    model_QA = MEAN_A + rng.normal(size=(NUM, 3))
    found = EffectShrinkage.learn(model_QA, action_Q, reward_Q, logging_QA)
    assert found.kept < 0.15 and found.kept_size < 0.15
    choice_Q = Greedy().probabilities(situation(found(model_QA, logging_QA), logging_QA)).argmax(axis=1)
    raw_Q = Greedy().probabilities(situation(model_QA, logging_QA)).argmax(axis=1)
    assert (choice_Q == 2).mean() > 0.99 > (raw_Q == 2).mean()


def situation(model_QA: np.ndarray, logging_QA: np.ndarray, features_QX: np.ndarray | None = None) -> Situation:
    num, num_actions = model_QA.shape
    features_QX = np.zeros((num, 1)) if features_QX is None else features_QX
    return Situation(
        tuple("abc"[:num_actions]), model_QA, model_QA[None], 1.0, np.ones(model_QA.shape, dtype=bool), logging_QA,
        features_QX, num,
    )  # fmt: skip


def test_corrections_are_cut_and_nothing_else() -> None:
    model_QA = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    scores_QA = model_QA + np.array([[0.5, 0.0], [0.0, -1.0], [100.0, 0.0]])
    cut_QA = cut_corrections(scores_QA, model_QA, 0.5)
    np.testing.assert_allclose(cut_QA - model_QA, [[0.5, 0.0], [0.0, -1.0], [1.0, 0.0]])
    np.testing.assert_array_equal(cut_corrections(scores_QA, model_QA, 1.0), scores_QA)


@pytest.mark.parametrize("personal", [True, False])
def test_a_learned_policy_is_personal_only_where_that_pays(personal: bool) -> None:
    rng = np.random.default_rng(5)
    num = 4000
    features_QX = rng.normal(size=(num, 10))
    logging_QA = np.full((num, 3), 1 / 3)
    action_Q = rng.integers(0, 3, num)
    gain_QA = np.zeros((num, 3))
    gain_QA[:, 1] = 0.5
    if personal:
        gain_QA[:, 0], gain_QA[:, 1] = features_QX[:, 0], -features_QX[:, 0]
    # A few great rewards, as money has them.
    reward_Q = gain_QA[np.arange(num), action_Q] + rng.standard_t(2.5, num)
    model_QA = np.zeros((num, 3))
    scores_QA = model_QA.copy()
    scores_QA[np.arange(num), action_Q] += 3 * reward_Q
    policy = DoublyRobustLearned()
    where = situation(model_QA, logging_QA, features_QX)
    policy.fit(where, scores_QA, np.arange(num))
    value = float((policy.probabilities(where) * gain_QA).sum(axis=1).mean())
    best_constant, best = gain_QA.mean(axis=0).max(), gain_QA.max(axis=1).mean()
    if personal:
        assert policy.ridge <= 0.1
        assert value > best_constant + 0.7 * (best - best_constant)
    else:
        assert policy.ridge >= 1.0
        assert value > 0.45


def test_seeds_together_are_means_and_verdicts_that_agree() -> None:
    one = {"policy/a/value_dr": 1.0, "policy/a/value_dr_low": 0.5, "policy/a/verdict": 1.0, "policy/b/verdict": -1.0}
    two = {"policy/a/value_dr": 3.0, "policy/a/value_dr_low": 1.5, "policy/a/verdict": 0.0, "policy/b/verdict": -1.0}
    assert over_seeds([one]) == one
    assert over_seeds([one, two]) == {
        "policy/a/value_dr": 2.0,
        "policy/a/value_dr_sd": pytest.approx(np.sqrt(2)),
        "policy/a/value_dr_low": 1.0,
        "policy/a/verdict": 0.0,
        "policy/b/verdict": -1.0,
    }
