"""The benchmark of training: its rows, its metric names, and what it refuses."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from constellation.commands.benchmark import benchmark
from constellation.commands.benchmarks.training import (
    METRICS,
    PARTS,
    Loop,
    Setting,
    benchmark_training,
    encoder_configs,
    metrics_of,
    print_rows,
)
from constellation.errors import InputError
from constellation.journeys.dataset import DataSet
from constellation.journeys.sources import FunctionSource
from constellation.journeys.windows import Windows
from constellation.schema import EventSchema
from constellation.tracking import NullTracking, Run
from constellation.training.options import TrainingOptions

ADAMW = partial(torch.optim.AdamW, lr=1e-3)
OPTIONS = TrainingOptions(max_journeys=8, cutoffs_per_journey=2, accelerator="cpu")
SMALL = {"width": 4, "layers": 1}
READOUT = {"_target_": "constellation.encoders.readout.Readout", **SMALL}
OBJECTIVE = {"next_event": {"_target_": "constellation.objectives.next_event.NextEvent", "width": 4}}
BAG = {"_target_": "constellation.encoders.bag.Bag", **SMALL}


@pytest.fixture
def data(tmp_path: Path) -> DataSet:
    return DataSet(
        name="spenders",
        source=FunctionSource(
            function="constellation.worlds.spenders:spenders", arguments={"num_customers": 60, "seed": 0}
        ),
        schema=EventSchema(timezone="Europe/Berlin", currency="EUR", purchase_types=("purchase",)),
        windows=Windows(val_cutoff="2024-07-01", test_cutoff="2024-09-30"),
        observed_until="2024-12-30",
        cache=str(tmp_path / "cache"),
    )


def test_a_repeat_measures_every_part(data: DataSet) -> None:
    before = torch.get_num_threads()
    try:
        model = {"encoder": BAG, "readout": READOUT, "objective": OBJECTIVE}
        loop = Loop(Setting(data, model, ADAMW, OPTIONS, num_threads=1, num_journeys=24))
        assert len(loop.batches.journeys) == 24 and len(np.unique(loop.batches.journeys)) == 24
        found = loop.repeat()
    finally:
        torch.set_num_threads(before)
    assert set(found) | {"events_per_second_min", "events_per_second_max"} == set(METRICS)
    assert all(np.isfinite(value) and value > 0 for value in found.values())
    # The loop does all the parts and more, but on a busy machine a part may have had the worse minute.
    assert 3 * found["step_ms"] > sum(found[f"{part}_ms"] for part in PARTS)


def test_a_table_row_per_encoder_and_number_of_threads(data: DataSet, capsys: pytest.CaptureFixture[str]) -> None:
    rows = benchmark_training(
        data, {"bag": BAG}, READOUT, OBJECTIVE, ADAMW, OPTIONS, num_threads=[1], num_repeats=2, num_journeys=16
    )
    assert [(row["encoder"], row["num_threads"], row["data"]) for row in rows] == [("bag", 1, "spenders")]
    assert rows[0]["events_per_second_min"] <= rows[0]["events_per_second"] <= rows[0]["events_per_second_max"]
    assert 0.05 < rows[0]["peak_memory_gib"] < 4
    assert set(metrics_of(rows)) == {f"training/bag/1/{name}" for name in METRICS}
    print_rows(rows)
    assert "bag" in capsys.readouterr().out


def test_metric_names_are_in_the_docs(repository: Path) -> None:
    text = (repository / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in METRICS)


def test_encoders_are_those_of_the_configs(work_folder: Path, repository: Path) -> None:
    assert set(encoder_configs(None)) == {path.stem for path in (repository / "configs" / "encoder").glob("*.yaml")}
    (work_folder / "configs" / "encoder").mkdir(parents=True)
    (work_folder / "configs" / "encoder" / "mine.yaml").write_text("_target_: mine.Mine\nwidth: 3\n")
    assert encoder_configs(["mine"]) == {"mine": {"_target_": "mine.Mine", "width": 3}}
    with pytest.raises(InputError, match=r"no encoder 'lstm'.*bag, gru, hstu, mine, transformer"):
        encoder_configs(["lstm"])


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"what": "scoring"}, "prepare, training, throughput.*found 'scoring'"),
        ({"what": "prepare", "sizes": [0]}, "numbers of events"),
        ({"what": "training", "num_threads": []}, "from 1 on"),
        ({"what": "training", "training": TrainingOptions(precision="64-true")}, "32-true or bf16-mixed"),
    ],
)
def test_what_cannot_be_measured_is_refused(data: DataSet, tmp_path: Path, changes: dict, match: str) -> None:
    settings = {"data": data, "readout": READOUT, "objective": OBJECTIVE, "optimizer": ADAMW, "training": OPTIONS}
    with Run.start(tmp_path / "run", "benchmark", tracking=NullTracking()) as run:
        with pytest.raises(InputError, match=match):
            benchmark(run, **(settings | changes))
        assert run.metrics == {}


def test_the_command_logs_its_table(data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = dict.fromkeys(METRICS, 1.5) | {"encoder": "bag", "num_threads": 2, "data": "spenders"}
    monkeypatch.setattr("constellation.commands.benchmarks.training.benchmark_training", lambda *_, **__: [row])
    with Run.start(tmp_path / "run", "benchmark", tracking=NullTracking()) as run:
        metrics = benchmark(
            run,
            what="training",
            data=data,
            readout=READOUT,
            objective=OBJECTIVE,
            optimizer=ADAMW,
            training=OPTIONS,
        )
    assert metrics == {f"training/bag/2/{name}": 1.5 for name in METRICS} == run.metrics
    assert pd.read_parquet(run.folder / "tables" / "training.parquet").to_dict("records") == [row]
