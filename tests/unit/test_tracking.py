"""Runs leave the same traces in their folder and in MLflow; here a real SQLite database in a temporary folder."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from constellation.errors import InputError
from constellation.tracking import NullTracking, Run, Tracking, resolve_run
from constellation.tracking.records import flatten, without_passwords
from constellation.tracking.settings import check_settings

pytestmark = pytest.mark.usefixtures("quick_databases")

CONFIG = {
    "encoder": {"width": 64, "layers": [1, 2]},
    "seeds": [0],
    "data": {"dsn": "postgresql://ann:secret@host/shop"},
}


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def mlflow_run(run: Run) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=run.tracking_uri).get_run(run.mlflow_run_id)


def artifacts(run: Run) -> list[str]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=run.tracking_uri)
    found, folders = [], [""]
    while folders:
        for entry in client.list_artifacts(run.mlflow_run_id, folders.pop() or None):
            (folders if entry.is_dir else found).append(entry.path)
    return sorted(found)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all tests here: making its tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture
def tracking(database: str) -> Tracking:
    return Tracking(uri=database, system_metrics=False, tags={"team": "blue"})


def test_a_run_without_mlflow_leaves_its_folder(work_folder: Path) -> None:
    with Run.start("a", "train", config=CONFIG) as run:
        run.log_metrics({"train/loss": np.float32(0.5)}, step=1)
        run.log_metrics({"train/loss": 0.25}, step=2)
        run.log_metrics({"test/value_91d/model/mae": 3, "test/value_91d/model/auc_any": math.nan})
        assert run.mlflow_run_id is None
    assert read(work_folder / "a/metrics.json") == {
        "test/value_91d/model/auc_any": None,
        "test/value_91d/model/mae": 3.0,
        "train/loss": 0.25,
    }
    history = [json.loads(line) for line in (work_folder / "a/history.jsonl").read_text().splitlines()]
    assert [(row["name"], row["step"], row["value"]) for row in history] == [
        ("train/loss", 1, 0.5),
        ("train/loss", 2, 0.25),
    ]
    assert yaml.safe_load((work_folder / "a/config.yaml").read_text())["encoder"] == {"width": 64, "layers": [1, 2]}
    environment = read(work_folder / "a/environment.json")
    assert environment["python"].startswith("3.")
    assert environment["packages"]["mlflow"]
    assert not (work_folder / "mlflow.db").exists()


def test_mlflow_holds_what_the_folder_holds(work_folder: Path, tracking: Tracking) -> None:
    with Run.start("a", "train", config=CONFIG, tracking=tracking) as run:
        run.log_dataset("shop", "f" * 64, profile={"num_events": 7})
        for step in range(2000):
            run.log_metrics({"train/loss": 1 / (step + 1)}, step=step)
        run.log_metrics({"test/value_91d/model/mae": 3.0})
        run.set_tag("seed", 0)
    seen = mlflow_run(run)
    assert seen.info.status == "FINISHED"
    assert seen.data.metrics == pytest.approx({"train/loss": 1 / 2000, "test/value_91d/model/mae": 3.0})
    assert seen.data.params["encoder.width"] == "64"
    assert seen.data.tags.items() >= {"command": "train", "seed": "0", "team": "blue", "data": "shop"}.items()
    assert seen.data.tags["data_fingerprint"] == "f" * 64
    (dataset,) = seen.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("shop", "f" * 36)
    from mlflow.tracking import MlflowClient

    history = MlflowClient(tracking_uri=run.tracking_uri).get_metric_history(run.mlflow_run_id, "train/loss")
    assert sorted((row.step, row.value) for row in history) == [(step, 1 / (step + 1)) for step in range(2000)]
    assert {"metrics.json", "config.yaml", "environment.json", "history.jsonl", "run.log"} <= set(artifacts(run))


def test_passwords_reach_neither_folder_nor_mlflow(work_folder: Path, tracking: Tracking) -> None:
    with Run.start(
        "a", "train", config=CONFIG, tracking=tracking, overrides=["data.dsn=mysql://ann:secret@h/x"]
    ) as run:
        pass
    assert "secret" not in "".join(path.read_text() for path in (work_folder / "a").iterdir())
    assert mlflow_run(run).data.params["data.dsn"] == "postgresql://ann:***@host/shop"


def test_customer_ids_stay_out_of_mlflow(work_folder: Path, tracking: Tracking) -> None:
    ids = pd.DataFrame({"customer_id": [1, 2], "value": [3.0, 4.0]})
    with Run.start("a", "train", tracking=tracking) as run:
        run.log_table("plain", ids)
        run.log_table("as_index", ids.set_index("customer_id"))
        run.log_table("polars", pl.DataFrame({"customer_id": [1]}))
        run.log_table("deciles", pl.DataFrame({"decile": [1]}))
    assert [path for path in artifacts(run) if path.startswith("tables")] == ["tables/deciles.parquet"]
    written = {path.stem for path in (work_folder / "a/tables").iterdir()}
    assert written == {"plain", "as_index", "polars", "deciles"}
    pd.testing.assert_frame_equal(pd.read_parquet(work_folder / "a/tables/plain.parquet"), ids)


def test_the_row_that_an_input_error_shows_stays_out_of_mlflow(work_folder: Path, tracking: Tracking) -> None:
    with pytest.raises(InputError), Run.start("a", "prepare", tracking=tracking) as run:
        raise InputError("1 of 20 rows was rejected. For example: customer_id='ann'.")
    assert "ann" in (work_folder / "a/run.log").read_text()
    assert "run.log" not in artifacts(run) and "metrics.json" in artifacts(run)


def test_figures_and_files_are_artefacts(work_folder: Path, tracking: Tracking) -> None:
    from matplotlib.figure import Figure

    (work_folder / "card.md").write_text("outside")
    with Run.start("a", "train", tracking=tracking) as run:
        assert run.log_figure("lorenz", Figure()) == work_folder / "a/figures/lorenz.png"
        (run.folder / "bundle").mkdir()
        (run.folder / "bundle" / "model.json").write_text("{}")
        run.log_file(run.folder / "bundle")
        run.log_file("card.md")
    assert (work_folder / "a/card.md").read_text() == "outside"
    assert {"figures/lorenz.png", "bundle/model.json", "card.md"} <= set(artifacts(run))


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError("no"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (SystemExit(1), "FAILED")]
)
def test_the_end_is_told_truly(work_folder: Path, tracking: Tracking, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)), Run.start("a", "train", tracking=tracking) as run:
        run.log_metrics({"train/loss": 1.0}, step=0)
        raise error
    assert read(work_folder / "a/run.json")["status"] == status
    assert read(work_folder / "a/metrics.json") == {"train/loss": 1.0}
    assert mlflow_run(run).info.status == status
    assert mlflow_run(run).data.metrics == {"train/loss": 1.0}


def test_ctrl_c_that_a_library_turned_into_an_exit_is_still_ctrl_c(work_folder: Path) -> None:
    def library() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise SystemExit(1)  # noqa: B904  this is what is met in the wild

    with pytest.raises(SystemExit), Run.start("a", "train"):
        library()
    assert read(work_folder / "a/run.json")["status"] == "KILLED"


def test_children_are_nested_runs_with_folders_inside(work_folder: Path, tracking: Tracking) -> None:
    with Run.start("a", "train", config=CONFIG, tracking=tracking) as run:
        with run.child("seed_0") as child:
            child.log_metrics({"test/value_91d/model/mae": 1.0})
    assert read(work_folder / "a/seed_0/metrics.json") == {"test/value_91d/model/mae": 1.0}
    assert read(work_folder / "a/metrics.json") == {}
    assert mlflow_run(child).data.tags["mlflow.parentRunId"] == run.mlflow_run_id
    assert mlflow_run(child).info.status == "FINISHED"


def test_a_resumed_run_goes_on_in_folder_and_mlflow(work_folder: Path, tracking: Tracking) -> None:
    with pytest.raises(KeyboardInterrupt), Run.start("a", "train", config={"resume": None}, tracking=tracking) as first:
        first.log_metrics({"train/loss": 2.0}, step=0)
        raise KeyboardInterrupt
    with Run.start("a", "train", config={"resume": "a", "new": 1}, tracking=tracking, resume=True) as second:
        second.log_metrics({"train/loss": 1.0}, step=1)
    assert second.mlflow_run_id == first.mlflow_run_id
    assert mlflow_run(second).info.status == "FINISHED"
    assert mlflow_run(second).data.params == {"resume": "None", "new": "1"}
    history = [json.loads(line) for line in (work_folder / "a/history.jsonl").read_text().splitlines()]
    assert [(row["step"], row["value"]) for row in history] == [(0, 2.0), (1, 1.0)]


def test_an_epoch_that_is_made_again_stands_in_the_history_once(work_folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Run.start("a", "train") as first:
        first.log_metrics({"train/loss": 2.0}, step=0)
        first.log_metrics({"train/loss": 1.0, "train/events_per_second": 10.0}, step=1)
        raise KeyboardInterrupt
    path = work_folder / "a/history.jsonl"
    path.write_text(path.read_text() + '{"step": 2, "na')  # killed while it wrote
    with Run.start("a", "train", resume=True) as second:
        second.log_metrics({"train/loss": 1.0, "train/events_per_second": 12.0}, step=1)
        second.flush()
        second.log_metrics({"train/loss": 0.5}, step=2)
    history = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["step"], row["name"], row["value"]) for row in history] == [
        (0, "train/loss", 2.0),
        (1, "train/loss", 1.0),
        (1, "train/events_per_second", 12.0),
        (2, "train/loss", 0.5),
    ]


def test_a_run_that_is_still_running_is_not_resumed(work_folder: Path) -> None:
    with Run.start("a", "train"):
        state = read(work_folder / "a/run.json")
        elsewhere = state | {"process": state["process"] | {"pid": os.getppid()}}
        (work_folder / "a/run.json").write_text(json.dumps(elsewhere))
        with pytest.raises(InputError, match="still running"):
            Run.start("a", "train", resume=True)


def test_a_folder_that_is_not_empty_is_refused(work_folder: Path) -> None:
    (work_folder / "a").mkdir()
    with Run.start("a", "train"):
        pass
    with pytest.raises(InputError, match=r"not empty.*overwrite=true"):
        Run.start("a", "train")
    (work_folder / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        Run.start("file", "train", overwrite=True)


def test_higher_ranks_are_silent(work_folder: Path, tracking: Tracking, monkeypatch: pytest.MonkeyPatch) -> None:
    with Run.start("a", "train", tracking=tracking):
        monkeypatch.setenv("LOCAL_RANK", "1")
        with Run.start("a", "train", tracking=tracking) as other:
            assert other.mlflow_run_id is None
            assert other.folder == work_folder / "a/rank_1"


def test_runs_are_found_by_folder_id_and_latest(work_folder: Path, tracking: Tracking) -> None:
    with pytest.raises(InputError, match="holds no finished run"):
        resolve_run("latest")
    with Run.start("outputs/train/x", "train", tracking=tracking) as run:
        pass
    with Run.start("outputs/train/y", "train"):
        pass
    with pytest.raises(KeyboardInterrupt), Run.start("outputs/train/z", "train"):
        raise KeyboardInterrupt
    folder = work_folder / "outputs/train"
    assert resolve_run("latest") == folder / "y"
    assert resolve_run("latest", finished=False) == folder / "z"
    assert resolve_run("outputs/train/x") == resolve_run(folder / "x") == folder / "x"
    assert resolve_run(str(run.mlflow_run_id), tracking=tracking) == folder / "x"
    with pytest.raises(InputError, match="knows no run"):
        resolve_run("0" * 32, tracking=tracking)
    with pytest.raises(InputError, match="not of a run"):
        resolve_run(folder)
    with pytest.raises(InputError, match="There is no run 'typo'"):
        resolve_run("typo")


def test_a_run_whose_folder_is_gone_is_fetched_from_mlflow(work_folder: Path, tracking: Tracking) -> None:
    with Run.start("a", "train", tracking=tracking) as run:
        run.log_metrics({"test/value_91d/model/mae": 1.0})
    (work_folder / "a").rename(work_folder / "moved")
    found = resolve_run(str(run.mlflow_run_id), tracking=tracking)
    assert found == work_folder / "outputs/fetched" / str(run.mlflow_run_id)
    assert read(found / "metrics.json") == {"test/value_91d/model/mae": 1.0}


def test_an_unreachable_server_is_an_input_error(work_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InputError, match=r"cannot be used.*tracking=none"):
        Run.start("a", "train", tracking=Tracking(uri="http://127.0.0.1:9"))
    assert read(work_folder / "a/run.json")["status"] == "FAILED"


def test_without_a_uri_the_database_lies_in_the_working_folder(
    work_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Tracking().resolved_uri() == f"sqlite:///{work_folder}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert Tracking().resolved_uri() == "http://tracking:5000"
    assert Tracking(uri="sqlite:///b.db").resolved_uri() == "sqlite:///b.db"


def test_null_tracking_is_the_default(work_folder: Path) -> None:
    with Run.start("a", "train") as run:
        assert isinstance(run.tracking, NullTracking)


names = st.text(st.characters(codec="ascii", exclude_characters="."), min_size=1, max_size=4)
trees = st.recursive(
    st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2),
    lambda inner: st.dictionaries(names, inner, min_size=1, max_size=3),
)


@settings(max_examples=40)
@given(st.dictionaries(names, trees, max_size=3))
def test_flatten_keeps_every_leaf_under_its_path(nested: dict[str, Any]) -> None:
    flat = flatten(nested)
    for path, value in flat.items():
        found: Any = nested
        for name in path.split("."):
            found = found[name]
        assert found == value

    def leaves(tree: Any) -> int:
        return sum(map(leaves, tree.values())) if isinstance(tree, dict) else 1

    assert len(flat) == leaves(nested)


@settings(max_examples=40)
@given(trees)
def test_a_config_without_addresses_is_left_as_it_is(config: Any) -> None:
    assert without_passwords(config) == config


def test_settings_that_a_folder_was_begun_with_are_kept_and_others_refused(tmp_path: Path) -> None:
    path = tmp_path / "below" / "settings.json"
    said = ("It was begun with", "Choose another.")
    check_settings(path, {"a": {"b": 1, "none": {}}, "data": {"root": "here"}, "seeds": [0]}, *said)
    assert read(path) == {"a.b": "1", "seeds": "[0]"}
    # The same, moved to another machine, by someone who kept more than is compared.
    path.write_text(json.dumps(read(path) | {"data.root": '"there"'}))
    check_settings(path, {"a": {"b": 1}, "data": {"root": "elsewhere"}, "seeds": [0]}, *said)
    before = path.read_text()
    with pytest.raises(InputError) as raised:
        check_settings(path, {"a": {"b": 1, "c": "new"}, "seeds": [0, 1]}, *said)
    listed = 'a.c: None then, "new" now; seeds: [0] then, [0, 1] now'
    assert str(raised.value) == f"It was begun with other settings ({listed}). Choose another."
    assert path.read_text() == before
