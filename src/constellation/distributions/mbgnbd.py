"""MBG/NBD: as BG/NBD, but a customer may also leave right after the first purchase.

Batislam, Denizel, Filiztekin (2007), "Empirical validation and comparison of models for customer base analysis"; Hoppe
and Wagner (2007) call it the central variant. BG/NBD holds everybody without a repeat purchase for alive for ever; here
their number falls with silence as everybody else's does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from constellation.distributions.bgnbd import BgNbd


@dataclass(frozen=True)
class MbgNbd(BgNbd):
    """Parameters, arguments and answers as ``BgNbd``; each record has had x + 1 chances to leave instead of x."""

    flips_at_start: ClassVar[int] = 1
