"""Maximum likelihood by automatic differentiation, for parameters that hang on covariates."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy import optimize
from torch import Tensor

from constellation.distributions.maximum_likelihood import LOG_BOUND
from constellation.errors import InputError

MAX_EFFECT = 5.0
"""Covariates are standardised, so a coefficient of 5 already moves a scale by e^5 per deviation."""


def maximise_rows(
    log_likelihood: Callable[[Tensor], Tensor],
    log_start_P: Sequence[float],
    num_effects: int,
    *,
    penalty: float,
) -> np.ndarray:
    """Base parameters in logs, then effects: [P + num_effects] at the best penalised likelihood.

    log_likelihood: that vector (float64, with gradient) -> total log-likelihood. penalty: ridge on the effects, which
    start at 0; the bases are free. Raises InputError where there is no finite optimum.
    """
    start = np.concatenate([np.asarray(log_start_P, dtype=np.float64), np.zeros(num_effects)])
    num_base = len(log_start_P)

    def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
        vector = torch.tensor(point, dtype=torch.float64, requires_grad=True)
        value = -log_likelihood(vector) + 0.5 * penalty * vector[num_base:].square().sum()
        (gradient,) = torch.autograd.grad(value, vector)
        return float(value.detach()) / scale, gradient.numpy() / scale

    scale = 1.0
    scale = max(1.0, abs(loss(start)[0]))
    bounds = [(-LOG_BOUND, LOG_BOUND)] * num_base + [(-MAX_EFFECT, MAX_EFFECT)] * num_effects
    options = {"maxiter": 500, "ftol": 1e-12, "gtol": 1e-8}
    result = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    if not np.isfinite(result.fun):
        raise InputError(
            "The likelihood with covariates has no finite optimum on these customers. Leave the covariates out, or "
            "name fewer of them."
        )
    return np.asarray(result.x)
