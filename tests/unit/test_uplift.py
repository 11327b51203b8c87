"""Uplift curves: nothing is found where there is nothing, an order that knows is told from one that does not."""

import numpy as np
import pytest

from constellation.errors import InputError
from constellation.policies.budget import budget_curve, gain_over_random, spend_up_to, upgrades
from constellation.policies.uplift import qini, rate, targeting


def experiment(seed, num=6000):
    rng = np.random.default_rng(seed)
    effect_Q = rng.normal(0.2, 1.0, size=num)
    treated_Q = rng.integers(0, 2, num)
    reward_Q = treated_Q * effect_Q + rng.normal(size=num)
    return rng, effect_Q, reward_Q * (treated_Q / 0.5 - (1 - treated_Q) / 0.5)


def test_qini_by_hand():
    curve = qini(np.array([3.0, 2.0, 1.0]), np.array([3.0, 0.0, -3.0]), num_resamples=20)
    # gains 0, 1, 1, 0 at shares 0, 1/3, 2/3, 1: height (1/2 + 1 + 1/2) / 3
    assert curve.auuc == pytest.approx(2 / 3)
    assert curve.area == pytest.approx(2 / 3)
    even = qini(np.zeros(3), np.array([3.0, 0.0, -3.0]), num_resamples=20)
    assert even.area == pytest.approx(0.0)


def test_an_order_that_knows_is_told_from_a_random_one():
    _rng, effect_Q, gain_Q = experiment(0)
    knows = qini(effect_Q, gain_Q, num_resamples=200)
    assert knows.shown
    assert knows.low < knows.area < knows.high
    # Effects are N(0.2, 1): the area of a perfect order is sd / (2 sqrt(pi)).
    assert knows.area == pytest.approx(1 / (2 * np.sqrt(np.pi)), abs=0.04)
    assert knows.gain_P[-1] == pytest.approx(gain_Q.mean())
    assert rate(effect_Q, gain_Q).p_value < 1e-6
    assert rate(effect_Q, gain_Q, weighting="qini").value == pytest.approx(knows.area, abs=1e-9)
    shares, toc_P = targeting(effect_Q, gain_Q)
    assert toc_P[-1] == pytest.approx(0.0, abs=1e-9)
    assert toc_P[9] > toc_P[49] > 0
    assert shares[9] == pytest.approx(0.1)


def test_random_orders_are_not_called_shown():
    shown = rated = 0
    for seed in range(60):
        rng, _, gain_Q = experiment(seed, num=800)
        priority_Q = rng.normal(size=800)
        shown += qini(priority_Q, gain_Q, num_resamples=60, seed=seed).shown
        rated += rate(priority_Q, gain_Q, num_resamples=60, seed=seed).p_value < 0.05
    assert shown <= 6
    assert rated <= 9


def test_a_budget_is_spent_on_the_steepest_steps_first():
    predicted_QA = np.array([[0.0, 4.0, 6.0], [0.0, 1.0, 9.0], [0.0, -1.0, -2.0]])
    cost_QA = np.tile([0.0, 1.0, 3.0], (3, 1))
    steps = upgrades(predicted_QA, cost_QA, 0, np.ones((3, 3), dtype=bool))
    # Customer 0: mail (slope 4), then call (slope 1); customer 1: straight to call (slope 3); customer 2: nothing.
    assert steps.row_S.tolist() == [0, 1, 0]
    assert steps.action_S.tolist() == [1, 2, 2]
    assert steps.slope_S.tolist() == [4.0, 3.0, 1.0]
    assert spend_up_to(steps, 3, 0, 0.0).tolist() == [0, 0, 0]
    assert spend_up_to(steps, 3, 0, 1 / 3).tolist() == [1, 0, 0]
    assert spend_up_to(steps, 3, 0, 4 / 3).tolist() == [1, 2, 0]
    assert spend_up_to(steps, 3, 0, 6 / 3).tolist() == [2, 2, 0]
    with pytest.raises(InputError, match="cost above 0"):
        upgrades(predicted_QA, np.zeros((3, 3)), 0, np.ones((3, 3), dtype=bool))


def test_the_greedy_steps_match_brute_force():
    import itertools

    rng = np.random.default_rng(4)
    predicted_QA = np.c_[np.zeros(5), rng.normal(1, 1, size=(5, 2))]
    cost_QA = np.c_[np.zeros(5), rng.uniform(0.5, 2, size=(5, 2))]
    steps = upgrades(predicted_QA, cost_QA, 0, np.ones((5, 3), dtype=bool))
    rows = np.arange(5)
    for spend in steps.cost_S.cumsum():
        choice = spend_up_to(steps, 5, 0, spend / 5)
        best = max(
            predicted_QA[rows, list(other)].sum()
            for other in itertools.product(range(3), repeat=5)
            if cost_QA[rows, list(other)].sum() <= spend + 1e-9
        )
        assert predicted_QA[rows, choice].sum() == pytest.approx(best)


def test_curves_judge_by_scores_and_not_by_predictions():
    rng, effect_Q, gain_Q = experiment(1)
    predicted_QA = np.c_[np.zeros(6000), effect_Q + 0.3 * rng.normal(size=6000)]
    scores_QA = np.c_[np.zeros(6000), gain_Q]
    cost_QA = np.c_[np.zeros(6000), np.ones(6000)]
    curve = budget_curve(predicted_QA, scores_QA, cost_QA, 0, random_action=1)
    assert curve.spend_P[0] == curve.gain_P[0] == 0
    assert (curve.low_P <= curve.gain_P).all()
    assert curve.gain_P[10] > curve.random_P[10] + 0.1
    found = gain_over_random(predicted_QA, scores_QA, 0, random_action=1)
    assert [each.share for each in found] == [0.1, 0.25, 0.5]
    assert all(each.over_random > 3 * each.error > 0 for each in found)
    blind = gain_over_random(np.c_[np.zeros(6000), rng.normal(size=6000)], scores_QA, 0, random_action=1)
    assert all(abs(each.over_random) < 4 * each.error for each in blind)
