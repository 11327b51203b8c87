"""Two processes over gloo train what one trains: the same losses from the same global batches."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from constellation.building import build_model
from constellation.errors import InputError
from constellation.journeys.batch import Gatherer
from constellation.journeys.ranks import RankBatches, balanced_parts
from constellation.journeys.splits import Splits
from constellation.journeys.vocabulary import Vocabulary
from constellation.journeys.windows import Windows
from constellation.model import JourneyModel
from constellation.training import ranks
from constellation.training.study import Study, fit_vocabulary, training_batches
from tests.unit.test_resume import losses
from tests.unit.test_training import MODEL, OPTIONS, STORE, WINDOWS, Stopper, same, train, weights

TWO = replace(OPTIONS, devices=2, accelerator="cpu", strategy="ddp", checkpoint_every_steps=1)
STILL = MODEL | {
    "encoder": {"_target_": "constellation.encoders.gru.Gru", "width": 4, "layers": 2, "dropout": 0.0},
    "readout": MODEL["readout"] | {"dropout": 0.0},
    "objective": MODEL["objective"]
    | {"next_event": {"_target_": "constellation.objectives.next_event.NextEvent", "width": 4, "weight": 0.5}},
}


SGD = partial(torch.optim.SGD, lr=0.01, momentum=0.9)
"""Moves with the gradient; Adam turns the rounding of a gradient near zero into a whole step."""


def build(vocabulary: Vocabulary) -> JourneyModel:
    return build_model(STILL, vocabulary, WINDOWS.horizons_days)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return train(tmp_path_factory.mktemp("one"), build=build, optimizer=SGD)


@pytest.fixture(scope="module", autouse=True)
def nobody_left() -> Iterator[None]:
    yield
    ranks.dismiss()


def assert_close(found: Study, wanted: Study, tolerance: float = 1e-6) -> None:
    for mine, theirs in zip(losses(found), losses(wanted), strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine:
            if name.startswith("train/"):
                assert mine[name] == pytest.approx(theirs[name], rel=tolerance), name
    for mine, theirs in zip(weights(found), weights(wanted), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_two_processes_learn_what_one_learns(one: Study, tmp_path: Path) -> None:
    found = train(tmp_path, options=TWO, build=build, optimizer=SGD)
    assert len(found.selected.history) == 3
    assert_close(found, one)


def test_a_stopped_team_goes_on_exactly(tmp_path: Path) -> None:
    """Dropout draws other numbers on each rank; each goes on with its own."""
    parts = {name: STILL[name] | {"dropout": 0.3} for name in ("encoder", "readout")}

    def drop(vocabulary: Vocabulary) -> JourneyModel:
        return build_model(STILL | parts, vocabulary, WINDOWS.horizons_days)

    whole = train(tmp_path / "whole", options=TWO, build=drop)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", options=TWO, build=drop, report=Stopper("select", 1))
    resumed = train(tmp_path / "parts", options=TWO, build=drop)
    assert losses(resumed) == losses(whole)
    assert same(resumed, whole)


@pytest.mark.slow
def test_fully_sharded_training_learns_the_same_and_resumes(one: Study, tmp_path: Path) -> None:
    sharded = replace(TWO, strategy="fsdp")
    found = train(tmp_path / "whole", options=sharded, build=build, optimizer=SGD)
    assert_close(found, one)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", options=sharded, build=build, optimizer=SGD, report=Stopper("refit", 0))
    resumed = train(tmp_path / "parts", options=sharded, build=build, optimizer=SGD)
    assert losses(resumed) == losses(found)
    assert same(resumed, found)


def test_a_mistake_of_the_first_rank_leaves_nobody_behind(tmp_path: Path) -> None:
    def broken(phase: str, row: dict[str, float]) -> None:
        raise ZeroDivisionError

    ranks.team(2)
    before = ranks._team
    assert before is not None
    (worker,) = before.workers
    with pytest.raises(ZeroDivisionError):
        train(tmp_path, options=TWO, build=build, report=broken)
    assert worker.poll() is not None
    assert ranks._team is None and not torch.distributed.is_initialized()


def test_the_others_end_with_a_first_rank_that_is_killed(tmp_path: Path) -> None:
    code = """
import sys, time
from constellation.training import ranks
print(ranks._started(1, 2, 1).pid, flush=True)  # waits for a port where nobody is
time.sleep(600)
"""
    first = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert first.stdout is not None
    worker = psutil.Process(int(first.stdout.readline()))
    first.kill()
    first.wait()
    first.stdout.close()
    worker.wait(timeout=60)


def test_what_cannot_be_sent_is_said(tmp_path: Path) -> None:
    class Own(torch.optim.Adam):
        pass

    with pytest.raises(InputError, match=r"cannot be sent .* training\.devices=2.*module that can be imported"):
        train(tmp_path, options=TWO, build=build, optimizer=Own)


# ---------------------------------------------------------------- batches


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 5))
def test_parts_are_disjoint_complete_and_balanced(lengths: list[int], num_parts: int) -> None:
    parts = balanced_parts(np.array(lengths), num_parts)
    assert len(parts) == num_parts
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(lengths)))
    loads = [int(np.array(lengths, dtype=np.int64)[part].sum()) for part in parts]
    assert max(loads) - min(loads) <= max(lengths, default=0)
    assert all((np.diff(part) > 0).all() for part in parts)


def test_two_long_journeys_go_to_two_ranks() -> None:
    parts = balanced_parts(np.array([1, 9, 2, 8, 3]), 2)
    # 9 | 8, then 3 to the second, 2 to the first, 1 to either: 11 | 12 or 12 | 11.
    assert [part.tolist() for part in parts] == [[0, 1, 2], [3, 4]] or [part.tolist() for part in parts] == [
        [1, 2],
        [0, 3, 4],
    ]


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_together_hold_the_global_batch(num_ranks: int) -> None:
    splits = Splits(STORE, WINDOWS)
    vocabulary = fit_vocabulary(splits, OPTIONS, splits.select_panel, splits.val_cutoff)
    batches = training_batches(Gatherer(STORE, vocabulary), splits, splits.val_cutoff, OPTIONS, seed=1)
    parts = [RankBatches(batches, rank, num_ranks) for rank in range(num_ranks)]
    assert len({len(part) for part in parts}) == 1
    for together, *apart in zip(batches, *(part.from_place(0) for part in parts), strict=True):
        assert sum(part.num_events for part in apart) == together.num_events
        for name in ("time_N", "cutoff_Q", "lengths_B"):
            every = torch.cat([getattr(part, name) for part in apart])
            assert torch.equal(every.sort().values, getattr(together, name).sort().values)
        assert sum(int(part.targets.observed_QK.sum()) for part in apart) == int(together.targets.observed_QK.sum())


def test_a_rank_without_a_journey_still_takes_its_step() -> None:
    """More ranks than journeys in the batch: forward and backward over nothing give a loss of zero."""
    splits = Splits(STORE, WINDOWS)
    vocabulary = fit_vocabulary(splits, OPTIONS, splits.select_panel, splits.val_cutoff)
    batches = training_batches(Gatherer(STORE, vocabulary), splits, splits.val_cutoff, OPTIONS, seed=1)
    (rows, cutoff_RK), *_ = batches.draws()
    empty = batches.gather(rows[:0], cutoff_RK[:0])
    for encoder in ("gru.Gru", "transformer.Transformer", "bag.Bag"):
        parts = {"_target_": f"constellation.encoders.{encoder}", "width": 8}
        model = build_model(STILL | {"encoder": parts}, vocabulary, WINDOWS.horizons_days)
        total = sum(loss.total for loss in model.loss(empty).values())
        total.backward()
        assert float(total.detach()) == 0.0
        assert all(float(part.grad.abs().sum()) == 0.0 for part in model.parameters() if part.grad is not None)


def test_a_mapped_store_travels_as_its_folder(tmp_path: Path) -> None:
    import pickle

    import polars as pl

    from constellation.journeys.dataset import DataSet
    from constellation.journeys.prepare import prepare
    from constellation.journeys.sources import SqlSource
    from constellation.journeys.store import Store
    from constellation.schema import EventSchema

    pl.DataFrame(
        {"customer_id": ["a", "b"], "event_time": ["2020-01-01", "2020-02-01"], "event_type": ["x", "y"]}
    ).write_csv(tmp_path / "events.csv")
    source = SqlSource(sql="SELECT * FROM read_csv('{root}/events.csv')")
    windows = Windows("2020-01-10", "2020-01-20", (1,))
    data = DataSet("two", source, windows, EventSchema(), root=str(tmp_path), cache=str(tmp_path / "cache"))
    store = prepare(data)
    sent = pickle.dumps(store)
    assert len(sent) < 2000
    again: Any = pickle.loads(sent)
    assert isinstance(again, Store)
    assert np.array_equal(again.time_N, store.time_N) and again.num_events == 2
    assert len(pickle.dumps(STORE)) > 2000, "one in memory goes as it is"


# ---------------------------------------------------------------- how many


def test_the_number_of_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ranks.number_of_ranks("cpu", 3) == 3
    assert ranks.number_of_ranks("cpu", "auto") == 1
    assert ranks.number_of_ranks("cpu", [0, 1]) == 2
    with pytest.raises(InputError, match=r"training\.devices must be .* found 'many'"):
        ranks.number_of_ranks("cpu", "many")
    with pytest.raises(InputError, match="found 0"):
        ranks.number_of_ranks("cpu", 0)
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "4")
    monkeypatch.setitem(os.environ, "RANK", "0")
    assert ranks.number_of_ranks("cpu", 1) == 4, "torchrun decides"


def test_an_unknown_strategy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"training\.strategy must be auto, ddp, fsdp, found 'deepspeed'"):
        train(tmp_path, options=replace(TWO, strategy="deepspeed"), build=build)
