"""What preparation costs, beside what a person would write by hand."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from constellation.commands.benchmarks.child import measured_in_child
from constellation.errors import InputError
from constellation.memory import peak_memory_gib

DAYS = 3 * 365
MODULE = "constellation.commands.benchmarks.prepare"  # not __name__, which is __main__ in the process it starts
METRICS = ("seconds", "events_per_second", "peak_memory_gib", "relative_time")


def benchmark_prepare(sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Simulate an event log of each size, and prepare it by each system in a process of its own.

    Raises InputError for sizes that are no numbers of events.
    """
    if not sizes or min(sizes) < 1:
        raise InputError(f"sizes must be numbers of events, such as [100000,1000000], found {list(sizes)}.")
    rows: list[dict[str, Any]] = []
    for num_events in sizes:
        with tempfile.TemporaryDirectory(prefix="constellation-benchmark-") as folder:
            source = Path(folder) / "events.parquet"
            simulate_events(num_events, source)
            source.read_bytes()  # so that no system pays for the first reading from the disk
            measured = [_in_process(system, source, Path(folder)) for system in SYSTEMS]
        by_hand = next(row["seconds"] for row in measured if row["system"] == "polars_by_hand")
        for row in measured:
            row |= {
                "num_events": num_events,
                "events_per_second": num_events / row["seconds"],
                "relative_time": row["seconds"] / by_hand,
            }
        rows += measured
    return rows


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    print(f"{'events':>12}  {'system':<16}{'seconds':>9}{'events/s':>13}{'peak GiB':>10}{'time / polars':>15}")
    for row in rows:
        print(
            f"{row['num_events']:>12,}  {row['system']:<16}{row['seconds']:>9.2f}{row['events_per_second']:>13,.0f}"
            f"{row['peak_memory_gib']:>10.2f}{row['relative_time']:>15.2f}"
        )


def metrics_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """``prepare/<system>/<num_events>/<metric>``."""
    return {f"prepare/{row['system']}/{row['num_events']}/{name}": float(row[name]) for row in rows for name in METRICS}


def simulate_events(num_events: int, path: Path, seed: int = 0) -> None:
    """Write a log with skewed journeys (Pareto lengths, 50 events on average), in random order, a few columns."""
    import polars as pl

    generator = np.random.default_rng(seed)
    num_customers = max(1, num_events // 50)
    ends = np.cumsum(generator.pareto(1.5, num_customers) + 0.2)
    customer = np.searchsorted(ends, generator.random(num_events) * ends[-1]) + 1
    seconds = generator.integers(0, DAYS * 86_400, num_events) + 1_483_228_800
    types = generator.choice(4, num_events, p=[0.4, 0.2, 0.35, 0.05])
    products = generator.zipf(1.3, num_events) % 1000
    pl.DataFrame(
        {
            "customer_id": customer,
            "event_time": pl.Series(seconds * 1_000_000).cast(pl.Datetime("us")),
            "event_type": pl.Series(["purchase", "contact", "visit", "redemption"]).gather(types),
            "amount": np.round(generator.lognormal(3.0, 1.0, num_events), 2),
            "product": pl.Series([f"product {number}" for number in range(1000)]).gather(products),
        }
    ).write_parquet(path)


def constellation(source: Path, folder: Path) -> None:
    """Validate, sort, sum, fingerprint, write: the store."""
    from constellation.journeys.dataset import DataSet
    from constellation.journeys.prepare import prepare
    from constellation.journeys.sources import SqlSource
    from constellation.journeys.windows import Windows

    prepare(
        DataSet(
            name="benchmark",
            source=SqlSource(sql=f"SELECT * FROM '{source}'"),
            windows=Windows(val_cutoff="2018-12-31", test_cutoff="2019-06-30"),
            cache=str(folder),
        )
    )


def polars_by_hand(source: Path, folder: Path) -> None:
    """Sort, code, and save flat arrays and offsets, all in memory."""
    import polars as pl

    frame = pl.read_parquet(source)
    frame = frame.with_columns(pl.col("event_type", "product").cast(pl.Categorical)).with_columns(
        pl.col("event_type", "product").to_physical()
    )
    frame = frame.sort("customer_id", "event_time")
    counts = frame["customer_id"].rle().struct.unnest()
    np.save(folder / "customer_id.npy", counts["value"].to_numpy())
    np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(counts["len"].to_numpy(), dtype=np.int64)]))
    np.save(folder / "event_time.npy", frame["event_time"].to_physical().to_numpy())
    for name in ("event_type", "product", "amount"):
        np.save(folder / f"{name}.npy", frame[name].to_numpy())


def pandas_by_hand(source: Path, folder: Path) -> None:
    """The same with pandas."""
    import pandas as pd

    frame = pd.read_parquet(source)
    for name in ("event_type", "product"):
        frame[name] = frame[name].astype("category").cat.codes
    frame = frame.sort_values(["customer_id", "event_time"], kind="stable")
    ids, starts = np.unique(frame["customer_id"].to_numpy(), return_index=True)
    np.save(folder / "customer_id.npy", ids)
    np.save(folder / "offsets.npy", np.append(starts, len(frame)))
    for name in ("event_time", "event_type", "product", "amount"):
        np.save(folder / f"{name}.npy", frame[name].to_numpy())


SYSTEMS: dict[str, Callable[[Path, Path], None]] = {
    "constellation": constellation,
    "polars_by_hand": polars_by_hand,
    "pandas_by_hand": pandas_by_hand,
}


def _in_process(system: str, source: Path, folder: Path) -> dict[str, Any]:
    """Seconds (imports of the libraries not counted) and peak resident memory of one system in a fresh process."""
    with tempfile.TemporaryDirectory(dir=folder) as target:
        found = measured_in_child(MODULE, system, str(source), target, what=f"The benchmark of {system}")
    return {"system": system, **found}


def _main(system: str, source: str, folder: str) -> None:
    import importlib

    for library in ("numpy", "pandas", "polars", "pyarrow.parquet", "duckdb"):
        importlib.import_module(library)
    started = time.perf_counter()
    SYSTEMS[system](Path(source), Path(folder))
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "peak_memory_gib": peak_memory_gib()}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
