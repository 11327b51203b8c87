"""Quantiles from paths: the same points of a low-discrepancy sequence for every customer, so answers are steady."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from constellation.errors import InputError

MAX_EXTRA = 64


def check_lifetime(discount_rate: float, lifetime_years: float, num_paths: int) -> None:
    """What objectives with paths and a lifetime ask of their settings. Raises InputError with what was found."""
    if discount_rate < 0 or lifetime_years <= 0 or num_paths < 64:
        raise InputError(
            "Expected discount_rate >= 0, lifetime_years > 0 and num_paths >= 64; found "
            f"{discount_rate}, {lifetime_years} and {num_paths}."
        )


def steady_points(num_paths: int, dimensions: int) -> Tensor:
    """Scrambled Sobol points [num_paths, dimensions] in (0, 1), float64, the same at every call."""
    points = torch.quasirandom.SobolEngine(dimensions, scramble=True, seed=0).draw(num_paths).double()
    return points.clamp(1e-6, 1 - 1e-6)


def members_at(paths_RS: Tensor, level_RL: Tensor) -> Tensor:
    """[R, L], linear between the sorted paths, which stand at the middles of equal shares."""
    sorted_RS, num_paths = paths_RS.sort(dim=-1).values, paths_RS.shape[1]
    place_RL = (level_RL.clamp(0.0, 1.0) * num_paths - 0.5).clamp(0.0, num_paths - 1.0)
    low_RL = place_RL.floor().long()
    high_RL = (low_RL + 1).clamp(max=num_paths - 1)
    share_RL = place_RL - low_RL
    return sorted_RS.gather(-1, low_RL) * (1 - share_RL) + sorted_RS.gather(-1, high_RL) * share_RL


def poisson_at(mean_RS: Tensor, uniform_S: Tensor) -> Tensor:
    """Poisson counts at given uniforms, by summing probabilities; at most ``MAX_EXTRA``."""
    largest = float(mean_RS.max()) if mean_RS.numel() else 0.0
    most = min(MAX_EXTRA, math.ceil(largest + 6 * math.sqrt(largest)) + 4)
    pmf_RS = (-mean_RS).exp()
    cdf_RS, count_RS = pmf_RS, torch.zeros_like(mean_RS)
    for count in range(1, most + 1):
        count_RS = count_RS + (uniform_S > cdf_RS)
        pmf_RS = pmf_RS * mean_RS / count
        cdf_RS = cdf_RS + pmf_RS
    return count_RS
