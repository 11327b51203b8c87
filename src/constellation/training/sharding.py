"""Strategies of several devices: data parallel with one gradient exchange, and fully sharded weights."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from constellation.errors import InputError
from constellation.model import JourneyModel
from constellation.training.checkpoints import read
from constellation.training.lean import DDPStrategy, ModelParallelStrategy, Strategy

STRATEGIES = ("auto", "ddp", "fsdp")


def strategy_of(name: str, num_ranks: int) -> str | Strategy:
    """A strategy for so many processes. Raises InputError for a name that is none of ours."""
    if name not in STRATEGIES:
        raise InputError(f"training.strategy must be {', '.join(STRATEGIES)}, found {name!r}.")
    if name == "fsdp":
        return Sharded(num_ranks)
    if num_ranks == 1:
        return "auto"
    parameters = inspect.signature(nn.parallel.DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers"
    kept_apart: dict[str, Any] = {buffers: False}  # there are none that change
    return DDPStrategy(
        # A batch of a rank may leave out a part of the model (no baskets, no questions, no journey): nobody must wait.
        find_unused_parameters=True,
        gradient_as_bucket_view=True,
        **kept_apart,
    )


class Sharded(ModelParallelStrategy):
    """Fully sharded data parallel (PyTorch's ``fully_shard``), with whole checkpoints written by the first rank."""

    def __init__(self, num_ranks: int) -> None:
        super().__init__(data_parallel_size=num_ranks, tensor_parallel_size=1, save_distributed_checkpoint=False)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

        assert self.model is not None
        return get_optimizer_state_dict(self.model, getattr(optimizer, "_optimizer", optimizer), options=_whole())

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        from torch.distributed.checkpoint.state_dict import set_model_state_dict, set_optimizer_state_dict

        assert self.model is not None
        checkpoint = read(Path(checkpoint_path))
        set_model_state_dict(self.model, checkpoint["state_dict"], options=_whole())
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            set_optimizer_state_dict(self.model, optimizer, optim_state_dict=state, options=_whole())
        return checkpoint


def _whole() -> Any:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=True, cpu_offload=True)


def shard(model: JourneyModel, mesh: Any) -> None:
    """Spread the parameters of encoder, readout and each objective over the ranks of ``mesh``.

    Each layer of the encoder is gathered for itself when it is used, so that no device holds all weights at once.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    layers = getattr(model.encoder, "layers", ())
    for layer in layers if isinstance(layers, nn.ModuleList) else ():
        fully_shard(layer, mesh=mesh)
    fully_shard(model.encoder, mesh=mesh)
    fully_shard(model.readout, mesh=mesh)
    for objective in model.objectives.values():
        fully_shard(objective, mesh=mesh)
        for method in ("loss", "predict"):
            register_fsdp_forward_method(objective, method)


def local(parameter: Tensor) -> Tensor:
    """This rank's shard of a parameter, or all of it where it is not sharded."""
    from torch.distributed.tensor import DTensor

    return parameter.to_local() if isinstance(parameter, DTensor) else parameter
