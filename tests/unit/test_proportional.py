"""The proportional outcome model: it finds effects that are planted, in proportion, whatever the base."""

from __future__ import annotations

import numpy as np
import pytest

from constellation.errors import InputError
from constellation.policies.cross_fit import cross_fit, person_folds
from constellation.policies.proportional import ProportionalOutcome, _blocks, _Moments, _variances

SMALL = {"num_trees": 30, "min_samples_leaf": 50}


def planted(seed: int, num: int = 6000, effect: float = 1.0):
    """Reward 10 x, x the customer's size; action 1 adds 20 % of it where z > 0 and takes as much elsewhere; chances
    hang on the size, so that plain means of the actions are far off."""
    rng = np.random.default_rng(seed)
    size_Q, side_Q = rng.uniform(0.2, 3.0, num), rng.normal(size=num)
    features_QX = np.c_[size_Q, side_Q, np.full(num, 7.0), np.full(num, np.nan)]
    second_Q = np.clip(0.1 + 0.25 * size_Q, 0.05, 0.9)
    logging_QA = np.c_[1 - second_Q, second_Q]
    action_Q = (rng.random(num) < second_Q).astype(np.int64)
    truth_QA = np.c_[10 * size_Q, 10 * size_Q + effect * 2 * size_Q * np.sign(side_Q)]
    reward_Q = truth_QA[np.arange(num), action_Q] + rng.normal(size=num) * size_Q
    return features_QX, action_Q, reward_Q, logging_QA, truth_QA


def fitted(seed: int, **settings):
    features_QX, action_Q, reward_Q, logging_QA, truth_QA = planted(seed)
    model = ProportionalOutcome(**(SMALL | settings))
    model.fit(features_QX, action_Q, reward_Q, np.zeros((2, 0)), 2, logging_QA=logging_QA)
    return model, features_QX, logging_QA, truth_QA


def test_effects_are_found_in_proportion_and_the_mean_under_the_log_is_kept() -> None:
    model, _, _, _ = fitted(0)
    features_QX, _, reward_Q, logging_QA, truth_QA = planted(1)
    found_QA = model.predict(features_QX, np.zeros((2, 0)))
    effect_Q, true_Q = found_QA[:, 1] - found_QA[:, 0], truth_QA[:, 1] - truth_QA[:, 0]
    assert np.corrcoef(effect_Q, true_Q)[0, 1] > 0.75  # a step told by a line
    large = features_QX[:, 0] > 2
    assert np.abs(effect_Q[large]).mean() > 2 * np.abs(effect_Q[features_QX[:, 0] < 0.8]).mean()
    assert (logging_QA * found_QA).sum(axis=1).mean() == pytest.approx(reward_Q.mean(), rel=0.02)


def test_without_effects_nothing_is_claimed_though_the_choice_followed_the_size() -> None:
    features_QX, action_Q, reward_Q, logging_QA, _ = planted(2, effect=0.0)
    assert reward_Q[action_Q == 1].mean() > reward_Q[action_Q == 0].mean() + 3
    model = ProportionalOutcome(**SMALL)
    model.fit(features_QX, action_Q, reward_Q, np.zeros((2, 0)), 2, logging_QA=logging_QA)
    found_QA = model.predict(features_QX, np.zeros((2, 0)))
    assert abs((found_QA[:, 1] - found_QA[:, 0]).mean()) < 0.15


def test_a_bundle_predicts_as_the_model_did() -> None:
    model, features_QX, _, _ = fitted(3)
    again = ProportionalOutcome.from_arrays(model.arrays())
    none_AY = np.zeros((2, 0))
    np.testing.assert_allclose(again.predict(features_QX, none_AY), model.predict(features_QX, none_AY), atol=1e-9)


def test_units_do_not_matter_and_rows_of_weight_zero_are_not_there() -> None:
    features_QX, action_Q, reward_Q, logging_QA, _ = planted(4, num=2000)
    none_AY = np.zeros((2, 0))
    whole, scaled = ProportionalOutcome(**SMALL), ProportionalOutcome(**SMALL)
    whole.fit(features_QX, action_Q, reward_Q, none_AY, 2, logging_QA=logging_QA)
    scaled.fit(features_QX, action_Q, 1000 * reward_Q, none_AY, 2, logging_QA=logging_QA)
    np.testing.assert_allclose(
        scaled.predict(features_QX, none_AY), 1000 * whole.predict(features_QX, none_AY), rtol=2e-3, atol=2.0
    )
    weight_Q = (np.arange(2000) % 2).astype(np.float64)
    spoiled_Q = np.where(weight_Q > 0, reward_Q, -1e6)
    one, other = ProportionalOutcome(**SMALL), ProportionalOutcome(**SMALL)
    one.fit(features_QX, action_Q, reward_Q, none_AY, 2, logging_QA=logging_QA, weight_Q=weight_Q)
    other.fit(features_QX, action_Q, spoiled_Q, none_AY, 2, logging_QA=logging_QA, weight_Q=weight_Q)
    np.testing.assert_allclose(one.predict(features_QX, none_AY), other.predict(features_QX, none_AY), rtol=1e-6)


def test_cross_fit_hands_it_the_propensities() -> None:
    features_QX, action_Q, reward_Q, logging_QA, truth_QA = planted(5)
    customer_Q = np.arange(len(action_Q))
    fold_Q = person_folds(customer_Q, 2, 0)
    found = cross_fit(
        ProportionalOutcome(**SMALL), features_QX, action_Q, reward_Q, np.zeros((2, 0)), customer_Q, fold_Q, logging_QA
    )
    chosen_Q = found.expected_QA.argmax(axis=1)
    earned = truth_QA[customer_Q, chosen_Q].mean()
    assert earned > truth_QA.mean(axis=0).max() + 0.7 * (truth_QA.max(axis=1).mean() - truth_QA.mean(axis=0).max())


def test_moments_by_hand() -> None:
    """y = 1 + 2 x without a penalty; all penalty leaves the intercept alone, which is the mean."""
    x_Q = np.array([-1.0, 0.0, 1.0, 2.0])
    design, aim_Q = np.c_[np.ones(4), x_Q], 1 + 2 * x_Q
    halves = [_Moments(), _Moments()]
    for place in range(4):
        halves[place % 2].add(design[[place]], aim_Q[[place]])
    whole = halves[0] + halves[1]
    assert whole.num == 4
    np.testing.assert_allclose(whole.solve(1e-12, 1), [1, 2], atol=1e-3)
    np.testing.assert_allclose(whole.solve(1e12, 1), [2, 0], atol=1e-3)
    assert whole.loss(np.array([1.0, 2.0])) == pytest.approx(-(aim_Q**2).sum())


def test_levels_have_their_own_variance_and_blocks_hold_every_row_once() -> None:
    base_Q = np.repeat([1.0, 10.0], 500)
    left_Q = np.tile([1.0, -1.0], 500) * base_Q
    np.testing.assert_allclose(_variances(base_Q, left_Q, np.ones(1000)), np.maximum(base_Q**2, 0.05 * 50.5))
    for num in (1, 7, 100_000):
        rows = np.concatenate([np.arange(num)[each] for each in _blocks(num)])
        np.testing.assert_array_equal(rows, np.arange(num))


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(InputError, match="ridges above 0"):
        ProportionalOutcome(ridges=(0.0,))
    model, features_QX, _, _ = fitted(6)
    with pytest.raises(InputError, match="cannot score a new one"):
        model.predict(features_QX, np.zeros((3, 0)))
