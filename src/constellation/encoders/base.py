"""What every encoder is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from constellation.journeys.batch import JourneyBatch


class Encoder(nn.Module):
    """``JourneyBatch -> states_ND``, causal: row n knows its own event and the earlier events of its own journey.

    ``width`` is D. A subclass takes the vocabulary first and its own sizes as keywords; nothing is registered:
    one file here, one YAML in ``configs/encoder``.
    """

    width: int

    @property
    def has_whole_layers(self) -> bool:
        """Whether ``kernels/whole_layer.py`` does its layers where products are ``fused``; else torch does them."""
        return False

    def forward(self, batch: JourneyBatch) -> Tensor:
        """States [N, width] in the order of the events of the batch."""
        raise NotImplementedError(f"{type(self).__name__} has no forward.")
