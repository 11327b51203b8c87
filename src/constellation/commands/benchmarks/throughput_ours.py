"""Our side of the throughput benchmark: the real training path on a prepared store, in a process of its own."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from constellation.commands.benchmarks.throughput_meter import Meter, Task
from constellation.journeys.sampling import TrainingBatches

if TYPE_CHECKING:
    import torch

    from constellation.journeys.batch import JourneyBatch
    from constellation.journeys.dataset import DataSet
    from constellation.model import JourneyModel
    from constellation.training.options import TrainingOptions

HORIZONS_DAYS: tuple[int, ...] = ()  # nothing is asked about cutoffs


def our_model(task: Task) -> dict[str, Any]:
    """Encoder, readout and objective of our side: the one place to change when the fast core changes."""
    return {
        "encoder": {
            "_target_": "constellation.encoders.transformer.Transformer",
            "width": task.width,
            "layers": task.blocks,
            "heads": task.heads,
            "expansion": task.feed_forward // task.width,
            "dropout": task.dropout,
        },
        "readout": {"_target_": "constellation.encoders.readout.StateReadout"},
        "objective": {
            "next_event": {
                "_target_": "constellation.objectives.next_event.NextEvent",
                "width": task.width,
                "max_repeat_products": 0,  # a term of the readout, which is not trained here
                "tied": True,
                "shared": True,
            }
        },
    }


def our_options(task: Task) -> TrainingOptions:
    """Options of the training loop of our side."""
    from constellation.training.options import TrainingOptions

    return TrainingOptions(
        max_tokens=task.batch * (task.max_length + 1),
        max_journeys=task.batch,
        max_events=task.max_length + 1,  # so many targets as others learn from: the first event is nobody's target
        cutoffs_per_journey=0,  # every event's state is asked for the event that follows, as peers do
        accelerator="cpu",
        num_threads=task.num_threads,
    )


OPTIMIZER = {"lr": 2e-3, "weight_decay": 0.01, "betas": (0.9, 0.98), "fused": True}


def data_set(folder: Path, clock: str) -> DataSet:
    """The data set of a shape's common input, prepared inside its folder."""
    from constellation.journeys.dataset import DataSet
    from constellation.journeys.sources import SqlSource
    from constellation.journeys.windows import Windows
    from constellation.schema import EventSchema

    columns = _columns(folder / "events.parquet")
    return DataSet(
        name="throughput",
        source=SqlSource(sql=f"SELECT * FROM '{folder / 'events.parquet'}'"),
        schema=EventSchema(clock=clock, categorical=tuple(name for name in columns if name == "store_id")),
        # Not read: this benchmark trains on everything.
        windows=Windows(val_cutoff="2020-01-01", test_cutoff="2020-02-01"),
        cache=str(folder / "cache"),
    )


def _columns(path: Path) -> list[str]:
    import pyarrow.parquet as pq

    return list(pq.read_schema(path).names)


def make_batches(task: Task, data: DataSet, options: TrainingOptions) -> TrainingBatches:
    """Batches over all journeys of a shape, with nothing held out."""
    from constellation.journeys.batch import Gatherer
    from constellation.journeys.prepare import prepare
    from constellation.journeys.vocabulary import Vocabulary
    from constellation.journeys.windows import ask

    store = prepare(data)
    everybody, until = np.arange(store.num_customers), store.manifest.last_time
    panel = ask(store, everybody, np.full(len(everybody), until), HORIZONS_DAYS, until)
    vocabulary = Vocabulary.fit(store, panel, journeys=everybody, until=until)
    return TrainingBatches(
        Gatherer(store, vocabulary, options.max_events),
        everybody,
        until,
        HORIZONS_DAYS,
        cutoffs_per_journey=options.cutoffs_per_journey,
        max_tokens=options.max_tokens,
        max_journeys=options.journeys_of_a_batch(len(everybody)),
        seed=task.seed,
    )


def make_model(task: Task, batches: TrainingBatches) -> JourneyModel:
    from constellation.building import build_model

    return build_model(our_model(task), batches.gatherer.vocabulary, HORIZONS_DAYS)


def train(task: Task, data: DataSet) -> None:
    """Train for the steps of the task; the meter prints what it found."""
    import torch

    from constellation.tracking import quiet_libraries
    from constellation.training.fit import fit
    from constellation.training.optimizers import AdamW

    quiet_libraries()
    torch.set_num_threads(task.num_threads)
    torch.manual_seed(task.seed)
    meter, options = Meter(task), our_options(task)
    batches = make_batches(task, data, options)
    model = make_model(task, batches)

    def count(_: torch.nn.Module, inputs: tuple[JourneyBatch]) -> None:
        targets = inputs[0].targets
        assert targets is not None
        meter.expect(int((targets.next_N >= 0).sum()))  # events that another event follows

    model.encoder.register_forward_pre_hook(count)

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        made = AdamW(parameters, **OPTIMIZER)  # type: ignore[arg-type]
        made.register_step_post_hook(lambda *_: meter.step())
        return made

    with tempfile.TemporaryDirectory(dir=task.folder) as folder:
        fit(
            model,
            batches,
            optimizer,
            options,
            Path(folder),
            label="throughput",
            num_steps=task.warmup_steps + task.num_steps,
            schedule_steps=100 * task.num_steps,
        )


if __name__ == "__main__":
    _task = Task.read()
    train(_task, data_set(Path(_task.folder), _task.settings["clock"]))
