"""A backtest where the history is shorter than the horizon: who learns from hazards competes, others cannot learn."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from constellation.cli import main

pytestmark = pytest.mark.slow

ORIGIN = "2023-03-15"  # 74 days after the world began
SETTINGS = [
    "data=spenders", "data.source.arguments.num_customers=1500", f"origins=[{ORIGIN}]", "horizons_days=[30,91]",
    "encoder=bag", "encoder.width=16", "readout.width=32", "training.max_epochs=4", "num_resamples=20", "tracking=none",
]  # fmt: skip


def cells(folder: Path, objective: str, *more: str) -> pd.DataFrame:
    assert main(["backtest", *SETTINGS, f"objective=[{objective}]", *more, f"output={objective}"]) == 0
    return pd.read_parquet(folder / objective / "cells.parquet")


def test_a_horizon_that_nobody_has_lived_is_answered_by_hazards(work_folder: Path) -> None:
    labels = cells(work_folder, "value_quantiles", "baseline=[]", "training.max_epochs=1")
    model = labels[(labels["system"] == "model") & (labels["horizon_days"] == 91)]
    assert set(model["status"]) == {"not trainable"}
    hazards = cells(work_folder, "value_hazard", "baseline=[same_rate]")
    found = hazards[hazards["horizon_days"] == 91].set_index(["target", "system"])
    for target in ("value_91d", "purchases_91d"):
        assert found.loc[(target, "model"), "status"] == "scored"
        # Better than to go on at one's own rate, and the total within a quarter.
        assert float(found.loc[(target, "model"), "crps"]) < 0.8 * float(found.loc[(target, "same_rate"), "crps"])
        assert abs(float(found.loc[(target, "model"), "bias_total"])) < 0.25
