"""Processes that train one model together: who starts them, how they learn what to do, how they end.

The first rank is the process that a person started. The others wait in :func:`serve` for jobs that it broadcasts, one
per phase of training, so that everything but the steps themselves (preparing, scoring, evaluating, tracking) happens
once. They are started here when first needed, or by ``torchrun``, and stay for the following phases.
"""

from __future__ import annotations

import atexit
import os
import pickle
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from constellation.errors import InputError
from constellation.training.lean import ClusterEnvironment

PATIENCE = timedelta(hours=6)  # for a rank that scores while the others wait
IDLE = timedelta(days=60)  # for the next phase

LEASH = "CONSTELLATION_RANK_ON_LEASH"
"""Set where standard input is held by the first rank."""

Job = Callable[["Place"], None]


class Place(ClusterEnvironment):
    """A process among its like; tells Lightning not to start any."""

    def __init__(self, rank: int, size: int, local_rank: int, local_size: int) -> None:
        super().__init__()
        self.rank, self.size, self.rank_here, self.size_here = rank, size, local_rank, local_size

    creates_processes_externally = True  # type: ignore[assignment]
    main_address = "127.0.0.1"  # type: ignore[assignment]
    main_port = 0  # type: ignore[assignment]

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self.size

    def global_rank(self) -> int:
        return self.rank

    def local_rank(self) -> int:
        return self.rank_here

    def node_rank(self) -> int:
        return self.rank // self.size_here

    def set_world_size(self, size: int) -> None:
        assert size == self.size

    def set_global_rank(self, rank: int) -> None:
        assert rank == self.rank


def launched_from_outside() -> bool:
    """Whether ``torchrun`` or the like has started all ranks."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1 and "RANK" in os.environ


def _place_from_environment() -> Place:
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local_rank = int(os.environ.get("LOCAL_RANK", rank))
    return Place(rank, size, local_rank, int(os.environ.get("LOCAL_WORLD_SIZE", size)))


def number_of_ranks(accelerator: str, devices: int | str | list[int]) -> int:
    """Processes for ``training.devices``; under ``torchrun`` as many as it started. Raises InputError."""
    if launched_from_outside():
        return int(os.environ["WORLD_SIZE"])
    if isinstance(devices, list | tuple):
        return len(devices)
    on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available())
    if str(devices) in ("auto", "-1"):
        return max(torch.cuda.device_count(), 1) if on_gpu else 1
    if not str(devices).isdigit() or int(devices) < 1:
        raise InputError(f"training.devices must be a number from 1 on, a list of devices or auto, found {devices!r}.")
    if on_gpu and int(devices) > max(torch.cuda.device_count(), 1):
        raise InputError(f"training.devices is {devices}, but there are {torch.cuda.device_count()} GPUs here.")
    return int(devices)


# ---------------------------------------------------------------- the first rank


class _Team:
    """The other processes, as the first rank knows them."""

    def __init__(self, size: int) -> None:
        self.workers: list[subprocess.Popen[bytes]] = []
        self.is_ours = not launched_from_outside()
        if self.is_ours:
            self.place = Place(0, size, 0, size)
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            try:
                for rank in range(1, size):
                    self.workers.append(_started(rank, size, port))
                self.jobs = _join(self.place, f"tcp://127.0.0.1:{port}")
            except BaseException:
                self.kill()
                raise
        else:
            self.place = _place_from_environment()
            self.jobs = _join(self.place, "env://")

    def tell(self, job: bytes | None) -> None:
        dist.broadcast_object_list([job], src=0, group=self.jobs)

    def dismiss(self) -> None:
        """Send everybody home."""
        try:
            self.tell(None)
            for worker in self.workers:
                worker.wait(timeout=30)
        except (RuntimeError, subprocess.TimeoutExpired):
            pass  # those who do not hear are ended below
        self.kill()

    def kill(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.wait()
            assert worker.stdin is not None
            worker.stdin.close()
        self.workers = []
        if dist.is_initialized():
            dist.destroy_process_group()


def _started(rank: int, size: int, port: int) -> subprocess.Popen[bytes]:
    surroundings = os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        LEASH: "1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    code = "from constellation.training.ranks import serve; raise SystemExit(serve())"
    # In a session of its own: Ctrl-C is for the first rank, whose end the others notice.
    return subprocess.Popen(
        [sys.executable, "-c", code], env=surroundings, stdin=subprocess.PIPE, start_new_session=True
    )


def _join(place: Place, address: str) -> Any:
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(place.rank_here % torch.cuda.device_count())
    dist.init_process_group(backend, init_method=address, rank=place.rank, world_size=place.size, timeout=PATIENCE)
    return dist.new_group(backend="gloo", timeout=IDLE)


_team: _Team | None = None


def team(size: int) -> _Team:
    """The team of ``size`` processes, started if it is not there yet."""
    global _team
    if _team is not None and _team.place.size != size:
        dismiss()
    if _team is None:
        _team = _Team(size)
    return _team


def dismiss(*, failed: bool = False) -> None:
    """End the other processes, at once where they may be waiting in the middle of a step."""
    global _team
    if _team is None and launched_from_outside() and os.environ["RANK"] == "0" and not failed:
        _team = _Team(0)  # those whom torchrun started wait, though there was nothing to do
    if _team is not None:
        gone, _team = _team, None
        gone.kill() if failed else gone.dismiss()


atexit.register(dismiss)


# ---------------------------------------------------------------- the other ranks


def _end_with_the_first_rank() -> None:
    """Killed, it cannot say so; but its end of our standard input is closed."""
    while os.read(0, 4096):  # not through sys.stdin, whose lock would be in the way of our own end
        pass
    os._exit(1)


def serve() -> int:
    """Take part in whatever the first rank trains, until it says that it is done or is gone; returns an exit code."""
    atexit.unregister(dismiss)
    if os.environ.get(LEASH):
        threading.Thread(target=_end_with_the_first_rank, daemon=True).start()
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a user's own modules, as on the command line
    place = _place_from_environment()
    jobs = _join(place, "env://")
    while True:
        box: list[Any] = [None]
        try:
            dist.broadcast_object_list(box, src=0, group=jobs)
        except RuntimeError:
            return 1  # the first rank was killed
        if box[0] is None:
            dist.destroy_process_group()
            return 0
        try:
            pickle.loads(box[0])(place)
        except Exception as error:
            # A rank that died has said why; that the others have lost it is no news.
            if "onnection" not in str(error):
                traceback.print_exc()
            return 1
