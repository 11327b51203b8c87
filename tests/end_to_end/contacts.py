"""A table of contacts whose best policy is known, and the data set that describes it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl

DAY, START = 86_400_000_000, 1_700_000_000_000_000
LOGGING = {"none": 0.5, "mail": 0.25, "call": 0.25}


def write_world(folder: Path, effect: float, num_customers: int = 250, rounds: int = 6) -> None:
    """Half of the customers browse a and like mail, half browse b and like calls; else rewards are alike."""
    rng = np.random.default_rng(0)
    events, decisions = [], []
    for customer in range(num_customers):
        likes = "a" if rng.random() < 0.5 else "b"
        time = START + int(rng.integers(0, 5)) * DAY
        for _ in range(rounds):
            events += [(customer, time + int(rng.integers(1, DAY)), f"browse_{likes}", None) for _ in range(2)]
            decided = time + 3 * DAY
            action = str(rng.choice(list(LOGGING), p=list(LOGGING.values())))
            decisions.append((customer, decided, action))
            right = (action, likes) in (("mail", "a"), ("call", "b"))
            events.append((customer, decided + DAY // 2, "purchase", float(rng.exponential(2)) + effect * right))
            time = decided + 4 * DAY
    times = pl.col(pl.Int64).exclude("customer_id").cast(pl.Datetime("us", "UTC"))
    names = ["customer_id", "event_time", "event_type", "amount"]
    pl.DataFrame(events, schema=names, orient="row").with_columns(times).write_parquet(folder / "events.parquet")
    pl.DataFrame(decisions, schema=["customer_id", "decision_time", "action"], orient="row").with_columns(
        times
    ).write_parquet(folder / "decisions.parquet")


def write_data_set(
    folder: Path,
    name: str = "contacts",
    *,
    sql: str | None = "SELECT * FROM '{root}/events.parquet'",
    attributes_sql: str | None = None,
    described: bool = False,
    propensity: Mapping[str, float] | None = None,
    reward_days: int = 3,
    observed_until: str | None = None,
) -> None:
    """``configs/data/<name>.yaml`` of the tables in ``folder``; ``described``: what actions differ by is in it.

    propensity: of each action in the log; by default that of ``write_world``.
    """
    known = {"none": 0.5, "default": 0.25} if propensity is None else propensity
    logged = "{" + ", ".join(f"{action}: {chance}" for action, chance in known.items()) + "}"
    features = """
  action_features:
    none: {loud: 0}
    mail: {loud: 1}
    call: {loud: 2}"""
    (folder / "configs" / "data").mkdir(parents=True, exist_ok=True)
    (folder / "configs" / "data" / f"{name}.yaml").write_text(
        f"""_target_: constellation.journeys.dataset.DataSet
name: {name}
root: {folder}
cache: {folder / "cache"}
observed_until: {f'"{observed_until}"' if observed_until else "null"}
source:
  _target_: constellation.journeys.sources.SqlSource
  sql: {sql or "null"}
  attributes_sql: {attributes_sql or "null"}
  decisions_sql: SELECT * FROM '{{root}}/decisions.parquet'
schema:
  _target_: constellation.schema.EventSchema
windows:
  _target_: constellation.journeys.windows.Windows
  val_cutoff: "2023-12-01"
  test_cutoff: "2023-12-10"
  horizons_days: [3]
decisions:
  _target_: constellation.journeys.decisions.DecisionRule
  kind: table
  reward_days: {reward_days}
  propensity: {logged}{features if described else ""}
"""
    )
