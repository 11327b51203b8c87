"""The worlds: what they hold, what their truth says, and what no aggregate can know."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from constellation.errors import InputError
from constellation.schema import AMOUNT, CUSTOMER_ID, EVENT_TIME, EVENT_TYPE, PRODUCT, EventSchema
from constellation.worlds.loyalty.world import LoyaltyWorld
from constellation.worlds.order import OrderWorld, order_world
from constellation.worlds.simulated import MICROSECONDS_PER_DAY, Simulated, World, start_of_day
from constellation.worlds.spenders import PRODUCTS, SpendersWorld
from constellation.worlds.spenders import spenders as spenders_tables
from constellation.worlds.spenders_truth import p_active

CONFIGS = Path(__file__).parents[2] / "configs"
DAY = MICROSECONDS_PER_DAY


def end_of(date: str, timezone: str) -> int:
    return start_of_day(date, timezone) + DAY - 1


def realised(world: Simulated, cutoff: int, horizon_days: int) -> pl.DataFrame:
    """Money and purchases in (cutoff, cutoff + horizon], beside the expectation, one row per customer at risk."""
    time = pl.col(EVENT_TIME).dt.epoch("us")
    inside = world.events.filter((time > cutoff) & (time <= cutoff + horizon_days * DAY))
    sums = inside.group_by(CUSTOMER_ID).agg(
        value=pl.col(AMOUNT).sum(), purchases=(pl.col(EVENT_TYPE) == "purchase").sum().cast(pl.Float64)
    )
    expected = world.truth.expected(cutoff, horizon_days)
    return expected.join(sums, on=CUSTOMER_ID, how="left", maintain_order="left").with_columns(
        pl.col("value").fill_null(0.0), pl.col("purchases").fill_null(0.0)
    )


def standard_errors_off(expected: pl.Series, happened: pl.Series) -> float:
    """Mean surprise in standard errors; 0 where nothing could happen, infinite where it happened all the same."""
    difference = (happened - expected).to_numpy()
    if difference.std() == 0:
        return 0.0 if difference[0] == 0 else np.inf
    return abs(difference.mean()) / (difference.std() / np.sqrt(len(difference)))


@pytest.fixture(scope="module")
def spenders() -> Simulated:
    return SpendersWorld().simulate(20_000, seed=3)


def test_spenders_hold_every_kind_of_event(spenders: Simulated) -> None:
    events = spenders.events
    assert set(events[EVENT_TYPE].unique()) == {"purchase", "refund", "contact", "survey"}
    amounts = events.group_by(EVENT_TYPE).agg(
        low=pl.col(AMOUNT).min(), high=pl.col(AMOUNT).max(), known=pl.col(AMOUNT).count()
    )
    of = {row[EVENT_TYPE]: row for row in amounts.to_dicts()}
    assert of["purchase"]["low"] > 0
    assert of["refund"]["high"] < 0
    assert of["contact"]["known"] == of["survey"]["known"] == 0
    refunded = (events[EVENT_TYPE] == "refund").sum() / (events[EVENT_TYPE] == "purchase").sum()
    assert refunded == pytest.approx(0.05, abs=0.002)
    scores = events.filter(pl.col(EVENT_TYPE) == "survey")["score"]
    assert scores.null_count() == 0
    assert scores.min() >= 0
    assert scores.max() <= 10
    assert events.filter(pl.col(EVENT_TYPE) == "contact")["action"].null_count() == 0
    assert spenders.attributes.height == events[CUSTOMER_ID].n_unique() == 20_000
    assert spenders.attributes["age"].null_count() / 20_000 == pytest.approx(0.05, abs=0.01)


def test_spenders_have_baskets_of_distinct_products_and_tastes(spenders: Simulated) -> None:
    baskets = spenders.events.filter(pl.col(EVENT_TYPE) == "purchase")
    sizes = baskets[PRODUCT].list.len()
    assert sizes.min() == 1
    assert sizes.max() == 4
    assert (baskets[PRODUCT].list.n_unique() == sizes).all()
    assert set(baskets[PRODUCT].explode().unique()) == set(PRODUCTS)
    # A customer's commonest product takes far more than the even share of one in eight.
    counts = baskets.explode(PRODUCT).group_by(CUSTOMER_ID, PRODUCT).len()
    shares = counts.group_by(CUSTOMER_ID).agg(top=pl.col("len").max() / pl.col("len").sum(), total=pl.col("len").sum())
    assert shares.filter(pl.col("total") >= 20)["top"].mean() > 0.3


def test_spenders_times_lie_in_the_simulated_days_and_carry_the_zone(spenders: Simulated) -> None:
    events = spenders.events
    assert events.schema[EVENT_TIME] == pl.Datetime("us", "Europe/Berlin")
    time = events[EVENT_TIME].dt.epoch("us")
    assert start_of_day("2023-01-01", "Europe/Berlin") <= time.min()
    # 730 days of 24 hours from a winter midnight to a winter midnight.
    assert time.max() <= end_of(spenders.observed_until, "Europe/Berlin")
    assert spenders.observed_until == "2024-12-30"
    assert spenders.windows["test_cutoff"] == "2024-09-30"
    assert events.equals(events.sort(CUSTOMER_ID, EVENT_TIME, EVENT_TYPE))


@pytest.mark.parametrize(("cutoff", "horizon_days"), [("2024-01-15", 30), ("2024-09-30", 91)])
def test_spenders_truth_is_the_mean_of_what_happens(spenders: Simulated, cutoff: str, horizon_days: int) -> None:
    table = realised(spenders, end_of(cutoff, "Europe/Berlin"), horizon_days)
    for name in ("value", "purchases"):
        assert standard_errors_off(table[f"{name}_expected"], table[name]) < 4
        assert standard_errors_off(table[f"{name}_from_history"], table[name]) < 4
    # Calibrated along the predicted order, too: in tenths, but for the lower half, where hardly anybody buys.
    ranked = table.sort("value_from_history")
    for tenth in range(5, 10):
        part = ranked.slice(tenth * ranked.height // 10, ranked.height // 10)
        assert standard_errors_off(part["value_from_history"], part["value"]) < 5


def test_the_more_is_known_the_smaller_the_error(spenders: Simulated) -> None:
    table = realised(spenders, end_of("2024-09-30", "Europe/Berlin"), 91)
    error = {
        name: ((table["purchases"] - table[name]) ** 2).mean()
        for name in ("purchases_expected", "purchases_from_history")
    }
    constant = table["purchases"].var()
    assert error["purchases_expected"] < error["purchases_from_history"] < constant
    surprise = (table["is_active"].cast(pl.Float64) - table["p_active_from_history"]).to_numpy()
    assert abs(surprise.mean()) < 4 * surprise.std() / np.sqrt(len(surprise))


def test_refunds_of_goods_already_bought_are_expected() -> None:
    world = SpendersWorld(refund_share=1.0, refund_days=10.0)
    simulated = world.simulate(4000, seed=1)
    table = realised(simulated, end_of("2024-09-30", "Europe/Berlin"), 30)
    # Everything goes back, so the long-run value is about nothing, and customers who left have only refunds to come.
    assert table.filter(~pl.col("is_active"))["value_expected"].max() <= 0
    assert standard_errors_off(table["value_expected"], table["value"]) < 4
    assert standard_errors_off(table["value_from_history"], table["value"]) < 4


def test_p_active_agrees_with_the_integral_it_stands_for() -> None:
    """Odds of having left: the integral over y in (t_x, T) of leaving at y, against being there at T."""
    frequency = np.array([0.0, 3.0, 20.0, 5.0])
    recency, tenure = np.array([0.0, 50.0, 300.0, 90.0]), np.array([100.0, 200.0, 320.0, 90.0])
    nodes, weights = np.polynomial.legendre.leggauss(400)
    for alpha, beta in ((16.0, 250.0), (250.0, 16.0), (20.0, 20.0), (16.0, 1e6), (1e6, 16.0)):
        r, s = 0.8, 0.9
        half = (tenure - recency)[:, None] / 2
        y = recency[:, None] + half * (nodes + 1)
        left = ((alpha + tenure[:, None]) / (alpha + y)) ** (r + frequency[:, None])
        left = left * s * ((beta + tenure[:, None]) / (beta + y)) ** s / (beta + y)
        odds = (left * half) @ weights
        np.testing.assert_allclose(p_active(r, alpha, s, beta, frequency, recency, tenure), 1 / (1 + odds), rtol=1e-9)
    assert p_active(0.8, 16.0, 0.9, 250.0, frequency, recency, tenure)[3] == 1.0


def test_without_dropout_and_refunds_the_truth_is_rate_times_money() -> None:
    """Hardly anybody leaves: purchases are lambda h, and the posterior mean is (r + x) / (alpha + T) h."""
    world = SpendersWorld(dropout_shape=1.0, dropout_days=1e9, refund_share=0.0)
    simulated = world.simulate(500, seed=0)
    truth, cutoff = simulated.truth, end_of("2024-06-30", "Europe/Berlin")
    table = truth.expected(cutoff, 10)
    np.testing.assert_allclose(table["purchases_expected"], truth.rate_C * 10, rtol=1e-6)
    amounts = np.exp(truth.log_amount_C + 0.5**2 / 2)
    np.testing.assert_allclose(table["value_expected"], truth.rate_C * 10 * amounts, rtol=1e-6)
    before = simulated.events.filter((pl.col(EVENT_TYPE) == "purchase") & (pl.col(EVENT_TIME).dt.epoch("us") <= cutoff))
    repeats = before.group_by(CUSTOMER_ID).len().sort(CUSTOMER_ID)["len"].to_numpy() - 1.0
    tenure_days = (cutoff - truth.joined_C) / DAY
    np.testing.assert_allclose(table["purchases_from_history"], (0.8 + repeats) / (16.0 + tenure_days) * 10, rtol=1e-4)


@pytest.fixture(scope="module", params=[False, True], ids=["world", "mirror"])
def order(request: pytest.FixtureRequest) -> Simulated:
    return OrderWorld(mirror=request.param).simulate(3000, seed=5)


def visits_of(world: Simulated) -> pl.DataFrame:
    """One row per visit: its types in order, and whether the weekend after brought a purchase."""
    visit = world.events.filter(pl.col(EVENT_TYPE) != "purchase").with_columns(
        week=pl.col(EVENT_TIME).dt.truncate("1w")
    )
    bought = world.events.filter(pl.col(EVENT_TYPE) == "purchase").with_columns(
        week=pl.col(EVENT_TIME).dt.truncate("1w")
    )
    grouped = visit.group_by(CUSTOMER_ID, "week", maintain_order=True).agg(
        types=pl.col(EVENT_TYPE), start=pl.col(EVENT_TIME).first(), end=pl.col(EVENT_TIME).last()
    )
    return grouped.join(
        bought.select(CUSTOMER_ID, "week", bought=pl.lit(True)), on=[CUSTOMER_ID, "week"], how="left"
    ).with_columns(pl.col("bought").fill_null(False), first=pl.col("types").list.get(1))


def test_every_visit_holds_the_same_events_within_one_hour_of_the_clock(order: Simulated) -> None:
    visits = visits_of(order)
    same = ["advice", "advice", "arrive", "browse", "leave", "price", "price"]
    assert visits["types"].list.sort().unique(maintain_order=True).to_list() == [same]
    assert (visits["types"].list.first() == "arrive").all()
    assert (visits["types"].list.last() == "leave").all()
    assert (visits["start"].dt.truncate("1h") == visits["end"].dt.truncate("1h")).all()
    assert visits["start"].dt.weekday().is_between(1, 3).all()
    weekend = order.events.filter(pl.col(EVENT_TYPE) == "purchase")[EVENT_TIME]
    assert weekend.dt.weekday().is_between(5, 7).all()


def test_the_deciding_pair_decides_in_the_world_and_not_in_the_mirror(order: Simulated) -> None:
    visits = visits_of(order)
    rates = dict(visits.group_by("first").agg(pl.col("bought").mean()).iter_rows())
    mirrored = order.name.endswith("mirror")
    assert rates["advice"] == pytest.approx(0.5 if mirrored else 0.9, abs=0.02)
    assert rates["price"] == pytest.approx(0.5 if mirrored else 0.1, abs=0.02)
    # The decoy pair, and the visit before, say nothing in either.
    decoy = visits.group_by(pl.col("types").list.get(4)).agg(pl.col("bought").mean())["bought"]
    earlier = visits.with_columns(before=pl.col("first").shift(1).over(CUSTOMER_ID)).drop_nulls("before")
    for rate in [*decoy, *earlier.group_by("before").agg(pl.col("bought").mean())["bought"]]:
        assert rate == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("cutoff", ["2024-02-29T23:59:59.999999", "2024-02-24T12:00:00", "2024-02-20T08:30:00"])
def test_order_truth_is_the_mean_of_what_happens_at_any_time_of_the_week(order: Simulated, cutoff: str) -> None:
    moment = int(np.datetime64(cutoff, "us").astype(np.int64))
    for horizon_days in (2, 7, 10):
        table = realised(order, moment, horizon_days)
        assert table.height == 3000
        for name in ("value", "purchases"):
            assert standard_errors_off(table[f"{name}_expected"], table[name]) < 4
        for _, part in table.group_by(pl.col("purchases_expected").round(6)):
            if part["purchases"].var() > 0:
                assert standard_errors_off(part["purchases_expected"], part["purchases"]) < 4.5


def test_no_aggregate_knows_what_the_rule_knows() -> None:
    """Boosting on windowed counts, money, gaps and times since each type against the rule, at the test cutoff."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score

    auc = {}
    for mirror in (False, True):
        world = OrderWorld(mirror=mirror).simulate(2000, seed=11)
        test = end_of(world.windows["test_cutoff"], "UTC")
        train = [_aggregates(world, test - week * 7 * DAY) for week in range(1, 6)]
        features, label, rule = _aggregates(world, test)
        boosting = HistGradientBoostingClassifier(max_iter=60, random_state=0)
        boosting.fit(np.concatenate([part[0] for part in train]), np.concatenate([part[1] for part in train]))
        auc[mirror] = roc_auc_score(label, boosting.predict_proba(features)[:, 1]), roc_auc_score(label, rule)
    # The standard error of an AUC of nothing with a thousand a side is about 0.013.
    assert abs(auc[False][0] - 0.5) < 0.05
    assert abs(auc[True][0] - 0.5) < 0.05
    assert auc[False][1] == pytest.approx(0.9, abs=0.025)
    assert auc[True][1] == 0.5


def _aggregates(world: Simulated, cutoff: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    time, kind = pl.col(EVENT_TIME).dt.epoch("us"), pl.col(EVENT_TYPE)
    seen = world.events.filter(time <= cutoff).with_columns(age=(cutoff - time) / DAY)
    columns = [(pl.col("age").diff().abs()).tail(5).mean().alias("gaps"), pl.col("age").max().alias("tenure")]
    for name in ("arrive", "advice", "price", "browse", "leave", "purchase"):
        columns.append(pl.col("age").filter(kind == name).min().alias(f"since_{name}"))
        columns += [
            ((kind == name) & (pl.col("age") < days)).sum().alias(f"{name}_{days}") for days in (1, 2, 7, 30, 999)
        ]
    columns += [pl.col(AMOUNT).filter(pl.col("age") < days).sum().alias(f"money_{days}") for days in (7, 30, 999)]
    features = seen.group_by(CUSTOMER_ID).agg(columns).sort(CUSTOMER_ID)
    table = realised(world, cutoff, 7)
    assert features[CUSTOMER_ID].equals(table[CUSTOMER_ID])
    values = features.drop(CUSTOMER_ID).to_numpy().astype(float)
    return values, (table["purchases"] > 0).to_numpy(), table["purchases_expected"].to_numpy()


def test_function_sources_give_the_tables_of_the_worlds() -> None:
    given = order_world(num_customers=50, seed=2, mirror=True, num_weeks=12)
    wanted = OrderWorld(mirror=True, num_weeks=12).simulate(50, 2)
    assert given["events"].equals(wanted.events)
    assert given["attributes"].equals(wanted.attributes)
    given, drawn = (
        spenders_tables(num_customers=50, seed=2, refund_share=0.5),
        SpendersWorld(refund_share=0.5).simulate(50, 2),
    )
    assert given["events"].equals(drawn.events)
    assert given["attributes"].equals(drawn.attributes)


@pytest.mark.parametrize(
    ("name", "world"), [("order_world", OrderWorld()), ("spenders", SpendersWorld()), ("loyalty", LoyaltyWorld())]
)
def test_data_configs_cut_where_the_worlds_say(name: str, world: World) -> None:
    """The YAML of a world cannot ask the world for its windows, so it repeats them."""
    config = yaml.safe_load((CONFIGS / "data" / f"{name}.yaml").read_text())
    simulated = world.simulate(30, seed=0)
    for key, value in simulated.windows.items():
        found = config["windows"][key]
        assert (tuple(found) if isinstance(found, list) else found) == value
    assert config["observed_until"] == simulated.observed_until
    schema = {key: value for key, value in config["schema"].items() if key != "_target_"}
    assert EventSchema(**schema) == simulated.schema
    module, function = config["source"]["function"].split(":")
    arguments = config["source"]["arguments"] | {"num_customers": 30, "seed": 0}
    given = getattr(importlib.import_module(module), function)(Path("data"), **arguments)
    assert given["events"].equals(simulated.events)


@pytest.mark.parametrize("name", ["loyalty", "order", "spenders"])
def test_world_configs_hold_the_defaults(name: str) -> None:
    config = yaml.safe_load((CONFIGS / "world" / f"{name}.yaml").read_text())
    module, _, target = config.pop("_target_").rpartition(".")
    world = getattr(importlib.import_module(module), target)
    assert world(**config) == world()
    assert set(config) == {field.name for field in dataclasses.fields(world)}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: OrderWorld(num_weeks=3), "num_weeks must be 8 or more"),
        (lambda: OrderWorld(buys_after_price=1.5), r"buys_after_price must lie in \[0, 1\]"),
        (lambda: SpendersWorld(rate_days=0), "rate_days must be a number above 0"),
        (lambda: SpendersWorld(num_days=400), "num_days must exceed acquisition_days"),
        (lambda: SpendersWorld(timezone="Mars/Crater"), "IANA name"),
        (lambda: SpendersWorld(start="yesterday"), "a date such as 2023-01-01"),
        (lambda: OrderWorld().simulate(0, 0), "at least one customer"),
        (lambda: OrderWorld().simulate(5, -1), "seed must be 0 or more"),
    ],
)
def test_bad_parameters_are_named(make, said: str) -> None:
    with pytest.raises(InputError, match=said):
        make()
