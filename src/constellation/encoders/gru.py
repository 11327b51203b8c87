"""Gated recurrent units over packed journeys: no padding, each step works on the journeys that are still running."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from constellation.encoders.base import Encoder
from constellation.encoders.events import EventEmbedding

if TYPE_CHECKING:
    from constellation.journeys.batch import JourneyBatch
    from constellation.journeys.vocabulary import Vocabulary


class Gru(Encoder):
    """Cho et al. (2014), ``layers`` deep, layer norm before and after; ragged rows in, ragged rows out."""

    def __init__(self, vocabulary: Vocabulary, *, width: int, layers: int = 2, dropout: float = 0.1) -> None:
        super().__init__()
        self.width = width
        self.events = EventEmbedding(vocabulary, width, dropout=dropout)
        self.norm = nn.LayerNorm(width)
        self.recurrent = nn.GRU(width, width, num_layers=layers, dropout=dropout if layers > 1 else 0.0)
        self.norm_out = nn.LayerNorm(width)

    def forward(self, batch: JourneyBatch) -> Tensor:
        events_ND = self.norm(self.events(batch))
        if len(events_ND) == 0:
            return self.norm_out(events_ND)
        order_N, place_N, batch_sizes = packed_order(batch)
        hidden, _ = self.recurrent(PackedSequence(events_ND[order_N], batch_sizes))
        return self.norm_out(hidden.data[place_N] + events_ND)


def packed_order(batch: JourneyBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Rows in the order of a PackedSequence: by position, within a position longest journey first.

    Returns order_N (packed -> ragged row), place_N (ragged row -> packed) and batch_sizes, the number of journeys still
    running at each position, on the host because torch wants it there.
    """
    longest_first_B = torch.argsort(batch.lengths_B, descending=True, stable=True)
    rank_B = torch.empty_like(longest_first_B)
    rank_B[longest_first_B] = torch.arange(len(rank_B), device=rank_B.device)
    order_N = torch.argsort(batch.position_N * len(rank_B) + rank_B[batch.journey_N])
    place_N = torch.empty_like(order_N)
    place_N[order_N] = torch.arange(len(order_N), device=order_N.device)
    # Of journeys of length l one runs at each of the positions 0 .. l - 1.
    ends = np.bincount(batch.lengths_on_host, minlength=2)[1:]
    return order_N, place_N, torch.from_numpy(ends[::-1].cumsum()[::-1].copy())
