"""AdamW as torch takes its steps, without torch's compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from constellation.training.uncompiled import plain


class AdamW(torch.optim.AdamW):
    """Bit for bit the steps of ``torch.optim.AdamW``, with its arguments, its state and its hooks, but without the
    import of the compiler that torch's own brings; see ``training/uncompiled.py``.

    Not to be compiled itself: whoever wants ``torch.compile`` of a step takes torch's own.
    """

    _plain_step = staticmethod(plain(torch.optim.Adam.step))
    add_param_group = plain(torch.optim.Optimizer.add_param_group)
    zero_grad = plain(torch.optim.Optimizer.zero_grad)
    state_dict = plain(torch.optim.Optimizer.state_dict)
    load_state_dict = plain(torch.optim.Optimizer.load_state_dict)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        with torch.set_grad_enabled(self.defaults.get("differentiable", False)):
            return self._plain_step(self, closure)
