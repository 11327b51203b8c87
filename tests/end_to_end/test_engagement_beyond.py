"""What `evaluate policy=...` is asked for beyond its usual table, through the command line, in a world with known
truth: mail pays a customer's next step as well as this one, so a single decision does not say what it is worth."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from constellation.cli import main
from constellation.policies.saved import Saved
from tests.end_to_end.console import metrics_of, without_pictures
from tests.end_to_end.contacts import DAY, START, write_data_set

MAIL, WEEKS, BASE, EFFECT = 0.4, 3, 2.0, 3.0
KEEPS, LOSES = 0.9, 0.3
"""Chance of being content in the next week, with mail in this one and without."""
CUSTOMERS = 1200


def true_value(chance_of_mail: float) -> float:
    """Of three weeks, from half of the customers content: mail brings ``EFFECT`` where a customer is content."""
    content, value = 0.5, 0.0
    for _ in range(WEEKS):
        value += BASE + EFFECT * content * chance_of_mail
        content = KEEPS * chance_of_mail + LOSES * (1 - chance_of_mail)
    return value


def write_chain(folder: Path, num_customers: int = CUSTOMERS, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    content = rng.random(num_customers) < 0.5
    events, decisions = [], []
    for week in range(WEEKS):
        at = START + week * 7 * DAY
        mailed = rng.random(num_customers) < MAIL
        amount = BASE + EFFECT * (content & mailed) + rng.normal(0, 1, num_customers)
        ids = np.arange(num_customers)
        events.append(pl.DataFrame({"customer_id": ids, "event_time": at + DAY, "amount": amount}))
        decisions.append(
            pl.DataFrame(
                {"customer_id": ids, "decision_time": at, "action": np.where(mailed, "mail", "none"),
                 "context_content": content.astype(float)}
            )
        )  # fmt: skip
        content = rng.random(num_customers) < np.where(mailed, KEEPS, LOSES)
    for name, parts in {"events": events, "decisions": decisions}.items():
        time = f"{name.removesuffix('s')}_time"
        frame = pl.concat(parts).with_columns(pl.col(time).cast(pl.Datetime("us", "UTC")))
        frame.write_parquet(folder / f"{name}.parquet")


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chain")
    write_chain(folder)
    write_data_set(
        folder, "chain", sql="SELECT *, 'purchase' AS event_type FROM '{root}/events.parquet'",
        propensity={"none": 1 - MAIL, "mail": MAIL}, reward_days=10, observed_until="2024-01-31",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert (
            main(
                ["train", "objective=engagement", "data=chain", "engagement.num_folds=2", "outcome=[ridge]",
                 "engagement.sequence_model=false", "engagement.context_alone=true", "engagement.num_members=1",
                 "engagement.clip_quantile=1", "output=trained", "tracking=none"]
            )
            == 0
        )  # fmt: skip
    return folder


@pytest.fixture
def here(chain: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(chain)
    return chain


def evaluate(*words: str) -> int:
    with without_pictures():
        return main(["evaluate", "run=trained", "num_resamples=200", "tracking=none", *words])


def test_sequences_hold_the_truth(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("per_decision", "self_normalised", "doubly_robust", "marginal")
    asked = (f"sequence.estimators=[{','.join(names)}]", "sequence.num_states=2")
    assert evaluate("policy=[uniform]", *asked, "output=judged") == 0
    found = metrics_of("judged")
    # Rewards run ten days, over the next decision: their sum would count most of the money twice.
    saved = Saved.load(here / "trained")
    assert saved.log.reward_Q.sum() > 1.5 * saved.step_reward_Q.sum()
    # The best constant action is mail, which leaves .4 ** 3 of the sequences.
    truth = {"logged": true_value(MAIL), "uniform": true_value(0.5), "best_constant": true_value(1.0)}
    for policy, true in truth.items():
        for name in names:
            told = {
                key: found[f"policy/{policy}/sequence/{name}/{key}"] for key in ("value", "value_low", "value_high")
            }
            assert told["value_low"] < told["value"] < told["value_high"]
            assert told["value_low"] - 0.02 <= true <= told["value_high"] + 0.02, (policy, name, true, told)
    width = {name: found[f"policy/best_constant/sequence/{name}/value_high"] for name in names}
    width = {name: high - found[f"policy/best_constant/sequence/{name}/value_low"] for name, high in width.items()}
    assert width["doubly_robust"] < width["marginal"] < width["per_decision"]
    effective = found["policy/best_constant/sequence/per_decision/effective_sample_size"]
    assert effective == pytest.approx(CUSTOMERS * MAIL**WEEKS, rel=0.3)
    assert found["policy/best_constant/sequence/marginal/effective_sample_size"] > 3 * effective
    gain = found["policy/uniform/sequence/doubly_robust/gain_over_logging"]
    assert gain == pytest.approx(truth["uniform"] - truth["logged"], abs=0.1)
    assert found["policy/uniform/sequence/doubly_robust/verdict"] == 1
    assert found["policy/logged/sequence/doubly_robust/verdict"] == 0
    # Of 1,200 customers some 77 happened to get mail in every week: too few to claim what the numbers say.
    assert found["policy/best_constant/sequence/per_decision/gain_over_logging_low"] > 0
    assert found["policy/best_constant/sequence/per_decision/verdict"] == 0
    # And what rests on states alone claims nothing by itself.
    assert found["policy/uniform/sequence/marginal/gain_over_logging_low"] > 0
    assert found["policy/uniform/sequence/marginal/verdict"] == 0
    table = pl.read_parquet("judged/tables/sequences.parquet")
    assert table.height == 3 * len(names) and "effective_at_step_3" in table.columns
    out = capsys.readouterr().out
    assert "effective sequences by step" in out and "effective sequences (" in out
    assert "if its states tell all that comes" in out


def test_estimators_and_intervals_that_are_asked_for(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    usual = ("policy=[uniform]",)
    assert evaluate(*usual, "output=plain") == 0
    plain = metrics_of("plain")
    assert not any("switch" in key or "mrdr" in key or "student" in key or "sequence" in key for key in plain)
    assert max(value for key, value in plain.items() if key.startswith("balance/")) < 0.1
    asked = ("estimators=[ips,switch_dr,mrdr,dros]", "intervals=[student,confidence_sequence,empirical_bernstein]")
    assert evaluate(*usual, *asked, "reward_range=[-20,40]", "outcome=[ridge]", "output=asked") == 0
    found = metrics_of("asked")
    assert {key: found[key] for key in plain} == plain
    saved = Saved.load(here / "trained")
    # A single decision of mail: it pays this week where the customer is content, and by contentment in the next days.
    for name in ("ips", "switch_dr", "mrdr", "dros", "dr"):
        key = f"policy/uniform/value_{name}"
        assert found[f"{key}_low"] < found[key] < found[f"{key}_high"]
        assert found[key] == pytest.approx(plain["policy/uniform/value_dr"], abs=0.1)
        assert found[f"{key}_confidence_sequence_low"] < found[f"{key}_student_low"] < found[key]
    assert found["policy/logged/value_ips"] == pytest.approx(saved.log.reward_Q.mean())
    assert found["policy/uniform/value_mrdr"] != found["policy/uniform/value_dr"]
    assert found["policy/uniform/switch_threshold"] >= 1.0
    # A bound at any number of customers is wide, and only for what has no bias and is no ratio.
    bound = "empirical_bernstein_low"
    assert found[f"policy/uniform/value_ips_{bound}"] < found["policy/uniform/value_ips_confidence_sequence_low"]
    assert f"policy/uniform/value_dros_{bound}" not in found and f"policy/uniform/value_snips_{bound}" not in found
    out = capsys.readouterr().out
    assert "switch_threshold" in out and "is a bound for ips, dr, mrdr alone" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("estimators=[magic]",), "estimators must be among direct, ips"),
        (("intervals=[hoeffding]",), "intervals must be among bootstrap, student"),
        (("intervals=[empirical_bernstein]",), "needs reward_range"),
        (("intervals=[empirical_bernstein]", "reward_range=[0,1]"), "in the log they go from"),
        (("reward_range=[1,0]",), "least and the greatest"),
        (("reward_range=5",), "least and the greatest"),
        (("cutoff=2017-09-30",), "Leave cutoff out"),
        (("estimators=[mrdr]", "outcome=[ridge,gradient_boosting]"), "outcome must be one model"),
        (("sequence.estimators=[trajectory]",), "sequence.estimators must be among per_decision"),
    ],
)
def test_mistakes_are_named(here: Path, words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("policy=[uniform]", *words, "output=wrong", "overwrite=true") == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_look_ahead_is_said_where_the_reward_alone_is_judged(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("policy=[uniform]", "num_resamples=20", "tracking=none", "overwrite=true", "output=ahead_judged")
    shutil.copytree("trained", "ahead")
    saved = Saved.load(here / "ahead")
    for windows, said in ((0, None), (1, "look 1 window further"), (2, "look 2 windows further")):
        saved.facts["lookahead"] = windows
        saved.save(here / "ahead")
        with without_pictures():
            assert main(["evaluate", "run=ahead", *words]) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert "judged: the reward of its own window, 10" not in out if said is None else said in out


def test_sequences_need_rewards_of_single_steps(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("trained", "given")
    saved = Saved.load(here / "given")
    for lost, said in (("step_reward_Q", "would count the same twice"), ("action_AY", "Train again")):
        setattr(saved, lost, None)
        saved.save(here / "given")
        asked = ("sequence.estimators=[per_decision]", "policy=[uniform]", "num_resamples=20", "tracking=none")
        assert main(["evaluate", "run=given", *asked, "output=wrong", "overwrite=true"]) == 2
        assert said in capsys.readouterr().err
