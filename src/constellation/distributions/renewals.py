"""How many purchase days come, from when the next comes and how far apart they lie: a renewal process in whole days.

With ``f`` the distribution of the wait for the first day and ``g`` that of the gaps, generating functions ``F`` and
``G`` in ``z``: expected days on day n are the coefficients of ``F / (1 - G)``, and P(at least k by day h) is
coefficient h of ``F G^(k-1) / (1 - z)`` (Feller 1968, chapter XIII). Products of power series are products
on a circle in the complex plane; on one of radius below 1 what wraps around dies away.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

WRAPPED = 1e-8
"""What is left of a coefficient that wraps around; the same factor times 1e-16 is lost to rounding."""

LEAST_TAIL = 1e-4
"""A table of counts ends where so little probability lies beyond it for every customer."""


class Renewals:
    """survival_first_QD, survival_gap_QD: P(not yet by the end of day 0 .. D), ``[:, 0]`` = 1; float64 is used."""

    def __init__(self, survival_first_QD: Tensor, survival_gap_QD: Tensor) -> None:
        self.num_days = survival_first_QD.shape[-1] - 1
        self.survival_first_QD = survival_first_QD.double()
        self.size = 1 << self.num_days.bit_length()
        place = torch.arange(self.size, dtype=torch.float64, device=survival_first_QD.device)
        self.radius_M = WRAPPED ** (place / self.size)
        self.first_QF = self._transform(self.survival_first_QD)
        self.gap_QF = self._transform(survival_gap_QD.double())

    def _transform(self, survival_QD: Tensor) -> Tensor:
        """[Q, M / 2 + 1], the generating function of the days on the circle, from their survival."""
        mass_QD = torch.nn.functional.pad(survival_QD[:, :-1] - survival_QD[:, 1:], (1, 0))
        return torch.fft.rfft(mass_QD * self.radius_M[: self.num_days + 1], n=self.size)

    def expected_per_day(self) -> Tensor:
        """[Q, D + 1], expected purchase days on each day; on day 0, the cutoff's, none."""
        return self._coefficients(self.first_QF / (1 - self.gap_QF))

    def expected(self) -> Tensor:
        """[Q, D + 1], expected purchase days by the end of each day."""
        return self.expected_per_day().cumsum(-1)

    def count_pmf(self, days: int) -> Tensor:
        """[Q, M], P(so many purchase days by the end of day ``days``), from 0 on; what lies beyond is left out."""
        at_least = [torch.ones_like(self.survival_first_QD[:, 0])]
        sums_F = 1 / (1 - self._circle())
        row_F = self._row(days)
        product_QF = self.first_QF * sums_F
        while len(at_least) <= days + 1:
            at_least.append((product_QF * row_F).real.sum(-1).clamp(0.0, 1.0))
            if float(at_least[-1].detach().max()) < LEAST_TAIL:
                break
            product_QF = product_QF * self.gap_QF
        falling_QM = torch.stack(at_least, dim=-1).cummin(-1).values
        return falling_QM[:, :-1] - falling_QM[:, 1:]

    def discounted(self, values_D: Sequence[float] | Tensor) -> Tensor:
        """[Q], expected purchase days, each worth ``values_D[day]``."""
        worth_D = torch.as_tensor(values_D, dtype=torch.float64, device=self.radius_M.device)
        return self.expected_per_day() @ worth_D

    def _coefficients(self, series_QF: Tensor) -> Tensor:
        return torch.fft.irfft(series_QF, n=self.size)[:, : self.num_days + 1] / self.radius_M[: self.num_days + 1]

    def _circle(self) -> Tensor:
        """The points z of the circle [F]."""
        one = torch.zeros(self.size, dtype=torch.float64, device=self.radius_M.device)
        one[1] = self.radius_M[1]
        return torch.fft.rfft(one)

    def _row(self, days: int) -> Tensor:
        """The row of the inverse transform that reads coefficient ``days`` [F]."""
        place = torch.arange(self.size // 2 + 1, dtype=torch.float64, device=self.radius_M.device)
        twice = torch.full_like(place, 2.0)
        twice[0] = twice[-1] = 1.0
        angle = 2 * torch.pi * place * days / self.size
        return torch.polar(twice / (self.size * self.radius_M[days]), angle)
