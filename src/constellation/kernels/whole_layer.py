"""A transformer's layer in one pass over blocks of rows that stay in the cache, by the kernels in ``cpp/``.

    qkv = linear(norm(x)); y = x + gate * dropout(linear(attention(turned qkv)))
    out = y + gate' * dropout(linear(gelu(linear(norm(y)))))

Products are in bfloat16 with float32 sums and everything else in float32, as in the same by torch; no event is padded.
Kept for the backward pass are x, the turned queries, keys and values, what attention saw, and the logarithms of its
sums; all else is made again, block by block, the masks of dropout from a seed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from constellation.kernels.dropout import drawn_seed, level
from constellation.kernels.native import call, can_work, is_plain, library

SPARE_ROWS = 8
"""Rows of zeros behind the last one: products take rows in eights."""

MOST_WIDTH = 512
"""Beyond it, weights leave the second-level cache, and the products of a library that blocks them are faster."""

NUM_WEIGHTS = 14
LAYER = "layer"


def fits(width: int, hidden: int, heads: int) -> bool:
    """Whether the kernels are made for such sizes, in whole vectors; hidden: of the feed-forward layer."""
    return width % 32 == 0 and hidden % 32 == 0 and (width // heads) % 16 == 0 and max(width, hidden) <= MOST_WIDTH


def takes(x_ND: Tensor, weights: Sequence[Tensor], heads: int) -> bool:
    """Whether these kernels can do it here: sizes that fit, plain float32 weights on a CPU, and a library for them."""
    width, hidden = x_ND.shape[1], weights[9].shape[0]
    return (
        all(is_plain(each) for each in (x_ND, *weights))
        and fits(width, hidden, heads)
        and can_work()
        and library(LAYER, width=width, hidden=hidden, heads=heads) is not None
    )


def whole_layer(
    x_ND: Tensor, turn_NP: Tensor, offsets_B: Tensor, weights: Sequence[Tensor], heads: int, dropout: float
) -> Tensor:
    """[N, D]. turn_NP: unit complex numbers of positions and times. offsets_B: int64 [B + 1], journeys end to end.

    weights: scale and shift of the norm, qkv, join, gate; scale and shift of the second norm, up, down, gate; each
    linear layer as weight and bias. dropout: 0 outside training, rounded to 1/256; one number is drawn for its masks.
    """
    drop = level(dropout)
    return _WholeLayer.apply(x_ND, turn_NP, offsets_B, heads, drop, drawn_seed(drop), *weights)  # type: ignore[no-any-return]


def kept_values(seed: int, rows: int, width: int, drop: int, *, feed: bool) -> np.ndarray:
    """Which values dropout keeps, bool [rows, width], the plain twin of the masks in ``cpp/dropout.h``.

    feed: of the feed-forward branch, else of the attention's.
    """
    stride = -(-width // 64) * 64
    counter = (np.arange(rows * stride // 8, dtype=np.uint64) + np.uint64(1)).astype(np.uint64)
    seed ^= 0xD1B54A32D192ED03 if feed else 0
    with np.errstate(over="ignore"):
        x = counter * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    kept: np.ndarray = x.view(np.uint8).reshape(rows, stride)[:, :width] >= drop
    return kept


class _WholeLayer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        turn_NP: Tensor,
        offsets_B: Tensor,
        heads: int,
        drop: int,
        seed: int,
        *weights: Tensor,
    ) -> Tensor:
        assert len(weights) == NUM_WEIGHTS and turn_NP.dtype == torch.complex64 and offsets_B.dtype == torch.int64
        assert int(offsets_B[0]) == 0 and int(offsets_B[-1]) == len(x_ND), "journeys hold every row, end to end"
        assert turn_NP.shape == (len(x_ND), x_ND.shape[1] // heads // 2), "a turn for each row and pair"
        assert offsets_B.is_contiguous() and not turn_NP.is_conj(), "a pointer says all"
        x, turn, weights = x_ND.contiguous(), turn_NP.contiguous(), tuple(each.contiguous() for each in weights)
        (num_rows, width), hidden = x.shape, len(weights[9])
        made = library(LAYER, width=width, hidden=hidden, heads=heads)
        sizes, seed_word = (num_rows, len(offsets_B) - 1, drop), ctypes.c_uint64(seed)
        qkv, seen = _with_spare(x, 3 * width), _with_spare(x, width)
        log_sums, out = x.new_empty(num_rows, heads), torch.empty_like(x)
        assert made is not None
        call(made.layer_forward, sizes, seed_word, offsets_B, x, turn, weights, qkv, seen, log_sums, out)
        ctx.save_for_backward(x, turn, offsets_B, qkv, seen, log_sums, *weights)
        ctx.made, ctx.sizes, ctx.seed = made, sizes, seed_word
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor | None, ...]:
        x, turn, offsets_B, qkv, seen, log_sums, *weights = ctx.saved_tensors
        grads = [torch.zeros_like(each) for each in weights]
        grad_x = torch.empty_like(x)
        of_qkv, of_seen = _with_spare(x, qkv.shape[1]), _with_spare(x, x.shape[1])
        grad_out = grad_ND.contiguous()
        given = (offsets_B, x, turn, weights, qkv, seen, log_sums, grad_out, grad_x, grads, of_qkv, of_seen)
        call(ctx.made.layer_backward, ctx.sizes, ctx.seed, *given)
        return grad_x, None, None, None, None, None, *grads


def _with_spare(like_ND: Tensor, width: int) -> Tensor:
    made = like_ND.new_empty(len(like_ND) + SPARE_ROWS, width, dtype=torch.bfloat16)
    made[len(like_ND) :].zero_()
    return made
