"""Causal attention within each journey of a ragged batch, and the rotation that tells it position and time.

The only place that pads: journeys are grouped in bands of similar length, each padded to one of a few lengths. Padding
stands after the last event, where a causal query never looks, so no mask is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from constellation.journeys.store import MICROSECONDS_PER_DAY

if TYPE_CHECKING:
    from constellation.journeys.batch import JourneyBatch

SHORTEST_BAND = 8
TIME_PERIODS_DAYS = (2.0, 2000.0)
POSITION_BASE = 10_000.0


@dataclass
class Bands:
    """rows: per band [journeys, padded length], the batch row at each place (padding repeats the last row).
    place_N: where each row of the batch lies in the bands laid end to end."""

    rows: list[Tensor]
    place_N: Tensor


def bands_of(batch: JourneyBatch) -> Bands:
    """Group the journeys by padded length. Reads the lengths on the host: once per batch, not once per layer."""
    device = batch.lengths_B.device
    lengths_B = batch.lengths_B.cpu().numpy()
    offsets_B = batch.offsets_B.cpu().numpy()[:-1]
    padded_B = padded_length(lengths_B)
    rows, start_B, used = [], np.zeros(len(lengths_B), dtype=np.int64), 0
    for length in np.unique(padded_B[lengths_B > 0]):
        members = np.flatnonzero((padded_B == length) & (lengths_B > 0))
        step = np.minimum(np.arange(length), lengths_B[members, None] - 1)
        rows.append(torch.from_numpy(offsets_B[members, None] + step).to(device))
        start_B[members] = used + np.arange(len(members)) * length
        used += len(members) * int(length)
    return Bands(rows, torch.from_numpy(start_B).to(device)[batch.journey_N] + batch.position_N)


def padded_length(lengths: np.ndarray) -> np.ndarray:
    """The next of 8, 12, 16, 24, 32, 48, 64, 96 ...: at most a third is padding, and shapes repeat between batches."""
    lengths = np.maximum(lengths, SHORTEST_BAND)
    power = 2 ** np.ceil(np.log2(lengths)).astype(np.int64)
    return np.where(lengths <= power * 3 // 4, power * 3 // 4, power)


def ragged_causal_attention(q_NHD: Tensor, k_NHD: Tensor, v_NHD: Tensor, bands: Bands) -> Tensor:
    """Softmax attention of every event over its own journey up to itself; rows, heads and width as ``v_NHD``.

    In float32 on the CPU: the backward pass of torch's CPU kernel is two to eight times slower in bfloat16.
    """
    if len(q_NHD) == 0:
        return v_NHD
    kind = q_NHD.device.type
    outputs = []
    with torch.autocast(kind, enabled=torch.is_autocast_enabled(kind) and kind != "cpu"):
        for rows in bands.rows:
            q, k, v = (each[rows].transpose(1, 2) for each in (q_NHD, k_NHD, v_NHD))
            if kind == "cpu":
                q, k, v = q.float(), k.float(), v.float()
            output = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            outputs.append(output.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)[bands.place_N].to(v_NHD.dtype)


class Rotation:
    """Rotary embedding (Su et al. 2021) of position and of time, for heads of ``head_width``.

    Half of the pairs of dimensions turn with the position, half with the days since the journey began, at periods from
    2 to 2000 days; a query and a key then see only their distance in events and in days, without a matrix of biases.
    Angles are taken in float64: 2000 days at the fastest turn leave float32 too few digits.
    """

    def __init__(self, batch: JourneyBatch, head_width: int) -> None:
        pairs = head_width // 2
        num_time = pairs // 2
        device = batch.time_N.device
        place = torch.arange(pairs - num_time, dtype=torch.float64, device=device) / max(pairs - num_time, 1)
        by_position = batch.position_N.double().unsqueeze(1) * POSITION_BASE**-place
        first_N = batch.offsets_B[batch.journey_N]
        days_N1 = (batch.time_N - batch.time_N[first_N]).double().unsqueeze(1) / MICROSECONDS_PER_DAY
        shortest, longest = TIME_PERIODS_DAYS
        place = torch.arange(num_time, dtype=torch.float64, device=device) / max(num_time - 1, 1)
        by_time = days_N1 * (2 * torch.pi / (shortest * (longest / shortest) ** place))
        angle_N1P = torch.cat([by_position, by_time], dim=1).unsqueeze(1)
        self.cos_N1P, self.sin_N1P = angle_N1P.cos().float(), angle_N1P.sin().float()

    def __call__(self, heads_NHD: Tensor) -> Tensor:
        """The same shape, each pair of dimensions (d, d + D/2) turned by its row's angle."""
        left, right = heads_NHD.chunk(2, dim=-1)
        cos, sin = self.cos_N1P.to(heads_NHD.dtype), self.sin_N1P.to(heads_NHD.dtype)
        return torch.cat([left * cos - right * sin, left * sin + right * cos], dim=-1)
