"""MBG/NBD with Gamma-Gamma."""

from __future__ import annotations

from typing import ClassVar

from constellation.baselines.bgnbd import BgNbdGammaGamma
from constellation.distributions.bgnbd import BgNbd
from constellation.distributions.mbgnbd import MbgNbd


class MbgNbdGammaGamma(BgNbdGammaGamma):
    """Customers may leave after any purchase, the first included (Batislam and others 2007). See ``BuyTillYouDie``."""

    name = "mbgnbd"
    family: ClassVar[type[BgNbd]] = MbgNbd
