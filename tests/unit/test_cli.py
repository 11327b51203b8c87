"""The door, tried with a toy command that needs neither torch nor data."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from constellation import cli, manual
from constellation import commands as commands_package
from constellation.cli.composing import compose_unchecked
from constellation.errors import InputError

TOY = '''
"""Play with numbers.

Longer words.
"""
from dataclasses import dataclass

from constellation.errors import InputError


@dataclass
class Engine:
    power: int = 1
    label: str = "plain"

    def __post_init__(self):
        if self.power < 0:
            raise InputError(f"power is {self.power}; a number of at least 0 was expected.")


def toy(run, *, engine, bonus=None, runs=(), mood="good", resume=None, seeds=(0,)):
    if mood == "bad":
        raise RuntimeError("a defect of ours")
    if mood == "stopped":
        raise KeyboardInterrupt
    if mood == "lost":
        open("/nowhere/at/all")
    names = ",".join(runs)
    print(f"power={engine.power} label={engine.label} bonus={sorted(bonus or {})} runs={names} seeds={seeds}")
    run.log_metrics({"toy/power": engine.power * len(seeds)})
'''

FILES = {
    "toy.yaml": """
        # constellation toy engine=big
        defaults:
          - base
          - engine: small
          - bonus: []
          - tracking: none
          - _self_
          - experiment: null
        runs: []
        mood: good
        resume: null
        seeds: [0]
        """,
    "engine/small.yaml": "_target_: constellation.commands.toy.Engine\npower: 1\nlabel: small\n",
    "engine/big.yaml": "_target_: constellation.commands.toy.Engine\npower: 100\nlabel: big\n",
    "bonus/bell.yaml": "# @package bonus.bell\nloud: true\n",
    "bonus/light.yaml": "# @package bonus.light\nwatts: 5.0\n",
    "experiment/strong.yaml": "# @package _global_\ndefaults:\n  - override /engine: big\nengine:\n  power: 7\n",
}


@pytest.fixture
def toy(work_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with a command `toy` and, beside it, a user's own ./configs."""
    code = work_folder.parent / "commands"
    code.mkdir()
    (code / "toy.py").write_text(TOY)
    for name, text in FILES.items():
        path = work_folder / "configs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(line.removeprefix("        ") for line in text.strip("\n").splitlines()) + "\n")
    monkeypatch.setattr(commands_package, "__path__", [*commands_package.__path__, str(code)])
    monkeypatch.setattr(manual, "COMMANDS", code)
    monkeypatch.delitem(sys.modules, "constellation.commands.toy", raising=False)
    manual.commands.cache_clear()
    yield work_folder
    manual.commands.cache_clear()
    sys.modules.pop("constellation.commands.toy", None)


def only_run(folder: Path) -> Path:
    (found,) = (folder / "outputs" / "toy").iterdir()
    return found


def test_it_builds_calls_and_leaves_a_folder(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["toy", "engine=big", "engine.power=3", "bonus=[bell,light]", "seeds=[1,2]"]) == 0
    printed = capsys.readouterr().out
    assert "power=3 label=big bonus=['bell', 'light'] runs= seeds=[1, 2]" in printed
    run = only_run(toy)
    assert str(run.relative_to(toy)) in printed
    assert json.loads((run / "metrics.json").read_text()) == {"toy/power": 6.0}
    assert yaml.safe_load((run / "config.yaml").read_text())["engine"]["power"] == 3
    state = json.loads((run / "run.json").read_text())
    assert state["status"] == "FINISHED"
    assert state["overrides"] == ["engine=big", "engine.power=3", "bonus=[bell,light]", "seeds=[1,2]"]


@pytest.mark.parametrize("chosen", ["[]", "[bell,light]"])
def test_null_leaves_nothing_of_a_group_of_several(toy: Path, chosen: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = toy / "configs/toy.yaml"
    config.write_text(config.read_text().replace("bonus: []", f"bonus: {chosen}"))
    assert cli.main(["toy", "bonus=null"]) == 0
    assert "bonus=[] " in capsys.readouterr().out


def test_an_experiment_wins_over_defaults_and_the_command_line_over_both(
    toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["toy", "experiment=strong", "output=a"]) == 0
    assert "power=7 label=big" in capsys.readouterr().out
    assert cli.main(["toy", "experiment=strong", "engine.power=8", "output=b"]) == 0
    assert "power=8 label=big" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["toy", "engin=big"], ["engin", "Did you mean engine?"]),
        (["toy", "engine.pover=3"], ["engine.pover", "Did you mean engine.power?"]),
        (["toy", "power=3"], ["power", "Did you mean engine.power?"]),
        (["toy", "engine=biig"], ["engine=biig", "Did you mean big?", "Choices: big, small"]),
        (["toy", "bonus=[bell,bel]"], ["bonus=bel", "Did you mean bell?"]),
        (["toy", "engine.power=strong"], ["engine.power", "'strong'", "a number was expected", "default is 1"]),
        (["toy", "overwrite=maybe"], ["overwrite", "true or false was expected"]),
        (["toy", "seeds=3"], ["seeds", "seeds=[3]"]),
        (["toy", "seeds=1,2"], ["seeds=1,2", "seeds=[a,b]"]),
        (["toy", "engine.power=-1"], ["power is -1"]),
        (["toy", "+engine.colour=red"], ["engine", "colour"]),
        (["toy", "+colour=red"], ["toy has no key 'colour'"]),
        (["toy", "encoder=null"], ["toy has no key 'encoder'"]),
        (["toy", "hydra.run.dir=x"], ["hydra.run.dir cannot be set"]),
        (["toy", "mood=[a"], ["'mood=[a'", "key=value"]),
        (["toy", "--fast"], ["--fast", "without dashes"]),
        (["toy", "mood=lost"], ["/nowhere/at/all"]),
        (["toy", "resume=nothing"], ["nothing", "a run folder"]),
        (["toi"], ["'toi'", "Did you mean toy?"]),
    ],
)
def test_input_errors_are_one_paragraph_and_exit_2(
    toy: Path, capsys: pytest.CaptureFixture[str], words: list[str], expected: list[str]
) -> None:
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert len(said.strip().splitlines()) == 1
    assert "Traceback" not in said
    for part in expected:
        assert part in said


def test_debug_shows_the_traceback_of_an_input_error(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["toy", "engine.power=-1", "debug=true"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_defect_shows_its_traceback_and_marks_the_run(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["toy", "mood=bad"]) == 1
    assert "a defect of ours" in capsys.readouterr().err
    run = only_run(toy)
    assert json.loads((run / "run.json").read_text())["status"] == "FAILED"
    assert json.loads((run / "metrics.json").read_text()) == {}
    assert "RuntimeError: a defect of ours" in (run / "run.log").read_text()


def test_ctrl_c_marks_the_run_killed_and_it_can_be_resumed_as_it_was_started(
    toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["toy", "engine=big", "mood=stopped"]) == 130
    run = only_run(toy)
    assert json.loads((run / "run.json").read_text())["status"] == "KILLED"
    assert cli.main(["toy", f"resume={run}", "mood=good"]) == 0
    assert "label=big" in capsys.readouterr().out
    assert json.loads((only_run(toy) / "run.json").read_text())["status"] == "FINISHED"
    assert cli.main(["toy", f"resume={run}", "mood=good", "output=elsewhere"]) == 2


def test_output_that_is_not_empty_is_refused_unless_overwritten(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["toy", "output=here"]) == 0
    (toy / "here" / "mine.txt").write_text("keep")
    assert cli.main(["toy", "output=here"]) == 2
    assert "not empty" in capsys.readouterr().err
    assert cli.main(["toy", "output=here", "overwrite=true", "engine.power=5"]) == 0
    assert json.loads((toy / "here" / "metrics.json").read_text()) == {"toy/power": 5.0}
    assert (toy / "here" / "mine.txt").read_text() == "keep"


def test_bare_words_are_runs(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["toy", "outputs/train/a", "engine=big", "b's:gradient_boosting"]) == 0
    assert "label=big bonus=[] runs=outputs/train/a,b's:gradient_boosting" in capsys.readouterr().out


def test_help_names_groups_choices_defaults_and_examples(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["toy", "engine=big", "--help"]) == 0
    shown = capsys.readouterr().out
    for part in (
        "Play with numbers.",
        "Longer words.",
        "[big] small",
        "label: big",
        "constellation toy engine=big",
        "bell light",
        "strong",
    ):
        assert part in shown
    assert "constellation.commands.toy" not in sys.modules
    assert not (toy / "outputs").exists()
    assert cli.main(["toy", "--cfg"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["engine"]["label"] == "small"


def test_general_help_lists_every_command_with_its_first_line(repository: Path) -> None:
    listed = manual.general_help()
    for path in (repository / "src/constellation/commands").glob("[a-z]*.py"):
        (line,) = [line for line in listed.splitlines() if line.startswith(f"  {path.stem} ")]
        assert len(line.split(maxsplit=1)) == 2, f"{path.name} needs a docstring"


def test_help_and_composition_import_nothing_heavy(repository: Path) -> None:
    code = (
        "import sys; from constellation import cli; cli.main(['--help']); cli.main(['doctor', '--help']); "
        "cli.main(['ui', '--cfg']); "
        "heavy = {'torch', 'mlflow', 'lightning', 'polars', 'pandas', 'duckdb', 'matplotlib', 'sklearn', 'scipy'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=repository)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_reader_that_stops_reading_is_no_error(repository: Path) -> None:
    program = f"{sys.executable} -m constellation.cli --help | head -n 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", program], capture_output=True, text=True, check=True, cwd=repository
    )
    assert done.stdout == "Sequence models on customer journeys: value, and the next-best engagement.\n"
    assert done.stderr == ""


def test_a_choice_of_ones_own_is_not_passed_by_for_a_shipped_one_of_its_name(work_folder: Path) -> None:
    (work_folder / "configs" / "data").mkdir(parents=True)
    (work_folder / "configs" / "data" / "loyalty.yaml").write_text("_target_: builtins.dict\n")
    with pytest.raises(InputError, match=r"data=loyalty names two files: yours, .*my_loyalty"):
        compose_unchecked("prepare", ["data=loyalty"])
    assert compose_unchecked("prepare", ["data=contracts"]).choices["data"] == "contracts"
