"""The benchmark of the second core: its rows by hand, its metric names, and what it refuses."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from constellation.commands.benchmarks.parallel import METRICS, _summary, benchmark_parallel, metrics_of, print_rows
from constellation.errors import InputError
from constellation.training.options import TrainingOptions
from tests.unit.test_benchmark import BAG, OBJECTIVE, OPTIONS, READOUT, data

__all__ = ["data"]


def test_ratios_are_of_neighbouring_measurements_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    found = {
        "apart": [(100.0, 10.0), (200.0, 20.0), (400.0, 10.0)],
        "apart_share": [(90.0, 11.0), (160.0, 25.0), (300.0, 12.0)],
        "together": [(80.0, 12.5), (180.0, 25.0), (200.0, 20.0)],
    }
    row = {"encoder": "bag", "data": "spenders", "num_processes": 2, **_summary(found)}
    assert (row["apart"], row["apart_share"], row["together"]) == (200, 160, 180)
    assert (row["ratio"], row["ratio_min"], row["ratio_max"]) == (0.8, 0.5, 0.9)
    assert row["ratio_share"] == pytest.approx(80 / 90)
    assert (row["ratio_cpu"], row["ratio_cpu_min"], row["ratio_cpu_max"]) == (0.8, 0.5, 0.8)
    assert row["together_cpu_seconds_per_million_events"] == 20
    assert set(metrics_of([row])) == {f"parallel/bag/{name}" for name in METRICS}
    print_rows([row])
    assert "together / apart" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_are_measured_beside_two_trainings(data) -> None:
    (row,) = benchmark_parallel(
        data, {"bag": BAG}, READOUT, OBJECTIVE, partial(torch.optim.AdamW, lr=1e-3), OPTIONS,
        num_repeats=1, num_journeys=24,
    )  # fmt: skip
    assert all(row[name] > 0 for name in METRICS)
    assert row["ratio"] == pytest.approx(row["together"] / row["apart"])


def test_one_process_alone_is_refused(data) -> None:
    with pytest.raises(InputError, match="num_processes must be at least 2"):
        benchmark_parallel(
            data, {"bag": BAG}, READOUT, OBJECTIVE, torch.optim.AdamW, TrainingOptions(), num_processes=1
        )


def test_metric_names_are_in_the_docs(repository: Path) -> None:
    text = (repository / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for name in METRICS:
        if not name.endswith(("_min", "_max", "_events")):
            assert f"`{name}`" in text, name
