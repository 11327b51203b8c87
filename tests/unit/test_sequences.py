"""Sequences of decisions: estimators by hand, against a chain whose truth is simulated, and rewards of single steps."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from constellation.commands.engagement.steps import step_rewards
from constellation.errors import InputError
from constellation.journeys.build import store_from_frame
from constellation.journeys.decisions import DecisionRule, clean_decisions
from constellation.policies import intervals, sequences
from constellation.policies.cross_fit import TRAIN_ONLY, cross_fit
from constellation.policies.diagnostics import diagnose_weights
from constellation.policies.evaluation import Experiment, Refit, evaluate_policies
from constellation.policies.log import Log
from constellation.policies.outcomes import RidgeOutcome
from constellation.policies.sequence_values import SequenceOptions, SequenceValue, evaluate_sequences
from constellation.policies.sequences import Steps
from constellation.policies.terms import Terms
from constellation.policies.uniform import Uniform
from constellation.policies.verdict import judge
from constellation.schema import EventSchema

DAY = 86_400_000_000


def chain(rng, num, chance):
    """A chain of two states and two actions: action 1 moves to state 1, where action 1 pays 1."""
    state_JT, action_JT, reward_JT = (np.zeros((num, 4), dtype=int) for _ in range(3))
    state = np.zeros(num, dtype=int)
    for step in range(4):
        action = (rng.random(num) < chance[state]).astype(int)
        state_JT[:, step], action_JT[:, step] = state, action
        reward_JT[:, step] = (state == 1) & (action == 1)
        state = action
    return state_JT, action_JT, reward_JT.astype(float)


def test_sequences_find_the_value_of_another_policy():
    rng = np.random.default_rng(3)
    logging, target = np.array([0.4, 0.5]), np.array([0.7, 0.8])
    truth = chain(rng, 400_000, target)[2].sum(axis=1).mean()
    state_JT, action_JT, reward_JT = chain(rng, 20_000, logging)
    present_JT = np.ones_like(state_JT, dtype=bool)
    chosen = np.where(action_JT == 1, target[state_JT], 1 - target[state_JT])
    weight_JT = chosen / np.where(action_JT == 1, logging[state_JT], 1 - logging[state_JT])
    arrays = (weight_JT, reward_JT, present_JT)
    features_JTX = (state_JT == 1).astype(float)[:, :, None]
    target_JTA = np.stack([1 - target[state_JT], target[state_JT]], axis=2)
    models = sequences.fitted_q(
        RidgeOutcome(ridge=1e-9, effect_ridge=1e-9), features_JTX, action_JT, reward_JT, present_JT, target_JTA,
        np.zeros((2, 0)), target_JTA,
    )  # fmt: skip
    q_JTA = np.stack([model.predict(features_JTX[:, t], np.zeros((2, 0))) for t, model in enumerate(models)], axis=1)
    q_JT = np.take_along_axis(q_JTA, action_JT[:, :, None], axis=2)[:, :, 0]
    v_JT = (q_JTA * target_JTA).sum(axis=2)
    errors = {}
    for name, terms in {
        "per_decision": sequences.per_decision(*arrays),
        "normalised": sequences.per_decision(*arrays, self_normalised=True),
        "doubly_robust": sequences.doubly_robust_sequence(*arrays, q_JT, v_JT),
        "marginal": sequences.marginal(*arrays, state_JT).terms,
    }.items():
        errors[name] = intervals.standard_error(terms, np.arange(len(terms)))
        assert abs(terms.value - truth) < 4 * errors[name] + 0.005, name
    assert errors["doubly_robust"] < errors["marginal"] < errors["per_decision"]
    assert v_JT[:, 0].mean() == pytest.approx(truth, abs=0.03)
    steps = sequences.effective_sample_size_by_step(weight_JT, present_JT)
    assert (np.diff(steps) < 0).all()
    # One weight per step: those of the last step say far more than the products.
    last_J = sequences.marginal(*arrays, state_JT).weight_JT[:, -1]
    assert last_J.mean() == pytest.approx(1, abs=0.03)
    assert last_J.sum() ** 2 / (last_J**2).sum() > 1.3 * steps[-1]


def test_intervals_of_sequences_cover():
    rng = np.random.default_rng(5)
    logging, target, repeats = np.array([0.4, 0.5]), np.array([0.7, 0.8]), 120
    truth = chain(rng, 400_000, target)[2].sum(axis=1).mean()
    covered = dict.fromkeys(("per_decision", "normalised", "marginal"), 0)
    for _ in range(repeats):
        state_JT, action_JT, reward_JT = chain(rng, 800, logging)
        chosen = np.where(action_JT == 1, target[state_JT], 1 - target[state_JT])
        weight_JT = chosen / np.where(action_JT == 1, logging[state_JT], 1 - logging[state_JT])
        arrays = (weight_JT, reward_JT, np.ones_like(state_JT, dtype=bool))
        for name, terms in {
            "per_decision": sequences.per_decision(*arrays),
            "normalised": sequences.per_decision(*arrays, self_normalised=True),
            "marginal": sequences.marginal(*arrays, state_JT).terms,
        }.items():
            interval = intervals.student(terms, np.arange(800))
            covered[name] += interval.low <= truth <= interval.high
    # 95 % of 120 is 114 with a standard deviation of 2.4; products of weights have a tail, which costs a little.
    assert min(covered.values()) >= 107, covered


def test_decisions_after_a_date_are_modelled_by_halves():
    """The first step is learned from, the rest judged in one fold: values to go come from the other half's models."""
    rng = np.random.default_rng(4)
    state_JT, action_JT, reward_JT = chain(rng, 800, np.array([0.4, 0.5]))
    num = state_JT.size
    customer_Q, step_Q = np.repeat(np.arange(800), 4), np.tile(np.arange(4), 800)
    chance_Q = np.array([0.4, 0.5])[state_JT.ravel()]
    log = Log.of(
        action_JT.ravel(), reward_JT.ravel(), np.stack([1 - chance_Q, chance_Q], axis=1), customer_Q=customer_Q
    )
    fold_Q = np.where(step_Q == 0, TRAIN_ONLY, 0)
    features_QX = state_JT.reshape(num, 1).astype(float)
    predictions = cross_fit(
        RidgeOutcome(), features_QX, log.action_Q, log.reward_Q, np.zeros((2, 0)), customer_Q, fold_Q, log.logging_QA,
        num_members=1,
    )  # fmt: skip
    ground = Experiment(log, fold_Q, features_QX, predictions)
    evaluated = evaluate_policies(ground, {"uniform": Uniform()}, num_resamples=20, keep_learned=True)
    options = SequenceOptions(("doubly_robust", "per_decision"), num_steps=3)
    refit = Refit(RidgeOutcome(), np.zeros((2, 0)))
    found = evaluate_sequences(ground, evaluated, step_Q, log.reward_Q, options, refit=refit, num_resamples=200)
    # From the second step on by equal chances, the state there as the log has it.
    content, truth = action_JT[:, 0].mean(), 0.0
    for _ in range(3):
        truth, content = truth + 0.5 * content, 0.5
    robust, plain = (found["uniform", name] for name in options.estimators)
    assert robust.value.low < truth < robust.value.high and plain.value.low < truth < plain.value.high
    assert robust.value.high - robust.value.low < 0.8 * (plain.value.high - plain.value.low)
    assert len(robust.effective_T) == 3
    with pytest.raises(InputError, match="no customer has more than one"):
        alone = Experiment(log, np.where(step_Q == 1, 0, TRAIN_ONLY), features_QX, predictions)
        evaluate_sequences(alone, evaluated, step_Q, log.reward_Q, options, refit=refit)


def test_a_step_that_no_other_customer_reaches_is_told_by_weights_alone():
    """One of 40 customers has a second decision: no model of the others' second steps can be fitted."""
    rng = np.random.default_rng(6)
    customer_Q, step_Q = np.append(np.arange(40), 0), np.append(np.zeros(40, dtype=int), 1)
    log = Log.of(rng.integers(0, 2, 41), rng.normal(size=41), np.full((41, 2), 0.5), customer_Q=customer_Q)
    features_QX, fold_Q = rng.normal(size=(41, 1)), customer_Q % 2
    predictions = cross_fit(
        RidgeOutcome(), features_QX, log.action_Q, log.reward_Q, np.zeros((2, 0)), customer_Q, fold_Q, log.logging_QA,
        num_members=1,
    )  # fmt: skip
    ground = Experiment(log, fold_Q, features_QX, predictions)
    evaluated = evaluate_policies(ground, {"uniform": Uniform()}, num_resamples=20, keep_learned=True)
    options, refit = SequenceOptions(("doubly_robust",)), Refit(RidgeOutcome(), np.zeros((2, 0)))
    found = evaluate_sequences(ground, evaluated, step_Q, log.reward_Q, options, refit=refit, num_resamples=20)
    value = found["uniform", "doubly_robust"].value
    assert value.low < value.value < value.high
    for steps in sequences.fitted_q(
        RidgeOutcome(), features_QX[:4, None], log.action_Q[:4, None], log.reward_Q[:4, None],
        np.zeros((4, 1), dtype=bool), np.full((4, 1, 2), 0.5), np.zeros((2, 0)), np.full((4, 1, 2), 0.5),
    ):  # fmt: skip
        assert steps is None


def test_sequences_by_hand_and_after_the_end():
    weight_JT = np.array([[2.0, 0.5], [1.0, 7.0]])
    reward_JT = np.array([[1.0, 4.0], [3.0, 99.0]])
    present_JT = np.array([[True, True], [True, False]])
    assert sequences.per_decision(weight_JT, reward_JT, present_JT).value == pytest.approx((2 + 4 + 3) / 2)
    assert sequences.per_decision(weight_JT, reward_JT, present_JT, discount=0.5).value == pytest.approx(
        (2 + 2 + 3) / 2
    )
    # Step by step: (2 * 1 + 1 * 3) / (2 + 1), and (2 * .5 * 4 + 0) / (1 + 1).
    normalised = sequences.per_decision(weight_JT, reward_JT, present_JT, self_normalised=True)
    assert normalised.value == pytest.approx(5 / 3 + 4 / 2)
    zero = np.zeros((2, 2))
    exact = sequences.doubly_robust_sequence(weight_JT, reward_JT, present_JT, zero, zero)
    assert exact.value == pytest.approx((2 * (1 + 0.5 * 4) + 3) / 2)


def test_marginal_by_hand_and_its_variance():
    """Two states; those in state 0 stay or move to state 1, where only a second step pays."""
    state_JT = np.array([[0, 0], [0, 1], [0, 1], [1, 1]])
    weight_JT = np.array([[0.5, 1.0], [1.5, 2.0], [1.0, 1.0], [1.0, 0.0]])
    reward_JT = np.array([[1.0, 0.0], [0.0, 6.0], [2.0, 3.0], [4.0, 5.0]])
    present_JT = np.ones((4, 2), dtype=bool)
    # First step: state 0 brings (.5 + 0 + 2) / 3, state 1 brings 4; shares 3/4 and 1/4.
    first = 0.75 * 2.5 / 3 + 0.25 * 4
    # Moved: to state 0 .75 * .5 / 3; to state 1 .75 * 2.5 / 3 + .25 * 1. There: 0, and (12 + 3 + 0) / 3.
    second = (0.75 * 2.5 / 3 + 0.25) * 15 / 3
    found = sequences.marginal(weight_JT, reward_JT, present_JT, state_JT)
    assert found.terms.value == pytest.approx(first + second)
    # The same numbers where the weights are 1: the mean return.
    plain = sequences.marginal(np.ones((4, 2)), reward_JT, present_JT, state_JT)
    assert plain.terms.value == pytest.approx(reward_JT.sum() / 4)
    np.testing.assert_allclose(plain.weight_JT, 1)
    # Its variance is that over resamples of journeys.
    rng = np.random.default_rng(0)
    logging, target = np.array([0.4, 0.5]), np.array([0.7, 0.8])
    state_JT, action_JT, reward_JT = chain(rng, 600, logging)
    chosen = np.where(action_JT == 1, target[state_JT], 1 - target[state_JT])
    weight_JT = chosen / np.where(action_JT == 1, logging[state_JT], 1 - logging[state_JT])
    present_JT = np.arange(4) < rng.integers(1, 5, 600)[:, None]
    told = intervals.standard_error(
        sequences.marginal(weight_JT, reward_JT, present_JT, state_JT).terms, np.arange(600)
    )
    values = []
    for _ in range(300):
        rows = rng.integers(0, 600, 600)
        again = sequences.marginal(weight_JT[rows], reward_JT[rows], present_JT[rows], state_JT[rows])
        values.append(again.terms.value)
    assert told == pytest.approx(np.std(values), rel=0.15)


def test_a_step_that_the_target_never_reaches_has_no_value():
    """Nobody went on as the target would: the first step says something, the second nothing."""
    weight_JT, present_JT = np.array([[2.0, 0.0], [0.0, 3.0]]), np.ones((2, 2), dtype=bool)
    found = sequences.per_decision(weight_JT, np.ones((2, 2)), present_JT, self_normalised=True)
    assert np.isnan(found.value)
    assert sequences.per_decision(weight_JT, np.ones((2, 2)), present_JT).value == 1.0
    verdict = judge(
        found,
        Terms.mean_of(np.ones(2)),
        np.arange(2),
        diagnose_weights(np.zeros(2), np.arange(2), 0.0),
        against="logged",
    )
    nothing = SequenceValue(intervals.Interval(found.value, np.nan, np.nan), np.array([1.0, 0.0]), 0.0, verdict)
    assert nothing.numbers() == {"effective_sample_size": 0.0, "effective_sample_share": 0.0, "verdict": 0.0}


def test_steps_are_the_first_decisions_of_each_customer():
    customer_Q = np.array([7, 3, 7, 3, 7, 9])
    time_Q = np.array([5, 1, 2, 9, 8, 4])
    steps = Steps.of(customer_Q, time_Q, 2)
    np.testing.assert_array_equal(steps.present_JT, [[True, True], [True, True], [True, False]])
    np.testing.assert_array_equal(steps(time_Q), [[1, 9], [2, 5], [4, 0]])
    assert steps(np.ones((6, 3))).shape == (3, 2, 3)


def store_with(reward: str, *, given: bool = False):
    """One customer, decisions on days 1, 3 and 9, windows of five days; 1, 10 and 100 are spent on days 2, 4, 9.5."""
    days = [2.0, 4.0, 9.5]
    start = 1_700_000_000_000_000
    times = pl.Series([start + round(day * DAY) for day in days]).cast(pl.Datetime("us", "UTC"))
    events = pl.DataFrame(
        {"customer_id": ["a"] * 3, "event_time": times, "event_type": ["buy"] * 3, "amount": [1.0, 10.0, 100.0]}
    )
    store = store_from_frame(events, EventSchema(), observed_until="2024-01-01")
    when = pl.Series([start + day * DAY for day in (1, 3, 9)]).cast(pl.Datetime("us", "UTC"))
    table = pl.DataFrame({"customer_id": ["a"] * 3, "decision_time": when, "action": ["mail", "none", "mail"]})
    if given:
        table = table.with_columns(reward=pl.Series([5.0, 6.0, 7.0]))
    rule = DecisionRule(kind="table", reward_days=5, reward=reward, cost={"mail": 0.5})
    return store, rule, rule.derive(store, clean_decisions(table, store.schema))


@pytest.mark.parametrize(
    ("reward", "whole", "by_step"),
    [
        ("amount", [10.5, 10.0, 99.5], [0.5, 10.0, 99.5]),
        ("response", [0.5, 1.0, 0.5], [0.5, 1.0, 0.5]),
        ("2 * sum(amount)", [21.5, 20.0, 199.5], [1.5, 20.0, 199.5]),
    ],
)
def test_rewards_of_steps_count_nothing_twice(reward, whole, by_step):
    store, rule, decisions = store_with(reward)
    np.testing.assert_allclose(decisions.reward_Q, whole)
    np.testing.assert_allclose(step_rewards(store, rule, decisions), by_step)


def test_rewards_that_a_table_gives_cannot_be_cut():
    store, rule, decisions = store_with("amount", given=True)
    assert step_rewards(store, rule, decisions) is None
    short = DecisionRule(kind="table", reward_days=1)
    np.testing.assert_array_equal(step_rewards(store, short, decisions), [5.0, 6.0, 7.0])
    alone = SimpleNamespace(**{**vars(decisions), "journey_Q": np.arange(3)})
    np.testing.assert_array_equal(step_rewards(store, rule, alone), [5.0, 6.0, 7.0])


def test_options_say_what_they_take():
    assert SequenceOptions(["marginal", "marginal"]).estimators == ("marginal",)
    with pytest.raises(InputError, match="must be among per_decision, self_normalised"):
        SequenceOptions(("trajectory",))
    with pytest.raises(InputError, match="num_steps must be at least 2"):
        SequenceOptions(num_steps=1)
    with pytest.raises(InputError, match="discount"):
        SequenceOptions(discount=0)
