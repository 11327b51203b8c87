"""Maximum likelihood of positive parameters from rows that repeat: shared by the buy-till-you-die models."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy import optimize

from constellation.errors import InputError

LOG_BOUND = 12.0
"""Parameters stay within exp(-12) .. exp(12): on data with no churn at all the best one lies at infinity."""


def grouped(*columns_C: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Distinct rows and how often each occurs: a million customers are often a few ten thousand distinct ones."""
    rows_CK = np.column_stack([np.asarray(column, dtype=np.float64) for column in columns_C])
    order_C = np.lexsort(rows_CK.T)
    rows_CK = rows_CK[order_C]
    first_C = np.ones(len(rows_CK), dtype=bool)
    first_C[1:] = (rows_CK[1:] != rows_CK[:-1]).any(axis=1)
    weight = np.diff(np.append(np.flatnonzero(first_C), len(rows_CK)))
    return list(rows_CK[first_C].T), weight.astype(np.float64)


def as_rows(*columns_C: np.ndarray) -> list[torch.Tensor]:
    """Columns as float64 tensors, for the families whose parameters differ from row to row."""
    return [torch.as_tensor(np.array(column, dtype=np.float64)) for column in columns_C]


def maximise(
    log_likelihood_and_gradient: Callable[[np.ndarray], tuple[float, np.ndarray]], starts: Sequence[Sequence[float]]
) -> tuple[np.ndarray, float]:
    """Positive parameters [P] and the log-likelihood there, the best over several starting points.

    log_likelihood_and_gradient: parameters [P] -> total log-likelihood and its gradient [P] in the parameters.
    Raises InputError when no start gives a finite optimum.
    """

    def loss(log_parameters: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = np.exp(log_parameters)
        value, gradient = log_likelihood_and_gradient(parameters)
        return -value / scale, -gradient * parameters / scale

    results = []
    for start in starts:
        log_start = np.log(np.asarray(start, dtype=np.float64))
        scale = 1.0
        # So that the optimiser's tolerances mean the same for any number of rows.
        scale = max(1.0, abs(loss(log_start)[0]))
        bounds = [(-LOG_BOUND, LOG_BOUND)] * len(log_start)
        options = {"maxiter": 500, "ftol": 1e-13, "gtol": 1e-9}
        result = optimize.minimize(loss, log_start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        if np.isfinite(result.fun):
            results.append((-float(result.fun) * scale, np.exp(result.x)))
    if not results:
        raise InputError(
            "The likelihood has no finite optimum on these customers. Expected counts x >= 0, 0 <= t_x <= T and "
            "positive spend; check the event times and amounts, or leave this baseline out."
        )
    value, parameters = max(results, key=lambda each: each[0])
    return parameters, value


def check_recency_frequency(x_C: np.ndarray, t_x_C: np.ndarray, T_C: np.ndarray) -> None:
    """Raises InputError unless every row has x >= 0 and 0 <= t_x <= T, and x = 0 means t_x = 0."""
    if not len(x_C):
        raise InputError(
            "A buy-till-you-die model needs at least one customer with a purchase before the cutoff; found none. "
            "Move the cutoff later, check `purchase_types`, or leave this baseline out."
        )
    bad_C = (x_C < 0) | (t_x_C < 0) | (t_x_C > T_C) | ((x_C == 0) & (t_x_C != 0)) | ~np.isfinite(x_C + t_x_C + T_C)
    if bad_C.any():
        row = int(np.flatnonzero(bad_C)[0])
        raise InputError(
            f"Expected x >= 0 and 0 <= t_x <= T, with t_x = 0 where x = 0; found {int(bad_C.sum())} rows that are not "
            f"so, the first with x = {x_C[row]}, t_x = {t_x_C[row]}, T = {T_C[row]}. Count repeat purchases only, from "
            "the first one on."
        )
