"""A causal transformer over journeys: pre-norm, gated residual branches, attention that knows positions and days."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from constellation.encoders.attention import Spans, causal_attention, turns
from constellation.encoders.base import Encoder
from constellation.encoders.events import EMBEDDING_STD, EventEmbedding
from constellation.errors import InputError
from constellation.kernels import products
from constellation.kernels.compiled import row_wise
from constellation.kernels.products import linear
from constellation.kernels.residual import GATE_START, gated_residual
from constellation.kernels.whole_layer import fits, takes, whole_layer

if TYPE_CHECKING:
    from constellation.journeys.batch import JourneyBatch
    from constellation.journeys.vocabulary import Vocabulary


class Transformer(Encoder):
    """Everything but the attention itself runs on the N ragged rows.

    width: D. layers: 1 to 16 train without tuning. heads: must divide ``width`` into even parts, at least 4 wide.
    expansion: width of the feed-forward layer over D.
    positions: also learn a vector for each of the first so many places of a journey, as SASRec does (Kang and McAuley
    2018); later places share the last. 0 leaves only distances, which attention knows anyway.
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
        positions: int = 0,
    ) -> None:
        super().__init__()
        if heads < 1 or width % heads or (width // heads) % 2 or width // heads < 4:
            raise InputError(
                f"The transformer needs heads of an even width of at least 4, found width={width} and heads={heads}. "
                "Choose a width that is a multiple of 2 x heads."
            )
        self.width, self.head_width, self.has_clock = width, width // heads, vocabulary.has_clock
        self.events = EventEmbedding(vocabulary, width, dropout=dropout)
        self.positions = nn.Embedding(positions, width) if positions else None
        if self.positions is not None:
            nn.init.normal_(self.positions.weight, std=EMBEDDING_STD)
        self.norm_in = nn.LayerNorm(width)
        self.layers = nn.ModuleList(Layer(width, heads, expansion * width, dropout) for _ in range(layers))
        self.norm_out = nn.LayerNorm(width)
        self._fits = fits(width, expansion * width, heads)

    @property
    def has_whole_layers(self) -> bool:
        return self._fits

    def forward(self, batch: JourneyBatch) -> Tensor:
        events_ND = self.events(batch)
        if self.positions is not None:
            place_N = batch.position_N.clamp(max=self.positions.num_embeddings - 1)
            events_ND = events_ND + self.positions(place_N)
        states_ND = self.norm_in(events_ND)
        if len(states_ND):
            spans, turn_NP = Spans(batch), turns(batch, self.head_width, time=self.has_clock)
            for layer in self.layers:
                states_ND = layer(states_ND, spans, turn_NP)
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
        self.dropout = float(dropout)

    def forward(self, x_ND: Tensor, spans: Spans, turn_NP: Tensor) -> Tensor:
        if products.is_fused() and takes(x_ND, weights := self.weights(), self.heads):
            drop = self.dropout if self.training else 0.0
            return whole_layer(x_ND, turn_NP, spans.offsets_B, weights, self.heads, drop)
        qkv_NG = normed_linear(x_ND, *_both(self.norm_attend), *_both(self.qkv))
        seen_ND = causal_attention(qkv_NG, turn_NP, spans, self.heads)
        return joined_and_fed(
            x_ND,
            seen_ND,
            *_both(self.join),
            self.gate_attend_D,
            *_both(self.norm_feed),
            *_both(self.up),
            *_both(self.down),
            self.gate_feed_D,
            self.dropout if self.training else 0.0,
        )

    def weights(self) -> list[Tensor]:
        """In the order of ``kernels/whole_layer.py``."""
        attend = (*_both(self.norm_attend), *_both(self.qkv), *_both(self.join), self.gate_attend_D)
        return [*attend, *_both(self.norm_feed), *_both(self.up), *_both(self.down), self.gate_feed_D]


def _both(layer: nn.Module) -> tuple[Tensor, Tensor]:
    return layer.weight, layer.bias  # type: ignore[return-value]


@row_wise
def normed_linear(x_ND: Tensor, scale_D: Tensor, shift_D: Tensor, weight_OD: Tensor, bias_O: Tensor) -> Tensor:
    """linear(norm(x)), [N, O]."""
    return linear(functional.layer_norm(x_ND, scale_D.shape, scale_D, shift_D), weight_OD, bias_O)


@row_wise
def joined_and_fed(
    x_ND: Tensor,
    seen_ND: Tensor,
    join_DD: Tensor,
    join_D: Tensor,
    gate_attend_D: Tensor,
    scale_D: Tensor,
    shift_D: Tensor,
    up_HD: Tensor,
    up_H: Tensor,
    down_DH: Tensor,
    down_D: Tensor,
    gate_feed_D: Tensor,
    drop: float,
) -> Tensor:
    """What a layer does after its attention ``seen_ND``: the one branch is added, the other made and added."""
    x_ND = gated_residual(x_ND, linear(seen_ND, join_DD, join_D), gate_attend_D, drop)
    normed_ND = functional.layer_norm(x_ND, scale_D.shape, scale_D, shift_D)
    hidden = functional.gelu(linear(normed_ND, up_HD, up_H))
    return gated_residual(x_ND, linear(hidden, down_DH, down_D), gate_feed_D, drop)
