"""Verdicts, diagnostics, policies: a claim is made where it is true, and held back where nothing is known."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from constellation.errors import InputError
from constellation.policies import estimators as e
from constellation.policies.best_constant import BestConstant
from constellation.policies.diagnostics import balance, diagnose, effective_sample_size, overlap_figure
from constellation.policies.doubly_robust import DoublyRobustLearned
from constellation.policies.greedy import Greedy
from constellation.policies.intervals import miss_chances, skewness
from constellation.policies.log import Log
from constellation.policies.logged import LoggedPolicy
from constellation.policies.pessimistic import Pessimistic
from constellation.policies.policy import Situation, abstention, draw, predictions_frame
from constellation.policies.softmax import Softmax
from constellation.policies.terms import Terms
from constellation.policies.thompson import Thompson, chance_of_best
from constellation.policies.uniform import Uniform
from constellation.policies.verdict import BETTER, NOT_SHOWN, WORSE, joint, judge

ACTIONS = ("none", "mail", "call")
POLICIES = [
    LoggedPolicy(), Uniform(), Greedy(), Softmax(), Softmax(temperature=2.0, exploration=0.1), Pessimistic(),
    Thompson(), BestConstant(), DoublyRobustLearned(ridges=(0.01,), num_steps=10),
]  # fmt: skip


def world(seed, num=4000, effect=1.0):
    """Mail helps where x > 0 and harms elsewhere; a call always costs half as much as mail can bring."""
    rng = np.random.default_rng(seed)
    features_QX = np.c_[rng.normal(size=num), rng.normal(size=num)]
    truth_QA = np.c_[np.zeros(num), effect * np.sign(features_QX[:, 0]), np.full(num, -0.5 * effect)]
    logging_QA = np.tile([0.5, 0.3, 0.2], (num, 1))
    action_Q = rng.choice(3, size=num, p=logging_QA[0])
    reward_Q = truth_QA[np.arange(num), action_Q] + rng.normal(size=num)
    log = Log.of(action_Q, reward_Q, logging_QA, actions=ACTIONS)
    members_MQA = truth_QA + 0.2 * rng.normal(size=(5, *truth_QA.shape))
    situation = Situation(
        ACTIONS, members_MQA.mean(axis=0), members_MQA, 1.0, np.ones_like(truth_QA, dtype=bool), logging_QA,
        features_QX, num,
    )  # fmt: skip
    return log, situation, truth_QA


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(range(len(POLICIES))))
def test_every_policy_gives_probabilities_of_eligible_actions(seed, place):
    rng = np.random.default_rng(seed)
    log, situation, _ = world(seed, num=300)
    eligible_QA = rng.random((300, 3)) < 0.6
    eligible_QA[np.arange(300), rng.integers(0, 3, 300)] = True
    logging_QA = eligible_QA / eligible_QA.sum(axis=1, keepdims=True)
    situation = Situation(
        ACTIONS, situation.expected_QA, situation.members_MQA, 1.0, eligible_QA, logging_QA, situation.features_QX, 300
    )
    policy = POLICIES[place]
    policy.fit(situation, e.scores(log, situation.expected_QA), log.customer_Q)
    target_QA = policy.probabilities(situation)
    np.testing.assert_allclose(target_QA.sum(axis=1), 1.0)
    assert (target_QA >= 0).all()
    assert (target_QA[~eligible_QA] == 0).all()
    choice_Q, propensity_Q = draw(target_QA, seed)
    assert (propensity_Q > 0).all()
    assert (target_QA[np.arange(300), choice_Q] == propensity_Q).all()


def test_a_policy_that_knows_is_better_and_its_mirror_is_not():
    log, situation, truth_QA = world(0)
    half = np.arange(len(log)) % 2 == 0
    learned = DoublyRobustLearned(ridges=(0.001, 0.1))
    learned.fit(situation.take(half), e.scores(log.take(half), situation.expected_QA[half]), np.arange(half.sum()))
    test, there = log.take(~half), situation.take(~half)
    model_QA = there.expected_QA
    logged = e.doubly_robust(test, test.logging_QA, model_QA)
    for policy in (Greedy(), Pessimistic(), learned):
        target_QA = policy.probabilities(there)
        assert (target_QA * truth_QA[~half]).sum(axis=1).mean() > 0.42  # the best policy is worth one half
        terms = e.doubly_robust(test, target_QA, model_QA)
        verdict = judge(terms, logged, test.customer_Q, diagnose(test, target_QA), against="logged", num_candidates=3)
        assert verdict.word == "better"
        assert verdict.low > 0
        back = judge(logged, terms, test.customer_Q, diagnose(test, test.logging_QA), against="greedy")
        assert back.answer == WORSE
    nothing = judge(logged, logged, test.customer_Q, diagnose(test, test.logging_QA), against="logged")
    assert nothing.answer == NOT_SHOWN
    assert nothing.gain == 0


def test_wrong_claims_are_as_rare_as_promised():
    """No effect at all and ten candidates: some candidate is called better in at most 5 % of the logs."""
    rng = np.random.default_rng(5)
    wrong = unpaid = 0
    repeats, num = 300, 400
    for _ in range(repeats):
        log = Log.of(rng.integers(0, 2, num), rng.normal(size=num), np.full((num, 2), 0.5))
        logged = e.ips(log, log.logging_QA)
        claims = []
        for _ in range(10):
            target_QA = np.eye(2)[rng.integers(0, 2, num)]
            asked = partial(judge, e.ips(log, target_QA), logged, log.customer_Q, diagnose(log, target_QA))
            if asked(against="logged", num_candidates=1).answer == BETTER:  # who does not pass alone does not among ten
                claims.append(asked(against="logged", num_candidates=10).answer)
        wrong += BETTER in claims
        unpaid += bool(claims)
    assert wrong <= 0.05 * repeats + 2.5 * np.sqrt(0.05 * 0.95 * repeats)
    assert unpaid > 0.2 * repeats


def test_gates_hold_a_claim_back():
    rng = np.random.default_rng(6)
    num = 5000
    logging_QA = np.tile([0.99, 0.01], (num, 1))
    action_Q = (rng.random(num) < 0.01).astype(int)
    log = Log.of(action_Q, 10.0 * action_Q + 0.01 * rng.normal(size=num), logging_QA)
    target_QA = np.tile([0.0, 1.0], (num, 1))
    diagnosis = diagnose(log, target_QA)
    assert diagnosis.effective_sample_size == pytest.approx(action_Q.sum())
    terms, logged = e.snips(log, target_QA), e.snips(log, logging_QA)
    verdict = judge(terms, logged, log.customer_Q, diagnosis, against="logged")
    assert verdict.low > 0
    assert verdict.answer == NOT_SHOWN
    assert "effective decisions" in verdict.reason
    never = diagnose(Log.of(np.zeros(num, int), np.ones(num), np.tile([1.0, 0.0], (num, 1))), np.full((num, 2), 0.5))
    assert never.unsupported == 0.5
    assert not never.weights_fit
    wrong = Log.of(action_Q, np.ones(num), np.tile([0.5, 0.5], (num, 1)))  # propensities that are not those of the log
    mixed_QA = np.tile([0.2, 0.8], (num, 1))
    said = judge(
        e.ips(wrong, mixed_QA), e.snips(wrong, mixed_QA), wrong.customer_Q, diagnose(wrong, mixed_QA), against="x"
    )
    assert said.answer == NOT_SHOWN
    assert "propensities are wrong" in said.reason


def test_joint_verdicts():
    log, situation, _ = world(1)
    target_QA = Greedy().probabilities(situation)
    terms, diagnosis = e.doubly_robust(log, target_QA, situation.expected_QA), diagnose(log, target_QA)
    logged = e.doubly_robust(log, log.logging_QA, situation.expected_QA)
    better = judge(terms, logged, log.customer_Q, diagnosis, against="logged")
    same = judge(terms, terms, log.customer_Q, diagnosis, against="itself")
    assert joint([better, better]) == BETTER
    assert joint([better, same]) == NOT_SHOWN
    worse = judge(logged, terms, log.customer_Q, diagnose(log, log.logging_QA), against="greedy")
    assert joint([better, worse]) == WORSE


def test_diagnostics_by_hand():
    assert effective_sample_size(np.array([1.0, 1.0, 2.0])) == pytest.approx(16 / 6)
    assert effective_sample_size(np.zeros(3)) == 0
    log, situation, _ = world(2)
    assert diagnose(log, log.logging_QA).effective_sample_share == pytest.approx(1.0)
    assert np.abs(balance(log, situation.features_QX, 1)).max() < 0.1
    chosen = situation.features_QX[:, 0] > 0
    biased = Log.of(chosen.astype(int), np.zeros(len(log)), np.full((len(log), 2), 0.5))
    assert balance(biased, situation.features_QX, 1)[0] > 0.5
    # Who could not have had the action is no part of whom it is compared with.
    limited_QA = np.where(chosen[:, None], 0.5, [[1.0, 0.0]])
    drawn_Q = np.random.default_rng(0).integers(0, 2, len(log)) * chosen
    fair = Log.of(drawn_Q, np.zeros(len(log)), limited_QA, eligible_QA=limited_QA > 0)
    assert np.abs(balance(fair, situation.features_QX, 1)).max() < 0.1
    figure = overlap_figure(log, {"greedy": Greedy().probabilities(situation)})
    assert figure.axes[0].get_legend() is not None


def test_thompson_is_exact():
    rng = np.random.default_rng(3)
    mean_QA, sd_QA = rng.normal(size=(4, 3)), rng.uniform(0.3, 2.0, size=(4, 3))
    eligible_QA = np.ones((4, 3), dtype=bool)
    eligible_QA[3, 1] = False
    exact_QA = chance_of_best(mean_QA, sd_QA, eligible_QA)
    draws = np.where(eligible_QA, mean_QA + sd_QA * rng.normal(size=(400_000, 4, 3)), -np.inf)
    counted_QA = (draws.argmax(axis=2)[:, :, None] == np.arange(3)).mean(axis=0)
    np.testing.assert_allclose(exact_QA, counted_QA, atol=4e-3)
    # Two arms: the chance is a normal probability in closed form.
    from scipy.stats import norm

    two = chance_of_best(np.array([[1.0, 0.0]]), np.array([[1.0, 2.0]]), np.ones((1, 2), dtype=bool))
    assert two[0, 0] == pytest.approx(norm.cdf(1 / np.sqrt(5)), abs=1e-3)


def test_pessimism_abstains_where_nothing_is_sure():
    _, situation, _truth_QA = world(4, effect=0.0)
    assert abstention(Pessimistic(kappa=3.0).probabilities(situation), ACTIONS) > 0.95
    _, sure, _ = world(4, effect=3.0)
    good_Q = sure.features_QX[:, 0] > 0
    target_QA = Pessimistic().probabilities(sure)
    assert target_QA[good_Q, 1].mean() > 0.99
    assert target_QA[~good_Q, 0].mean() > 0.99
    rare = Situation(
        ACTIONS, sure.expected_QA, sure.members_MQA, 1.0, sure.eligible_QA, np.tile([0.999, 0.001, 0.0], (4000, 1)),
        sure.features_QX, 4000,
    )  # fmt: skip
    assert abstention(Pessimistic().probabilities(rare), ACTIONS) == 1.0
    levels = [abstention(Pessimistic(kappa=kappa).probabilities(situation), ACTIONS) for kappa in (0.0, 1.0, 2.0)]
    assert levels == sorted(levels)


def test_constant_and_errors():
    log, situation, _ = world(7)
    scores_QA = e.scores(log, situation.expected_QA)
    best = BestConstant()
    best.fit(situation, scores_QA, log.customer_Q)
    assert len(np.unique(best.probabilities(situation).argmax(axis=1))) == 1
    named = BestConstant(action="call")
    named.fit(situation, scores_QA, log.customer_Q)
    assert (named.probabilities(situation)[:, 2] == 1).all()
    with pytest.raises(InputError, match="the actions are none, mail, call"):
        BestConstant(action="fax").fit(situation, scores_QA, log.customer_Q)
    with pytest.raises(InputError, match="temperature"):
        Softmax(temperature=0)


def test_a_great_log_is_learned_from_coarse_to_fine(monkeypatch):
    """A first pass over one row in eight ends near where all rows end: the same policy, and the same penalty."""
    log, situation, truth_QA = world(11, num=16_000)
    scores_QA = e.scores(log, situation.expected_QA)
    whole, staged = DoublyRobustLearned(ridges=(0.01, 0.1)), DoublyRobustLearned(ridges=(0.01, 0.1))
    whole.fit(situation, scores_QA, log.customer_Q)
    monkeypatch.setattr("constellation.policies.doubly_robust.COARSE_ROWS", 500)
    staged.fit(situation, scores_QA, log.customer_Q)
    assert staged.ridge == whole.ridge
    one_QA, two_QA = whole.probabilities(situation), staged.probabilities(situation)
    assert not np.array_equal(one_QA, two_QA)  # another way was taken
    assert np.abs(one_QA - two_QA).mean() < 0.02
    earned = [(each_QA * truth_QA).sum(axis=1).mean() for each_QA in (one_QA, two_QA)]
    assert earned[1] == pytest.approx(earned[0], abs=0.01) and earned[1] > 0.3


def test_predictions_frame_is_what_allocation_reads():
    _, situation, _ = world(8, num=10)
    frame = predictions_frame([f"c{place}" for place in range(10)], situation)
    assert list(frame.columns) == ["customer_id", "action", "expected", "lower", "eligible", "propensity"]
    assert len(frame) == 30
    assert (frame["lower"] <= frame["expected"]).all()
    row = frame[(frame.customer_id == "c3") & (frame.action == "mail")].iloc[0]
    assert row["expected"] == situation.expected_QA[3, 1]


def test_rounding_is_no_claim():
    """The same policy written in another way differs from itself in the last digit, in every row to the same side."""
    log, situation, _ = world(4, num=500)
    same_QA = log.logging_QA * (1 - 1e-15)
    terms = [e.doubly_robust(log, target_QA, situation.expected_QA) for target_QA in (same_QA, log.logging_QA)]
    assert terms[0].value != terms[1].value
    for one, two in (terms, terms[::-1]):
        verdict = judge(one, two, log.customer_Q, diagnose(log, same_QA), against="itself")
        assert verdict.answer == NOT_SHOWN


def test_the_reference_must_be_in_the_log_too():
    """Doing nothing is logged all the time; a constant call, which it is compared with, once in a hundred decisions."""
    rng = np.random.default_rng(6)
    num, logging_QA = 5000, np.tile([0.99, 0.01], (5000, 1))
    action_Q = (rng.random(num) < 0.01).astype(int)
    log = Log.of(action_Q, -10.0 * action_Q + 0.01 * rng.normal(size=num), logging_QA)
    nothing_QA, call_QA = np.tile([1.0, 0.0], (num, 1)), np.tile([0.0, 1.0], (num, 1))
    diagnosis, of_call = diagnose(log, nothing_QA), diagnose(log, call_QA)
    assert diagnosis.effective_sample_share > 0.9 > 0.05 > of_call.effective_sample_share
    terms, reference = e.snips(log, nothing_QA), e.snips(log, call_QA)
    blind = judge(terms, reference, log.customer_Q, diagnosis, against="best_constant")
    assert blind.answer == BETTER
    said = judge(terms, reference, log.customer_Q, diagnosis, against="best_constant", reference_diagnosis=of_call)
    assert said.answer == NOT_SHOWN
    assert said.gain == blind.gain and said.low == blind.low
    assert "for best_constant, which it is compared with" in said.reason


def test_skewness_by_hand_and_what_it_does_to_bounds():
    # Around their mean of 1 the rows are -1, -1, -1, 3: cubes add up to 24, squares to 12.
    assert skewness(Terms.mean_of(np.array([0.0, 0.0, 0.0, 4.0])), np.arange(4)) == pytest.approx(24 / 12**1.5)
    # Two customers: the parts are -2 and 2.
    assert skewness(Terms.mean_of(np.array([0.0, 0.0, 0.0, 4.0])), np.array([0, 0, 1, 1])) == pytest.approx(0)
    assert skewness(Terms.mean_of(np.ones(4)), np.arange(4)) == 0
    assert miss_chances(0.0, 0.05) == pytest.approx((0.05, 0.05))
    # Means of 400 exponential rewards, skewness 2 / sqrt(400), beside what Student bounds really do.
    rows = np.random.default_rng(8).exponential(size=(20_000, 400))
    score = (rows.mean(axis=1) - 1) / (rows.std(axis=1, ddof=1) / np.sqrt(400))
    below, above = miss_chances(2 / np.sqrt(400), 0.05)
    assert below == pytest.approx(0.039, abs=0.001) and above == pytest.approx(0.061, abs=0.001)
    bound = 1.6449
    assert (score > bound).mean() == pytest.approx(below, abs=0.005)
    assert (score < -bound).mean() == pytest.approx(above, abs=0.005)


def test_a_gain_that_few_customers_carry_is_not_claimed():
    """Every customer gains one, and four of 600 lose 45: had the four not been in the log, nobody would know."""
    log = Log.of(np.zeros(600, int), np.zeros(600), np.tile([0.5, 0.5], (600, 1)))
    diagnosis = diagnose(log, log.logging_QA)
    nothing = Terms.mean_of(np.zeros(600))
    rows = 1.0 + 0.1 * np.random.default_rng(9).normal(size=600)
    sure = judge(Terms.mean_of(rows), nothing, log.customer_Q, diagnosis, against="logged")
    assert sure.answer == BETTER and sure.wrong == pytest.approx(0.05, abs=0.01)
    rows[:4] = -45.0
    said = judge(Terms.mean_of(rows), nothing, log.customer_Q, diagnosis, against="logged")
    assert said.low > 0 and said.wrong > 0.1
    assert said.answer == NOT_SHOWN and "few customers carry the gain" in said.reason
    # A tail on the gain's own side makes the claim safer, and it stands.
    other = judge(Terms.mean_of(2.0 - rows), nothing, log.customer_Q, diagnosis, against="logged")
    assert other.answer == BETTER and other.wrong < 0.05
