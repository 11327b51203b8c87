"""Causal softmax attention over ragged journeys: the fastest way on each device, and a plain one to compare with.

On a CPU with fast bfloat16 products torch's own kernel is two to three times slower in float32, and slower still in
bfloat16, because of its backward pass. Ours is plain batched products over bands of journeys of like length, in blocks
of queries that see no keys after the block, with a backward pass of its own.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from constellation.kernels.bands import Bands

QUERY_BLOCK = 64
"""Queries at a time in journeys longer than ``WHOLE``: half of the work on keys that lie ahead is saved."""

WHOLE = 208
LEAST_SUM, MOST_SUM = 1e-20, 1e30
"""Row sums of exp(scores) beyond these have scores so far from 0 that exponentials may have left the range of the type;
then the largest score of each row is subtracted first, which costs a pass over them."""

KEPT_LENGTH = 512
"""Probabilities are kept for the backward pass up to this length and made again beyond: a journey of 8,192 events would
keep 134 MB for each head and layer."""


def banded_attention(qkv_NG: Tensor, turn_NP: Tensor, bands: Bands, heads: int) -> Tensor:
    """[N, D] of softmax attention of every event over its own journey up to itself, in bfloat16, on a CPU.

    qkv_NG: queries, keys and values of all heads side by side, [N, 3 D], bfloat16.
    turn_NP: unit complex numbers, [N, P], that turn the P pairs of neighbours of each query and key.
    """
    return _BandedAttention.apply(qkv_NG, turn_NP, bands, heads)  # type: ignore[no-any-return]


def varlen_attention(qkv_NG: Tensor, turn_NP: Tensor, offsets_B: Tensor, max_length: int, heads: int) -> Tensor:
    """The same by the flash kernel for rows that lie end to end, on a CUDA device, without any padding.

    qkv_NG: in bfloat16 or float16. offsets_B: int32 [B + 1] on the device. max_length: on the host, an upper bound.
    """
    width = qkv_NG.shape[1] // 3
    q, k, v = _heads(qkv_NG, turn_NP, heads)
    attend, causal = _varlen()
    return attend(q, k, v, offsets_B, offsets_B, max_length, max_length, **causal).reshape(-1, width)


@functools.cache
def _varlen() -> tuple[Any, dict[str, Any]]:
    """The kernel, and how this version of torch is told to be causal."""
    from torch.nn.attention.varlen import varlen_attn

    is_older = "is_causal" in inspect.signature(varlen_attn).parameters
    return varlen_attn, {"is_causal": True} if is_older else {"window_size": (-1, 0)}


def reference_attention(qkv_NG: Tensor, turn_NP: Tensor, bands: Bands, heads: int) -> Tensor:
    """The same by torch's kernel for padded rows, in the type of ``qkv_NG`` and on any device."""
    num_rows, width = len(qkv_NG), qkv_NG.shape[1] // 3
    parts = _heads(qkv_NG, turn_NP, heads)
    outputs = []
    for rows in bands.rows:
        q, k, v = (
            part.index_select(0, rows.flatten()).unflatten(0, tuple(rows.shape)).transpose(1, 2) for part in parts
        )
        output = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).index_select(0, bands.place_N).reshape(num_rows, width)


def _heads(qkv_NG: Tensor, turn_NP: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Turned queries, turned keys, values, each [N, heads, head width]."""
    width = qkv_NG.shape[1] // 3
    qk = turned(qkv_NG[:, : 2 * width], turn_NP, heads).unflatten(1, (2, heads, -1))
    return qk[:, 0], qk[:, 1], qkv_NG[:, 2 * width :].unflatten(1, (heads, -1))


def turned(qk_NG: Tensor, turn_NP: Tensor, heads: int) -> Tensor:
    """Queries and keys side by side [N, 2 D], each pair of neighbours times its complex number, in the same type."""
    pairs = torch.view_as_complex(qk_NG.float().unflatten(1, (2, heads, -1, 2)))
    return torch.view_as_real(pairs * turn_NP[:, None, None]).reshape(qk_NG.shape).to(qk_NG.dtype)


class _BandedAttention(torch.autograd.Function):
    """With e = exp(scores), not divided by its row sums z, out = (e v) / z. Wide passes are few that way: the division
    is done on the thin side, forward and backward (g' = g / z, delta = g' . out, grad of scores = e (g' v^T - delta)).
    """

    @staticmethod
    def forward(ctx: Any, qkv_NG: Tensor, turn_NP: Tensor, bands: Bands, heads: int) -> Tensor:
        num_rows, width = len(qkv_NG), qkv_NG.shape[1] // 3
        into, out_of = bands.by_head(3 * heads), bands.by_head(heads)
        tiled_NT = bands.tiled(turn_NP, heads, (width // heads) ** -0.5)
        turned_NG = torch.empty_like(qkv_NG)
        _turn_into(turned_NG, qkv_NG, tiled_NT)
        turned_NG[:, 2 * width :] = qkv_NG[:, 2 * width :]
        packed = _rows(turned_NG.view(num_rows * 3 * heads, -1), into.take)
        result = packed.new_empty(len(out_of.take), packed.shape[1])
        sums = torch.empty(len(result), 1, dtype=torch.float32)
        kept = [_attend(*band, shifted=False) for band in _bands(packed, result, sums, bands, heads)]
        least, most = torch.aminmax(sums)
        if not (least.item() > LEAST_SUM and most.item() < MOST_SUM):
            kept = [_attend(*band, shifted=True) for band in _bands(packed, result, sums, bands, heads)]
        inverse_sums = sums.index_select(0, out_of.back).reciprocal_()
        out = _rows(result, out_of.back).mul_(inverse_sums)
        ctx.save_for_backward(packed, out, inverse_sums, turn_NP)
        ctx.bands, ctx.heads, ctx.kept = bands, heads, kept
        return out.view(num_rows, width)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor | None, ...]:
        packed, out, inverse_sums, turn_NP = ctx.saved_tensors
        bands, heads, kept = ctx.bands, ctx.heads, ctx.kept
        num_rows, width = grad_ND.shape
        into, out_of = bands.by_head(3 * heads), bands.by_head(heads)
        grad = grad_ND.to(packed.dtype).reshape(num_rows * heads, -1) * inverse_sums.to(packed.dtype)
        delta = torch.mv(grad * out, grad.new_ones(grad.shape[1])).neg_().unsqueeze(1)
        grads, deltas = _rows(grad, out_of.take), delta.index_select(0, out_of.take)
        for each in (grads, deltas):
            each.index_fill_(0, out_of.pads, 0)
        of_packed = torch.empty_like(packed)
        parts = zip(
            _bands(packed, grads, deltas, bands, heads),
            _bands(of_packed, grads, deltas, bands, heads),
            kept,
            strict=True,
        )
        for (q, k, v, grad, delta), (dq, dk, dv, _, _), exps in parts:
            _attend_backward(q, k, v, grad, delta, exps, dq, dk, dv)
        grad_NG = _rows(of_packed, into.back).view(num_rows, 3 * width)
        _turn_into(grad_NG, grad_NG, bands.tiled(turn_NP, heads, (width // heads) ** -0.5, conjugate=True))
        return grad_NG, None, None, None


def _rows(vectors: Tensor, rows: Tensor) -> Tensor:
    """``vectors[rows]``, in words of eight bytes where a vector is made of such: a quarter faster for 16-bit values."""
    if vectors.shape[1] * vectors.element_size() % 8:
        return vectors.index_select(0, rows)
    return vectors.view(torch.int64).index_select(0, rows).view(vectors.dtype)


def _turn_into(out_NG: Tensor, qkv_NG: Tensor, tiled_NT: Tensor) -> None:
    """Write the turned queries and keys, the first columns of ``qkv_NG``, into those of ``out_NG``."""
    columns = 2 * tiled_NT.shape[1]
    pairs = torch.view_as_complex(qkv_NG[:, :columns].float().unflatten(1, (-1, 2)))
    out_NG[:, :columns] = torch.view_as_real(pairs.mul_(tiled_NT)).flatten(1)


def _bands(packed: Tensor, thin: Tensor, single: Tensor, bands: Bands, heads: int) -> Iterator[tuple[Tensor, ...]]:
    """Of each band queries, keys, values, rows of ``thin`` and ``single``: views [heads * journeys, length, _]."""
    start = 0
    for rows in bands.rows:
        size, (journeys, length) = rows.numel(), rows.shape
        band = packed[3 * heads * start : 3 * heads * (start + size)].view(3, heads * journeys, length, -1)
        here = slice(heads * start, heads * (start + size))
        q, k, v = band.unbind()
        yield q, k, v, thin[here].view(heads * journeys, length, -1), single[here].view(heads * journeys, length, 1)
        start += size


def _blocks(length: int) -> list[slice]:
    step = length if length <= WHOLE else QUERY_BLOCK
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def _exponentials(q: Tensor, k: Tensor, block: slice, shifted: bool) -> Tensor:
    """exp(scores) of the queries of a block [heads * journeys, block, keys up to its end]; 0 for keys ahead."""
    size, seen = block.stop - block.start, k[:, : block.stop].transpose(1, 2)
    if block.start == 0:
        scores = torch.baddbmm(_ahead(size, q.dtype), q[:, block], seen)
    else:
        scores = torch.bmm(q[:, block], seen)
        scores[:, :, block.start :].add_(_ahead(size, q.dtype))
    if shifted:
        scores.sub_(scores.amax(-1, keepdim=True))
    return scores.exp_()


@functools.cache
def _ahead(size: int, dtype: torch.dtype) -> Tensor:
    return torch.full((size, size), float("-inf"), dtype=dtype).triu_(1)


def _attend(q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor, *, shifted: bool) -> tuple[bool, list[Tensor]]:
    """Write e v into ``out`` and the row sums of e into ``sums``. Whether scores are shifted by their largest, and the
    e of each block, or none where they are to be made again."""
    kept = []
    for block in _blocks(q.shape[1]):
        e = _exponentials(q, k, block, shifted)
        torch.sum(e, -1, keepdim=True, dtype=torch.float32, out=sums[:, block])
        torch.bmm(e, v[:, : block.stop], out=out[:, block])
        if q.shape[1] <= KEPT_LENGTH:
            kept.append(e)
    return shifted, kept


def _attend_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad: Tensor,
    delta: Tensor,
    exps: tuple[bool, list[Tensor]],
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
) -> None:
    """Write the gradients of a band into ``dq, dk, dv``."""
    shifted, kept = exps
    blocks = _blocks(q.shape[1])
    # The last block sees every key: it goes first, and writes where the others add.
    for place in reversed(range(len(blocks))):
        block = blocks[place]
        seen = slice(0, block.stop)
        e = kept[place] if kept else _exponentials(q, k, block, shifted)
        of_scores = torch.baddbmm(delta[:, block], grad[:, block], v[:, seen].transpose(1, 2)).mul_(e)
        torch.bmm(of_scores, k[:, seen], out=dq[:, block])
        if place == len(blocks) - 1:
            torch.bmm(e.transpose(1, 2), grad[:, block], out=dv)
            torch.bmm(of_scores.transpose(1, 2), q[:, block], out=dk)
        else:
            dv[:, seen] += torch.bmm(e.transpose(1, 2), grad[:, block])
            dk[:, seen] += torch.bmm(of_scores.transpose(1, 2), q[:, block])
