"""The proportional outcome model: it finds effects that are planted, in proportion, whatever the base."""

from __future__ import annotations

import numpy as np
import pytest

from constellation.errors import InputError
from constellation.policies.cross_fit import cross_fit, person_folds
from constellation.policies.moments import Moments
from constellation.policies.proportional import ProportionalOutcome, _blocks, _variances
from constellation.policies.response import responded, up_and_down

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
    assert (found.kept_K2 == 1).all()  # its prior was chosen on rows not learned from: nobody shrinks it again


def test_moments_by_hand() -> None:
    """y = 1 + 2 x without a penalty; all penalty leaves the intercept alone, which is the mean."""
    x_Q = np.array([-1.0, 0.0, 1.0, 2.0])
    design, aim_Q = np.c_[np.ones(4), x_Q], 1 + 2 * x_Q
    halves = [Moments(), Moments()]
    for place in range(4):
        halves[place % 2].add(design[[place]], aim_Q[[place]])
    whole = halves[0] + halves[1]
    assert whole.num == 4
    np.testing.assert_allclose(whole.solve(1e-12, 1), [1, 2], atol=1e-3)
    np.testing.assert_allclose(whole.solve(1e12, 1), [2, 0], atol=1e-3)
    assert whole.loss(np.array([1.0, 2.0])) == pytest.approx(-(aim_Q**2).sum())


def test_relevance_keeps_what_is_told_from_noise_and_forgets_the_rest() -> None:
    """Twenty columns, two of which matter; the intercept is free. Least squares keeps the noise of all of them."""
    rng = np.random.default_rng(0)
    design, noise = np.c_[np.ones(4000), rng.normal(size=(4000, 20))], 4.0
    truth_Z = np.zeros(21)
    truth_Z[[0, 3, 7]] = 5.0, 1.0, -0.5
    part = Moments()
    part.add(design, design @ truth_Z + np.sqrt(noise) * rng.normal(size=4000))
    alone = part.relevant(noise, np.arange(21) - 1)
    plain = part.solve(1e-12, 1)
    assert (alone[[1, 2, *range(4, 7), *range(8, 21)]] == 0).sum() >= 10
    np.testing.assert_allclose(alone[[0, 3, 7]], plain[[0, 3, 7]], atol=0.02)
    assert ((alone - truth_Z) ** 2).sum() < 0.5 * ((plain - truth_Z) ** 2).sum()
    # In groups of ten a lone coefficient vouches for its nine neighbours: kept, each drawn to 0 by the same share.
    together = part.relevant(noise, np.r_[-1, np.repeat([0, 1], 10)])
    assert (together[1:11] != 0).all() and (together[11:] == 0).sum() in (0, 10)
    # Units do not matter: tenfold features, a hundredfold aim.
    scaled = Moments()
    scaled.square, scaled.aim, scaled.num = 100 * np.asarray(part.square), 1000 * np.asarray(part.aim), part.num
    np.testing.assert_allclose(scaled.relevant(10_000 * noise, np.arange(21) - 1), 10 * alone, rtol=1e-6, atol=1e-9)


def test_who_responds_to_nothing_is_told_from_all_actions_together() -> None:
    """Five messages, each for those of one taste; whoever is tired responds to none of them. The factor is learned from
    all five, and effects are told better with it; where nobody tires there is no factor."""
    error = {}
    for tiring in (1.0, 0.0):
        rng = np.random.default_rng(4)
        num, logging_QA = 20_000, np.full((20_000, 6), 1 / 6)
        taste_QT, tired_Q = rng.integers(0, 2, (num, 5)).astype(float), rng.random(num)
        features_QX, action_Q = np.c_[taste_QT, tired_Q, rng.normal(size=(num, 4))], rng.integers(0, 6, num)
        effect_QA = np.c_[np.zeros(num), 2 * taste_QT - 0.5] * 1.0
        effect_QA[:, 1:] *= np.where(effect_QA[:, 1:] > 0, (1 - tiring * tired_Q)[:, None], 1.0)
        reward_Q = 10 + effect_QA[np.arange(num), action_Q] + 2 * rng.normal(size=num)
        model = ProportionalOutcome(**SMALL, caution=(1.0, 2.0, 4.0))
        model.fit(features_QX, action_Q, reward_Q, np.zeros((6, 0)), 6, logging_QA=logging_QA)
        found_QA = model.predict(features_QX, np.zeros((6, 0)))
        # The mean under the log is that of m; differences between actions are the effects.
        np.testing.assert_allclose(found_QA.mean(), reward_Q.mean(), rtol=0.01)
        apart_QA = found_QA - found_QA.mean(axis=1, keepdims=True)
        error["with", tiring] = np.mean((apart_QA - effect_QA + effect_QA.mean(axis=1, keepdims=True)) ** 2)
        up_X = model.response_2G[0]
        again = ProportionalOutcome.from_arrays(model.arrays())
        np.testing.assert_allclose(again.predict(features_QX, np.zeros((6, 0))), found_QA, atol=1e-9)
        model.response_2G = np.zeros_like(model.response_2G)
        found_QA = model.predict(features_QX, np.zeros((6, 0)))
        apart_QA = found_QA - found_QA.mean(axis=1, keepdims=True)
        error["without", tiring] = np.mean((apart_QA - effect_QA + effect_QA.mean(axis=1, keepdims=True)) ** 2)
        tired = 2 + 5  # one, m, and five tastes go before
        if tiring:
            assert up_X[tired] < -0.2 and np.abs(np.delete(up_X, [0, 1, tired])).max() < 0.5 * -up_X[tired]
            assert error["with", tiring] < 0.7 * error["without", tiring]
        else:
            assert abs(up_X[tired]) < 0.1
            assert error["with", tiring] < 1.2 * error["without", tiring]


def test_factors_by_hand() -> None:
    """Effects 1 and 4 above and -2 below the reference 1: doubled above, gone below, and never turned around."""
    effect_QA = np.array([[2.0, 1.0, -1.0, 5.0]])
    up_QA, down_QA = up_and_down(effect_QA, 1)
    np.testing.assert_array_equal(up_QA, [[1, 0, 0, 4]])
    np.testing.assert_array_equal(down_QA, [[0, 0, -2, 0]])
    found_QA = responded(effect_QA, np.array([[1.0, 3.0]]), np.array([[1.0, 0.0], [-1.0, -1.0]]), 1)
    np.testing.assert_array_equal(found_QA, [[3, 1, 1, 9]])
    np.testing.assert_array_equal(responded(effect_QA, np.ones((1, 2)), np.zeros((2, 2)), 1), effect_QA)


def test_the_prior_is_chosen_by_other_rows() -> None:
    """One feature of thirty matters: each coefficient for itself. Without a candidate beside it the ridge stands."""
    rng = np.random.default_rng(1)
    num, logging_QA = 8000, np.full((8000, 2), 0.5)
    features_QX, action_Q = rng.normal(size=(num, 30)), rng.integers(0, 2, num)
    effect_Q = 0.5 * features_QX[:, 3]
    reward_Q = 3 + effect_Q * action_Q + rng.normal(size=num)
    asked_QX = rng.normal(size=(2000, 30))
    error = {}
    for caution in ((1.0, 2.0), ()):
        model = ProportionalOutcome(**SMALL, caution=caution)
        model.fit(features_QX, action_Q, reward_Q, np.zeros((2, 0)), 2, logging_QA=logging_QA)
        found_QA = model.predict(asked_QX, np.zeros((2, 0)))
        error[caution] = np.mean((found_QA[:, 1] - found_QA[:, 0] - 0.5 * asked_QX[:, 3]) ** 2)
        assert model.prior.startswith("relevance" if caution else "ridge")
    assert error[1.0, 2.0] < 0.25 * error[()]
    with pytest.raises(InputError, match="caution must be above 0"):
        ProportionalOutcome(caution=(0.0,))


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
