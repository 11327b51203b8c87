"""Vectors of events in one pass over them: sums of embeddings, numbers times a matrix, and dropout."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from constellation.kernels import products
from constellation.kernels.bags import Bag
from constellation.kernels.dropout import drawn_seed, level
from constellation.kernels.native import call, can_work, is_plain, library

EVENTS = "events"


def takes(table_TD: Tensor, *others: Tensor | None) -> bool:
    """Whether the kernel in C++ does it: where layers are fused, in whole vectors of plain float32.

    others: numbers, their weight and bias.
    """
    return (
        products.is_fused()
        and all(is_plain(each) for each in (table_TD, *others) if each is not None)
        and table_TD.shape[1] % 32 == 0
        and can_work()
        and library(EVENTS, width=table_TD.shape[1]) is not None
    )


def embedded_events(
    table_TD: Tensor,
    codes_RF: Tensor,
    bags: Sequence[Bag],
    numbers_RK: Tensor | None,
    weight_DK: Tensor | None,
    bias_D: Tensor | None,
    dropout: float,
) -> Tensor:
    """[R, D]: dropout of the sum of the embeddings of each row's codes and bags, and of weight @ numbers + bias.

    dropout: 0 outside training, rounded to 1/256; one number is drawn for its masks.
    """
    drop = level(dropout)
    flat = [part for bag in bags for part in bag]
    return _Events.apply(  # type: ignore[no-any-return]
        table_TD, weight_DK, bias_D, codes_RF, numbers_RK, drop, drawn_seed(drop), *flat
    )


class _Events(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        table_TD: Tensor,
        weight_DK: Tensor | None,
        bias_D: Tensor | None,
        codes_RF: Tensor,
        numbers_RK: Tensor | None,
        drop: int,
        seed: int,
        *flat: Tensor,
    ) -> Tensor:
        made = library(EVENTS, width=table_TD.shape[1])
        assert made is not None
        (num_rows, num_fields), num_numbers = codes_RF.shape, 0 if numbers_RK is None else numbers_RK.shape[1]
        numbers = None if numbers_RK is None else numbers_RK.contiguous()
        codes, parts = codes_RF.contiguous(), [each.contiguous() for each in flat]
        sizes = num_rows, num_fields, len(parts) // 2, num_numbers, drop, len(table_TD)
        assert all(each.dtype == torch.int64 for each in (codes, *parts)), "codes and offsets are 64 bits wide"
        assert all(len(offsets) == num_rows + 1 for offsets in parts[1::2]), "one bag for each row"
        assert all(int(ends[-1]) == len(held) for held, ends in zip(parts[::2], parts[1::2], strict=True)), "end to end"
        given = ctypes.c_uint64(seed), codes, parts[::2], parts[1::2], numbers
        out = table_TD.new_empty(num_rows, table_TD.shape[1])
        weight_KD = None if weight_DK is None else weight_DK.t().contiguous()
        bias = None if bias_D is None else bias_D.contiguous()
        call(made.events_forward, sizes, *given, table_TD.contiguous(), weight_KD, bias, out)
        ctx.save_for_backward(codes, numbers, *parts)
        ctx.made, ctx.sizes, ctx.seed = made, sizes, seed
        ctx.has_bias = bias_D is not None
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_RD: Tensor) -> tuple[Tensor | None, ...]:
        codes, numbers, *parts = ctx.saved_tensors
        width = grad_RD.shape[1]
        grad_table = grad_RD.new_zeros(ctx.sizes[5], width)
        grad_weight = grad_RD.new_zeros(ctx.sizes[3], width)
        grad_bias = grad_RD.new_zeros(width) if ctx.has_bias else None
        given = ctypes.c_uint64(ctx.seed), codes, parts[::2], parts[1::2], numbers, grad_RD.contiguous()
        call(ctx.made.events_backward, ctx.sizes, *given, grad_table, grad_weight, grad_bias)
        of_weight = None if numbers is None else grad_weight.t()
        return grad_table, of_weight, grad_bias, None, None, None, None, *(None for _ in parts)
