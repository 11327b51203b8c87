"""The closed loop through the command line: learn from the log of a world, act in it, log, learn again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from constellation.bundle import EngagementBundle
from constellation.cli import main
from constellation.policies.saved import Saved
from constellation.worlds.loyalty.value import constant_policy, logging_policy, started, value_of
from constellation.worlds.loyalty.world import LoyaltyWorld
from tests.end_to_end.console import metrics_of

ACTIONS, NUM_CUSTOMERS = LoyaltyWorld().action_names, 120
TRAIN = (
    "train", "objective=engagement", "data=loyalty", f"data.source.arguments.num_customers={NUM_CUSTOMERS}",
    "outcome=[proportional]", "engagement.num_folds=2", "engagement.context_alone=true",
    "engagement.sequence_model=false", "engagement.num_members=1",
)  # fmt: skip
EVALUATE = (
    "evaluate", "run=trained", "num_resamples=20", "world=loyalty", "true_value.num_customers=50",
    "true_value.num_weeks=4", "true_value.seed=7",
)  # fmt: skip
PLAIN = "outcome.proportional.caution=[]"
"""One prior for all effects, which is quick: what is learned is not the matter here."""
LOOP = (
    "loop", PLAIN, f"num_customers={NUM_CUSTOMERS}", "num_rounds=2", "habit_weeks=10", "round_weeks=2",
    "reward_weeks=4", "num_members=2",
)  # fmt: skip


def run(*words: str) -> int:
    return main([*words, "tracking=none"])


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every training here reads the same log."""
    return tmp_path_factory.mktemp("stores")


@pytest.fixture
def here(tmp_path: Path, stores: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONSTELLATION_CACHE", str(stores))
    return tmp_path


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, stores: Path) -> Path:
    """The run that others are held against: refitted on the whole log, looking no further than its reward."""
    folder = tmp_path_factory.mktemp("plain") / "trained"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONSTELLATION_CACHE", str(stores))
        assert run(*TRAIN, PLAIN, f"output={folder}") == 0
    return folder


def test_true_values_are_those_of_the_world(here: Path, plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "trained").symlink_to(plain)
    assert run(*EVALUATE, "policy=[greedy,best_constant]", "policy.best_constant.action=voucher", "output=judged") == 0
    found = metrics_of("judged")
    world, weeks = LoyaltyWorld(), 4
    start = started(world, 50, 7)
    habit = value_of(logging_policy(world), start, num_weeks=weeks)
    voucher = value_of(constant_policy(world, "voucher"), start, num_weeks=weeks)
    assert found["policy/logged/true_value"] == habit.mean
    assert found["policy/best_constant/true_value"] == voucher.mean
    assert found["policy/best_constant/true_gain"] == pytest.approx(voucher.mean - habit.mean)
    assert found["policy/logged/true_gain"] == 0
    assert found["policy/oracle/true_share"] == pytest.approx(1)
    gap = found["policy/oracle/true_value"] - habit.mean
    assert found["policy/greedy/true_share"] == pytest.approx((found["policy/greedy/true_value"] - habit.mean) / gap)
    assert found["policy/greedy/value_dr_low"] < found["policy/greedy/value_dr"]
    said = capsys.readouterr().out
    assert "share of the gap to the oracle" in said
    assert "In the world acts: proportional, models refitted on the whole log" in said
    # The same run, whose folds act together: judged alike from the log, acting otherwise.
    assert run(*TRAIN, PLAIN, "engagement.deploy=folds", "output=folds") == 0
    words = [word for word in EVALUATE if word != "run=trained"]
    assert run(*words, "run=folds", "policy=[greedy]", "output=judged_folds") == 0
    assert "In the world acts: proportional, the folds' models together" in capsys.readouterr().out
    folds = metrics_of("judged_folds")
    assert folds["policy/greedy/value_dr"] == found["policy/greedy/value_dr"]
    assert folds["policy/greedy/true_value"] != found["policy/greedy/true_value"]
    # Another world, or another's actions, is not the one whose log it was.
    other = [word for word in EVALUATE if word != "world=loyalty"]
    assert run(*other, "world=order", "policy=[greedy]", "output=other") == 2
    assert "world=loyalty" in capsys.readouterr().err


def test_a_look_ahead_changes_what_is_learned_and_not_what_is_judged(here: Path, plain: Path) -> None:
    assert run(*TRAIN, PLAIN, "engagement.lookahead=1", "output=far") == 0
    for folder, windows in ((plain, 0), (here / "far", 1)):
        assert EngagementBundle.load(folder / "bundle").trained_on["lookahead"] == windows
    near, far = (Saved.load(folder) for folder in (plain, here / "far"))
    assert far.facts["lookahead"] == 1
    np.testing.assert_array_equal(near.log.reward_Q, far.log.reward_Q)
    one, other = (each.systems["proportional"].expected_QA for each in (near, far))
    # The level stays that of the reward; effects do not.
    assert np.average(other, weights=far.log.logging_QA) == pytest.approx(far.log.reward_Q.mean(), rel=0.05)
    assert np.abs((one - one[:, :1]) - (other - other[:, :1])).max() > 0.5


def test_true_values_need_the_context_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*TRAIN, "engagement.context_alone=false", "outcome=[ridge]", "output=trained") == 0
    assert run(*EVALUATE, "policy=[greedy]", "output=judged") == 2
    assert "engagement.context_alone=true" in capsys.readouterr().err


def test_rounds_log_what_they_did_and_how_likely_it_was(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*LOOP, "output=loop") == 0
    found = metrics_of("loop")
    assert found["loop/round_2/decisions"] > found["loop/round_1/decisions"] >= 7 * NUM_CUSTOMERS
    assert found["loop/round_1/least_propensity"] >= 0.05 / len(ACTIONS)
    frame = pl.read_parquet("loop/decisions.parquet")
    chance_QA = frame.select(f"propensity_{name}" for name in ACTIONS).to_numpy()
    np.testing.assert_allclose(chance_QA.sum(axis=1), 1.0)
    chosen_Q = np.array([ACTIONS.index(name) for name in frame["action"]])
    np.testing.assert_array_equal(chance_QA[np.arange(len(frame)), chosen_Q], frame["propensity"])
    # Weights average to 1 for each action: what was logged is what was drawn from.
    for place in range(len(ACTIONS)):
        weight_Q = (chosen_Q == place) / chance_QA[:, place]
        assert abs(weight_Q.mean() - 1) < 4 * weight_Q.std() / np.sqrt(len(weight_Q))
    weeks = frame["decision_time"].unique().sort()
    assert len(weeks) == 10 + 2 * 2
    acted = frame.filter(pl.col("decision_time") >= weeks[10])
    assert not np.allclose(acted.select("propensity_none").to_numpy(), chance_QA[: len(acted), :1])
    assert "2 rounds of 2 weeks by thompson" in capsys.readouterr().out.replace("\n", " ")
    assert run(*LOOP, "policy=[greedy,thompson]", "output=two") == 2
    assert "takes one policy" in capsys.readouterr().err
    assert run(*LOOP, "habit_weeks=2", "output=short") == 2
    assert "habit_weeks of at least reward_weeks" in capsys.readouterr().err.replace("\n", " ")


def test_in_the_mirror_nothing_is_gained_by_acting(here: Path) -> None:
    assert run(*LOOP, "world.mirror=true", "output=mirror") == 0
    found = metrics_of("mirror")
    for number in (1, 2):
        assert found[f"loop/round_{number}/policy"] == pytest.approx(found[f"loop/round_{number}/habit"])
        assert found[f"loop/round_{number}/oracle"] == pytest.approx(found[f"loop/round_{number}/habit"])
