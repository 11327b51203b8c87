"""A training killed at any moment ends as it would have ended: the same weights and the same losses, bit for bit."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from constellation.building import build_model
from constellation.journeys.ranks import RankBatches
from constellation.journeys.vocabulary import Vocabulary
from constellation.model import JourneyModel
from constellation.training import checkpoints
from constellation.training.checkpoints import LAST, PREVIOUS, Damaged, newest_whole, read, write
from constellation.training.learner import Learner
from constellation.training.study import Study
from tests.unit.test_training import MODEL, OPTIONS, WINDOWS, same, train

DROPOUT = MODEL | {
    "encoder": {"_target_": "constellation.encoders.gru.Gru", "width": 4, "layers": 2, "dropout": 0.3},
    "readout": MODEL["readout"] | {"dropout": 0.3},
}
EVERY_STEP = replace(OPTIONS, checkpoint_every_steps=1)
BY_EPOCHS = replace(OPTIONS, checkpoint_every_steps=10**6)


def build(vocabulary: Vocabulary) -> JourneyModel:
    return build_model(DROPOUT, vocabulary, WINDOWS.horizons_days)


def run(folder: Path, options: Any = OPTIONS) -> Study:
    return train(folder, options=options, build=build)


def losses(study: Study) -> list[dict[str, float]]:
    """What training and validation said, without what the clock said."""
    timed = ("train/events_per_second", "train/waiting_share")
    rows = [*study.selected.history, *study.refitted.history]
    return [{name: value for name, value in row.items() if name not in timed} for row in rows]


def assert_equal(found: Study, wanted: Study) -> None:
    assert losses(found) == losses(wanted)
    assert same(found, wanted)
    for mine, theirs in ((found.selected, wanted.selected), (found.refitted, wanted.refitted)):
        assert (mine.num_steps, mine.best_epoch) == (theirs.num_steps, theirs.best_epoch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return run(tmp_path_factory.mktemp("whole"))


class Interrupted(Exception):
    pass


def interrupt_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """Break off in the middle of the given step, counted over both phases."""
    original, steps = Learner.training_step, [0]

    def training_step(self: Learner, batch: Any, batch_index: int) -> Any:
        steps[0] += 1
        if steps[0] == step:
            torch.rand(5)
            raise Interrupted
        return original(self, batch, batch_index)

    patch.setattr(Learner, "training_step", training_step)


@pytest.mark.parametrize("options", [EVERY_STEP, BY_EPOCHS], ids=["within epochs", "by epochs"])
@pytest.mark.parametrize("step", [1, 2, 4, 5, 8, 11])
def test_a_broken_off_run_goes_on_exactly(
    whole: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Any, step: int
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(step, patch)
        with pytest.raises(Interrupted):
            run(tmp_path, options)
    assert_equal(run(tmp_path, options), whole)


@pytest.mark.slow
def test_a_broken_off_run_with_kernels_of_our_own_goes_on_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their dropout counts by itself, from a seed of torch's; without them, torch's bfloat16 is tested."""
    options = replace(EVERY_STEP, products="fused")
    encoder = {"_target_": "constellation.encoders.transformer.Transformer", "width": 32, "layers": 2, "heads": 2}

    def fused(vocabulary: Vocabulary) -> JourneyModel:
        return build_model(DROPOUT | {"encoder": encoder | {"dropout": 0.3}}, vocabulary, WINDOWS.horizons_days)

    whole = train(tmp_path / "whole", options=options, build=fused)
    with monkeypatch.context() as patch:
        interrupt_at(3, patch)
        with pytest.raises(Interrupted):
            train(tmp_path / "parts", options=options, build=fused)
    assert_equal(train(tmp_path / "parts", options=options, build=fused), whole)


# ---------------------------------------------------------------- killed


def killed_again_and_again(folder: Path, options: Any, moments: random.Random, longest_seconds: float) -> int:
    """Start the run in a child, kill it at some moment, start it again, until one comes to its end; number of kills."""
    fork = multiprocessing.get_context("fork")  # has everything imported, so that the moments lie in the training
    kills = 0
    while True:
        child = fork.Process(target=run, args=(folder, options))
        child.start()
        # Longer each time: on a slow machine a child of half a second would never get further than the last one.
        child.join(moments.uniform(0.0, longest_seconds * (1 + kills / 4)))
        if child.exitcode is None:
            os.kill(child.pid, signal.SIGKILL)  # type: ignore[arg-type]
            child.join()
        if child.exitcode == 0:
            return kills
        assert child.exitcode == -signal.SIGKILL
        kills += 1
        longest_seconds *= 1.2  # on a busy machine nothing would ever come to its end


@pytest.mark.parametrize("options", [EVERY_STEP, BY_EPOCHS], ids=["within epochs", "by epochs"])
def test_a_run_killed_at_random_moments_ends_as_if_it_had_not_been(whole: Study, tmp_path: Path, options: Any) -> None:
    assert killed_again_and_again(tmp_path, options, random.Random(7), longest_seconds=0.5) >= 1
    assert_equal(run(tmp_path, options), whole)  # reads what the phases left


@pytest.mark.slow
@pytest.mark.parametrize("averaging", [0.0, 0.5])
def test_many_kills(tmp_path: Path, averaging: float) -> None:
    options = replace(EVERY_STEP, max_epochs=8, max_journeys=3, averaging=averaging)
    wanted = run(tmp_path / "whole", options)
    num_kills = 0
    for attempt in range(6):
        folder = tmp_path / str(attempt)
        num_kills += killed_again_and_again(folder, options, random.Random(attempt), longest_seconds=0.6)
        assert_equal(run(folder, options), wanted)
    assert num_kills >= 12


# ---------------------------------------------------------------- damage


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "said"),
    [(truncate, "bytes were written"), (empty, "ends after 0 bytes"), (flip_a_bit, "its checksum is wrong")],
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    whole: Study,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    harm: Any,
    said: str,
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(6, patch)
        with pytest.raises(Interrupted):
            run(tmp_path, EVERY_STEP)
    folder = tmp_path / "select"
    newest, before = (read(folder / name)["global_step"] for name in (LAST, PREVIOUS))
    assert (newest, before) == (5, 4)
    harm(folder / LAST)
    with pytest.raises(Damaged, match=said):
        read(folder / LAST)
    assert newest_whole(folder) == folder / PREVIOUS
    (record,) = [record for record in caplog.records if record.name == checkpoints.__name__]
    assert record.levelname == "WARNING" and said in record.getMessage() and "\n" not in record.getMessage()
    assert_equal(run(tmp_path, EVERY_STEP), whole)


def test_with_both_damaged_the_phase_starts_anew(whole: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(6, patch)
        with pytest.raises(Interrupted):
            run(tmp_path, EVERY_STEP)
    for name in (LAST, PREVIOUS):
        truncate(tmp_path / "select" / name)
    assert newest_whole(tmp_path / "select") is None
    assert_equal(run(tmp_path, EVERY_STEP), whole)


def test_killed_between_the_two_names_the_one_before_is_taken(tmp_path: Path) -> None:
    for step in range(2):
        write({"step": step}, tmp_path / LAST)
    assert (read(tmp_path / LAST), read(tmp_path / PREVIOUS)) == ({"step": 1}, {"step": 0})
    (tmp_path / LAST).unlink()
    assert newest_whole(tmp_path) == tmp_path / PREVIOUS
    assert not list(tmp_path.glob("*.partial"))


def test_reading_runs_no_code(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "sprung"),)

    write({"trap": Trap()}, tmp_path / LAST)
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        read(tmp_path / LAST)
    assert not (tmp_path / "sprung").exists()


# ---------------------------------------------------------------- parts


def test_random_numbers_go_on_as_they_were() -> None:
    import numpy as np

    def drawn() -> tuple[Any, ...]:
        old = np.random.rand(3).tolist(), np.random.randn()  # noqa: NPY002 (the one whose state is kept)
        return torch.rand(3).tolist(), old, random.random(), random.gauss(0, 1)

    state = checkpoints.random_state()
    first = drawn()
    assert drawn() != first
    checkpoints.restore_random_state(state)
    assert drawn() == first


def test_skipped_batches_are_not_gathered() -> None:
    from constellation.journeys.batch import Gatherer
    from constellation.journeys.splits import Splits
    from constellation.training.study import fit_vocabulary, training_batches
    from tests.unit.test_training import STORE

    splits = Splits(STORE, WINDOWS)
    vocabulary = fit_vocabulary(splits, OPTIONS, splits.select_panel, splits.val_cutoff)
    batches = training_batches(Gatherer(STORE, vocabulary), splits, splits.val_cutoff, OPTIONS, seed=3)
    everything = list(batches)
    gathered = []

    class Counted(Gatherer):
        def gather(self, *given: Any, **named: Any) -> Any:
            gathered.append(1)
            return super().gather(*given, **named)

    batches.gatherer = Counted(STORE, vocabulary)
    for first in range(len(everything) + 1):
        gathered.clear()
        rest = list(RankBatches(batches).from_place(first))
        assert len(gathered) == len(rest) == len(everything) - first
        for mine, theirs in zip(rest, everything[first:], strict=True):
            assert torch.equal(mine.time_N, theirs.time_N) and torch.equal(mine.cutoff_Q, theirs.cutoff_Q)


def test_checkpoints_by_the_clock_take_a_hundredth_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    callback = checkpoints.Checkpoints(tmp_path, every_steps=None, every_minutes=0.0)
    written: list[float] = []

    class Trainer(SimpleNamespace):
        def save_checkpoint(self, path: Path) -> None:
            written.append(now[0])
            now[0] += 0.5

    trainer = Trainer(world_size=1, should_stop=False, is_last_batch=False, global_step=0, accumulate_grad_batches=1)
    callback.on_train_start(trainer, None)  # type: ignore[arg-type]
    while now[0] < 1000:
        now[0] += 1.0
        callback.on_train_batch_end(trainer, None, None, None, 0)  # type: ignore[arg-type]
    assert written[:2] == [1.0, 51.5]
    assert 0.5 * len(written) <= 0.011 * now[0]
