"""Estimates that are asked for: the switch by hand, MRDR's own model, bounds that hold, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from constellation.errors import InputError
from constellation.policies import asked as a
from constellation.policies import estimators as e
from constellation.policies.cross_fit import cross_fit, person_folds
from constellation.policies.evaluation import Experiment, Refit, evaluate_policies
from constellation.policies.intervals import standard_error
from constellation.policies.log import Log
from constellation.policies.outcomes import RidgeOutcome
from constellation.policies.uniform import Uniform


def test_the_switch_is_where_the_estimated_error_is_least():
    """Two weights, 2 and 50. The model is right, so the correction of the rare action is noise alone."""
    rng = np.random.default_rng(0)
    num = 4000
    logging_QA = np.tile([0.98, 0.02], (num, 1))
    target_QA = np.where(np.arange(num)[:, None] < num // 20, [[0.0, 1.0]], [[1.0, 0.0]])
    action_Q = (rng.random(num) < 0.02).astype(int)
    log = Log.of(action_Q, 0.3 + rng.normal(size=num), logging_QA)
    model_QA = np.full((num, 2), 0.3)
    # Above any threshold below 50: a twentieth of the target's choices, of rewards of at most .3 by the model.
    low = e.switch_doubly_robust(log, target_QA, model_QA, switch=2.0)
    whole = e.doubly_robust(log, target_QA, model_QA)
    bias = 0.3 / 20
    error = [standard_error(terms, log.customer_Q) ** 2 for terms in (low, whole)]
    assert error[0] + bias**2 < error[1]
    threshold = e.switch_threshold(log, target_QA, model_QA)
    assert 1 / 0.98 <= threshold < 50
    # Where rewards may be far from the model, no threshold is worth its bias.
    assert error[0] + (20 * bias) ** 2 > error[1]
    assert e.switch_threshold(log, target_QA, model_QA, reach=20 * 0.3) == np.inf
    terms, settings = a.estimate(a.SWITCH_DR, log, target_QA, model_QA)
    assert settings == {"switch_threshold": threshold} and terms.value == pytest.approx(low.value)
    assert a.estimate(a.SWITCH_DR, log, target_QA, model_QA, switch_reach=6.0)[1] == {"switch_threshold": 1e9}


def responses(seed, num=3000):
    """Answers of customers to two actions, a quarter to the first and a third to the second; two decisions each."""
    rng = np.random.default_rng(seed)
    logging_QA = np.tile([0.7, 0.3], (num, 1))
    action_Q = (rng.random(num) < 0.3).astype(int)
    reward_Q = (rng.random(num) < np.array([0.25, 1 / 3])[action_Q]).astype(float)
    features_QX = rng.normal(size=(num, 3))
    return Log.of(action_Q, reward_Q, logging_QA, customer_Q=np.arange(num) // 2), features_QX


def experiment(seed=0):
    log, features_QX = responses(seed)
    fold_Q = person_folds(log.customer_Q, 2, seed)
    predictions = cross_fit(
        RidgeOutcome(), features_QX, log.action_Q, log.reward_Q, np.zeros((2, 0)), log.customer_Q, fold_Q,
        log.logging_QA, num_members=1,
    )  # fmt: skip
    return Experiment(log, fold_Q, features_QX, predictions)


def test_the_model_of_mrdr_is_fitted_on_the_other_folds_with_its_weights():
    ground = experiment()
    refit = Refit(RidgeOutcome(), np.zeros((2, 0)))
    target_QA, learned = ground.target_and_learned(Uniform())
    np.testing.assert_array_equal(target_QA, ground.target(Uniform()))
    assert [each.fold for each in learned] == [0, 1]
    model_QA = ground.robust_model(learned, refit)
    others = ground.fold_Q != 0
    before = ground.log.take(np.flatnonzero(others))
    # By hand: .5 (1 - p) / p^2 for the action that was chosen.
    weight_Q = np.where(before.action_Q == 1, 0.5 * 0.7 / 0.09, 0.5 * 0.3 / 0.49)
    own = RidgeOutcome()
    own.fit(ground.features_QX[others], before.action_Q, before.reward_Q, np.zeros((2, 0)), 2, weight_Q=weight_Q)
    told_QA = own.predict(ground.features_QX[~others], np.zeros((2, 0)))
    np.testing.assert_allclose(model_QA[(ground.fold_Q == 0)[ground.judged]], told_QA)
    found = evaluate_policies(ground, {"uniform": Uniform()}, num_resamples=20, asked=a.Asked(("mrdr",)), refit=refit)
    value = found["uniform"].asked["mrdr"].interval.value
    assert value == pytest.approx(e.doubly_robust(ground.judged_log, target_QA, model_QA).value)
    assert found["uniform"].numbers()["value_mrdr"] == value
    assert found["uniform"].learned == ()


def test_bernstein_by_hand_and_valid():
    log, _ = responses(1, num=400)
    target_QA, model_QA = np.full((400, 2), 0.5), np.full((400, 2), 1.5)
    wide = a.Asked(intervals=(a.BERNSTEIN,), reward_range=(0.0, 1.0))
    # 200 customers with two decisions each; the greatest weight is .5 / .3, and the model is cut to 1.
    rows_C = (log.weights(target_QA) * log.reward_Q).reshape(200, 2).mean(axis=1)
    log_term = np.log(2 / 0.025)
    for name, reach in ((a.IPS, 0.5 / 0.3), (a.DR, 1 + 2 * 0.5 / 0.3)):
        if name == a.DR:
            rows_C = (1.0 + log.weights(target_QA) * (log.reward_Q - 1.0)).reshape(200, 2).mean(axis=1)
        width = 7 * reach * log_term / (3 * 199) + np.sqrt(2 * log_term * rows_C.var() / 199)
        found = a.bernstein_of(name, log, target_QA, model_QA, wide)
        assert found.value == pytest.approx(rows_C.mean())
        assert found.high - found.low == pytest.approx(2 * width)
    misses = 0
    for seed in range(100):
        log, _ = responses(seed, num=400)
        found = a.bernstein_of(a.IPS, log, target_QA, model_QA, wide)
        misses += not found.low <= (0.25 + 1 / 3) / 2 <= found.high
    assert misses == 0


def test_bernstein_counts_the_decisions_of_a_customer_where_rewards_are_far_from_zero():
    # A customer has one decision or three: rewards of 10 to 11, added up, span 3 * 11 - 10 and not 3 * 1.
    num_C = np.tile([1, 3], 50)
    customer_Q = np.repeat(np.arange(100), num_C)
    action_Q = np.arange(len(customer_Q)) % 2
    log = Log.of(action_Q, 10.0 + action_Q, np.full((len(action_Q), 2), 0.5), customer_Q=customer_Q)
    target_QA, model_QA = np.full((len(action_Q), 2), 0.5), np.full((len(action_Q), 2), 10.5)
    asked = a.Asked(intervals=(a.BERNSTEIN,), reward_range=(10.0, 11.0))
    found = a.bernstein_of(a.DR, log, target_QA, model_QA, asked)
    rows_C = np.bincount(customer_Q, weights=log.reward_Q) * 100 / len(log)
    reach, log_term = (3 * 12 - 9) * 100 / len(log), np.log(2 / 0.025)
    width = 7 * reach * log_term / (3 * 99) + np.sqrt(2 * log_term * rows_C.var() / 99)
    assert found.high - found.low == pytest.approx(2 * width)


def test_what_is_asked_is_checked_and_the_usual_stays():
    ground = experiment()
    usual = evaluate_policies(ground, {"uniform": Uniform()}, num_resamples=20)
    with_more = evaluate_policies(
        ground, {"uniform": Uniform()}, num_resamples=20, asked=a.Asked(("dr", "sndr"), ("bootstrap", "student"))
    )
    before, after = usual["uniform"].numbers(), with_more["uniform"].numbers()
    assert {key: after[key] for key in before} == before
    new = set(after) - set(before)
    assert new == {f"value_{name}_student_{end}" for name in ("dr", "snips", "sndr") for end in ("low", "high")} | {
        "value_sndr_low", "value_sndr_high"
    }  # fmt: skip
    with pytest.raises(InputError, match="must be among direct"):
        a.Asked(("dr", "oracle"))
    assert a.Asked("dr", "student") == a.Asked(("dr",), ("student",))
    with pytest.raises(InputError, match="known beforehand"):
        a.Asked(intervals=("empirical_bernstein",))
    with pytest.raises(InputError, match="in the log they go from 0 to 1"):
        evaluate_policies(ground, {}, num_resamples=20, asked=a.Asked(reward_range=(0.0, 0.5)))
