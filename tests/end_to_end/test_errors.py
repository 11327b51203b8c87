"""Mistakes of a person, through the console: one clear paragraph, exit code 2, and no traceback unless asked for."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from constellation.cli import build, compose, main
from constellation.journeys.dataset import DataSet
from tests.end_to_end.console import console

DATA = """
_target_: constellation.journeys.dataset.DataSet
name: {name}
source:
  _target_: constellation.journeys.sources.SqlSource
  sql: "SELECT * FROM read_csv('{{root}}/{name}.csv', all_varchar = true)"
schema:
  _target_: constellation.schema.EventSchema
  purchase_types: [purchase]
windows:
  _target_: constellation.journeys.windows.Windows
  val_cutoff: "2024-02-10"
  test_cutoff: "2024-02-20"
  horizons_days: [7, 14]
"""
LOG = """customer_id,event_time,event_type,amount
1,2024-01-03 10:00:00,purchase,5.0
2,2024-01-15 10:00:00,purchase,7.5
1,2024-02-01 10:00:00,purchase,2.5
2,2024-03-08 10:00:00,purchase,4.0
"""
QUIET = "tracking=none"


@pytest.fixture
def project(work_folder: Path) -> Path:
    """A small project of a user's own: a sound log, one without a column, one with a time nobody can read."""
    (work_folder / "data").mkdir()
    (work_folder / "configs" / "data").mkdir(parents=True)
    logs = {
        "sound": LOG,
        "timeless": LOG.replace("event_time", "moment"),
        "unreadable": LOG.replace("2024-02-01 10:00:00", "the day before yesterday"),
    }
    for name, text in logs.items():
        (work_folder / "data" / f"{name}.csv").write_text(text)
    for name in [*logs, "absent"]:
        (work_folder / "configs" / "data" / f"{name}.yaml").write_text(DATA.format(name=name))
    (work_folder / "configs" / "data" / "broken.yaml").write_text("name: shop: and more\n")
    return work_folder


def said_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says on stderr, once it has been seen to fail as an input error does."""
    code = main(words)
    captured = capsys.readouterr()
    assert code == 2, captured.err
    assert "Traceback" not in captured.err + captured.out
    assert captured.err.startswith(f"constellation {words[0]}: ")
    assert len(captured.err.strip().splitlines()) == 1, "one paragraph"
    return captured.err


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["prepare", "data=sound", "rebiuld=true"], ["no key 'rebiuld'", "Did you mean rebuild?"]),
        (["train", "encoder.widht=8", "--cfg"], ["encoder.widht", "Did you mean encoder.width?"]),
        (["train", "training.max_epoch=8", "--cfg"], ["Did you mean training.max_epochs?"]),
        (["prepare", "data=sounds"], ["data=sounds", "no such choice", "Did you mean sound?", "completejourney"]),
        (["train", "encoder=grus", "--cfg"], ["encoder=grus", "Did you mean gru?", "Choices: bag, gru"]),
        (["train", "objective=[valeu]", "--cfg"], ["objective=valeu", "Did you mean value?"]),
        (["train", "training.max_epochs=many", "--cfg"], ["'many'", "a number was expected"]),
        (["prepare", "data=broken", QUIET], ["broken.yaml", "line 1", "YAML"]),
        (["prepare", "data=absent", QUIET], ["absent.csv", "data.root"]),
        (["prepare", "data=timeless", QUIET], ["event_time", "moment"]),
        (["prepare", "data=unreadable", QUIET], ["the day before yesterday", "event_time"]),
        (["train", "data=sound", "training.averaging=2", QUIET], ["training.averaging", "found 2"]),
        (["evaluate", "run=outputs/train/nowhere", QUIET], ["outputs/train/nowhere", "latest"]),
        (["evaluate", "run=latest", QUIET], ["latest", "no finished run", "constellation train"]),
        (["train", "resume=latest", QUIET], ["latest", "no unfinished run"]),
        (["evaluate", QUIET], ["evaluate needs run="]),
        (["compare", "a", "b", QUIET], ["no run 'a'"]),
        (["score", "bundle=nowhere", "events=data/sound.csv", QUIET], ["nowhere"]),
        (["train", "data=sound", "seeds=[]", QUIET], ["seeds is empty"]),
    ],
)
def test_a_mistake_is_explained_in_one_paragraph(
    project: Path, capsys: pytest.CaptureFixture[str], words: list[str], parts: list[str]
) -> None:
    said = said_of(words, capsys)
    for part in parts:
        assert part in said


def test_a_horizon_beyond_the_data_names_the_latest_cutoff(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = said_of(["train", "data=sound", "data.windows.test_cutoff='2024-02-24'", QUIET], capsys)
    # The last event is on 8 March, so the data speak until the end of that day: 14 days back is 23 February.
    assert "horizon of 14 days" in said
    assert "Move the cutoff to 2024-02-23 or earlier" in said
    said = said_of(["train", "data=sound", "data.windows.val_cutoff='2024-02-23'", QUIET], capsys)
    assert "val_cutoff 2024-02-23 must lie before test_cutoff 2024-02-20" in said
    said = said_of(["train", "data=sound", "data.windows.test_cutoff=soon", QUIET], capsys)
    assert "'soon' is not a time" in said


def test_the_latest_cutoff_that_is_named_can_be_used(project: Path) -> None:
    from constellation.journeys.prepare import prepare
    from constellation.journeys.splits import Splits

    data = sound_data(test_cutoff="2024-02-23")
    assert len(Splits(prepare(data), data.windows).test) == 2


def sound_data(**windows: str) -> DataSet:
    """The data set of ``configs/data/sound.yaml`` with other windows."""
    overrides = [f"data.windows.{name}='{value}'" for name, value in windows.items()]
    return build(OmegaConf.to_container(compose("prepare", ["data=sound", *overrides]).config.data), "data")


def test_an_output_that_is_not_empty_is_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "taken").mkdir()
    (project / "taken" / "mine.txt").write_text("keep")
    said = said_of(["prepare", "data=sound", "output=taken", QUIET], capsys)
    assert "taken is not empty" in said and "overwrite=true" in said
    assert [path.name for path in (project / "taken").iterdir()] == ["mine.txt"]
    assert main(["prepare", "data=sound", "output=taken", "overwrite=true", QUIET]) == 0
    assert (project / "taken" / "mine.txt").read_text() == "keep"


def test_debug_shows_the_traceback(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "data=timeless", "debug=true", QUIET]) == 2
    said = capsys.readouterr().err
    assert "Traceback (most recent call last)" in said
    assert said.strip().splitlines()[-1].startswith("constellation prepare: ")


def test_the_console_script_says_the_same(project: Path) -> None:
    """The process itself: its exit code and its two streams."""
    done = subprocess.run(
        console("prepare", "data=timeless", QUIET), cwd=project, env=os.environ.copy(),
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("constellation prepare: ")
    assert "Traceback" not in done.stderr and "event_time" in done.stderr
