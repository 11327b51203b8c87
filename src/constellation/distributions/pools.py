"""The linear pool of two forecasts: its quantiles, and how far to believe each, by the CRPS and by how they rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import rankdata
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
    """What one slice says of two forecasts.

    better: by how much the first one is, [Q]; apart: D, how much pooling gains. The pool with share w of the first is
    as bad as ``w A + (1 - w) C - w (1 - w) D``, with A and C of the two alone: the best share is 1/2 + better / 2D.
    """

    better_Q: np.ndarray
    apart: float

    @classmethod
    def of(cls, realised_Q: np.ndarray, first_QM: np.ndarray, second_QM: np.ndarray) -> Evidence:
        """Of two distributions: their CRPS in units of its mean, and the squared distance between them."""
        first_Q, second_Q = crps_of(realised_Q, first_QM), crps_of(realised_Q, second_QM)
        unit = max(float(first_Q.mean() + second_Q.mean()) / 2, 1e-12)
        return cls((second_Q - first_Q) / unit, float(squared_distance(first_QM, second_QM).mean()) / unit)

    @classmethod
    def of_ranks(cls, realised_Q: np.ndarray, first_Q: np.ndarray, second_Q: np.ndarray) -> Evidence:
        """Of two expected values: how well each ranks, as the sum of the normalised Gini and of Spearman.

        Both are means over customers of a weight times the customer's rank, so noise is known as of any mean. In w the
        score is drawn as the parabola through the first alone, the second alone and halves of both, each brought to
        the slice's total: who misses that by less is the calendar's doing. realised: below 0, of refunds, counts as 0.
        """
        realised_Q = np.maximum(np.asarray(realised_Q, dtype=np.float64), 0.0)
        rank_Q = _centred_ranks(realised_Q)
        if not rank_Q.any():
            return cls(np.zeros(len(realised_Q)), 0.0)
        num = len(rank_Q)
        untied = (num**2 - 1) / (12 * num)  # sum of the squares of ranks without ties, as forecasts have them
        weight_Q = num * (realised_Q / (realised_Q @ rank_Q) + rank_Q / np.sqrt(untied * (rank_Q @ rank_Q)))
        first_Q, second_Q = (_levelled(np.asarray(part, dtype=np.float64), realised_Q) for part in (first_Q, second_Q))
        one_Q, other_Q, halves_Q = (
            weight_Q * _centred_ranks(part_Q) for part_Q in (first_Q, second_Q, (first_Q + second_Q) / 2)
        )
        return cls(one_Q - other_Q, 4 * float((halves_Q - (one_Q + other_Q) / 2).mean()))

    @staticmethod
    def share(slices: Sequence[Evidence], *, prior_sd: float, prior: float = 0.5) -> float:
        """The first one's share in the best pool, drawn towards ``prior`` by its noise; in [0, 1].

        Slices are about the same customers, so their noise is not divided by their number. The prior of the share is
        normal, and so is the slice's word: the answer is the mean of the posterior. Where pooling gains nothing, the
        slice says nothing of the share, and it is the prior's.
        """
        apart = float(np.mean([part.apart for part in slices]))
        if apart <= 1e-9:
            return prior
        best = np.clip(0.5 + np.mean([part.better_Q.mean() for part in slices]) / (2 * apart), 0.0, 1.0)
        errors = [part.better_Q.std() / np.sqrt(max(len(part.better_Q), 1)) for part in slices]
        noise = float(np.mean(errors)) / (2 * apart)
        believed = prior_sd**2 / (prior_sd**2 + noise**2)
        return float(np.clip(prior + (best - prior) * believed, 0.0, 1.0))


def _centred_ranks(values_Q: np.ndarray) -> np.ndarray:
    """Ranks over their number, less their mean; ties at their middle rank."""
    return (rankdata(values_Q) - (len(values_Q) + 1) / 2) / max(len(values_Q), 1)


def _levelled(expected_Q: np.ndarray, realised_Q: np.ndarray) -> np.ndarray:
    """The same, with the total of what came; as it was where either total is nothing."""
    expected, realised = float(expected_Q.sum()), float(realised_Q.sum())
    return expected_Q * (realised / expected) if expected > 0 and realised > 0 else expected_Q


def crps_of(realised_Q: np.ndarray, members_QM: np.ndarray) -> np.ndarray:
    """CRPS [Q] of M equally likely members: twice the mean pinball loss at the middles of equal shares."""
    sorted_QM = np.sort(np.asarray(members_QM, dtype=np.float64), axis=1)
    levels_M = (np.arange(sorted_QM.shape[1]) + 0.5) / sorted_QM.shape[1]
    error_QM = sorted_QM - np.asarray(realised_Q, dtype=np.float64)[:, None]
    return 2 * np.mean(((error_QM > 0) - levels_M) * error_QM, axis=1)
