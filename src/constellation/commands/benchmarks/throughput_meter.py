"""What every measured system shares: its task, read from a folder, and the clock that counts its steps.

This file is laid beside the data and imported by peers in environments of their own (``from throughput_meter import
Meter, Task``), so it needs the standard library and numpy, and nothing of ours.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

RESULT = "throughput "
"""Opens the one line of standard output that the parent reads; what libraries print around it is passed over."""


@dataclass(frozen=True)
class Task:
    """One measurement: the data of a shape, the size of the network, how long to train.

    max_length: events of a journey that are read, the last ones, each with the event after it as its target.
    batch: journeys in a step. feed_forward: inner width of the position-wise layer. settings: of this system alone.
    """

    folder: str
    num_items: int
    max_length: int
    batch: int
    width: int
    blocks: int
    heads: int
    feed_forward: int
    dropout: float
    warmup_steps: int
    num_steps: int
    num_threads: int
    seed: int
    settings: dict[str, Any]

    @classmethod
    def read(cls) -> Task:
        """The task whose file the command line names; torch, where it is imported, gets its threads and its seed."""
        task = cls(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
        torch = sys.modules.get("torch")
        if torch is not None:
            torch.set_num_threads(task.num_threads)
            torch.manual_seed(task.seed)
        return task

    def sequences(self) -> dict[str, np.ndarray]:
        """Flat arrays over all events, journey after journey, and ``offsets`` [C + 1] into them.

        ``item`` int64 from 1 to num_items (of several products of an event the main one); ``time`` int64 microseconds;
        ``field.<name>`` int64 codes from 1, 0 for missing; ``number.<name>`` float64, NaN for missing.
        """
        with np.load(Path(self.folder) / "sequences.npz") as arrays:
            return {name: arrays[name] for name in arrays.files}

    def windows(self) -> tuple[np.ndarray, np.ndarray]:
        """First row and row behind the last of each journey of two events or more, cut to ``max_length + 1`` events."""
        offsets = self.sequences()["offsets"]
        end_C = offsets[1:]
        start_C = np.maximum(offsets[:-1], end_C - self.max_length - 1)
        enough_C = end_C - start_C >= 2
        return start_C[enough_C], end_C[enough_C]


class Meter:
    """Counts steps: after the warm-up steps the clock runs; ``num_steps`` later it stops, and the result is printed.

    A loop calls ``step(number of targets)`` after each optimizer step. Where the batch is no longer at hand then,
    ``expect(number of targets)`` comes before it and ``step()`` after. ``is_done`` says that the loop may end.
    One meter to a process: a copy is the meter itself, for trainers are copied with their callbacks.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.is_done = False
        self._steps = self._targets = self._expected = 0
        self._start = (0.0, 0.0)

    def __deepcopy__(self, memo: dict[int, Any]) -> Meter:
        return self

    def expect(self, num_targets: int) -> None:
        self._expected = int(num_targets)

    def step(self, num_targets: int | None = None) -> None:
        """One optimizer step is done; it learned from ``num_targets`` targets that are no padding."""
        if self.is_done:
            return
        found = self._expected if num_targets is None else int(num_targets)
        self._steps += 1
        if self._steps > self.task.warmup_steps:
            self._targets += found
        if self._steps == 1:
            _forget_peak()
        if self._steps == self.task.warmup_steps:
            self._start = (time.perf_counter(), cpu_seconds())
        elif self._steps == self.task.warmup_steps + self.task.num_steps:
            seconds, cpu = time.perf_counter() - self._start[0], cpu_seconds() - self._start[1]
            self.is_done = True
            self._print(seconds, cpu)

    def _print(self, seconds: float, cpu: float) -> None:
        result = {
            "num_events": self._targets,
            "seconds": seconds,
            "cpu_seconds": cpu,
            "peak_memory_gib": peak_memory_gib(),
        }
        print(f"\n{RESULT}{json.dumps(result)}", flush=True)


def cpu_seconds() -> float:
    """User and system time of this process, of the children it has ended, and of those that live, in seconds."""
    times = os.times()
    own = times.user + times.system + times.children_user + times.children_system
    return own + sum(_ticks(pid) for pid in _descendants()) / os.sysconf("SC_CLK_TCK")


def peak_memory_gib() -> float:
    """Peak resident memory of this process since the end of its first step, and of its live children, in GiB.

    The data, the libraries and whatever preparation left behind are in it, for they are resident while it trains; what
    preparation took and gave back is not. Where the system cannot forget a peak (not Linux), that is in it too.
    """
    if not Path("/proc/self/status").exists():
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**30 if sys.platform == "darwin" else 2**20)  # bytes there, kibibytes elsewhere
    return sum(_peak_kib(pid) for pid in [os.getpid(), *_descendants()]) / 2**20


def _forget_peak() -> None:
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5", encoding="utf-8")  # proc(5): 5 sets the peak resident size to the present one


def _peak_kib(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:  # a child that has just ended
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0)


def _ticks(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return 0
    fields = stat.rpartition(")")[2].split()  # the name before may hold spaces
    return int(fields[11]) + int(fields[12])  # user and system time


def _descendants() -> list[int]:
    """Live processes that descend from this one: the workers of a data loader, a sampler's processes."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*") if Path("/proc").is_dir() else ():
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, frontier = [], {os.getpid()}
    while frontier:
        frontier = {pid for pid, parent in parents.items() if parent in frontier}
        found += sorted(frontier)
    return found
