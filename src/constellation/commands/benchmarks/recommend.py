"""What a plan costs: from stored predictions and past contacts to the written plan, with budget, capacity and caps."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from constellation.commands.benchmarks.child import measured_in_child
from constellation.errors import InputError

MODULE = "constellation.commands.benchmarks.recommend"  # not __name__, which is __main__ in the process it starts
METRICS = ("seconds", "customers_per_second", "peak_memory_gib", "optimality_gap")
PART = 250_000
"""Customers simulated at a time."""


def benchmark_recommend(sizes: Sequence[int], solver: str = "auto") -> list[dict[str, Any]]:
    """Simulate predictions of ten actions for each number of customers, and plan them in a process of its own.

    Raises InputError for sizes that are no numbers of customers.
    """
    if not sizes or min(sizes) < 1:
        raise InputError(f"sizes must be numbers of customers, such as [100000,1000000], found {list(sizes)}.")
    rows = []
    for num_customers in sizes:
        with tempfile.TemporaryDirectory(prefix="constellation-benchmark-") as folder:
            simulate_predictions(num_customers, Path(folder))
            rows.append({"num_customers": num_customers, **_in_process(num_customers, solver, Path(folder))})
    return rows


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    print(f"{'customers':>12}  {'method':<8}{'seconds':>9}{'customers/s':>13}{'peak GiB':>10}{'gap':>12}")
    for row in rows:
        print(
            f"{row['num_customers']:>12,}  {row['method']:<8}{row['seconds']:>9.1f}"
            f"{row['customers_per_second']:>13,.0f}{row['peak_memory_gib']:>10.2f}{row['optimality_gap']:>12.5%}"
        )


def metrics_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """``recommend/<num_customers>/<metric>``."""
    return {f"recommend/{row['num_customers']}/{name}": float(row[name]) for row in rows for name in METRICS}


def simulate_predictions(num_customers: int, folder: Path) -> None:
    """Write ``predictions.parquet`` and ``contacts.parquet``, the example's recipe, part by part."""
    import polars as pl
    import pyarrow.parquet as pq

    from constellation.allocation.example import example

    contacts, writer = [], None
    for start in range(0, num_customers, PART):
        drawn = example(min(PART, num_customers - start), seed=start, first_id=start + 1)
        table = drawn.predictions.to_arrow()
        if writer is None:
            writer = pq.ParquetWriter(folder / "predictions.parquet", table.schema)
        writer.write_table(table)
        contacts.append(drawn.contacts)
    assert writer is not None
    writer.close()
    pl.concat(contacts).write_parquet(folder / "contacts.parquet")


def limits(num_customers: int) -> dict[str, Any]:
    """Keyword arguments of ``Constraints`` that bind in the same way at any size."""
    return {
        "start": "2026-01-05",
        "budget": 0.3 * num_customers,
        "capacity": {"email": 0.2 * num_customers, "letter": 0.04 * num_customers, "phone": 0.008 * num_customers},
        "caps": [{"contacts": 3, "days": 28}, {"contacts": 1, "days": 7, "of": "push"}],
        "cool_downs": [{"days": 3}, {"days": 28, "of": "letter", "after": "letter"}],
    }


def _in_process(num_customers: int, solver: str, folder: Path) -> dict[str, Any]:
    """Seconds (imports of the libraries not counted) and peak resident memory of the command in a fresh process."""
    return measured_in_child(MODULE, str(num_customers), solver, str(folder), what="The benchmark of recommend")


def _main(num_customers: str, solver: str, folder: str) -> None:
    import importlib

    from constellation.allocation.constraints import Constraints
    from constellation.commands.recommend import recommend
    from constellation.memory import peak_memory_gib
    from constellation.tracking import Run

    for library in ("numpy", "polars", "pyarrow.parquet", "scipy.optimize", "matplotlib.figure"):
        importlib.import_module(library)
    with Run.start(Path(folder) / "run", "recommend") as run:
        started = time.perf_counter()
        plan = recommend(
            run,
            predictions=f"{folder}/predictions.parquet",
            contacts=f"{folder}/contacts.parquet",
            constraints=Constraints(**limits(int(num_customers))),
            solver=solver,
        )
        seconds = time.perf_counter() - started
    row = {
        "method": plan.solution.method,
        "seconds": seconds,
        "customers_per_second": int(num_customers) / seconds,
        "peak_memory_gib": peak_memory_gib(),
        "optimality_gap": run.metrics["recommend/optimality_gap"],
    }
    print(json.dumps(row))


if __name__ == "__main__":
    _main(*sys.argv[1:])
