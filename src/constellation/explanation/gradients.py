"""Integrated gradients along the straight way from the baseline to a customer, and how far they miss the difference.

Sundararajan, Taly and Yan (2017): the contribution of an input is its way times the mean gradient along the path,
``(x_i - x'_i) * integral_0^1 dF/dx_i (x' + a (x - x')) da``, and the contributions sum to ``F(x) - F(x')``. The
integral is taken by the Gauss-Legendre rule, whose error falls much faster with the steps than that of equal steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from constellation.errors import InputError
from constellation.explanation.answers import Answer
from constellation.explanation.inputs import EVENTS, Ends, Layers, moved

if TYPE_CHECKING:
    from constellation.journeys.batch import JourneyBatch
    from constellation.model import JourneyModel


class Moved:
    """Contributions of a batch: field_FN of each field of each event, others by input [Q] or [Q, F].

    start_Q, end_Q: the answers at the two ends. sum_Q: of all contributions of a question.
    """

    def __init__(self, ends: Ends, mean_gradients: dict[str, Tensor], start_Q: Tensor, end_Q: Tensor) -> None:
        self.fields, self.start_Q, self.end_Q = ends.fields, start_Q, end_Q
        self.field_FN = (ends.field_FND * mean_gradients[EVENTS]).sum(dim=-1)
        self.others: dict[str, Tensor] = {}
        for name, start in ends.baseline.items():
            if name != EVENTS:
                rows = (ends.actual[name] - start) * mean_gradients[name]
                # Of an embedding the sum over its width; of the aggregates each by itself.
                self.others[name] = rows.sum(dim=-1) if rows.dim() == 2 and name != "aggregates" else rows

    def sum_Q(self, journey_N: Tensor) -> Tensor:
        total_Q = torch.zeros_like(self.end_Q, dtype=torch.float64)
        total_Q = total_Q.index_add(0, journey_N, self.field_FN.double().sum(dim=0))
        for rows in self.others.values():
            total_Q = total_Q + (rows.double() if rows.dim() == 1 else rows.double().sum(dim=1))
        return total_Q


def integrate(
    model: JourneyModel, layers: Layers, batch: JourneyBatch, ends: Ends, answer: Answer, steps: int
) -> Moved:
    """Contributions by ``steps`` points of the Gauss-Legendre rule. Each journey of the batch has one question.

    Raises InputError where the answer has no gradient, such as a quantile that is read off sorted paths.
    """
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    with torch.no_grad():
        chosen_Q = answer.choose(answer.predict(model, batch))
        values = []
        for share in (0.0, 1.0):
            with moved(layers, batch, ends.at(share)) as there:
                values.append(answer.of(answer.predict(model, there), chosen_Q).double())
    means = {name: torch.zeros_like(start, dtype=torch.float64) for name, start in ends.baseline.items()}
    for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
        inputs = ends.at((node + 1) / 2)
        with torch.enable_grad(), _recurrent_gradients(batch), moved(layers, batch, inputs) as there:
            found_Q = answer.of(answer.predict(model, there), chosen_Q)
            if not found_Q.requires_grad:
                raise InputError(
                    f"answer={answer.name} has no gradient in this model, so nothing can be attributed. Ask for a mean "
                    "or a probability instead."
                )
            names = list(inputs)
            gradients = torch.autograd.grad(found_Q.sum(), [inputs[name] for name in names], allow_unused=True)
        for name, gradient in zip(names, gradients, strict=True):
            if gradient is not None:
                means[name] += weight / 2 * gradient
    return Moved(ends, means, *values)


@contextmanager
def _recurrent_gradients(batch: JourneyBatch) -> Iterator[None]:
    """cuDNN has no backward pass of recurrence in evaluation mode; torch's own kernels do."""
    if batch.time_N.device.type != "cuda":
        yield
        return
    with torch.backends.cudnn.flags(enabled=False):
        yield
