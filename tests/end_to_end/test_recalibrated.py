"""Recalibrated answers are the same numbers wherever they are given: train, evaluate, score, and the bundle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest

from constellation.bundle import Bundle
from constellation.bundle.raw import raw_attributes, raw_events
from constellation.cli import main
from constellation.journeys.store import Store
from constellation.metrics import LEVELS
from constellation.schema import CUSTOMER_ID
from tests.end_to_end.console import said_in

DATA = ["data=spenders", "data.source.arguments.num_customers=300", "tracking=none", "num_resamples=20"]
SMALL = [
    *DATA,
    "encoder=bag", "encoder.width=8", "readout.width=16", "objective=[value_quantiles,time_to_event]", "baseline=[]",
    "training.max_epochs=2", "training.cutoffs_per_journey=4",
]  # fmt: skip
TEST = "2024-09-30"


def of_model(folder: Path, target: str) -> pd.DataFrame:
    table = pd.read_parquet(folder / "predictions.parquet")
    chosen = (table["split"] == "test") & (table["target"] == target) & (table["system"] == "model")
    return table[chosen].set_index(CUSTOMER_ID).sort_index()


def test_train_evaluate_score_and_bundle_give_the_same(work_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = said_in(work_folder, "train", *SMALL, "output=trained")
    assert "recalibration: value_30d, value_91d, purchases_30d, purchases_91d:" in printed
    metrics = json.loads((work_folder / "trained" / "metrics.json").read_text())
    assert metrics["train/recalibration_rows_value_91d"] > 100
    bundle = Bundle.load(work_folder / "trained" / "bundle")
    assert bundle.corrections is not None
    assert bundle.corrections.shocks["value"].num_windows == 1.0
    card = (work_folder / "trained" / "bundle" / "README.md").read_text()
    assert "## Recalibration\n\n- value_30d, value_91d, purchases_30d, purchases_91d: distribution recalibrated" in card
    assert "see the objective" not in card

    said_in(work_folder, "evaluate", "run=trained", "baseline=[]", "tracking=none", "num_resamples=20", "output=again")
    again = json.loads((work_folder / "again" / "metrics.json").read_text())
    same = [name for name in again if name.startswith("test/") and "/model/" in name]
    assert len(same) > 40
    for name in same:
        assert again[name] == pytest.approx(metrics[name], rel=1e-5, abs=1e-6), name
    assert "test/value_91d/model/total_q95" in same
    for target in ("value_91d", "purchases_30d"):
        one, two = of_model(work_folder / "trained", target), of_model(work_folder / "again", target)
        for column in ("expected", "median", "p_zero", "crps"):
            np.testing.assert_allclose(one[column], two[column], rtol=1e-5, atol=1e-6)

    (manifest,) = (work_folder / ".constellation").rglob("manifest.json")
    store = Store.open(manifest.parent)
    everybody = np.arange(store.num_customers)
    raw_events(store, everybody).write_parquet(work_folder / "events.parquet")
    attributes = raw_attributes(store, everybody)
    assert isinstance(attributes, pl.DataFrame)
    attributes.write_parquet(work_folder / "customers.parquet")
    levels = "levels=[0.005,0.505,0.995]"  # of the hundred that evaluation asks
    words = ["bundle=trained", "events=events.parquet", "attributes=customers.parquet", f"cutoff={TEST}", levels]
    assert main(["score", *words, "lifetime_years=2", "tracking=none", "output=scored"]) == 0
    printed = capsys.readouterr().out
    assert "extended by survival, discounted" in printed
    assert "(90 % interval" in printed
    scored = pd.read_parquet(work_folder / "scored" / "predictions.parquet")
    scored.index = pd.Index(scored[CUSTOMER_ID].astype(int))
    trained = of_model(work_folder / "trained", "value_91d")
    trained.index = pd.Index(trained.index.astype(int))
    found = scored.loc[trained.index]
    np.testing.assert_allclose(found["value_91d_expected"], trained["expected"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["value_91d_p_zero"], trained["p_zero"], rtol=1e-5, atol=1e-6)
    # The median of an even number of members lies between the two middle ones.
    assert (found["value_91d_q505"] >= trained["median"] - 1e-4).all()
    totals = json.loads((work_folder / "scored" / "metrics.json").read_text())
    if len(scored) == len(trained):
        assert totals["score/value_91d_total_q95"] == pytest.approx(metrics["test/value_91d/model/total_q95"], rel=0.02)
    # Two years of quarters of 91 days, by the columns beside it.
    discount = 1.1 ** (-91 / 365.25)
    keeps = discount * scored["p_active_91d"].clip(1e-9, 1.0)
    series = scored["value_91d_expected"] * discount**0.5 * (1 - keeps ** (730.5 / 91)) / (1 - keeps)
    np.testing.assert_allclose(scored["value_lifetime_by_survival_expected"], series, rtol=1e-5, atol=1e-6)

    journeys = np.flatnonzero(store.last_event(everybody, np.full(len(everybody), 1 << 62)) >= 0)
    from constellation.journeys.windows import ask, parse_cutoff

    cutoff = parse_cutoff(TEST, store.schema.timezone)
    queries = ask(store, journeys, np.full(len(journeys), cutoff), bundle.horizons_days, cutoff)
    told = bundle.predict_store(store, queries, LEVELS)
    raw = Bundle(bundle.model, bundle.vocabulary, bundle.schema, bundle.model_config, bundle.max_events)
    untold = raw.predict_store(store, queries, LEVELS)
    np.testing.assert_allclose(told["value_91d_expected"], untold["value_91d_expected"], rtol=1e-6)  # means stay
    assert not np.allclose(told["value_91d_quantiles"], untold["value_91d_quantiles"], rtol=1e-3)


def test_null_leaves_everything_as_fitted(work_folder: Path) -> None:
    words = [*SMALL, "recalibration=null", "training.max_epochs=1", "training.refit=false"]
    said_in(work_folder, "train", *words, "output=plain")
    bundle = Bundle.load(work_folder / "plain" / "bundle")
    assert bundle.corrections is None
    assert "None: answers are as the model was fitted." in (work_folder / "plain" / "bundle" / "README.md").read_text()
    metrics = json.loads((work_folder / "plain" / "metrics.json").read_text())
    assert not any("recalibration" in name for name in metrics)
    assert metrics["test/value_91d/model/total_q05"] < metrics["test/value_91d/model/total_q95"]
