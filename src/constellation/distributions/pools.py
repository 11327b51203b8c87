"""The linear pool of two forecasts: its quantiles, and how far each should be believed by the CRPS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ROUNDING = 1e-6
"""A level that a member reaches but for this is reached: levels come in single precision."""


def pool_quantiles(first_QM: Tensor, second_QM: Tensor, share: Tensor | float, levels_L: Tensor) -> Tensor:
    """Quantiles [Q, L] of ``share F + (1 - share) G``, each given by M equally likely members.

    The smallest member up to which the pool holds the level: no value is made up, so counts stay whole and zeros zero.
    """
    num_members = first_QM.shape[1]
    share = torch.as_tensor(share, dtype=torch.float64, device=first_QM.device)
    weight_M = torch.cat([share.expand(num_members), (1 - share).expand(num_members)]) / num_members
    sorted_QM, order_QM = torch.cat([first_QM, second_QM], dim=1).sort(dim=1)
    reached_QM = weight_M[order_QM].cumsum(dim=1)
    wanted_QL = (levels_L.to(reached_QM) - ROUNDING).expand(len(first_QM), -1).contiguous()
    place_QL = torch.searchsorted(reached_QM, wanted_QL).clamp(max=2 * num_members - 1)
    return sorted_QM.gather(1, place_QL)


def squared_distance(first_QM: np.ndarray, second_QM: np.ndarray) -> np.ndarray:
    """[Q], the integral of (F - G)^2 of two step distributions of M equally likely members each (Cramér)."""
    num_members = first_QM.shape[1]
    members_QM = np.concatenate([first_QM, second_QM], axis=1).astype(np.float64)
    step_M = np.repeat([1 / num_members, -1 / num_members], num_members)
    order_QM = np.argsort(members_QM, axis=1, kind="stable")
    gap_QM = step_M[order_QM].cumsum(axis=1)[:, :-1]
    return (gap_QM**2 * np.diff(np.take_along_axis(members_QM, order_QM, axis=1), axis=1)).sum(axis=1)


@dataclass(frozen=True)
class Evidence:
    """What one slice says of two forecasts, in units of its mean CRPS.

    better: how much lower the first one's CRPS is, [Q]; apart: squared distance between the two, its mean.
    """

    better_Q: np.ndarray
    apart: float

    @classmethod
    def of(cls, realised_Q: np.ndarray, first_QM: np.ndarray, second_QM: np.ndarray) -> Evidence:
        first_Q, second_Q = crps_of(realised_Q, first_QM), crps_of(realised_Q, second_QM)
        unit = max(float(first_Q.mean() + second_Q.mean()) / 2, 1e-12)
        return cls((second_Q - first_Q) / unit, float(squared_distance(first_QM, second_QM).mean()) / unit)

    @staticmethod
    def share(slices: Sequence[Evidence], *, prior_sd: float) -> float:
        """The first one's share in the pool of least CRPS, drawn towards a half by its noise; in [0, 1].

        Slices are about the same customers, so their noise is not divided by their number. The prior of the share is
        normal about a half, and so is the slice's word: the answer is the mean of the posterior.
        """
        apart = float(np.mean([part.apart for part in slices]))
        if apart <= 1e-9:
            return 0.5
        step = float(np.mean([part.better_Q.mean() for part in slices])) / (2 * apart)
        errors = [part.better_Q.std() / np.sqrt(max(len(part.better_Q), 1)) for part in slices]
        noise = float(np.mean(errors)) / (2 * apart)
        return float(np.clip(0.5 + step * prior_sd**2 / (prior_sd**2 + noise**2), 0.0, 1.0))


def crps_of(realised_Q: np.ndarray, members_QM: np.ndarray) -> np.ndarray:
    """CRPS [Q] of M equally likely members: twice the mean pinball loss at the middles of equal shares."""
    sorted_QM = np.sort(np.asarray(members_QM, dtype=np.float64), axis=1)
    levels_M = (np.arange(sorted_QM.shape[1]) + 0.5) / sorted_QM.shape[1]
    error_QM = sorted_QM - np.asarray(realised_Q, dtype=np.float64)[:, None]
    return 2 * np.mean(((error_QM > 0) - levels_M) * error_QM, axis=1)
