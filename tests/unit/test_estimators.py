"""Off-policy estimators against the peer library's stored answers, hand-computed cases and simulated truth."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from constellation.errors import InputError
from constellation.policies import estimators as e
from constellation.policies import intervals
from constellation.policies.log import Log
from constellation.policies.terms import Terms

OBP = Path(__file__).parents[1] / "oracles" / "obp"


@pytest.fixture(scope="module")
def oracle():
    return json.loads((OBP / "expected.json").read_text())


@pytest.fixture(scope="module")
def inputs():
    with np.load(OBP / "inputs.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def log(inputs):
    return Log.of(inputs["action"], inputs["reward"], inputs["logging"])


@pytest.mark.parametrize(
    ("name", "estimate"),
    [
        ("direct", lambda log, i: e.direct(log, i["target"], i["model"])),
        ("ips", lambda log, i: e.ips(log, i["target"])),
        ("ips_clipped_5", lambda log, i: e.ips(log, i["target"], clip=5.0)),
        ("snips", lambda log, i: e.snips(log, i["target"])),
        ("dr", lambda log, i: e.doubly_robust(log, i["target"], i["model"])),
        ("sndr", lambda log, i: e.self_normalised_doubly_robust(log, i["target"], i["model"])),
        ("switch_dr_3", lambda log, i: e.switch_doubly_robust(log, i["target"], i["model"], switch=3.0)),
        ("dros_2", lambda log, i: e.shrunk_doubly_robust(log, i["target"], i["model"], shrinkage=2.0)),
        ("mrdr", lambda log, i: e.doubly_robust(log, i["target"], i["mrdr_model"])),
    ],
)
def test_equal_to_obp(name, estimate, oracle, inputs, log):
    terms = estimate(log, inputs)
    assert terms.value == pytest.approx(oracle[name], abs=1e-9)
    assert terms.rows().mean() == pytest.approx(oracle[name], abs=1e-9)


@pytest.mark.parametrize(
    ("name", "estimator", "key"),
    [
        ("dros_slope", e.shrunk_doubly_robust, "shrinkage"),
        ("switch_dr_slope", e.switch_doubly_robust, "switch"),
    ],
)
def test_slope_takes_what_obp_takes(name, estimator, key, oracle, inputs, log):
    terms, setting = e.tuned(
        lambda value: estimator(log, inputs["target"], inputs["model"], **{key: value}), oracle["lambdas"]
    )
    assert setting == oracle[f"{name}_lambda"]
    assert terms.value == pytest.approx(oracle[name], abs=1e-9)


def test_a_model_fitted_with_mrdr_weights_is_that_of_obp(oracle, inputs, log):
    from sklearn.linear_model import Ridge

    weights_Q = e.mrdr_weights(log, inputs["target"])
    eye = np.eye(5)
    model = Ridge(alpha=1.0).fit(np.c_[inputs["context"], eye[log.action_Q]], log.reward_Q, sample_weight=weights_Q)
    model_QA = np.stack(
        [model.predict(np.c_[inputs["context"], np.tile(eye[action], (len(log), 1))]) for action in range(5)], axis=1
    )
    np.testing.assert_allclose(model_QA, inputs["mrdr_model"], atol=1e-6)
    assert e.doubly_robust(log, inputs["target"], model_QA).value == pytest.approx(oracle["mrdr"], abs=1e-6)


def test_bounds_are_those_of_obp(oracle, inputs, log):
    terms = e.ips(log, inputs["target"])
    assert intervals.student(terms, log.customer_Q, level=0.9).low == pytest.approx(oracle["student_low_ips"], abs=1e-9)
    low = intervals.empirical_bernstein(terms, log.customer_Q, reach=40.0, level=0.9).low
    assert low == pytest.approx(oracle["bernstein_low_ips_40"], abs=1e-9)


def test_by_hand():
    log = Log.of([0, 1, 0], [2.0, 4.0, 1.0], np.array([[0.5, 0.5], [0.75, 0.25], [0.8, 0.2]]))
    target_QA = np.array([[1.0, 0.0], [0.5, 0.5], [0.2, 0.8]])
    model_QA = np.array([[1.0, 9.0], [2.0, 3.0], [0.0, 2.0]])
    # weights 2, 2, 0.25
    assert e.ips(log, target_QA).value == pytest.approx((4 + 8 + 0.25) / 3)
    assert e.snips(log, target_QA).value == pytest.approx((4 + 8 + 0.25) / 4.25)
    assert e.direct(log, target_QA, model_QA).value == pytest.approx((1 + 2.5 + 1.6) / 3)
    correction = 2 * 1 + 2 * 1 + 0.25 * 1
    assert e.doubly_robust(log, target_QA, model_QA).value == pytest.approx((5.1 + correction) / 3)
    assert e.self_normalised_doubly_robust(log, target_QA, model_QA).value == pytest.approx(1.7 + correction / 4.25)
    assert e.switch_doubly_robust(log, target_QA, model_QA, switch=1.0).value == pytest.approx((5.1 + 0.25) / 3)
    scores_QA = e.scores(log, model_QA)
    np.testing.assert_allclose(scores_QA, [[1 + 1 / 0.5, 9], [2, 3 + 1 / 0.25], [0 + 1 / 0.8, 2]])


def problem(seed, num=400, num_actions=3):
    rng = np.random.default_rng(seed)
    logging_QA = rng.dirichlet(np.full(num_actions, 2.0), size=num) * 0.9 + 0.1 / num_actions
    action_Q = (logging_QA.cumsum(axis=1) < rng.random((num, 1))).sum(axis=1)
    log = Log.of(action_Q, rng.gamma(2.0, size=num), logging_QA, customer_Q=rng.integers(0, num // 3, num))
    return rng, log, rng.dirichlet(np.ones(num_actions), size=num), rng.normal(size=(num, num_actions))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_identities(seed):
    _, log, target_QA, model_QA = problem(seed)
    dr = e.doubly_robust(log, target_QA, model_QA)
    # Scores are what doubly robust sums; extreme settings are doubly robust, and the direct method.
    assert (target_QA * e.scores(log, model_QA)).sum(axis=1).mean() == pytest.approx(dr.value)
    assert e.switch_doubly_robust(log, target_QA, model_QA, switch=np.inf).value == pytest.approx(dr.value)
    assert e.shrunk_doubly_robust(log, target_QA, model_QA, shrinkage=np.inf).value == pytest.approx(dr.value)
    none = e.shrunk_doubly_robust(log, target_QA, model_QA, shrinkage=1e-12).value
    assert none == pytest.approx(e.direct(log, target_QA, model_QA).value, abs=1e-6)
    assert e.doubly_robust(log, target_QA, np.zeros_like(model_QA)).value == pytest.approx(e.ips(log, target_QA).value)
    # The logging policy is worth the mean reward, by each of them.
    for estimate in (e.ips(log, log.logging_QA), e.snips(log, log.logging_QA)):
        assert estimate.value == pytest.approx(log.reward_Q.mean())
    # A self-normalised estimate lies among the rewards and moves with them.
    snips = e.snips(log, target_QA)
    assert log.reward_Q.min() <= snips.value <= log.reward_Q.max()
    moved = Log.of(log.action_Q, log.reward_Q + 5, log.logging_QA, customer_Q=log.customer_Q)
    assert e.snips(moved, target_QA).value == pytest.approx(snips.value + 5)
    # Drawing each customer once changes nothing.
    place_Q = intervals.numbered(log.customer_Q)
    once = np.ones((1, place_Q.max() + 1))
    for terms in (dr, snips):
        assert terms.resampled(once, place_Q)[0] == pytest.approx(terms.value)


def test_intervals_of_clusters_cover():
    """Rewards that customers share: an interval by customer covers, one by row does not."""
    rng = np.random.default_rng(0)
    covered = {"student": 0, "bootstrap": 0, "sequence": 0, "rows": 0}
    num_customers, each, repeats = 60, 8, 150
    for repeat in range(repeats):
        customer_Q = np.repeat(np.arange(num_customers), each)
        reward_Q = rng.normal(size=num_customers)[customer_Q] + 0.5 * rng.normal(size=len(customer_Q))
        log = Log.of(np.zeros(len(reward_Q), int), reward_Q, np.ones((len(reward_Q), 1)), customer_Q=customer_Q)
        terms = e.snips(log, log.logging_QA)
        found = {
            "student": intervals.student(terms, customer_Q),
            "bootstrap": intervals.bootstrap(terms, customer_Q, num_resamples=200, seed=repeat),
            "sequence": intervals.confidence_sequence(terms, customer_Q),
            "rows": intervals.student(terms, np.arange(len(reward_Q))),
        }
        for name, interval in found.items():
            covered[name] += interval.low <= 0.0 <= interval.high
    # 95 % of 150 is 142.5 with a standard deviation of 2.7.
    assert covered["student"] >= 134
    assert covered["bootstrap"] >= 132
    assert covered["sequence"] >= covered["student"]
    assert covered["rows"] < 110


def test_a_confidence_sequence_holds_while_one_peeks():
    rng = np.random.default_rng(1)
    missed_sequence = missed_student = 0
    for _ in range(200):
        rewards = rng.normal(size=600)
        wrong_sequence = wrong_student = False
        for num in np.geomspace(50, 600, 12).astype(int):  # a look whenever a quarter more is there
            terms, who = Terms.mean_of(rewards[:num]), np.arange(num)
            sequence = intervals.confidence_sequence(terms, who, planned=200)
            student = intervals.student(terms, who)
            wrong_sequence |= not sequence.low <= 0 <= sequence.high
            wrong_student |= not student.low <= 0 <= student.high
        missed_sequence += wrong_sequence
        missed_student += wrong_student
    assert missed_sequence <= 18  # 5 % of 200 and two and a half standard deviations
    assert missed_student > 30


def test_log_refuses_what_no_policy_can_have_done():
    with pytest.raises(InputError, match=r"propensity outside \(0, 1\]"):
        Log.of([1], [1.0], np.array([[1.0, 0.0]]))
    with pytest.raises(InputError, match="not eligible"):
        Log.of([1], [1.0], np.array([[0.5, 0.5]]), eligible_QA=np.array([[True, False]]))
