"""`constellation ui` for real: a server on a free port, a run seen through its REST API, and in headless Chromium."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from constellation.commands.ui import HOST, free_port
from constellation.errors import InputError
from constellation.tracking import NullTracking, Run, Tracking

START_SECONDS = 180  # some ten on a quiet machine
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder in which one run was tracked."""
    folder = tmp_path_factory.mktemp("ui")
    tracking = Tracking(
        uri=f"sqlite:///{folder / 'mlflow.db'}",
        experiment_name="first light",
        run_name="bright star",
        system_metrics=False,
    )
    with Run.start(folder / "run", "train", config={"encoder": {"width": 64}}, tracking=tracking) as run:
        for step in range(3):
            run.log_metrics({"train/loss": 1.0 / (step + 1)}, step=step)
        run.log_metrics({"test/value_91d/model/gini_normalised": 0.86})
        run.log_dataset("spenders", "abc123")
    return folder


@pytest.fixture(scope="module")
def server(tracked: Path, repository_source: str) -> Iterator[str]:
    """Address of a running `constellation ui`; it is stopped as a person would, by Ctrl-C."""
    wanted = free_port(20000 + os.getpid() % 20000)
    environment = os.environ | {"PYTHONPATH": repository_source}
    environment.pop("MLFLOW_TRACKING_URI", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "constellation.cli", "ui", f"port={wanted}"],
        cwd=tracked, env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert f"http://{HOST}:{wanted}" in first, first
        address = f"http://{HOST}:{wanted}"
        wait_for(f"{address}/health", process)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    assert process.returncode == 130
    with pytest.raises(OSError):
        urllib.request.urlopen(f"{address}/health", timeout=5)


@pytest.fixture(scope="module")
def repository_source() -> str:
    return str(Path(__file__).resolve().parents[2] / "src")


def wait_for(address: str, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"{address} did not answer within {START_SECONDS} s")


def post(address: str, question: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        address, json.dumps(question).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return dict(json.load(answer))


def get(address: str) -> dict[str, Any]:
    with urllib.request.urlopen(address, timeout=30) as answer:
        return dict(json.load(answer))


@pytest.mark.slow
def test_the_run_is_seen_through_the_rest_api(server: str) -> None:
    found = get(f"{server}/api/2.0/mlflow/experiments/get-by-name?experiment_name=first%20light")
    experiment_id = found["experiment"]["experiment_id"]
    (run,) = post(f"{server}/api/2.0/mlflow/runs/search", {"experiment_ids": [experiment_id]})["runs"]
    assert run["info"]["run_name"] == "bright star"
    assert run["info"]["status"] == "FINISHED"
    metrics = {row["key"]: row["value"] for row in run["data"]["metrics"]}
    assert metrics["test/value_91d/model/gini_normalised"] == 0.86
    assert {"key": "encoder.width", "value": "64"} in run["data"]["params"]
    assert run["inputs"]["dataset_inputs"][0]["dataset"]["name"] == "spenders"
    run_id = run["info"]["run_id"]
    history = get(f"{server}/api/2.0/mlflow/metrics/get-history?run_id={run_id}&metric_key=train/loss")["metrics"]
    assert [row["step"] for row in history] == [0, 1, 2]
    listed = {entry["path"] for entry in get(f"{server}/api/2.0/mlflow/artifacts/list?run_id={run_id}")["files"]}
    assert {"metrics.json", "config.yaml"} <= listed
    with urllib.request.urlopen(f"{server}/get-artifact?path=metrics.json&run_uuid={run_id}", timeout=30) as answer:
        assert json.load(answer)["train/loss"] == pytest.approx(1 / 3)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_the_run_is_seen_in_a_browser(server: str, tmp_path: Path) -> None:
    found = get(f"{server}/api/2.0/mlflow/experiments/get-by-name?experiment_name=first%20light")
    page = f"{server}/#/experiments/{found['experiment']['experiment_id']}/runs"
    done = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}",
            "--virtual-time-budget=30000", "--dump-dom", page,
        ],
        capture_output=True, text=True, timeout=180, check=True,
    )  # fmt: skip
    assert "bright star" in done.stdout


def test_a_taken_port_is_passed_over() -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert port < free_port(port) < port + 50
        with pytest.raises(InputError, match="No port"):
            free_port(port, tries=1)


def test_there_must_be_something_to_show(work_folder: Path) -> None:
    from constellation.commands.ui import ui

    with pytest.raises(InputError, match="tracking=none"):
        ui(tracking=NullTracking())
    with pytest.raises(InputError, match=r"no database .*mlflow\.db"):
        ui(tracking=Tracking())
    assert not (work_folder / "mlflow.db").exists()


def test_a_server_elsewhere_has_its_own_ui(capsys: pytest.CaptureFixture[str]) -> None:
    from constellation.commands.ui import ui

    ui(tracking=Tracking(uri="http://tracking.example:5000"))
    assert "http://tracking.example:5000" in capsys.readouterr().out
