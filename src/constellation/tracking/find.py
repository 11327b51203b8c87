"""Runs by name: a folder, an MLflow run id, or the latest."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from constellation.errors import InputError
from constellation.tracking.mlflow_run import Tracking, quiet_libraries
from constellation.tracking.run import FINISHED

log = logging.getLogger(__name__)


def resolve_run(
    run: str | Path,
    *,
    outputs: str | Path = "outputs",
    tracking: Tracking | None = None,
    finished: bool = True,
    command: str = "train",
) -> Path:
    """Folder of a run, given as a run folder, an MLflow run id, or ``latest``: the newest finished training.

    With ``finished=False`` ``latest`` is the newest run of ``command`` that did not finish, as for resuming.
    A run that MLflow knows and whose folder is not on this machine is fetched to ``<outputs>/fetched/<run id>``.
    Raises InputError when there is no such run.
    """
    outputs = Path(outputs)
    folder = Path(run).expanduser()
    if (folder / "run.json").is_file() or (folder / "config.yaml").is_file():
        return folder.absolute()
    if folder.is_dir():
        raise InputError(f"{folder} is a folder, but not of a run: it has neither run.json nor config.yaml.")
    text = str(run)
    if text == "latest":
        files = outputs.glob(f"{command}/*/run.json")
        states = [(json.loads(path.read_text(encoding="utf-8")), path.parent) for path in files]
        wanted = [(state["started"], path) for state, path in states if (state["status"] == FINISHED) == finished]
        if not wanted:
            raise InputError(
                f"`latest` was asked for, but {outputs.absolute() / command} holds no "
                f"{'finished' if finished else 'unfinished'} run. "
                f"Run `constellation {command}` first, or name a run folder or an MLflow run id."
            )
        return max(wanted)[1].absolute()
    if len(text) == 32 and all(letter in "0123456789abcdef" for letter in text):
        return _folder_of_id(text, outputs, tracking or Tracking())
    raise InputError(f"There is no run {text!r}. Expected a run folder, an MLflow run id (32 hex digits), or `latest`.")


def _folder_of_id(run_id: str, outputs: Path, tracking: Tracking) -> Path:
    quiet_libraries()
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    uri = tracking.resolved_uri()
    try:
        tags = MlflowClient(tracking_uri=uri).get_run(run_id).data.tags
    except MlflowException as error:
        raise InputError(f"MLflow at {uri} knows no run {run_id}. Choose the server with tracking.uri=...") from error
    folder = Path(tags.get("folder", ""))
    if tags.get("folder") and (folder / "run.json").is_file():
        if json.loads((folder / "run.json").read_text(encoding="utf-8"))["mlflow_run_id"] == run_id:
            return folder
        log.warning("%s now holds another run; fetching %s from MLflow", folder, run_id)
    fetched = outputs.absolute() / "fetched" / run_id
    fetched.mkdir(parents=True, exist_ok=True)
    mlflow.artifacts.download_artifacts(run_id=run_id, dst_path=str(fetched), tracking_uri=uri)
    return fetched
