"""A linear layer whose factors are rounded to bfloat16 block by block: no copies of rows, no casts, float32 out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from constellation.kernels.native import call, can_work, is_plain, library

LINEAR, MOST_WIDTH = "linear", 512


def takes(x_RK: Tensor, weight_OK: Tensor, bias_O: Tensor | None) -> bool:
    """Whether the kernel in C++ can do it: widths in whole vectors up to ``MOST_WIDTH``, plain float32 on a CPU."""
    out, width = weight_OK.shape
    return (
        all(is_plain(each) for each in (x_RK, weight_OK, bias_O) if each is not None)
        and x_RK.dim() == 2
        and width % 32 == 0
        and out % 32 == 0
        and max(width, out) <= MOST_WIDTH
        and can_work()
        and library(LINEAR, width=width) is not None
    )


def blockwise_linear(x_RK: Tensor, weight_OK: Tensor, bias_O: Tensor | None) -> Tensor:
    """``x @ weight.T + bias`` [R, O], float32, with float32 sums of products of bfloat16 factors."""
    return _Linear.apply(x_RK, weight_OK, bias_O)  # type: ignore[no-any-return]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_RK: Tensor, weight_OK: Tensor, bias_O: Tensor | None) -> Tensor:
        x, weight = x_RK.contiguous(), weight_OK.contiguous()
        bias = None if bias_O is None else bias_O.contiguous()
        made = library(LINEAR, width=x.shape[1])
        assert made is not None
        out = x.new_empty(len(x), len(weight))
        ctx.sizes = len(x), len(weight)
        call(made.linear_forward, ctx.sizes, x, weight, bias, out)
        ctx.save_for_backward(x, weight)
        ctx.made, ctx.has_bias = made, bias_O is not None
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_RO: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        grad_weight, grad_bias = torch.zeros_like(weight), weight.new_zeros(len(weight))
        call(ctx.made.linear_backward, ctx.sizes, x, weight, grad_RO.contiguous(), grad_x, grad_weight, grad_bias)
        return grad_x, grad_weight, grad_bias if ctx.has_bias else None
