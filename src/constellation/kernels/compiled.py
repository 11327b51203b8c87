"""Functions of rows that torch's compiler fuses where it was asked to.

On a GPU normalisation, activation, dropout and residual are each a pass over memory, and several of them together cost
more than the products between. Compiled they are one or two passes. The functions take all tensors as arguments, so
that the layers of a model share one compiled function; the number of rows is dynamic, everything else is fixed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from constellation.kernels import products

_is_on: ContextVar[bool] = ContextVar("compiled", default=False)


@contextmanager
def compiled(on: bool = True) -> Iterator[None]:
    """Run the functions of this block that are marked :func:`row_wise` compiled; the first calls take a minute."""
    token = _is_on.set(on)
    try:
        yield
    finally:
        _is_on.reset(token)


def row_wise(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Mark a function of tensors, the first of them [rows, width], each row of whose result hangs on that row alone.

    With bfloat16 products on a CPU it stays as it is: those are kernels of ours, which a compiler cannot look into.
    """
    made: list[Callable[..., Tensor]] = []

    @functools.wraps(function)
    def run(rows: Tensor, *given: object) -> Tensor:
        is_ours = rows.device.type == "cpu" and products.current() == products.BFLOAT16
        if not _is_on.get() or is_ours:
            return function(rows, *given)
        if not made:
            # Made late: the compiler takes seconds to import.
            made.append(torch.compile(function, dynamic=True))
        return made[0](rows, *given)

    return run
