"""What a step of training costs: events per second of the loop itself, and the parts of a step by hand."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from constellation.errors import InputError
from constellation.memory import peak_memory_gib
from constellation.paths import config_directories

if TYPE_CHECKING:
    from constellation.journeys.dataset import DataSet
    from constellation.model import JourneyModel
    from constellation.training.learner import OptimizerFactory
    from constellation.training.options import TrainingOptions

PARTS = ("gather", "forward", "backward", "optimizer")
METRICS = (
    "events_per_second",
    "events_per_second_min",
    "events_per_second_max",
    "step_ms",
    *(f"{part}_ms" for part in PARTS),
    "peak_memory_gib",
)
WARM_STEPS = 2  # the first steps find their memory and choose their kernels
PRECISIONS = ("32-true", "bf16-mixed")


@dataclass(frozen=True)
class Setting:
    """All that a process of its own needs; everything in it can be sent there."""

    data: DataSet
    model: Mapping[str, Any]
    optimizer: OptimizerFactory
    options: TrainingOptions
    num_threads: int
    num_journeys: int


def benchmark_training(
    data: DataSet,
    encoders: Mapping[str, Mapping[str, Any]],
    readout: Mapping[str, Any],
    objective: Mapping[str, Mapping[str, Any]],
    optimizer: OptimizerFactory,
    training: TrainingOptions,
    *,
    num_threads: Sequence[int],
    num_repeats: int,
    num_journeys: int,
) -> list[dict[str, Any]]:
    """One row per encoder and number of CPU threads: medians over ``num_repeats`` interleaved repeats.

    Each encoder and number of threads has a process of its own, which sleeps while another one is measured; so the
    repeats of all of them meet the same good and bad minutes of the machine. Raises InputError for absent data or
    settings that cannot be measured.
    """
    from constellation.journeys.prepare import prepare

    if num_repeats < 1 or num_journeys < 1 or not num_threads or min(num_threads) < 1:
        raise InputError("num_threads, num_repeats and num_journeys must be numbers from 1 on.")
    if training.precision not in PRECISIONS:
        raise InputError(f"training.precision must be {' or '.join(PRECISIONS)} here, found {training.precision!r}.")
    prepare(data)  # here, so that no measured process carries the memory of the preparation
    with ExitStack() as stack:
        cases: dict[tuple[str, int], ProcessPoolExecutor] = {}
        for (name, encoder), threads in itertools.product(encoders.items(), num_threads):
            model = {"encoder": dict(encoder), "readout": dict(readout), "objective": dict(objective)}
            pool = stack.enter_context(ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")))
            pool.submit(_open, Setting(data, model, optimizer, training, threads, num_journeys)).result()
            cases[name, threads] = pool
        measured: dict[tuple[str, int], list[dict[str, float]]] = {case: [] for case in cases}
        for _ in range(num_repeats):
            for case, pool in cases.items():
                measured[case].append(pool.submit(_repeat).result())
    return [
        {"encoder": name, "num_threads": threads, "data": data.name, **_summary(repeats)}
        for (name, threads), repeats in measured.items()
    ]


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    headings = "".join(f"{heading:>11}" for heading in ("step ms", *PARTS, "peak GiB"))
    print(f"{rows[0]['data']}: medians; fastest and slowest repeat in brackets; parts in ms per step")
    print(f"{'encoder':<14}{'threads':>8}{'events/s':>10}  {'':<18}{headings}")
    for row in rows:
        span = f"[{row['events_per_second_min']:,.0f}, {row['events_per_second_max']:,.0f}]"
        numbers = [row[name] for name in METRICS[3:]]
        print(
            f"{row['encoder']:<14}{row['num_threads']:>8}{row['events_per_second']:>10,.0f}  {span:<18}"
            + "".join(f"{number:>11.2f}" for number in numbers)
        )


def metrics_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """``training/<encoder>/<num_threads>/<metric>``."""
    return {
        f"training/{row['encoder']}/{row['num_threads']}/{name}": float(row[name]) for row in rows for name in METRICS
    }


def encoder_configs(names: Sequence[str] | None) -> dict[str, dict[str, Any]]:
    """The choices of the group ``encoder``, by name; all of them for None. Raises InputError for an unknown name."""
    import yaml

    # The nearest folder wins, as everywhere.
    known = {path.stem: path for folder in reversed(config_directories()) for path in folder.glob("encoder/*.yaml")}
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise InputError(f"There is no encoder {unknown[0]!r}. Choose from {', '.join(sorted(known))}.")
    chosen = sorted(known) if names is None else names
    return {name: yaml.safe_load(known[name].read_text(encoding="utf-8")) for name in chosen}


def _summary(repeats: Sequence[Mapping[str, float]]) -> dict[str, float]:
    summary = {name: statistics.median(repeat[name] for repeat in repeats) for name in repeats[0]}
    rates = [repeat["events_per_second"] for repeat in repeats]
    return summary | {
        "events_per_second_min": min(rates),
        "events_per_second_max": max(rates),
        "peak_memory_gib": max(repeat["peak_memory_gib"] for repeat in repeats),
    }


# ---------------------------------------------------------------- in the process that is measured


class Loop:
    """One model in training, for as long as it is asked. Every ``repeat`` begins with new weights."""

    def __init__(self, setting: Setting) -> None:
        import torch

        from constellation.building import targets
        from constellation.journeys.batch import Gatherer
        from constellation.journeys.prepare import prepare
        from constellation.journeys.sampling import TrainingBatches
        from constellation.journeys.splits import Splits
        from constellation.training.study import fit_vocabulary

        torch.set_num_threads(setting.num_threads)
        options = setting.options
        on_gpu = options.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        self.device = torch.device("cuda" if on_gpu else "cpu")
        # Two epochs, of which the first warms up.
        self.options = replace(options, max_epochs=2, accelerator="gpu" if on_gpu else "cpu", devices=1)
        self.setting, self.trusted = setting, targets(setting.model)
        store = prepare(setting.data)
        splits = Splits(store, setting.data.windows)
        self.horizons_days = splits.windows.horizons_days
        self.vocabulary = fit_vocabulary(splits, options, splits.refit_panel, splits.test_cutoff)
        everybody = splits.train_journeys
        chosen = np.unique(np.linspace(0, len(everybody) - 1, setting.num_journeys).astype(np.int64))
        self.batches = TrainingBatches(
            Gatherer(store, self.vocabulary, options.max_events),
            everybody[chosen],
            splits.test_cutoff,
            self.horizons_days,
            cutoffs_per_journey=options.cutoffs_per_journey,
            max_tokens=options.max_tokens,
            max_journeys=options.journeys_of_a_batch(len(chosen)),
            earliest=splits.windows.earliest(store),
        )

    def repeat(self) -> dict[str, float]:
        """Events per second of the real loop over one epoch, then the parts of a step, in milliseconds."""
        import torch

        rate = self._rate()
        events_per_step = self.batches.num_events / len(self.batches)
        on_gpu = self.device.type == "cuda"
        return {
            "events_per_second": rate,
            "step_ms": 1000 * events_per_step / rate,
            **self._parts(),
            "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else peak_memory_gib(),
        }

    def _model(self) -> JourneyModel:
        import torch

        from constellation.building import build_model

        torch.manual_seed(0)
        return build_model(self.setting.model, self.vocabulary, self.horizons_days, trusted=self.trusted)

    def _rate(self) -> float:
        from constellation.training.fit import fit

        with tempfile.TemporaryDirectory(prefix="constellation-benchmark-") as folder:
            fitted = fit(
                self._model(), self.batches, self.setting.optimizer, self.options, Path(folder), label="benchmark"
            )
        return fitted.history[1]["train/events_per_second"]

    def _parts(self) -> dict[str, float]:
        """Means over the steps of an epoch, by hand, for the loop cannot wait for the device between the parts."""
        import torch

        from constellation.training.learner import Learner

        learner = Learner(self._model(), self.setting.optimizer, total_steps=len(self.batches), averaging=0.0)
        learner.to(self.device).train()
        configured = learner.configure_optimizers()
        optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
        is_mixed = self.options.precision == "bf16-mixed"

        def epoch() -> Iterator[list[float]]:
            """Milliseconds of the parts of each step."""
            batches = iter(self.batches)
            for step in range(len(self.batches)):
                times = [self._now()]
                batch = next(batches).to(self.device)
                times.append(self._now())
                with torch.autocast(self.device.type, torch.bfloat16, enabled=is_mixed):
                    loss = learner.training_step(batch, step)
                times.append(self._now())
                loss.backward()
                times.append(self._now())
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
                times.append(self._now())
                yield [1000 * (end - start) for start, end in itertools.pairwise(times)]

        self.batches.epoch = 1  # the batches that the rate was measured on
        list(itertools.islice(epoch(), WARM_STEPS))
        columns = zip(*epoch(), strict=True)
        return {f"{part}_ms": statistics.fmean(column) for part, column in zip(PARTS, columns, strict=True)}

    def _now(self) -> float:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


_loops: list[Loop] = []  # of this process: one, opened before it is asked


def _open(setting: Setting) -> None:
    from constellation.tracking import quiet_libraries

    quiet_libraries()
    _loops.append(Loop(setting))


def _repeat() -> dict[str, float]:
    return _loops[0].repeat()
