"""Pareto/NBD with Gamma-Gamma."""

from __future__ import annotations

import numpy as np

from constellation.baselines.buy_till_you_die import BuyTillYouDie, PurchaseProcess
from constellation.distributions.pareto_nbd import ParetoNbd


class ParetoNbdGammaGamma(BuyTillYouDie):
    """Customers may leave at any time (Schmittlein, Morrison, Colombo 1987). See ``BuyTillYouDie``."""

    name = "pareto_nbd"

    def _fit_process(self, x_C: np.ndarray, t_x_C: np.ndarray, T_C: np.ndarray) -> PurchaseProcess:
        return ParetoNbd.fit(x_C, t_x_C, T_C)
