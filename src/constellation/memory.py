"""Memory: of this process, and what is left for it."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def peak_memory_gib() -> float:
    """Peak resident memory of this process so far, in GiB."""
    if sys.platform == "win32":
        import psutil

        return float(psutil.Process().memory_info().peak_wset) / 2**30
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: its peak is handed on from the parent, who has just simulated a large table.
        peak_kib = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak_kib) / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)  # bytes there, kibibytes elsewhere


def resident_memory_gib() -> float:
    """Resident memory of this process now, in GiB. On Linux it takes microseconds, for it is asked after every step."""
    try:
        pages = int(Path("/proc/self/statm").read_bytes().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**30
    except OSError:
        pass  # no such file system here
    import psutil

    return float(psutil.Process().memory_info().rss) / 2**30


def give_back_memory() -> None:
    """Return freed memory to the system, where the allocator is glibc's; elsewhere it does so by itself.

    Batches differ in size, and what one frees between two others is kept, in ever smaller pieces: without this a
    training of 16 epochs grew from 1 to 5 GiB, 4 of them free. Takes some milliseconds.
    """
    if sys.platform == "linux":
        import ctypes

        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def keep_freed_memory() -> None:
    """Let glibc's allocator keep large blocks that are freed, until :func:`give_back_memory`; elsewhere do nothing.

    By default it takes each block of megabytes anew from the system and gives it back at once, and the system clears
    every page of it: that was 5 to 13 % of a training step whose arrays have such sizes.
    """
    if sys.platform == "linux":
        import ctypes

        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
            mallopt(TRIM_THRESHOLD, 2**31 - 1)


TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of malloc.h
LARGE_BLOCK_BYTES = 32 * 2**20  # the most that glibc takes


class FreedMemory:
    """Gives freed memory back within a long epoch: when the process is a seventh above what it needs.

    Needed is what was expected, or more where the first steps took more. Blocks of batches of many sizes never quite
    fill the holes of earlier ones, so that half of a process may come to be free: its size after each step tells what
    it has ever held at once, not what it holds. Not after every step, for a step would ask for the pages again, which
    costs more than a tenth of it.

    expected_gib: of this process at its largest step; 0: not known.
    """

    SETTLING_STEPS, FIRST_STEPS, GROWTH, AT_LEAST_GIB = 16, 2, 1.15, 0.1

    def __init__(self, expected_gib: float = 0.0) -> None:
        self._expected_gib, self._step, self._settled_gib = expected_gib, 0, 0.0

    def after_step(self) -> bool:
        """Whether memory was given back; resident memory then settles anew."""
        now = resident_memory_gib()
        self._step += 1
        if self._step <= self.FIRST_STEPS:
            self._settled_gib = max(self._settled_gib, now)
        needed_gib = max(self._settled_gib, self._expected_gib)
        if self._step <= self.SETTLING_STEPS or now <= self.GROWTH * needed_gib + self.AT_LEAST_GIB:
            return False
        give_back_memory()
        self._step, self._settled_gib = 0, 0.0
        return True


def available_memory_gib() -> float:
    """Memory that this process may still take without swapping, in GiB: the machine's, or less in a container."""
    import psutil

    return min(float(psutil.virtual_memory().available), *_left_in_groups()) / 2**30


def _left_in_groups(root: Path = Path("/sys/fs/cgroup")) -> list[float]:
    """Bytes left under the limits of the control groups (version 2, then 1); what files fill can be given back."""
    left = [float("inf")]
    for folder, limit, used in (
        (root, "memory.max", "memory.current"),
        (root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            most, now = (folder / limit).read_text().strip(), int((folder / used).read_text())
            counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue  # no such group here
        if most != "max":
            left.append(float(int(most) - now + int(counts.get("inactive_file", 0))))
    return left
