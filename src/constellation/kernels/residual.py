"""A gated residual branch with dropout: one pass where autograd would make several."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from constellation.kernels.dropout import keep_mask

GATE_START = 0.1
"""Near zero, so that 16 layers start close to the identity; not zero, or a branch would see no gradient at first."""


def gated_residual(x_ND: Tensor, branch_ND: Tensor, gate_D: Tensor, dropout: float) -> Tensor:
    """x + gate * dropout(branch), float32 where ``x_ND`` is; ``dropout`` is 0 outside training.

    On a CPU the probability is rounded to 1/256: see ``kernels/dropout.py``.
    """
    if x_ND.device.type != "cpu" or torch.compiler.is_compiling():
        return x_ND + gate_D * functional.dropout(branch_ND, dropout)
    return _GatedResidual.apply(x_ND, branch_ND, gate_D, dropout)  # type: ignore[no-any-return]


class _GatedResidual(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, branch_ND: Tensor, gate_D: Tensor, dropout: float) -> Tensor:
        mask, keep = keep_mask(branch_ND.shape, dropout) if dropout else (None, 1.0)
        ctx.save_for_backward(branch_ND, gate_D, mask)
        ctx.keep = keep
        return torch.addcmul(x_ND, _kept(branch_ND, mask, x_ND.dtype), gate_D, value=1.0 / keep)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor | None, ...]:
        branch_ND, gate_D, mask = ctx.saved_tensors
        kept_ND = _kept(branch_ND, mask, grad_ND.dtype)
        grad_gate = torch.mul(kept_ND, grad_ND).sum(0) / ctx.keep
        grad_branch = grad_ND * (gate_D / ctx.keep)
        if mask is not None:
            grad_branch.mul_(mask.to(grad_branch.dtype))
        return grad_ND, grad_branch.to(branch_ND.dtype), grad_gate, None


def _kept(branch_ND: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    branch = branch_ND.to(dtype)
    return branch if mask is None else branch * mask.to(dtype)
