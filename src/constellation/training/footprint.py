"""What training will need in memory, told before the first step: from a small probe of the very model and batches.

    bytes = 4 * parameters * copies + bytes_per_event * events of the largest batch + fixed

``copies`` beyond the weights that are there already: gradient 1, moments of Adam 2, moving average 1, best epoch 1 (the
last two only where they are kept), less what is spread over the ranks. ``bytes_per_event`` and ``fixed`` are a line
through two probes: forward and backward on a sixteenth and an eighth of the largest batch, with every tensor counted
while it lives. So the formula holds for any encoder, width, depth, vocabulary and objective, also for those of others.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from constellation.errors import InputError
from constellation.journeys.device_gather import device_bytes
from constellation.journeys.packing import map_tensors
from constellation.memory import available_memory_gib, resident_memory_gib
from constellation.training.feeding import lies_on
from constellation.training.uncompiled import plain

if TYPE_CHECKING:
    from constellation.journeys.sampling import TrainingBatches
    from constellation.model import JourneyModel
    from constellation.training.options import TrainingOptions

GIB = 2**30
PROBES = (1 / 16, 1 / 8)
SLACK = 1.15
"""What allocators and the workspaces of kernels take beside the tensors; see benchmarks for what it was measured on."""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors made within it while they live; ``peak`` is the most there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        for output in tree_leaves(outputs):
            if isinstance(output, Tensor):
                self._count(output.untyped_storage())
        return outputs

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


LiveBytes.__torch_dispatch__ = plain(LiveBytes.__torch_dispatch__)  # type: ignore[method-assign]


@dataclass(frozen=True)
class Footprint:
    """peak_gib: that training is expected to reach, of the GPU where it trains on one, else of this process.

    pieces: into which each batch is cut so that it fits; 1: it fits whole.
    """

    peak_gib: float
    pieces: int


def check_memory(
    model: JourneyModel, batches: TrainingBatches, options: TrainingOptions, num_ranks: int, pieces: int | None = None
) -> Footprint:
    """What training will take: the tensors of a step and all that is kept between steps, a store on the device too.

    On a CPU, what the allocator keeps of batches of other sizes and what the library prepares for each shape of a
    product come on top: up to a seventh and 0.1 GiB, for then freed memory is given back (``memory.FreedMemory``).
    pieces: what an earlier part of this training chose. Raises InputError, with a budget that would fit, where that
    much is not free and ``training.adapt_batch`` is false, or even a single journey does not fit.
    """
    first, most = pieces or 1, batches.max_journeys if options.adapt_batch and pieces is None else pieces or 1
    while True:
        try:
            return Footprint(_checked(model, batches, options, num_ranks, first), first)
        except InputError:
            if 2 * first > most:
                raise
            first *= 2


def _checked(
    model: JourneyModel, batches: TrainingBatches, options: TrainingOptions, num_ranks: int, pieces: int
) -> float:
    on_gpu = trains_on_gpu(options)
    step_bytes, num_events = step_of(model, batches, options, num_ranks * pieces)
    state_bytes = state_of(model, options, num_ranks) + _store_bytes(batches, options, on_gpu)
    needed = (state_bytes + step_bytes) / GIB
    ranks_here = 1 if on_gpu else num_ranks
    free = torch.cuda.mem_get_info()[0] / GIB if on_gpu else available_memory_gib()
    if on_gpu:
        needed += sum(part.nbytes for part in model.parameters()) / GIB
    if needed * ranks_here > free:
        for_steps = max(free / ranks_here - state_bytes / GIB, 0.0) * 0.8
        fitting = int(num_events * num_ranks * min(for_steps * GIB / max(step_bytes, 1), 1.0))
        advice = (
            f"training.max_tokens={fitting} (now {options.max_tokens}) would fit"
            if fitting >= 16
            else "Even the weights do not fit: choose a smaller encoder.width"
        )
        raise InputError(
            f"Training needs about {needed * ranks_here:.2f} GiB more ({state_bytes / GIB:.2f} GiB for gradients, "
            f"moments, averages and a store on the device, {step_bytes / GIB:.2f} GiB for a batch of {num_events:,} "
            "events"
            f"{'' if ranks_here == 1 else f', in each of {ranks_here} processes'}), but {free:.2f} GiB are free. "
            f"{advice}; a smaller training.max_journeys or encoder.width helps, too, and training.adapt_batch=true "
            "works on a batch piece by piece."
        )
    return needed if on_gpu else resident_memory_gib() + needed


def trains_on_gpu(options: TrainingOptions) -> bool:
    return options.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def state_of(model: JourneyModel, options: TrainingOptions, num_ranks: int) -> int:
    """Bytes that training keeps beside the weights: gradient, two moments, and the copies of the averaged weights."""
    trained = sum(part.nbytes for part in model.parameters() if part.requires_grad)
    spread = num_ranks if options.strategy == "fsdp" else 1
    averages = 1 if options.averaging else 0
    return int(trained * (3 + averages) / spread) + trained  # the best epoch's weights are whole, on the host


def _store_bytes(batches: TrainingBatches, options: TrainingOptions, on_gpu: bool) -> int:
    """Of a store that lies on the device, 0 where it does not."""
    gatherer = batches.gatherer
    if not lies_on(gatherer, torch.device("cuda" if on_gpu else "cpu"), options):
        return 0
    return device_bytes(gatherer.store, gatherer.vocabulary)


def step_of(model: JourneyModel, batches: TrainingBatches, options: TrainingOptions, num_ranks: int) -> tuple[int, int]:
    """Bytes of the largest step of the epoch at hand on one rank beside its state, and its number of events."""
    plan = list(batches.draws())
    if not plan:
        return 0, 0
    rows, cutoff_RK = max(plan, key=lambda drawn: int(batches.lengths[drawn[0]].sum()))
    num_events = int(batches.lengths[rows].sum()) // num_ranks
    order = np.argsort(batches.lengths[rows], kind="stable")
    events, measured = [], []
    for share in PROBES:
        # Every n-th journey by length, so that long and short ones are there as in the batch.
        places = order[np.linspace(0, len(order) - 1, max(2, round(share * len(order))), dtype=np.int64)]
        places = np.unique(places)
        events.append(int(batches.lengths[rows[places]].sum()))
        measured.append(_probe(model, batches.gather(rows[places], cutoff_RK[places]), options.precision))
    slope, fixed = measured[-1] / max(events[-1], 1), 0.0
    if events[1] > events[0] and measured[1] > measured[0]:
        slope = (measured[1] - measured[0]) / (events[1] - events[0])
        fixed = max(measured[0] - slope * events[0], 0.0)
    return int(SLACK * (fixed + slope * num_events)), num_events


def _probe(model: JourneyModel, batch: Any, precision: str) -> int:
    """Peak bytes of a step: batch, activations and their gradients, without the gradients of the parameters."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    batch = batch.to(next(model.parameters()).device)
    sizes: list[int] = []
    map_tensors(batch, lambda tensor: sizes.append(tensor.nbytes))
    was_training = model.training
    kept = [part.grad for part in model.parameters()]
    model.zero_grad(set_to_none=True)
    with torch.random.fork_rng(devices), LiveBytes() as live:
        model.train()
        is_mixed = precision.startswith("bf16")
        with torch.autocast(batch.time_N.device.type, torch.bfloat16, enabled=is_mixed):
            losses = model.loss(batch)
            total = torch.stack([loss.mean for loss in losses.values()]).sum()
        if total.requires_grad:
            total.backward()
    gradients = sum(part.grad.nbytes for part in model.parameters() if part.grad is not None)
    for part, gradient in zip(model.parameters(), kept, strict=True):
        part.grad = gradient
    model.train(was_training)
    return max(live.peak - gradients, 0) + sum(sizes)
