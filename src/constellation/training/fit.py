"""One phase of training: select (with a validation score) or refit (a fixed number of steps), on one device or more."""

from __future__ import annotations

import copy
import logging
import pickle
import signal
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from constellation.errors import InputError
from constellation.journeys.ranks import RankBatches
from constellation.journeys.sampling import TrainingBatches
from constellation.kernels.products import FLOAT32
from constellation.memory import give_back_memory, keep_freed_memory
from constellation.model import JourneyModel
from constellation.training import ranks
from constellation.training.callbacks import EpochBatches, GiveBack, Progress, Selection, Stop, peak_device_gib
from constellation.training.checkpoints import CheckpointFiles, Checkpoints, newest_whole
from constellation.training.feeding import fed, makes_ahead
from constellation.training.footprint import check_memory, trains_on_gpu
from constellation.training.lean import L
from constellation.training.learner import Learner, OptimizerFactory
from constellation.training.options import TrainingOptions
from constellation.training.precision import chosen_products, warned
from constellation.training.sharding import strategy_of

log = logging.getLogger(__name__)

Score = Callable[[torch.nn.Module], dict[str, float]]
Report = Callable[[dict[str, float]], None]


@dataclass
class Fitted:
    """What a phase leaves: the model with its chosen weights, the steps taken, and one row of history per epoch."""

    model: JourneyModel
    num_steps: int
    best_epoch: int
    history: list[dict[str, float]] = field(default_factory=list)
    events_per_second: float = 0.0
    waiting_share: float = 0.0
    peak_memory_gib: float = 0.0
    predicted_memory_gib: float = 0.0
    products: str = FLOAT32


@dataclass
class Phase:
    """All that a process needs to take its part in a phase; everything in it can be sent there.

    checkpoint: the file to go on from, None for a start. seed: of the random numbers of the ranks after the first.
    expected_gib: of a process on a CPU at its largest step; 0 where a GPU trains.
    """

    model: JourneyModel
    batches: TrainingBatches
    optimizer: OptimizerFactory
    options: TrainingOptions
    folder: Path
    label: str
    num_steps: int | None
    planned_steps: int
    schedule_steps: int
    checkpoint: Path | None
    num_threads: int
    seed: int
    products: str
    pieces: int
    expected_gib: float

    def __call__(self, place: ranks.Place) -> None:
        """What a rank after the first does: train beside it, and leave nothing."""
        quiet()
        torch.set_num_threads(self.num_threads)
        torch.manual_seed(self.seed + place.rank)
        _trained(self, place)


def fit(
    model: JourneyModel,
    batches: TrainingBatches,
    optimizer: OptimizerFactory,
    options: TrainingOptions,
    folder: Path,
    *,
    label: str,
    score: Score | None = None,
    monitor: str | None = None,
    num_steps: int | None = None,
    schedule_steps: int | None = None,
    report: Report = lambda row: None,
    callbacks: Sequence[L.Callback] = (),
) -> Fitted:
    """Train ``model`` in place.

    With ``score`` the weights of the best epoch are restored at the end; else training takes exactly ``num_steps``
    along a schedule of ``schedule_steps``. A checkpoint in ``folder`` is taken up where it stopped, in the middle of an
    epoch too; the run then ends as it would have ended without the stop, bit for bit on a CPU.
    ``callbacks`` are Lightning's, called after the selection has scored an epoch and before its checkpoint, on the
    first rank only. Raises KeyboardInterrupt where a person stops it, InputError for a device that is not there or a
    batch that does not fit.
    """
    quiet()
    num_ranks = ranks.number_of_ranks(options.accelerator, options.devices)
    pieces, predicted = _pieces(model, batches, options, num_ranks, folder)
    planned_steps = num_steps or options.max_epochs * len(batches)
    phase = Phase(
        model=model,
        batches=batches,
        optimizer=optimizer,
        options=options,
        folder=folder,
        label=label,
        num_steps=num_steps,
        planned_steps=planned_steps,
        schedule_steps=schedule_steps or planned_steps,
        checkpoint=newest_whole(folder),
        num_threads=torch.get_num_threads(),
        seed=torch.initial_seed() % 2**31,
        products=warned(chosen_products(options, folder, batches, num_ranks, model.encoder), options),
        pieces=pieces,
        expected_gib=0.0 if trains_on_gpu(options) else predicted,
    )
    is_team = num_ranks > 1 or options.strategy == "fsdp"
    _trainer(phase, None if not is_team else ranks.Place(0, num_ranks, 0, num_ranks), [])  # mistakes before processes
    try:
        place = None
        if is_team:
            job = _pickled(phase)
            team = ranks.team(num_ranks)
            team.tell(job)
            place = team.place
        trainer, selection, learner = _trained(phase, place, score, monitor, report, callbacks)
    except BaseException:
        ranks.dismiss(failed=True)
        raise
    last = learner.result if selection.plain is None else selection.plain
    model.load_state_dict(selection.best_weights or last.state_dict())
    rows = selection.history[1:] or selection.history  # the first epoch warms up
    return Fitted(
        model=model.cpu(),
        num_steps=selection.best_step if score is not None else trainer.global_step,
        best_epoch=selection.best_epoch,
        history=selection.history,
        events_per_second=_mean([row["train/events_per_second"] for row in rows]),
        waiting_share=_mean([row["train/waiting_share"] for row in rows]),
        peak_memory_gib=peak_device_gib(),
        predicted_memory_gib=predicted,
        products=learner.products,
    )


def _trained(
    phase: Phase,
    place: ranks.Place | None,
    score: Score | None = None,
    monitor: str | None = None,
    report: Report = lambda row: None,
    callbacks: Sequence[L.Callback] = (),
) -> tuple[L.Trainer, Selection, Learner]:
    options, is_sharded = phase.options, phase.options.strategy == "fsdp"
    give_back_memory()  # what preparing the batches left
    keep_freed_memory()
    rank, num_ranks = (0, 1) if place is None else (place.rank, place.size)
    plain = phase.model if is_sharded else None  # stays whole, beside the one whose weights are spread
    learner = Learner(
        copy.deepcopy(phase.model) if is_sharded else phase.model,
        phase.optimizer,
        total_steps=phase.schedule_steps,
        warmup_share=options.warmup_share,
        final_rate=options.final_rate,
        averaging=options.averaging,
        num_ranks=num_ranks,
        products=phase.products,
        is_sharded=is_sharded,
        is_compiled=options.compile,
    )
    trainer: L.Trainer
    data = EpochBatches(RankBatches(phase.batches, rank, num_ranks, phase.pieces), lambda: trainer.current_epoch)
    selection = Selection(
        score=score, monitor=monitor, patience=options.patience, report=report, data=data, plain=plain
    )
    progress = [Progress(phase.label, phase.planned_steps, data)] if rank == 0 else []
    checkpoints = Checkpoints(
        phase.folder, every_steps=options.checkpoint_every_steps, every_minutes=options.checkpoint_every_minutes
    )
    trainer = _trainer(
        phase,
        place,
        [selection, *callbacks, *progress, GiveBack(phase.expected_gib), Stop(phase.num_steps), checkpoints],
    )
    device = trainer.strategy.root_device
    data.batches.batches = fed(phase.batches, device, options)
    data.ahead_on = device if makes_ahead(device, options) else None
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(learner, data, ckpt_path=None if phase.checkpoint is None else str(phase.checkpoint))
    except SystemExit as stop:
        # Lightning turns Ctrl-C into an exit; whoever asked for the run wants to know that it was Ctrl-C.
        raise KeyboardInterrupt from stop
    finally:
        data.close()
        give_back_memory()
        signal.signal(signal.SIGINT, handler)
    return trainer, selection, learner


def _trainer(phase: Phase, place: ranks.Place | None, callbacks: list[Any]) -> L.Trainer:
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    options = phase.options
    where: dict[str, Any] = {"devices": options.devices, "plugins": [CheckpointFiles()]}
    if place is not None:
        where = {
            "devices": options.devices if isinstance(options.devices, list | tuple) else place.size_here,
            "num_nodes": place.size // place.size_here,
            "plugins": [CheckpointFiles(), place],
        }
    try:
        return L.Trainer(
            # `Stop` counts the steps: with max_steps Lightning takes up a finished epoch as one to be finished again.
            max_epochs=-1 if phase.num_steps else options.max_epochs,
            accelerator=options.accelerator,
            strategy=strategy_of(options.strategy, 1 if place is None else place.size),
            precision=options.precision,  # type: ignore[arg-type]
            gradient_clip_val=options.gradient_clip or None,
            accumulate_grad_batches=phase.pieces,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            reload_dataloaders_every_n_epochs=1,  # reads the length of each epoch, not only of the first
            default_root_dir=phase.folder,
            callbacks=callbacks,
            **where,
        )
    except (MisconfigurationException, ValueError) as error:
        raise InputError(
            f"training.accelerator, devices, strategy and precision must fit this machine and Lightning: {error}"
        ) from error


def _pickled(phase: Phase) -> bytes:
    try:
        return pickle.dumps(phase)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InputError(
            f"The training cannot be sent to the processes of training.devices={phase.options.devices}: {error}. "
            "Model and optimizer must be defined in a module that can be imported, not in a notebook or a function."
        ) from error


def _pieces(
    model: JourneyModel, batches: TrainingBatches, options: TrainingOptions, num_ranks: int, folder: Path
) -> tuple[int, float]:
    """Pieces of each batch, and the peak memory that is expected, GiB. Chosen once per phase, as the products are."""
    path = folder / "pieces.txt"
    chosen = int(path.read_text(encoding="utf-8")) if path.is_file() else None
    if chosen is None and any(folder.glob("*.ckpt")):
        chosen = 1  # what is resumed began with whole batches
    told = check_memory(model, batches, options, num_ranks, chosen)
    if told.pieces > 1 and chosen is None:
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(str(told.pieces), encoding="utf-8")
        partial.replace(path)
    if told.pieces > 1:
        log.warning(
            "A batch does not fit in memory whole: each is worked on in %d pieces, whose gradients are averaged; "
            "a step still learns from the whole batch.",
            told.pieces,
        )
    return told.pieces, told.peak_gib


def _mean(values: list[float]) -> float:
    return sum(values) / max(len(values), 1)


def quiet() -> None:
    """Lightning's hints about loaders and loggers do not hold for ragged batches; keep the terminal for results."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for text in (r".*does not have many workers.*", r".*batch_size.*", r".*LeafSpec.*", r".*`isinstance\(treespec.*"):
        warnings.filterwarnings("ignore", message=text)
