"""Causal softmax attention over ragged journeys: the fastest way on each device, and a plain one to compare with.

On a CPU with fast bfloat16 products torch's own kernel is two to three times slower in float32, and slower still in
bfloat16, because of its backward pass. Ours is plain batched products over bands of journeys of like length, in blocks
of queries that see no keys after the block, with a backward pass of its own.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from constellation.kernels.bands import Bands

QUERY_BLOCK = 64
"""Queries at a time in journeys longer than ``WHOLE``: half of the work on keys that lie ahead is saved."""

WHOLE = 96
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


def turned(qk_NG: Tensor, turn_NP: Tensor, heads: int, query_scale: float = 1.0) -> Tensor:
    """Queries and keys side by side [N, 2 D], each pair of neighbours times its complex number, in the same type."""
    pairs = torch.view_as_complex(qk_NG.float().unflatten(1, (2, heads, -1, 2)))
    turn = turn_NP.unsqueeze(1) if query_scale == 1.0 else torch.stack([turn_NP * query_scale, turn_NP], dim=1)
    return torch.view_as_real(pairs * turn.unsqueeze(2)).reshape(qk_NG.shape).to(qk_NG.dtype)


class _BandedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv_NG: Tensor, turn_NP: Tensor, bands: Bands, heads: int) -> Tensor:
        num_rows, width = len(qkv_NG), qkv_NG.shape[1] // 3
        into, out_of = bands.by_head(3 * heads), bands.by_head(heads)
        scale = (width // heads) ** -0.5
        turned_NG = torch.cat([turned(qkv_NG[:, : 2 * width], turn_NP, heads, scale), qkv_NG[:, 2 * width :]], dim=1)
        packed = turned_NG.view(num_rows * 3 * heads, -1).index_select(0, into.take)
        result = packed.new_empty(len(out_of.take), packed.shape[1])
        kept: list[list[Tensor]] = []
        start = 0
        for rows in bands.rows:
            size, (journeys, length) = rows.numel(), rows.shape
            q, k, v = _parts(packed, 3 * heads * start, heads, journeys, length)
            o = result[heads * start : heads * (start + size)].view(heads * journeys, length, -1)
            kept.append(_attend(q, k, v, o))
            start += size
        ctx.save_for_backward(packed, turn_NP)
        ctx.bands, ctx.heads, ctx.kept = bands, heads, kept
        return result.index_select(0, out_of.back).view(num_rows, width)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor | None, ...]:
        packed, turn_NP = ctx.saved_tensors
        bands, heads, kept = ctx.bands, ctx.heads, ctx.kept
        num_rows, width = grad_ND.shape
        into, out_of = bands.by_head(3 * heads), bands.by_head(heads)
        grads = grad_ND.to(packed.dtype).reshape(num_rows * heads, -1).index_select(0, out_of.take)
        grads.index_fill_(0, out_of.pads, 0)
        result = torch.empty_like(packed)
        start = 0
        for rows, probabilities in zip(bands.rows, kept, strict=True):
            size, (journeys, length) = rows.numel(), rows.shape
            q, k, v = _parts(packed, 3 * heads * start, heads, journeys, length)
            dq, dk, dv = _parts(result, 3 * heads * start, heads, journeys, length)
            grad = grads[heads * start : heads * (start + size)].view(heads * journeys, length, -1)
            _attend_backward(q, k, v, grad, probabilities, dq, dk, dv)
            start += size
        grad_NG = result.index_select(0, into.back).view(num_rows, 3 * width)
        grad_NG[:, : 2 * width] = turned(grad_NG[:, : 2 * width], turn_NP.conj(), heads, (width // heads) ** -0.5)
        return grad_NG, None, None, None


def _parts(packed: Tensor, start: int, heads: int, journeys: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys, values of a band, each [heads * journeys, length, head width], as views."""
    band = packed[start : start + 3 * heads * journeys * length].view(3, heads * journeys, length, -1)
    return band[0], band[1], band[2]


def _blocks(length: int) -> list[slice]:
    step = length if length <= WHOLE else QUERY_BLOCK
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def _probabilities(q: Tensor, k: Tensor, block: slice) -> Tensor:
    scores = torch.bmm(q[:, block], k[:, : block.stop].transpose(1, 2))
    scores[:, :, block.start :].add_(_ahead(block.stop - block.start, scores.dtype))
    return scores.softmax(-1)


@functools.cache
def _ahead(size: int, dtype: torch.dtype) -> Tensor:
    return torch.full((size, size), float("-inf"), dtype=dtype).triu_(1)


def _attend(q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> list[Tensor]:
    """Write the attention into ``out``; the probabilities of each block, or none where they are to be made again."""
    kept = []
    for block in _blocks(q.shape[1]):
        p = _probabilities(q, k, block)
        if block.stop - block.start == q.shape[1]:
            torch.bmm(p, v, out=out)
        else:
            out[:, block] = torch.bmm(p, v[:, : block.stop])
        kept.append(p)
        if q.shape[1] > KEPT_LENGTH:
            kept.clear()
    return kept


def _attend_backward(
    q: Tensor, k: Tensor, v: Tensor, grad: Tensor, kept: list[Tensor], dq: Tensor, dk: Tensor, dv: Tensor
) -> None:
    """Write the gradients of a band into ``dq, dk, dv``."""
    blocks = _blocks(q.shape[1])
    # The last block sees every key: it goes first, and writes where the others add.
    for place in reversed(range(len(blocks))):
        block = blocks[place]
        seen = slice(0, block.stop)
        p = kept[place] if kept else _probabilities(q, k, block)
        grad_p = torch.bmm(grad[:, block], v[:, seen].transpose(1, 2))
        grad_s = torch.ops.aten._softmax_backward_data(grad_p, p, -1, p.dtype)
        of_values, of_keys = (
            torch.bmm(p.transpose(1, 2), grad[:, block]),
            torch.bmm(grad_s.transpose(1, 2), q[:, block]),
        )
        dq[:, block] = torch.bmm(grad_s, k[:, seen])
        if place == len(blocks) - 1:
            dv.copy_(of_values)
            dk.copy_(of_keys)
        else:
            dv[:, seen] += of_values
            dk[:, seen] += of_keys
