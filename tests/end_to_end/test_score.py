"""Export and score as a person runs them, and the bundle as an MLflow model."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from constellation.bundle import Bundle
from constellation.bundle.table import largest_difference
from constellation.cli import main
from constellation.commands.export import export
from constellation.commands.score import score
from constellation.errors import InputError
from constellation.schema import CUSTOMER_ID, EVENT_TIME, EventSchema
from constellation.tracking import Run, Tracking
from tests.bundles import CUTOFF, SCHEMA, shop_attributes, shop_bundle, shop_events


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that trained: what `export` needs of it is its bundle."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "run.json").write_text(json.dumps({"status": "FINISHED", "started": "2024-01-01", "mlflow_run_id": None}))
    shop_bundle().save(folder / "bundle")
    return folder


@pytest.fixture
def files(work_folder: Path) -> Path:
    shop_events().to_parquet(work_folder / "events.parquet", index=False)
    shop_attributes().to_csv(work_folder / "customers.csv", index=False)
    lists = {name: shop_events()[name].map("|".join) for name in ("product", "tags")}
    shop_events().assign(**lists).to_csv(work_folder / "events.csv", index=False)
    return work_folder


def test_score_from_the_command_line(trained: Path, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"bundle={trained / 'bundle'}", "events=events.parquet", f"cutoff={CUTOFF}", "attributes=customers.csv"]
    assert main(["score", *words, "tracking=none", "output=scored"]) == 0
    printed = capsys.readouterr().out
    predictions = pd.read_parquet(files / "scored" / "predictions.parquet")
    expected = Bundle.load(trained / "bundle").predict(shop_events(), CUTOFF, shop_attributes())
    pd.testing.assert_frame_equal(predictions, expected)
    metrics = json.loads((files / "scored" / "metrics.json").read_text())
    assert metrics["score/num_customers"] == len(expected)
    assert metrics["score/num_events_ignored"] == expected.attrs["events_ignored"] > 0
    assert metrics["score/value_10d_expected_total"] == pytest.approx(expected["value_10d_expected"].sum())
    assert f"{expected.attrs['events_ignored']:,} events after the cutoff were ignored" in printed
    assert f"expected value in the next 10 days: {expected['value_10d_expected'].sum():,.0f} EUR" in printed


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ("events=nothing.parquet", "no file nothing.parquet"),
        ("events=customers.csv", "lack event_time, event_type"),
        ("events=customers.csv", "they have customer_id, "),
        ("cutoff=soon", "not a time"),
        ("cutoff=2001-01-01", "Nobody can be scored"),
        ("bundle=elsewhere", "There is no run 'elsewhere'"),
    ],
)
def test_score_explains_in_one_paragraph(
    trained: Path, files: Path, capsys: pytest.CaptureFixture[str], change: str, match: str
) -> None:
    words = {"bundle": f"bundle={trained}", "events": "events=events.parquet", "cutoff": f"cutoff={CUTOFF}"}
    words[change.split("=")[0]] = change
    assert main(["score", *words.values(), "tracking=none", "output=scored"]) == 2
    said = capsys.readouterr().err
    assert match in said
    assert "Traceback" not in said


def test_csv_and_parquet_score_alike_and_the_cutoff_has_a_default(
    trained: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {}
    for kind in ("parquet", "csv"):
        with Run.start(tmp_path / kind, "score") as run:
            score(run, bundle=str(trained), events=str(files / f"events.{kind}"), output_format=kind, top_products=3)
        found[kind] = pd.read_parquet(tmp_path / kind / "predictions.parquet")
        assert f"is taken, {shop_events()[EVENT_TIME].max():%Y-%m-%d} 23:59" in capsys.readouterr().out
    pd.testing.assert_frame_equal(found["parquet"], found["csv"])
    assert not (tmp_path / "parquet" / "predictions.csv").exists()
    written = pd.read_csv(tmp_path / "csv" / "predictions.csv")
    assert list(written.columns) == list(found["csv"].columns)
    assert "next_product_4" not in written
    with Run.start(tmp_path / "wrong", "score") as run, pytest.raises(InputError, match="output_format"):
        score(run, bundle=str(trained), events=str(files / "events.csv"), output_format="excel")


def test_export_compares_on_made_up_customers(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Run.start(tmp_path / "export", "export") as run:
        metrics = export(run, trained=trained, num_customers=30)
    assert metrics["export/num_customers_compared"] == 30
    assert metrics["export/largest_difference"] <= 1e-5
    assert "30 made-up customers" in capsys.readouterr().out
    events = shop_events()
    first, second = (Bundle.load(place / "bundle").predict(events, CUTOFF) for place in (trained, tmp_path / "export"))
    pd.testing.assert_frame_equal(first, second)


@dataclass
class Prepared:
    """A data set whose store is already there."""

    name: str
    windows: Any
    store: Any


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> Prepared:
    from constellation.journeys.build import store_from_frame
    from constellation.journeys.windows import Windows

    store = store_from_frame(shop_events(), SCHEMA, shop_attributes(), name="shop")
    monkeypatch.setattr("constellation.journeys.prepare.prepare", lambda data: data.store)
    return Prepared("shop", Windows("2017-04-01", CUTOFF, (3, 10)), store)


def test_export_compares_store_and_raw_table(trained: Path, tmp_path: Path, prepared: Prepared) -> None:
    with Run.start(tmp_path / "export", "export") as run:
        metrics = export(run, trained=trained, data=prepared, to=str(tmp_path / "spring"), num_customers=10_000)
    risk = shop_events()[EVENT_TIME] < pd.Timestamp(CUTOFF) + pd.Timedelta(days=1)
    assert metrics["export/num_customers_compared"] == shop_events().loc[risk, CUSTOMER_ID].nunique()
    assert 0 <= metrics["export/largest_difference"] <= 1e-5
    assert (tmp_path / "spring" / "weights.safetensors").exists()


def test_a_data_set_is_scored_through_its_own_select(
    trained: Path, tmp_path: Path, prepared: Prepared, capsys: pytest.CaptureFixture[str]
) -> None:
    with Run.start(tmp_path / "at", "score") as run:
        metrics = score(run, bundle=str(trained), data=prepared, cutoff=CUTOFF)
    found = pd.read_parquet(tmp_path / "at" / "predictions.parquet")
    wanted = Bundle.load(trained / "bundle").predict(shop_events(), CUTOFF, shop_attributes())
    assert largest_difference(wanted, found) <= 1e-5 and len(found) == len(wanted)
    assert found.attrs["cutoff"] == wanted.attrs["cutoff"] and found.attrs["unknown_share"].keys() >= {"product"}
    for name in ("events", "events_ignored", "events_rejected"):
        assert found.attrs[name] == wanted.attrs[name]
    assert metrics["score/num_events_ignored"] > 0
    with Run.start(tmp_path / "end", "score") as run:
        metrics = score(run, bundle=str(trained), data=prepared)
    assert metrics["score/num_events_ignored"] == 0
    last_day = f"{shop_events()[EVENT_TIME].max():%Y-%m-%d} 23:59"
    assert f"the end of what is known is taken, {last_day}" in capsys.readouterr().out


def test_a_data_set_that_differs_is_not_scored(trained: Path, tmp_path: Path, prepared: Prepared) -> None:
    from constellation.journeys.build import store_from_frame

    def said(frame: pd.DataFrame, schema: EventSchema, **more: str) -> str:
        prepared.store = store_from_frame(frame, schema, name="shop")
        with Run.start(tmp_path / "run", "score", overwrite=True) as run, pytest.raises(InputError) as error:
            score(run, bundle=str(trained), data=prepared, **more)
        return str(error.value)

    assert "purchase_types of shop is ('purchase',)" in said(
        shop_events(), replace(SCHEMA, purchase_types=("purchase",))
    )
    assert "lack tags" in said(shop_events().drop(columns="tags"), replace(SCHEMA, lists=()))
    assert "Nobody can be scored" in said(shop_events(), SCHEMA, cutoff="2001-01-01")
    assert "attributes=FILE goes with events=FILE" in said(shop_events(), SCHEMA, attributes="customers.csv")


def test_export_refuses_what_differs(
    trained: Path, tmp_path: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Run.start(tmp_path / "one", "export") as run, monkeypatch.context() as patch:
        patch.setattr("constellation.bundle.raw.raw_attributes", lambda *_: None)
        with pytest.raises(RuntimeError, match="does not answer as the trained model does"):
            export(run, trained=trained, data=prepared)
    bundle = shop_bundle()
    bundle.trained_on = {"data": "another", "fingerprint": "0123"}
    bundle.save(tmp_path / "other" / "bundle")
    with Run.start(tmp_path / "two", "export") as run, pytest.raises(InputError, match="fingerprint 0123"):
        export(run, trained=tmp_path / "other", data=prepared)


class TrackedRun:
    """A run that MLflow knows, as far as `export` asks."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.mlflow_run_id = folder, "0" * 32
        self.logged: list[Path] = []

    def log_metrics(self, metrics: dict[str, float]) -> None:
        self.metrics = metrics

    def log_file(self, path: Path) -> None:
        self.logged.append(path)


def test_the_mlflow_model_answers_as_the_bundle(trained: Path, tmp_path: Path, work_folder: Path) -> None:
    import mlflow.pyfunc

    run = TrackedRun(tmp_path)
    export(run, trained=trained)  # type: ignore[arg-type]
    assert run.logged == [tmp_path / "mlflow_model"]
    assert not list((tmp_path / "mlflow_model").rglob("*.pkl")), "nothing is pickled"
    model = mlflow.pyfunc.load_model(str(tmp_path / "mlflow_model"))
    events = shop_events()
    bundle = Bundle.load(trained / "bundle")
    found = model.predict(events, params={"cutoff": CUTOFF, "top_products": 2})
    expected = bundle.predict(events, CUTOFF, top_products=2)
    assert largest_difference(found, expected) < 1e-6
    assert "next_product_3" not in found
    numbered = events.assign(**{CUSTOMER_ID: events[CUSTOMER_ID].str[1:].astype(int)}).drop(columns="tags")
    later = model.predict(numbered)
    assert set(later[CUSTOMER_ID]) == set(numbered[CUSTOMER_ID])
    assert np.isfinite(later["value_10d_expected"]).all()
    assert {column.name for column in model.metadata.get_input_schema() if column.required} == {
        "customer_id", "event_time", "event_type",
    }  # fmt: skip
    with pytest.raises(mlflow.exceptions.MlflowException, match="event_type"):
        model.predict(events.drop(columns="event_type"))


@pytest.mark.slow
def test_an_exported_model_is_found_in_mlflow(trained: Path, work_folder: Path) -> None:
    import mlflow

    uri = f"sqlite:///{work_folder / 'mlflow.db'}"
    tracking = Tracking(uri=uri, system_metrics=False)
    with Run.start(work_folder / "export", "export", tracking=tracking) as run:
        export(run, trained=trained)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        model = mlflow.pyfunc.load_model(f"runs:/{run.mlflow_run_id}/mlflow_model")
    finally:
        mlflow.set_tracking_uri(before)
    found = model.predict(shop_events(), params={"cutoff": CUTOFF})
    assert largest_difference(found, Bundle.load(trained / "bundle").predict(shop_events(), CUTOFF)) < 1e-6
