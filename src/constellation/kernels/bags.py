"""Sums of embeddings over bags of codes, whose gradient is such a sum itself.

The gradient of a row of the table is the sum of the gradients of all bags that hold its code: again a bag, of bags. On
a CPU torch adds them up one by one, some 70 ns each; sorting the codes and taking bags of gradients costs a tenth of
that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Bag = tuple[Tensor, Tensor]
"""Codes [M] and offsets [R + 1]: bag r holds codes ``offsets[r] : offsets[r + 1]``."""


def summed_bags(table_TD: Tensor, codes_RF: Tensor, bags: Sequence[Bag]) -> Tensor:
    """[R, D]: per row the sum of the embeddings of its F codes, F at least 1, and of its codes in each of ``bags``."""
    if table_TD.device.type == "cpu":
        flat = [part for bag in bags for part in bag]
        return _SummedBags.apply(table_TD, codes_RF, *flat)  # type: ignore[no-any-return]
    return _sums(table_TD, codes_RF, bags)


def weighted_total(query_RD: Tensor, table_TD: Tensor, bag: Bag, row_M: Tensor, weight_M: Tensor) -> Tensor:
    """sum over members of weight * query[row] . table[code], of no dimension; weights are taken as constants.

    row_M: the bag of each code, what the offsets say from the other side.
    """
    if table_TD.device.type == "cpu":
        return _WeightedTotal.apply(query_RD, table_TD, *bag, row_M, weight_M)  # type: ignore[no-any-return]
    return (query_RD * _weighted(table_TD, bag, weight_M)).sum()


def by_code(code_M: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """Places in ``code_M`` sorted by code [M], stably, and where each code begins among them [num_codes + 1]."""
    small = next(dtype for dtype in (torch.int16, torch.int32, torch.int64) if num_codes <= torch.iinfo(dtype).max)
    order_M = torch.sort(code_M.to(small), stable=True).indices
    counts = torch.bincount(code_M, minlength=num_codes)
    return order_M, functional.pad(counts.cumsum(0), (1, 0))


def _sums(table_TD: Tensor, codes_RF: Tensor, bags: Sequence[Bag]) -> Tensor:
    sums_RD = functional.embedding_bag(codes_RF, table_TD, mode="sum")
    for codes_M, offsets in bags:
        sums_RD = sums_RD + functional.embedding_bag(codes_M, table_TD, offsets, mode="sum", include_last_offset=True)
    return sums_RD


def _weighted(table_TD: Tensor, bag: Bag, weight_M: Tensor) -> Tensor:
    codes_M, offsets = bag
    weights = weight_M.to(table_TD.dtype)
    return functional.embedding_bag(
        codes_M, table_TD, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True
    )


class _SummedBags(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table_TD: Tensor, codes_RF: Tensor, *flat: Tensor) -> Tensor:
        ctx.save_for_backward(codes_RF, *flat)
        ctx.num_codes = len(table_TD)
        return _sums(table_TD, codes_RF, list(zip(flat[::2], flat[1::2], strict=True)))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_RD: Tensor) -> tuple[Tensor | None, ...]:
        codes_RF, *flat = ctx.saved_tensors
        num_rows, per_row = codes_RF.shape
        row_R = torch.arange(num_rows)
        codes, rows = [codes_RF.flatten()], [row_R.repeat_interleave(per_row)]
        for codes_M, offsets in zip(flat[::2], flat[1::2], strict=True):
            codes.append(codes_M)
            rows.append(row_R.repeat_interleave(offsets.diff(), output_size=len(codes_M)))
        order, offsets = by_code(torch.cat(codes), ctx.num_codes)
        bag = torch.cat(rows).index_select(0, order), offsets
        grad = functional.embedding_bag(bag[0], grad_RD.contiguous(), bag[1], mode="sum", include_last_offset=True)
        return grad, None, *(None for _ in flat)


class _WeightedTotal(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query_RD: Tensor, table_TD: Tensor, codes_M: Tensor, offsets: Tensor, row_M: Tensor, weight_M: Tensor
    ) -> Tensor:
        mean_RD = _weighted(table_TD, (codes_M, offsets), weight_M)
        ctx.save_for_backward(query_RD, mean_RD, codes_M, row_M, weight_M)
        ctx.num_codes = len(table_TD)
        return torch.dot(query_RD.flatten(), mean_RD.flatten())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query_RD, mean_RD, codes_M, row_M, weight_M = ctx.saved_tensors
        order, offsets = by_code(codes_M, ctx.num_codes)
        bag = row_M.index_select(0, order), offsets
        of_table = _weighted(query_RD.contiguous(), bag, weight_M.index_select(0, order) * grad)
        return mean_RD * grad, of_table, None, None, None, None
