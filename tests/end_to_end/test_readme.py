"""What the README promises: its example runs as printed, and every command it names is understood."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from constellation.cli import main
from tests.end_to_end.console import without_pictures

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """The text under a heading of second level."""
    return README.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def blocks(text: str, language: str) -> list[str]:
    return [content for found, content in BLOCK.findall(text) if found == language]


def command_lines(text: str) -> list[list[str]]:
    """The words of every `constellation ...` line in the shell blocks, comments left out."""
    lines = [line for block in blocks(text, "bash") for line in block.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[1:] for line in words if line and line[0] == "constellation"]


NAMED = command_lines(section("What you can ask"))


@pytest.mark.parametrize("words", NAMED, ids=" ".join)
def test_every_command_the_readme_names_is_understood(
    words: list[str], work_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--help" in words:
        assert main(words) == 0
        assert "constellation" in capsys.readouterr().out
        return
    assert main([*words, "--cfg"]) == 0, capsys.readouterr().err
    config = yaml.safe_load(capsys.readouterr().out)
    for word in words[1:]:
        key, _, value = word.partition("=")
        if isinstance(config.get(key), str):
            assert config[key] == value


def test_the_readme_names_every_command(repository: Path) -> None:
    there = {path.stem for path in (repository / "src/constellation/commands").glob("[a-z]*.py")}
    assert {words[0] for words in NAMED} - {"--help"} == there


def test_what_the_readme_links_to_is_there(repository: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert len(links) > 5
    assert [link for link in links if not (repository / link).exists()] == []
    makefile = (repository / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile


def test_metric_name_of_the_readme_follows_the_grammar() -> None:
    from constellation.metrics.names import is_known

    split, target, system, metric = re.search(r"such as `(test/[^`]+)`", README)[1].split("/")  # type: ignore[index]
    assert (split, target, system) == ("test", "value_91d", "model") and is_known(metric)


@pytest.fixture
def shop(work_folder: Path) -> Path:
    """The files of 'Your own event log', where that section says to put them."""
    text = section("Your own event log")
    (work_folder / "data").mkdir()
    (work_folder / "configs" / "data").mkdir(parents=True)
    files = {"csv": "data/shop.csv", "sql": "configs/data/shop.sql", "yaml": "configs/data/shop.yaml"}
    for language, name in files.items():
        (content,) = blocks(text, language)
        assert f"`{name}`" in text
        (work_folder / name).write_text(content, encoding="utf-8")
    return work_folder


def test_your_own_event_log_is_prepared_and_trained_on(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare, train, score = command_lines(section("Your own event log"))
    assert (prepare, train) == (["prepare", "data=shop"], ["train", "data=shop"])
    assert score == ["score", "bundle=latest", "data=shop"]
    rows = pd.read_csv(shop / "data" / "shop.csv")
    assert main([*prepare, "tracking=none", "output=prepared"]) == 0
    printed = capsys.readouterr().out
    assert f"{rows['client'].nunique()} customers, {len(rows)} events" in printed
    assert "latest cutoff 2024-02-23" in printed, "the README promises it, and its own cutoff is that one"

    small = ["encoder=bag", "encoder.width=8", "training.max_epochs=1", "num_resamples=10"]
    with without_pictures():
        assert main([*train, *small, "baseline=[same_rate,most_popular]", "tracking=none", "output=trained"]) == 0
    metrics = json.loads((shop / "trained" / "metrics.json").read_text())
    # By hand: after 23 February cem buys for 3.20 on 7 March and dia for 35 on 8 March; eli comes later.
    assert metrics["test/value_14d/realised/total"] == pytest.approx(38.20)
    assert metrics["test/value_7d/realised/total"] == 0
    assert metrics["test/value_14d/realised/num_customers"] == 4
    predictions = pd.read_parquet(shop / "trained" / "predictions.parquet")
    assert set(predictions["customer_id"]) <= set(rows["client"])
    assert main(["score", "bundle=trained", "data=shop", "tracking=none", "output=scored"]) == 0
    assert set(pd.read_parquet(shop / "scored" / "predictions.parquet")["customer_id"]) == set(rows["client"])


def test_a_function_of_your_own_is_found_in_the_working_folder(work_folder: Path) -> None:
    """As docs/your-own-data.md says, through the installed script, which does not look there by itself."""
    (work_folder / "my_tables.py").write_text(
        "import pandas as pd\n\n\n"
        "def load(root):\n"
        "    days = pd.to_datetime(['2024-01-01', '2024-02-01', '2024-03-01'])\n"
        "    return pd.DataFrame({'customer_id': [1, 1, 2], 'event_time': days, 'event_type': 'visit'})\n"
    )
    (work_folder / "configs" / "data").mkdir(parents=True)
    config = {
        "_target_": "constellation.journeys.dataset.DataSet",
        "name": "mine",
        "source": {"_target_": "constellation.journeys.sources.FunctionSource", "function": "my_tables:load"},
        "windows": {
            "_target_": "constellation.journeys.windows.Windows",
            "val_cutoff": "2024-01-15",
            "test_cutoff": "2024-02-15",
            "horizons_days": [7],
        },
    }
    (work_folder / "configs" / "data" / "mine.yaml").write_text(yaml.safe_dump(config))
    script = Path(sys.executable).with_name("constellation")
    if not script.exists():
        pytest.skip("the console script is not installed beside this Python")
    done = subprocess.run(
        [str(script), "prepare", "data=mine", "tracking=none"],
        cwd=work_folder, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "mine: 2 customers, 3 events" in done.stdout


def test_docs_on_your_own_data_show_the_same_log(repository: Path) -> None:
    """The longer page uses the same rows and the same windows, so that neither grows old alone."""
    page = (repository / "docs" / "your-own-data.md").read_text(encoding="utf-8")
    text = section("Your own event log")
    assert blocks(page, "csv")[0] == blocks(text, "csv")[0]
    longer, shorter = (yaml.safe_load(blocks(part, "yaml")[0]) for part in (page, text))
    assert longer["windows"] == shorter["windows"]
    assert longer["schema"] == shorter["schema"]
