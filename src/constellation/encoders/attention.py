"""What attention is told of position and time, and the way to the fastest attention for a batch on its device."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from constellation.journeys.packing import to_device
from constellation.journeys.store import MICROSECONDS_PER_DAY
from constellation.kernels import products
from constellation.kernels.attention import banded_attention, reference_attention, varlen_attention
from constellation.kernels.bands import Bands
from constellation.kernels.bands import bands_of as bands_of_lengths

if TYPE_CHECKING:
    from constellation.journeys.batch import JourneyBatch

TIME_PERIODS_DAYS = (2.0, 2000.0)
POSITION_BASE = 10_000.0


class Spans:
    """Where the journeys of a batch lie, in the form each kernel wants; made once per batch, when first asked for."""

    def __init__(self, batch: JourneyBatch) -> None:
        self._batch, self.max_length = batch, batch.max_length

    @cached_property
    def bands(self) -> Bands:
        """Journeys grouped by padded length, laid out on the host and brought to the device in one copy."""
        device = self._batch.lengths_B.device
        bands = bands_of_lengths(self._batch.lengths_on_host, torch.device("cpu"))
        if device.type == "cpu":
            return bands
        rows, place_N, pads_P = to_device((tuple(bands.rows), bands.place_N, bands.pads_P), device)
        return Bands(list(rows), place_N, pads_P)

    @cached_property
    def offsets(self) -> Tensor:
        """[B + 1] int32, on the device of the batch."""
        return self.offsets_B.to(torch.int32)

    @property
    def offsets_B(self) -> Tensor:
        """[B + 1] int64."""
        return self._batch.offsets_B


def causal_attention(qkv_NG: Tensor, turn_NP: Tensor, spans: Spans, heads: int) -> Tensor:
    """Softmax attention of every event over its own journey up to itself, [N, D], in the type of ``qkv_NG``.

    qkv_NG: queries, keys and values side by side [N, 3 D]. turn_NP: see :func:`turns`. On a CPU our own kernel where
    the products run in bfloat16, for torch's backward pass is slow there. On a GPU in half precision the flash kernel
    for ragged rows. Else torch's kernel for padded rows, band by band.
    """
    if len(qkv_NG) == 0:
        return qkv_NG[:, : qkv_NG.shape[1] // 3]
    if qkv_NG.device.type == "cpu" and products.current() == products.BFLOAT16:
        return banded_attention(qkv_NG.bfloat16(), turn_NP, spans.bands, heads)
    if has_varlen_kernel(qkv_NG, heads):
        return varlen_attention(qkv_NG, turn_NP, spans.offsets, spans.max_length, heads)
    return reference_attention(qkv_NG, turn_NP, spans.bands, heads)


def has_varlen_kernel(qkv_NG: Tensor, heads: int) -> bool:
    """The flash kernel is for CUDA devices from compute capability 8.0, half precision, heads of 8 to 256 by 8."""
    head_width = qkv_NG.shape[1] // (3 * heads)
    return (
        qkv_NG.device.type == "cuda"
        and torch.version.hip is None
        and qkv_NG.dtype in (torch.bfloat16, torch.float16)
        and head_width % 8 == 0
        and head_width <= 256
        and torch.cuda.get_device_capability(qkv_NG.device) >= (8, 0)
    )


def turns(batch: JourneyBatch, head_width: int, *, time: bool = True) -> Tensor:
    """Rotary embedding (Su et al. 2021) of position and of time: unit complex numbers [N, head_width / 2].

    Half of the pairs of dimensions turn with the position, half with the days since the journey began, at periods from
    2 to 2000 days; a query and a key then see only their distance in events and in days, without a matrix of biases.
    Without ``time`` all turn with the position. Turns are counted in float64, where 2000 days at the fastest keep their
    digits, and whole ones dropped.
    """
    pairs = head_width // 2
    num_time = pairs // 2 if time else 0
    device = batch.time_N.device
    place = torch.arange(pairs - num_time, dtype=torch.float64, device=device) / max(pairs - num_time, 1)
    steps = torch.arange(batch.max_length, dtype=torch.float64, device=device).unsqueeze(1)
    by_step = _unit((steps * POSITION_BASE**-place) % (2 * torch.pi))
    turn_NP = by_step.index_select(0, batch.position_N)
    if num_time:
        first_N = batch.offsets_B.index_select(0, batch.journey_N)
        days_N1 = (batch.time_N - batch.time_N.index_select(0, first_N)).double().unsqueeze(1) / MICROSECONDS_PER_DAY
        shortest, longest = TIME_PERIODS_DAYS
        place = torch.arange(num_time, dtype=torch.float64, device=device) / max(num_time - 1, 1)
        turned_NP = days_N1 / (shortest * (longest / shortest) ** place)
        turn_NP = torch.cat([turn_NP, _unit(turned_NP.frac() * (2 * torch.pi))], dim=1)
    return turn_NP


def _unit(angle: Tensor) -> Tensor:
    angle = angle.float()
    return torch.polar(torch.ones_like(angle), angle)
