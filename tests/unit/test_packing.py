"""A batch in one piece: what comes out is what went in, whatever is in it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from constellation.journeys.packing import ALIGNMENT, map_tensors, pack, to_device, unpack
from tests.golden.tiny import tiny_batch


def tensors_of(thing: Any) -> list[Tensor]:
    found: list[Tensor] = []
    map_tensors(thing, found.append)
    return found


def test_a_batch_crosses_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = tiny_batch()
    crossings = []
    original = Tensor.to

    def counted(self: Tensor, *given: Any, **named: Any) -> Tensor:
        crossings.append(self)
        return original(self, *given, **named)

    monkeypatch.setattr(Tensor, "to", counted)
    moved = to_device(batch, torch.device("cpu"))
    assert len(crossings) == 1
    assert type(moved) is type(batch) and moved.max_length == batch.max_length
    assert moved.targets is not None and moved.targets.horizons_days == batch.targets.horizons_days  # type: ignore[union-attr]
    here, there = tensors_of(batch), tensors_of(moved)
    assert len(here) == len(there) > 30
    storages = {tensor.untyped_storage().data_ptr() for tensor in there}
    assert len(storages) == 1
    for mine, theirs in zip(here, there, strict=True):
        assert mine.dtype == theirs.dtype and mine.shape == theirs.shape and theirs.is_contiguous()
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)


def test_on_its_own_device_a_batch_stays_itself() -> None:
    batch = tiny_batch()
    assert batch.to("cpu") is batch


def test_the_model_reads_views_as_it_reads_tensors() -> None:
    """A view into bytes must be aligned for the kernels, and embedding bags want contiguous offsets."""
    from constellation.encoders.gru import Gru
    from tests.golden.tiny import tiny_vocabulary

    batch = tiny_batch()
    encoder = Gru(tiny_vocabulary(), width=8).eval()
    assert torch.equal(encoder(batch), encoder(to_device(batch, torch.device("cpu"))))


KINDS = (torch.int64, torch.int32, torch.float32, torch.float64, torch.bool, torch.uint8, torch.bfloat16)


@given(st.lists(st.tuples(st.sampled_from(KINDS), st.lists(st.integers(0, 4), max_size=3)), max_size=8))
def test_any_shapes_and_kinds(parts: list[tuple[torch.dtype, list[int]]]) -> None:
    thing = {str(place): (torch.randint(0, 2, shape).to(kind),) for place, (kind, shape) in enumerate(parts)}
    buffer = pack(thing)
    assert buffer.dtype == torch.uint8 and len(buffer) % ALIGNMENT == 0
    again = unpack(buffer, thing)
    for mine, theirs in zip(tensors_of(thing), tensors_of(again), strict=True):
        assert mine.dtype == theirs.dtype and torch.equal(mine, theirs)


def test_tensors_with_gaps_are_packed_by_value() -> None:
    batch = tiny_batch()
    wide = torch.arange(2 * batch.num_events).reshape(-1, 2)
    sparse = replace(batch, position_N=wide[:, 1])
    assert not sparse.position_N.is_contiguous()
    assert torch.equal(to_device(sparse, torch.device("cpu")).position_N, wide[:, 1])
