"""Torch's own methods without the wrappers that import its compiler, ``torch._dynamo``, to tell it to leave them alone.

The compiler and what it imports are 75 to 85 MiB of a process and two seconds of its start. Nothing here asks it to
look at an optimizer, so nobody needs to be told.
"""

from __future__ import annotations

from typing import Any

WRAPPERS = (
    "_disable_dynamo.<locals>.inner",
    "_use_grad_for_differentiable.<locals>._use_grad",
    "Optimizer.profile_hook_step.<locals>.wrapper",  # put around each class's step when its first instance is made
)
"""The wrappers, by the names of their code."""


def plain(method: Any) -> Any:
    """A method without those wrappers. One that a version of torch does not wrap, or wraps otherwise, stays as it is:
    then it imports what it imports, and does the same."""
    while getattr(getattr(method, "__code__", None), "co_qualname", None) in WRAPPERS:
        inner = getattr(method, "__wrapped__", None)
        if inner is None:
            break
        method = inner
    return method
