"""A causal transformer over journeys: pre-norm, gated residual branches, attention that knows positions and days."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from constellation.encoders.attention import Bands, Rotation, bands_of, ragged_causal_attention
from constellation.encoders.base import Encoder
from constellation.encoders.events import EventEmbedding
from constellation.errors import InputError

if TYPE_CHECKING:
    from constellation.journeys.batch import JourneyBatch
    from constellation.journeys.vocabulary import Vocabulary

GATE_START = 0.1
"""Near zero, so that 16 layers start close to the identity; not zero, or a branch would see no gradient at first."""


class Transformer(Encoder):
    """Everything but the attention itself runs on the N ragged rows.

    width: D. layers: 1 to 16 train without tuning. heads: must divide ``width`` into even parts, at least 4 wide.
    expansion: width of the feed-forward layer over D.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        width: int,
        layers: int = 2,
        heads: int = 2,
        expansion: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if heads < 1 or width % heads or (width // heads) % 2 or width // heads < 4:
            raise InputError(
                f"The transformer needs heads of an even width of at least 4, found width={width} and heads={heads}. "
                "Choose a width that is a multiple of 2 x heads."
            )
        self.width, self.head_width = width, width // heads
        self.events = EventEmbedding(vocabulary, width, dropout=dropout)
        self.norm_in = nn.LayerNorm(width)
        self.layers = nn.ModuleList(Layer(width, heads, expansion * width, dropout) for _ in range(layers))
        self.norm_out = nn.LayerNorm(width)

    def forward(self, batch: JourneyBatch) -> Tensor:
        states_ND = self.norm_in(self.events(batch))
        if len(states_ND):
            bands, rotation = bands_of(batch), Rotation(batch, self.head_width)
            for layer in self.layers:
                states_ND = layer(states_ND, bands, rotation)
        return self.norm_out(states_ND)


class Layer(nn.Module):
    """x + gate * attention(norm(x)), then x + gate * feed_forward(norm(x)); one gate per channel."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attend, self.norm_feed = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.join = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.gate_attend_D = nn.Parameter(torch.full((width,), GATE_START))
        self.gate_feed_D = nn.Parameter(torch.full((width,), GATE_START))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_ND: Tensor, bands: Bands, rotation: Rotation) -> Tensor:
        q_NHD, k_NHD, v_NHD = self.qkv(self.norm_attend(x_ND)).unflatten(-1, (3, self.heads, -1)).unbind(1)
        seen_ND = ragged_causal_attention(rotation(q_NHD), rotation(k_NHD), v_NHD, bands).flatten(1)
        x_ND = x_ND + self.gate_attend_D * self.dropout(self.join(seen_ND))
        hidden = functional.gelu(self.up(self.norm_feed(x_ND)))
        return x_ND + self.gate_feed_D * self.dropout(self.down(hidden))
