"""One phase of training: select (with a validation score) or refit (a fixed number of steps)."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from constellation.errors import InputError
from constellation.journeys.sampling import TrainingBatches
from constellation.model import JourneyModel
from constellation.training.callbacks import (
    LAST,
    EpochBatches,
    LastCheckpoint,
    Progress,
    Selection,
    Stop,
    peak_device_gib,
)
from constellation.training.learner import Learner, OptimizerFactory
from constellation.training.options import TrainingOptions


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


def fit(
    model: JourneyModel,
    batches: TrainingBatches,
    optimizer: OptimizerFactory,
    options: TrainingOptions,
    folder: Path,
    *,
    label: str,
    score: Callable[[torch.nn.Module], dict[str, float]] | None = None,
    monitor: str | None = None,
    num_steps: int | None = None,
    schedule_steps: int | None = None,
    report: Callable[[dict[str, float]], None] = lambda row: None,
) -> Fitted:
    """Train ``model`` in place.

    With ``score`` the weights of the best epoch are restored at the end; else training takes exactly ``num_steps``
    along a schedule of ``schedule_steps``. A checkpoint in ``folder`` is taken up where it stopped.
    Raises KeyboardInterrupt where a person stops it; the last whole epoch is then in ``folder``.
    """
    import lightning as L
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    quiet()
    planned_steps = num_steps or options.max_epochs * len(batches)
    schedule_steps = schedule_steps or planned_steps
    learner = Learner(
        model,
        optimizer,
        total_steps=schedule_steps,
        warmup_share=options.warmup_share,
        final_rate=options.final_rate,
        averaging=options.averaging,
    )
    trainer: L.Trainer
    data = EpochBatches(batches, lambda: trainer.current_epoch)
    selection = Selection(score=score, monitor=monitor, patience=options.patience, report=report, data=data)
    try:
        trainer = L.Trainer(
            # `Stop` counts the steps: with max_steps Lightning takes up a finished epoch as one to be finished again.
            max_epochs=-1 if num_steps else options.max_epochs,
            accelerator=options.accelerator,
            devices=options.devices,
            strategy=options.strategy,
            precision=options.precision,  # type: ignore[arg-type]
            gradient_clip_val=options.gradient_clip or None,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            reload_dataloaders_every_n_epochs=1,  # reads the length of each epoch, not only of the first
            default_root_dir=folder,
            callbacks=[selection, LastCheckpoint(folder), Progress(label, planned_steps, data), Stop(num_steps)],
        )
    except (MisconfigurationException, ValueError) as error:
        raise InputError(
            f"training.accelerator, devices, strategy and precision must fit this machine and Lightning: {error}"
        ) from error
    checkpoint = folder / LAST
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(learner, data, ckpt_path=str(checkpoint) if checkpoint.exists() else None)
    except SystemExit as stop:
        # Lightning turns Ctrl-C into an exit; whoever asked for the run wants to know that it was Ctrl-C.
        raise KeyboardInterrupt from stop
    finally:
        signal.signal(signal.SIGINT, handler)
    model.load_state_dict(selection.best_weights or learner.result.state_dict())
    rows = selection.history[1:] or selection.history  # the first epoch warms up
    return Fitted(
        model=model.cpu(),
        num_steps=selection.best_step if score is not None else trainer.global_step,
        best_epoch=selection.best_epoch,
        history=selection.history,
        events_per_second=_mean([row["train/events_per_second"] for row in rows]),
        waiting_share=_mean([row["train/waiting_share"] for row in rows]),
        peak_memory_gib=peak_device_gib(),
    )


def _mean(values: list[float]) -> float:
    return sum(values) / max(len(values), 1)


def quiet() -> None:
    """Lightning's hints about loaders and loggers do not hold for ragged batches; keep the terminal for results."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for text in (r".*does not have many workers.*", r".*batch_size.*", r".*LeafSpec.*", r".*`isinstance\(treespec.*"):
        warnings.filterwarnings("ignore", message=text)
