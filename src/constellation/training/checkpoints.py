"""Checkpoints that survive a kill at any moment: whole or not there, checked when read, and the one before kept."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import random
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from constellation.training.lean import CheckpointIO, L

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"

MAGIC = b"CNSTLCK1"
HEADER = struct.Struct("<8sQ32s")
"""Magic, length of the payload in bytes, SHA-256 of the payload; the payload is ``torch.save``'s."""

LARGEST_SHARE = 0.01  # of the time of training, at most so much for checkpoints within an epoch
STEPS_BETWEEN_TALKS = 16  # several ranks ask the clock of rank 0 this often

log = logging.getLogger(__name__)


class Damaged(Exception):
    """A checkpoint that is not whole; the message says how."""


# ---------------------------------------------------------------- files


class _Hashing(io.RawIOBase):
    """Passes on what is written and takes its checksum, so that a checkpoint is never whole in memory twice."""

    def __init__(self, file: io.BufferedWriter) -> None:
        self.file, self.digest, self.length = file, hashlib.sha256(), 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.file.write(data)
        self.digest.update(data)
        self.length += len(memoryview(data).cast("B"))
        return len(memoryview(data).cast("B"))


def write(content: dict[str, Any], path: Path) -> None:
    """Write atomically; what stood at ``path`` becomes ``previous.ckpt`` beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        file.write(HEADER.pack(MAGIC, 0, b""))
        hashing = _Hashing(file)
        torch.save(content, hashing)  # type: ignore[arg-type]
        file.seek(0)
        file.write(HEADER.pack(MAGIC, hashing.length, hashing.digest.digest()))
        file.flush()
        os.fsync(file.fileno())
    if path.exists():
        os.replace(path, path.with_name(PREVIOUS))  # killed between these two: the previous one is taken up
    os.replace(partial, path)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint without running any code that may stand in it. Raises Damaged."""
    return torch.load(io.BytesIO(_payload(path)), map_location="cpu", weights_only=True)


def _payload(path: Path) -> bytes:
    with path.open("rb") as file:
        header = file.read(HEADER.size)
        if len(header) < HEADER.size:
            raise Damaged(f"it ends after {len(header)} bytes")
        magic, length, digest = HEADER.unpack(header)
        if magic != MAGIC:
            raise Damaged("it is no checkpoint of this release")
        payload = file.read()
    if len(payload) != length:
        raise Damaged(f"{length:,} bytes were written, {len(payload):,} are there")
    if hashlib.sha256(payload).digest() != digest:
        raise Damaged("its checksum is wrong")
    return payload


def newest_whole(folder: Path) -> Path | None:
    """The checkpoint to go on from: the last, or where that is damaged the one before; None for a start anew."""
    for name, instead in ((LAST, "the one before is used"), (PREVIOUS, "this phase starts anew")):
        path = folder / name
        if not path.is_file():
            continue
        try:
            _payload(path)
            return path
        except Damaged as error:
            log.warning("The checkpoint %s is damaged (%s); %s.", path, error, instead)
    return None


class CheckpointFiles(CheckpointIO):
    """Lightning's way to the files of this module."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        assert storage_options is None
        write(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        del map_location, weights_only  # always to the host, always without running code
        return read(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


# ---------------------------------------------------------------- random numbers


def random_state() -> dict[str, Any]:
    """The state of every generator of this process: Python's, numpy's, torch's, and that of the GPU in use."""
    name, keys, place, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 (others may draw from it)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.array(keys, dtype=np.int64)), place, has_gauss, gauss),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def of_all_ranks(state: dict[str, Any], num_ranks: int) -> list[dict[str, Any]]:
    """What every rank calls ``state``, in the order of the ranks; all of them must ask."""
    if num_ranks == 1:
        return [state]
    states: list[Any] = [None] * num_ranks
    torch.distributed.all_gather_object(states, state)
    return states


# ---------------------------------------------------------------- when


class Checkpoints(L.Callback):
    """Writes ``last.ckpt`` at the end of every epoch and, on long ones, in between; the last of the callbacks.

    every_steps: in between after so many steps; None goes by the clock: ``every_minutes``, and never so often that it
    takes over a hundredth of the time. The state of the random numbers is kept for each rank; it is put back just
    before the first step after resuming, so that dropout draws what it would have drawn.
    """

    def __init__(self, folder: Path, *, every_steps: int | None, every_minutes: float) -> None:
        self.folder, self.every_steps, self.every_seconds = folder, every_steps, 60 * every_minutes
        self._random: list[dict[str, Any]] | None = None
        self._num_ranks = 1
        self._written, self._cost = time.perf_counter(), 0.0

    def setup(self, trainer: L.Trainer, learner: Any, stage: str) -> None:
        self._num_ranks = trainer.world_size

    def on_train_start(self, trainer: L.Trainer, learner: Any) -> None:
        self._written = time.perf_counter()

    def on_train_batch_start(self, trainer: L.Trainer, learner: Any, batch: Any, batch_index: int) -> None:
        if self._random is not None:
            if trainer.global_rank < len(self._random):  # else more ranks than before: no run to be equal to
                restore_random_state(self._random[trainer.global_rank])
            self._random = None

    def on_train_batch_end(self, trainer: L.Trainer, learner: Any, outputs: Any, batch: Any, batch_index: int) -> None:
        if (batch_index + 1) % trainer.accumulate_grad_batches:
            return  # in the middle of a step, whose gradients are kept nowhere
        # After its last step the epoch has a checkpoint of its own.
        if not trainer.should_stop and not trainer.is_last_batch and self._is_due(trainer):
            self._write(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, learner: Any) -> None:
        self._write(trainer)

    def _is_due(self, trainer: L.Trainer) -> bool:
        if self.every_steps is not None:
            return trainer.global_step % self.every_steps == 0
        if trainer.world_size > 1 and trainer.global_step % STEPS_BETWEEN_TALKS:
            return False
        waited = time.perf_counter() - self._written
        due = waited >= max(self.every_seconds, self._cost / LARGEST_SHARE)
        return bool(trainer.strategy.broadcast(due)) if trainer.world_size > 1 else due

    def _write(self, trainer: L.Trainer) -> None:
        start = time.perf_counter()
        trainer.save_checkpoint(self.folder / LAST)
        self._written = time.perf_counter()
        self._cost = self._written - start

    def state_dict(self) -> dict[str, Any]:
        return {"random": of_all_ranks(random_state(), self._num_ranks)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._random = state_dict["random"]
