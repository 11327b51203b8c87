"""The command `compare`: verdicts, refusals, what it logs."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from constellation.commands.compare import compare, split_system
from constellation.errors import InputError
from constellation.metrics.evaluate import Evaluation
from constellation.tracking import Run

NUM = 400
CUSTOMERS = np.array([f"customer {number:03d}" for number in range(NUM)], dtype=object)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """A run without MLflow, in a folder of its own."""
    with Run.start(tmp_path / "comparison", "compare") as started:
        yield started


def write_run(folder: Path, noise: dict[str, float], *, customers: np.ndarray = CUSTOMERS, shift: float = 0.0) -> str:
    """A run folder whose systems see the truth through log-normal noise of the given size."""
    folder.mkdir()
    (folder / "config.yaml").write_text("{}\n")
    generator = np.random.default_rng(0)
    level = generator.lognormal(3, 1, len(customers))
    realised = np.where(generator.random(len(customers)) < 0.3, 0.0, level) + shift
    evaluation = Evaluation(num_resamples=10)
    for system, size in noise.items():
        expected = level * np.random.default_rng(1).lognormal(0, size, len(customers))
        predictions = {
            "value_91d_expected": expected,
            "value_91d_quantiles": expected[:, None] * np.linspace(0, 2, 100),
        }
        evaluation.add_value("test", "value_91d", system, realised, predictions, customers)
    hits = np.random.default_rng(2).random(len(customers)) < 0.5
    evaluation.add_products(
        "test", "model", {"hit_rate_at_10": hits, "ndcg_at_10": np.full(len(hits), np.nan)}, customers
    )
    table = evaluation.predictions().sample(
        frac=1, random_state=0
    )  # the order of rows in the file is nobody's business
    table.to_parquet(folder / "predictions.parquet")
    return str(folder)


def test_verdicts_differ_in_the_right_direction(run: Run, tmp_path: Path, capsys):
    runs = [
        write_run(tmp_path / "plain", {"model": 0.8, "boosting": 0.3}),
        write_run(tmp_path / "sharp", {"model": 0.3}),
        write_run(tmp_path / "same", {"model": 0.8}),
        f"{tmp_path / 'plain'}:boosting",
    ]
    frame = compare(run, runs=runs).set_index(["run", "metric"])
    for metric, sign in [("gini_normalised", 1), ("spearman", 1), ("mae", -1), ("crps", -1), ("rmse", -1)]:
        row = frame.loc[("sharp:model", metric)]
        assert row["verdict"] == "better"
        assert row["difference"] == pytest.approx(row["value"] - row["reference"])
        assert np.sign([row["low"], row["high"]]).tolist() == [sign, sign]
        assert frame.loc[("same:model", metric), "verdict"] == "not shown"
        assert frame.loc[("same:model", metric), "high"] == 0
        assert frame.loc[("plain:boosting", metric), "difference"] == row["difference"]
    assert run.metrics["test/value_91d/sharp:model/mae_difference"] == frame.loc[("sharp:model", "mae"), "difference"]
    logged = pd.read_parquet(run.folder / "tables" / "comparison.parquet")
    assert logged["verdict"].tolist() == frame["verdict"].tolist()
    assert (run.folder / "figures" / "comparison.png").stat().st_size > 5000
    printed = capsys.readouterr().out
    assert "against plain:model" in printed
    assert "better" in printed

    run.close()
    kept = json.loads((run.folder / "metrics.json").read_text())
    assert kept["test/value_91d/sharp:model/mae_difference_low"] < 0


def test_the_order_of_runs_turns_the_verdict(run: Run, tmp_path: Path):
    runs = [write_run(tmp_path / name, {"model": size}) for name, size in [("plain", 0.8), ("sharp", 0.3)]]
    backwards = compare(run, runs=[runs[1], runs[0]], metrics=["mae"])
    assert backwards["verdict"].tolist() == ["worse"]
    assert backwards["metric"].tolist() == ["mae"]


def test_bias_is_compared_by_its_distance_from_zero(run: Run, tmp_path: Path):
    runs = [write_run(tmp_path / name, {"model": size}) for name, size in [("a", 0.9), ("b", 0.1)]]
    row = compare(run, runs=runs, metrics=["bias_total"]).iloc[0]
    assert row["difference"] == pytest.approx(abs(row["value"]) - abs(row["reference"]))
    assert row["verdict"] == "better"


def test_product_metrics_compare_where_they_are_defined(run: Run, tmp_path: Path):
    runs = [write_run(tmp_path / name, {"model": 0.5}) for name in "ab"]
    frame = compare(run, runs=runs, target="next_product")
    assert frame["metric"].tolist() == ["hit_rate_at_10"]
    assert frame["verdict"].tolist() == ["not shown"]


def test_equal_folder_names_stay_apart(run: Run, tmp_path: Path):
    runs = [write_run(tmp_path / "run", {"model": 0.5, "other": 0.9})] * 2
    (tmp_path / "elsewhere").mkdir()
    runs.append(write_run(tmp_path / "elsewhere" / "run", {"model": 0.2}))
    assert set(compare(run, runs=runs, metrics=["mae"])["run"]) == {"run:model#2", "run:model#3"}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"customers": CUSTOMERS[:-10]}, "plain:model has 400, other:model has 390, and 390 are in both"),
        ({"shift": 5.0}, "realised values of 400 of 400 customers differ .* by up to 5"),
    ],
)
def test_runs_that_answered_other_questions_are_refused(run: Run, tmp_path: Path, other: dict, message: str):
    runs = [write_run(tmp_path / "plain", {"model": 0.8}), write_run(tmp_path / "other", {"model": 0.8}, **other)]
    with pytest.raises(InputError, match=message):
        compare(run, runs=runs)


def test_refusals_say_what_there_is(run: Run, tmp_path: Path):
    one = write_run(tmp_path / "one", {"model": 0.8})
    with pytest.raises(InputError, match="at least two runs"):
        compare(run, runs=[one])
    with pytest.raises(InputError, match=r"no system forest for test/value_91d\. It has: .*model"):
        compare(run, runs=[one, f"{one}:forest"])
    with pytest.raises(InputError, match=r"no test/value_30d\. It has: test/value_91d"):
        compare(run, runs=[one, one], target="value_30d")
    with pytest.raises(InputError, match=r"found accuracy\. Choose among: gini_normalised, "):
        compare(run, runs=[one, one], metrics=["accuracy"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.yaml").write_text("{}\n")
    with pytest.raises(InputError, match=r"no predictions\.parquet"):
        compare(run, runs=[one, str(tmp_path / "empty")])


def test_run_and_system_are_split_at_the_last_colon(tmp_path: Path):
    assert split_system("latest", "model") == ("latest", "model")
    assert split_system("latest:bgnbd", "model") == ("latest", "bgnbd")
    assert split_system("C:/outputs/train", "model") == ("C:/outputs/train", "model")
    odd = tmp_path / "12:30"
    odd.mkdir()
    assert split_system(str(odd), "model") == (str(odd), "model")
    with pytest.raises(InputError, match="run:system"):
        split_system("latest:", "model")


def write_targets(folder: Path, realised: dict[str, float], **more: str) -> str:
    """A run folder with a split of every target, each customer of which has the realised value given."""
    folder.mkdir()
    (folder / "config.yaml").write_text("{}\n")
    evaluation = Evaluation(num_resamples=10)
    for target, value in realised.items():
        said = {f"{target}_expected": np.linspace(0, 1, 20)}
        evaluation.add_value("test", target, "model", np.full(20, value), said, CUSTOMERS[:20])
    if more:
        evaluation.add_products("test", "model", {name: np.ones(20) for name in more}, CUSTOMERS[:20])
    evaluation.predictions().to_parquet(folder / "predictions.parquet")
    return str(folder)


@pytest.mark.parametrize(
    ("first", "second", "target"),
    [
        ({"value_30d": 1.0, "value_60d": 1.0, "purchases_60d": 1.0}, None, "value_60d"),
        ({"value_30d": 1.0, "value_60d": 1.0}, {"value_30d": 1.0, "value_91d": 1.0}, "value_30d"),
        ({"value_182d": 0.0, "purchases_91d": 1.0, "purchases_182d": 1.0}, None, "purchases_182d"),
    ],
)
def test_the_usual_target_is_the_longest_that_says_something(
    run: Run, tmp_path: Path, capsys, first: dict, second: dict | None, target: str
):
    runs = [write_targets(tmp_path / "one", first), write_targets(tmp_path / "two", second or first)]
    compare(run, runs=runs)
    assert f"{target} on test" in capsys.readouterr().out


def test_without_horizons_products_are_compared(run: Run, tmp_path: Path, capsys):
    runs = [write_targets(tmp_path / name, {}, hit_rate_at_10="") for name in ("one", "two")]
    compare(run, runs=runs)
    assert "next_product on test" in capsys.readouterr().out
    with pytest.raises(InputError, match="share no target"):
        compare(run, runs=runs, split="val")
