"""Where a backtest cuts, what may be learned there, what its cells hold, and who is called the winner."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from constellation.backtesting.baseline_system import BaselineSystem
from constellation.backtesting.cells import NO_ANSWER, NOT_TRAINABLE, SCORED, Cell, Key, TargetScore, check_same
from constellation.backtesting.figures import figures
from constellation.backtesting.league import League
from constellation.backtesting.model_system import ModelSystem
from constellation.backtesting.origins import Origin, default_origins, independent_windows, plan
from constellation.backtesting.printing import print_league
from constellation.backtesting.scoring import Resamples, past_totals, score_cells
from constellation.backtesting.systems import CROSS_FITTED, TIME_SLICE, Task
from constellation.baselines.bgnbd import BgNbdGammaGamma
from constellation.baselines.gradient_boosting import GradientBoosting
from constellation.building import build_model
from constellation.errors import InputError
from constellation.journeys.store import Store
from constellation.journeys.windows import Windows, ask, at_risk, parse_cutoff
from constellation.recalibration import Shock
from constellation.schema import AMOUNT, CUSTOMER_ID, EVENT_TIME, EVENT_TYPE, EventSchema
from constellation.training.options import TrainingOptions
from constellation.zones import end_of_day
from tests.helpers import DAY, built_store, make_store

SCHEMA = EventSchema(purchase_types=("purchase",))
C2 = ["1997-06-30", "1997-07-31", "1997-08-31", "1997-09-30", "1997-10-31", "1997-11-30", "1997-12-31",
      "1998-01-31", "1998-02-28", "1998-03-31"]  # fmt: skip


def time_of(date: str) -> int:
    return parse_cutoff(date, "UTC") + 1 - DAY + DAY // 2


def span_store(first: str, last: str) -> Store:
    rows = [{CUSTOMER_ID: 1, EVENT_TIME: time_of(day), EVENT_TYPE: "purchase", AMOUNT: 1.0} for day in (first, last)]
    return make_store(pd.DataFrame(rows, dtype=object), SCHEMA, observed_until=end_of_day(time_of(last), "UTC"))


def windows(**options: object) -> Windows:
    return Windows(**({"val_cutoff": "1997-12-30", "test_cutoff": "1998-03-31"} | options))  # type: ignore[arg-type]


# ---------------------------------------------------------------- origins


def test_cdnow_is_cut_as_the_published_protocol_does() -> None:
    store = span_store("1997-01-01", "1998-06-30")
    planned = plan(store, windows(backtest_horizons_days=(91, 182, 273)))
    assert [origin.name for origin in planned] == C2
    for days, number in ((91, 10), (182, 6), (273, 4)):
        assert sum(days in origin.horizons_days for origin in planned) == number
    assert {days: independent_windows(planned, days) for days in (91, 182, 273)} == {91: 3, 182: 1, 273: 1}
    trainable = {origin.name: origin.trainable_days for origin in planned}
    assert trainable["1997-06-30"] == (91,)
    assert trainable["1997-09-30"] == (91, 182)
    assert all(273 not in days for days in trainable.values()), "no origin has 273 days of labels and room to see 273"


def test_a_short_history_selects_on_a_shorter_horizon() -> None:
    origin, *_ = plan(span_store("1997-01-01", "1998-06-30"), windows(), horizons_days=[91], origins=["1997-06-30"])
    assert origin.select_days == 45  # a quarter of the 180.5 days since the first event
    assert origin.learned_days == (45, 91)
    of_study = origin.windows(windows(), 0.0)
    assert (of_study.val_cutoff, of_study.test_cutoff) == ("1997-05-16", "1997-06-30")
    longer, *_ = plan(span_store("1997-01-01", "1998-06-30"), windows(), horizons_days=[91], origins=["1997-12-31"])
    assert (longer.select_days, longer.learned_days) == (91, (91,))


def test_what_is_given_wins_over_the_data_set_and_that_over_month_ends() -> None:
    store = span_store("2020-01-01", "2021-12-31")
    of_data = windows(backtest_origins=("2021-03-31",), backtest_horizons_days=(60,))
    assert [(origin.name, origin.horizons_days) for origin in plan(store, of_data)] == [("2021-03-31", (60,))]
    given = plan(store, of_data, origins=["2021-05-01T12:00:00"], horizons_days=[30, 300])
    assert [(origin.name, origin.horizons_days) for origin in given] == [("2021-05-01T12:00:00", (30,))]
    assert given[0].windows(of_data, 0.0).val_cutoff == "2021-04-01T12:00:00"


def test_many_month_ends_are_thinned_and_few_are_replaced_by_days() -> None:
    long = default_origins(span_store("2015-01-01", "2021-12-31"), windows(), 30, max_origins=6)
    assert len(long) == 6
    assert long[-1] == "2021-11-30"
    short = default_origins(span_store("2021-01-01", "2021-02-25"), windows(), 7)
    assert len(short) >= 3
    assert short[-1] == "2021-02-18"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"origins": ["1998-06-01"]}, "ends after the data do"),
        ({"origins": ["1997-01-01"]}, "has no history"),
        ({"origins": ["summer"]}, "is not a time"),
        ({"horizons_days": [0]}, "at least 1"),
        ({"horizons_days": [400]}, "No origin leaves"),
    ],
)
def test_origins_that_cannot_be_are_explained(options: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        plan(span_store("1997-01-01", "1998-06-30"), windows(), **options)


def test_data_without_a_calendar_are_refused() -> None:
    rows = pd.DataFrame([{CUSTOMER_ID: 1, EVENT_TIME: 5, EVENT_TYPE: "seen"}], dtype=object)
    with pytest.raises(InputError, match="clock: order"):
        plan(make_store(rows, EventSchema(clock="order")), windows())


# ---------------------------------------------------------------- systems


def buyers(num_customers: int = 150, num_days: int = 390, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for customer in range(num_customers):
        day, rate = rng.uniform(0, 60), rng.gamma(2.0, 8.0)
        while day < num_days:
            amount = float(rng.lognormal(3.0, 0.5))
            rows.append({CUSTOMER_ID: customer, EVENT_TIME: round(time_of("2020-01-01") + day * DAY),
                         EVENT_TYPE: "purchase", AMOUNT: amount})  # fmt: skip
            day += rng.exponential(rate)
    return pd.DataFrame(rows)


def task_at(store: Store, name: str, horizons_days: list[int], folds: int, folder: Path) -> Task:
    of_data = Windows(val_cutoff="2020-06-01", test_cutoff="2020-10-01", train_cutoffs_every_days=14)
    (origin,) = plan(store, of_data, origins=[name], horizons_days=horizons_days)
    risk = at_risk(store, origin.cutoff)
    known_until = store.manifest.observed_until
    queries = ask(store, risk, np.full(len(risk), origin.cutoff), origin.horizons_days, known_until)
    return Task(store, of_data, origin, queries, 0.0, folds, folder)


def boosting() -> BaselineSystem:
    part = GradientBoosting(max_trees=2, num_trees=2, quantile_levels=(0.1, 0.9))
    return BaselineSystem("gradient_boosting", part, TrainingOptions())


def purchase_process() -> BaselineSystem:
    return BaselineSystem("bgnbd", BgNbdGammaGamma(), TrainingOptions())


@pytest.mark.parametrize("system", [purchase_process, boosting], ids=["bgnbd", "gradient_boosting"])
def test_nothing_after_the_origin_is_read(system: object, tmp_path: Path) -> None:
    """Change every event after the origin: answers, and what recalibration learns from, must not move."""
    events = buyers()
    origin = parse_cutoff("2020-08-31", "UTC")
    changed = events.copy()
    late = changed[EVENT_TIME] > origin
    changed.loc[late, AMOUNT] *= 7.0
    changed = changed[~late | (np.arange(len(changed)) % 3 > 0)]
    until = parse_cutoff("2021-02-01", "UTC")
    fits = []
    for frame in (events, changed):
        store = built_store(frame, SCHEMA, observed_until=until)
        fits.append(system().fit(task_at(store, "2020-08-31", [30, 60], 2, tmp_path), 0))  # type: ignore[operator]
    one, two = fits
    assert set(one.answers) == set(two.answers)
    for name, values in one.answers.items():
        np.testing.assert_array_equal(values, two.answers[name], err_msg=name)
    assert (
        set(one.known) == set(two.known) == {f"{kind}_{days}d" for kind in ("value", "purchases") for days in (30, 60)}
    )
    for target, known in one.known.items():
        np.testing.assert_array_equal(known.realised_Q, two.known[target].realised_Q)
        for name, values in known.answers.items():
            np.testing.assert_array_equal(values, two.known[target].answers[name], err_msg=name)


def test_a_horizon_that_cannot_be_taught_is_answered_by_purchase_processes_only(tmp_path: Path) -> None:
    store = built_store(buyers(), SCHEMA, observed_until=parse_cutoff("2021-02-01", "UTC"))
    task = task_at(store, "2020-05-31", [60, 182], 2, tmp_path)
    assert task.origin.trainable_days == (60,)
    resamples = Resamples(store.num_customers, 20)
    status = {}
    for system in (purchase_process(), boosting()):
        fit = system.fit(task, 0)
        cells = score_cells(
            task.origin, task.queries, fit.answers, system=system.name, seed=0, seconds=0.0, methods={}, shocks={},
            resamples=resamples,
        )  # fmt: skip
        status[system.name] = {cell.key.horizon_days: cell.status for cell in cells}
    assert status["bgnbd"] == {60: SCORED, 182: SCORED}
    assert status["gradient_boosting"] == {60: SCORED, 182: NOT_TRAINABLE}
    silent = score_cells(
        task.origin, task.queries, {}, system="silent", seed=0, seconds=0.0, methods={}, shocks={}, resamples=resamples
    )
    assert [cell.status for cell in silent] == [NO_ANSWER, NOT_TRAINABLE]


def test_a_system_that_says_its_own_shock_is_given_it_in_its_totals(tmp_path: Path) -> None:
    store = built_store(buyers(), SCHEMA, observed_until=parse_cutoff("2021-02-01", "UTC"))
    task = task_at(store, "2020-05-31", [60], 0, tmp_path)
    answers = purchase_process().fit(task, 0).answers
    said = {"purchases_60d_shock_sd": np.full(len(task.queries), 0.3)}

    def facts_of(answers: dict[str, np.ndarray], shocks: dict[str, Shock]) -> dict[str, dict[str, float | str]]:
        (scored,) = score_cells(
            task.origin, task.queries, answers, system="a", seed=0, seconds=0.0, methods={}, shocks=shocks,
            resamples=Resamples(store.num_customers, 20),
        )  # fmt: skip
        return {target: score.facts for target, score in scored.targets.items()}

    plain, own = facts_of(answers, {}), facts_of(answers | said, {})
    learned = facts_of(answers | said, {"purchases": Shock(0.05)})
    assert own["value_60d"] == plain["value_60d"]
    width = {
        name: facts["purchases_60d"]["total_high"] - facts["purchases_60d"]["total_low"]  # type: ignore[operator]
        for name, facts in (("plain", plain), ("own", own), ("learned", learned))
    }
    assert own["purchases_60d"]["shock_sd"] == 0.3
    assert width["plain"] < width["learned"] < width["own"]


def sequence_model(max_learned: int = 0) -> ModelSystem:
    config = {
        "encoder": {"_target_": "constellation.encoders.bag.Bag", "width": 8},
        "readout": {"_target_": "constellation.encoders.readout.Readout", "width": 8, "layers": 1},
        "objective": {
            "value": {
                "_target_": "constellation.objectives.value_pooled.ValuePooled",
                "family": {"_target_": "constellation.objectives.families.Quantiles", "num_levels": 5},
                "process": {"_target_": "constellation.objectives.purchase_processes.ParetoNbd"},
                "num_paths": 64,
            }
        },
    }
    return ModelSystem(
        lambda vocabulary, horizons_days: build_model(config, vocabulary, horizons_days),
        partial(torch.optim.AdamW, lr=1e-2),
        TrainingOptions(max_epochs=1, cutoffs_per_journey=2, products="float32", accelerator="cpu"),
        (0,),
        lambda *said: None,
        any_history=True,
        max_learned=max_learned,
    )


def test_a_pooled_model_answers_where_no_label_teaches_and_its_past_is_pooled_alike(tmp_path: Path) -> None:
    store = built_store(buyers(), SCHEMA, observed_until=parse_cutoff("2021-02-01", "UTC"))
    task = task_at(store, "2020-07-31", [60, 182], 2, tmp_path)
    assert task.origin.trainable_days == (60,)
    fit = sequence_model().fit(task, 0)
    for target in ("value_60d", "value_182d", "purchases_60d", "purchases_182d"):
        assert np.isfinite(fit.answers[f"{target}_quantiles"]).all()
    assert (fit.answers["value_182d_expected"] >= fit.answers["value_60d_expected"]).all()
    assert {name: known.method for name, known in fit.known.items()} == {
        "value_60d": TIME_SLICE, "purchases_60d": TIME_SLICE
    }  # fmt: skip
    few = sequence_model(max_learned=20)
    learned = few._learned_from(np.arange(150))
    assert len(learned) == 20
    assert (learned == few._learned_from(np.arange(150))).all()
    assert len(few._learned_from(np.arange(15))) == 15


def test_the_past_is_a_slice_of_time_where_there_is_one_else_other_customers(tmp_path: Path) -> None:
    store = built_store(buyers(), SCHEMA, observed_until=parse_cutoff("2021-02-01", "UTC"))
    task = task_at(store, "2020-05-31", [91], 2, tmp_path)  # labels of 91 days exist, but none before 91 days ago
    assert {known.method for known in purchase_process().fit(task, 0).known.values()} == {TIME_SLICE}
    fit = boosting().fit(task, 0)
    assert {known.method for known in fit.known.values()} == {CROSS_FITTED}
    risk = len(at_risk(store, parse_cutoff("2020-03-01", "UTC")))
    assert len(fit.known["value_91d"].realised_Q) == risk, "each customer is answered by the fold that left it out"


# ---------------------------------------------------------------- cells


def score(bias: float = 0.0, crps: float = 1.0, samples: np.ndarray | None = None, **facts: float) -> TargetScore:
    samples = np.full(200, crps) if samples is None else samples
    return TargetScore(
        {"bias_total": bias, "crps": crps, "total_coverage_90": float(abs(bias) < 0.1)},
        {"crps": samples, "bias_total": np.full(200, bias)},
        {"journey": np.arange(3), "realised": np.array([0.0, 1.0, 2.0]), "expected": np.array([0.5, 1.0, 1.5])},
        {"num_customers": 30.0, "total_expected": 1 + bias, "total_realised": 1.0, "total_noise": 0.05, **facts},
    )


def cell(system: str, origin: str, of: TargetScore, *, seed: int = 0, days: int = 30) -> Cell:
    key = Key(origin, system, seed, days)
    return Cell(key, parse_cutoff(origin, "UTC"), SCORED, 1.5, {f"value_{days}d": of})


def test_a_cell_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    saved = cell("a", "2020-01-31", score(0.1, float("nan"), np.arange(200.0)))
    assert Cell.load(tmp_path, saved.key) is None
    saved.save(tmp_path)
    found = Cell.load(tmp_path, saved.key)
    assert found is not None
    assert (found.cutoff, found.status, found.seconds) == (saved.cutoff, SCORED, 1.5)
    of = found.targets["value_30d"]
    assert of.metrics["bias_total"] == 0.1
    assert np.isnan(of.metrics["crps"])
    np.testing.assert_array_equal(of.samples["crps"], np.arange(200.0))
    empty = Cell(Key("2020-01-31", "b", 0, 91), 0, NOT_TRAINABLE)
    empty.save(tmp_path)
    assert Cell.load(tmp_path, empty.key) == empty
    text = (tmp_path / saved.key.path / "cell.json").read_text()
    assert json.loads(text)["targets"]["value_30d"]["metrics"]["crps"] is None


def test_cells_of_other_settings_are_not_kept(tmp_path: Path) -> None:
    check_same(tmp_path, {"encoder": {"width": 8}, "seed": 0})
    check_same(tmp_path, {"encoder": {"width": 8}, "seed": 0})
    with pytest.raises(InputError, match=r"encoder\.width: 8 then, 16 now"):
        check_same(tmp_path, {"encoder": {"width": 16}, "seed": 0})


def test_only_totals_that_had_come_true_teach_a_shock() -> None:
    cells = [
        cell("a", "2020-01-31", score(0.1)),
        cell("a", "2020-02-15", score(0.2)),
        cell("a", "2020-01-31", score(0.3), days=60),
        cell("b", "2020-01-31", score(0.4)),
        cell("a", "2020-01-31", score(0.5), seed=1),
    ]
    origin = Origin("2020-03-01", parse_cutoff("2020-03-01", "UTC"), (30,), (30,), 30, (30,))
    found = past_totals(cells, "a", 0, "value", origin)
    assert [(total.horizon_days, total.expected) for total in found] == [(30, pytest.approx(1.1))]


# ---------------------------------------------------------------- the league


def noise(seed: int, scale: float) -> np.ndarray:
    return scale * np.random.default_rng(seed).standard_normal(200)


def test_means_worst_origin_and_spreads_by_hand() -> None:
    league = League(
        [
            cell("a", "2020-01-31", score(-0.1, 1.0), seed=0),
            cell("a", "2020-01-31", score(0.3, 3.0), seed=1),
            cell("a", "2020-02-29", score(-0.2, 4.0), seed=0),
            cell("a", "2020-02-29", score(-0.2, 6.0), seed=1),
        ]
    )
    flat = league.flat()
    name = "backtest/value_30d/a/"
    assert flat[f"{name}crps"] == pytest.approx(3.5)  # origins 2 and 5
    assert flat[f"{name}crps_worst"] == pytest.approx(5.0)
    assert flat[f"{name}crps_sd_origins"] == pytest.approx(np.std([2, 5], ddof=1))
    assert flat[f"{name}crps_sd_seeds"] == pytest.approx(np.std([2.5, 4.5], ddof=1))
    assert flat[f"{name}bias_mean"] == pytest.approx(-0.05)
    assert flat[f"{name}bias_mean_worst" if f"{name}bias_mean_worst" in flat else f"{name}bias_worst_abs"] == 0.3
    assert flat[f"{name}bias_mean_abs"] == pytest.approx(0.2)
    assert flat[f"{name}total_coverage_90"] == 0.0
    assert flat[f"{name}num_cells"] == 4
    assert flat["backtest/value/a/bias_mean_abs"] == pytest.approx(0.2)


def two(one: np.ndarray, other: np.ndarray) -> League:
    rows = [("a", 10.0, one), ("b", 10.1, other)]
    return League([cell(system, "2020-01-31", score(0, crps, crps + samples)) for system, crps, samples in rows])


def test_a_winner_is_named_only_where_the_paired_interval_is_clear() -> None:
    together = noise(0, 1.0)  # the same customers move both: wide each alone, but never the difference
    assert two(together, together + noise(1, 0.01)).winner("value_30d", "crps") == "a"
    assert two(noise(0, 0.2), noise(1, 0.2)).winner("value_30d", "crps") is None
    assert two(together, together).winner("value_30d", "bias_total") is None


@pytest.mark.parametrize(("num_customers", "winner"), [(1.0, None), (9.0, None), (10.0, "a")])
def test_nobody_wins_among_a_handful_of_customers(num_customers: float, winner: str | None) -> None:
    league = two(noise(0, 0.0), noise(0, 0.0))  # of one customer every resample is the same
    for of in league.cells:
        of.targets["value_30d"].facts["num_customers"] = num_customers
    assert league.winner("value_30d", "crps") == winner


def test_a_single_origin_has_no_spread_to_show(capsys: pytest.CaptureFixture[str]) -> None:
    cells = [cell(system, "2020-01-31", score(crps=crps)) for system, crps in (("a", 1.25), ("b", 2.5))]
    print_league(League(cells))
    said = capsys.readouterr().out
    assert "value_30d over 1 origin (2020-01-31)" in said and said.count("1.250") == 1 and "±" not in said
    print_league(League([*cells, *(cell(system, "2020-02-29", score(crps=3.5)) for system in "ab")]))
    said = capsys.readouterr().out
    assert "value_30d over 2 origins" in said and said.count("3.500") == 2 and "±" in said


def test_nobody_wins_who_was_not_everywhere() -> None:
    cells = [
        cell("a", "2020-01-31", score(crps=1.0)),
        cell("b", "2020-01-31", score(crps=2.0)),
        cell("b", "2020-02-29", score(crps=2.0)),
    ]
    league = League(cells)
    assert league.winner("value_30d", "crps") is None
    difference = league.paired("value_30d", "crps", "a", "b")
    assert difference is not None
    assert difference.estimate == pytest.approx(-1.0), "compared where both answered"
    assert League([*cells, cell("a", "2020-02-29", score(crps=1.0))]).winner("value_30d", "crps") == "a"


def test_resamples_are_the_same_customers_in_every_cell() -> None:
    from constellation.metrics.value import ValueColumns, ValueStatistics

    resamples = Resamples(4, 50, seed=3)
    realised = np.array([1.0, 2.0, 4.0, 8.0])
    found = {}
    for name, rows in (("all", np.arange(4)), ("some", np.array([0, 3]))):
        columns = ValueColumns.of(realised[rows], np.zeros(len(rows)))
        found[name] = resamples.samples(ValueStatistics(columns), rows)["mae"]
    weights = np.concatenate(list(resamples.bootstrap.blocks()))
    np.testing.assert_allclose(found["all"], weights @ realised / 4)
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(
            found["some"], weights[:, [0, 3]] @ realised[[0, 3]] / weights[:, [0, 3]].sum(axis=1)
        )


def test_pictures_and_the_table_of_all_cells(tmp_path: Path) -> None:
    facts = {"total_low": 0.8, "total_high": 1.2}
    cells = [
        cell(system, origin, score(bias, **facts), seed=seed)
        for system, seeds in (("model", (0, 1)), ("bgnbd", (0,)))
        for seed in seeds
        for origin, bias in (("2020-01-31", 0.1), ("2020-02-29", -0.2))
    ]
    cells.append(Cell(Key("2020-01-31", "model", 0, 91), 0, NOT_TRAINABLE))
    for one in cells:
        one.save(tmp_path)
    league = League([found for one in cells if (found := Cell.load(tmp_path, one.key)) is not None])
    assert set(figures(league, tmp_path)) == {
        f"{name}_value_30d" for name in ("bias_by_origin", "coverage", "calibration", "lorenz")
    }
    table = league.cells_frame()
    assert len(table) == 7
    assert table.loc[table["horizon_days"] == 91, "status"].tolist() == [NOT_TRAINABLE]
    assert table.loc[table["system"] == "bgnbd", "total_high"].tolist() == [1.2, 1.2]
