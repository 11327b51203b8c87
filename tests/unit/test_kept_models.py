"""Reward models, propensities and policies as plain numbers, and actions told by their description."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from constellation.errors import InputError
from constellation.journeys.action_descriptions import likeness
from constellation.policies.best_constant import BestConstant
from constellation.policies.cross_fit import fitted_propensities, person_folds
from constellation.policies.doubly_robust import DoublyRobustLearned
from constellation.policies.greedy import Greedy
from constellation.policies.kept import class_of, from_numbers, needs_fit, to_numbers
from constellation.policies.outcomes import BoostedOutcome, OutcomeModel, RidgeOutcome
from constellation.policies.policy import Policy, Situation
from constellation.policies.propensities import KeptPropensities
from constellation.policies.proportional import ProportionalOutcome
from constellation.policies.softmax import Softmax
from constellation.policies.trees import Trees


def table(num: int = 400, width: int = 5, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random((num, width)) < 0.2, np.nan, rng.normal(size=(num, width)).round(1))


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from([2, 3, 8, 31, 90]), st.integers(1, 6), st.booleans())
def test_trees_answer_as_the_library(seed: int, leaves: int, num_trees: int, several: bool) -> None:
    """Ties at thresholds, missing values, trees of more than one word of leaves, one leaf, several outputs."""
    rng = np.random.default_rng(seed)
    features = table(seed=seed)
    options = {"max_iter": num_trees, "max_leaf_nodes": leaves, "min_samples_leaf": 2, "early_stopping": False}
    if several:
        model = HistGradientBoostingClassifier(**options).fit(features, rng.integers(0, 3, len(features)))
        expected = model.decision_function(features)
    else:
        aim = np.nan_to_num(features[:, 0]) ** 2 + rng.normal(size=len(features)) * rng.integers(0, 2)
        model = HistGradientBoostingRegressor(**options).fit(features, aim)
        expected = model.predict(features)
    trees = Trees.from_arrays(Trees.of(model).arrays())
    np.testing.assert_allclose(trees.predict(features), expected, atol=1e-12)
    # Features that are the same in every row may be given once.
    fixed = features.copy()
    fixed[:, 3:] = features[0, 3:]
    np.testing.assert_allclose(
        trees.add(features[:, :3], features[0, 3:].tolist()),
        (model.decision_function(fixed) if several else model.predict(fixed)[:, None]),
        atol=1e-12,
    )


@pytest.mark.parametrize("model", [RidgeOutcome(), BoostedOutcome(num_trees=5, effect_trees=5, min_samples_leaf=5)])
def test_reward_models_are_what_their_arrays_say(model: OutcomeModel) -> None:
    rng = np.random.default_rng(0)
    features, action = table(), rng.integers(0, 3, 400)
    described = np.array([[0.0], [1.0], [2.0]])
    model.fit(features, action, np.nan_to_num(features[:, 0]) * action + rng.normal(size=400), described, 3)
    again = type(model).from_arrays(model.arrays())
    np.testing.assert_allclose(again.predict(features, described), model.predict(features, described), atol=1e-12)
    assert again.arrays().keys() == model.arrays().keys()


@pytest.mark.parametrize(
    "model", [RidgeOutcome(), BoostedOutcome(num_trees=5, effect_trees=5, min_samples_leaf=5), ProportionalOutcome()]
)
def test_a_feature_that_nobody_has_is_read_over(model: OutcomeModel) -> None:
    """A column without any value, and one that is empty in the training rows alone, say nothing."""
    rng = np.random.default_rng(0)
    features, action = np.nan_to_num(table()), rng.integers(0, 3, 400)
    reward = features[:, 0] * action + rng.normal(size=400)
    described = np.full((3, 1), np.nan)
    without = copy.deepcopy(model)
    without.fit(np.delete(features, 2, axis=1), action, reward, np.zeros((3, 0)), 3)
    features[:, 2] = np.nan
    model.fit(features, action, reward, described if isinstance(model, BoostedOutcome) else np.zeros((3, 0)), 3)
    there = features.copy()
    there[:, 2] = 7.0
    for asked in (features, there):
        found = model.predict(asked, described if isinstance(model, BoostedOutcome) else np.zeros((3, 0)))
        expected = without.predict(np.delete(asked, 2, axis=1), np.zeros((3, 0)))
        np.testing.assert_allclose(found, expected, atol=1e-6)
    again = type(model).from_arrays(model.arrays())
    np.testing.assert_allclose(again.predict(features, described), model.predict(features, described), atol=1e-9)


def test_a_model_without_arrays_says_so() -> None:
    class Mine(OutcomeModel):
        name = "mine"

        def fit(self, *arguments, **settings) -> None: ...

        def predict(self, features_QX, action_AY): ...

    with pytest.raises(InputError, match=r"mine cannot be exported: give Mine arrays\(\)"):
        Mine().arrays()
    with pytest.raises(InputError, match="Loading it would run code of"):
        class_of(f"{__name__}.Mine", OutcomeModel)
    with pytest.raises(InputError, match="is no OutcomeModel"):
        class_of("constellation.policies.greedy.Greedy", OutcomeModel)


@pytest.mark.parametrize("num_actions", [2, 3])
def test_kept_propensities_are_the_fitted_ones(num_actions: int) -> None:
    rng = np.random.default_rng(1)
    features = table(600)
    action = (np.nan_to_num(features[:, 0]) > 0).astype(int) + (rng.random(600) < 0.3) * (num_actions - 2)
    customer, fold = np.arange(600) // 2, np.zeros(600, dtype=int)
    models: list[object] = []
    chance = fitted_propensities(features, action, num_actions, fold, customer, seed=3, keep=models.append)
    kept = KeptPropensities.from_arrays(KeptPropensities.of(models, num_actions).arrays())
    group, everything = person_folds(customer, 3, 3), np.ones((600, num_actions), dtype=bool)
    np.testing.assert_allclose(kept.probabilities(features, group, everything), chance, atol=1e-12)
    some = everything.copy()
    some[:, 0] = False
    stranger = kept.probabilities(features, np.full(600, -1), some)
    assert (stranger[:, 0] == 0).all()
    np.testing.assert_allclose(stranger.sum(axis=1), 1.0)
    each = np.mean([kept.probabilities(features, np.full(600, place), everything) for place in range(3)], axis=0)
    np.testing.assert_allclose(kept.probabilities(features, np.full(600, -1), everything), each, atol=2e-3)  # floors


def situation(num: int = 300) -> Situation:
    rng = np.random.default_rng(2)
    members = rng.normal(size=(4, num, 3))
    eligible = (rng.random((num, 3)) < 0.7) | (np.arange(3) == 0)
    return Situation(
        ("none", "mail", "call"), members.mean(axis=0), members, 1.0, eligible,
        np.full((num, 3), 1 / 3), table(num), num,
    )  # fmt: skip


@pytest.mark.parametrize(
    "policy", [Greedy(), Softmax(temperature=0.3), BestConstant(), DoublyRobustLearned(num_steps=3)]
)
def test_policies_are_what_their_numbers_say(policy: Policy) -> None:
    here = situation()
    scores = np.random.default_rng(3).normal([0.0, 0.5, 0.2], size=here.expected_QA.shape)
    policy.fit(here, scores, np.arange(len(here)))
    words, arrays = to_numbers(policy)
    again = from_numbers(words, arrays)
    np.testing.assert_array_equal(again.probabilities(here), policy.probabilities(here))
    assert needs_fit(policy) == (not isinstance(policy, Greedy))


def test_a_new_action_is_told_by_the_known_ones() -> None:
    """Effects rise with loudness, by hand: with no ridge to speak of, a description between two actions says their
    mean, one beyond them goes beyond."""
    known = ["none", "mail", "push", "call"]
    described = {name: {"loud": place, "kind": "ad"} for place, name in enumerate(known)}
    effects = np.array([0.0, 1.0, 2.0, 3.0])
    new = {"card": {"loud": 1.5, "kind": "ad"}, "shout": {"loud": 4, "kind": "ad"}}
    found = likeness(known, effects, described, new)
    np.testing.assert_allclose(found.weight_NA.sum(axis=1), 1.0)
    np.testing.assert_allclose(found.weight_NA @ effects, [1.5, 4.0], atol=0.05)
    assert found.ridge == 0.01 and (found.error_N < 0.1).all()
    # The same weights serve each customer: one who hates noise is told so.
    assert (found.weight_NA @ -effects)[1] < -3.9
    # A description that says nothing about the effects is not believed: the mean of the known actions.
    shuffled = likeness(known, np.array([1.0, -1.0, 1.0, -1.0]), described, new)
    np.testing.assert_allclose(shuffled.weight_NA, 0.25)
    assert (shuffled.error_N > 1.0).all()
    with pytest.raises(InputError, match=r"no decisions\.action_features"):
        likeness(known, effects, None, new)
    with pytest.raises(InputError, match="must be described by kind, loud, found loud"):
        likeness(known, effects, described, {"card": {"loud": 1}})
