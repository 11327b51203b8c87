"""Two policies ran side by side on the same visitors: each log must tell what the other policy earned.

The small Open Bandit Dataset has 38 to 69 clicks per log, so the truth itself is known to 12 to 15 % only. That fits a
test of correctness, by intervals, and no comparison of estimators.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from constellation.cli import main
from constellation.policies import estimators
from constellation.policies.cross_fit import cross_fit, person_folds
from constellation.policies.diagnostics import diagnose
from constellation.policies.intervals import Interval, bootstrap, standard_error, student
from constellation.policies.log import Log
from constellation.policies.outcomes import RidgeOutcome
from constellation.policies.terms import Terms
from constellation.policies.verdict import judge

FOLDER = Path(os.environ.get("CONSTELLATION_DATA", "nowhere")) / "obd-small"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs CONSTELLATION_DATA with obd-small")
CAMPAIGNS = {"all": 80, "men": 34, "women": 46}
CLICKS = {"all": (38, 42), "men": (46, 69), "women": (46, 46)}


def read(policy: str, campaign: str) -> pl.DataFrame:
    return pl.read_parquet(FOLDER / f"{policy}_{campaign}.parquet")


def item_shares(frame: pl.DataFrame, num_items: int) -> np.ndarray:
    """[3, A] share of each item in each slot: the mean over time of a policy that reads nothing about the visitor."""
    count = np.zeros((3, num_items))
    np.add.at(count, (frame["position"].to_numpy() - 1, frame["item_id"].to_numpy()), 1)
    return count / count.sum(axis=1, keepdims=True)


def log_of(frame: pl.DataFrame, num_items: int) -> Log:
    """Propensities of what was shown are exact; the other items share the rest, which no estimator here reads."""
    num, item = len(frame), frame["item_id"].to_numpy().astype(np.int64)
    propensity = frame["propensity_score"].to_numpy()
    logging = np.repeat((1 - propensity)[:, None] / (num_items - 1), num_items, axis=1)
    logging[np.arange(num), item] = propensity
    return Log.of(item, frame["click"].to_numpy(), logging)


def reward_model(frame: pl.DataFrame, log: Log) -> np.ndarray:
    """Clicks of every item [Q, A], cross-fitted, from the slot and the visitor's attributes."""
    names = [name for name in frame.columns if name.startswith("user_feature")]
    table = frame.select(pl.col("position").cast(pl.String), *(pl.col(name).cast(pl.String) for name in names))
    features = table.to_dummies().to_numpy().astype(np.float64)
    num_items = len(log.actions)
    fold = person_folds(log.customer_Q, 2, 0)
    found = cross_fit(
        RidgeOutcome(effect_ridge=10.0), features, log.action_Q, log.reward_Q, np.zeros((num_items, 0)), log.customer_Q,
        fold, log.logging_QA, num_members=1, seed=0,
    )  # fmt: skip
    return found.expected_QA


def agree(estimate: Terms, log: Log, truth: Interval, truth_error: float) -> float:
    """Distance of an off-policy estimate from the other policy's own mean, in standard errors of their difference."""
    return abs(estimate.value - truth.value) / np.hypot(standard_error(estimate, log.customer_Q), truth_error)


@pytest.mark.parametrize("campaign", CAMPAIGNS)
def test_each_log_tells_what_the_other_policy_earned(campaign: str) -> None:
    num_items = CAMPAIGNS[campaign]
    frames = {policy: read(policy, campaign) for policy in ("random", "bts")}
    assert tuple(int(frame["click"].sum()) for frame in frames.values()) == CLICKS[campaign]
    uniform = np.full((3, num_items), 1 / num_items)
    targets = {"random": uniform, "bts": item_shares(frames["bts"], num_items)}
    for logged, other in (("random", "bts"), ("bts", "random")):
        frame, log = frames[logged], log_of(frames[logged], num_items)
        on_policy = Log.of(np.zeros(10_000, dtype=int), frames[other]["click"].to_numpy(), np.ones((10_000, 1)))
        mean = Terms.mean_of(on_policy.reward_Q)
        truth, truth_error = student(mean, on_policy.customer_Q), standard_error(mean, on_policy.customer_Q)
        target = targets[other][frame["position"].to_numpy() - 1]
        model = reward_model(frame, log)
        found = {
            "ips": estimators.ips(log, target),
            "snips": estimators.snips(log, target),
            "dr": estimators.doubly_robust(log, target, model),
        }
        diagnosis = diagnose(log, target)
        for name, terms in found.items():
            interval = bootstrap(terms, log.customer_Q, num_resamples=300)
            # Six comparisons each of three campaigns: 3.3 standard errors are one false alarm in sixty such suites.
            assert agree(terms, log, truth, truth_error) < 3.3, (logged, other, name, interval, truth)
            assert interval.low < truth.high and truth.low < interval.high, (logged, other, name, interval, truth)
            assert 0 < interval.value < 0.02
        verdict = judge(found["dr"], Terms.mean_of(log.reward_Q), log.customer_Q, diagnosis, against="logged")
        if diagnosis.effective_sample_share < 0.05:
            # The bandit hardly ever showed some items; such weights support no claim, and the gate says so.
            assert logged == "bts" and verdict.answer == 0 and "effective" in verdict.reason
        else:
            assert diagnosis.mean_weight == pytest.approx(1.0, abs=0.1)
            assert diagnosis.effective_sample_share < 0.5
        # A model of clicks that knows next to nothing changes an estimate by less than its own error.
        gap = abs(found["dr"].value - found["ips"].value)
        assert gap < 1.5 * standard_error(found["ips"], log.customer_Q)


def test_a_policy_is_its_own_truth() -> None:
    """Judged by its own log a policy's weights are all 1, and every estimator gives the mean."""
    frame = read("bts", "women")
    log = log_of(frame, 46)
    for estimate in (estimators.ips(log, log.logging_QA), estimators.snips(log, log.logging_QA)):
        assert estimate.value == pytest.approx(46 / 10_000)
    assert diagnose(log, log.logging_QA).effective_sample_share == pytest.approx(1.0)


@pytest.mark.slow
def test_open_bandit_from_the_command_line(work_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSTELLATION_DATA", str(FOLDER.parent))
    words = ["train", "objective=engagement", "data=open_bandit", "outcome=[ridge]", "engagement.num_folds=2"]
    assert main([*words, "tracking=none", "output=trained"]) == 0
    assert main(["evaluate", "run=trained", "policy=[uniform,greedy]", "tracking=none", "output=judged"]) == 0
    found = json.loads((work_folder / "judged" / "metrics.json").read_text())
    # The log is uniform already, so this policy is the logging policy.
    assert found["policy/uniform/value_snips"] == pytest.approx(0.0038, abs=1e-9)
    assert found["policy/uniform/verdict_over_logging"] == 0
    # 80 items and 38 clicks: nothing is shown, and an eightieth of the log speaks about any one choice.
    assert found["policy/greedy/verdict"] <= 0
    assert found["policy/greedy/effective_sample_size"] < 300
