"""On a GPU as on the CPU: batch, forward, losses, answers, a training, and weights that go back.

Each test runs on the CPU everywhere, where it holds the test itself to account, and on CUDA where there is a device.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from constellation.answering import answer_all
from constellation.building import build_model
from constellation.bundle import Bundle
from constellation.journeys.batch import Gatherer, JourneyBatch
from constellation.journeys.sampling import TrainingBatches
from constellation.model import JourneyModel
from constellation.training.fit import Fitted, fit
from constellation.training.options import TrainingOptions
from constellation.training.study import Scorer
from tests.golden.tiny import (
    HORIZONS_DAYS,
    KNOWN_UNTIL,
    steady_parameters,
    tiny_batch,
    tiny_queries,
    tiny_store,
    tiny_vocabulary,
)

TOLERANCE = 1e-4
"""Relative to the largest magnitude of a tensor: float32 sums in another order."""

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
ENCODERS = {
    "bag": "constellation.encoders.bag.Bag",
    "gru": "constellation.encoders.gru.Gru",
    "hstu": "constellation.encoders.hstu.Hstu",
    "transformer": "constellation.encoders.transformer.Transformer",
}
FAMILIES = ("Ziln", "Quantiles")
ACCELERATORS = {"cpu": "cpu", "cuda": "gpu"}
ADAMW = partial(torch.optim.AdamW, lr=0.01, fused=True)  # as configs/optimizer/adamw.yaml

on_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
with_encoder = pytest.mark.parametrize("encoder", ENCODERS)
with_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(autouse=True)
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN's recurrent kernels take TF32 by default, ten bits of mantissa: 1e-3 and not 1e-4."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def config_of(encoder: str, family: str = "Ziln") -> dict[str, Any]:
    """A small model with every kind of question. Without dropout, whose random numbers are each device's own."""
    small = {"width": 8, "layers": 2, "dropout": 0.0}
    return {
        "encoder": {"_target_": ENCODERS[encoder], **small},
        "readout": {"_target_": "constellation.encoders.readout.Readout", **small},
        "objective": {
            "value": {
                "_target_": "constellation.objectives.value.Value",
                "family": {"_target_": f"constellation.objectives.families.{family}"},
            },
            "next_event": {"_target_": "constellation.objectives.next_event.NextEvent", "width": 4},
        },
    }


def model_of(encoder: str, family: str = "Ziln") -> JourneyModel:
    model = build_model(config_of(encoder, family), tiny_vocabulary(), HORIZONS_DAYS)
    steady_parameters(model)
    return model


def tensors(thing: Any, name: str = "batch") -> Iterator[tuple[str, Tensor]]:
    """Every tensor inside, with where it stands; written without the batch's own walk, which is under test."""
    if isinstance(thing, Tensor):
        yield name, thing
    elif is_dataclass(thing):
        for field in fields(thing):
            yield from tensors(getattr(thing, field.name), f"{name}.{field.name}")
    elif isinstance(thing, dict):
        for key, value in thing.items():
            yield from tensors(value, f"{name}[{key!r}]")
    elif isinstance(thing, (tuple, list)):
        for place, value in enumerate(thing):
            yield from tensors(value, f"{name}[{place}]")


def assert_near(found: Any, expected: Any, what: str) -> None:
    found, expected = (torch.as_tensor(each).detach().cpu().double() for each in (found, expected))
    assert found.shape == expected.shape, what
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(
        found, expected, rtol=TOLERANCE, atol=TOLERANCE * scale, msg=lambda text: f"{what}: {text}"
    )


def assert_same_answers(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        if name.startswith("purchases") and name.endswith("quantiles"):
            # A count is whole: where its distribution function meets a level, the last bit decides between two.
            step = (torch.as_tensor(found[name]).cpu() - torch.as_tensor(values).cpu()).abs()
            assert step.max() <= 1 and (step > 0).double().mean() < 0.01, name
        else:
            assert_near(found[name], values, name)


@on_device
def test_a_batch_crosses_whole(device: str) -> None:
    batch = tiny_batch()
    moved = batch.to(device)
    before, after = dict(tensors(batch)), dict(tensors(moved))
    assert before.keys() == after.keys()
    assert {"batch.targets.next_products[0]", "batch.lists['product'][1]", "batch.attributes['region']"} <= after.keys()
    for name, tensor in after.items():
        assert tensor.device.type == device, name
        assert tensor.dtype == before[name].dtype, name
        torch.testing.assert_close(tensor.cpu(), before[name], rtol=0, atol=0, equal_nan=True)
    assert isinstance(moved.max_length, int) and moved.max_length == batch.max_length  # nobody must ask the device
    assert moved.targets is not None and moved.targets.horizons_days == HORIZONS_DAYS


@pytest.mark.gpu
def test_a_batch_crosses_from_pinned_memory() -> None:
    batch = tiny_batch()
    moved = batch.pin_memory().to("cuda")
    torch.cuda.synchronize()
    for (name, there), (_, here) in zip(tensors(moved), tensors(batch), strict=True):
        torch.testing.assert_close(there.cpu(), here, rtol=0, atol=0, equal_nan=True, msg=name)


@on_device
@with_encoder
def test_states_and_readouts_agree(encoder: str, device: str) -> None:
    model, batch = model_of(encoder), tiny_batch()
    there = copy.deepcopy(model).to(device)
    with torch.no_grad():
        found, expected = there(batch.to(device)), model(batch)
    for name, left, right in zip(("states", "readout"), found, expected, strict=True):
        assert left.device.type == device
        assert_near(left, right, name)


@on_device
@with_encoder
@with_family
def test_losses_agree(encoder: str, family: str, device: str) -> None:
    model, batch = model_of(encoder, family), tiny_batch()
    there = copy.deepcopy(model).to(device)
    with torch.no_grad():
        found, expected = there.loss(batch.to(device)), model.loss(batch)
    assert found.keys() == expected.keys()
    for name, loss in expected.items():
        assert found[name].total.device.type == device
        assert_near(found[name].total, loss.total, name)
        assert float(found[name].count) == float(loss.count)
        for part, value in loss.parts.items():
            assert_near(found[name].parts[part], value, f"{name}/{part}")


@on_device
@with_encoder
@with_family
def test_answers_agree(encoder: str, family: str, device: str) -> None:
    """Through the one path of validation, evaluation and bundle, which brings the answers back to the host."""
    store, model = tiny_store(), model_of(encoder, family)
    gatherer, queries = Gatherer(store, tiny_vocabulary(store)), tiny_queries(store)
    expected = answer_all(model, gatherer, queries, LEVELS)
    found = answer_all(copy.deepcopy(model).to(device), gatherer, queries, LEVELS, max_journeys=5)
    assert all(isinstance(values, np.ndarray) for values in found.values())
    assert_same_answers(found, expected)


@on_device
def test_a_customer_without_events_is_answered(device: str) -> None:
    """An empty journey makes kernels of size zero, which devices like less than hosts."""
    store = tiny_store(lengths=(0, 4, 0))
    gatherer, queries = Gatherer(store, tiny_vocabulary(store)), tiny_queries(store).take(np.arange(4))
    for encoder in ENCODERS:
        model = build_model(config_of(encoder), gatherer.vocabulary, HORIZONS_DAYS)
        expected = answer_all(steady_parameters(model), gatherer, queries, LEVELS)  # type: ignore[arg-type]
        assert_same_answers(answer_all(model.to(device), gatherer, queries, LEVELS), expected)


@on_device
@with_encoder
def test_a_step_has_the_gradients_of_the_cpu(encoder: str, device: str) -> None:
    # In training mode, for cuDNN's recurrent kernels have no backward pass otherwise.
    model, batch = model_of(encoder).train(), tiny_batch()
    there = copy.deepcopy(model).to(device)
    for each, seen in ((model, batch), (there, batch.to(device))):
        torch.stack([loss.mean for loss in each.loss(seen).values()]).sum().backward()
    touched = 0
    for (name, here), (_, moved) in zip(model.named_parameters(), there.named_parameters(), strict=True):
        assert (here.grad is None) == (moved.grad is None), name
        if moved.grad is None or here.grad is None:
            continue
        assert bool(torch.isfinite(moved.grad).all()), name
        touched += bool(here.grad.abs().max() > 0)
        # A gradient is a sum of terms that cancel; what is left of rounding is small against the terms.
        scale = max(float(here.grad.abs().max()), 0.01)
        assert float((moved.grad.cpu() - here.grad).abs().max()) <= 10 * TOLERANCE * scale, name
    assert touched > 10


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def trained(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Fitted]:
    device, store = request.param, tiny_store()
    gatherer, queries = Gatherer(store, tiny_vocabulary(store)), tiny_queries(store)
    batches = TrainingBatches(
        gatherer, np.arange(store.num_customers), KNOWN_UNTIL, HORIZONS_DAYS, cutoffs_per_journey=4, max_journeys=3
    )
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    model = model_of("gru").train()
    scorer = Scorer(gatherer, queries)

    def score(learned: torch.nn.Module) -> dict[str, float]:
        assert next(learned.parameters()).device.type == device
        return scorer(learned)

    fitted = fit(
        model,
        batches,
        ADAMW,
        TrainingOptions(max_epochs=3, max_journeys=3, accelerator=ACCELERATORS[device]),
        tmp_path / "phase",
        label="test",
        score=score,
        monitor="value_91d/crps",
    )
    return device, fitted


def test_a_training_runs(trained: tuple[str, Fitted]) -> None:
    device, fitted = trained
    assert len(fitted.history) == 3 and all(np.isfinite(list(row.values())).all() for row in fitted.history)
    assert fitted.history[-1]["train/loss"] < fitted.history[0]["train/loss"]
    before = dict(model_of("gru").named_parameters())
    after = dict(fitted.model.named_parameters())
    assert all(part.device.type == "cpu" for part in after.values())  # a result is handed on from the host
    assert any(not torch.equal(before[name], part) for name, part in after.items())
    assert fitted.peak_memory_gib > 0
    if device == "cuda":
        assert torch.cuda.max_memory_allocated() > 0, "nothing was ever on the device"


def test_what_was_trained_is_loaded_on_either_side(trained: tuple[str, Fitted], tmp_path: Path) -> None:
    device, fitted = trained
    store, model = tiny_store(), fitted.model.to(device)
    vocabulary, queries = tiny_vocabulary(store), tiny_queries(store)
    expected = answer_all(model, Gatherer(store, vocabulary), queries, LEVELS)
    bundle = Bundle(model=model, vocabulary=vocabulary, schema=store.manifest.schema, model_config=config_of("gru"))
    folder = bundle.save(tmp_path / "bundle")
    for there in ("cpu", device):
        loaded = Bundle.load(folder, device=there)
        assert next(loaded.model.parameters()).device.type == there
        assert_same_answers(loaded.predict_store(store, queries, LEVELS), expected)


def test_the_walk_of_this_file_finds_every_tensor() -> None:
    batch = tiny_batch()
    assert isinstance(batch, JourneyBatch)
    assert len(list(tensors(batch))) == repr(batch).count("tensor(")
