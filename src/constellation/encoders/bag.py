"""The order-blind encoder: how often what happened, not in which order. The control for every sequence model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from constellation.encoders.base import Encoder
from constellation.encoders.events import EventEmbedding

if TYPE_CHECKING:
    from constellation.journeys.batch import JourneyBatch
    from constellation.journeys.vocabulary import Vocabulary


class Bag(Encoder):
    """Running mean of the event vectors up to and with each event, and their number, through a residual MLP.

    Event vectors are plain sums of fields and the mean is taken before anything non-linear, so what two events carry
    may change places without changing the state after both.
    """

    def __init__(self, vocabulary: Vocabulary, *, width: int, layers: int = 2, dropout: float = 0.1) -> None:
        super().__init__()
        self.width = width
        self.events = EventEmbedding(vocabulary, width)
        self.norm = nn.LayerNorm(width)
        self.enter = nn.Linear(width + 1, width)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, 2 * width),
                nn.GELU(),
                nn.Linear(2 * width, width),
                nn.Dropout(dropout),
            )
            for _ in range(layers)
        )
        self.norm_out = nn.LayerNorm(width)

    def forward(self, batch: JourneyBatch) -> Tensor:
        mean_ND = running_mean(self.events(batch), batch.offsets_B, batch.journey_N, batch.position_N)
        count_N1 = torch.log1p(batch.position_N.to(mean_ND.dtype) + 1.0).unsqueeze(1)
        states_ND = self.enter(torch.cat([self.norm(mean_ND), count_N1 / 3.0], dim=1))
        for layer in self.layers:
            states_ND = states_ND + layer(states_ND)
        return self.norm_out(states_ND)


def running_mean(events_ND: Tensor, offsets_B: Tensor, journey_N: Tensor, position_N: Tensor) -> Tensor:
    """Mean of the rows of the same journey up to and with each row, [N, D] in the dtype of ``events_ND``.

    One cumulative sum over the whole batch, less what stood before the journey. In float64: in float32 the sum of a
    hundred thousand rows has lost the digits of a single journey.
    """
    sum_ND = torch.cumsum(events_ND.double(), dim=0)
    before_ND = torch.cat([torch.zeros_like(sum_ND[:1]), sum_ND])[offsets_B[journey_N]]
    return ((sum_ND - before_ND) / (position_N + 1).unsqueeze(1)).to(events_ND.dtype)
