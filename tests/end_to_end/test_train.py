"""The main job through the real console: one small training that many tests look at, seeds, Ctrl-C and resuming.

The customers have ids that occur nowhere by chance, so that a search finds every place an id got to.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import yaml

from constellation.cli import main
from constellation.schema import CUSTOMER_ID, EVENT_TIME, PRODUCT
from constellation.training.checkpoints import Checkpoints
from constellation.worlds.spenders import SpendersWorld
from tests.end_to_end.console import inside, said_in

pytestmark = pytest.mark.usefixtures("quick_databases")

MARK = "zq7xvk"
"""Every customer id begins so."""
WORLD = SpendersWorld(num_days=400, acquisition_days=150, rate_days=12.0)
NUM_CUSTOMERS = 160
SMALL = [
    "data=people", "encoder=gru", "encoder.width=8", "encoder.layers=1", "readout.width=8", "readout.layers=1",
    "objective.next_event.width=8", "training.max_epochs=2", "num_resamples=20",
]  # fmt: skip
SYSTEMS_OF_VALUE = {"model", "always_zero", "gradient_boosting"}
SYSTEMS_OF_PRODUCTS = {"model", "most_popular"}
BASELINES = [
    "baseline=[always_zero,most_popular,gradient_boosting]", "baseline.gradient_boosting.max_trees=4",
    "baseline.gradient_boosting.num_trees=4", "baseline.gradient_boosting.quantile_levels=[0.1,0.5,0.9]",
]  # fmt: skip
TRACKED = ["tracking.system_metrics=false", "+tracking.tags.purpose=test"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with Parquet files and a YAML of ours: what a user's own project looks like."""
    folder = tmp_path_factory.mktemp("train")
    drawn = WORLD.simulate(NUM_CUSTOMERS, seed=0)

    def renamed(frame: pl.DataFrame) -> pl.DataFrame:
        name = pl.lit(MARK) + pl.col(CUSTOMER_ID).cast(pl.String).str.zfill(4)
        return frame.with_columns(name.alias(CUSTOMER_ID))

    (folder / "data").mkdir()
    renamed(drawn.events).write_parquet(folder / "data" / "events.parquet")
    renamed(drawn.attributes).write_parquet(folder / "data" / "attributes.parquet")
    config = {
        "_target_": "constellation.journeys.dataset.DataSet",
        "name": "people",
        "root": None,
        "cache": None,
        "observed_until": drawn.observed_until,
        "source": {
            "_target_": "constellation.journeys.sources.SqlSource",
            "sql": "SELECT * FROM '{root}/events.parquet'",
            "attributes_sql": "SELECT * FROM '{root}/attributes.parquet'",
        },
        "schema": {
            "_target_": "constellation.schema.EventSchema",
            "timezone": drawn.schema.timezone,
            "currency": "EUR",
            "purchase_types": ["purchase"],
        },
        "windows": {
            "_target_": "constellation.journeys.windows.Windows",
            **drawn.windows,
            "horizons_days": list(WORLD.horizons_days),
            "holdout_share": 0.2,
            "train_cutoffs_every_days": 14,
        },
        "decisions": None,
    }
    (folder / "configs" / "data").mkdir(parents=True)
    (folder / "configs" / "data" / "people.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture
def here(folder: Path) -> Iterator[Path]:
    with inside(folder):
        yield folder


@dataclass(frozen=True)
class Trained:
    """A finished run and what it printed."""

    folder: Path
    printed: str

    @cached_property
    def metrics(self) -> dict[str, float]:
        return json.loads((self.folder / "metrics.json").read_text())

    @cached_property
    def state(self) -> dict[str, Any]:
        return json.loads((self.folder / "run.json").read_text())

    @cached_property
    def predictions(self) -> pd.DataFrame:
        return pd.read_parquet(self.folder / "predictions.parquet")

    def of(self, split: str, target: str, system: str = "model") -> pd.DataFrame:
        table = self.predictions
        chosen = (table["split"] == split) & (table["target"] == target) & (table["system"] == system)
        return table[chosen].set_index(CUSTOMER_ID).sort_index()


@pytest.fixture(scope="module")
def trained(folder: Path) -> Trained:
    return Trained(folder / "one", said_in(folder, "train", *SMALL, *BASELINES, *TRACKED, "output=one", pictures=True))


@pytest.fixture(scope="module")
def client(trained: Trained) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=trained.state["mlflow_tracking_uri"])


# ---------------------------------------------------------------- what the run leaves in its folder


def test_metric_names_follow_the_grammar(trained: Trained) -> None:
    names = [name for name in trained.metrics if name.startswith(("val/", "test/", "test_new/"))]
    grammar = re.compile(r"(val|test|test_new)/((value|purchases)_(30|91)d|next_product)/[a-z_0-9]+/[a-z_0-9]+")
    assert [name for name in names if not grammar.fullmatch(name)] == []
    for split in ("val", "test", "test_new"):
        for target in ("value_30d", "value_91d", "purchases_30d", "purchases_91d"):
            systems = {name.split("/")[2] for name in names if name.startswith(f"{split}/{target}/")}
            assert systems == SYSTEMS_OF_VALUE | {"realised"}
            for system in SYSTEMS_OF_VALUE:
                for metric in ("mae", "rmse", "bias_total", "crps", "coverage_90", "auc_any"):
                    assert f"{split}/{target}/{system}/{metric}" in trained.metrics
            assert f"{split}/{target}/model/gini_normalised" in trained.metrics
            assert f"{split}/{target}/model/spearman" in trained.metrics
        systems = {name.split("/")[2] for name in names if name.startswith(f"{split}/next_product/")}
        assert systems == SYSTEMS_OF_PRODUCTS | {"realised"}
        for system in SYSTEMS_OF_PRODUCTS:
            for metric in ("ndcg_at_10", "hit_rate_at_10"):
                assert f"{split}/next_product/{system}/{metric}" in trained.metrics


def test_intervals_stand_around_the_estimates(trained: Trained) -> None:
    metrics = trained.metrics
    assert all(np.isfinite(value) for value in metrics.values())
    bounded = [name for name in metrics if f"{name}_low" in metrics]
    assert len(bounded) > 100
    for name in bounded:
        assert metrics[f"{name}_low"] <= metrics[f"{name}_high"], name
        if name.endswith(("/mae", "/crps")):  # means, whose resamples lie around them; others are biased by resampling
            assert metrics[f"{name}_low"] <= metrics[name] <= metrics[f"{name}_high"], name
            assert metrics[f"{name}_low"] < metrics[f"{name}_high"], name


def test_metrics_are_what_the_predictions_say(trained: Trained) -> None:
    said = trained.of("test", "value_91d")
    assert trained.metrics["test/value_91d/model/mae"] == pytest.approx(
        (said["median"] - said["realised"]).abs().mean()
    )
    assert trained.metrics["test/value_91d/model/bias_total"] == pytest.approx(
        said["expected"].sum() / said["realised"].sum() - 1
    )
    assert trained.metrics["test/value_91d/realised/total"] == pytest.approx(said["realised"].sum())
    nothing = trained.of("test", "value_91d", "always_zero")
    assert (nothing["expected"] == 0).all()
    pd.testing.assert_series_equal(nothing["realised"], said["realised"])
    assert set(trained.of("test_new", "value_91d").index) < set(said.index)
    assert trained.metrics["test_new/value_91d/realised/num_customers"] == len(trained.of("test_new", "value_91d"))


def test_realised_values_are_those_of_the_raw_table(trained: Trained, folder: Path) -> None:
    zone = WORLD.timezone
    cutoff = pd.Timestamp(WORLD.simulate(1, seed=0).windows["test_cutoff"], tz=zone) + pd.Timedelta(days=1)
    events = pd.read_parquet(folder / "data" / "events.parquet")
    time_N = events[EVENT_TIME].dt.tz_convert(zone)
    later = events[(time_N >= cutoff) & (time_N < cutoff + pd.Timedelta(days=30))]
    customers = events.loc[time_N < cutoff, CUSTOMER_ID].unique()
    money = later.groupby(CUSTOMER_ID)["amount"].sum().reindex(sorted(customers), fill_value=0.0)
    said = trained.of("test", "value_30d")["realised"]
    assert list(said.index) == sorted(customers)
    np.testing.assert_allclose(said, money, atol=1e-6)


def test_the_folder_tells_the_whole_run(trained: Trained) -> None:
    config = yaml.safe_load((trained.folder / "config.yaml").read_text())
    assert config["encoder"]["_target_"] == "constellation.encoders.gru.Gru"
    assert config["encoder"]["width"] == 8
    assert config["data"]["name"] == "people"
    environment = json.loads((trained.folder / "environment.json").read_text())
    assert environment["packages"]["torch"] and environment["python"]
    assert trained.state["status"] == "FINISHED"
    figures = sorted((trained.folder / "figures").iterdir())
    assert {path.suffix for path in figures} == {".png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000 for path in figures)
    names = " ".join(path.stem for path in figures)
    for part in ("learning_curves", "value_91d_decile_calibration", "value_91d_lorenz", "predicted_against_realised"):
        assert part in names
    history = [json.loads(line) for line in (trained.folder / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in history if row["name"] == "select/train/loss"] == sorted(
        {row["step"] for row in history if row["name"] == "select/train/loss"}
    )
    assert trained.metrics["train/refit_steps"] == trained.metrics["train/select_steps"]


def test_the_terminal_shows_progress_and_a_table_per_target(trained: Trained) -> None:
    for part in ("select epoch   0", "select epoch   1", "refit epoch", "baseline gradient_boosting", "Written to one"):
        assert part in trained.printed
    for target in ("value_30d", "value_91d", "purchases_30d", "purchases_91d", "next_product"):
        assert f"{target} on test, " in trained.printed
    assert MARK not in trained.printed


# ---------------------------------------------------------------- what the run leaves in MLflow


def test_mlflow_holds_params_metrics_tags_dataset_and_artefacts(trained: Trained, client: Any) -> None:
    run = client.get_run(trained.state["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["encoder.width"] == "8"
    assert run.data.params["training.max_epochs"] == "2"
    for name in ("test/value_91d/model/mae", "test_new/value_30d/gradient_boosting/crps", "train/refit_steps"):
        assert run.data.metrics[name] == pytest.approx(trained.metrics[name])
    assert len(client.get_metric_history(run.info.run_id, "select/train/loss")) == 2
    tags = run.data.tags
    manifest = next((trained.folder.parent / ".constellation" / "stores").glob("people-*/manifest.json"))
    assert tags["data_fingerprint"] == json.loads(manifest.read_text())["content"]
    assert (tags["seed"], tags["purpose"], tags["encoder"], tags["data"]) == ("0", "test", "gru", "people")
    commit = json.loads((trained.folder / "environment.json").read_text())["commit"]
    assert commit is None or tags["commit"].startswith(commit)
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.name == "people"
    assert dataset.dataset.digest == tags["data_fingerprint"][:36]
    listed = {entry.path for entry in client.list_artifacts(run.info.run_id)}
    assert {"metrics.json", "config.yaml", "environment.json", "figures", "tables"} <= listed
    figures = {Path(entry.path).name for entry in client.list_artifacts(run.info.run_id, "figures")}
    assert figures == {path.name for path in (trained.folder / "figures").iterdir()}


def test_no_customer_id_leaves_the_folder(trained: Trained) -> None:
    """Neither the database nor any artefact, nor the bundle, names a customer; the run's own predictions do."""
    root = trained.folder.parent
    sent = [root / "mlflow.db", *(path for path in (root / "mlruns").rglob("*") if path.is_file())]
    bundle = [path for path in (trained.folder / "bundle").rglob("*") if path.is_file()]
    assert len(sent) > 10 and len(bundle) >= 2
    for path in [*sent, *bundle]:
        text = pd.read_parquet(path).to_csv().encode() if path.suffix == ".parquet" else path.read_bytes()
        assert MARK.encode() not in text.lower(), path
    assert trained.predictions[CUSTOMER_ID].astype(str).str.startswith(MARK).all()


# ---------------------------------------------------------------- what others do with the run


def test_the_bundle_answers_raw_events_as_the_run_did(trained: Trained, folder: Path) -> None:
    from constellation.bundle import Bundle

    bundle = Bundle.load(trained.folder / "bundle")
    events = pd.read_parquet(folder / "data" / "events.parquet")
    attributes = pd.read_parquet(folder / "data" / "attributes.parquet")
    answers = bundle.predict(events, bundle.trained_on["test_cutoff"], attributes).set_index(CUSTOMER_ID)
    for target in ("value_30d", "value_91d", "purchases_30d", "purchases_91d"):
        said = trained.of("test", target)
        assert said["expected"].std() > 0
        np.testing.assert_allclose(answers.loc[said.index, f"{target}_expected"], said["expected"], rtol=1e-5)
        np.testing.assert_allclose(answers.loc[said.index, f"{target}_p_zero"], said["p_zero"], rtol=1e-5)


def test_score_takes_parquet_and_csv(trained: Trained, here: Path) -> None:
    events = pl.read_parquet("data/events.parquet")
    attributes = pl.read_parquet("data/attributes.parquet")
    assert events.schema[PRODUCT] == pl.List(pl.String)
    joined = pl.col(PRODUCT).list.join("|")
    events.with_columns(joined, pl.col(EVENT_TIME).dt.strftime("%Y-%m-%dT%H:%M:%S%.6f%:z")).write_csv("events.csv")
    attributes.write_csv("attributes.csv")
    cutoff = yaml.safe_load((trained.folder / "config.yaml").read_text())["data"]["windows"]["test_cutoff"]
    files = {"parquet": ("data/events.parquet", "data/attributes.parquet"), "csv": ("events.csv", "attributes.csv")}
    said = trained.of("test", "value_91d")["expected"]
    for kind, (log, people) in files.items():
        words = [f"events={log}", f"attributes={people}", f"cutoff={cutoff}", f"output_format={kind}"]
        assert main(["score", "bundle=one", *words, "tracking=none", f"output=scored_{kind}"]) == 0
        answers = pd.read_parquet(f"scored_{kind}/predictions.parquet").set_index(CUSTOMER_ID)["value_91d_expected"]
        np.testing.assert_allclose(answers.loc[said.index], said, rtol=1e-5)
    assert len(pd.read_csv("scored_csv/predictions.csv")) == len(answers)


def test_export_compares_with_the_data_of_the_run(trained: Trained, here: Path) -> None:
    assert main(["export", "run=one", "num_customers=50", "to=exported", "tracking=none", "output=export"]) == 0
    metrics = json.loads((here / "export" / "metrics.json").read_text())
    assert metrics["export/num_customers_compared"] == 50
    assert metrics["export/largest_difference"] <= 1e-5
    exported, own = (here / "exported" / "weights.safetensors", trained.folder / "bundle" / "weights.safetensors")
    assert exported.read_bytes() == own.read_bytes()


def test_evaluate_at_another_cutoff_with_slices(trained: Trained, folder: Path) -> None:
    windows = yaml.safe_load((trained.folder / "config.yaml").read_text())["data"]["windows"]
    cutoff = (pd.Timestamp(windows["test_cutoff"]) - pd.Timedelta(days=20)).date().isoformat()
    words = [f"cutoff={cutoff}", "slices=[tenure,spend_decile,region]", "baseline=[always_zero]", "num_resamples=20"]
    printed = said_in(folder, "evaluate", "run=one", *words, "tracking=none", "output=earlier")
    metrics = json.loads((folder / "earlier" / "metrics.json").read_text())
    # The refit learned from what follows this cutoff, and the figures must not pass for a test.
    assert {name.split("/")[0] for name in metrics} == {"train", "train_new"}
    assert {name.split("/")[2] for name in metrics if name.startswith("train/value_91d/")} == {
        "model", "always_zero", "realised",
    }  # fmt: skip
    slices = pd.read_parquet(folder / "earlier" / "tables" / "slices.parquet")
    assert set(slices["slice"]) == {"tenure", "spend_decile", "region"}
    regions = slices[(slices["slice"] == "region") & (slices["target"] == "value_91d")]
    assert set(regions["level"]) == {"east", "north", "south", "west"}
    rows = regions.drop_duplicates("level")["num_rows"].sum()
    assert rows == metrics["train/value_91d/realised/num_customers"]
    assert "in-sample" in printed


def test_what_is_asked_of_policies_is_refused_where_none_can_be_judged(
    trained: Trained, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["intervals=[bootstrap,student]", "reward_range=[0,1]", "system=ridge"]
    assert main(["evaluate", "run=one", *asked, "tracking=none", "output=refused"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "intervals=['bootstrap', 'student']" in said and "reward_range" in said and "system=ridge" in said
    assert "objective=engagement" in said


def test_evaluate_at_the_test_cutoff_repeats_the_run(trained: Trained, folder: Path) -> None:
    words = ["slices=[]", "baseline=[]", "num_resamples=20", "tracking=none", "output=again"]
    said_in(folder, "evaluate", "run=one", *words, pictures=True)
    metrics = json.loads((folder / "again" / "metrics.json").read_text())
    for target in ("value_91d", "purchases_30d"):
        for metric in ("crps", "gini_normalised", "bias_total"):
            name = f"test/{target}/model/{metric}"
            assert metrics[name] == pytest.approx(trained.metrics[name], rel=1e-4)


# ---------------------------------------------------------------- several seeds


@pytest.fixture(scope="module")
def seeds(folder: Path, trained: Trained) -> Trained:
    words = [*SMALL, "training.max_epochs=1", "objective=[value]", "baseline=[]", "seeds=[0,1]", *TRACKED]
    words.remove("objective.next_event.width=8")
    return Trained(folder / "two", said_in(folder, "train", *words, "output=two"))


def test_seeds_are_children_with_mean_and_spread(seeds: Trained, client: Any) -> None:
    children = [Trained(seeds.folder / f"seed_{seed}", "") for seed in (0, 1)]
    for metric in ("crps", "bias_total"):
        name = f"test/value_91d/model/{metric}"
        first, second = (child.metrics[name] for child in children)
        assert first != second
        assert seeds.metrics[name] == pytest.approx((first + second) / 2)
        assert seeds.metrics[f"{name}_sd"] == pytest.approx(abs(first - second) / 2**0.5)
        assert seeds.metrics[f"test/value_91d/model_seed_1/{metric}"] == pytest.approx(second)
    assert "over 2 seeds" in seeds.printed
    for child in children:
        assert child.state["status"] == "FINISHED"
        assert (child.folder / "bundle" / "weights.safetensors").is_file()
        run = client.get_run(child.state["mlflow_run_id"])
        assert run.data.tags["mlflow.parentRunId"] == seeds.state["mlflow_run_id"]
        assert run.info.status == "FINISHED"
    assert client.get_run(seeds.state["mlflow_run_id"]).data.tags["seed"] == "0,1"
    first, second = ((child.folder / "bundle" / "weights.safetensors").read_bytes() for child in children)
    assert first != second


def test_compare_two_runs(trained: Trained, seeds: Trained, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["one", "two:model_seed_0", "one:gradient_boosting", "num_resamples=50", "metrics=[mae,crps]"]
    assert main(["compare", *words, "tracking=none", "output=compared"]) == 0
    table = pd.read_parquet(here / "compared" / "tables" / "comparison.parquet").set_index(["run", "metric"])
    assert {run for run, _ in table.index} == {"two:model_seed_0", "one:gradient_boosting"}
    for metric in ("mae", "crps"):
        row = table.loc[("two:model_seed_0", metric)]
        reference = trained.metrics[f"test/value_91d/model/{metric}"]
        assert row["reference"] == pytest.approx(reference)
        assert row["value"] == pytest.approx(seeds.metrics[f"test/value_91d/model_seed_0/{metric}"])
        assert row["difference"] == pytest.approx(row["value"] - reference)
        assert row["low"] <= row["high"]
    assert set(table["verdict"]) <= {"better", "worse", "not shown"}
    assert (here / "compared" / "figures" / "comparison.png").is_file()
    assert "one:gradient_boosting" in capsys.readouterr().out


# ---------------------------------------------------------------- Ctrl-C and resuming


LONG = [*SMALL, "training.max_epochs=3", "training.max_journeys=16", "baseline=[]", *TRACKED]


@pytest.fixture(scope="module")
def stopped(folder: Path, trained: Trained) -> dict[str, Any]:
    """A run that a person stops by Ctrl-C once its first epoch is kept: its exit code, its words and its state then."""
    whole_epoch, listening = Checkpoints.on_train_epoch_end, signal.getsignal(signal.SIGINT)

    def then_stop(self: Checkpoints, trainer: Any, learner: Any) -> None:
        whole_epoch(self, trainer, learner)
        os.kill(os.getpid(), signal.SIGINT)

    complained = io.StringIO()
    with inside(folder), pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(complained):
        patch.setattr(Checkpoints, "on_train_epoch_end", then_stop)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in a shell's background
        try:
            code = main(["train", *LONG, "output=long"])
        finally:
            signal.signal(signal.SIGINT, listening)  # Lightning no longer listens
    run = Trained(folder / "long", "")
    return {
        "code": code,
        "stderr": complained.getvalue(),
        "state": run.state,
        "checkpoint": (run.folder / "checkpoints" / "seed_0" / "select" / "last.ckpt").is_file(),
        "bundle": (run.folder / "bundle").exists(),
    }


def test_ctrl_c_leaves_a_killed_run_that_can_go_on(stopped: dict[str, Any], client: Any) -> None:
    assert stopped["code"] == 130, stopped["stderr"]
    assert stopped["stderr"].strip().splitlines()[-1] == "constellation train: stopped"
    assert "Traceback" not in stopped["stderr"]
    assert stopped["state"]["status"] == "KILLED"
    assert stopped["checkpoint"] and not stopped["bundle"]
    assert client.get_run(stopped["state"]["mlflow_run_id"]).info.status == "KILLED"


def test_resume_refuses_other_settings_and_then_finishes_the_same_run(
    stopped: dict[str, Any], here: Path, client: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = stopped["state"]["mlflow_run_id"]
    assert client.get_run(run_id).info.status == "KILLED"
    assert main(["train", "resume=long", "encoder.width=16"]) == 2
    said = capsys.readouterr().err.strip()
    assert "encoder.width: 8 then, 16 now" in said
    assert len(said.splitlines()) == 1
    # The refusal left the run as it was, so that plain resuming means the run as it was started.
    assert json.loads((here / "long" / "run.json").read_text())["overrides"] == stopped["state"]["overrides"]
    assert yaml.safe_load((here / "long" / "config.yaml").read_text())["encoder"]["width"] == 8
    assert client.get_run(run_id).info.status == "KILLED"

    run = Trained(here / "long", said_in(here, "train", "resume=long"))
    assert run.state["status"] == "FINISHED"
    assert run.state["mlflow_run_id"] == run_id
    assert client.get_run(run_id).info.status == "FINISHED"
    assert "select epoch   0" not in run.printed
    history = [json.loads(line) for line in (run.folder / "history.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in history if row["name"] == "select/train/loss"]
    assert len(steps) == len(set(steps)) == 3, "every epoch of the selection is in the history, once"
    assert steps == sorted(steps)
    assert len(client.get_metric_history(run_id, "select/train/loss")) == 3
    assert run.metrics["train/refit_steps"] == run.metrics["train/select_steps"]
    assert (run.folder / "bundle" / "weights.safetensors").is_file()
