"""Cutoffs and horizons that a data set leaves open, by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from constellation.backtesting.origins import plan
from constellation.cli import compose, main
from constellation.cli.building import build
from constellation.errors import InputError
from constellation.journeys.build import store_from_frame
from constellation.journeys.derived_windows import CHOICES_OF_HORIZONS, settle
from constellation.journeys.last_events import LastEvents
from constellation.journeys.purchases import check_purchases, median_wait_days
from constellation.journeys.splits import Splits
from constellation.journeys.store import MICROSECONDS_PER_DAY, Store
from constellation.journeys.vocabulary import Vocabulary
from constellation.journeys.windows import Windows, format_time, latest_cutoff, parse_cutoff
from constellation.schema import EventSchema
from constellation.training.history import nothing_selects, teach
from constellation.training.study import choose_monitor


def log_of(num_days: int, timezone: str = "UTC", every_days: int = 10) -> Store:
    """Three customers who buy every ten days, and on the first and last of so many days from 1 January 2021."""
    days = sorted({*range(0, num_days, every_days), num_days - 1})
    start = pd.Timestamp("2021-01-01 12:00")
    rows = [
        {"customer_id": c, "event_time": start + pd.Timedelta(days=day), "event_type": "purchase", "amount": 1.0 + c}
        for c in range(3)
        for day in days
    ]
    return store_from_frame(pd.DataFrame(rows), EventSchema(timezone=timezone))


def settled(windows: Windows, store: Store) -> Windows:
    found = settle(windows, store)
    assert isinstance(found, Windows)
    return found


@pytest.mark.parametrize(
    ("num_days", "horizons", "test", "val"),
    [
        (3650, (30, 91), "2030-09-29", "2030-06-30"),  # with two leap days in between, they end on 29 December 2030
        (365, (30, 91), "2021-10-01", "2021-07-02"),  # a quarter before the end of 31 December, and one before that
        (300, (30, 60), "2021-08-28", "2021-06-29"),  # the data end with 27 October
        (150, (14, 30), "2021-04-30", "2021-03-31"),  # 30 May
        (60, (7, 14), "2021-02-15", "2021-02-01"),  # 1 March
        (28, (7,), "2021-01-21", "2021-01-14"),
        (4, (1,), "2021-01-03", "2021-01-02"),
    ],
)
def test_cutoffs_and_horizons_follow_from_the_span(
    num_days: int, horizons: tuple[int, ...], test: str, val: str
) -> None:
    found = settled(Windows(), log_of(num_days))
    assert (found.horizons_days, found.test_cutoff, found.val_cutoff) == (horizons, test, val)


def test_what_is_given_stays_and_bounds_the_rest() -> None:
    store = log_of(365)
    given_horizons = settled(Windows(horizons_days=(10,)), store)
    assert (given_horizons.test_cutoff, given_horizons.val_cutoff) == ("2021-12-21", "2021-12-11")
    # Between the cutoffs lie 31 days, after the second 61: a month is the longest that fits.
    given_cutoffs = settled(Windows(val_cutoff="2021-09-30", test_cutoff="2021-10-31"), store)
    assert given_cutoffs == Windows("2021-09-30", "2021-10-31", (14, 30))
    # Before 31 January lies a month: two horizons of a fortnight.
    assert settled(Windows(val_cutoff="2021-01-31"), store).horizons_days == (7, 14)
    whole = Windows("2021-09-30", "2021-10-31", (7,))
    assert settle(whole, store) is whole
    ranked = LastEvents()
    assert settle(ranked, store) is ranked


@pytest.mark.parametrize(
    ("every_days", "num_days", "horizons"),
    [
        (45, 3650, (30, 91)),  # twice 45 is 90
        (46, 3650, (91, 182)),
        (91, 3650, (91, 182)),
        (92, 3650, (182, 365)),
        (800, 3650, (182, 365)),  # nothing longer is offered
        (92, 900, (91, 182)),  # four times 365 is 1,460
        (92, 400, (30, 91)),
    ],
)
def test_slow_customers_are_asked_over_longer_horizons(
    every_days: int, num_days: int, horizons: tuple[int, ...]
) -> None:
    assert settled(Windows(), log_of(num_days, every_days=every_days)).horizons_days == horizons


def test_the_median_wait_is_between_purchases_of_one_customer() -> None:
    days = [("a", 0, "buy"), ("a", 4, "view"), ("a", 10, "buy"), ("b", 11, "buy"), ("b", 31, "buy"), ("b", 71, "buy")]
    rows = [
        {"customer_id": who, "event_time": pd.Timestamp("2021-01-01") + pd.Timedelta(days=day), "event_type": what}
        for who, day, what in days
    ]
    store = store_from_frame(pd.DataFrame(rows), EventSchema(purchase_types=("buy",)))
    assert median_wait_days(store) == 20.0  # of 10, 20 and 40
    check_purchases(store)
    nothing = store_from_frame(pd.DataFrame(rows), EventSchema())  # no amounts, so nothing is a purchase
    assert median_wait_days(nothing) is None
    with pytest.raises(InputError, match=r"none with an amount above zero.*purchase_types: \[buy\].*buy, view"):
        check_purchases(nothing)


def test_null_and_auto_mean_left_open() -> None:
    assert Windows(val_cutoff=None, test_cutoff="auto", horizons_days=None) == Windows()  # type: ignore[arg-type]
    with pytest.raises(InputError, match="a list of whole days"):
        Windows(horizons_days="91")  # type: ignore[arg-type]


def test_what_cannot_be_derived_is_explained() -> None:
    with pytest.raises(InputError, match="no room for history, validation and test"):
        settle(Windows(), log_of(2))
    with pytest.raises(InputError, match="After val_cutoff 2021-12-20 no test cutoff leaves 30 days"):
        settle(Windows(val_cutoff="2021-12-20", horizons_days=(30,)), log_of(365))


def test_long_horizons_that_were_given_leave_the_validation_to_shorter_ones() -> None:
    # The data end with 30 April: the test begins 45 days before, on day 75, too early for two horizons of 45 days.
    found = settled(Windows(horizons_days=(14, 45)), log_of(120))
    assert (found.val_cutoff, found.test_cutoff) == ("2021-03-02", "2021-03-16")
    # Over 220 days it begins on day 175: two of them, and a quarter for training cutoffs to spread over.
    assert settled(Windows(horizons_days=(14, 45)), log_of(220)).val_cutoff == "2021-05-10"
    for horizons, most in (((60,), 29), ((200,), 29), ((31, 40), 29)):
        with pytest.raises(InputError, match=rf"horizons \[{horizons[0]}.*89 days.*at most \[{most}\]"):
            settle(Windows(horizons_days=horizons), log_of(90))
    assert settled(Windows(horizons_days=(29,)), log_of(90)).val_cutoff == "2021-02-01"
    # Questions of time learn from censored answers: a day of room is enough.
    assert settled(Windows(horizons_days=(40,), room_days=1), log_of(90)).val_cutoff == "2021-01-10"


def test_a_test_cutoff_that_was_given_bounds_what_is_advised_and_where_validation_lies() -> None:
    # 20 days of history for a test that stays where it is: not a third of the year.
    with pytest.raises(InputError, match=r"Move windows.test_cutoff later, set .*at most \[9\]"):
        settle(Windows(test_cutoff="2021-01-21", horizons_days=(14,)), log_of(365))
    assert settled(Windows(test_cutoff="2021-01-21", horizons_days=(9,)), log_of(365)).val_cutoff == "2021-01-12"
    # At noon the whole day two weeks before is half a day too late.
    at_noon = settled(Windows(test_cutoff="2021-06-16T12:00", horizons_days=(14,)), log_of(365))
    assert at_noon.val_cutoff == "2021-06-01"


class Taught:
    """An objective that remembers what it was told."""

    def __init__(self, needs_horizon_labels: bool) -> None:
        self.needs_horizon_labels, self.days = needs_horizon_labels, (0,)

    def teach(self, horizons_days: tuple[int, ...]) -> None:
        self.days = horizons_days


def told(splits: Splits, needs_horizon_labels: bool) -> tuple[int, ...]:
    objective = Taught(needs_horizon_labels)
    teach(SimpleNamespace(objectives={"asked": objective}), splits)  # type: ignore[arg-type]
    return objective.days


def test_objectives_are_told_which_horizons_the_history_teaches() -> None:
    store = log_of(150)
    # 40 days of history: five quarters of 30 days are 37.5, of 33 days 41.25.
    assert told(Splits(store, Windows("2021-01-20", "2021-02-09", (7, 30))), True) == (7, 30)
    beyond = Splits(store, Windows("2021-01-20", "2021-02-09", (7, 33)))
    assert told(beyond, False) == (7,)
    with pytest.raises(InputError, match=r"objective asked.*2021-02-09.*33 days.*1.25 times.*value_pooled"):
        told(beyond, True)


def test_advice_about_a_test_within_a_day_can_be_followed() -> None:
    splits = Splits(log_of(150), Windows("2021-02-02", "2021-02-05T12:00", (3, 30), holdout_share=0.0))
    advice = nothing_selects(splits)
    assert "2.5 days later" in advice and "2021-02-01 or earlier" in advice and "at most 2 days" in advice


def test_a_validation_too_near_the_test_is_explained() -> None:
    splits = Splits(log_of(150), Windows("2021-02-01", "2021-02-05", (7, 30), holdout_share=0.0))
    with pytest.raises(
        InputError, match=r"\[7, 30\] days.*2021-02-01.*4 days later.*2021-01-29 or earlier.*most 4 days"
    ):
        choose_monitor(None, splits, Vocabulary.fit(splits.store, splits.select_panel, journeys=splits.train_journeys,
                                                    until=splits.val_cutoff))  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(num_days=st.integers(4, 900), timezone=st.sampled_from(["UTC", "Europe/Berlin", "America/New_York"]))
def test_derived_windows_can_be_trained_on(num_days: int, timezone: str) -> None:
    store = log_of(num_days, timezone)
    windows = settled(Windows(), store)
    assert windows.horizons_days in CHOICES_OF_HORIZONS
    val, test = windows.cutoffs(store)  # raises where anything does not fit
    longest = windows.horizons_days[-1] * MICROSECONDS_PER_DAY
    assert val + longest <= test + 2 * 3_600_000_000
    splits = Splits(store, Windows(holdout_share=0.0))
    assert len(splits.select_panel) and splits.val.observed_QK.all() and splits.test.observed_QK.all()


@pytest.mark.parametrize("timezone", ["UTC", "Europe/Berlin", "Australia/Lord_Howe"])
@pytest.mark.parametrize("days", [1, 30, 91, 200])
def test_the_latest_cutoff_is_the_last_that_fits(timezone: str, days: int) -> None:
    store = log_of(365, timezone)
    date = latest_cutoff(store, days)
    grace, end = 2 * 3_600_000_000, store.manifest.observed_until
    room = [
        end - parse_cutoff(day.date().isoformat(), timezone) - days * MICROSECONDS_PER_DAY
        for day in (pd.Timestamp(date), pd.Timestamp(date) + pd.Timedelta(days=1))
    ]
    assert room[0] >= -grace > room[1]
    assert format_time(end, timezone)[:10] == "2021-12-31"


def test_a_backtest_takes_derived_horizons_and_needs_no_cutoffs() -> None:
    origins = plan(log_of(365), Windows())
    assert {days for origin in origins for days in origin.horizons_days} == {30, 91}
    assert plan(log_of(20), Windows(), horizons_days=[3])[0].horizons_days == (3,)


LOG = """_target_: constellation.journeys.dataset.DataSet
name: mine
source:
  _target_: constellation.journeys.sources.SqlSource
  sql: "SELECT * FROM read_csv('{root}/mine.csv')"
"""


def test_a_yaml_of_name_and_source_is_enough(work_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work_folder / "data").mkdir()
    (work_folder / "configs" / "data").mkdir(parents=True)
    (work_folder / "configs" / "data" / "mine.yaml").write_text(LOG)
    days = pd.date_range("2021-01-01", periods=120, freq="D")
    table = pd.DataFrame({"customer_id": range(120), "event_time": days, "event_type": "buy", "amount": 2.0})
    table.to_csv(work_folder / "data" / "mine.csv", index=False)
    assert main(["prepare", "data=mine", "tracking=none"]) == 0
    said = capsys.readouterr().out
    assert "test at 2021-03-31 23:59, horizons 14, 30 days" in said  # the log ends with 30 April


def test_keys_that_the_yaml_leaves_to_its_class_can_be_set(
    work_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (work_folder / "configs" / "data").mkdir(parents=True)
    (work_folder / "configs" / "data" / "mine.yaml").write_text(LOG)
    config = compose("prepare", ["data=mine", "data.root=elsewhere", "data.source.memory_limit=1GB"]).config
    assert config.data.root == "elsewhere" and config.data.source.memory_limit == "1GB"
    assert build({**config.data}, "data").root == "elsewhere"
    assert main(["prepare", "data=mine", "data.root=elsewhere", "data.rot=elsewhere"]) == 2
    assert "no key 'data.rot'. Did you mean data.root?" in capsys.readouterr().err
