"""A run: its folder, its metrics, its end."""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from constellation.errors import InputError
from constellation.schema import CUSTOMER_ID
from constellation.tracking.history import History
from constellation.tracking.mlflow_run import BATCH_METRICS, MlflowRun, NullTracking, Tracking
from constellation.tracking.records import environment, finite, flatten, to_yaml, without_passwords, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUNNING, FINISHED, FAILED, KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"

FLUSH_SECONDS = 5.0  # a write to SQLite costs about 11 ms, so steps are gathered and written this often

log = logging.getLogger(__name__)


class Run:
    """One run: a folder, and its double in MLflow. Use it as a context; see the module."""

    def __init__(
        self,
        folder: Path,
        command: str,
        *,
        config: Mapping[str, Any],
        tracking: Tracking | NullTracking,
        name: str,
        parent: Run | None = None,
        resume: bool = False,
        overrides: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.command = command
        self.config: dict[str, Any] = without_passwords(dict(config))
        self.overrides = without_passwords(list(overrides))
        self.name = name
        self.tracking = tracking
        self.status = RUNNING
        self.metrics: dict[str, float] = {}
        self._parent = parent
        self._started = datetime.now(UTC)
        self._pending: list[tuple[str, float, int, int]] = []
        self._written = time.monotonic()
        self._lock = threading.Lock()
        self._kept_here: set[str] = set()  # records that MLflow does not get
        self._mlflow: MlflowRun | None = None

        folder.mkdir(parents=True, exist_ok=True)
        self._resumed = resume
        earlier = _earlier_mlflow_run(folder) if resume else None
        self._before = _records(folder) if resume else {}
        if not resume:
            (folder / "metrics.json").unlink(missing_ok=True)
        self._history = History(folder / "history.jsonl", resume=resume)
        self._log_handler = logging.FileHandler(folder / "run.log", mode="a" if resume else "w", encoding="utf-8")
        self._log_handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self._log_handler.setLevel(logging.INFO)
        logging.getLogger("constellation").setLevel(logging.INFO)
        logging.getLogger().addHandler(self._log_handler)
        self.environment: dict[str, Any] = environment() if parent is None else parent.environment
        write_json(folder / "environment.json", self.environment)
        (folder / "config.yaml").write_text(to_yaml(self.config), encoding="utf-8")
        self._write_state()
        log.info("%s started in %s", command, folder)
        try:
            if isinstance(tracking, Tracking):
                parent_id = parent.mlflow_run_id if parent is not None else None
                self._mlflow = MlflowRun(tracking, name, self._tags(), parent_id, earlier)
                self._write_state()
                self.log_params(self.config)
        except BaseException as error:
            self.close(KILLED if isinstance(error, KeyboardInterrupt) else FAILED)
            raise

    @classmethod
    def start(
        cls,
        folder: str | Path,
        command: str,
        *,
        config: Mapping[str, Any] | None = None,
        tracking: Tracking | NullTracking | None = None,
        overwrite: bool = False,
        resume: bool = False,
        overrides: Sequence[str] = (),
    ) -> Run:
        """Begin a run in a new or empty folder.

        With ``overwrite`` a folder that is not empty is written into; files of other names stay as they are.
        With ``resume`` the folder is that of an earlier run, which goes on: history and MLflow run are continued. Where
        it is refused (an InputError before its first metric) the run stays as it was.
        ``overrides``, what the command line changed in the configuration, is kept so that a run can be repeated.
        Without ``tracking`` MLflow is left out. Raises InputError when the folder is not empty or is a file.
        In a process of a higher rank (torchrun, Lightning DDP) the run is silent: a folder inside, no MLflow.
        """
        folder = Path(folder).expanduser().absolute()
        rank = int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or 0)
        if rank > 0:
            folder, tracking, overwrite = folder / f"rank_{rank}", NullTracking(), True
        if folder.exists() and not folder.is_dir():
            raise InputError(f"The output {folder} is a file; a folder was expected. Choose another with output=DIR.")
        if folder.exists() and any(folder.iterdir()) and not (overwrite or resume):
            raise InputError(
                f"The output folder {folder} is not empty. Choose another with output=DIR, "
                "or write into it with overwrite=true."
            )
        if resume and rank == 0:
            _check_at_rest(folder)
        tracking = tracking if tracking is not None else NullTracking()
        named = tracking.run_name if isinstance(tracking, Tracking) else None
        name = named or f"{command} {datetime.now():%Y-%m-%d %H:%M:%S}"
        return cls(
            folder, command, config=config or {}, tracking=tracking, name=name, resume=resume, overrides=overrides
        )

    def child(self, name: str) -> Run:
        """A run inside this one (a seed, a fold, a trial): folder ``<folder>/<name>``, nested in MLflow."""
        folder = self.folder / name
        return Run(
            folder,
            self.command,
            config=self.config,
            tracking=self.tracking,
            name=name,
            parent=self,
            resume=self._resumed,
        )

    @property
    def mlflow_run_id(self) -> str | None:
        """Id in MLflow; None when nothing is tracked there."""
        return self._mlflow.run_id if self._mlflow is not None else None

    @property
    def tracking_uri(self) -> str | None:
        """Tracking URI of MLflow; None when nothing is tracked there."""
        return self._mlflow.uri if self._mlflow is not None else None

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Parameters, nested mappings flattened with dots. MLflow keeps the first value of each name."""
        if self._mlflow is not None:
            self._mlflow.params(flatten(params))

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Numbers by name. With a step they also enter the history; ``metrics.json`` keeps the latest of each.

        Values may be Python, numpy or zero-dimensional torch numbers. Writing is buffered, so calling is cheap;
        still, a torch number on a GPU makes the device wait here.
        """
        now_ms = int(time.time() * 1000)
        values = {name: float(value) for name, value in metrics.items()}
        with self._lock:
            self.metrics.update(values)
            self._pending += [(name, value, now_ms, -1 if step is None else step) for name, value in values.items()]
            due = len(self._pending) >= BATCH_METRICS or time.monotonic() - self._written > FLUSH_SECONDS
        if due:
            self.flush()

    def flush(self) -> None:
        """Write the buffered metrics to the history, and to MLflow."""
        with self._lock:
            rows, self._pending = self._pending, []
            self._written = time.monotonic()
            stepped = [row for row in rows if row[3] >= 0]
            if stepped:
                self._history.append(stepped)
            if rows and self._mlflow is not None:
                self._mlflow.metrics([(name, value, now_ms, max(step, 0)) for name, value, now_ms, step in rows])

    def set_tag(self, name: str, value: Any) -> None:
        """A tag, for finding and grouping runs in MLflow."""
        if self._mlflow is not None:
            self._mlflow.tags({name: str(value)})

    def log_dataset(
        self, name: str, fingerprint: str, *, source: str = "", profile: Mapping[str, Any] | None = None
    ) -> None:
        """Name the data set in MLflow's runs table, and tag the run with its fingerprint."""
        if self._mlflow is not None:
            self._mlflow.tags({"data": name, "data_fingerprint": fingerprint})
            self._mlflow.dataset(name, fingerprint, source, dict(profile or {}))

    def log_figure(self, name: str, figure: Figure) -> Path:
        """A matplotlib figure as ``figures/<name>.png`` (a suffix in the name is kept), here and in MLflow."""
        path = self.folder / "figures" / (name if Path(name).suffix else f"{name}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=144, bbox_inches="tight")
        self.log_file(path)
        return path

    def log_table(self, name: str, frame: Any) -> Path:
        """A pandas or polars frame as ``tables/<name>.parquet``; one with customer ids stays out of MLflow."""
        path = self.folder / "tables" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        named = [str(column) for column in frame.columns]
        if hasattr(frame, "write_parquet"):
            frame.write_parquet(path)
        else:
            named += [str(level) for level in frame.index.names]
            frame.to_parquet(path)
        if CUSTOMER_ID not in named:
            self.log_file(path)
        return path

    def log_file(self, path: str | Path) -> Path:
        """A file or folder as an artefact; one outside the run's folder is copied into it first.

        The caller vouches that there are no customer ids in it.
        """
        path = Path(path).absolute()
        if not path.is_relative_to(self.folder):
            inside = self.folder / path.name
            if path.is_dir():
                shutil.copytree(path, inside, dirs_exist_ok=True)
            else:
                shutil.copy2(path, inside)
            path = inside
        if self._mlflow is not None:
            self._mlflow.artifact(path, path.parent.relative_to(self.folder).as_posix())
        return path

    def close(self, status: str = FINISHED) -> None:
        """Write what is left and mark the end. A second call does nothing."""
        if self.status != RUNNING:
            return
        self.status = status
        log.info("%s %s", self.command, status)
        write_json(self.folder / "metrics.json", {name: finite(self.metrics[name]) for name in sorted(self.metrics)})
        if "torch" in sys.modules:
            self.environment["torch_threads"] = sys.modules["torch"].get_num_threads()
            write_json(self.folder / "environment.json", self.environment)
        self._write_state()
        self._end(status)

    def _withdraw(self) -> None:
        """Leave the run as it was before it was to go on: its records, and its status in MLflow."""
        before = json.loads(self._before["run.json"])["status"]
        self.status = KILLED if before == RUNNING else before  # a power cut had no time to say so
        for name, text in self._before.items():
            (self.folder / name).write_text(text, encoding="utf-8")
        self._end(self.status)

    def _end(self, status: str) -> None:
        try:
            self.flush()
            if self._mlflow is not None:
                self._log_handler.flush()
                self._mlflow.end(self.folder, status, without=self._kept_here)
        finally:
            logging.getLogger().removeHandler(self._log_handler)
            self._log_handler.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close(FINISHED)
            return
        # Some libraries turn Ctrl-C into SystemExit; what they caught is its context.
        killed = isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt)
        # Into run.log only: on the terminal the command line, or Python, says it once more.
        said = f"{'killed' if killed else 'failed'}: {type(error).__name__}: {error}"
        exc_info = (type(error), error, trace)
        self._log_handler.handle(log.makeRecord(log.name, logging.ERROR, __file__, 0, said, (), exc_info))
        if isinstance(error, InputError):  # it may show a row of the data as an example, with its customer
            self._kept_here.add("run.log")
        refused = isinstance(error, InputError) and "run.json" in self._before and not self.metrics
        try:
            if refused and self.status == RUNNING:
                self._withdraw()
            else:
                self.close(KILLED if killed else FAILED)
        except Exception:  # the error that ended the run is the one to be seen, not its echo in the tracking
            log.exception("The end of the run could not be tracked.")

    def _tags(self) -> dict[str, str]:
        tags = {"command": self.command, "folder": str(self.folder)}
        tags |= {"mlflow.source.name": f"constellation {self.command}"}
        commit = self.environment["commit"]
        if commit is not None:
            tags |= {"commit": commit + ("+changes" if self.environment["uncommitted_changes"] else "")}
            tags |= {"mlflow.source.git.commit": commit}
        return tags

    def _write_state(self) -> None:
        ended = None if self.status == RUNNING else datetime.now(UTC).isoformat(timespec="seconds")
        write_json(
            self.folder / "run.json",
            {
                "command": self.command,
                "name": self.name,
                "status": self.status,
                "process": {"host": platform.node(), "pid": os.getpid()},
                "overrides": self.overrides,
                "started": self._started.isoformat(timespec="microseconds"),
                "ended": ended,
                "mlflow_run_id": self.mlflow_run_id,
                "mlflow_tracking_uri": self.tracking_uri,
            },
        )


def _earlier_mlflow_run(folder: Path) -> str | None:
    path = folder / "run.json"
    return json.loads(path.read_text(encoding="utf-8"))["mlflow_run_id"] if path.is_file() else None


def _records(folder: Path) -> dict[str, str]:
    """What an earlier run wrote about itself, by file name."""
    paths = [folder / name for name in ("run.json", "config.yaml", "environment.json", "metrics.json")]
    return {path.name: path.read_text(encoding="utf-8") for path in paths if path.is_file()}


def _check_at_rest(folder: Path) -> None:
    """Two processes must not write one run. Raises InputError when the run's process is still alive on this machine."""
    path = folder / "run.json"
    state = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if state.get("status") != RUNNING or state["process"]["host"] != platform.node():
        return
    import psutil

    if state["process"]["pid"] != os.getpid() and psutil.pid_exists(state["process"]["pid"]):
        raise InputError(
            f"The run in {folder} is still running, as process {state['process']['pid']}. "
            "Stop it first (Ctrl-C), or name another run."
        )
