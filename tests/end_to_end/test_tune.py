"""Tuning through the real console: killed, resumed, shared by workers, and blind to the test."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from constellation.cli import main
from constellation.journeys.splits import Splits
from tests.end_to_end.console import SECONDS, console, console_environment, metrics_of, without_pictures

pytestmark = pytest.mark.usefixtures("quick_databases")

SPACE = (
    "search.parameters=[{name:optimizer.lr,low:0.0005,high:0.02,log:true},{name:readout.width,choices:[4,8]},"
    "{name:encoder,choices:[bag,gru]},{name:encoder.layers,low:1,high:2,where:{encoder:gru}}]"
)
SMALL = [
    "data=spenders", "data.source.arguments.num_customers=60", "encoder=bag", "encoder.width=8", "readout.width=8",
    "readout.layers=1", "objective=[value_quantiles]", "training.max_epochs=2", "training.cutoffs_per_journey=2",
    "training.max_journeys=64", "data.windows.train_cutoffs_every_days=60", "tracking=none",
]  # fmt: skip


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


@pytest.fixture(autouse=True)
def shared_stores(work_folder: Path, stores: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test here asks for the same data."""
    monkeypatch.setenv("CONSTELLATION_CACHE", str(stores))


def test_trials_answer_validation_only_and_leave_what_train_can_repeat(
    work_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("test", "refit_panel", "test_is_new_Q"):
        monkeypatch.setattr(Splits, name, property(lambda splits: pytest.fail("tuning looked at the test")))
    assert main(["tune", *SMALL, SPACE, "num_trials=3", "output=study"]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "as configured: value_91d/crps" in printed
    metrics, study = metrics_of(work_folder / "study"), work_folder / "study"
    assert metrics["tune/num_complete"] + metrics["tune/num_pruned"] == 3
    table = pd.read_parquet(study / "tables" / "trials.parquet")
    finished = table[table["state"] == "complete"]
    assert metrics["tune/best/value_91d/crps"] == pytest.approx(finished["value_91d/crps"].min())
    layers = table["encoder.layers"] if "encoder.layers" in table else pd.Series(float("nan"), index=table.index)
    assert (layers.isna() == (table["encoder"] == "bag")).all(), "layers are asked of a gru only"
    history = [json.loads(line) for line in (study / "trials/0000/history.jsonl").read_text().splitlines()]
    scored = [row["value"] for row in history if row["name"] == "val/value_91d/crps"]
    assert finished.set_index("trial").loc[0, "value_91d/crps"] == pytest.approx(min(scored))
    assert not list(study.rglob("*.ckpt"))
    page = (study / "tune.html").read_text()
    assert "<svg" in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", ""), "the page needs nothing from elsewhere"
    assert (study / "figures/history.png").is_file()
    best = (study / "best.yaml").read_text()
    assert best.startswith("# @package _global_\n")
    (work_folder / "configs/experiment").mkdir(parents=True)
    (work_folder / "configs/experiment/found.yaml").write_text(best)
    assert main(["train", "experiment=found", "--cfg"]) == 0
    composed = yaml.safe_load(capsys.readouterr().out)
    row = finished.loc[finished["value_91d/crps"].idxmin()]
    assert composed["optimizer"]["lr"] == pytest.approx(row["optimizer.lr"], rel=1e-12)
    assert composed["data"]["name"] == "spenders"
    assert composed["encoder"]["width"] == 8
    assert composed["encoder"]["_target_"].lower().endswith(row["encoder"])


def test_a_study_goes_on_until_it_has_enough_and_then_trains_nothing(
    work_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "tune",
        *SMALL,
        "as_configured=false",
        "storage=sqlite:///shared.db",
        "study=ours",
        "training.max_epochs=1",
    ]
    space = "search.parameters=[{name:optimizer.lr,low:0.0005,high:0.02,log:true}]"
    with without_pictures():
        assert main([*words, space, "num_trials=1", "output=a"]) == 0
        assert main([*words, space, "num_trials=2", "output=b"]) == 0
    assert [path.name for path in sorted(work_folder.glob("?/trials/*"))] == ["0000", "0001"]
    assert main([*words, space, "num_trials=2", "output=c"]) == 0
    assert not (work_folder / "c/trials").exists()
    capsys.readouterr()
    assert main([*words, space, "metrics=[value_91d/gini_normalised]", "output=d"]) == 2
    assert "Choose another study=NAME" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["metrics=[crps]"], "value_91d/crps"),
        (["metrics=[value_17d/crps]"], "not scored by 'value_17d/crps'"),
        (["search.parameters=[{name:data.name,choices:[a,b]}]"], "cannot be tuned"),
        (["search.parameters=[{name:encoder.wdth,choices:[4,8]}]"], "encoder.wdth"),
        (["storage=study.db"], "sqlite:///"),
        (["num_trials=0"], "at least 1"),
    ],
)
def test_mistakes_are_explained(
    work_folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(["tune", *SMALL, "as_configured=false", "training.max_epochs=1", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_several_metrics_give_a_front(work_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = "search.parameters=[{name:optimizer.lr,low:0.0005,high:0.02,log:true}]"
    goal = "metrics=[value_91d/crps,value_91d/gini_normalised]"
    words = [*SMALL, "as_configured=false", "training.max_epochs=1", goal, space, "num_trials=2", "output=two"]
    assert main(["tune", *words]) == 0, capsys.readouterr().err
    metrics = metrics_of(work_folder / "two")
    assert metrics["tune/num_complete"] == 2
    assert {"tune/best/value_91d/crps", "tune/best/value_91d/gini_normalised"} <= set(metrics)
    assert (work_folder / "two/figures/front.png").is_file()


@pytest.mark.slow
def test_a_killed_study_goes_on_with_more_workers(work_folder: Path) -> None:
    surroundings = console_environment() | {"CONSTELLATION_CACHE": str(work_folder / ".constellation")}
    words = [*SMALL, SPACE, "num_trials=5", "output=study"]
    process = subprocess.Popen(console("tune", *words), cwd=work_folder, env=surroundings, stdout=subprocess.DEVNULL)
    end = time.monotonic() + SECONDS
    while not (work_folder / "study/trials/0001").exists():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = subprocess.run(
        console("tune", "resume=study", "num_workers=2"), cwd=work_folder, env=surroundings,
        capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert again.returncode == 0, again.stdout[-2000:] + again.stderr[-4000:]
    metrics = metrics_of(work_folder / "study")
    # The second worker may finish one more that it had begun.
    assert 5 <= metrics["tune/num_complete"] + metrics["tune/num_pruned"] <= 6
    assert json.loads((work_folder / "study/worker_1/run.json").read_text())["status"] == "FINISHED"
    assert "tune/as_configured/value_91d/crps" in metrics
