"""The arithmetic ceiling: operations that an event needs, over the rate at which this machine multiplies matrices."""

from __future__ import annotations

import json
import sys
import time

import numpy as np

from constellation.commands.benchmarks.child import measured_in_child
from constellation.commands.benchmarks.throughput_meter import Task
from constellation.commands.benchmarks.throughput_shapes import Events
from constellation.schema import EVENT_TYPE

MODULE = "constellation.commands.benchmarks.throughput_ceiling"  # not __name__, which is __main__ in its process
SIZES = (256, 512, 1024)
SECONDS_PER_SIZE = 0.4
PRECISIONS = ("fp32", "bf16")


def operations_per_event(events: Events, task: Task) -> float:
    """Floating-point operations of forward and backward for one target, of matrix products alone.

    With width D, blocks b, inner width F, V products, T event types and the mean number c of events that an event
    attends to, itself included: 3 (b (8 D^2 + 4 D F + 4 c D) + 2 D V s + 2 D T). The 3 is one product forward and two
    backward; s is the share of events that name a product; T counts where there are several. Embeddings,
    normalisation, activations and the exponentials of the softmax are no matrix products and are left out.
    """
    lengths = np.minimum(np.diff(events.offsets), task.max_length + 1)
    lengths = lengths[lengths >= 2].astype(np.float64)
    num_targets = (lengths - 1).sum()
    context = (lengths * (lengths - 1) / 2).sum() / num_targets
    share = 1.0 if events.products is None else float((np.diff(events.products[1]) > 0).mean())
    num_types = len(events.categories[EVENT_TYPE][1])
    body = task.blocks * (8 * task.width**2 + 4 * task.width * task.feed_forward + 4 * context * task.width)
    heads = 2 * task.width * (events.num_products * share + (num_types if num_types > 1 else 0))
    return 3 * (body + heads)


def matrix_rates(num_threads: int) -> dict[str, float]:
    """Operations per second of square matrix products, the best of several sizes, in a process of its own."""
    threads = {"OMP_NUM_THREADS": str(num_threads), "MKL_NUM_THREADS": str(num_threads)}
    return measured_in_child(
        MODULE, str(num_threads), what="The measurement of the rate of matrix products", environment=threads
    )


def _main(num_threads: int) -> None:
    import torch

    torch.set_num_threads(num_threads)
    rates = {}
    for name, dtype in zip(PRECISIONS, (torch.float32, torch.bfloat16), strict=True):
        best = 0.0
        for size in SIZES:
            a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
            out = torch.mm(a, b)
            until = time.perf_counter() + SECONDS_PER_SIZE
            while (start := time.perf_counter()) < until:
                torch.mm(a, b, out=out)
                best = max(best, 2 * size**3 / (time.perf_counter() - start))
        rates[name] = best
    print(json.dumps(rates))


if __name__ == "__main__":
    _main(int(sys.argv[1]))
