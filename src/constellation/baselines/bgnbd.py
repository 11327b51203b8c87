"""BG/NBD with Gamma-Gamma."""

from __future__ import annotations

import numpy as np

from constellation.baselines.buy_till_you_die import BuyTillYouDie, PurchaseProcess
from constellation.distributions.bgnbd import BgNbd


class BgNbdGammaGamma(BuyTillYouDie):
    """Customers may leave after any purchase (Fader, Hardie, Lee 2005). See ``BuyTillYouDie``."""

    name = "bgnbd"

    def _fit_process(self, x_C: np.ndarray, t_x_C: np.ndarray, T_C: np.ndarray) -> PurchaseProcess:
        return BgNbd.fit(x_C, t_x_C, T_C)
