"""`constellation recommend` through the console: a plan that keeps its constraints, and the next one after it."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import polars as pl
import pytest

from constellation.cli import main
from tests.end_to_end.console import without_pictures

SMALL = ["recommend", "predictions=example", "num_customers=1500", "tracking=none"]
LIMITS = [
    "constraints=example",
    "constraints.budget=450",
    "constraints.capacity={email: 300, letter: [60, 30], phone: 12}",
    "constraints.min_use={phone: 3}",
]


@pytest.mark.parametrize("solver", ["exact", "prices"])
def test_a_plan_from_the_console_keeps_what_it_was_told(
    solver: str, work_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SMALL, *LIMITS, f"solver={solver}", "output=plan"]) == 0
    said = capsys.readouterr().out
    assert "decision funnel" in said and "One more unit of budget is worth" in said
    metrics = json.loads((work_folder / "plan" / "metrics.json").read_text())
    plan = pl.read_parquet(work_folder / "plan" / "plan.parquet")
    predictions = pl.read_parquet(work_folder / "plan" / "predictions.parquet")
    past = pl.read_parquet(work_folder / "plan" / "contacts.parquet")
    assert plan["customer_id"].to_list() == list(range(1, 1501))

    # All that follows is worked out again from the tables alone.
    made = plan.filter(pl.col("action") != "none").with_columns(pl.col("action", "channel").cast(pl.String))
    rows = made.join(predictions, on=["customer_id", "action"], how="left", suffix="_predicted")
    assert rows["eligible"].all()
    assert rows["cost"].sum() <= 450 + 1e-6
    assert rows["cost"].sum() == pytest.approx(metrics["recommend/cost"])
    counts = {(row["channel"], row["time_window"]): row["len"] for row in _counts(made)}
    assert all(counts.get(("email", window), 0) <= 300 for window in (0, 1))
    assert counts.get(("letter", 0), 0) <= 60 and counts.get(("letter", 1), 0) <= 30
    assert all(3 <= counts.get(("phone", window), 0) <= 12 for window in (0, 1))
    everyone = predictions.filter(pl.col("action") == "none").join(plan, on="customer_id")
    rates = everyone.group_by("group").agg((pl.col("action_right") != "none").mean().alias("rate"))["rate"]
    assert rates.max() - rates.min() <= 0.1 + 1e-9
    assert plan["explored"].sum() == 75
    assert plan["propensity"].is_between(0, 1, closed="right").all()

    pairs = made.join(past, on="customer_id", suffix="_past").with_columns(
        (pl.col("window_start").dt.replace_time_zone(None) - pl.col("event_time")).alias("age")
    )
    assert pairs["age"].min() >= dt.timedelta(days=3)
    recent = pairs.filter(pl.col("age") < dt.timedelta(days=28)).group_by("customer_id").len()
    assert recent["len"].max() <= 2, "three in 28 days, the planned one among them"
    letters = pairs.filter((pl.col("channel") == "letter") & (pl.col("channel_past") == "letter"))
    assert letters["age"].min() is None or letters["age"].min() >= dt.timedelta(days=28)

    for name in ("funnel", "shadow_prices", "optionality", "value_against_budget"):
        assert len(pl.read_parquet(work_folder / "plan" / "tables" / f"{name}.parquet"))
    assert (work_folder / "plan" / "figures" / "value_against_budget.png").stat().st_size > 5000
    assert metrics["recommend/num_violations"] == 0
    assert metrics["recommend/lower_of_none"] < metrics["recommend/lower"] < metrics["recommend/lower_without_limits"]
    assert metrics["recommend/is_exact"] == (solver == "exact")


def _counts(made: pl.DataFrame) -> list[dict]:
    return made.group_by("channel", "time_window").len().to_dicts()


def test_the_next_plan_looks_back_on_this_one(work_folder: Path) -> None:
    """Whom this week's plan contacts, next week's leaves alone for 28 days."""
    rest = ["constraints.start=2026-01-05", "constraints.cool_downs=[{days: 28}]"]
    with without_pictures():
        assert main([*SMALL, *rest, "output=one"]) == 0
    first = pl.read_parquet(work_folder / "one" / "next_contacts.parquet")
    pl.concat([pl.read_parquet(work_folder / "one" / "contacts.parquet"), _naive(first)]).write_parquet("all.parquet")
    again = ["recommend", "predictions=one/predictions.parquet", "contacts=all.parquet", "tracking=none", "output=two"]
    with without_pictures():
        assert main([*again, "constraints.start=2026-01-12", rest[1]]) == 0
    second = pl.read_parquet(work_folder / "two" / "next_contacts.parquet")
    assert len(first) and len(second)
    assert not set(first["customer_id"]) & set(second["customer_id"])


def _naive(contacts: pl.DataFrame) -> pl.DataFrame:
    return contacts.with_columns(pl.col("event_time").dt.replace_time_zone(None))


def test_mistakes_are_named(work_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "constraints.min_use={phone: 2000}"]) == 2
    assert "min_use/phone, for which" in capsys.readouterr().err
    assert main([*SMALL, "constraints.min_use={phone: 400}", "constraints.budget=20"]) == 2
    said = capsys.readouterr().err
    assert "min_use/phone" in said and "a budget of at most 20" in said
    assert main(["recommend", "predictions=nowhere.parquet", "tracking=none"]) == 2
    assert "There are no predictions at nowhere.parquet" in capsys.readouterr().err
    assert main([*SMALL, "solver=luck"]) == 2
    assert "solver must be auto, exact or prices" in capsys.readouterr().err
