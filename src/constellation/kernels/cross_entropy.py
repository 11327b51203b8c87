"""Softmax cross entropy over a large vocabulary without ever holding all logits.

Rows are taken a chunk at a time: logits, their exponentials, and at once the gradients with respect to queries and
embeddings, while the chunk is still in the cache. So there is one pass over a chunk where autograd takes several, no
second exponential, and memory for one chunk only. The division by the sum of the exponentials is done on the thin
side, on rows of width D instead of V.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from constellation.kernels import products
from constellation.kernels.bags import Bag, weighted_total
from constellation.kernels.native import call, can_work, is_plain, library
from constellation.kernels.products import filled

BLOCK = 4096
"""Values of the vocabulary at a time: their embeddings and gradients, and the logits of a chunk, stay in the cache."""

CHUNK_BYTES = {"cpu": 64 * 2**20, "other": 512 * 2**20}
MOST_ROWS = {"cpu": 256, "other": 8192}
FEWEST_ROWS = 64
CACHED_LOGITS, MOST_CACHED_ROWS = 2**19, 1024
"""Rows of a chunk: more of them write the embeddings' gradient less often, fewer stay in the cache. Measured at
vocabularies of 302 to 200,000: benchmarks/DIARY.md. While so many logits stay in the cache, up to so many rows."""

SOFTMAX, MOST_FUSED = "softmax", 2**18
"""The kernel in C++ holds the exponentials of 128 rows: 64 MiB at so many products. Beyond, torch's products do it."""

BIAS_COLUMNS = 8
"""Matrix products like widths that are multiples of 8."""


def log_sum_exp_total(
    query_RD: Tensor, embedding_VD: Tensor, bias_V: Tensor | None = None, weight_R: Tensor | None = None
) -> Tensor:
    """sum_r weight_r log sum_v exp(query_r . embedding_v + bias_v), of no dimension, float32.

    Differentiable, once, in queries, embeddings and biases; ``weight_R`` (default 1) is taken as a constant, and known
    beforehand so that the gradients can be made in the forward pass. A cross entropy is this total less the targets'
    own logits, which are few and are left to autograd. Rows of weight 0 cost nothing on a CPU.
    Products run in ``products.current()``, on a GPU in autocast's type; everything else in float32.
    """
    kind = query_RD.device.type
    if _takes(query_RD, embedding_VD, bias_V):
        return _FusedTotal.apply(query_RD, embedding_VD, bias_V, weight_R, None, None, None, None)  # type: ignore[no-any-return]
    if weight_R is not None and kind == "cpu":
        asked = weight_R.nonzero().squeeze(1)
        if len(asked) < len(weight_R):
            query_RD, weight_R = query_RD.index_select(0, asked), weight_R.index_select(0, asked)
    return _LogSumExpTotal.apply(query_RD, embedding_VD, bias_V, weight_R, _product_type(kind))  # type: ignore[no-any-return]


def set_cross_entropy_total(
    query_ND: Tensor,
    embedding_VD: Tensor,
    bias_V: Tensor,
    bag: Bag,
    row_M: Tensor,
    share_M: Tensor,
    asked_R: Tensor,
    query_R: Tensor | None = None,
) -> Tensor:
    """The same total with ``asked_R`` for weights, less share * logit of each member of each row's set.

    bag: members [M] and offsets [R + 1]; row_M: the row of each member. share_M is 0 in rows that are not asked.
    query_R: the query of each row among ``query_ND``, of no two asked rows the same one; None: that of its number.
    """
    if _takes(query_ND, embedding_VD, bias_V):
        return _FusedTotal.apply(query_ND, embedding_VD, bias_V, asked_R, query_R, *bag, share_M)  # type: ignore[no-any-return]
    query_RD = query_ND if query_R is None else query_ND.index_select(0, query_R)
    log_sums = log_sum_exp_total(query_RD, embedding_VD, bias_V, asked_R)
    of_members = weighted_total(query_RD, embedding_VD, bag, row_M, share_M)
    return log_sums - (of_members + (bias_V.index_select(0, bag[0]) * share_M).sum())


def _takes(query_RD: Tensor, embedding_VD: Tensor, bias_V: Tensor | None) -> bool:
    """Whether the kernel in C++ does it."""
    return (
        products.is_fused()
        and all(is_plain(each) for each in (query_RD, embedding_VD, bias_V) if each is not None)
        and query_RD.shape[1] % 32 == 0
        and len(embedding_VD) <= MOST_FUSED
        and can_work()
        and library(SOFTMAX, width=query_RD.shape[1]) is not None
    )


def _product_type(kind: str) -> torch.dtype:
    if kind == "cpu":
        return torch.bfloat16 if products.current() == products.BFLOAT16 else torch.float32
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32


def rows_per_chunk(vocabulary: int, dtype: torch.dtype, kind: str) -> int:
    """Rows whose logits fit the bytes of a chunk, within ``FEWEST_ROWS`` and ``MOST_ROWS``."""
    kind = kind if kind == "cpu" else "other"
    most = max(MOST_ROWS[kind], min(MOST_CACHED_ROWS, CACHED_LOGITS // vocabulary // 256 * 256))
    return max(FEWEST_ROWS, min(most, CHUNK_BYTES[kind] // (vocabulary * dtype.itemsize) // 16 * 16))


class _LogSumExpTotal(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_RD: Tensor,
        embedding_VD: Tensor,
        bias_V: Tensor | None,
        weight_R: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        num_rows, device = len(query_RD), query_RD.device
        with torch.autocast(device.type, enabled=False):
            query, output = query_RD.to(dtype), _Output(embedding_VD, bias_V, dtype)
            weight_R1 = (torch.ones(num_rows, device=device) if weight_R is None else weight_R.float()).unsqueeze(1)
            total = torch.zeros((), dtype=torch.float32, device=device)
            chunk = rows_per_chunk(len(embedding_VD), dtype, device.type)
            if device.type == "cpu":
                # Rows of zeros after the last, so that shapes are few: see kernels/products.py.
                chunk = min(chunk, 1 << max(num_rows - 1, 15).bit_length())
                query, query_RD, weight_R1 = (filled(each, chunk) for each in (query, query_RD, weight_R1))
            grad_query = torch.empty(query_RD.shape, dtype=torch.float32, device=device)
            for start in range(0, len(query), chunk):
                rows = slice(start, start + chunk)
                exps, sum_C1, log_sum_C1, weighted_CD = output.exponentials(query[rows])
                total += (weight_R1[rows] * log_sum_C1).sum()
                share_C1 = weight_R1[rows] / sum_C1
                torch.mul(weighted_CD, share_C1, out=grad_query[rows])
                output.add_gradients(exps, query_RD[rows], share_C1)
        ctx.save_for_backward(grad_query[:num_rows], output.grad, output.grad_bias)
        ctx.types = query_RD.dtype, embedding_VD.dtype
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_query, grad_embedding, grad_bias = ctx.saved_tensors
        of_query, of_embedding = ctx.types
        return (
            (grad_query * grad).to(of_query),
            (grad_embedding * grad).to(of_embedding),
            None if grad_bias is None else grad_bias * grad,
            None,
            None,
        )


class _FusedTotal(torch.autograd.Function):
    """The same by ``cpp/softmax.cpp``, which passes by rows of weight 0 and takes the members' logits off."""

    @staticmethod
    def forward(
        ctx: Any,
        query_ND: Tensor,
        embedding_VD: Tensor,
        bias_V: Tensor | None,
        weight_R: Tensor | None,
        query_R: Tensor | None,
        code_M: Tensor | None,
        offsets: Tensor | None,
        share_M: Tensor | None,
    ) -> Tensor:
        width, vocabulary = query_ND.shape[1], len(embedding_VD)
        num_rows = len(query_ND) if query_R is None else len(query_R)
        made = library(SOFTMAX, width=width)
        assert made is not None
        query, embedding = query_ND.contiguous(), embedding_VD.contiguous()
        weight, share = (None if each is None else each.float().contiguous() for each in (weight_R, share_M))
        queries, codes, ends = (None if each is None else each.contiguous() for each in (query_R, code_M, offsets))
        assert ends is None or (len(ends) == num_rows + 1 and int(ends[-1]) == len(share_M)), "one set for each row"  # type: ignore[arg-type]
        places = None if weight is None else weight.nonzero().squeeze(1)
        if places is not None and len(places) == num_rows:
            places = None
        asked = num_rows if places is None else len(places)
        filled = -(-vocabulary // 16) * 16
        grad_query = torch.empty_like(query) if asked == len(query) else torch.zeros_like(query)
        total = query.new_zeros((), dtype=torch.float64)
        grad_embedding, grad_bias = query.new_zeros(filled, width), query.new_zeros(filled)
        bias = None if bias_V is None else bias_V.contiguous()
        rows = (weight, places, queries, codes, ends, share)
        given = (query, embedding, bias, *rows, grad_query, grad_embedding, grad_bias, total)
        call(made.softmax_total, (asked, vocabulary), *given)
        ctx.save_for_backward(grad_query, grad_embedding[:vocabulary], grad_bias[:vocabulary])
        ctx.has_bias = bias_V is not None
        return total.float()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_query, grad_embedding, grad_bias = ctx.saved_tensors
        of_bias = grad_bias * grad if ctx.has_bias else None
        return grad_query * grad, grad_embedding * grad, of_bias, None, None, None, None, None


class _Output:
    """Embeddings and biases in blocks of the vocabulary, in the type of the products, and their float32 gradients."""

    def __init__(self, embedding_VD: Tensor, bias_V: Tensor | None, dtype: torch.dtype) -> None:
        self.embeddings = embedding_VD.detach().to(dtype).split(BLOCK)
        self.biases = None if bias_V is None else bias_V.detach().to(dtype).split(BLOCK)
        self.grad = torch.zeros(embedding_VD.shape, dtype=torch.float32, device=embedding_VD.device)
        self.grad_bias = None if bias_V is None else torch.zeros_like(bias_V, dtype=torch.float32)
        self.buffers: list[Tensor] = []

    def exponentials(self, query_CD: Tensor) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        """exp(logits - shift) by block [C, block]; sum [C, 1]; log of the sum, shift put back; exp @ embedding [C, D].

        On a CPU the shift is 0 while that overflows nowhere: bfloat16 and float32 reach to e^88, and the pass over the
        logits that finds their maximum costs a tenth of the whole. A GPU must not be asked, and always shifts.
        """
        if query_CD.device.type == "cpu":
            exps, sum_C1, weighted_CD = self._shifted(query_CD, None)
            log_sum_C1 = sum_C1.log()
            if math.isfinite(log_sum_C1.sum().item()):
                return exps, sum_C1, log_sum_C1, weighted_CD
        blocks = range(len(self.embeddings))
        shift_C1 = torch.stack([self._logits(query_CD, place).amax(1) for place in blocks]).amax(0).unsqueeze(1)
        exps, sum_C1, weighted_CD = self._shifted(query_CD, shift_C1)
        return exps, sum_C1, sum_C1.log() + shift_C1.float(), weighted_CD

    def _shifted(self, query_CD: Tensor, shift_C1: Tensor | None) -> tuple[list[Tensor], Tensor, Tensor]:
        sum_C1 = torch.zeros(len(query_CD), 1, dtype=torch.float32, device=query_CD.device)
        weighted_CD = torch.zeros(query_CD.shape, dtype=torch.float32, device=query_CD.device)
        exps = []
        for place, embedding in enumerate(self.embeddings):
            logits = self._logits(query_CD, place)
            exp = (logits if shift_C1 is None else logits.sub_(shift_C1)).exp_()
            sum_C1 += exp.sum(1, keepdim=True, dtype=torch.float32)
            weighted_CD += torch.mm(exp, embedding)
            exps.append(exp)
        return exps, sum_C1, weighted_CD

    def _logits(self, query_CD: Tensor, place: int) -> Tensor:
        embedding = self.embeddings[place]
        if len(self.buffers) <= place:
            self.buffers.append(query_CD.new_empty(len(query_CD), len(embedding)))
        out = self.buffers[place][: len(query_CD)]  # the last chunk is shorter than the first
        if self.biases is None:
            return torch.mm(query_CD, embedding.t(), out=out)
        return torch.addmm(self.biases[place], query_CD, embedding.t(), out=out)

    def add_gradients(self, exps: list[Tensor], query_CD: Tensor, share_C1: Tensor) -> None:
        """Add exp^T @ (share * query), and with biases exp^T @ share, free as further columns of that product."""
        scaled = query_CD * share_C1
        if self.grad_bias is not None:
            scaled = torch.cat([scaled, share_C1.expand(-1, BIAS_COLUMNS)], dim=1)
        scaled, width = scaled.to(exps[0].dtype), query_CD.shape[1]
        for place, exp in enumerate(exps):
            block = slice(place * BLOCK, (place + 1) * BLOCK)
            grad = torch.mm(exp.t(), scaled)
            self.grad[block] += grad[:, :width]
            if self.grad_bias is not None:
                self.grad_bias[block] += grad[:, width]
