"""Tables of count probabilities: from a mixed Poisson process that may stop, to quantiles; all torch, float64.

Counts are 0 .. M - 1 in the last dimension; [Q] rows may have parameters of their own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

TAIL = 1e-7
"""A table is wide enough when so little probability lies beyond it."""

FIRST_WIDTH, MAX_WIDTH = 32, 4096


def negative_binomial_pmf(shape: Tensor, odds: Tensor, num_counts: int) -> Tensor:
    """[.., M]: Poisson counts whose mean is Gamma(shape) times ``odds``, by the recursion of neighbours, in logs."""
    n_M = torch.arange(1, num_counts, dtype=torch.float64, device=shape.device)
    log_first = -shape * odds.log1p()
    log_ratio = (shape.unsqueeze(-1) + n_M - 1).log() - n_M.log() + (odds.log() - odds.log1p()).unsqueeze(-1)
    return torch.cat([log_first.unsqueeze(-1), log_first.unsqueeze(-1) + log_ratio.cumsum(-1)], dim=-1).exp()


def at_least(pmf: Tensor) -> Tensor:
    """[.., M]: P(count >= n) from P(count = n)."""
    return (1.0 - pmf.cumsum(-1) + pmf).clamp(0.0, 1.0)


def from_at_least(survival: Tensor) -> Tensor:
    """[.., M]: P(count = n) from P(count >= n); what lies beyond the table is left out."""
    following = torch.cat([survival[..., 1:], torch.zeros_like(survival[..., :1])], dim=-1)
    pmf = (survival - following).clamp(min=0.0)
    # The last cell would hold the whole rest.
    return torch.cat([pmf[..., :-1], torch.zeros_like(pmf[..., :1])], dim=-1)


def beta_survival(a: Tensor, b: Tensor, num_counts: int) -> Tensor:
    """[.., M]: E[(1 - p)^n] for p ~ Beta(a, b), n = 0, 1, ..: staying through n chances to leave."""
    n_M = torch.arange(num_counts - 1, dtype=torch.float64, device=a.device)
    log_ratio = (b.unsqueeze(-1) + n_M).log() - (a.unsqueeze(-1) + b.unsqueeze(-1) + n_M).log()
    return torch.cat([torch.zeros_like(log_ratio[..., :1]), log_ratio.cumsum(-1)], dim=-1).exp()


def wide_enough(
    table: Callable[[Tensor, int], Tensor], num_rows: int, *, max_cells: int = 1 << 22
) -> list[tuple[Tensor, Tensor]]:
    """Rows and their tables [rows, M], each as wide as it must be: ``table(rows, M)`` is asked for wider ones.

    Rows beyond ``MAX_WIDTH`` keep what the widest table shows.
    """
    found: list[tuple[Tensor, Tensor]] = []
    pending, width = torch.arange(num_rows), FIRST_WIDTH
    while len(pending):
        beyond = []
        for rows in pending.split(max(1, max_cells // width)):
            pmf = table(rows, width)
            narrow = (pmf.sum(-1) < 1 - TAIL) if width < MAX_WIDTH else torch.zeros(len(rows), dtype=torch.bool)
            narrow = narrow.to("cpu")
            if not bool(narrow.all()):
                found.append((rows[~narrow], pmf[(~narrow).to(pmf.device)]))
            beyond.append(rows[narrow])
        pending, width = torch.cat(beyond), width * 2
    return found


def quantile(pmf_QM: Tensor, levels_L: Tensor) -> Tensor:
    """[Q, L], the least count whose cumulative probability reaches each level, at most M - 1."""
    levels_QL = levels_L.to(pmf_QM).expand(len(pmf_QM), -1).contiguous()
    found_QL = torch.searchsorted(pmf_QM.cumsum(-1), levels_QL)
    return found_QL.clamp(max=pmf_QM.shape[-1] - 1).to(pmf_QM.dtype)
