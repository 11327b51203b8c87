"""Measure what each part costs on this machine, and how fast peers train beside us."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from constellation.commands.benchmarks import coverage as of_coverage
from constellation.commands.benchmarks import device as of_device
from constellation.commands.benchmarks import parallel as of_parallel
from constellation.commands.benchmarks import prepare as of_prepare
from constellation.commands.benchmarks import rct_to_log as of_rct_to_log
from constellation.commands.benchmarks import recommend as of_recommend
from constellation.commands.benchmarks import throughput as of_throughput
from constellation.commands.benchmarks import training as of_training
from constellation.commands.benchmarks import world as of_world
from constellation.errors import InputError

if TYPE_CHECKING:
    from constellation.journeys.dataset import DataSet
    from constellation.tracking import Run
    from constellation.training.learner import OptimizerFactory
    from constellation.training.options import TrainingOptions

PREPARED_EVENTS = (100_000, 1_000_000, 10_000_000)
PLANNED_CUSTOMERS = (100_000, 1_000_000)
SIMULATED_CUSTOMERS = (10_000, 100_000)


def benchmark(
    run: Run,
    *,
    what: str = "prepare",
    sizes: Sequence[int] | None = None,
    data: DataSet,
    encoders: Sequence[str] | None = None,
    readout: Mapping[str, Any],
    objective: Mapping[str, Mapping[str, Any]],
    optimizer: OptimizerFactory,
    training: TrainingOptions,
    num_threads: Sequence[int] = (1, 2),
    num_repeats: int = 3,
    num_journeys: int = 256,
    shapes: Sequence[str] = ("films_200", "films_50", "short", "catalogue"),
    peers: str | Sequence[str] | None = "installed",
    warmup_steps: int = 2,
    num_steps: int = 8,
    widths: Sequence[int] = of_device.WIDTHS,
    strengths: Sequence[float] = (0.5, 1.0, 2.0),
    num_replicates: int | None = None,
) -> dict[str, float]:
    """Run one benchmark, print its table, and log it with its metrics, which are returned.

    ``prepare`` reads ``sizes`` alone: simulated logs, beside what a person would write by hand.
    ``recommend`` and ``world`` too: customers to plan contacts for, and customers to simulate for a year.
    ``training`` reads the parts of a model: the training loop on ``data`` for each encoder and number of CPU threads.
    ``throughput`` reads ``shapes``, ``peers`` and the numbers of steps: our training beside other packages', in turn;
    its shape ``short`` reads ``data``.
    ``device`` reads ``training``, ``widths`` and the numbers of steps: our training step on one device, and where its
    time goes.
    ``parallel`` reads what ``training`` reads: two processes on one training beside two trainings.
    ``rct_to_log`` reads ``data``, a trial, ``strengths`` and ``num_replicates`` (200): estimators beside the truth.
    ``coverage`` reads ``num_replicates`` (400) and ``sizes``, customers in a log (500): intervals and verdicts beside
    the truth of a simulated world.
    docs/benchmarks.md names the metrics. Raises InputError for an unknown benchmark or settings it cannot measure.
    """
    import pandas as pd

    def training_rows() -> list[dict[str, Any]]:
        return of_training.benchmark_training(
            data,
            of_training.encoder_configs(encoders),
            readout,
            objective,
            optimizer,
            training,
            num_threads=num_threads,
            num_repeats=num_repeats,
            num_journeys=num_journeys,
        )

    def throughput_rows() -> list[dict[str, Any]]:
        return of_throughput.benchmark_throughput(
            data,
            shapes=shapes,
            peers=peers,
            num_threads=num_threads,
            num_repeats=num_repeats,
            warmup_steps=warmup_steps,
            num_steps=num_steps,
        )

    def device_rows() -> list[dict[str, Any]]:
        return of_device.benchmark_device(training, widths=widths, warmup_steps=warmup_steps, num_steps=num_steps)

    def parallel_rows() -> list[dict[str, Any]]:
        return of_parallel.benchmark_parallel(
            data,
            of_training.encoder_configs(encoders),
            readout,
            objective,
            optimizer,
            training,
            num_repeats=num_repeats,
            num_journeys=num_journeys,
        )

    def trial_rows() -> list[dict[str, Any]]:
        return of_rct_to_log.rct_to_log(data, strengths=strengths, num_replicates=num_replicates or 200)

    def coverage_rows() -> list[dict[str, Any]]:
        of_each = [
            of_coverage.benchmark_coverage(num_replicates=num_replicates or 400, num_customers=size)
            for size in sizes or (of_coverage.CUSTOMERS,)
        ]
        return [row for rows in of_each for row in rows]

    benchmarks: dict[str, tuple[Any, Callable[[], list[dict[str, Any]]]]] = {
        "prepare": (of_prepare, lambda: of_prepare.benchmark_prepare(sizes or PREPARED_EVENTS)),
        "training": (of_training, training_rows),
        "throughput": (of_throughput, throughput_rows),
        "device": (of_device, device_rows),
        "parallel": (of_parallel, parallel_rows),
        "recommend": (of_recommend, lambda: of_recommend.benchmark_recommend(sizes or PLANNED_CUSTOMERS)),
        "world": (of_world, lambda: of_world.benchmark_world(sizes or SIMULATED_CUSTOMERS)),
        "rct_to_log": (of_rct_to_log, trial_rows),
        "coverage": (of_coverage, coverage_rows),
    }
    if what not in benchmarks:
        raise InputError(f"what must be one of {', '.join(benchmarks)}, found {what!r}.")
    module, measure = benchmarks[what]
    rows = measure()
    module.print_rows(rows)
    run.log_table(what, pd.DataFrame(rows))
    metrics: dict[str, float] = module.metrics_of(rows)
    run.log_metrics(metrics)
    return metrics
