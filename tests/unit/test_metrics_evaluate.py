"""The collection of systems: names, pairing, censoring, slices, tables, figures."""

import io

import numpy as np
import pytest

from constellation.errors import InputError
from constellation.metrics import plots
from constellation.metrics.bootstrap import Interval
from constellation.metrics.evaluate import (
    Evaluation,
    equal_count_labels,
    evaluate_products,
    evaluate_value,
    statistics_of,
)
from constellation.metrics.names import shortfall
from constellation.metrics.table import format_interval, format_number, print_table

NUM = 300
CUSTOMERS = np.arange(1000, 1000 + NUM)


def world(seed: int = 0) -> tuple[np.ndarray, dict[str, dict[str, np.ndarray]]]:
    """Realised values and three systems: `model` knows most, `noisy` less, `always_zero` nothing."""
    generator = np.random.default_rng(seed)
    level = generator.lognormal(3, 1, NUM)
    realised = np.where(generator.random(NUM) < 0.3, 0, level * generator.lognormal(0, 0.5, NUM))

    def system(expected: np.ndarray) -> dict[str, np.ndarray]:
        quantiles = expected[:, None] * np.linspace(0, 2, 100)
        return {"value_91d_expected": expected, "value_91d_quantiles": quantiles}

    return realised, {
        "always_zero": {"value_91d_expected": np.zeros(NUM)},
        "noisy": system(level * generator.lognormal(0, 1.2, NUM)),
        "model": system(level),
    }


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    realised, systems = world()
    found = Evaluation(num_resamples=100)
    for name, predictions in systems.items():
        found.add_value("test", "value_91d", name, realised, predictions, CUSTOMERS)
    columns = {"ndcg_at_10": np.where(CUSTOMERS % 3 == 0, np.nan, 0.25), "hit_rate_at_10": np.ones(NUM)}
    found.add_products("test", "model", columns, CUSTOMERS)
    return found


def test_flat_names_follow_the_grammar_and_leave_the_undefined_out(evaluation: Evaluation):
    flat = evaluation.flat()
    assert flat["test/value_91d/always_zero/bias_total"] == -1
    assert flat["test/value_91d/always_zero/gini_normalised"] == 0
    assert "test/value_91d/always_zero/spearman" not in flat
    assert "test/value_91d/always_zero/crps" not in flat
    for name in ("gini_normalised", "mae", "crps", "coverage_90", "auc_any"):
        key = f"test/value_91d/model/{name}"
        assert flat[f"{key}_low"] <= flat[key] <= flat[f"{key}_high"]
    assert flat["test/next_product/model/ndcg_at_10"] == pytest.approx(0.25)
    assert all(np.isfinite(number) for number in flat.values())


def test_reality_reports_the_clipped_sum():
    found = Evaluation(num_resamples=10)
    realised = np.array([-4.0, 0.0, 10.0, 2.0])
    found.add_value("val", "value_30d", "model", realised, {"value_30d_expected": np.ones(4)}, np.arange(4))
    assert found.reality("val", "value_30d") == {
        "num_customers": 4, "total": 8, "total_clipped": 12, "share_zero": 0.5,
    }  # fmt: skip
    assert found.flat()["val/value_30d/realised/total_clipped"] == 12


def test_censored_rows_are_left_out_not_counted_as_zero():
    predictions = {"value_91d_expected": np.array([2.0, 99.0, 4.0]), "levels": np.arange(100)}
    observed = np.array([True, False, True])
    found = evaluate_value(np.array([1.0, 0.0, 4.0]), predictions, "value_91d", np.arange(3), observed)
    assert found["mae"].estimate == pytest.approx(0.5)
    with pytest.raises(InputError, match="Move the cutoff"):
        evaluate_value(np.zeros(3), predictions, "value_91d", np.arange(3), np.zeros(3, bool))


def test_a_diverged_system_is_named():
    with pytest.raises(InputError, match="System model, split test"):
        Evaluation().add_value(
            "test", "value_91d", "model", np.zeros(2), {"value_91d_expected": np.array([np.inf, 0])}, np.arange(2)
        )


def test_product_metrics_average_over_those_who_were_asked():
    columns = {"ndcg_at_10": np.array([np.nan, 0.5, 1.0]), "recall_new_at_10": np.full(3, np.nan)}
    found = evaluate_products(columns, np.arange(3), num_resamples=50)
    assert found["ndcg_at_10"].estimate == pytest.approx(0.75)
    assert np.isnan(found["recall_new_at_10"].estimate)


def test_systems_are_paired(evaluation: Evaluation):
    same = evaluation.paired("test", "value_91d", "mae", "model", "model")
    assert (same.estimate, same.low, same.high) == (0, 0, 0)
    lead = evaluation.paired("test", "value_91d", "spearman", "model", "noisy")
    assert lead.high < 0
    assert evaluation.best("test", "value_91d", "spearman") == "model"


def test_a_tie_has_no_best():
    realised, systems = world()
    found = Evaluation(num_resamples=50)
    for name in ("one", "two"):
        found.add_value("test", "value_91d", name, realised, systems["model"], CUSTOMERS)
    assert found.best("test", "value_91d", "mae") is None


def test_other_rows_are_refused(evaluation: Evaluation):
    realised, systems = world()
    with pytest.raises(AssertionError, match="other rows"):
        evaluation.add_value("test", "value_91d", "late", realised, systems["model"], CUSTOMERS + 1)


def test_shortfall_reads_every_metric_as_distance_from_the_ideal():
    assert shortfall("bias_total", -0.03) == pytest.approx(shortfall("bias_total", 0.03))
    assert shortfall("coverage_90", 0.97) == pytest.approx(0.07)
    assert shortfall("ndcg_at_20", 0.8) < shortfall("ndcg_at_20", 0.7)


def test_predictions_give_the_same_metrics_again(evaluation: Evaluation, tmp_path):
    import pandas as pd

    evaluation.predictions().to_parquet(tmp_path / "predictions.parquet")
    table = pd.read_parquet(tmp_path / "predictions.parquet")
    assert list(table.columns[:6]) == ["customer_id", "split", "target", "system", "realised", "expected"]
    assert len(table) == 4 * NUM
    for split, target, system in [("test", "value_91d", "model"), ("test", "next_product", "model")]:
        rows = table[(table["split"] == split) & (table["target"] == target) & (table["system"] == system)]
        again = {name: float(v[0]) for name, v in statistics_of(rows)(np.ones((1, len(rows)))).items()}
        first = {name: found.estimate for name, found in evaluation.intervals(split, target, system).items()}
        assert again == pytest.approx(first)


def test_frame_has_one_row_per_metric(evaluation: Evaluation):
    frame = evaluation.frame()
    assert not frame.duplicated(["split", "target", "system", "metric"]).any()
    chosen = frame.set_index(["target", "system", "metric"]).loc[("value_91d", "always_zero", "mae")]
    assert chosen["low"] <= chosen["estimate"] <= chosen["high"]


def test_slices_are_the_metrics_of_their_rows():
    realised, systems = world()
    observed = CUSTOMERS % 7 != 0
    region = np.where(CUSTOMERS % 2 == 0, "north", "south").astype(object)
    region[:20] = None
    found = Evaluation(num_resamples=20)
    found.add_value("test", "value_91d", "model", realised, systems["model"], CUSTOMERS, observed)
    slices = found.slices({"region": region})
    rows = observed & (region == "north")
    alone = evaluate_value(
        realised[rows],
        {k: v[rows] for k, v in systems["model"].items()},
        "value_91d",
        CUSTOMERS[rows],
        num_resamples=20,
    )
    assert set(slices["level"]) == {"north", "south"}
    for name in ("mae", "crps", "gini_normalised"):
        row = slices[(slices["level"] == "north") & (slices["metric"] == name)].iloc[0]
        assert row["num_rows"] == rows.sum()
        assert (row["estimate"], row["low"]) == pytest.approx((alone[name].estimate, alone[name].low))
    with pytest.raises(InputError, match="one label for each row"):
        found.slices({"region": region[:5]})


def test_equal_count_labels_keep_equal_values_together():
    # Ten customers, six of them at zero: all six in the first tenth, the others by their rank.
    labels = equal_count_labels(np.array([0, 0, 0, 0, 0, 0, 5, 7, 6, 9.0]))
    assert list(labels) == ["01"] * 6 + ["07", "09", "08", "10"]


def printed(evaluation: Evaluation, width: int) -> list[str]:
    from rich.console import Console

    buffer = io.StringIO()
    print_table(evaluation, "test", "value_91d", console=Console(file=buffer, width=width))
    return buffer.getvalue().splitlines()


def test_table_marks_a_lead_that_was_shown_and_fits_any_width(evaluation: Evaluation):
    wide, narrow = printed(evaluation, 128), printed(evaluation, 70)
    model = next(line for line in wide if line.startswith("model"))
    gini = evaluation.intervals("test", "value_91d", "model")["gini_normalised"].estimate
    assert model.split()[1:3] == [f"{gini:.3f}", "*"]
    assert "*" not in next(line for line in wide if line.startswith("always_zero"))
    assert sum(line.startswith("model") for line in wide) == 1
    assert sum(line.startswith("model") for line in narrow) == 2
    assert all(len(line) <= 70 for line in narrow[:-2])


def test_table_has_one_width_outside_a_terminal(evaluation: Evaluation, monkeypatch, capsys):
    outputs = []
    for columns in ("40", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        print_table(evaluation, "test", "value_91d")
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize(
    ("metric", "number", "text"),
    [("mae", 171.26, "171.3"), ("mae", 12345.6, "12,346"), ("spearman", 0.8311, "0.831"),
     ("bias_total", 0.034, "+3.4 %"), ("coverage_90", 0.9012, "90.1 %"), ("spearman", float("nan"), "–")],
)  # fmt: skip
def test_numbers_as_printed(metric: str, number: float, text: str):
    assert format_number(metric, number) == text


def test_intervals_as_printed():
    assert format_interval("spearman", Interval(0.8, 0.7512, 0.8499)) == "[.751, .850]"
    assert format_interval("mae", Interval(171.0, 99.95, 180.4)) == "[100.0, 180]"
    assert format_interval("bias_total", Interval(0.0, -0.021, 0.019)) == "[-2.1, +1.9]"
    assert format_interval("spearman", Interval(0.0, -0.021, 0.019), signed=True) == "[-.021, +.019]"


def test_every_figure_draws(evaluation: Evaluation):
    figures = plots.value_figures(evaluation, "test", "value_91d")
    assert set(figures) == {"decile_calibration", "lorenz", "predicted_against_realised", "pit"}
    bars = figures["decile_calibration"].axes[0].patches
    realised = np.sort(world()[0])
    assert sum(bar.get_height() for bar in bars) / 10 == pytest.approx(realised.mean())
    for figure in figures.values():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=40)
        assert buffer.tell() > 2000


def test_figures_of_values_that_are_all_zero_leave_the_lorenz_curve_out():
    found = Evaluation(num_resamples=10)
    found.add_value("test", "value_91d", "model", np.zeros(50), {"value_91d_expected": np.ones(50)}, np.arange(50))
    figures = plots.value_figures(found, "test", "value_91d")
    assert set(figures) == {"decile_calibration", "predicted_against_realised"}
    for figure in figures.values():
        figure.savefig(io.BytesIO(), format="png", dpi=40)


def test_learning_curves_have_a_panel_per_metric_and_none_for_counters():
    history = [
        {"epoch": e, "step": 10 * e, "train/loss": 2.0 - e, "val/loss": 2.5 - e, "val/value_91d/crps": 60.0 - e,
         "train/events_per_second": 1e5}
        for e in range(2)
    ]  # fmt: skip
    shown = [axes for axes in plots.learning_curves(history, best_epoch=1).axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in shown] == ["loss", "value_91d/crps"]
    np.testing.assert_allclose(shown[0].lines[0].get_ydata(), [2.0, 1.0])
    assert plots.learning_curves([]).axes[0].get_title(loc="left") == "no metric was recorded"


def test_intervals_need_a_resample():
    with pytest.raises(InputError, match="num_resamples must be at least 1, found 0"):
        Evaluation(num_resamples=0)


def test_a_single_epoch_is_not_ticked_with_fractions():
    figure = plots.learning_curves([{"epoch": 0, "train/loss": 1.0}])
    assert all(tick == round(tick) for tick in figure.axes[0].get_xticks())
