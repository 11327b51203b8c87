"""HSTU: attention by SiLU instead of softmax, with learned biases of relative position and relative time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from constellation.encoders.attention import Spans
from constellation.encoders.base import Encoder
from constellation.encoders.events import EMBEDDING_STD, EventEmbedding
from constellation.errors import InputError
from constellation.kernels import products
from constellation.kernels.products import linear
from constellation.kernels.residual import GATE_START, gated_residual

if TYPE_CHECKING:
    from constellation.journeys.batch import JourneyBatch
    from constellation.journeys.vocabulary import Vocabulary
    from constellation.kernels.bands import Bands

EXACT_DISTANCES = 16
STEPS_PER_DOUBLING = 4
NUM_DISTANCES = EXACT_DISTANCES + 9 * STEPS_PER_DOUBLING + 1
"""Distances up to 15 events have a bias each, further ones four per doubling, up to 8,192."""

NUM_TIMES = 32
"""One bias for each doubling of the seconds between two events: 2^31 seconds are 68 years."""

QUERY_BLOCK = 256
"""Longer journeys take their queries so many at a time and make the scores again in the backward pass, so that memory
grows with the length and not with its square."""

COPIES = 1024
"""Of a table of biases on a GPU, so that sums into one cell seldom wait for each other."""


class Hstu(Encoder):
    """Hierarchical sequential transduction units (Zhai et al. 2024, section 3) on ragged rows.

    Each layer makes U, V, Q, K = SiLU(linear(norm(x))), sums V over the past with weights SiLU(Q K + bias) that do not
    compete with each other, and returns x + gate * linear(norm(sum) * U). Times are those of the two events, never of
    the event to be predicted. Here the sum is divided by the number of events in it, which the norm after it undoes up
    to its epsilon, so that padding cannot matter; and branches are gated, so that deep stacks train.

    width: D. heads: must divide ``width``.
    """

    def __init__(
        self, vocabulary: Vocabulary, *, width: int, layers: int = 2, heads: int = 2, dropout: float = 0.1
    ) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise InputError(f"The hstu encoder needs heads that divide its width, found {heads} and {width}.")
        self.width, self.has_clock = width, vocabulary.has_clock
        self.events = EventEmbedding(vocabulary, width, dropout=dropout)
        self.norm_in = nn.LayerNorm(width)
        self.layers = nn.ModuleList(_Layer(width, heads, dropout, self.has_clock) for _ in range(layers))
        self.norm_out = nn.LayerNorm(width)

    def forward(self, batch: JourneyBatch) -> Tensor:
        states_ND = self.norm_in(self.events(batch))
        if len(states_ND):
            bands = Spans(batch).bands
            for layer in self.layers:
                states_ND = layer(states_ND, batch.time_N, bands)
        return self.norm_out(states_ND)


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float, has_clock: bool) -> None:
        super().__init__()
        self.heads, self.dropout = heads, float(dropout)
        self.norm, self.norm_sum = nn.LayerNorm(width), nn.LayerNorm(width)
        self.uvqk, self.join = nn.Linear(width, 4 * width), nn.Linear(width, width)
        self.of_distance_PH = nn.Parameter(torch.randn(NUM_DISTANCES, heads) * EMBEDDING_STD)
        self.of_time_TH = nn.Parameter(torch.randn(NUM_TIMES, heads) * EMBEDDING_STD) if has_clock else None
        self.gate_D = nn.Parameter(torch.full((width,), GATE_START))

    def forward(self, x_ND: Tensor, time_N: Tensor, bands: Bands) -> Tensor:
        uvqk_NG = functional.silu(linear(self.norm(x_ND), self.uvqk.weight, self.uvqk.bias).float())
        u_ND, vqk_NG = uvqk_NG.split([x_ND.shape[1], 3 * x_ND.shape[1]], dim=1)
        vqk_N3HD = vqk_NG.unflatten(1, (3, self.heads, -1))
        sums = [self._band(vqk_N3HD, time_N, rows) for rows in bands.rows]
        sum_ND = torch.cat(sums).index_select(0, bands.place_N)
        branch_ND = linear(self.norm_sum(sum_ND) * u_ND, self.join.weight, self.join.bias)
        return gated_residual(x_ND, branch_ND, self.gate_D, self.dropout if self.training else 0.0)

    def _band(self, vqk_N3HD: Tensor, time_N: Tensor, rows: Tensor) -> Tensor:
        """Weighted sums of the values, [journeys * length, D]."""
        low = torch.bfloat16 if rows.device.type == "cpu" and products.current() == products.BFLOAT16 else None
        band = vqk_N3HD.index_select(0, rows.flatten()).unflatten(0, tuple(rows.shape)).permute(2, 0, 3, 1, 4)
        v, q, k = (band if low is None else band.to(low)).unbind(0)  # each [journeys, heads, length, head width]
        time_BL = time_N.index_select(0, rows.flatten()).view(rows.shape)
        length = rows.shape[1]
        if length <= QUERY_BLOCK:
            sums = self._weighted(q, k, v, time_BL, 0)
        else:
            sums = torch.cat(
                [
                    checkpoint(
                        self._weighted,
                        q[:, :, start : start + QUERY_BLOCK],
                        k[:, :, : start + QUERY_BLOCK],
                        v[:, :, : start + QUERY_BLOCK],
                        time_BL[:, : start + QUERY_BLOCK],
                        start,
                        use_reentrant=False,
                    )
                    for start in range(0, length, QUERY_BLOCK)
                ],
                dim=2,
            )
        return sums.transpose(1, 2).flatten(2).flatten(0, 1)

    def _weighted(self, q: Tensor, k: Tensor, v: Tensor, time_BL: Tensor, start: int) -> Tensor:
        """Queries ``start, start + 1, ...`` over keys ``0, 1, ...``; float32 [journeys, heads, queries, head width]."""
        query = torch.arange(start, start + q.shape[2], device=q.device).unsqueeze(1)
        distance_QK = query - torch.arange(k.shape[2], device=q.device)
        bias = looked_up(self.of_distance_PH, distance_bucket(distance_QK))
        scores = (q @ k.transpose(2, 3)).float() * q.shape[3] ** -0.5 + bias
        if self.of_time_TH is not None:
            elapsed_BQK = time_BL[:, start : start + q.shape[2], None] - time_BL[:, None, :]
            scores = scores + looked_up(self.of_time_TH, time_bucket(elapsed_BQK)).transpose(0, 1)
        weights = functional.silu(scores).masked_fill(distance_QK < 0, 0.0) / (query + 1)
        return (weights.to(v.dtype) @ v).float()


def looked_up(table_TH: Tensor, bucket: Tensor) -> Tensor:
    """[H, *bucket.shape]: ``table_TH[bucket]`` with the heads in front."""
    return _LookedUp.apply(table_TH, bucket)  # type: ignore[no-any-return]


class _LookedUp(torch.autograd.Function):
    """An embedding whose gradient is a histogram: torch's own adds millions of rows to a few dozen one by one."""

    @staticmethod
    def forward(ctx: Any, table_TH: Tensor, bucket: Tensor) -> Tensor:
        ctx.save_for_backward(bucket)
        ctx.num_buckets = len(table_TH)
        return table_TH.t().contiguous().index_select(1, bucket.flatten()).view(-1, *bucket.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (bucket,) = ctx.saved_tensors
        flat = bucket.flatten()
        if flat.device.type != "cpu":
            return _spread_sums(grad.flatten(1).t(), flat, ctx.num_buckets), None
        sums = [torch.bincount(flat, weights=head.flatten(), minlength=ctx.num_buckets) for head in grad]
        return torch.stack(sums, dim=1).to(grad.dtype), None


def _spread_sums(grad_MH: Tensor, bucket_M: Tensor, num_buckets: int) -> Tensor:
    """[num_buckets, H], the sums of the rows of each bucket, without asking the device for anything.

    Into many copies of the table, which are then added: on one, millions of rows would queue for a few dozen cells.
    """
    copy_M = torch.arange(len(bucket_M), device=bucket_M.device) % COPIES
    tables = grad_MH.new_zeros(COPIES * num_buckets, grad_MH.shape[1])
    tables.index_add_(0, copy_M * num_buckets + bucket_M, grad_MH)
    return tables.view(COPIES, num_buckets, -1).sum(0)


def distance_bucket(distance: Tensor) -> Tensor:
    """0 to 15 as they are, then four buckets per doubling; what lies ahead is masked anyway and goes to 0."""
    far = (distance.clamp(min=EXACT_DISTANCES).double() / EXACT_DISTANCES).log2() * STEPS_PER_DOUBLING
    bucket = torch.where(distance < EXACT_DISTANCES, distance, EXACT_DISTANCES + far.long())
    return bucket.clamp(0, NUM_DISTANCES - 1)


def time_bucket(elapsed: Tensor) -> Tensor:
    """log2 of the seconds in ``elapsed`` microseconds, from 0 for less than one."""
    seconds = elapsed.clamp(min=0).double() / 1e6
    return seconds.clamp(min=1.0).log2().long().clamp(max=NUM_TIMES - 1)
