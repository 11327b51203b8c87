"""What one device does with our training step: events per second, utilisation, and where its time goes, by width.

Simulated journeys like those of MovieLens-1M, our transformer, full softmax, the batches of the training path. On a GPU
steps are timed by device events and the profiler counts kernels; on a CPU by the clock, and it counts operators.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from constellation.commands.benchmarks.device_time import GROUPS, profiled, shares
from constellation.commands.benchmarks.throughput_ceiling import operations_per_event
from constellation.commands.benchmarks.throughput_meter import Task
from constellation.commands.benchmarks.throughput_shapes import Events
from constellation.errors import InputError
from constellation.schema import EVENT_TYPE

if TYPE_CHECKING:
    import torch

    from constellation.journeys.batch import JourneyBatch
    from constellation.journeys.sampling import TrainingBatches
    from constellation.training.learner import Learner
    from constellation.training.options import TrainingOptions

WIDTHS = (64, 256, 1024)
NUM_FILMS, MAX_LENGTH = 3416, 200
PRODUCT_SIZES = {"cuda": 8192, "cpu": 1024}
"""Side of the square matrices whose product is the peak."""


def benchmark_device(
    training: TrainingOptions,
    *,
    widths: Sequence[int] = WIDTHS,
    num_journeys: int = 6040,
    batch: int = 128,
    warmup_steps: int = 10,
    num_steps: int = 30,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """One row per width, after warm-up: medians over ``num_steps`` steps, shares of time over as many profiled ones.

    ``training`` gives the accelerator, ``precision``, ``compile``, ``store_on_device`` and ``prefetch``; a step has
    ``batch`` journeys of at most 200 events. Model operations are those of ``operations_per_event``; the utilisation
    divides their rate by that of a large square matrix product, measured in the same run in the same precision.
    Raises InputError for a GPU that is not there.
    """
    import torch

    from constellation.tracking import quiet_libraries

    quiet_libraries()
    if min(num_steps, num_journeys, batch) < 1 or warmup_steps < 1 or not widths:
        raise InputError("num_steps, warmup_steps, num_journeys, batch must be at least 1, and widths name one width.")
    device = _device(training.accelerator)
    if training.num_threads is not None:
        torch.set_num_threads(training.num_threads)
    peak = matrix_rate(device, training.precision)
    rows = []
    with tempfile.TemporaryDirectory(prefix="constellation-benchmark-") as folder:
        events = simulate_films(num_journeys=num_journeys, seed=seed)
        events.write(Path(folder))
        for width in widths:
            task = task_of(width, folder, batch=batch, seed=seed, steps=(warmup_steps, num_steps))
            rows.append(_measured(task, events, training, device, peak))
    return rows


def simulate_films(*, num_journeys: int, seed: int) -> Events:
    """Log-normal lengths (median 96, deviation of the log 1, 18 to 2,000 events, as in MovieLens-1M), in order only.

    A film of popularity rank r is drawn with weight 1 / (r + 100): the head is flatter than that of a shop.
    """
    rng = np.random.default_rng(seed)
    lengths = np.clip(np.round(rng.lognormal(np.log(96.0), 1.0, num_journeys)), 18, 2000).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    weights = 1.0 / (np.arange(NUM_FILMS) + 100.0)
    item_N = 1 + rng.choice(NUM_FILMS, offsets[-1], p=weights / weights.sum())
    return Events(
        offsets=offsets,
        time_N=np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths),
        item_N=item_N,
        num_items=NUM_FILMS,
        categories={EVENT_TYPE: (np.ones(offsets[-1], dtype=np.int64), ["rating"])},
        clock="order",
    )


def task_of(width: int, folder: str, *, batch: int, seed: int, steps: tuple[int, int]) -> Task:
    """At width 64 the network of the shape ``films_200``.

    Wider ones are deeper, with heads of 64 and 4 times the width inside.
    """
    if width < 8 or width % 8:
        raise InputError(f"widths must be multiples of 8, found {width}.")
    heads = next(heads for heads in (max(width // 64, 2), 2, 1) if width % (2 * heads) == 0)
    return Task(
        folder=folder,
        num_items=NUM_FILMS,
        max_length=MAX_LENGTH,
        batch=batch,
        width=width,
        blocks=max(2, width // 128),
        heads=heads,
        feed_forward=width if width <= 64 else 4 * width,
        dropout=0.2,
        warmup_steps=steps[0],
        num_steps=steps[1],
        num_threads=1,
        seed=seed,
        settings={},
    )


def matrix_rate(device: torch.device, precision: str, repeats: int = 10) -> float:
    """Operations per second of a square matrix product, the median of ``repeats``; in bfloat16 where training is."""
    import torch

    size = PRODUCT_SIZES[device.type]
    dtype = torch.bfloat16 if precision.startswith("bf16") else torch.float32
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.mm(left, right)
    seconds = list(_seconds(lambda: torch.mm(left, right, out=out), device, 3 + repeats))[3:]
    return 2.0 * size**3 / statistics.median(seconds)


def _measured(
    task: Task, events: Events, training: TrainingOptions, device: torch.device, peak: float
) -> dict[str, Any]:
    import torch

    from constellation.training.callbacks import peak_device_gib

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    loop = Loop(task, training, device)
    num_targets: list[int] = []
    seconds = list(_seconds(lambda: num_targets.append(loop.step()), device, task.warmup_steps + task.num_steps))
    seconds, counted = seconds[task.warmup_steps :], num_targets[-task.num_steps :]
    found = shares(*profiled(loop.step, device, task.num_steps))
    loop.close()
    rate = statistics.median(number / taken for number, taken in zip(counted, seconds, strict=True))
    operations = operations_per_event(events, task)
    return {
        "width": task.width,
        "layers": task.blocks,
        "heads": task.heads,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "precision": training.precision,
        "events_per_second": rate,
        "step_ms": 1000 * statistics.median(seconds),
        "model_mflop_per_event": operations / 1e6,
        "peak_tflops": peak / 1e12,
        "model_flop_utilisation": rate * operations / peak,
        "peak_memory_gib": peak_device_gib(),
        **{f"share_{group}": share for group, share in found.items()},
    }


class Loop:
    """Steps of the training path, without Lightning around them, over one epoch after another."""

    def __init__(self, task: Task, training: TrainingOptions, device: torch.device) -> None:
        import torch

        from constellation.commands.benchmarks import throughput_ours as ours
        from constellation.training.feeding import fed, makes_ahead
        from constellation.training.learner import Learner

        torch.manual_seed(task.seed)
        budget = ours.our_options(task)
        options = replace(training, **{name: getattr(budget, name) for name in _BUDGET})
        batches = ours.make_batches(task, ours.data_set(Path(task.folder), "order"), options)
        model = ours.make_model(task, batches)
        self.device, self.is_mixed = device, training.precision.startswith("bf16")
        self._learner: Learner = Learner(
            model,
            lambda parameters: torch.optim.AdamW(parameters, **ours.OPTIMIZER),  # type: ignore[arg-type]
            total_steps=10_000,
            products=_products(training, device),
            is_compiled=training.compile,
        )
        self._learner.to(device).train()
        configured = self._learner.configure_optimizers()
        self._optimizer, self._schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
        self._batches = _endless(fed(batches, device, options))
        self._ahead: Any = None
        if makes_ahead(device, options):
            from constellation.journeys.prefetch import Prefetched

            self._ahead = self._batches = Prefetched(self._batches, device)
        self._step = 0

    def step(self) -> int:
        """Learn from one batch; the number of events that another one follows."""
        import torch

        batch = next(self._batches).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.is_mixed):
            loss = self._learner.training_step(batch, self._step)
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._schedule.step()
        self._step += 1
        self._learner.average(self._step)
        return int(np.maximum(batch.lengths_on_host - 1, 0).sum())

    def close(self) -> None:
        if self._ahead is not None:
            self._ahead.close()


_BUDGET = ("max_tokens", "max_journeys", "max_events", "cutoffs_per_journey")


def _products(training: TrainingOptions, device: torch.device) -> str:
    from constellation.kernels.products import FLOAT32, measured_choice
    from constellation.training.options import AUTO

    if device.type != "cpu":
        return FLOAT32  # there autocast decides
    return measured_choice() if training.products == AUTO else training.products


def _endless(batches: TrainingBatches) -> Iterator[JourneyBatch]:
    while True:
        yield from batches
        batches.epoch += 1


def _seconds(run: Callable[[], object], device: torch.device, number: int) -> Iterator[float]:
    """How long each of ``number`` runs took: on a GPU between device events, so that nothing waits in between."""
    import torch

    if device.type != "cuda":
        for _ in range(number):
            start = time.perf_counter()
            run()
            yield time.perf_counter() - start
        return
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(number + 1)]
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    torch.cuda.synchronize()
    for before, after in itertools.pairwise(marks):
        yield before.elapsed_time(after) / 1000


def _device(accelerator: str) -> torch.device:
    import torch

    if accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InputError(
            f"training.accelerator is {accelerator!r}, but PyTorch finds no CUDA device. Choose cpu or auto."
        )
    return torch.device("cuda", torch.cuda.current_device())


def metrics_of(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """``device/<width>/<figure>`` for every number of a row."""
    figures = [name for name, value in rows[0].items() if name != "width" and isinstance(value, int | float)]
    return {f"device/{row['width']}/{name}": float(row[name]) for row in rows for name in figures}


def print_rows(rows: Sequence[dict[str, Any]]) -> None:
    first = rows[0]
    print(f"{first['device']}, {first['precision']}, square matrix product {first['peak_tflops']:.3g} TFLOP/s")
    heads = ("width", "layers", "events/s", "step ms", "MFLOP/event", "utilisation", "GiB", *GROUPS)
    print("  ".join(f"{head.replace('_', ' '):>{max(11, len(head))}}" for head in heads))
    for row in rows:
        cells = [
            f"{row['width']}",
            f"{row['layers']}",
            f"{row['events_per_second']:,.0f}",
            f"{row['step_ms']:.1f}",
            f"{row['model_mflop_per_event']:.2f}",
            f"{row['model_flop_utilisation']:.1%}",
            f"{row['peak_memory_gib']:.2f}",
            *(f"{row[f'share_{group}']:.1%}" for group in GROUPS),
        ]
        print("  ".join(f"{cell:>{max(11, len(head))}}" for cell, head in zip(cells, heads, strict=True)))
