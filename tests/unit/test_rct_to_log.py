"""From a trial to logs: what a rule does to plain means, what weights mend, and where the gate stops everybody."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from constellation.commands.benchmarks import rct_to_log as benchmark
from constellation.errors import InputError
from constellation.journeys.dataset import DataSet
from constellation.journeys.decisions import DecisionRule
from constellation.journeys.sources import SqlSource
from constellation.journeys.windows import Windows
from constellation.policies.log import Log
from constellation.schema import EventSchema

NUM = 6000
ARMS = ("call", "mail", "none")


def trial(folder: Path, *, with_chances: bool = True) -> DataSet:
    """Three equal arms; rewards hang on what the rule goes by, mail adds 0.5."""
    rng = np.random.default_rng(0)
    mood, arm = rng.normal(size=NUM), rng.integers(0, 3, NUM)
    frame = pl.DataFrame(
        {
            "customer_id": np.arange(NUM),
            "decision_time": pl.Series(np.full(NUM, 1_700_000_000_000_000)).cast(pl.Datetime("us", "UTC")),
            "action": pl.Series(ARMS).gather(arm),
            "reward": 2 * mood + 0.5 * (arm == 1) + rng.normal(size=NUM),
            "context_mood": mood,
        }
    )
    frame.write_parquet(folder / "decisions.parquet")
    return DataSet(
        name="trial",
        root=str(folder),
        cache=str(folder / "cache"),
        source=SqlSource(decisions_sql="SELECT * FROM '{root}/decisions.parquet'"),
        schema=EventSchema(),
        windows=Windows("2023-12-01", "2023-12-10", (3,)),
        decisions=DecisionRule(kind="table", reward_days=3, propensity=1 / 3 if with_chances else None),
    )


def test_the_table_shows_what_it_is_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = benchmark.rct_to_log(trial(tmp_path), strengths=(0.0, 1.0), num_replicates=25)
    assert len(rows) == 2 * 4
    by = {(row["strength"], row["policy"]): row for row in rows}
    # Without a rule nothing is biased; with one, who got the mail is another kind of customer.
    assert abs(by[0.0, "mail"]["naive_bias"]) < 0.1
    worst = max(abs(by[1.0, name]["naive_bias"]) for name in ARMS)
    assert worst > 0.3
    for name in ARMS:
        assert by[1.0, name]["dr_rmse"] < worst / 3
        assert by[1.0, name]["dr_rmse"] < by[1.0, name]["ips_rmse"], "the model takes away what mood explains"
        assert by[1.0, name]["dr_coverage"] >= 0.8
        assert by[1.0, name]["gated"] == 0
    benchmark.print_rows(rows)
    assert "let through" in capsys.readouterr().out
    metrics = benchmark.metrics_of(rows)
    assert metrics["rct_to_log/1/mail/dr_rmse"] == by[1.0, "mail"]["dr_rmse"]
    assert all(np.isfinite(value) for value in metrics.values())


def test_the_gate_is_counted_and_what_it_lets_through_is_judged_alone() -> None:
    keys = ("size", "naive", "dm", "ips", "snips", "dr", "ips_covers", "snips_covers")
    replicates = [
        dict.fromkeys(keys, 1.0) | {"effective": effective, "dr_covers": covers}
        for effective, covers in [(0.04, 0.0), (0.049, 0.0), (0.06, 1.0), (0.2, 1.0)]
    ]
    row = benchmark._summary(1.0, "mail", 0.1, 2.0, replicates)
    assert (row["gated"], row["dr_coverage"], row["dr_coverage_let_through"]) == (0.5, 0.5, 1.0)
    assert row["dr_rmse"] == 1.0
    none_left = benchmark._summary(1.0, "mail", 0.1, 2.0, replicates[:2])
    assert np.isnan(none_left["dr_coverage_let_through"])
    assert "rct_to_log/1/mail/dr_coverage_let_through" not in benchmark.metrics_of([none_left])


def test_thinning_follows_the_rule() -> None:
    rng = np.random.default_rng(1)
    num = 40_000
    rule_QA = benchmark._softmax(rng.normal(size=(num, 3)))
    log = Log.of(rng.integers(0, 3, num), np.zeros(num), np.full((num, 3), 1 / 3))
    taken = rng.random(num) < benchmark._kept(log, rule_QA)
    # Among those kept, an action comes up with the rule's probability, for any kind of customer.
    for kind in (rule_QA[:, 0] > 0.5, rule_QA[:, 0] < 0.2):
        rows = taken & kind
        assert (log.action_Q[rows] == 0).mean() == pytest.approx(rule_QA[rows, 0].mean(), abs=0.02)


def test_only_trials_are_thinned(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs a trial"):
        benchmark.rct_to_log(trial(tmp_path, with_chances=False))
    with pytest.raises(InputError, match="two replicates"):
        benchmark.rct_to_log(trial(tmp_path), num_replicates=1)
