"""What a step costs whatever its size: the precision of products for few events, and the walk through the weights."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from constellation.training import fit as fitting
from constellation.training.fit import has_small_steps
from constellation.training.learner import Learner
from tests.golden.tiny import tiny_vocabulary
from tests.unit.test_training import ADAM, OPTIONS, build


class Batches:
    """So many batches of so many events in all, of a shop with so many products."""

    def __init__(self, num_batches: int, num_events: int, num_products: int) -> None:
        self.num_batches, self.num_events = num_batches, num_events
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
    assert has_small_steps(batches, num_ranks) is small


def test_products_are_chosen_once_and_bfloat16_only_where_it_may_pay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "measured_choice", lambda: "bfloat16")
    options, few, many = replace(OPTIONS, products="auto"), Batches(10, 1000, 0), Batches(10, 100_000, 0)
    assert fitting._products(options, tmp_path / "few", few, 1) == "float32"  # type: ignore[arg-type]
    assert fitting._products(options, tmp_path / "many", many, 1) == "bfloat16"  # type: ignore[arg-type]
    assert fitting._products(options, tmp_path / "few", many, 1) == "float32"  # type: ignore[arg-type]
    monkeypatch.setattr(fitting, "measured_choice", lambda: "fused")
    monkeypatch.setattr(fitting, "can_work", lambda: True)
    assert fitting._products(options, tmp_path / "fused", few, 1) == "fused"  # type: ignore[arg-type]
    monkeypatch.setattr(fitting, "can_work", lambda: False)
    assert fitting._products(options, tmp_path / "threads", few, 1) == "float32"  # type: ignore[arg-type]
    assert fitting._products(options, tmp_path / "more threads", many, 1) == "bfloat16"  # type: ignore[arg-type]
    chosen = replace(options, products="bfloat16")
    assert fitting._products(chosen, tmp_path / "few", few, 1) == "bfloat16"  # type: ignore[arg-type]


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
