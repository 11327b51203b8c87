"""What training will need, told beforehand: counted by hand, held against a measured run, and refused in time."""

from __future__ import annotations

import copy
import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from constellation import memory
from constellation.errors import InputError
from constellation.journeys.batch import Gatherer
from constellation.journeys.device_gather import device_bytes
from constellation.journeys.ranks import RankBatches
from constellation.journeys.sampling import TrainingBatches
from constellation.journeys.splits import Splits
from constellation.model import JourneyModel
from constellation.training import footprint
from constellation.training.fit import _pieces, fit
from constellation.training.footprint import LiveBytes, check_memory, state_of, step_of
from constellation.training.study import fit_vocabulary, training_batches
from tests.unit.test_training import ADAM, OPTIONS, STORE, WINDOWS, build


@pytest.fixture
def case() -> tuple[JourneyModel, TrainingBatches]:
    splits = Splits(STORE, WINDOWS)
    vocabulary = fit_vocabulary(splits, OPTIONS, splits.select_panel, splits.val_cutoff)
    gatherer = Gatherer(STORE, vocabulary)
    return build(vocabulary), training_batches(gatherer, splits, splits.val_cutoff, OPTIONS, 0)


def test_live_bytes_by_hand() -> None:
    with LiveBytes() as live:
        a = torch.zeros(1000)  # 4,000
        b = a + 1  # 8,000
        view = b[:10]  # the same bytes
        del a  # 4,000
        c = torch.cat([b, b])  # 12,000
        del b  # held by the view
    assert (live.now, live.peak) == (12_000, 12_000)
    del view, c
    assert live.now == 0


def test_activations_are_held_until_the_backward() -> None:
    weight = torch.zeros(100, 100, requires_grad=True)
    x = torch.ones(50, 100)
    with LiveBytes() as live:
        hidden = (x @ weight).exp()  # exp keeps its own output, 20,000; the product is let go
        held = live.now
        hidden.sum().backward()
    assert held == 20_000
    assert live.peak >= 20_000 + 20_000 + 40_000  # the output, its gradient, the gradient of the weight


def test_state_by_hand(case: Any) -> None:
    model, _ = case
    size = 4 * sum(part.numel() for part in model.parameters())
    assert state_of(model, replace(OPTIONS, averaging=0.0), 1) == 4 * size  # gradient, two moments, the best epoch's
    assert state_of(model, OPTIONS, 1) == 5 * size
    assert state_of(model, replace(OPTIONS, strategy="fsdp"), 2) == 3 * size  # four spread over two, one whole


def test_the_probe_changes_nothing(case: Any) -> None:
    model, batches = case
    before, weights = torch.get_rng_state(), [part.detach().clone() for part in model.parameters()]
    model.eval()
    step_of(model, batches, OPTIONS, 1)
    assert torch.equal(before, torch.get_rng_state())
    assert all(part.grad is None for part in model.parameters())
    assert not model.training and batches.epoch == 0
    assert all(torch.equal(one, two) for one, two in zip(weights, model.parameters(), strict=True))


def test_the_line_meets_the_whole_batch(case: Any) -> None:
    """Extrapolated from an eighth of the events, and counted on all of them."""
    model, batches = case
    batches = replace(batches, max_journeys=256, max_tokens=10**6)
    ((rows, cutoff_RK),) = batches.draws()
    counted = footprint._probe(model, batches.gather(rows, cutoff_RK), "32-true")
    told, num_events = step_of(model, batches, OPTIONS, 1)
    assert num_events == batches.num_events
    assert told / footprint.SLACK == pytest.approx(counted, rel=0.3)
    shared, _ = step_of(model, batches, OPTIONS, 2)
    assert 0.4 * told < shared < 0.7 * told


def test_what_does_not_fit_is_refused_with_advice(case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = case
    batches = replace(batches, max_journeys=256, max_tokens=10**6)
    step, num_events = step_of(model, batches, OPTIONS, 1)
    free = (state_of(model, OPTIONS, 1) + step / 2) / 2**30
    monkeypatch.setattr(footprint, "available_memory_gib", lambda: free)
    with pytest.raises(InputError, match=r"Training needs about .* GiB more.*training\.max_tokens=(\d+)") as refused:
        fit(model, batches, ADAM, OPTIONS, tmp_path, label="")
    advised = int(str(refused.value).split("training.max_tokens=")[1].split()[0])
    assert 0.3 * num_events < advised < 0.5 * num_events
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_is_taken_in_pieces(
    case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, batches = case
    batches = replace(batches, max_journeys=64, max_tokens=10**6)
    options = replace(OPTIONS, adapt_batch=True, max_epochs=2)
    whole = fit(copy.deepcopy(model), batches, ADAM, options, tmp_path / "whole", label="", num_steps=2 * len(batches))
    step, _ = step_of(model, batches, OPTIONS, 1)
    free = (state_of(model, OPTIONS, 1) + step / 3) / 2**30
    monkeypatch.setattr(footprint, "available_memory_gib", lambda: free)
    with caplog.at_level("WARNING"):
        found = fit(model, batches, ADAM, options, tmp_path / "cut", label="", num_steps=2 * len(batches))
    pieces = int((tmp_path / "cut/pieces.txt").read_text())
    assert pieces in (4, 8) and f"in {pieces} pieces" in caplog.text
    assert not (tmp_path / "whole/pieces.txt").exists()
    assert found.num_steps == whole.num_steps == 2 * len(batches)
    assert [row["train/pieces_per_batch"] for row in found.history] == [pieces] * len(found.history)
    for one, two in zip(found.history, whole.history, strict=True):
        assert one["step"] == two["step"]
        # A mean over all targets; in train/loss a piece counts as much as any other, whatever it asks.
        (mean,) = (name for name in one if name.endswith("/loss") and name != "train/loss")
        assert one[mean] == pytest.approx(two[mean], rel=0.1)
    # Resumed on a machine with room, it goes on as it began; and without leave to adapt it is refused.
    monkeypatch.setattr(footprint, "available_memory_gib", lambda: 100.0)
    assert _pieces(model, batches, options, 1, tmp_path / "cut")[0] == pieces
    assert _pieces(model, batches, options, 1, tmp_path / "whole")[0] == 1


def test_pieces_of_ranks_are_disjoint_and_are_the_batch(case: Any) -> None:
    _, batches = case
    batches = replace(batches, before_first_share=0.5)
    wholes = list(batches)
    parts = [list(RankBatches(batches, rank, 2, pieces=3).from_place(0)) for rank in range(2)]
    assert len(parts[0]) == 3 * len(wholes) == len(RankBatches(batches, 0, 2, pieces=3))
    for place, whole in enumerate(wholes):
        pieces = [piece for rank in parts for piece in rank[3 * place : 3 * place + 3]]
        for column in ("time_N", "cutoff_Q", "lengths_B"):
            together = torch.cat([getattr(piece, column) for piece in pieces])
            assert torch.equal(together.sort().values, getattr(whole, column).sort().values)
    later = list(RankBatches(batches, 1, 2, pieces=3).from_place(4))
    assert len(later) == len(parts[1]) - 4
    assert torch.equal(later[0].time_N, parts[1][4].time_N)


def test_a_store_on_the_device_is_counted(case: Any) -> None:
    model, batches = case
    without = check_memory(model, batches, OPTIONS, 1).peak_gib
    there = check_memory(model, batches, replace(OPTIONS, store_on_device=True), 1).peak_gib
    store = device_bytes(batches.gatherer.store, batches.gatherer.vocabulary) / 2**30
    assert there - without == pytest.approx(store, rel=0.2, abs=0.01)


def test_memory_left_in_a_control_group(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("8000\n")
    (tmp_path / "memory.current").write_text("5000\n")
    (tmp_path / "memory.stat").write_text("anon 3000\ninactive_file 1000\n")
    assert min(memory._left_in_groups(tmp_path)) == 4000
    (tmp_path / "memory.max").write_text("max\n")
    assert min(memory._left_in_groups(tmp_path)) == float("inf")
    assert min(memory._left_in_groups(tmp_path / "nothing")) == float("inf")
    assert 0 < memory.available_memory_gib() < 1e6
    assert 0 < memory.resident_memory_gib() <= memory.peak_memory_gib() * 1.01


def _measured(queue: Any) -> None:
    """In a process of its own: predicted and measured growth of the memory, in GiB."""
    import tempfile

    from constellation.building import build_model

    splits = Splits(STORE, WINDOWS)
    options = replace(OPTIONS, max_journeys=256, max_tokens=10**6, cutoffs_per_journey=400, max_epochs=2)
    vocabulary = fit_vocabulary(splits, options, splits.select_panel, splits.val_cutoff)
    from tests.unit.test_training import MODEL

    wide = MODEL | {
        "encoder": {"_target_": "constellation.encoders.transformer.Transformer", "width": 512, "layers": 4},
        "readout": MODEL["readout"] | {"width": 512},
    }
    model = build_model(wide, vocabulary, WINDOWS.horizons_days)
    batches = training_batches(Gatherer(STORE, vocabulary), splits, splits.val_cutoff, options, 0)
    before = memory.resident_memory_gib()
    with tempfile.TemporaryDirectory() as folder:
        fitted = fit(model, batches, ADAM, options, Path(folder), label="", num_steps=3)
    queue.put((fitted.predicted_memory_gib - before, fitted.peak_memory_gib - before))


@pytest.mark.slow
def test_predicted_is_near_measured() -> None:
    spawn = multiprocessing.get_context("spawn")
    queue = spawn.Queue()
    process = spawn.Process(target=_measured, args=(queue,))
    process.start()
    predicted, measured = queue.get(timeout=300)
    process.join()
    assert measured > 0.2
    assert predicted == pytest.approx(measured, rel=0.3)
