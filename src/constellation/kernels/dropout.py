"""Dropout whose masks cost little on a CPU: 16 random bits for a value, of 64 drawn at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

LEVELS = 2**8


class Dropout(nn.Module):
    """Zero each value with probability ``p``, rounded to 1/256 on a CPU, and scale the others so that the mean stays.

    torch's own draws one value at a time: half of a step of a small model went there. The stream of random bits is
    that of torch's default generator, so that a restored generator gives the same masks.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = float(p)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        if x.device.type != "cpu":
            return functional.dropout(x, self.p)
        return _Masked.apply(x, self.p)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return f"p={self.p}"


def level(p: float) -> int:
    """``p`` in steps of 1 / ``LEVELS``, at least one where it is not 0 and never all."""
    return min(max(round(p * LEVELS), 1), LEVELS - 1) if p else 0


def drawn_seed(drop: int) -> int:
    """For masks that are made in C++; nothing is drawn where nothing is dropped."""
    return int(torch.empty((), dtype=torch.int64).random_()) if drop else 0


def keep_mask(shape: torch.Size, p: float) -> tuple[Tensor, float]:
    """Bytes, 1 to keep and 0 to drop, and the probability to keep, p rounded to 1/256.

    Eight bytes are compared at once as one integer: with the high bit of each byte set aside, adding 128 less the
    threshold carries into that bit just where the byte reaches it.
    """
    drop = max(level(p), 1)
    size = shape.numel()
    bits = torch.empty(-(-size // 8), dtype=torch.int64).random_(-(2**63), None)
    # byte >= drop, without letting a carry leave its byte: compare the lower seven bits, then the high one.
    low = 0x7F7F7F7F7F7F7F7F
    high = -0x7F7F7F7F7F7F7F80  # 0x8080...80 as a signed integer
    ones = 0x0101010101010101
    reaches = (bits & low) + ones * (0x80 - (drop & 0x7F))
    keep = (reaches & bits if drop & 0x80 else reaches | bits) & high
    mask = ((keep >> 7) & ones).view(torch.uint8)[:size].view(shape)
    return mask, 1.0 - drop / LEVELS


class _Masked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        mask, keep = keep_mask(x.shape, p)
        factor = mask.to(x.dtype).mul_(1.0 / keep)
        ctx.save_for_backward(factor)
        return x * factor

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (factor,) = ctx.saved_tensors
        return grad * factor, None
