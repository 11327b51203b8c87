"""What happens around the steps: selection by a validation score, checkpoints, speed, and the progress bar."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from constellation.journeys.batch import JourneyBatch
from constellation.journeys.prefetch import Prefetched
from constellation.journeys.ranks import RankBatches
from constellation.memory import FreedMemory, give_back_memory, peak_memory_gib
from constellation.metrics.names import shortfall
from constellation.model import JourneyModel
from constellation.training.lean import L


class EpochBatches:
    """This rank's batches of the epoch at hand, with the time spent making them and the events they held.

    Lightning keeps its place in the epoch (``state_dict``) and finds it again after a restart.
    """

    def __init__(self, batches: RankBatches, epoch: Callable[[], int]) -> None:
        self.batches, self._epoch = batches, epoch
        self.waiting_seconds, self.num_events = 0.0, 0
        self.place = 0  # batches of the epoch that were given out
        self._first = 0
        self.ahead_on: torch.device | None = None  # where a thread puts batches that it makes ahead
        self._ahead: Prefetched | None = None

    def __len__(self) -> int:
        self.batches.batches.epoch = self._epoch()  # plans of two epochs may differ by a batch
        return len(self.batches)

    def close(self) -> None:
        """End the thread that makes batches ahead, where there is one."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def __iter__(self) -> Iterator[JourneyBatch]:
        self.waiting_seconds, self.num_events = 0.0, 0
        self.close()
        self.batches.batches.epoch = self._epoch()
        self.place, self._first = self._first, 0
        iterator = self.batches.from_place(self.place)
        if self.ahead_on is not None:
            iterator = self._ahead = Prefetched(iterator, self.ahead_on)
        while True:
            start = time.perf_counter()
            batch = next(iterator, None)
            self.waiting_seconds += time.perf_counter() - start
            if batch is None:
                return
            self.num_events += batch.num_events
            self.place += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._first = state_dict["place"]


class Selection(L.Callback):
    """Scores each epoch on the validation questions, remembers the best weights, and stops without progress.

    score: returns a dict of validation metrics; monitor names the one that decides, by its distance from the ideal.
    Without a score (refit) it only counts. ``report`` receives one dict per epoch. Of several ranks the first one
    scores, with ``plain``, a model of its own that takes the full weights where each rank holds a shard of them.
    """

    def __init__(
        self,
        *,
        score: Callable[[torch.nn.Module], dict[str, float]] | None,
        monitor: str | None,
        patience: int,
        report: Callable[[dict[str, float]], None],
        data: EpochBatches,
        plain: JourneyModel | None = None,
    ) -> None:
        self.score, self.monitor, self.patience = score, monitor, patience
        self.report, self.data, self.plain = report, data, plain
        self.history: list[dict[str, float]] = []
        self.best_score, self.best_epoch, self.best_step = -float("inf"), -1, 0
        self.best_weights: dict[str, torch.Tensor] | None = None
        self._start = 0.0

    def _is_exhausted(self, epoch: int) -> bool:
        return self.score is not None and epoch - self.best_epoch >= self.patience

    def on_train_start(self, trainer: L.Trainer, learner: Any) -> None:
        self._start = time.perf_counter()  # an epoch that is taken up in its middle does not start again
        # A run that was stopped after its last epoch has nothing to go on with.
        if self.history and self._is_exhausted(int(self.history[-1]["epoch"])):
            trainer.should_stop = True

    def on_train_epoch_start(self, trainer: L.Trainer, learner: Any) -> None:
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, learner: Any) -> None:
        if learner.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self._start
        means = learner.take_means()
        num_events, waiting = learner.over_ranks([self.data.num_events, self.data.waiting_seconds])
        model = learner.result if self.plain is None else learner.fill(self.plain)
        if trainer.is_global_zero:
            row: dict[str, float] = {"epoch": trainer.current_epoch, "step": trainer.global_step}
            row |= {f"train/{name}": value for name, value in means.items()}
            row["train/events_per_second"] = num_events / max(seconds, 1e-9)
            if trainer.accumulate_grad_batches > 1:
                row["train/pieces_per_batch"] = trainer.accumulate_grad_batches
            row["train/waiting_share"] = waiting / trainer.world_size / max(seconds, 1e-9)
            if self.score is not None:
                row |= self._judge(trainer, model)
            self.history.append(row)
            self.report(row)
        if trainer.world_size > 1:
            trainer.should_stop = bool(trainer.strategy.broadcast(trainer.should_stop))

    def _judge(self, trainer: L.Trainer, model: torch.nn.Module) -> dict[str, float]:
        assert self.monitor is not None and self.score is not None
        metrics = self.score(model)
        value = -float(shortfall(self.monitor.split("/")[1], metrics[self.monitor]))
        if not value > -float("inf"):
            value = -float("inf")
        if value > self.best_score or self.best_weights is None:
            self.best_score, self.best_epoch, self.best_step = value, trainer.current_epoch, trainer.global_step
            self.best_weights = {name: part.detach().cpu().clone() for name, part in model.state_dict().items()}
        trainer.should_stop |= self._is_exhausted(trainer.current_epoch)
        return {f"val/{name}": value for name, value in metrics.items()}

    def on_train_end(self, trainer: L.Trainer, learner: Any) -> None:
        if self.plain is not None:  # the last weights, while all ranks are here to give their shards
            learner.fill(self.plain)

    def state_dict(self) -> dict[str, Any]:
        names = ("history", "best_score", "best_epoch", "best_step", "best_weights")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            setattr(self, name, value)


class GiveBack(L.Callback):
    """Freed memory goes back to the system: see ``memory.FreedMemory``."""

    def __init__(self, expected_gib: float = 0.0) -> None:
        self._freed = FreedMemory(expected_gib)

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        self._freed.after_step()

    def on_train_epoch_end(self, *_: Any) -> None:
        give_back_memory()


class Stop(L.Callback):
    """Ends the training after ``num_steps``, in the middle of an epoch if need be; None: at the end of all epochs."""

    def __init__(self, num_steps: int | None) -> None:
        self.num_steps = num_steps

    def _check(self, trainer: L.Trainer) -> None:
        if self.num_steps is not None and trainer.global_step >= self.num_steps:
            trainer.should_stop = True

    def on_train_start(self, trainer: L.Trainer, learner: Any) -> None:
        self._check(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, learner: Any, outputs: Any, batch: Any, batch_index: int) -> None:
        self._check(trainer)


class Progress(L.Callback):
    """A bar over the steps with events per second and time left; silent where nobody watches."""

    def __init__(self, label: str, total_steps: int, data: EpochBatches) -> None:
        self.label, self.total_steps, self.data = label, total_steps, data
        self._bar: Any = None
        self._events, self._start = 0, 0.0

    def on_train_start(self, trainer: L.Trainer, learner: Any) -> None:
        from tqdm import tqdm

        self._start = time.perf_counter()
        self._bar = tqdm(
            total=self.total_steps,
            initial=trainer.global_step,
            desc=self.label,
            unit="step",
            mininterval=0.5,
            disable=not sys.stderr.isatty(),
            leave=False,
        )

    def on_train_batch_end(self, trainer: L.Trainer, learner: Any, outputs: Any, batch: Any, batch_index: int) -> None:
        self._events += batch.num_events
        if self._bar is not None and not self._bar.disable:
            rate = self._events / max(time.perf_counter() - self._start, 1e-9)
            self._bar.set_postfix_str(f"{rate:,.0f} events/s", refresh=False)
            self._bar.update(trainer.global_step - self._bar.n)

    def on_train_end(self, trainer: L.Trainer, learner: Any) -> None:
        if self._bar is not None:
            self._bar.close()

    def on_exception(self, trainer: L.Trainer, learner: Any, exception: BaseException) -> None:
        if self._bar is not None:
            self._bar.close()


def peak_device_gib() -> float:
    """Peak memory so far: of the GPU where there is one, else of the process, in GiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return peak_memory_gib()
