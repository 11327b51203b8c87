"""Where the time of a step goes: the profiler's kernels or operators, in groups by their names."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

ATTENTION, PRODUCTS, LOOKUPS, COPIES, ELEMENTWISE, WAITING = GROUPS = (
    "attention",
    "matrix_products",
    "lookups",
    "copies",
    "elementwise",
    "waiting",
)
PATTERNS = (
    (ATTENTION, ("flash", "fmha", "attention", "sdpa")),
    (PRODUCTS, ("gemm", "cutlass", "cublas", "wgmma", "nvjet", "xmma", "::mm", "::bmm", "addmm", "baddbmm", "linear")),
    (LOOKUPS, ("index", "embedding", "gather", "scatter", "sort", "repeat_interleave", "searchsorted", "segment")),
    (COPIES, ("memcpy", "memset", "copy", "cat", "pin_memory")),
)
"""Parts of the names of kernels and operators; the first group that fits has it, the rest is element-wise."""


@dataclass(frozen=True)
class Interval:
    """A kernel or an operator at work, in microseconds."""

    name: str
    start: float
    end: float


def group_of(name: str) -> str:
    lower = name.lower()
    return next((group for group, parts in PATTERNS if any(part in lower for part in parts)), ELEMENTWISE)


def busy(intervals: Sequence[Interval]) -> dict[str, float]:
    """Microseconds by group. Where two streams are at work at once the moment counts for the one that began first."""
    found: dict[str, float] = {}
    until = -float("inf")
    for each in sorted(intervals, key=lambda interval: interval.start):
        group = group_of(each.name)
        found[group] = found.get(group, 0.0) + max(each.end - max(each.start, until), 0.0)
        until = max(until, each.end)
    return found


def shares(busy_us: Mapping[str, float], wall_us: float) -> dict[str, float]:
    """Share of ``wall_us`` by group; waiting is when nothing was at work. They add up to 1."""
    worked = sum(busy_us.values())
    wall_us = max(wall_us, worked, 1e-9)  # the clocks of host and device differ a little
    found = {group: busy_us.get(group, 0.0) / wall_us for group in GROUPS}
    return found | {WAITING: (wall_us - worked) / wall_us}


def profiled(step: Callable[[], object], device: torch.device, num_steps: int) -> tuple[dict[str, float], float]:
    """Microseconds at work by group during ``num_steps`` steps, and microseconds that these took.

    On a GPU of kernels; on a CPU of operators of this thread without the operators that they call, so that attention
    made of plain products counts as products.
    """
    import torch
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    with profile(activities=activities) as found:
        start = time.perf_counter()
        for _ in range(num_steps):
            step()
        if on_gpu:
            torch.cuda.synchronize()
        wall_us = 1e6 * (time.perf_counter() - start)
    events = list(found.events() or [])
    if on_gpu:
        # Annotations span the kernels of a whole function.
        kernels = [event for event in events if event.device_type == DeviceType.CUDA and not event.is_user_annotation]
        return busy([Interval(each.name, each.time_range.start, each.time_range.end) for each in kernels]), wall_us
    spent: dict[str, float] = {}
    thread = next((event.thread for event in events if event.name.startswith("Optimizer.step")), None)
    for event in events:
        if event.thread == thread:
            group = group_of(event.name)
            spent[group] = spent.get(group, 0.0) + event.self_cpu_time_total
    return spent, wall_us
