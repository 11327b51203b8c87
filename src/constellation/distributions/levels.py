"""Quantile levels: one check for all torch families."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from constellation.errors import InputError


def as_levels(levels: Sequence[float] | np.ndarray | Tensor, like: Tensor) -> Tensor:
    """Levels [L] as a tensor of the device and dtype of ``like``.

    Raises InputError unless all levels lie strictly between 0 and 1. Levels on the host are checked there, so that
    nothing waits for the device.
    """
    if isinstance(levels, Tensor):
        levels_L = levels.double()
    else:
        # A copy: torch warns about arrays that are not writable, as the house's LEVELS are not.
        levels_L = torch.as_tensor(np.array(levels, dtype=np.float64))
    if levels_L.ndim != 1 or not bool(((levels_L > 0) & (levels_L < 1)).all()):
        raise InputError(
            f"Quantile levels must be a list of numbers strictly between 0 and 1; found {levels_L.tolist()}. "
            "Leave out 0 and 1: the families have no finite extremes."
        )
    return levels_L.to(device=like.device, dtype=like.dtype)


def at_least_float32(tensor: Tensor) -> Tensor:
    """bf16 and fp16 become float32: a log-likelihood in half precision is noise."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
