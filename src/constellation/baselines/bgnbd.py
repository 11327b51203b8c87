"""BG/NBD with Gamma-Gamma."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from torch import Tensor

from constellation.baselines.buy_till_you_die import BuyTillYouDie, ProcessRows
from constellation.distributions.bgnbd import BgNbd
from constellation.distributions.bgnbd_rows import BgNbdRows


class BgNbdGammaGamma(BuyTillYouDie):
    """Customers may leave after any repeat purchase (Fader, Hardie, Lee 2005). See ``BuyTillYouDie``."""

    name = "bgnbd"
    effects = ((1, -1.0), (2, 1.0), (3, 1.0))
    family: ClassVar[type[BgNbd]] = BgNbd

    def _fit_process(self, x_C: np.ndarray, t_x_C: np.ndarray, T_C: np.ndarray) -> Sequence[float]:
        fitted = self.family.fit(x_C, t_x_C, T_C)
        return fitted.r, fitted.alpha, fitted.a, fitted.b

    def _rows(self, parameters_GP: Tensor) -> ProcessRows:
        return BgNbdRows(*parameters_GP.unbind(1), flips_at_start=self.family.flips_at_start)
