"""Through the console: what only order tells is found by the transformer, not by counting, and not in the mirror.

Each training takes about a minute on two cores.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.end_to_end.console import console, metrics_of

pytestmark = pytest.mark.slow

SETTINGS = ["training.max_tokens=2048", "training.max_epochs=6", "num_resamples=100", "tracking=none"]
RULE_AUC = 0.9
"""What knowing the rule is worth: of those who asked for advice first nine in ten buy, of the others one in ten."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all trainings of this file run, so that they share the prepared stores."""
    return tmp_path_factory.mktemp("order_world")


def train(folder: Path, output: str, *overrides: str) -> dict[str, float]:
    """Metrics of ``constellation train data=order_world ...``, as a person would run it."""
    command = console("train", "data=order_world", f"output={output}", *SETTINGS, *overrides)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900, env=os.environ.copy())
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return metrics_of(folder / output)


@pytest.fixture(scope="module")
def transformer(folder: Path) -> dict[str, float]:
    return train(folder, "transformer", "encoder=transformer", "baseline=[gradient_boosting]")


@pytest.fixture(scope="module")
def bag(folder: Path) -> dict[str, float]:
    return train(folder, "bag", "encoder=bag", "baseline=[same_rate]")


@pytest.fixture(scope="module")
def mirrored(folder: Path) -> dict[str, float]:
    """The transformer in the mirror, beside boosting."""
    mirror = "data.source.arguments.mirror=true"
    return train(folder, "mirror", "encoder=transformer", mirror, "baseline=[gradient_boosting]")


def test_the_transformer_finds_the_order(transformer: dict[str, float]) -> None:
    assert transformer["test/value_7d/model/auc_any"] > RULE_AUC - 0.05
    assert transformer["test/value_7d/model/gini_normalised"] > 0.5
    # A minute of training finds the rule before it has found its height.
    assert abs(transformer["test/value_7d/model/bias_total"]) < 0.25


def test_customers_never_trained_on_are_read_as_well(transformer: dict[str, float]) -> None:
    assert transformer["test_new/value_7d/model/auc_any"] > 0.75


def test_counting_does_not_find_it(transformer: dict[str, float], bag: dict[str, float]) -> None:
    assert transformer["test/value_7d/gradient_boosting/auc_any"] == pytest.approx(0.5, abs=0.06)
    assert bag["test/value_7d/model/auc_any"] == pytest.approx(0.5, abs=0.06)
    # The intervals do not touch, and the distribution of the transformer is the sharper one.
    assert transformer["test/value_7d/model/auc_any_low"] > bag["test/value_7d/model/auc_any_high"] + 0.2
    assert transformer["test/value_7d/model/crps"] < 0.8 * bag["test/value_7d/model/crps"]


def test_in_the_mirror_nothing_is_found(mirrored: dict[str, float]) -> None:
    for system in ("model", "gradient_boosting"):
        assert mirrored[f"test/value_7d/{system}/auc_any"] == pytest.approx(0.5, abs=0.06)
    # With nothing to know, knowing nothing is as good.
    assert mirrored["test/value_7d/model/crps"] > 0.97 * mirrored["test/value_7d/gradient_boosting/crps"]
