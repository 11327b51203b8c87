"""However batches reach the device, and whether a compiler has been at it, training is the same."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from constellation.building import build_model
from constellation.encoders.hstu import _spread_sums
from constellation.encoders.transformer import normed_linear
from constellation.errors import InputError
from constellation.journeys.device_gather import DeviceGatherer, device_bytes
from constellation.kernels import compiled as compiling
from constellation.kernels.compiled import compiled, row_wise
from constellation.kernels.products import BFLOAT16, products_in
from constellation.training.feeding import fed, lies_on, makes_ahead
from constellation.training.fit import Fitted, fit
from constellation.training.options import TrainingOptions
from tests.golden.tiny import HORIZONS_DAYS, tiny_batches

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
ADAMW = partial(torch.optim.AdamW, lr=0.01)


def trained(folder: Path, *, dropout: float = 0.1, **options: Any) -> Fitted:
    sizes = {"width": 8, "layers": 2, "dropout": dropout}
    config = {
        "encoder": {"_target_": "constellation.encoders.transformer.Transformer", **sizes},
        "readout": {"_target_": "constellation.encoders.readout.Readout", **sizes},
        "objective": {
            "value": {
                "_target_": "constellation.objectives.value.Value",
                "family": {"_target_": "constellation.objectives.families.Quantiles"},
            },
            "next_event": {"_target_": "constellation.objectives.next_event.NextEvent", "width": 4},
        },
    }
    batches = tiny_batches()
    torch.manual_seed(0)
    given = {"max_epochs": 2, "accelerator": "cpu", "products": "float32"} | options
    model = build_model(config, batches.gatherer.vocabulary, HORIZONS_DAYS)
    steps = 2 * len(batches) - 1  # ends in the middle of an epoch, where batches made ahead are left over
    return fit(model.train(), batches, ADAMW, TrainingOptions(**given), folder, label="test", num_steps=steps)


def losses(fitted: Fitted) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if "loss" in name} for row in fitted.history]


@pytest.mark.parametrize("options", [{"prefetch": True}, {"store_on_device": True, "prefetch": True}])
def test_a_training_is_the_same_however_it_is_fed(options: dict[str, Any], tmp_path: Path) -> None:
    plain, other = trained(tmp_path / "plain"), trained(tmp_path / "other", **options)
    assert losses(plain) == losses(other)
    assert len(losses(plain)[0]) == 3
    for (name, here), there in zip(
        plain.model.named_parameters(), (part for _, part in other.model.named_parameters()), strict=True
    ):
        assert torch.equal(here, there), name


def test_what_auto_means(monkeypatch: pytest.MonkeyPatch) -> None:
    batches, auto = tiny_batches(), TrainingOptions()
    assert fed(batches, CPU, auto) is batches
    assert not makes_ahead(CPU, auto) and makes_ahead(CUDA, auto)
    assert makes_ahead(CPU, TrainingOptions(prefetch=True)) and not makes_ahead(CUDA, TrainingOptions(prefetch=False))
    needed = device_bytes(batches.gatherer.store, batches.gatherer.vocabulary)
    for free, lies in ((3 * needed, True), (3 * needed - 3, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 10 * free))
        assert lies_on(batches.gatherer, CUDA, auto) is lies
    assert not lies_on(batches.gatherer, CUDA, TrainingOptions(store_on_device=False))
    resident = fed(batches, CPU, TrainingOptions(store_on_device=True))
    assert isinstance(resident.gatherer, DeviceGatherer) and not isinstance(batches.gatherer, DeviceGatherer)
    assert resident.everybody is batches.everybody  # newcomers stay in it


@pytest.mark.parametrize("name", ["store_on_device", "prefetch"])
def test_other_words_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"training.{name} must be true, false or auto, found 'yes'"):
        TrainingOptions(**{name: "yes"})


def test_only_what_is_marked_is_compiled_and_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def compile_(function: Any, dynamic: bool) -> Any:
        made.append((function.__name__, dynamic))
        return lambda rows, factor: function(rows, factor) + 1000

    monkeypatch.setattr(compiling.torch, "compile", compile_)

    @row_wise
    def scaled(rows: torch.Tensor, factor: float) -> torch.Tensor:
        return rows * factor

    rows = torch.ones(2, 3)
    assert scaled(rows, 2.0).max() == 2 and not made
    with compiled():
        assert scaled(rows, 2.0).min() == 1002 and scaled(rows, 3.0).min() == 1003
        with products_in(BFLOAT16):
            assert scaled(rows, 2.0).max() == 2  # kernels of our own
        with compiled(False):
            assert scaled(rows, 2.0).max() == 2
    assert scaled(rows, 2.0).max() == 2
    assert made == [("scaled", True)]


def test_a_compiled_training_has_the_losses_of_a_plain_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced and differentiated by the compiler, but run operator by operator: making machine code takes minutes.

    Without dropout, whose random numbers the compiler draws in its own order.
    """
    from torch._dynamo.utils import counters

    monkeypatch.setattr(compiling.torch, "compile", partial(torch.compile, backend="aot_eager"))
    counters.clear()
    plain = trained(tmp_path / "plain", dropout=0.0)
    assert not counters["frames"]
    fused = trained(tmp_path / "fused", dropout=0.0, compile=True)
    for here, there in zip(losses(plain), losses(fused), strict=True):
        assert here == pytest.approx(there, rel=1e-5)
    assert counters["frames"]["ok"] and not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] <= 4  # batches of any size share them


@pytest.mark.slow
def test_the_machine_code_of_the_compiler_computes_the_same() -> None:
    def pieces(rows: int) -> tuple[torch.Tensor, ...]:
        generator = torch.Generator().manual_seed(rows)
        shapes = ((rows, 8), (8,), (8,), (24, 8), (24,))
        return tuple(torch.randn(shape, generator=generator).requires_grad_() for shape in shapes)

    for rows in (5, 37, 300):
        here, there = pieces(rows), pieces(rows)
        plain = normed_linear(*here)
        with compiled():
            fused = normed_linear(*there)
        torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-5)
        plain.square().sum().backward()
        fused.square().sum().backward()
        for left, right in zip(here, there, strict=True):
            torch.testing.assert_close(left.grad, right.grad, rtol=1e-4, atol=1e-4)


def test_sums_by_bucket_are_those_of_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    bucket_M = torch.randint(0, 5, (3000,), generator=generator)
    grad_MH = torch.randn(3000, 2, generator=generator)
    expected = torch.stack([grad_MH[bucket_M == bucket].sum(0) for bucket in range(7)])
    torch.testing.assert_close(_spread_sums(grad_MH, bucket_M, 7), expected, rtol=1e-5, atol=1e-4)
