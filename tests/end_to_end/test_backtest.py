"""A backtest through the real console: killed in the middle, resumed, and the same as one that was left in peace."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from constellation.cli import main
from tests.end_to_end.console import SECONDS, console, console_environment, inside, metrics_of, said_in

pytestmark = pytest.mark.usefixtures("quick_databases")

DATA = [
    "data=spenders", "data.source.arguments.num_customers=250", "origins=[2024-07-31,2024-09-30]",
    "horizons_days=[30,91]", "num_resamples=20",
]  # fmt: skip
BASELINES = ["baseline=[same_rate,past_spend,bgnbd]"]
MODEL = [
    "encoder=bag", "encoder.width=8", "readout.width=8", "readout.layers=1", "training.max_epochs=1", "seeds=[0,1]",
]  # fmt: skip
METRICS = (
    "crps", "gini_normalised", "spearman", "mae", "rmse", "bias_mean", "bias_mean_abs", "bias_worst_abs",
    "coverage_90", "total_coverage_90", "decile_mape",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("backtest")


@pytest.fixture(scope="module")
def quick(folder: Path) -> Path:
    """Baselines alone, tracked in MLflow."""
    words = [*DATA, *BASELINES, "encoder=null", "output=quick", "tracking.system_metrics=false"]
    printed = said_in(folder, "backtest", *words, pictures=True)
    assert "No winner can be named" in printed or "winner:" in printed
    assert "[6/6]" in printed
    return folder / "quick"


def test_scripts_find_every_metric_of_every_system(quick: Path) -> None:
    metrics = metrics_of(quick)
    for target in ("value_30d", "value_91d", "purchases_30d", "purchases_91d"):
        for name in METRICS:
            value = metrics[f"backtest/{target}/bgnbd/{name}"]
            assert np.isfinite(value)
        assert metrics[f"backtest/{target}/bgnbd/num_cells"] == 2
    assert metrics["backtest/value/bgnbd/num_cells"] == 4


def test_the_table_of_cells_says_what_the_metrics_average(quick: Path) -> None:
    table, metrics = pd.read_parquet(quick / "cells.parquet"), metrics_of(quick)
    chosen = table[(table["target"] == "value_91d") & (table["system"] == "bgnbd")]
    assert sorted(chosen["origin"]) == ["2024-07-31", "2024-09-30"]
    assert metrics["backtest/value_91d/bgnbd/crps"] == pytest.approx(chosen["crps"].mean())
    assert metrics["backtest/value_91d/bgnbd/bias_worst_abs"] == pytest.approx(chosen["bias_total"].abs().max())
    bias = chosen["total_expected"] / chosen["total_realised"] - 1
    assert chosen["bias_total"].to_numpy() == pytest.approx(bias.to_numpy(), rel=1e-6)
    inside = (chosen["total_low"] <= chosen["total_realised"]) & (chosen["total_realised"] <= chosen["total_high"])
    assert metrics["backtest/value_91d/bgnbd/total_coverage_90"] == pytest.approx(inside.mean())


def test_every_cell_is_a_child_run_in_mlflow_without_customers(quick: Path) -> None:
    from mlflow.tracking import MlflowClient

    state = json.loads((quick / "run.json").read_text())
    client = MlflowClient(tracking_uri=state["mlflow_tracking_uri"])
    (experiment,) = client.search_experiments(filter_string="name = 'constellation'")
    children = client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{state['mlflow_run_id']}'")
    assert len(children) == 3 * 2 * 2  # systems, origins, horizons
    assert {child.info.status for child in children} == {"FINISHED"}
    one = next(child for child in children if child.data.tags["system"] == "bgnbd")
    assert one.data.tags["cell_status"] == "scored"
    assert any(name.startswith("backtest/value_") and name.endswith("/bgnbd/crps") for name in one.data.metrics)
    for run_id in (state["mlflow_run_id"], one.info.run_id):
        names = {file.path for file in client.list_artifacts(run_id)}
        assert not names & {"cells", "predictions.parquet"}, "columns of customers stay on this machine"
    assert {"cells.parquet", "figures", "tables"} <= {
        file.path for file in client.list_artifacts(state["mlflow_run_id"])
    }


def test_finished_cells_are_kept_and_other_settings_refused(quick: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = metrics_of(quick)
    assert said_in(quick.parent, "backtest", "resume=quick").count("(kept)") == 6
    assert metrics_of(quick) == before
    with inside(quick.parent):
        assert main(["backtest", "resume=quick", "num_resamples=30"]) == 2
    assert "num_resamples: 20 then, 30 now" in capsys.readouterr().err
    assert metrics_of(quick) == before, "a refused run leaves what was there"


@pytest.mark.slow
def test_a_killed_backtest_goes_on_and_ends_as_one_that_was_not(folder: Path) -> None:
    surroundings = console_environment()
    words = [*DATA, "baseline=[same_rate]", *MODEL, "tracking=none"]
    whole = subprocess.run(
        console("backtest", *words, "output=whole"), cwd=folder, env=surroundings, capture_output=True, text=True,
        timeout=SECONDS, check=False,
    )  # fmt: skip
    assert whole.returncode == 0, whole.stdout[-2000:] + whole.stderr[-4000:]
    with (folder / "killed.txt").open("wb") as said:
        process = subprocess.Popen(
            console("backtest", *words, "output=killed"), cwd=folder, env=surroundings, stdout=said, stderr=said
        )
    # Killed without warning once the model's first fit is done, in the middle of what follows.
    first, end = folder / "killed/cells/2024-07-31/model/seed_0/91d/cell.json", time.monotonic() + SECONDS
    while not first.exists():
        assert process.poll() is None, (folder / "killed.txt").read_text()[-3000:]
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in (folder / "killed/cells").rglob("cell.json")}
    assert len(kept) < 2 * 2 * (1 + 2 * 2), "it was killed too late to show anything"
    again = subprocess.run(
        console("backtest", "resume=killed"), cwd=folder, env=surroundings, capture_output=True, text=True,
        timeout=SECONDS, check=False,
    )  # fmt: skip
    assert again.returncode == 0, again.stdout[-2000:] + again.stderr[-4000:]
    assert "(kept)" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "finished cells were not touched"
    metrics, resumed = metrics_of(folder / "whole"), metrics_of(folder / "killed")
    assert resumed == pytest.approx(metrics, rel=1e-9, nan_ok=True)
    assert {name.split("/")[2] for name in resumed if name.startswith("backtest/value_91d/")} == {
        "model", "model_raw", "same_rate",
    }  # fmt: skip
    assert resumed["backtest/value_91d/model/num_cells"] == 4
    assert resumed["backtest/value_91d/model/crps_sd_seeds"] > 0
    table = pd.read_parquet(folder / "killed/cells.parquet")
    model = table[table["system"] == "model"]
    assert set(model["recalibration"]) <= {"time slice", "cross-fitted by customer"}
    assert (model["shock_sd"] > 0).all()
    assert (table.loc[table["system"] == "model_raw", "shock_sd"] == 0).all()
    assert not list((folder / "killed").rglob("*.ckpt")), "checkpoints of finished fits are cleared away"
