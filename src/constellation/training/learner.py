"""The Lightning module: sums of losses over numbers of targets, and nothing that makes the device wait."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from constellation.journeys.batch import JourneyBatch
from constellation.kernels.compiled import compiled
from constellation.kernels.products import FLOAT32, products_in
from constellation.model import JourneyModel
from constellation.training.checkpoints import of_all_ranks
from constellation.training.lean import L
from constellation.training.sharding import local, shard

OptimizerFactory = Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]


class Learner(L.LightningModule):
    """Trains a :class:`JourneyModel`. Keeps running sums of the losses as tensors, read once per epoch.

    total_steps: length of the learning-rate schedule, a linear warm-up and a cosine down to ``final_rate``.
    averaging: decay of an exponential moving average of the weights, which is scored and kept; 0 keeps the last.
    num_ranks: processes that share each batch. Each sees a part of it, so the sums of losses are divided by the number
    of targets of all ranks, and the total multiplied by the number of ranks, for gradients are averaged over them.
    products: precision of the matrix products of a step on a CPU; a checkpoint brings its own.
    is_sharded: weights, gradients and optimizer state are spread over the ranks (fully sharded data parallel).
    is_compiled: see ``kernels/compiled.py``; scores are always made uncompiled.
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
        num_ranks: int = 1,
        products: str = FLOAT32,
        is_sharded: bool = False,
        is_compiled: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self._optimizer = optimizer
        self.total_steps, self.warmup_share, self.final_rate = total_steps, warmup_share, final_rate
        self.weights = {name: float(part.weight) for name, part in model.objectives.items()}  # type: ignore[arg-type]
        self.averaging, self.num_ranks, self.is_sharded = averaging, num_ranks, is_sharded
        self.averaged = copy.deepcopy(model).requires_grad_(False) if averaging else None
        self.products, self.is_compiled = products, is_compiled
        self.sums: dict[str, Tensor] = {}
        self._has_shards = False
        self._whole_weights: tuple[list[Tensor], list[Tensor]] | None = None
        if num_ranks > 1 and not is_sharded:
            # Looking for unused parameters, torch warns where there is none; now there is one.
            self.unused = torch.nn.Parameter(torch.zeros(()))

    @property
    def result(self) -> JourneyModel:
        """The model to score and to keep."""
        return self.model if self.averaged is None else self.averaged

    def configure_model(self) -> None:
        if self.is_sharded and not self._has_shards:
            shard(self.model, self.device_mesh["data_parallel"])  # type: ignore[index]
            if self.averaged is not None:
                shard(self.averaged, self.device_mesh["data_parallel"])  # type: ignore[index]
            self._has_shards = True

    def optimizer_step(self, *given: Any, **named: Any) -> None:
        super().optimizer_step(*given, **named)
        self.average(self.trainer.global_step + 1)  # Lightning counts this step when we are done

    @torch.no_grad()
    def average(self, step: int) -> None:
        """Move the average towards the weights after ``step`` steps."""
        if self.averaged is not None:
            # The start counts for little: at step t the average reaches back over half of them. Over a ninth, totals
            # of few customers spread twice as far from seed to seed.
            decay = min(self.averaging, (1 + step) / (3 + step))
            torch._foreach_lerp_(*self._weights(self.averaged), 1 - decay)

    def _weights(self, averaged: JourneyModel) -> tuple[list[Tensor], list[Tensor]]:
        """The averaged weights and those in training. Looked up once where they are whole: a walk through all modules
        takes a small model as long as its optimizer's step."""
        if self._whole_weights is not None:
            return self._whole_weights
        if self.is_sharded:
            return [local(part) for part in averaged.parameters()], [local(part) for part in self.model.parameters()]
        self._whole_weights = list(averaged.parameters()), list(self.model.parameters())
        return self._whole_weights

    def training_step(self, batch: JourneyBatch, batch_index: int) -> Tensor:
        with products_in(self.products), compiled(self.is_compiled):
            losses = self.model.loss(batch)
        count_O = torch.stack([loss.count.detach().float() for loss in losses.values()])
        if self.num_ranks > 1:
            torch.distributed.all_reduce(count_O)
        total = torch.zeros((), device=self.device)
        for (name, loss), count in zip(losses.items(), count_O, strict=True):
            total = total + self.weights[name] * loss.total / count.clamp(min=1)
            self._add(f"{name}/loss", loss.total.detach(), loss.count.detach())
        self._add("loss", total.detach(), torch.ones_like(total) / self.num_ranks)
        return total if self.num_ranks == 1 else total * self.num_ranks

    def _add(self, name: str, total: Tensor, count: Tensor) -> None:
        pair = torch.stack([total.float(), count.float()])
        self.sums[name] = self.sums[name].to(pair.device) + pair if name in self.sums else pair

    def take_means(self) -> dict[str, float]:
        """Mean losses of all ranks since the last call, on the host. One synchronisation for all of them."""
        if not self.sums:
            return {}
        table = torch.stack(list(self.sums.values()))
        if self.num_ranks > 1:
            torch.distributed.all_reduce(table)
        names, self.sums = list(self.sums), {}
        return {name: float(total / max(count, 1.0)) for name, (total, count) in zip(names, table.cpu(), strict=True)}

    def over_ranks(self, numbers: list[float]) -> list[float]:
        """Sums over all ranks of numbers on the host."""
        if self.num_ranks == 1:
            return numbers
        table = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(table)
        return table.tolist()

    def fill(self, plain: JourneyModel) -> JourneyModel:
        """Gather the shards of the result into a whole model on the host; only that of the first rank is filled."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        whole = get_model_state_dict(self.result, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if whole:
            plain.load_state_dict(whole)
        return plain

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        mine = {name: pair.cpu() for name, pair in self.sums.items()}
        checkpoint["products"] = self.products
        checkpoint["sums"] = of_all_ranks(mine, self.num_ranks)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.products = checkpoint["products"]
        of_ranks = checkpoint["sums"]
        if len(of_ranks) == self.num_ranks:
            self.sums = of_ranks[self.global_rank]
        else:  # another number of ranks than before: what matters is their sum
            names = {name for sums in of_ranks for name in sums}
            self.sums = {
                name: torch.stack([sums[name] for sums in of_ranks if name in sums]).sum(0) / self.num_ranks
                for name in sorted(names)
            }

    def configure_optimizers(self) -> Any:
        optimizer = self._optimizer([parameter for parameter in self.model.parameters() if parameter.requires_grad])
        warmup = max(1, round(self.warmup_share * self.total_steps))

        def rate(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            progress = min(1.0, (step - warmup) / max(1, self.total_steps - warmup))
            return self.final_rate + (1 - self.final_rate) * 0.5 * (1 + math.cos(math.pi * progress))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
