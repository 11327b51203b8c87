"""Plans worked out by hand: values, prices, caps to the microsecond, propensities, words."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from constellation.allocation.constraints import Constraints
from constellation.allocation.contacts import moment, read_contacts
from constellation.allocation.example import example
from constellation.allocation.explain import budget_curve, funnel, optionality, plan_table, shadow_prices
from constellation.allocation.offers import read_offers
from constellation.allocation.plan import Plan, make_plan
from constellation.errors import InputError

START = dt.datetime(2026, 1, 5)


def frame_of(values: Mapping[str, Mapping[str, float]], **columns: Any) -> pl.DataFrame:
    """Predictions from {customer: {action: expected}}; the lower bound is one less, but for none."""
    rows = [
        {"customer_id": who, "action": action, "expected": value, "lower": value - (action != "none")}
        for who, of_action in values.items()
        for action, value in of_action.items()
    ]
    return pl.DataFrame(rows).with_columns(**columns)


def planned(frame: pl.DataFrame, *, past: pl.DataFrame | None = None, **given: Any) -> Plan:
    """A plan by expected value under the constraints given; the rest goes to ``make_plan``."""
    own = {key: given.pop(key) for key in ("solver", "seed", "utility") if key in given}
    constraints = Constraints(**given)
    offers = read_offers(frame, costs=constraints.costs, channels=constraints.channels)
    contacts, start = None, None
    if constraints.start is not None:
        start = moment(constraints.start)
    if past is not None and start is not None:
        contacts = read_contacts(past, offers.customer_id_C, start, {})
    return make_plan(offers, constraints, contacts=contacts, start=start, **({"utility": "expected"} | own))


def chosen(plan: Plan) -> dict[Any, str]:
    table = plan_table(plan, funnel(plan)[1])
    return dict(zip(table["customer_id"].to_list(), table["action"].cast(pl.String).to_list(), strict=True))


TWO = {
    "ann": {"none": 10.0, "mail": 12.0, "call": 15.0},  # gains 2 and 5
    "bob": {"none": 1.0, "mail": 4.0, "call": 5.0},  # 3 and 4
    "cem": {"none": 0.0, "mail": 1.0, "call": -2.0},  # 1 and -2
}


def test_without_limits_everyone_gets_what_is_worth_most() -> None:
    plan = planned(frame_of(TWO))
    assert chosen(plan) == {"ann": "call", "bob": "call", "cem": "mail"}
    assert plan.value_of(plan.choice_C, "expected").sum() == pytest.approx(21)
    assert plan.solution.value == pytest.approx(10)
    assert (plan.propensity_C == 1).all()


def test_by_lower_bounds_what_is_not_sure_to_pay_is_left_alone() -> None:
    plan = planned(frame_of(TWO), utility="lower")  # gains 1 and 4, 2 and 3, 0 and -3: nothing is left for cem
    assert chosen(plan) == {"ann": "call", "bob": "call", "cem": "none"}
    assert plan.solution.value == pytest.approx(7)


@pytest.mark.parametrize("solver", ["exact", "prices"])
def test_one_call_goes_to_whom_it_adds_most_over_the_next_best(solver: str) -> None:
    """A call for ann adds 5 - 2 = 3 over mail, one for bob 4 - 3 = 1: that difference, 1, is what one more is worth."""
    plan = planned(frame_of(TWO), capacity={"call": 1}, solver=solver)
    assert chosen(plan) == {"ann": "call", "bob": "mail", "cem": "mail"}
    assert plan.solution.value == pytest.approx(9)
    if solver == "exact":
        (row,) = shadow_prices(plan).to_dicts()
        assert row["limit"] == "capacity/call" and row["used"] == 1
        assert 1 - 1e-6 <= row["price"] <= 3 + 1e-6  # any price between the first refused and the last served is dual
        assert row["words"].startswith("Room for one more call is worth ")


@pytest.mark.parametrize("solver", ["exact", "prices"])
def test_a_budget_is_spent_on_the_best_whole_plan(solver: str) -> None:
    """Costs 1 and 3, budget 4: ann's call and bob's mail bring 5 + 3; cem's mail would be a fifth. Greedy by gain
    (5, then 4) could buy nothing more than ann's call and one mail either, but not the dearer pair of calls."""
    plan = planned(frame_of(TWO), budget=4, costs={"mail": 1, "call": 3}, solver=solver)
    assert chosen(plan) == {"ann": "call", "bob": "mail", "cem": "none"}
    assert plan.solution.value == pytest.approx(8)
    assert plan.used.cost == pytest.approx(4)


def test_the_price_of_money_is_the_gain_per_cost_at_the_edge() -> None:
    """One action, costs 1, gains 1..10, budget 4: the fifth customer, gain 6, and the fourth, 7, hold the price."""
    frame = frame_of({who: {"call": float(who)} for who in range(1, 11)})
    plan = planned(frame, budget=4, costs={"call": 1})
    assert sorted(who for who, what in chosen(plan).items() if what == "call") == [7, 8, 9, 10]
    assert 6 - 1e-6 <= plan.solution.prices.budget <= 7 + 1e-6
    curve = budget_curve(plan)
    assert curve is not None
    gains = dict(zip(curve["budget"].to_list(), curve["gain"].to_list(), strict=True))
    assert gains[0] == 0 and gains[2.0] == pytest.approx(19) and gains[4.0] == pytest.approx(34)
    assert gains[8.0] == pytest.approx(52)


def test_costs_of_each_customer_and_costs_not_yet_taken_off() -> None:
    frame = frame_of({"a": {"call": 3.0}, "b": {"call": 3.0}}, cost=pl.Series([2.0, 1.0]))
    assert chosen(planned(frame, budget=1.5)) == {"a": "none", "b": "call"}
    offers = read_offers(frame, is_net=False)
    assert offers.expected_CA.ravel().tolist() == [1.0, 2.0]


def contact(who: str, *, days: float, action: str, channel: str | None = None) -> dict[str, Any]:
    return {
        "customer_id": who,
        "event_time": START - dt.timedelta(days=days),
        "action": action,
        "channel": channel or action,
    }


def test_caps_look_back_from_the_windows_beginning() -> None:
    """One contact in 7 days: 7 days ago is just outside, a second less is inside, and open again a window later."""
    frame = frame_of({who: {"mail": 2.0} for who in ("old", "new", "never")})
    second = 1 / 86_400
    past = pl.DataFrame([contact("old", days=7, action="call"), contact("new", days=7 - second, action="call")])
    cap = {"contacts": 1, "days": 7}
    given: dict[str, Any] = {"start": "2026-01-05", "past": past}
    assert chosen(planned(frame, caps=[cap], **given)) == {"old": "mail", "new": "none", "never": "mail"}
    of_mail = planned(frame, caps=[cap | {"of": "mail"}], **given)
    assert set(chosen(of_mail).values()) == {"mail"}, "calls do not count against mail"
    later = planned(frame, caps=[cap], num_windows=2, kept_per_window=0.5, **given)
    table = plan_table(later, funnel(later)[1])
    assert dict(zip(table["customer_id"], table["time_window"], strict=True)) == {"old": 0, "new": 1, "never": 0}
    new = table.filter(pl.col("customer_id") == "new").to_dicts()[0]
    assert new["expected"] == pytest.approx(1.0), "half of the gain is left after waiting"
    assert new["window_start"] == dt.datetime(2026, 1, 12, tzinfo=dt.UTC)


def test_cool_downs_name_what_rests_after_what() -> None:
    values = {who: {"mail": 2.0, "call": 1.0} for who in ("complained", "mailed")}
    past = pl.DataFrame([contact("complained", days=5, action="call"), contact("mailed", days=5, action="mail")])
    plan = planned(
        frame_of(values), past=past, start="2026-01-05", cool_downs=[{"days": 10, "of": "mail", "after": "call"}]
    )
    assert chosen(plan) == {"complained": "call", "mailed": "mail"}
    reasons = plan_table(plan, funnel(plan)[1])["reason"].cast(pl.String).to_list()
    assert reasons == [
        "mail would be worth more, but is closed: 10 days of rest of mail after call",
        "worth most of all eligible actions",
    ]


def test_capacity_is_per_window_and_waiting_costs() -> None:
    frame = frame_of({who: {"call": float(who)} for who in (1, 2, 3, 4)})
    plan = planned(frame, num_windows=3, kept_per_window=0.5, capacity={"call": [1, 2, 0]})
    table = plan_table(plan, funnel(plan)[1])
    assert table["time_window"].to_list() == [None, 1, 1, 0]
    assert plan.solution.value == pytest.approx(4 + 1.5 + 1)


def test_the_gap_between_groups_is_kept_at_least_cost() -> None:
    """Group x gains 5, 4, y gains 1, -1; no gap at all: one each (6) beats two each (9) less room for two contacts."""
    frame = frame_of({"x1": {"m": 5.0}, "x2": {"m": 4.0}, "y1": {"m": 1.0}, "y2": {"m": -1.0}}).with_columns(
        group=pl.col("customer_id").str.slice(0, 1)
    )
    assert chosen(planned(frame, capacity={"m": 2})) == {"x1": "m", "x2": "m", "y1": "none", "y2": "none"}
    assert chosen(planned(frame, capacity={"m": 2}, max_gap=0.0)) == {"x1": "m", "x2": "none", "y1": "m", "y2": "none"}
    everyone = planned(frame, max_gap=0.0)  # 5 + 4 + 1 - 1 = 9
    assert everyone.solution.value == pytest.approx(9)
    assert "taken although none is worth more" in plan_table(everyone, funnel(everyone)[1])["reason"].to_list()[3]


@pytest.mark.parametrize(
    ("limits", "named"),
    [
        ({"min_use": {"call": 3}}, [r"min_use/call, for which 2 customers are left"]),
        ({"min_use": {"call": 2}, "capacity": {"call": 1}}, ["min_use/call", "capacity/call"]),
        ({"min_use": {"call": 2}, "budget": 5, "costs": {"call": 3}, "capacity": {"mail": 1}}, ["budget", "min_use"]),
        ({"min_use": {"call": 2, "mail": 1}, "max_gap": 0.0}, ["min_use/mail", "min_use/call"]),
    ],
)
def test_limits_that_contradict_each_other_are_named(limits: dict[str, Any], named: list[str]) -> None:
    frame = frame_of({"a": {"call": 1.0, "mail": 1.0}, "b": {"call": 1.0}}).with_columns(group=pl.col("customer_id"))
    with pytest.raises(InputError) as raised:
        planned(frame, **limits)
    for words in named:
        assert words.split(",")[0] in str(raised.value)
    assert ("capacity/mail" in str(raised.value)) is False, "only what the contradiction needs is named"


def test_what_explorers_draw_has_the_propensity_that_is_logged() -> None:
    """Over many seeds each customer's choices come as often as logged, and inverse propensities average to one."""
    frame = frame_of({who: {"mail": float(who % 5) - 1, "call": 1.5} for who in range(40)})
    counts, weights, num_seeds = np.zeros((40, 3)), np.zeros((40, 3)), 200
    for seed in range(num_seeds):
        plan = planned(frame, exploration=0.3, seed=seed)
        at = np.arange(40), plan.choice_C
        counts[at] += 1
        weights[at] += 1 / plan.propensity_C
    # 12 of 40 explore; three choices, none among them: 0.1 each, and 0.7 more for the plan's own.
    best = np.where(np.arange(40) % 5 - 1 > 1.5, 1, 0)  # options are call, mail in order of the alphabet
    expected = np.full((40, 3), 0.1)
    expected[np.arange(40), best] += 0.7
    assert np.abs(counts / num_seeds - expected).max() < 5 * np.sqrt(0.25 / num_seeds)
    assert (weights / num_seeds).mean(axis=0) == pytest.approx(1, abs=0.1)


def test_exploration_takes_no_more_than_its_share_of_a_limit() -> None:
    frame = frame_of({who: {"call": 1.0 + who / 100} for who in range(100)})
    plan = planned(frame, exploration=0.2, capacity={"call": 10})
    assert plan.exploration is not None and plan.exploration.is_explorer_C.sum() == 20
    assert plan.used.uses_R[0] == 10
    # Half of all explorers would call; ten calls for a hundred customers leave a tenth: one in five of that half.
    explorers = np.flatnonzero(plan.exploration.is_explorer_C)
    called = explorers[plan.choice_C[explorers] == 0]
    at_plan = plan.solution.prices.reduced(plan.problem, called).max(axis=1) > 0
    assert plan.propensity_C[called] == pytest.approx(0.2 * 0.1 + 0.8 * at_plan)


def test_propensities_of_a_policy_weigh_what_is_drawn() -> None:
    frame = frame_of({who: {"none": 0.0, "mail": 1.0} for who in range(20)}, propensity=pl.Series([0.25, 0.75] * 20))
    plan = planned(frame, exploration=0.5)
    mailed = plan.choice_C == 0
    assert plan.propensity_C[mailed] == pytest.approx(0.5 * 0.75 + 0.5)
    assert plan.propensity_C[~mailed] == pytest.approx(0.5 * 0.25)


def test_funnel_and_optionality_by_hand() -> None:
    frame = frame_of(TWO, eligible=pl.Series([True, True, True, True, True, False, True, True, True]))
    past = pl.DataFrame([contact("ann", days=1, action="call")])
    plan = planned(
        frame,
        past=past,
        start="2026-01-05",
        caps=[{"contacts": 1, "days": 7, "of": "call"}],
        costs={"mail": 1.0, "call": 1.0},
        budget=1,
    )
    stages, left_C = funnel(plan)
    rows = stages.filter(pl.col("action") == "all")
    assert dict(zip(rows["stage"], rows["num_options"], strict=True)) == {
        "offered": 6, "eligible": 5, "suitable": 4, "within_caps": 3, "arbitrated": 1, "chosen": 1,
    }  # fmt: skip
    assert rows["num_customers"].to_list() == [3, 3, 3, 3, 1, 1]
    assert left_C.tolist() == [1, 1, 1]
    assert optionality(left_C)["num_customers"].to_list() == [0, 3]
    table = plan_table(plan, left_C)
    assert table["action"].to_list() == ["none", "mail", "none"]
    assert table["action_without_limits"].to_list() == ["call", "mail", "mail"]
    assert table["reason"].to_list() == [
        "none: call is closed: 1 contact of call in 7 days; for what is left the limits are worth more elsewhere",
        "worth most of all eligible actions",
        "none: mail would be worth more, but the budget is worth more elsewhere",
    ]


def test_a_file_in_any_order_gives_the_same_offers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = example(200, seed=3).predictions
    drawn.write_parquet(tmp_path / "together.parquet")
    drawn.sample(fraction=1.0, shuffle=True, seed=1).write_parquet(tmp_path / "mixed.parquet")
    monkeypatch.setattr("constellation.allocation.offers.BATCH_ROWS", 37)  # customers lie across batches
    one, other = (read_offers(tmp_path / f"{name}.parquet") for name in ("together", "mixed"))
    wide = drawn.filter(pl.col("action") != "none").pivot("action", index="customer_id", values="expected")
    wide = wide.sort("customer_id").select(one.action)
    for offers in (one, other):
        order = np.argsort(offers.customer_id_C)
        assert np.array_equal(offers.expected_CA[order], wide.to_numpy())
        assert offers.cost.tolist() == one.cost.tolist() and offers.cost.ndim == 1
        assert np.array_equal(offers.eligible_CA[order], one.eligible_CA)
        assert [offers.groups[code] for code in offers.group_C[order]] == [one.groups[code] for code in one.group_C]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda frame: frame.drop("expected"), "lack expected"),
        (lambda frame: pl.concat([frame, frame.head(1)]), "1 predictions repeat"),
        (lambda frame: frame.with_columns(expected=pl.lit(float("nan"))), "no finite `expected`"),
        (lambda frame: frame.with_columns(cost=pl.lit(1.0)), "`none` have a cost"),
        (lambda frame: frame.with_columns(propensity=pl.lit(1.2)), r"must lie in \[0, 1\]"),
        (lambda frame: frame.with_columns(action=pl.lit("none")).unique("customer_id"), "no action but `none`"),
        (lambda frame: frame.with_columns(group=pl.col("action")), "several groups"),
    ],
)
def test_predictions_of_another_form_are_explained(change: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_offers(change(frame_of(TWO)))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"budget": -1}, "constraints.budget must be a number in"),
        ({"exploration": 1.0}, r"must be a number in \[0, 1\)"),
        ({"caps": [{"contact": 1}]}, "keys contacts, days, of were expected"),
        ({"num_windows": 2, "capacity": {"call": [1, 2, 3]}}, "has 3 numbers"),
        ({"capacity": {"fax": 1}}, "'fax', which is no channel"),
        ({"caps": [{"contacts": 1, "days": 7, "of": "fax"}]}, "no action or channel"),
        ({"caps": [{"contacts": 1, "days": 7}]}, "give contacts=FILE"),
        ({"max_gap": 0.1}, "column `group`"),
        ({"costs": {"fax": 1}}, "which is no action"),
        ({"utility": "hope"}, "utility must be one of"),
    ],
)
def test_constraints_that_do_not_fit_are_explained(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        planned(frame_of(TWO), **given)


def test_contacts_after_the_start_are_refused() -> None:
    past = pl.DataFrame([contact("ann", days=-1, action="call")])
    with pytest.raises(InputError, match="at or after the plan's start, 2026-01-05 00:00"):
        planned(frame_of(TWO), past=past, start="2026-01-05", caps=[{"contacts": 1, "days": 7}])


def test_the_benchmark_measures_the_command_in_a_process_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    from constellation.commands.benchmarks import recommend as of_recommend

    rows = of_recommend.benchmark_recommend([600], solver="prices")
    of_recommend.print_rows(rows)
    assert "600  prices" in capsys.readouterr().out
    metrics = of_recommend.metrics_of(rows)
    assert set(metrics) == {f"recommend/600/{name}" for name in of_recommend.METRICS}
    assert 0 <= metrics["recommend/600/optimality_gap"] < 0.005
    assert metrics["recommend/600/customers_per_second"] == pytest.approx(600 / metrics["recommend/600/seconds"])
    with pytest.raises(InputError, match="sizes must be"):
        of_recommend.benchmark_recommend([0])
