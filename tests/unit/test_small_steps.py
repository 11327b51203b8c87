"""What a step costs whatever its size: the precision of products for few events, and the walk through the weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from constellation.encoders.bag import Bag
from constellation.encoders.base import Encoder
from constellation.encoders.gru import Gru
from constellation.encoders.hstu import Hstu
from constellation.encoders.transformer import Layer, Transformer
from constellation.kernels.whole_layer import takes
from constellation.training import precision
from constellation.training.learner import Learner
from tests.golden.tiny import tiny_vocabulary
from tests.unit.test_native import compiled
from tests.unit.test_training import ADAM, OPTIONS, build


class Batches:
    """So many batches, which go over so many events once or more often, of a shop with so many products."""

    def __init__(self, num_batches: int, num_events: int, num_products: int, passes: int = 1) -> None:
        self.num_batches, self.num_events, self.passes = num_batches, num_events, passes
        self.gatherer = SimpleNamespace(vocabulary=SimpleNamespace(products=range(num_products)))

    def __len__(self) -> int:
        return self.num_batches


@pytest.mark.parametrize(
    ("num_batches", "num_events", "num_products", "num_ranks", "small"),
    [
        (67, 5616, 0, 1, True),  # 84 events a step
        (10, 16_000, 0, 1, False),  # 1,600
        (10, 16_000, 0, 2, True),  # of which each rank has a half
        (10, 8_000, 650, 1, False),  # 800, and a softmax that costs as much again as the body
        (0, 0, 0, 1, True),
    ],
)
def test_small_steps_by_hand(num_batches: int, num_events: int, num_products: int, num_ranks: int, small: bool) -> None:
    batches: Any = Batches(num_batches, num_events, num_products)
    assert precision.has_small_steps(batches, num_ranks) is small


def test_an_epoch_of_several_passes_has_the_steps_of_one() -> None:
    batches: Any = Batches(30, 5_600, 0, passes=10)
    assert not precision.has_small_steps(batches, 1)  # three steps a pass, of 1,867 events


WHOLE, CAST = SimpleNamespace(has_whole_layers=True), SimpleNamespace(has_whole_layers=False)
"""Encoders whose layers the kernels in C++ take, and do not take."""


def choose(folder: Path, batches: Any, products: str = "auto", encoder: Any = WHOLE) -> str:
    return precision.chosen_products(replace(OPTIONS, products=products), folder, batches, 1, encoder)


def test_products_are_chosen_once_and_bfloat16_only_where_it_may_pay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "measured_choice", lambda: "bfloat16")
    few, many = Batches(10, 1000, 0), Batches(10, 100_000, 0)
    assert choose(tmp_path / "few", few) == "float32"
    assert choose(tmp_path / "many", many) == "bfloat16"
    assert choose(tmp_path / "few", many) == "float32"  # as chosen before
    monkeypatch.setattr(precision, "measured_choice", lambda: "fused")
    monkeypatch.setattr(precision, "can_work", lambda: True)
    assert choose(tmp_path / "fused", few) == "fused"
    assert choose(tmp_path / "fused, casts, few", few, encoder=CAST) == "float32"
    assert choose(tmp_path / "fused, casts, many", many, encoder=CAST) == "fused"
    monkeypatch.setattr(precision, "can_work", lambda: False)
    assert choose(tmp_path / "not here", few) == "float32"
    assert choose(tmp_path / "not here, many", many) == "bfloat16"
    assert choose(tmp_path / "few", few, products="bfloat16") == "bfloat16"


@compiled
@pytest.mark.parametrize(
    ("encoder", "is_whole"),
    [
        (partial(Transformer, width=64), True),
        (partial(Transformer, width=48), False),
        (partial(Transformer, width=32, heads=4), False),
        (partial(Transformer, width=256), True),
        (partial(Transformer, width=256, expansion=4), False),
        (partial(Hstu, width=64), False),
        (partial(Gru, width=64), False),
        (partial(Bag, width=64), False),
    ],
)
def test_encoders_know_which_layers_the_kernels_take(encoder: Callable[..., Encoder], is_whole: bool) -> None:
    made = encoder(tiny_vocabulary())
    assert made.has_whole_layers is is_whole
    if isinstance(made, Transformer):
        (layer, *_) = made.layers
        assert isinstance(layer, Layer)
        assert takes(torch.zeros(3, made.width), layer.weights(), layer.heads) is is_whole


def test_the_average_follows_weights_that_were_loaded_later() -> None:
    """The weights are looked up once; loading and training change them in place."""
    torch.manual_seed(0)
    learner = Learner(build(tiny_vocabulary()), ADAM, total_steps=10, averaging=0.5)
    learner.average(100)  # looks the weights up
    assert learner.averaged is not None
    other = {name: part + 1 for name, part in learner.model.state_dict().items() if part.is_floating_point()}
    before = copy.deepcopy(learner.averaged)
    learner.model.load_state_dict(other, strict=False)
    learner.average(100)
    for (name, slow), quick in zip(learner.averaged.named_parameters(), learner.model.parameters(), strict=True):
        torch.testing.assert_close(slow, (before.get_parameter(name) + quick) / 2)
