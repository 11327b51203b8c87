"""The double of a run in MLflow, and where MLflow lives."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from constellation.errors import InputError

log = logging.getLogger(__name__)

BATCH_METRICS, BATCH_PARAMS = 900, 100  # MLflow takes at most 1000 and 100 in one call


@dataclass
class Tracking:
    """Where MLflow lives and how runs are filed there.

    uri: tracking server or database; default the environment variable ``MLFLOW_TRACKING_URI``, else ``mlflow.db`` here.
    experiment_name: MLflow experiment, made when absent.
    run_name: shown in the runs table; default command and start time.
    tags: further tags of every run.
    system_metrics: log CPU, memory, disk and GPU use every ten seconds.
    """

    uri: str | None = None
    experiment_name: str = "constellation"
    run_name: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    system_metrics: bool = True

    def resolved_uri(self) -> str:
        """The tracking URI in force, absolute for the default database."""
        return self.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"


@dataclass
class NullTracking:
    """No MLflow: the run leaves its folder only."""


class MlflowRun:
    """The double of a run in MLflow, by its client alone: no global state, so that runs may nest and overlap."""

    def __init__(
        self,
        tracking: Tracking,
        name: str,
        tags: Mapping[str, str],
        parent_id: str | None,
        earlier_id: str | None = None,
    ) -> None:
        quiet_libraries()
        try:
            from mlflow.entities import Metric, Param, RunTag
            from mlflow.exceptions import MlflowException
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise InputError(f"MLflow cannot be imported ({error}). Install it, or run with tracking=none.") from error
        self._metric, self._param, self._run_tag = Metric, Param, RunTag
        self.uri = tracking.resolved_uri()
        user = os.environ.get("USER", "unknown")
        tags = {"mlflow.source.type": "LOCAL", "mlflow.user": user, **tags, **tracking.tags}
        if parent_id is not None:
            tags["mlflow.parentRunId"] = parent_id
        try:
            with _OneAtATime(self.uri):
                self.client = MlflowClient(tracking_uri=self.uri)
                experiment_id = _experiment(self.client, self.uri, tracking.experiment_name)
        except MlflowException as error:
            said = str(error).splitlines()[0]
            raise InputError(
                f"MLflow at {self.uri} cannot be used: {said} Set tracking.uri, or run with tracking=none."
            ) from error
        self.run_id = (
            self._reopened(earlier_id) or self.client.create_run(experiment_id, tags=tags, run_name=name).info.run_id
        )
        self._params_seen = set(self.client.get_run(self.run_id).data.params)
        self._monitor = None
        if tracking.system_metrics and parent_id is None:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self._monitor = SystemMetricsMonitor(self.run_id, tracking_uri=self.uri)
            self._monitor.start()

    def _reopened(self, run_id: str | None) -> str | None:
        """The run to go on with, marked as running; None where this server does not have it."""
        from mlflow.exceptions import MlflowException

        if run_id is None:
            return None
        try:
            self.client.update_run(run_id, status="RUNNING")
        except MlflowException:
            log.warning("MLflow at %s has no run %s to go on with; a new one is made.", self.uri, run_id)
            return None
        return run_id

    def params(self, flat: Mapping[str, Any]) -> None:
        # MLflow keeps the first value of a parameter and refuses a second, which a resumed run would give it.
        new = {_key(name): str(value)[:6000] for name, value in flat.items()}
        rows = [self._param(name, value) for name, value in new.items() if name not in self._params_seen]
        self._params_seen |= set(new)
        for start in range(0, len(rows), BATCH_PARAMS):
            self.client.log_batch(self.run_id, params=rows[start : start + BATCH_PARAMS])

    def metrics(self, rows: list[tuple[str, float, int, int]]) -> None:
        metrics = [self._metric(_key(name), value, now_ms, step) for name, value, now_ms, step in rows]
        for start in range(0, len(metrics), BATCH_METRICS):
            self.client.log_batch(self.run_id, metrics=metrics[start : start + BATCH_METRICS])

    def tags(self, tags: Mapping[str, str]) -> None:
        self.client.log_batch(self.run_id, tags=[self._run_tag(name, value) for name, value in tags.items()])

    def dataset(self, name: str, fingerprint: str, source: str, profile: dict[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=name,
            digest=fingerprint[:36],  # MLflow's limit
            source_type="constellation",
            source=json.dumps({"source": source}),
            profile=json.dumps(profile),
        )
        self.client.log_inputs(self.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])

    def artifact(self, path: Path, place: str) -> None:
        place_or_none = None if place == "." else place
        if path.is_dir():
            self.client.log_artifacts(self.run_id, str(path), path.name if place == "." else f"{place}/{path.name}")
        else:
            self.client.log_artifact(self.run_id, str(path), place_or_none)

    def end(self, folder: Path, status: str, *, without: Collection[str] = ()) -> None:
        """Send the run's records, except those named, and mark the end."""
        if self._monitor is not None:
            self._monitor.finish()
        for name in ("metrics.json", "config.yaml", "environment.json", "history.jsonl", "run.log"):
            if name not in without and (folder / name).exists():
                self.client.log_artifact(self.run_id, str(folder / name))
        self.client.set_terminated(self.run_id, status)


def _experiment(client: Any, uri: str, name: str) -> str:
    """Id of the experiment, made when absent (and brought back when it lies in MLflow's bin)."""
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        # Beside a local database the artefacts get an absolute place, so that the folder MLflow is asked from
        # does not matter; a server knows its own place.
        database = Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None
        place = (database.parent / "mlruns" / name).as_uri() if database is not None else None
        return str(client.create_experiment(name, artifact_location=place))
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return str(experiment.experiment_id)


class _OneAtATime:
    """Only one process makes the tables of a SQLite database; MLflow itself does not guard against two."""

    def __init__(self, uri: str) -> None:
        self._path = Path(uri.removeprefix("sqlite:///") + ".lock") if uri.startswith("sqlite:///") else None
        self._file: Any = None

    def __enter__(self) -> None:
        if self._path is None:
            return
        try:
            import fcntl
        except ImportError:  # Windows has no flock; there, the first two runs should not start in the same second
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def quiet_libraries() -> None:
    """Switch usage telemetry of libraries off, and their start-up chatter down. Call before they are imported."""
    for name, value in {
        "DO_NOT_TRACK": "1",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # a server that is not there is said so within seconds, not minutes
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # it draws into pipes too
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "GIT_PYTHON_REFRESH": "quiet",
    }.items():
        os.environ.setdefault(name, value)
    for name in ("alembic", "mlflow.store.db.utils", "mlflow.system_metrics", "mlflow.utils.autologging_utils"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _key(name: str) -> str:
    """MLflow takes letters, digits and ``_-. :/`` in names, at most 250 of them."""
    return "".join(letter if letter.isalnum() or letter in "_-. :/" else "_" for letter in name)[:250]
