"""In which precision the large matrix products of a training step run.

Weights, sums and everything element-wise stay in float32. In ``bfloat16`` only the factors of a product are rounded:
to 8 bits of mantissa, with sums in float32 inside the processor. Whether that pays depends on the processor: with
AVX512-BF16 or AMX it is 4 to 7 times the float32 rate, elsewhere it is slower than float32. So it is measured.
``fused`` is bfloat16, too, and does whole layers in kernels of ours that are compiled here (``kernels/native.py``).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from constellation.kernels.linear import blockwise_linear, takes
from constellation.kernels.native import is_known_to_pay

FLOAT32, BFLOAT16, FUSED = "float32", "bfloat16", "fused"
PRODUCTS = (FLOAT32, BFLOAT16, FUSED)

WORTH_IT = 1.5
"""Casting eats a part of the gain: below this ratio of rates float32 is as fast, and exact."""

_current: ContextVar[str] = ContextVar("products", default=FLOAT32)


def current() -> str:
    """``float32`` unless a training step chose ``bfloat16``: predictions are always made in float32."""
    return BFLOAT16 if is_fused() else _current.get()


def is_fused() -> bool:
    """Whether products are in bfloat16, and whole layers in kernels of ours where they take them."""
    return _current.get() == FUSED


@contextmanager
def products_in(name: str) -> Iterator[None]:
    """Run the products of this block, and of the backward passes of what it made, in one of ``PRODUCTS``."""
    assert name in PRODUCTS, name
    token = _current.set(name)
    try:
        yield
    finally:
        _current.reset(token)


def measured_choice(width: int = 64, rows: int = 2048, repeats: int = 7) -> str:
    """``bfloat16`` where it multiplies matrices at least ``WORTH_IT`` times as fast on this CPU; about 20 ms.

    Then ``fused`` where its kernels can be compiled and are known to pay.
    """
    rates = measured_rates(width, rows, repeats)
    if rates[BFLOAT16] < WORTH_IT * rates[FLOAT32]:
        return FLOAT32
    return FUSED if is_known_to_pay() else BFLOAT16


def measured_rates(width: int = 64, rows: int = 2048, repeats: int = 7) -> dict[str, float]:
    """Multiply-adds times two per second of a [rows, width] x [width, 4 width] product on the CPU, best of several."""
    found = {}
    for name in (FLOAT32, BFLOAT16):
        dtype = getattr(torch, name)
        left, right = torch.ones(rows, width, dtype=dtype), torch.ones(width, 4 * width, dtype=dtype)
        out = torch.empty(rows, 4 * width, dtype=dtype)
        best = float("inf")
        for _ in range(repeats + 1):  # the first one warms up, and is never the best
            start = time.perf_counter()
            torch.mm(left, right, out=out)
            best = min(best, time.perf_counter() - start)
        found[name] = 2 * rows * width * 4 * width / best
    return found


ROWS_AT_A_TIME, ROW_GRAIN = (8192, 4096, 2048), 256
"""A shape that oneDNN has not seen costs it about as much as the product, and a third of a megabyte that it keeps. So
rows are taken so many at a time, most first, and the last ones filled up with zeros to a multiple of the grain."""


def linear(x_RK: Tensor, weight_OK: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` in the chosen precision, which is also that of the result [R, O].

    On a GPU autocast decides, and this is torch's own function. Fused, the result is float32 where the kernel takes it.
    """
    if torch.compiler.is_compiling() or x_RK.device.type != "cpu" or current() == FLOAT32:
        return functional.linear(x_RK, weight_OK, bias_O)
    if is_fused() and takes(x_RK, weight_OK, bias_O):
        return blockwise_linear(x_RK, weight_OK, bias_O)
    return _Linear.apply(x_RK, weight_OK, bias_O)  # type: ignore[no-any-return]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_RK: Tensor, weight_OK: Tensor, bias_O: Tensor | None) -> Tensor:
        x, weight = x_RK.bfloat16(), weight_OK.bfloat16()
        ctx.save_for_backward(x, weight)
        ctx.types = x_RK.dtype, bias_O is not None
        out = x.new_empty(len(x), len(weight))
        bias = None if bias_O is None else bias_O.bfloat16()
        for rows in row_blocks(len(x)):
            block = x[rows]
            result = _product(filled(block), weight.t(), bias, out[rows] if _is_whole(block) else None)
            if not _is_whole(block):
                out[rows] = result[: len(block)]
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_RO: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), (x_type, has_bias) = ctx.saved_tensors, ctx.types
        grad = grad_RO.bfloat16()
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32)
        for rows in row_blocks(len(x)):
            block, whole = grad[rows], filled(grad[rows])
            grad_weight += torch.mm(whole.t(), filled(x[rows]))
            if grad_x is None:
                continue
            result = _product(whole, weight, None, grad_x[rows] if _is_whole(block) else None)
            if not _is_whole(block):
                grad_x[rows] = result[: len(block)]
        grad_bias = grad.sum(0, dtype=torch.float32) if has_bias else None
        return None if grad_x is None else grad_x.to(x_type), grad_weight, grad_bias


def row_blocks(num_rows: int) -> list[slice]:
    blocks, start = [], 0
    for size in ROWS_AT_A_TIME:
        while num_rows - start >= size:
            blocks.append(slice(start, start + size))
            start += size
    return [*blocks, slice(start, num_rows)] if start < num_rows else blocks


def _is_whole(block: Tensor) -> bool:
    return len(block) % ROW_GRAIN == 0


def filled(rows_RK: Tensor, grain: int = ROW_GRAIN) -> Tensor:
    """The rows and rows of zeros after them, up to a multiple of the grain; where none are missing, the same tensor."""
    missing = -len(rows_RK) % grain
    return functional.pad(rows_RK, (0, 0, 0, missing)) if missing else rows_RK


def _product(left: Tensor, right: Tensor, bias: Tensor | None, out: Tensor | None) -> Tensor:
    return torch.mm(left, right, out=out) if bias is None else torch.addmm(bias, left, right, out=out)
