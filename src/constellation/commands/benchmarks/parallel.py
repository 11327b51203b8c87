"""What a second core pays: data-parallel training on several processes beside as many trainings that know nothing of
each other. The latter is all that so many cores can do, so the ratio says what agreeing on gradients costs.

Each of the trainings apart takes a batch as large as the global one, for the two ways are then the same training, and
a person chooses between them. Beside it stands the reading where each takes a batch as large as a rank's share: what is
left is the exchange and the waiting for the slower part, without what smaller batches cost anybody.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from constellation.commands.benchmarks.training import Setting, _loops, _open
from constellation.errors import InputError

if TYPE_CHECKING:
    from constellation.journeys.dataset import DataSet
    from constellation.training.learner import OptimizerFactory
    from constellation.training.options import TrainingOptions

WAYS = ("apart", "apart_share", "together")
METRICS = (
    *WAYS,
    *(f"{way}_cpu_seconds_per_million_events" for way in WAYS),
    *(f"{ratio}{end}" for ratio in ("ratio", "ratio_share", "ratio_cpu") for end in ("", "_min", "_max")),
)


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
    """One row per encoder, medians of interleaved repeats: events per second and CPU seconds per million events of
    ``num_processes`` one-thread trainings at once, ``apart`` (batches as large as the global one) and ``apart_share``
    (as large as a rank's share), and ``together`` (data parallel, the global batch of ``training``); ``ratio`` and
    ``ratio_share`` are the rate together over that apart, ``ratio_cpu`` the CPU time apart over that together.

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
            found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
            for _ in range(num_repeats):
                for way, parts in (("apart", 1), ("apart_share", num_processes)):
                    running = [pool.submit(_measured, parts, 1) for pool in pools[:-1]]
                    rates, costs = zip(*(measured.result() for measured in running), strict=True)
                    found[way].append((sum(rates), statistics.fmean(costs)))
                found["together"].append(pools[-1].submit(_measured, 1, num_processes).result())
        rows.append({"encoder": name, "data": data.name, "num_processes": num_processes, **_summary(found)})
    return rows


def _summary(found: Mapping[str, Sequence[tuple[float, float]]]) -> dict[str, float]:
    """Medians of rates, CPU seconds, and of the ratios of neighbouring measurements."""
    summary = {way: statistics.median(rate for rate, _ in measured) for way, measured in found.items()}
    for way, measured in found.items():
        summary[f"{way}_cpu_seconds_per_million_events"] = statistics.median(cost for _, cost in measured)
    apart, share, together = (found[way] for way in WAYS)
    ratios = {
        "ratio": [two[0] / one[0] for one, two in zip(apart, together, strict=True)],
        "ratio_share": [two[0] / one[0] for one, two in zip(share, together, strict=True)],
        "ratio_cpu": [one[1] / two[1] for one, two in zip(apart, together, strict=True)],
    }
    for name, values in ratios.items():
        summary |= {name: statistics.median(values), f"{name}_min": min(values), f"{name}_max": max(values)}
    return summary


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    print(
        f"{rows[0]['data']}: {rows[0]['num_processes']} one-thread processes, medians; slowest and fastest in brackets"
    )
    for row in rows:
        print(row["encoder"])
        for way, what in zip(WAYS, ("apart", "apart, a share's batch", "together"), strict=True):
            cpu = row[f"{way}_cpu_seconds_per_million_events"]
            print(f"  {what:<24}{row[way]:>10,.0f} events/s{cpu:>10.1f} CPU s per million events")
        for name, what in (
            ("ratio", "together / apart"),
            ("ratio_share", "together / a share's batch"),
            ("ratio_cpu", "the same in CPU time"),
        ):
            print(f"  {what:<28}{row[name]:>6.2f}  [{row[f'{name}_min']:.2f}, {row[f'{name}_max']:.2f}]")


def metrics_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """``parallel/<encoder>/<metric>``."""
    return {f"parallel/{row['encoder']}/{name}": float(row[name]) for row in rows for name in METRICS}


# ---------------------------------------------------------------- in the processes that are measured


def _measured(parts: int, devices: int) -> tuple[float, float]:
    """Events per second and CPU seconds per million events of the second epoch, with batches of a ``parts``-th.

    The first epoch warms up and, the first time, starts the other processes.
    """
    from constellation.training.fit import fit

    loop = _loops[0]
    options = replace(loop.options, devices=devices, strategy="ddp" if devices > 1 else "auto")
    batches = replace(
        loop.batches,
        max_journeys=max(loop.batches.max_journeys // parts, 1),
        max_tokens=max(loop.batches.max_tokens // parts, 1),
    )
    spent: list[float] = []
    with tempfile.TemporaryDirectory(prefix="constellation-benchmark-") as folder:
        fitted = fit(
            loop._model(),
            batches,
            loop.setting.optimizer,
            options,
            Path(folder),
            label="benchmark",
            report=lambda row: spent.append(_cpu_seconds()),
        )
    seconds = spent[1] - spent[0]
    return fitted.history[1]["train/events_per_second"], seconds / batches.num_events * 1e6


def _cpu_seconds() -> float:
    """User and system, of this process and of those it started."""
    import psutil

    family = [psutil.Process(os.getpid()), *psutil.Process(os.getpid()).children(recursive=True)]
    return sum(sum(member.cpu_times()[:2]) for member in family)
