"""What a second core pays: data-parallel training on several processes beside as many trainings that know nothing of
each other. The latter is all that so many cores can do, so the ratio says what agreeing on gradients costs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from constellation.commands.benchmarks.training import Setting, _loops, _open
from constellation.errors import InputError

if TYPE_CHECKING:
    from constellation.journeys.dataset import DataSet
    from constellation.training.learner import OptimizerFactory
    from constellation.training.options import TrainingOptions


def benchmark_parallel(
    data: DataSet,
    encoders: Mapping[str, Mapping[str, Any]],
    readout: Mapping[str, Any],
    objective: Mapping[str, Mapping[str, Any]],
    optimizer: OptimizerFactory,
    training: TrainingOptions,
    *,
    num_processes: int = 2,
    num_repeats: int = 5,
    num_journeys: int = 2000,
) -> list[dict[str, Any]]:
    """One row per encoder: events per second of ``num_processes`` one-thread trainings at once, ``apart`` (their sum)
    and ``together`` (data parallel, the global batch of ``training``), medians of interleaved repeats, and the ratio.

    Raises InputError for absent data or fewer than two processes.
    """
    from constellation.journeys.prepare import prepare

    if num_processes < 2 or num_repeats < 1:
        raise InputError("num_processes must be at least 2, num_repeats at least 1.")
    prepare(data)
    rows = []
    for name, encoder in encoders.items():
        model = {"encoder": dict(encoder), "readout": dict(readout), "objective": dict(objective)}
        setting = Setting(data, model, optimizer, replace(training, accelerator="cpu"), 1, num_journeys)
        with ExitStack() as stack:
            pools = [
                stack.enter_context(ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")))
                for _ in range(num_processes + 1)
            ]
            for pool in pools:
                pool.submit(_open, setting).result()
            pools[-1].submit(_together, num_processes).result()
            apart, together = [], []
            for _ in range(num_repeats):
                running = [pool.submit(_rate) for pool in pools[:-1]]
                apart.append(sum(rate.result() for rate in running))
                together.append(pools[-1].submit(_rate).result())
        ratios = [two / one for one, two in zip(apart, together, strict=True)]
        rows.append(
            {
                "encoder": name,
                "data": data.name,
                "num_processes": num_processes,
                "apart": statistics.median(apart),
                "together": statistics.median(together),
                "ratio": statistics.median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
            }
        )
    return rows


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    print(f"{rows[0]['data']}: events/s of {rows[0]['num_processes']} one-thread processes, medians")
    print(f"{'encoder':<14}{'apart':>10}{'together':>10}{'ratio':>8}  [fastest and slowest repeat]")
    for row in rows:
        span = f"[{row['ratio_min']:.2f}, {row['ratio_max']:.2f}]"
        print(f"{row['encoder']:<14}{row['apart']:>10,.0f}{row['together']:>10,.0f}{row['ratio']:>8.2f}  {span}")


def metrics_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """``parallel/<encoder>/<metric>``."""
    names = ("apart", "together", "ratio", "ratio_min", "ratio_max")
    return {f"parallel/{row['encoder']}/{name}": float(row[name]) for row in rows for name in names}


# ---------------------------------------------------------------- in the processes that are measured


def _together(num_processes: int) -> None:
    loop = _loops[0]
    loop.options = replace(loop.options, devices=num_processes, strategy="ddp")


def _rate() -> float:
    """Of the second epoch; the first one warms up and, the first time, starts the other processes."""
    return _loops[0]._rate()
