"""Cutoffs, horizons, questions and splits, by hand."""

from __future__ import annotations

import datetime as dt
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest

from constellation.errors import InputError
from constellation.journeys.windows import (
    Windows,
    ask,
    at_risk,
    check_horizon,
    days_before,
    format_time,
    held_out,
    panel,
    parse_cutoff,
)
from constellation.schema import EventSchema
from tests.helpers import DAY, HOUR, at, events_frame, make_store


def utc(*parts: int) -> int:
    """Microseconds since 1970 of a UTC date and time."""
    return (dt.datetime(*parts, tzinfo=dt.UTC) - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1)


def purchases(*rows: tuple) -> pd.DataFrame:
    """Rows of (customer, day after 1 March 2017, amount[, products])."""
    return events_frame(
        [
            {
                "customer_id": row[0],
                "event_time": at(row[1]),
                "event_type": "purchase" if row[2] > 0 else "refund",
                "amount": row[2],
                "product": list(row[3]) if len(row) > 3 else [],
            }
            for row in rows
        ]
    )


class TestParseCutoff:
    @pytest.mark.parametrize("text", ["2017-09-30", "20170930", "2017-W39-6", " 2017-09-30 "])
    def test_a_date_is_the_last_microsecond_of_its_day(self, text: str) -> None:
        assert parse_cutoff(text, "UTC") == utc(2017, 10, 1) - 1

    def test_the_day_is_that_of_the_zone(self) -> None:
        # New York is four hours behind in September, five in December; Berlin two ahead in September.
        assert parse_cutoff("2017-09-30", "America/New_York") == utc(2017, 10, 1, 4) - 1
        assert parse_cutoff("2017-12-31", "America/New_York") == utc(2018, 1, 1, 5) - 1
        assert parse_cutoff("2017-09-30", "Europe/Berlin") == utc(2017, 9, 30, 22) - 1

    def test_days_of_a_clock_change_have_23_and_25_hours(self) -> None:
        def length(day: int, month: int) -> int:
            return parse_cutoff(f"2017-{month:02d}-{day:02d}", "Europe/Berlin") - parse_cutoff(
                f"2017-{month:02d}-{day - 1:02d}", "Europe/Berlin"
            )

        assert length(26, 3) == 23 * HOUR
        assert length(29, 10) == 25 * HOUR
        assert length(28, 10) == 24 * HOUR

    def test_a_last_hour_that_comes_twice_is_seen_twice(self) -> None:
        # Chile put its clocks back at midnight of 12 May 2018: 23:00 to 24:00 happened at -3 and again at -4.
        assert parse_cutoff("2018-05-12", "America/Santiago") == utc(2018, 5, 13, 4) - 1

    def test_times_and_offsets(self) -> None:
        assert parse_cutoff("2017-09-30T12:30:00", "America/New_York") == utc(2017, 9, 30, 16, 30)
        assert parse_cutoff("2017-09-30 00:00", "UTC") == utc(2017, 9, 30)
        assert parse_cutoff("2017-09-30T12:30:00+02:00", "America/New_York") == utc(2017, 9, 30, 10, 30)
        assert parse_cutoff("2017-09-30T12:30:00Z", "America/New_York") == utc(2017, 9, 30, 12, 30)
        assert parse_cutoff("1969-12-31T23:59:59.999999", "UTC") == -1

    def test_what_a_config_may_hand_over(self) -> None:
        assert parse_cutoff(dt.date(2017, 9, 30), "UTC") == utc(2017, 10, 1) - 1  # type: ignore[arg-type]
        assert parse_cutoff(dt.datetime(2017, 9, 30, 12), "UTC") == utc(2017, 9, 30, 12)  # type: ignore[arg-type]

    @pytest.mark.parametrize("text", ["", "yesterday", "2017-02-30", "30.09.2017", "2017-09"])
    def test_nonsense_is_refused_with_an_example(self, text: str) -> None:
        with pytest.raises(InputError, match="2017-09-30"):
            parse_cutoff(text, "UTC")

    def test_an_unknown_zone_is_refused(self) -> None:
        with pytest.raises(InputError, match="Atlantis"):
            parse_cutoff("2017-09-30", "Europe/Atlantis")

    def test_format_time(self) -> None:
        assert format_time(utc(2017, 10, 1, 4) - 1, "America/New_York") == "2017-09-30 23:59"


class TestCheckHorizon:
    def test_names_the_latest_day_that_works(self) -> None:
        # Seen to the end of 30 April: 30 days fit from the end of 31 March on, not from 1 April.
        store = make_store(purchases(("a", 0, 1.0), ("a", 60.5, 1.0)))
        check_horizon(store, parse_cutoff("2017-03-31", "UTC"), 30)
        with pytest.raises(InputError, match="Move the cutoff to 2017-03-31 or earlier"):
            check_horizon(store, parse_cutoff("2017-04-01", "UTC"), 30)
        with pytest.raises(InputError, match=r"ends 2017-05-01 23:59, after the data do \(2017-04-30 23:59\)"):
            check_horizon(store, parse_cutoff("2017-04-01", "UTC"), 30)

    @pytest.mark.parametrize("zone", ["America/New_York", "Europe/Berlin", "Pacific/Auckland"])
    def test_over_a_clock_change_the_named_day_works_and_the_next_does_not(self, zone: str) -> None:
        schema = EventSchema(timezone=zone)
        store = make_store(purchases(("a", 0, 1.0), ("a", 45, 1.0)), schema)
        for horizon_days in range(1, 40):
            with pytest.raises(InputError) as caught:
                check_horizon(store, store.manifest.observed_until, horizon_days)
            day = dt.date.fromisoformat(str(caught.value).split("Move the cutoff to ")[1][:10])
            check_horizon(store, parse_cutoff(str(day), zone), horizon_days)
            with pytest.raises(InputError):
                check_horizon(store, parse_cutoff(str(day + dt.timedelta(days=1)), zone), horizon_days)

    def test_a_cutoff_at_the_end_of_time_is_a_message_too(self) -> None:
        store = make_store(purchases(("a", 0, 1.0), ("a", 60.5, 1.0)))
        with pytest.raises(InputError, match="Move the cutoff to 2017-03-31"):
            check_horizon(store, parse_cutoff("9999-12-31", "UTC"), 30)


class TestWindows:
    @pytest.mark.parametrize("horizons", [(-1, 5), (0, 5), (5, 5), (9, 3)])
    def test_horizons_ascend(self, horizons: tuple[int, ...]) -> None:
        with pytest.raises(InputError, match="horizons_days"):
            Windows("2017-03-20", "2017-03-25", horizons)

    @pytest.mark.parametrize("share", [-0.1, 1.0])
    def test_holdout_share(self, share: float) -> None:
        with pytest.raises(InputError, match="holdout_share"):
            Windows("2017-03-20", "2017-03-25", holdout_share=share)

    def test_grid(self) -> None:
        with pytest.raises(InputError, match="train_cutoffs_every_days"):
            Windows("2017-03-20", "2017-03-25", train_cutoffs_every_days=0)

    def test_cutoffs_are_checked_against_each_other_and_the_data(self) -> None:
        store = make_store(purchases(("a", 0, 1.0), ("a", 60.5, 1.0)))
        assert Windows("2017-04-10", "2017-04-20", (3, 10)).cutoffs(store) == (at(41) - 1, at(51) - 1)
        with pytest.raises(InputError, match="must lie before test_cutoff"):
            Windows("2017-04-20", "2017-04-20", (3, 10)).cutoffs(store)
        with pytest.raises(InputError, match="2017-04-20 or earlier"):
            Windows("2017-04-10", "2017-04-21", (3, 10)).cutoffs(store)
        with pytest.raises(InputError, match="No training cutoff fits"):
            Windows("2017-03-02", "2017-04-20", (3, 10)).cutoffs(store)


class TestAsk:
    STORE = make_store(
        purchases(
            ("a", 1, 10.0, ["milk"]),
            ("a", 5, 4.0),
            ("a", 5, 6.0, ["tea", "soap"]),
            ("a", 8, -3.5),
            ("a", 20, 7.0, ["milk"]),
            ("b", 6, 2.0),
        ),
        attributes=pd.DataFrame({"customer_id": ["a", "b", "c"], "segment": ["x", None, "x"]}),
    )

    def test_values_by_hand(self) -> None:
        # At day 5 both events of day 5 are seen. Then: 3 days reach day 8 inclusive (-3.5), 15 days reach day 20.
        queries = ask(self.STORE, np.array([0, 1, 2]), np.full(3, at(5)), (3, 15), at(30))
        assert queries.last_event_Q.tolist() == [2, -1, -1]
        assert queries.value_QK.tolist() == [[-3.5, 3.5], [2.0, 2.0], [0.0, 0.0]]
        assert queries.purchases_QK.tolist() == [[0, 1], [1, 1], [0, 0]]
        assert queries.observed_QK.all()
        assert queries.next_event_Q.tolist() == [3, 5, -1]
        assert queries.next_basket_Q.tolist() == [4, -1, -1]

    def test_a_microsecond_before_an_event_does_not_see_it(self) -> None:
        queries = ask(self.STORE, np.array([0]), np.array([at(5) - 1]), (1,), at(30))
        assert queries.last_event_Q.tolist() == [0]
        assert queries.value_QK.tolist() == [[10.0]]
        # Ties are ordered by the column values: 4.00 before 6.00.
        assert queries.next_event_Q.tolist() == [1]
        assert queries.next_basket_Q.tolist() == [2]

    def test_nothing_after_known_until_is_read(self) -> None:
        queries = ask(self.STORE, np.array([0]), np.array([at(5)]), (3, 15), at(10))
        assert queries.observed_QK.tolist() == [[True, False]]
        assert queries.value_QK.tolist() == [[-3.5, -3.5]]
        assert queries.next_event_Q.tolist() == [3]
        assert queries.next_basket_Q.tolist() == [-1]

    def test_a_cutoff_after_known_until_has_no_answers(self) -> None:
        queries = ask(self.STORE, np.array([0]), np.array([at(9)]), (3,), at(6))
        assert queries.last_event_Q.tolist() == [3]
        assert queries.value_QK.tolist() == [[0.0]]
        assert not queries.observed_QK.any()
        assert queries.next_event_Q.tolist() == queries.next_basket_Q.tolist() == [-1]

    def test_a_horizon_of_wall_clock_days_is_observed_over_a_clock_change(self) -> None:
        # 30 days of 24 hours from the end of 1 March end at one o'clock on 1 April in Berlin.
        store = make_store(purchases(("a", 0, 1.0)), EventSchema(timezone="Europe/Berlin"), observed_until=at(60))
        cutoff, end = (parse_cutoff(text, "Europe/Berlin") for text in ("2017-03-01", "2017-03-31"))
        assert cutoff + 30 * DAY == end + HOUR
        assert ask(store, np.array([0]), np.array([cutoff]), (30,), end).observed_QK.all()
        assert not ask(store, np.array([0]), np.array([cutoff]), (31,), end).observed_QK.any()

    def test_take(self) -> None:
        queries = ask(self.STORE, np.array([0, 1, 2]), np.full(3, at(5)), (3, 15), at(30))
        part = queries.take(np.array([1, 0]))
        assert len(part) == 2
        assert part.journey_Q.tolist() == [1, 0]
        assert part.value_QK.tolist() == [[2.0, 2.0], [-3.5, 3.5]]
        assert queries.take(queries.last_event_Q >= 0).journey_Q.tolist() == [0]

    def test_money_is_exact(self) -> None:
        store = make_store(purchases(*(("a", day, 0.1) for day in range(10)), *(("b", day, 0.1) for day in range(3))))
        queries = ask(store, np.array([0, 1]), np.full(2, at(0)), (2, 9), at(30))
        assert queries.value_QK.tolist() == [[0.2, 0.9], [0.2, 0.2]]


def test_at_risk() -> None:
    store = TestAsk.STORE
    assert at_risk(store, at(0)).tolist() == []
    assert at_risk(store, at(1)).tolist() == [0]
    assert at_risk(store, at(6)).tolist() == [0, 1]
    assert at_risk(store, at(30), np.array([1, 2])).tolist() == [1]


class TestHeldOut:
    @staticmethod
    def store(ids: list) -> object:
        return make_store(purchases(*((name, 0, 1.0) for name in ids)))

    def test_share(self) -> None:
        # 4,000 customers at 10 %: 400 with a standard deviation of 19.
        store = self.store([f"customer {number:05d}" for number in range(4_000)])
        assert abs(held_out(store, Windows("2017-03-02", "2017-03-03")).sum() - 400) < 80
        assert held_out(store, Windows("2017-03-02", "2017-03-03", holdout_share=0.0)).sum() == 0

    def test_the_same_people_in_every_store(self) -> None:
        windows = Windows("2017-03-02", "2017-03-03", holdout_share=0.5)
        large = self.store([f"c{number:03d}" for number in range(100)])
        small = self.store([f"c{number:03d}" for number in range(40, 60)])
        assert held_out(small, windows).tolist() == held_out(large, windows)[40:60].tolist()

    def test_pinned(self) -> None:
        # Fixed for good: another hash would move customers between training and test_new from release to release.
        windows = Windows("2017-03-02", "2017-03-03", holdout_share=0.5)
        held = held_out(self.store([f"c{number}" for number in range(10)]), windows)
        assert held.tolist() == [True, False, True, False, False, False, True, True, True, False]

    def test_numbers_and_their_texts_are_the_same_people(self) -> None:
        windows = Windows("2017-03-02", "2017-03-03", holdout_share=0.5)
        numbers, texts = self.store(list(range(10, 60))), self.store([str(number) for number in range(10, 60)])
        assert held_out(numbers, windows).tolist() == held_out(texts, windows).tolist()

    def test_a_larger_share_holds_out_more_of_the_same(self) -> None:
        store = self.store([f"c{number:03d}" for number in range(200)])
        small = held_out(store, Windows("2017-03-02", "2017-03-03", holdout_share=0.1))
        large = held_out(store, Windows("2017-03-02", "2017-03-03", holdout_share=0.3))
        assert large[small].all()
        assert large.sum() > small.sum()


class TestPanel:
    def test_by_hand(self) -> None:
        # Known to day 20, shortest horizon 3: cutoffs at days 17, 10, 3; b comes at day 6.
        queries = panel(
            TestAsk.STORE,
            Windows("2017-03-20", "2017-03-25", (3, 10), train_cutoffs_every_days=7),
            known_until=at(20),
            journeys=np.array([0, 1, 2]),
        )
        asked = sorted(zip(queries.cutoff_Q.tolist(), queries.journey_Q.tolist(), strict=True))
        assert asked == [(at(3), 0), (at(10), 0), (at(10), 1), (at(17), 0), (at(17), 1)]
        observed = dict(zip(queries.cutoff_Q.tolist(), queries.observed_QK.tolist(), strict=True))
        assert observed == {at(3): [True, True], at(10): [True, True], at(17): [True, False]}

    def test_not_before_the_first_cutoff(self) -> None:
        windows = Windows("2017-03-20", "2017-03-25", (3, 10), first_cutoff="2017-03-10")
        queries = panel(TestAsk.STORE, windows, known_until=at(20), journeys=np.arange(3))
        assert sorted(set(queries.cutoff_Q.tolist())) == [at(10), at(17)]

    def test_only_the_given_journeys(self) -> None:
        windows = Windows("2017-03-20", "2017-03-25", (3, 10))
        queries = panel(TestAsk.STORE, windows, known_until=at(20), journeys=np.array([1]))
        assert set(queries.journey_Q.tolist()) == {1}

    def test_no_question_fits(self) -> None:
        with pytest.raises(InputError, match="No training question fits"):
            panel(TestAsk.STORE, Windows("2017-03-20", "2017-03-25", (3,)), known_until=at(2), journeys=np.arange(3))

    def test_cutoffs_stay_ends_of_days_over_a_clock_change(self) -> None:
        zone = "Europe/Berlin"
        store = make_store(purchases(("a", 0, 1.0)), EventSchema(timezone=zone), observed_until=at(60))
        until = parse_cutoff("2017-04-20", zone)
        queries = panel(store, Windows("2017-04-20", "2017-04-22", (3,)), known_until=until, journeys=np.array([0]))
        days = [dt.date(2017, 4, 17) - dt.timedelta(days=7 * week) for week in range(7)]
        assert queries.cutoff_Q.tolist() == [parse_cutoff(str(day), zone) for day in days]


def test_days_before_keeps_the_wall_clock_and_the_bounds() -> None:
    for zone in ("UTC", "Europe/Berlin", "America/New_York"):
        store = make_store(purchases(("a", 0, 1.0)), EventSchema(timezone=zone))
        latest, first = parse_cutoff("2017-11-30", zone), parse_cutoff("2017-01-31", zone)
        grid = days_before(store, latest, first)
        assert len(grid) == 304
        assert (grid[0], grid[-1]) == (latest, first)
        after = [dt.datetime.fromtimestamp((time + 1) / 1e6, ZoneInfo(zone)) for time in grid.tolist()]
        assert {moment.hour for moment in after} == {0}
        assert days_before(store, latest, first, 7).tolist() == grid[::7].tolist()
        assert days_before(store, latest, latest).tolist() == [latest]
        assert days_before(store, latest, latest + 1).tolist() == []
