"""Our AdamW takes torch's steps bit for bit; a training on a CPU never imports torch's compiler."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from constellation.training.optimizers import AdamW
from constellation.training.uncompiled import plain

SETTINGS: list[dict[str, Any]] = [
    {"fused": True},
    {"fused": True, "amsgrad": True, "weight_decay": 0.1, "betas": (0.8, 0.95)},
    {"foreach": True, "maximize": True},
    {},
]


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 2))


def groups(model: nn.Sequential) -> list[dict[str, Any]]:
    return [{"params": list(model[0].parameters()), "lr": 0.02}, {"params": list(model[2].parameters())}]


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> float:
    torch.manual_seed(seed)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(torch.randn(6, 5)).square().mean()
        loss.backward()
        return loss

    return float(optimizer.step(closure).detach())  # type: ignore[arg-type, union-attr]


def state_tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [part for state in optimizer.state_dict()["state"].values() for part in state.values()]


@pytest.mark.parametrize("settings", SETTINGS)
def test_steps_are_those_of_torch(settings: dict[str, Any]) -> None:
    mine, theirs = network(), network()
    ours, torchs = AdamW(groups(mine), lr=0.01, **settings), torch.optim.AdamW(groups(theirs), lr=0.01, **settings)
    schedules = [torch.optim.lr_scheduler.LambdaLR(one, lambda step: 1 / (1 + step)) for one in (ours, torchs)]
    for seed in range(6):
        assert step(mine, ours, seed) == step(theirs, torchs, seed)
        for schedule in schedules:
            schedule.step()
    assert all(torch.equal(one, two) for one, two in zip(mine.parameters(), theirs.parameters(), strict=True))
    assert ours.param_groups[0]["lr"] == torchs.param_groups[0]["lr"] == pytest.approx(0.02 / 7)
    pairs = list(zip(state_tensors(ours), state_tensors(torchs), strict=True))
    assert len(pairs) >= 12 and all(torch.equal(one, two) for one, two in pairs)


def test_either_goes_on_from_the_state_of_the_other() -> None:
    mine, theirs = network(), network()
    ours, torchs = AdamW(mine.parameters(), fused=True), torch.optim.AdamW(theirs.parameters(), fused=True)
    for seed in range(3):
        step(mine, ours, seed)
        step(theirs, torchs, seed)
    crossed: list[tuple[nn.Module, torch.optim.Optimizer]] = []
    for model, kind, state in ((mine, torch.optim.AdamW, ours), (theirs, AdamW, torchs)):
        optimizer = kind(model.parameters(), fused=True)
        optimizer.load_state_dict(state.state_dict())
        crossed.append((model, optimizer))
    for seed in range(3, 6):
        one, two = (step(model, optimizer, seed) for model, optimizer in crossed)
        assert one == two
    assert all(torch.equal(one, two) for one, two in zip(mine.parameters(), theirs.parameters(), strict=True))


def test_hooks_are_called_once_and_gradients_are_left_on() -> None:
    model, calls = network(), []
    optimizer = AdamW(model.parameters(), fused=True)
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    step(model, optimizer, 0)
    assert calls == ["before", "after"]
    assert torch.is_grad_enabled() and all(part.requires_grad for part in model.parameters())


def test_what_is_not_wrapped_stays_as_it_is() -> None:
    def method() -> int:
        return 3

    assert plain(method) is method
    assert plain(len) is len
    assert plain(torch.optim.Optimizer.add_param_group).__code__.co_name == "add_param_group"


# ---------------------------------------------------------------- in processes of their own


def run(code: str) -> str:
    found = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


FRESH = """
import json, sys, tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
import constellation.training.fit as fit
seen = {"on the way": [name for name in ("torchmetrics", "lightning", "scipy", "matplotlib") if name in sys.modules]}

from constellation.training.lean import COMPILER
from constellation.training.optimizers import AdamW
from tests.unit.test_training import OPTIONS, Stopper, train
adamw = partial(AdamW, lr=0.003, fused=True)
options = replace(OPTIONS, checkpoint_every_steps=1)
with tempfile.TemporaryDirectory() as folder:
    try:
        train(Path(folder), options=options, optimizer=adamw, report=Stopper("refit", 0))
    except KeyboardInterrupt:
        pass
    study = train(Path(folder), options=options, optimizer=adamw)
seen["steps"] = study.refitted.num_steps
seen["compiler"] = [name for name in (COMPILER, "torch._dynamo", "torch._inductor", "sympy") if name in sys.modules]

from lightning.fabric.wrappers import _unwrap_compiled, OptimizedModule
import torch
module = torch.nn.Linear(2, 2)
seen["known before"] = [isinstance(module, OptimizedModule), _unwrap_compiled(module) == (module, None)]
compiled = torch.compile(module)
seen["whole"] = type(sys.modules[COMPILER]).__name__ == "module" and hasattr(torch._dynamo, "graph_break")
seen["known after"] = [isinstance(each, OptimizedModule) for each in (compiled, module)]
seen["unwrapped"] = _unwrap_compiled(compiled)[0] is module
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection
results = _ResultCollection(training=True)
results.log("training_step", "loss", torch.tensor(2.0), on_step=True, on_epoch=False, batch_size=1)
seen["logged"] = float(results["training_step.loss"].value)

import scipy.signal, matplotlib
from importlib.metadata import version
seen["afterwards"] = [version("scipy") == scipy.__version__, fit.L.__name__]
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def fresh() -> dict[str, Any]:
    """What one new process sees, step by step; its imports take seconds, so that the tests below share it."""
    return json.loads(run(FRESH).splitlines()[-1])


def test_a_training_imports_neither_plots_nor_signal_processing(fresh: dict[str, Any]) -> None:
    """Torchmetrics would, on the way to Lightning; afterwards both are there for whoever asks."""
    assert fresh["on the way"] == ["torchmetrics", "lightning"]
    assert fresh["afterwards"] == [True, "lightning"]


def test_a_training_imports_no_compiler(fresh: dict[str, Any]) -> None:
    """Select and refit, with checkpoints, the memory probe, averaging, and a resume of the second phase."""
    assert fresh["steps"] > 0 and fresh["compiler"] == []


def test_lightning_knows_compiled_modules_once_there_are_any(fresh: dict[str, Any]) -> None:
    assert fresh["known before"] == [False, True]
    assert fresh["whole"]
    assert fresh["known after"] == [True, False]
    assert fresh["unwrapped"]
    assert fresh["logged"] == 2.0


def test_whoever_has_the_compiler_keeps_it() -> None:
    code = """
import sys, torch._dynamo
before = sys.modules["torch._dynamo"]
from constellation.training.lean import L
from lightning.fabric.wrappers import OptimizedModule
print(sys.modules["torch._dynamo"] is before, OptimizedModule is torch._dynamo.OptimizedModule)
"""
    assert run(code).split() == ["True", "True"]


def test_a_lightning_that_asks_for_a_part_of_the_compiler_gets_all_of_it() -> None:
    code = """
import builtins, sys
plain = builtins.__import__
def imports(name, *given):
    if name == "torch._dynamo":
        plain("torch._dynamo.eval_frame")
    return plain(name, *given)
builtins.__import__ = imports
from constellation.training.lean import L
builtins.__import__ = plain
import torch._dynamo
from lightning.fabric.wrappers import OptimizedModule
print(L.Trainer.__name__, OptimizedModule is torch._dynamo.OptimizedModule)
"""
    assert run(code).split() == ["Trainer", "True"]
