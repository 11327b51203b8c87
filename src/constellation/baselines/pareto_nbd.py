"""Pareto/NBD with Gamma-Gamma."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from constellation.baselines.buy_till_you_die import BuyTillYouDie, ProcessRows
from constellation.distributions.pareto_nbd import ParetoNbd
from constellation.distributions.pareto_nbd_rows import ParetoNbdRows


class ParetoNbdGammaGamma(BuyTillYouDie):
    """Customers may leave at any time (Schmittlein, Morrison, Colombo 1987). See ``BuyTillYouDie``."""

    name = "pareto_nbd"
    effects = ((1, -1.0), (3, -1.0))

    def _fit_process(self, x_C: np.ndarray, t_x_C: np.ndarray, T_C: np.ndarray) -> Sequence[float]:
        fitted = ParetoNbd.fit(x_C, t_x_C, T_C)
        return fitted.r, fitted.alpha, fitted.s, fitted.beta

    def _rows(self, parameters_GP: Tensor) -> ProcessRows:
        return ParetoNbdRows(*parameters_GP.unbind(1))
