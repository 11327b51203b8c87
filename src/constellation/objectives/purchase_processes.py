"""The purchase processes that an encoder can set the four parameters of, customer by customer."""

from __future__ import annotations

import math
from typing import Protocol

from torch import Tensor, nn

from constellation.distributions.bgnbd_rows import BgNbdRows
from constellation.distributions.pareto_nbd_rows import ParetoNbdRows

START_SCALE_WEEKS = 26.0
"""Half of the customers who leave do so within some such time, until training says otherwise."""


class Rows(Protocol):
    """Records and horizons in weeks, tensors [Q]; see ``distributions.bgnbd_rows``."""

    def log_likelihood(self, x_Q: Tensor, t_x_Q: Tensor, T_Q: Tensor) -> Tensor: ...

    def p_alive(self, x_Q: Tensor, t_x_Q: Tensor, T_Q: Tensor) -> Tensor: ...

    def expected_purchases(self, x_Q: Tensor, t_x_Q: Tensor, T_Q: Tensor, h: Tensor | float) -> Tensor: ...

    def p_zero(self, x_Q: Tensor, t_x_Q: Tensor, T_Q: Tensor, h: Tensor | float) -> Tensor: ...

    def count_pmf(self, x_Q: Tensor, t_x_Q: Tensor, T_Q: Tensor, h: Tensor | float, num_counts: int) -> Tensor: ...


class Process(nn.Module):
    """Four positive parameters: shape and scale of the rate of buying, then the two of leaving."""

    def start(self, rate_per_week: float, shape: float) -> list[float]:
        """Logs of the four parameters to begin with, for customers who buy so often on average."""
        raise NotImplementedError(f"{type(self).__name__} has no start.")

    def rows(self, parameters_Q4: Tensor) -> Rows:
        raise NotImplementedError(f"{type(self).__name__} has no rows.")


class BgNbd(Process):
    """Customers may leave after any repeat purchase; with ``leaves_at_start`` after the first one too (MBG/NBD)."""

    def __init__(self, *, leaves_at_start: bool = False) -> None:
        super().__init__()
        self.flips_at_start = int(leaves_at_start)

    def start(self, rate_per_week: float, shape: float) -> list[float]:
        return [math.log(shape), math.log(shape / rate_per_week), math.log(0.8), math.log(4.0)]

    def rows(self, parameters_Q4: Tensor) -> Rows:
        return BgNbdRows(*parameters_Q4.unbind(-1), flips_at_start=self.flips_at_start)


class ParetoNbd(Process):
    """Customers may leave at any time."""

    def start(self, rate_per_week: float, shape: float) -> list[float]:
        return [math.log(shape), math.log(shape / rate_per_week), math.log(0.6), math.log(START_SCALE_WEEKS)]

    def rows(self, parameters_Q4: Tensor) -> Rows:
        return ParetoNbdRows(*parameters_Q4.unbind(-1))
