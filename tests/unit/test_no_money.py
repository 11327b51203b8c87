"""Purchases without amounts: what is shown speaks of their number."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest

from constellation.backtesting.cells import SCORED, Cell, Key, TargetScore
from constellation.backtesting.printing import Progress
from constellation.journeys.build import store_from_frame
from constellation.journeys.profile import format_profile, profile
from constellation.journeys.purchases import NO_MONEY, has_money
from constellation.journeys.splits import Splits
from constellation.journeys.store import Store
from constellation.journeys.windows import Windows
from constellation.metrics.evaluate import Evaluation
from constellation.reporting import Report
from constellation.schema import EventSchema
from constellation.training.study import choose_monitor


def log(amount: float | None, **schema: Any) -> Store:
    """Two customers who buy every ten days of four months, one of them only until the end of the second."""
    days = [("a", day) for day in range(0, 120, 10)] + [("b", day) for day in range(0, 60, 10)]
    frame = pd.DataFrame(
        {
            "customer_id": [who for who, _ in days],
            "event_time": [pd.Timestamp("2021-01-01 08:00") + pd.Timedelta(days=day) for _, day in days],
            "event_type": "order",
        }
    )
    if amount is not None:
        frame["amount"] = amount
    return store_from_frame(frame, EventSchema(**schema))


@pytest.mark.parametrize(
    ("amount", "known"), [(None, False), (float("nan"), False), (0.0, False), (3.5, True), (-1.0, True)]
)
def test_money_is_there_where_any_event_has_some(amount: float | None, known: bool) -> None:
    assert has_money(log(amount, purchase_types=("order",))) is known


def test_the_profile_says_what_purchases_are() -> None:
    counted = profile(log(None, purchase_types=("order",)), (30,))
    assert counted["num_purchases"] == 18 and counted["known_amount_share"] == 0
    # The last event is on 21 April, so 22 March leaves 30 days, in which b buys no more.
    assert counted["horizons"]["30"]["zero_purchases_share"] == 0.5
    said = format_profile(counted)
    assert "18 (events of type order), none with an amount" in said and "50.0% of them without a purchase" in said
    nothing = format_profile(profile(log(None), (30,)))
    assert "none: there is no event with an amount above zero" in nothing and "schema.purchase_types" in nothing
    paid = format_profile(profile(log(2.0), (30,)))
    assert "18 (events with an amount above zero), all with an amount" in paid
    assert "50.0% of them with zero value" in paid


def report_of(store: Store) -> tuple[Report, list[str]]:
    """A report whose run keeps the names of the figures."""
    figures: list[str] = []
    run = SimpleNamespace(
        log_table=lambda *_: None,
        log_figure=lambda name, _: figures.append(name),
        log_metrics=lambda *_, **__: None,
        flush=lambda: None,
    )
    windows = Windows("2021-02-15", "2021-03-15", (14, 30))
    return Report(cast(Any, run), "mine", store, Splits(store, windows)), figures


@pytest.mark.parametrize("amount", [None, 2.0])
def test_a_report_shows_purchases_where_there_is_no_money(
    amount: float | None, capsys: pytest.CaptureFixture[str]
) -> None:
    report, figures = report_of(log(amount, purchase_types=("order",)))
    evaluation, customers = Evaluation(num_resamples=10), np.array(["a", "b"])
    for kind, realised in (("value", [6.0, 0.0] if amount else [0.0, 0.0]), ("purchases", [3.0, 0.0])):
        said = {f"{kind}_30d_expected": np.array([2.0, 1.0])}
        evaluation.add_value("test", f"{kind}_30d", "model", np.array(realised), said, customers)
    report.tables(evaluation)
    row = {"epoch": 0.0, "step": 1.0, "train/loss": 1.0, "train/events_per_second": 9.0}
    report.epoch(report.run, "select", row | {"val/value_30d/crps": 0.5, "val/purchases_30d/crps": 0.25})
    report.figures(evaluation, "test")
    out = capsys.readouterr().out
    assert "purchases_30d on test" in out
    assert (NO_MONEY in out) is (amount is None)
    assert ("value_30d on test" in out) is (amount is not None)
    assert ("purchases_30d/crps 0.2500" in out) is (amount is None)
    assert ("value_30d/crps 0.5000" in out) is (amount is not None)
    wanted = "test_value_30d" if amount else "test_purchases_30d"
    assert figures and all(name.startswith(wanted) for name in figures)


def test_a_run_opens_with_a_warning_where_nothing_is_a_purchase(capsys: pytest.CaptureFixture[str]) -> None:
    report_of(log(None, purchase_types=("order",)))[0].opening([0])
    assert "WARNING" not in capsys.readouterr().out
    report_of(log(None))[0].opening([0])
    assert "WARNING: No event of frame counts as a purchase" in capsys.readouterr().out


@pytest.mark.parametrize(("amount", "monitor"), [(None, "purchases_14d/crps"), (2.0, "value_14d/crps")])
def test_without_money_purchases_select(amount: float | None, monitor: str) -> None:
    # Money that is zero for everybody has a CRPS of zero at every epoch, so it would select the first.
    splits = Splits(log(amount, purchase_types=("order",)), Windows("2021-02-15", "2021-03-07", (14, 30)))
    assert choose_monitor(None, splits, cast(Any, None)) == monitor
    assert choose_monitor("value_14d/mae", splits, cast(Any, None)) == "value_14d/mae"


def test_progress_of_a_backtest_tells_the_bias_of_what_there_is() -> None:
    def score(crps: float, bias: float) -> TargetScore:
        return TargetScore({"crps": crps, "bias_total": bias}, {}, {}, {})

    cell = Cell(Key("2021-03-15", "bgnbd", 0, 30), 0, SCORED, 1.0)
    cell.targets = {"value_30d": score(0.0, float("nan")), "purchases_30d": score(0.5, 0.25)}
    said = Progress({"bgnbd": 1}).line([cell], kept=False)
    assert "purchases_30d crps 0.5 bias +25.0%" in said and "nan" not in said
    cell.targets["value_30d"] = score(7.0, -0.5)
    assert "value_30d crps 7 bias -50.0%" in Progress({"bgnbd": 1}).line([cell], kept=False)
