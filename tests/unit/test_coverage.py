"""The study of intervals: its truth is the world's, its bounds are binomial, its logs are of different customers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from constellation.commands.benchmarks import coverage
from constellation.errors import InputError
from constellation.policies import estimators, intervals
from constellation.policies.log import Log
from constellation.worlds.loyalty.simulation import Simulation
from constellation.worlds.loyalty.value import constant_policy, logging_policy, value_of_one_decision
from constellation.worlds.loyalty.waves import draw_waves, true_rewards
from constellation.worlds.loyalty.world import LoyaltyWorld

WORLD = LoyaltyWorld()
WEEKS = (26, 30)


def test_waves_are_the_decisions_of_the_simulation() -> None:
    waves = draw_waves(WORLD, 40, 3, WEEKS, reward_weeks=2)
    assert waves.features_QF.shape[0] == 2 * 40 == len(waves.customer_Q)
    simulation = Simulation(WORLD, 40, 3).run(26)
    np.testing.assert_array_equal(waves.features_QF[:40], simulation.features()[:40])
    np.testing.assert_allclose(waves.probability_QA[:40], simulation.logging()[:40])
    first = simulation.step(simulation.logging())
    second = simulation.step(simulation.logging())
    own = slice(0, 40)
    np.testing.assert_array_equal(waves.action_Q[:40], first.action_C[own])
    np.testing.assert_allclose(waves.reward_Q[:40], first.amount_C[own] + second.amount_C[own] - first.cost_C[own])
    part = waves.of_customers(10, 20)
    np.testing.assert_array_equal(np.unique(part.customer_Q), np.arange(10, 20))
    assert len(part.reward_Q) == 20


def test_true_rewards_are_those_of_one_decision() -> None:
    policies = {"logged": logging_policy(WORLD), "voucher": constant_policy(WORLD, "voucher")}
    found = true_rewards(WORLD, policies, 60, 4, (26,), reward_weeks=3)
    start = Simulation(WORLD, 60, 4).run(26)
    for name, policy in policies.items():
        one = value_of_one_decision(policy, start, reward_weeks=3)
        np.testing.assert_allclose(found[name], one.net_C[:60])
    # The habit's own, over two waves, are the rewards that were drawn: the same luck.
    waves = draw_waves(WORLD, 60, 4, WEEKS)
    habit = true_rewards(WORLD, {"logged": logging_policy(WORLD)}, 60, 4, WEEKS)["logged"]
    np.testing.assert_allclose(habit, waves.reward_Q.reshape(2, 60).mean(axis=0))


def test_weeks_that_cannot_be_are_refused() -> None:
    for weeks in ((), (5,), (30, 26)):
        with pytest.raises(InputError, match="weeks of decisions"):
            draw_waves(WORLD, 5, 0, weeks)
    with pytest.raises(InputError, match="num_replicates"):
        coverage.benchmark_coverage(num_replicates=1)


def test_binomial_bounds_hold_what_they_say() -> None:
    low, high = coverage.binomial_bounds(400, 0.9)
    inside = stats.binom.cdf(round(400 * high), 400, 0.9) - stats.binom.cdf(round(400 * low) - 1, 400, 0.9)
    assert 0.95 <= inside < 0.97
    assert (low, high) == (pytest.approx(0.87), pytest.approx(0.9275))


def test_a_small_study_runs_through(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in {"TRUTH_CUSTOMERS": 200, "BLOCK": 100, "LEARNED_FROM": 100, "NUM_RESAMPLES": 20}.items():
        monkeypatch.setattr(coverage, name, value)
    monkeypatch.setattr(coverage, "WEEKS", (26, 28, 30, 32))
    rows = coverage.benchmark_coverage(num_replicates=2, num_customers=150)
    metrics = coverage.metrics_of(rows)
    assert {row["what"] for row in rows} == {"coverage", "wrong claims"}
    for row in rows:
        assert row["share"] in (0, 0.5, 1) and row["low"] <= row["high"] and row["width"] > 0
    assert len([row for row in rows if row["what"] == "coverage"]) == 3 * 5 * len(coverage.INTERVALS)
    assert "coverage/learned/dr gain/student/share" in metrics
    assert "wrong_claims/any/verdict/over both/share" in metrics
    coverage.print_rows(rows)
    assert "wrong claims: share of 2 logs" in capsys.readouterr().out


@pytest.mark.parametrize("interval", ["student", "bootstrap"])
def test_intervals_cover_where_customers_differ_and_decide_often(interval: str) -> None:
    """A plain world with a strong effect of the customer: rows of one customer must not count as many customers."""
    num_customers, num_each, num_logs, covers, naive = 60, 8, 200, 0, 0
    for seed in range(num_logs):
        rng = np.random.default_rng(seed)
        customer_Q = np.repeat(np.arange(num_customers), num_each)
        level_Q = rng.normal(size=num_customers)[customer_Q]
        action_Q = (rng.random(len(customer_Q)) < 0.3).astype(np.int64)
        reward_Q = 2 * level_Q + action_Q + rng.normal(size=len(customer_Q))
        log = Log.of(action_Q, reward_Q, np.tile([0.7, 0.3], (len(customer_Q), 1)), customer_Q=customer_Q)
        terms = estimators.snips(log, np.tile([0.0, 1.0], (len(log), 1)))
        found = coverage.INTERVALS[interval](terms, customer_Q)
        rowwise = intervals.student(terms, np.arange(len(log)), level=coverage.LEVEL)
        covers += found.low <= 1 <= found.high
        naive += rowwise.low <= 1 <= rowwise.high
    low, high = coverage.binomial_bounds(num_logs, coverage.LEVEL, sure=0.999)
    assert low <= covers / num_logs <= high
    assert naive / num_logs < low, "what ignoring the customers would have given"
