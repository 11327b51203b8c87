"""Where a run leaves its traces: a folder on disk, and the same in MLflow.

::

    with Run.start("outputs/study", "train", config=config, tracking=Tracking()) as run:
        run.log_params({"encoder.width": 64})
        run.log_metrics({"train/loss": 0.7}, step=10)      # buffered, written in batches
        run.log_metrics({"test/value_91d/model/mae": 171.0})
        with run.child("seed_0") as child:
            ...

Leaving the block marks the run FINISHED, FAILED (an exception) or KILLED (Ctrl-C), in the folder and in MLflow alike.
The folder holds ``metrics.json``, ``history.jsonl``, ``config.yaml``, ``environment.json``, ``run.json``, ``run.log``.
Customer ids may be written to the folder; they are never sent to MLflow.
"""

from constellation.tracking.find import resolve_run
from constellation.tracking.mlflow_run import NullTracking, Tracking, quiet_libraries
from constellation.tracking.run import FAILED, FINISHED, KILLED, RUNNING, Run

__all__ = [
    "FAILED",
    "FINISHED",
    "KILLED",
    "RUNNING",
    "NullTracking",
    "Run",
    "Tracking",
    "quiet_libraries",
    "resolve_run",
]
