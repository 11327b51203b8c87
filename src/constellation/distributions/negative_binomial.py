"""Negative binomial counts by mean and dispersion, plain or zero-inflated: number of purchases over a horizon.

Variance = mean + dispersion * mean^2 (Cameron and Trivedi's NB2); dispersion -> 0 is Poisson.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from constellation.distributions.levels import as_levels, at_least_float32

MIN_LOG_DISPERSION, MAX_LOG_DISPERSION = -7.0, 4.0
"""Beyond 1/1000 lgamma cancels in float32 (and the family is Poisson to the eye); beyond 55 only zeros are likely."""

MAX_LOG_MEAN = 16.0
"""Nine million purchases: no customer, but a wild head in its first steps."""

MAX_COUNT = 1 << 16
"""Quantiles and samples end here: a table of the pmf is summed, and a journey has no 65,536 purchases in a horizon."""

TABLE_CELLS = 1 << 22
"""Cells of the pmf table held at once, 32 MiB in float64."""

FIRST_WIDTH = 64
"""Counts in the first table; rows whose quantiles lie beyond are tried again with twice as many."""


class NegativeBinomial:
    """Rows of independent counts.

    log_mean_Q: natural log of the mean of the (uninflated) negative binomial. log_dispersion_Q: natural log of the
    dispersion. logit_active_Q: logit of the probability that the row is active; inactive rows are zero for certain.
    None leaves the inflation out. All [Q], or broadcastable to log_mean_Q. Half precision is promoted to float32.
    """

    def __init__(self, log_mean_Q: Tensor, log_dispersion_Q: Tensor, logit_active_Q: Tensor | None = None) -> None:
        self.log_mean_Q = at_least_float32(log_mean_Q).clamp(max=MAX_LOG_MEAN)
        log_dispersion_Q = at_least_float32(log_dispersion_Q).clamp(MIN_LOG_DISPERSION, MAX_LOG_DISPERSION)
        self.log_dispersion_Q = log_dispersion_Q.expand_as(self.log_mean_Q)
        self.logit_active_Q = (
            None if logit_active_Q is None else at_least_float32(logit_active_Q).expand_as(self.log_mean_Q)
        )

    def log_likelihood(self, count_Q: Tensor) -> Tensor:
        """[Q], natural log of P(count); counts are whole numbers >= 0 in any dtype."""
        count_Q = count_Q.to(self.log_mean_Q.dtype)
        log_pmf_Q = _log_pmf(count_Q, self.log_mean_Q, self.log_dispersion_Q)
        if self.logit_active_Q is None:
            return log_pmf_Q
        log_active_Q = functional.logsigmoid(self.logit_active_Q) + log_pmf_Q
        log_zero_Q = torch.logaddexp(functional.logsigmoid(-self.logit_active_Q), log_active_Q)
        return torch.where(count_Q == 0, log_zero_Q, log_active_Q)

    def mean(self) -> Tensor:
        """[Q], the expected count, inflation included."""
        mean_Q = self.log_mean_Q.exp()
        return mean_Q if self.logit_active_Q is None else mean_Q * torch.sigmoid(self.logit_active_Q)

    def p_zero(self) -> Tensor:
        """[Q], P(count = 0)."""
        return self.log_likelihood(torch.zeros_like(self.log_mean_Q)).exp()

    def cdf(self, count: Tensor) -> Tensor:
        """P(y <= count), for count [Q], or [Q, L] for several counts per row; 0 below zero. Summed in float64."""
        count_QL = count if count.ndim > self.log_mean_Q.ndim else count.unsqueeze(-1)
        count_QL = count_QL.floor().clamp(-1, MAX_COUNT - 1).long()
        width = int(count_QL.max()) + 2 if count_QL.numel() else 1
        result_QL = torch.zeros(count_QL.shape, dtype=self.log_mean_Q.dtype, device=count_QL.device)
        for rows in torch.arange(len(count_QL), device=count_QL.device).split(max(1, TABLE_CELLS // width)):
            table = functional.pad(self._table(rows, width), (1, 0))
            result_QL[rows] = table.gather(-1, count_QL[rows] + 1).to(result_QL.dtype)
        return result_QL if count.ndim > self.log_mean_Q.ndim else result_QL.squeeze(-1)

    def quantile(self, levels: Sequence[float] | np.ndarray | Tensor) -> Tensor:
        """[Q, L], for parameters [Q]: the smallest count whose cdf reaches each level, at most MAX_COUNT.

        Raises InputError for levels outside (0, 1).
        """
        levels_L = as_levels(levels, self.log_mean_Q.double())
        return self._invert(levels_L.expand(len(self.log_mean_Q), -1))

    @torch.no_grad()
    def sample(self, num_samples: int, *, generator: torch.Generator | None = None) -> Tensor:
        """[num_samples, Q] independent draws by inversion; a generator must live on the device of the parameters."""
        shape = (len(self.log_mean_Q), num_samples)
        uniform_QS = torch.rand(shape, dtype=torch.float64, device=self.log_mean_Q.device, generator=generator)
        return self._invert(uniform_QS).T

    def _table(self, rows: Tensor, width: int) -> Tensor:
        """Cumulative probability [len(rows), width] of the counts 0 .. width - 1, float64: sums of float32 drift."""
        count_M = torch.arange(width, dtype=torch.float64, device=rows.device)
        log_mean = self.log_mean_Q[rows].double().unsqueeze(-1)
        log_dispersion = self.log_dispersion_Q[rows].double().unsqueeze(-1)
        cdf = _log_pmf(count_M, log_mean, log_dispersion).exp().cumsum(-1)
        if self.logit_active_Q is None:
            return cdf
        logit_active = self.logit_active_Q[rows].double().unsqueeze(-1)
        return torch.sigmoid(-logit_active) + torch.sigmoid(logit_active) * cdf

    @torch.no_grad()
    def _invert(self, level_QL: Tensor) -> Tensor:
        """Smallest count with cdf >= level, row by row [Q, L]."""
        result_QL = torch.zeros(level_QL.shape, dtype=self.log_mean_Q.dtype, device=level_QL.device)
        pending, width = torch.arange(len(level_QL), device=level_QL.device), FIRST_WIDTH
        while len(pending):
            beyond = []
            for rows in pending.split(max(1, TABLE_CELLS // width)):
                table = self._table(rows, width)
                result_QL[rows] = torch.searchsorted(table, level_QL[rows].contiguous()).to(result_QL.dtype)
                beyond.append(rows[table[:, -1] < level_QL[rows].amax(-1)])
            if width >= MAX_COUNT:
                break
            pending, width = torch.cat(beyond), width * 2
        return result_QL


def _log_pmf(count: Tensor, log_mean: Tensor, log_dispersion: Tensor) -> Tensor:
    """lnΓ(y+k) - lnΓ(k) - lnΓ(y+1) + k ln(k/(k+m)) + y ln(m/(k+m)), with k = 1 / dispersion."""
    log_odds = log_mean + log_dispersion
    k = (-log_dispersion).exp()
    coefficient = torch.lgamma(count + k) - torch.lgamma(k) - torch.lgamma(count + 1)
    return coefficient - k * functional.softplus(log_odds) + count * functional.logsigmoid(log_odds)
