"""The core on a GPU: its kernels equal their plain twins, batches are cut there, and a step never waits for it.

What a CPU can run of this runs there too, so that the tests themselves are tried.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from constellation.building import build_model
from constellation.commands.benchmarks.device import benchmark_device
from constellation.commands.benchmarks.device_time import GROUPS
from constellation.encoders.attention import has_varlen_kernel
from constellation.encoders.hstu import looked_up
from constellation.journeys.batch import JourneyBatch
from constellation.journeys.device_gather import DeviceGatherer
from constellation.journeys.packing import map_tensors
from constellation.journeys.prefetch import Prefetched
from constellation.kernels.attention import reference_attention, varlen_attention
from constellation.kernels.bands import bands_of
from constellation.kernels.compiled import compiled
from constellation.kernels.cross_entropy import log_sum_exp_total
from constellation.model import JourneyModel
from constellation.training.learner import Learner
from constellation.training.options import TrainingOptions
from tests.golden.tiny import HORIZONS_DAYS, steady_parameters, tiny_batches, tiny_vocabulary
from tests.unit.test_feeding import losses, trained

on_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
LENGTHS = np.array([5, 0, 1, 33, 200, 17, 64])
HALF = 2e-2
"""bfloat16 has 8 bits of mantissa: a sum of like terms is off by less than this share of the largest."""


def assert_near(found: Tensor, expected: Tensor, share: float) -> None:
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= share * max(float(expected.abs().max()), 1e-6)


def attention_inputs(heads: int = 2, head_width: int = 32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    num_rows = int(LENGTHS.sum())
    qkv_NG = torch.randn(num_rows, 3 * heads * head_width, generator=generator)
    angle_NP = torch.randn(num_rows, head_width // 2, generator=generator)
    return qkv_NG, torch.polar(torch.ones_like(angle_NP), angle_NP)


@pytest.mark.gpu
@pytest.mark.parametrize("head_width", [16, 32, 64, 128])
def test_ragged_attention_is_that_of_padded_rows(head_width: int) -> None:
    qkv_NG, turn_NP = (each.cuda() for each in attention_inputs(2, head_width))
    plain = qkv_NG.clone().requires_grad_()
    ragged = qkv_NG.bfloat16().requires_grad_()
    assert has_varlen_kernel(ragged, 2)
    offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(LENGTHS)])).to("cuda", torch.int32)
    found = varlen_attention(ragged, turn_NP, offsets, int(LENGTHS.max()), 2)
    expected = reference_attention(plain, turn_NP, bands_of(LENGTHS, torch.device("cuda")), 2)
    assert_near(found, expected, HALF)
    weight = torch.randn_like(expected)
    (found.float() * weight).sum().backward()
    (expected * weight).sum().backward()
    assert ragged.grad is not None and plain.grad is not None
    assert_near(ragged.grad, plain.grad, 2 * HALF)


@on_device
@pytest.mark.parametrize("vocabulary", [700, 9001])
def test_the_log_sum_exp_is_the_plain_one(device: str, vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((300, 16), (vocabulary, 16), (vocabulary,))
    query, embedding, bias = (torch.randn(shape, generator=generator).to(device).requires_grad_() for shape in shapes)
    weight_R = (torch.rand(300, generator=generator) > 0.3).float().to(device)
    total = log_sum_exp_total(query, embedding, bias, weight_R)
    found = torch.autograd.grad(total, (query, embedding, bias))
    plain = ((query.double() @ embedding.double().T + bias).logsumexp(1) * weight_R).sum()
    assert_near(total, plain, 1e-5)
    for left, right in zip(found, torch.autograd.grad(plain, (query, embedding, bias)), strict=True):
        assert_near(left, right, 1e-4)
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        assert_near(log_sum_exp_total(query, embedding, bias, weight_R), plain, HALF)


@on_device
def test_biases_that_are_looked_up_have_their_gradient(device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(9, 3, generator=generator).to(device).requires_grad_()
    bucket = torch.randint(0, 9, (4, 50, 50), generator=generator).to(device)
    weight = torch.randn(3, 4, 50, 50, generator=generator).to(device)
    found = looked_up(table, bucket)
    expected = table[bucket].permute(3, 0, 1, 2)
    assert torch.equal(found, expected)
    (left,) = torch.autograd.grad((found * weight).sum(), table)
    (right,) = torch.autograd.grad((expected * weight).sum(), table)
    assert_near(left, right, 1e-4)


@on_device
def test_batches_cut_on_the_device_and_made_ahead_are_those_of_the_host(device: str) -> None:
    plain, resident = tiny_batches(max_journeys=3), tiny_batches(max_journeys=3)
    where = torch.device(device, 0) if device == "cuda" else torch.device(device)
    resident.gatherer = DeviceGatherer.of(plain.gatherer, where)
    for found, expected in zip(Prefetched(iter(resident), where), plain, strict=True):
        here: list[Tensor] = []
        there: list[Tensor] = []
        map_tensors(found, there.append)
        map_tensors(expected, here.append)
        assert len(here) == len(there) > 30 and found.num_past_products == expected.num_past_products
        for left, right in zip(there, here, strict=True):
            assert left.device.type == device and left.dtype == right.dtype
            torch.testing.assert_close(left.cpu(), right, rtol=1e-6, atol=0, equal_nan=True)


class Waits(TorchDispatchMode):
    """Names every operator that hands a value or a shape from the device to the host.

    With ``device`` the CPU the same operators are found, where they do not wait for anything.
    """

    ASKING = (
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "unique",
        "bincount",
        "is_nonzero",
        "equal.default",
    )

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = str(func), kwargs or {}
        is_open = "repeat_interleave.Tensor" in name and kwargs.get("output_size") is None
        masks = "index.Tensor" in name and any(each is not None and each.dtype == torch.bool for each in args[1])
        if is_open or masks or any(f"aten.{asking}" in name for asking in self.ASKING):
            self.found.append(name)
        return func(*args, **kwargs)


def learner_of(encoder: str, device: str) -> tuple[Learner, torch.optim.Optimizer]:
    sizes = {"width": 16, "layers": 2, "dropout": 0.1}
    config = {
        "encoder": {"_target_": f"constellation.encoders.{encoder}", **sizes},
        "readout": {"_target_": "constellation.encoders.readout.Readout", **sizes},
        "objective": {
            "value": {
                "_target_": "constellation.objectives.value.Value",
                "family": {"_target_": "constellation.objectives.families.Quantiles"},
            },
            "next_event": {"_target_": "constellation.objectives.next_event.NextEvent", "width": 16},
        },
    }
    model = build_model(config, tiny_vocabulary(), HORIZONS_DAYS)
    learner = Learner(model, lambda parameters: torch.optim.AdamW(parameters, lr=0.01, fused=True), total_steps=10).to(
        device
    )
    return learner.train(), learner.configure_optimizers()["optimizer"]


def step(learner: Learner, optimizer: torch.optim.Optimizer, batch: JourneyBatch, number: int) -> None:
    with torch.autocast("cuda", torch.bfloat16, enabled=batch.time_N.device.type == "cuda"):
        loss = learner.training_step(batch, number)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    learner.average(number + 1)


ENCODERS = ("transformer.Transformer", "gru.Gru", "hstu.Hstu", "bag.Bag")

ASKS_ON_A_CPU = {"aten.nonzero.default", "aten._local_scalar_dense.default", "aten.bincount.default"}
"""kernels/cross_entropy.py leaves out rows that are not asked and looks for overflow, kernels/bags.py and hstu count by
histogram: on a GPU each has another way."""


@pytest.mark.parametrize("encoder", ENCODERS)
def test_only_the_kernels_of_the_cpu_read_values(encoder: str) -> None:
    """Nothing else of a step asks a tensor for a value: neither batch, nor readout, nor objectives, nor learner."""
    learner, optimizer = learner_of(encoder, "cpu")
    batches = list(tiny_batches(max_journeys=3))
    step(learner, optimizer, batches[0], 0)
    with Waits() as waits:
        loss = learner.training_step(batches[1], 1)
        loss.backward()
        learner.average(2)
    assert set(waits.found) <= ASKS_ON_A_CPU


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_step_never_waits_for_the_device(encoder: str, resident: bool) -> None:
    learner, optimizer = learner_of(encoder, "cuda")
    batches = tiny_batches(max_journeys=3)
    if resident:
        batches.gatherer = DeviceGatherer.of(batches.gatherer, torch.device("cuda", 0))
    for number, batch in enumerate(batches):  # libraries are loaded and memory is taken at the first steps
        step(learner, optimizer, batch.to("cuda"), number)
    batches.epoch = 1
    with waiting_is_an_error():
        for number, batch in enumerate(batches):
            step(learner, optimizer, batch.to("cuda"), number)
    assert all(np.isfinite(list(learner.take_means().values())))


@pytest.mark.gpu
@pytest.mark.slow
def test_a_compiled_training_has_the_losses_of_a_plain_one(tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain", dropout=0.0, accelerator="gpu")
    fused = trained(tmp_path / "fused", dropout=0.0, accelerator="gpu", compile=True)
    for here, there in zip(losses(plain), losses(fused), strict=True):
        assert here == pytest.approx(there, rel=1e-3)


@pytest.mark.gpu
def test_a_training_is_the_same_however_it_is_fed(tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain", accelerator="gpu", store_on_device=False, prefetch=False)
    fed = trained(tmp_path / "fed", accelerator="gpu", store_on_device=True, prefetch=True)
    for here, there in zip(losses(plain), losses(fed), strict=True):
        assert here == pytest.approx(there, rel=1e-3)  # atomic additions come in any order


def half(model: JourneyModel, batch: JourneyBatch, device: str) -> dict[str, Tensor]:
    with torch.autocast(device, torch.bfloat16), torch.no_grad():
        return {name: loss.mean for name, loss in model.loss(batch).items()}


@pytest.mark.gpu
@pytest.mark.parametrize("encoder", ENCODERS)
def test_losses_in_half_precision_are_near(encoder: str) -> None:
    learner, _ = learner_of(encoder, "cpu")
    model = steady_parameters(learner.model)
    assert isinstance(model, JourneyModel)
    batch = next(iter(tiny_batches(max_journeys=8)))
    with torch.no_grad():
        expected = {name: loss.mean for name, loss in model.loss(batch).items()}
    there = copy.deepcopy(model).to("cuda")
    for is_compiled in (False, True):
        with compiled(is_compiled):
            found = half(there, batch.to("cuda"), "cuda")
        for name, loss in expected.items():
            assert float(found[name]) == pytest.approx(float(loss), rel=3e-2), name


@pytest.mark.gpu
@pytest.mark.slow
def test_the_benchmark_of_a_device_adds_up() -> None:
    training = TrainingOptions(accelerator="gpu", precision="bf16-mixed")
    (row,) = benchmark_device(training, widths=(64,), num_journeys=500, warmup_steps=3, num_steps=5)
    assert sum(row[f"share_{group}"] for group in GROUPS) == pytest.approx(1)
    assert row["share_attention"] > 0 and row["share_matrix_products"] > 0
    assert 0 < row["model_flop_utilisation"] < 1 and row["peak_tflops"] > 10
