"""The Lightning module: sums of losses over numbers of targets, and nothing that makes the device wait."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import lightning as L
import torch
from torch import Tensor

from constellation.journeys.batch import JourneyBatch
from constellation.model import JourneyModel

OptimizerFactory = Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]


class Learner(L.LightningModule):
    """Trains a :class:`JourneyModel`. Keeps running sums of the losses as tensors, read once per epoch.

    total_steps: length of the learning-rate schedule, a linear warm-up and a cosine down to ``final_rate``.
    averaging: decay of an exponential moving average of the weights, which is scored and kept; 0 keeps the last.
    """

    def __init__(
        self,
        model: JourneyModel,
        optimizer: OptimizerFactory,
        *,
        total_steps: int,
        warmup_share: float = 0.05,
        final_rate: float = 0.05,
        averaging: float = 0.99,
    ) -> None:
        super().__init__()
        self.model = model
        self._optimizer = optimizer
        self.total_steps, self.warmup_share, self.final_rate = total_steps, warmup_share, final_rate
        self.weights = {name: float(part.weight) for name, part in model.objectives.items()}  # type: ignore[arg-type]
        self.averaging = averaging
        self.averaged = copy.deepcopy(model).requires_grad_(False) if averaging else None
        self.sums: dict[str, Tensor] = {}

    @property
    def result(self) -> JourneyModel:
        """The model to score and to keep."""
        return self.model if self.averaged is None else self.averaged

    def on_train_batch_end(self, outputs: Any, batch: JourneyBatch, batch_index: int) -> None:
        if self.averaged is not None:
            # The start counts for little: at step t the decay is at most (1 + t) / (10 + t).
            step = self.trainer.global_step
            decay = min(self.averaging, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(list(self.averaged.parameters()), list(self.model.parameters()), 1 - decay)

    def training_step(self, batch: JourneyBatch, batch_index: int) -> Tensor:
        total = torch.zeros((), device=self.device)
        for name, loss in self.model.loss(batch).items():
            total = total + self.weights[name] * loss.mean
            self._add(f"{name}/loss", loss.total.detach(), loss.count.detach())
        self._add("loss", total.detach(), torch.ones_like(total))
        return total

    def _add(self, name: str, total: Tensor, count: Tensor) -> None:
        pair = torch.stack([total.float(), count.float()])
        self.sums[name] = self.sums[name] + pair if name in self.sums else pair

    def take_means(self) -> dict[str, float]:
        """Mean losses since the last call, on the host. One synchronisation for all of them."""
        if not self.sums:
            return {}
        table = torch.stack(list(self.sums.values())).cpu()
        names, self.sums = list(self.sums), {}
        return {name: float(total / max(count, 1.0)) for name, (total, count) in zip(names, table, strict=True)}

    def configure_optimizers(self) -> Any:
        optimizer = self._optimizer(parameter for parameter in self.parameters() if parameter.requires_grad)
        warmup = max(1, round(self.warmup_share * self.total_steps))

        def rate(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            progress = min(1.0, (step - warmup) / max(1, self.total_steps - warmup))
            return self.final_rate + (1 - self.final_rate) * 0.5 * (1 + math.cos(math.pi * progress))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
