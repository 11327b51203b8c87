"""Draw simulated customers whose expected value is known, and a data set to train on.

Writes ``events.parquet``, ``attributes.parquet``, ``truth.parquet`` (expected value and purchases of each customer at
the validation and the test cutoff, given the hidden state and given the history) and ``simulated.yaml``, a data config.
A world with contacts adds ``decisions.parquet`` and tables of truth of its own, such as ``truth_effects.parquet``.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars

    from constellation.tracking import Run
    from constellation.worlds.simulated import Simulated, World

DATA_NAME = "simulated"


def simulate(run: Run, *, world: World, num_customers: int, seed: int) -> Simulated:
    """Write one draw of ``world`` into the run's folder and say how to train on it."""
    from constellation.schema import CUSTOMER_ID, EVENT_TYPE
    from constellation.tracking.records import to_yaml

    simulated = world.simulate(num_customers, seed)
    truth = truth_table(simulated)
    simulated.events.write_parquet(run.folder / "events.parquet")
    simulated.attributes.write_parquet(run.folder / "attributes.parquet")
    truth.write_parquet(run.folder / "truth.parquet")
    if simulated.decisions is not None:
        simulated.decisions.write_parquet(run.folder / "decisions.parquet")
    for name, table in simulated.further.items():
        table().write_parquet(run.folder / f"{name}.parquet")
    config = run.folder / f"{DATA_NAME}.yaml"
    config.write_text(to_yaml(data_config(simulated, run.folder)), encoding="utf-8")

    counts = dict(sorted(simulated.events[EVENT_TYPE].value_counts().iter_rows()))
    run.log_metrics(
        {"simulate/num_customers": num_customers, "simulate/num_events": simulated.events.height}
        | {f"simulate/num_{event_type}": count for event_type, count in counts.items()}
    )
    num_active = simulated.events[CUSTOMER_ID].n_unique()
    print(f"{simulated.name}: {simulated.events.height:,} events of {num_active:,} customers, seed {seed}")
    for event_type, count in counts.items():
        print(f"  {event_type:<12} {count:>12,}")
    means = truth.group_by("cutoff", "horizon_days", maintain_order=True).mean()
    for row in means.iter_rows(named=True):
        print(
            f"  expected per customer in the {row['horizon_days']} days after {row['cutoff']}: "
            f"value {row['value_expected']:,.2f}, purchases {row['purchases_expected']:.3f}"
        )
    print("To train on it:")
    print(f"  mkdir -p configs/data && cp {shown(config)} configs/data/ && constellation train data={DATA_NAME}")
    return simulated


def truth_table(simulated: Simulated) -> polars.DataFrame:
    """The truth at both cutoffs and each horizon: one row per cutoff, horizon and customer at risk."""
    import polars as pl

    from constellation.journeys.windows import parse_cutoff

    parts = []
    for cutoff in (simulated.windows["val_cutoff"], simulated.windows["test_cutoff"]):
        for days in simulated.windows["horizons_days"]:
            expected = simulated.truth.expected(parse_cutoff(cutoff, simulated.schema.timezone), days)
            asked = pl.select(cutoff=pl.lit(cutoff), horizon_days=pl.lit(days, dtype=pl.Int64))
            parts.append(asked.join(expected, how="cross"))
    return pl.concat(parts)


def data_config(simulated: Simulated, folder: Path) -> dict[str, Any]:
    """The content of ``configs/data/simulated.yaml`` for the Parquet files in ``folder``."""
    rule = simulated.decision_rule
    decisions_sql = {} if rule is None else {"decisions_sql": "SELECT * FROM '{root}/decisions.parquet'"}
    return {
        "_target_": "constellation.journeys.dataset.DataSet",
        "name": simulated.name,
        "root": str(folder),
        "cache": None,
        "observed_until": simulated.observed_until,
        "source": {
            "_target_": "constellation.journeys.sources.SqlSource",
            "sql": "SELECT * FROM '{root}/events.parquet'",
            "attributes_sql": "SELECT * FROM '{root}/attributes.parquet'",
            **decisions_sql,
        },
        "schema": {"_target_": "constellation.schema.EventSchema"} | _plain(asdict(simulated.schema)),
        "windows": {"_target_": "constellation.journeys.windows.Windows"} | _plain(simulated.windows),
        "decisions": None
        if rule is None
        else {"_target_": "constellation.journeys.decisions.DecisionRule"} | _plain(dict(rule)),
    }


def shown(path: Path) -> Path:
    """Relative to the working folder where it lies inside, so that the printed command can be read."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _plain(mapping: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in mapping.items()}
