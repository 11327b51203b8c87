"""The world of loyalty: its pieces by hand, its truth against its log, and what is planted in it."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from constellation.errors import InputError
from constellation.schema import ACTION, AMOUNT, CUSTOMER_ID, EVENT_TIME, EVENT_TYPE, PRODUCT
from constellation.worlds.loyalty.actions import REASONS, Engagement
from constellation.worlds.loyalty.draws import Draws, Stream
from constellation.worlds.loyalty.dynamics import impulses, live_a_week
from constellation.worlds.loyalty.log import draw_log, start_of_week
from constellation.worlds.loyalty.oracle import Oracle
from constellation.worlds.loyalty.people import BLACK_HOLES, CONSTELLATIONS, PRODUCTS
from constellation.worlds.loyalty.simulation import Simulation
from constellation.worlds.loyalty.state import FEATURES, logging_probabilities
from constellation.worlds.loyalty.truth import LoyaltyTruth
from constellation.worlds.loyalty.value import (
    PolicyValue,
    constant_policy,
    logging_policy,
    started,
    uniform_policy,
    value_of,
    value_of_one_decision,
    value_of_oracle,
)
from constellation.worlds.loyalty.world import LoyaltyWorld
from constellation.worlds.simulated import Simulated

WORLD = LoyaltyWorld(num_futures=16)
MIRROR = LoyaltyWorld(mirror=True)


def number(action: str) -> int:
    return WORLD.action_names.index(action)


def logit(probability: float) -> float:
    return float(np.log(probability / (1 - probability)))


def sigmoid(value: float) -> float:
    return float(1 / (1 + np.exp(-value)))


@pytest.fixture(scope="module")
def start() -> Simulation:
    return started(WORLD, 4000, seed=5)


@pytest.fixture(scope="module")
def simulated() -> Simulated:
    return WORLD.simulate(3000, seed=2)


# -- The pieces ------------------------------------------------------------------------------------------------------


def test_a_number_belongs_to_its_customer_whoever_else_is_there() -> None:
    few, many = Draws(3, 10), Draws(3, 50)
    own, friends = np.arange(10), 10 + np.arange(10)
    np.testing.assert_array_equal(few.uniform(4, Stream.BUY, own), many.uniform(4, Stream.BUY, np.arange(50))[:10])
    asked = np.array([2, 7, 13, 18])
    whole = few.uniform(4, Stream.BUY, np.concatenate([own, friends]))
    np.testing.assert_array_equal(few.uniform(4, Stream.BUY, asked), whole[asked])
    np.testing.assert_array_equal(many.uniform(4, Stream.BUY, 50 + own), whole[10:])
    wide = few.uniform(0, Stream.TASTE, np.arange(20), 3)
    np.testing.assert_array_equal(few.uniform(0, Stream.TASTE, asked, 3), wide[asked])
    drawn = [few.uniform(week, stream, own) for week in (0, 1) for stream in Stream]
    drawn += [Draws(4, 10).uniform(0, Stream.BUY, own), Draws(3, 10, branch=1).uniform(0, Stream.BUY, own), whole[10:]]
    assert len({tuple(each) for each in drawn}) == len(drawn)


def test_impulses_are_sums_over_reasons_less_with_fatigue() -> None:
    actions = {
        "none": Engagement(),
        "letter": Engagement(
            channel="email", interest={"always": -0.2, "email": 0.6}, satisfaction={"always": 0.1, "curious": -0.3},
            boost={"deal": 2.0},
        ),
    }  # fmt: skip
    logging = {"none": {}, "letter": {}}
    world = LoyaltyWorld(actions=actions, logging=logging, fatigue_limit=4.0, fatigue_hurt=0.05)
    likes_email = {"always": 1, "email": 1, "deal": 0.5, "curious": -1}
    others = {"always": 1, "phone": 1, "curious": 1}
    reason_CJ = np.array([[who.get(reason, 0.0) for reason in REASONS] for who in (likes_email, others)])
    interest, satisfaction, boost = impulses(world, world.effects(), reason_CJ, np.array([1.0, 3.0]))
    # Fatigue 1 of 4 leaves three quarters of what is good, 3 of 4 one quarter; harm stays whole, fatigue adds to it.
    np.testing.assert_allclose(interest, [[0, 0.4 * 0.75], [0, -0.2]])
    np.testing.assert_allclose(satisfaction, [[0, 0.4 * 0.75 - 0.05], [0, -0.2 - 0.15]])
    np.testing.assert_allclose(boost, [[0, 1.0 * 0.75], [0, 0]])
    effects = replace(world, mirror=True).effects()
    assert not any(part.any() for part in impulses(world, effects, reason_CJ, np.array([1.0, 3.0])))


def live(simulation: Simulation, action: str) -> tuple:
    """A week under one action for all; the state before, after, and the week."""
    now = simulation.present()
    before = simulation.copy().present().state
    action_C = np.full(len(now.rows_C), number(action))
    probability_CA = np.eye(len(WORLD.action_names))[action_C]
    week = live_a_week(
        WORLD, WORLD.effects(), now.people, simulation.people.taste_RV, now.state, simulation.draws, simulation.week,
        now.rows_C, probability_CA, action_C,
    )  # fmt: skip
    return before, now.state, week, now.people


def test_a_week_follows_the_rules(start: Simulation) -> None:
    from scipy.special import expit, ndtri

    before, after, week, people = live(start.copy(), "voucher")
    rows, draws, t = week.rows_C, start.draws, start.week
    rested = before.fatigue_R == 0
    entry = WORLD.actions["voucher"]
    satisfaction = before.satisfaction_R
    interest = before.interest_R + entry.interest.get("always", 0.0)
    boost = entry.boost["always"] + entry.boost["deal"] * people.deal_R
    chance = expit(people.rate_R + interest + WORLD.purchase_slope * satisfaction + boost)
    bought = before.active_R & (draws.uniform(t, Stream.BUY, rows) < chance)
    np.testing.assert_array_equal(week.bought_C[rested], bought[rested])
    noise = WORLD.amount_sigma * ndtri(draws.uniform(t, Stream.AMOUNT, rows)) - WORLD.amount_sigma**2 / 2
    paid = np.round((1 - entry.discount) * np.exp(people.log_amount_R + noise), 2)
    np.testing.assert_allclose(week.amount_C[week.bought_C], paid[week.bought_C])
    assert (week.cost_C == entry.cost).all()
    # Whom nothing happens to drifts back to the baseline, and forgets.
    quiet = rested & ~week.bought_C & ~before.complaint_R & ~week.left_C
    moved = satisfaction + WORLD.reversion * (people.baseline_R - satisfaction)
    np.testing.assert_allclose(after.satisfaction_R[quiet], moved[quiet])
    np.testing.assert_allclose(after.interest_R[quiet], WORLD.interest_memory * interest[quiet])
    np.testing.assert_allclose(after.fatigue_R, WORLD.fatigue_memory * before.fatigue_R + 1)
    # Who has left neither buys nor complains nor answers.
    gone = ~before.active_R
    assert gone.sum() > 50
    for happened in (week.visited_C, week.bought_C, week.complained_C, week.resolved_C, week.referred_C, week.left_C):
        assert not happened[gone].any()


def test_a_call_settles_complaints(start: Simulation) -> None:
    before, _, idle, _ = live(start.copy(), "none")
    _, after, called, _ = live(start.copy(), "call")
    waiting = before.complaint_R & before.active_R
    assert waiting.sum() > 100
    for week, share in ((idle, WORLD.resolution), (called, WORLD.actions["call"].resolves)):
        assert week.resolved_C[waiting].mean() == pytest.approx(share, abs=4 * np.sqrt(0.25 / waiting.sum()))
    assert (idle.resolved_C <= called.resolved_C).all(), "more likely with the same luck means never the reverse"
    assert not after.complaint_R[called.resolved_C].any()


def test_the_logging_policy_is_the_softmax_it_says_it_is() -> None:
    features = np.zeros((2, len(FEATURES)), dtype=np.float32)
    features[1, FEATURES.index("purchases_recent")] = 2.0
    features[1, FEATURES.index("complaint_open")] = 1.0
    found = logging_probabilities(WORLD, features)
    for row, known in ((0, {}), (1, {"purchases_recent": 2.0, "complaint_open": 1.0})):
        score = [
            sum(weight * (known | {"constant": 1.0}).get(name, 0.0) for name, weight in WORLD.logging[action].items())
            for action in WORLD.action_names
        ]
        softmax = np.exp(score) / np.exp(score).sum()
        np.testing.assert_allclose(found[row], (1 - WORLD.exploration) * softmax + WORLD.exploration / 6, rtol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1.0)
    assert found[1, number("call")] > found[0, number("call")]


# -- Values of policies ----------------------------------------------------------------------------------------------


def test_in_the_mirror_all_policies_are_worth_exactly_the_same() -> None:
    start = started(MIRROR, 1500, seed=1)
    values = [
        value_of(logging_policy(MIRROR), start, num_weeks=20),
        value_of(uniform_policy(MIRROR), start, num_weeks=20),
        *(value_of(constant_policy(MIRROR, name), start, num_weeks=20) for name in MIRROR.action_names),
        value_of_oracle(start, num_weeks=20),
    ]
    assert values[0].mean > 0
    for value in values[1:]:
        np.testing.assert_array_equal(value.net_C, values[0].net_C)
        assert value.gain_over(values[0]) == (0.0, 0.0)
    assert values[1].share_A != pytest.approx(values[0].share_A)


def test_the_mirror_keeps_all_but_the_effects() -> None:
    """Led by the same hand from the first week on, but for what contacts do: the idle world is the idle mirror."""
    worlds = [Simulation(world, 500, seed=4).run(30, constant_policy(world, "none")) for world in (WORLD, MIRROR)]
    np.testing.assert_array_equal(worlds[0].net_R, worlds[1].net_R)
    np.testing.assert_array_equal(worlds[0].features(), worlds[1].features())


def test_the_oracle_beats_the_habit_and_every_constant(start: Simulation) -> None:
    logged = value_of(logging_policy(WORLD), start)
    oracle = value_of_oracle(start)
    gain, error = oracle.gain_over(logged)
    assert gain > 0.15 * logged.mean, "a gap too small to learn in"
    assert gain > 10 * error
    for name in WORLD.action_names:
        gain, error = oracle.gain_over(value_of(constant_policy(WORLD, name), start))
        assert gain > 5 * error
    assert 0.05 < oracle.share_A[0] < 0.95
    assert (oracle.share_A > 0.002).all(), "every action is somebody's best"


def test_a_value_of_one_week_is_what_the_week_paid(start: Simulation) -> None:
    policy = constant_policy(WORLD, "connect")
    running = start.copy()
    week = running.step(policy(running.features()))
    value = value_of(policy, start, num_weeks=1)
    assert value.net_C.sum() == pytest.approx(
        week.amount_C.sum() - 0.0 - WORLD.actions["connect"].cost * len(week.rows_C)
    )
    assert value.share_A[number("connect")] == 1.0
    assert start.week == WORLD.joining_weeks, "the start is left as it was"


def test_gains_are_paired() -> None:
    one = PolicyValue(np.array([1.0, 5.0, 9.0]), 1, np.ones(1))
    two = PolicyValue(np.array([0.0, 5.0, 7.0]), 1, np.ones(1))
    assert one.gain_over(two) == (1.0, pytest.approx(1 / np.sqrt(3)))


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (lambda features: np.ones((len(features), 2)) / 2, "with probabilities"),
        (lambda features: np.full((len(features), 6), 0.2), "sum to 1"),
        (lambda features: np.tile([1.5, -0.5, 0, 0, 0, 0], (len(features), 1)), "0 or more"),
    ],
)
def test_a_policy_that_is_none_is_refused(start: Simulation, policy, said: str) -> None:
    with pytest.raises(InputError, match=said):
        value_of(policy, start, num_weeks=1)


# -- The oracle ------------------------------------------------------------------------------------------------------


def test_with_one_week_left_an_action_is_worth_its_purchases(start: Simulation) -> None:
    from scipy.special import expit

    now = start.present()
    gain = Oracle(WORLD, 1).advantages(now, 1, rested=True)
    entry, people, state = WORLD.actions["voucher"], now.people, now.state
    idle = people.rate_R + state.interest_R + WORLD.purchase_slope * state.satisfaction_R
    moved = idle + entry.interest.get("always", 0.0)
    boost = entry.boost["always"] + entry.boost["deal"] * people.deal_R
    expected = np.exp(people.log_amount_R) * state.active_R * (
        (1 - entry.discount) * expit(moved + boost) - expit(idle)
    ) - entry.cost  # fmt: skip
    # A friend's worth is nothing with one week left; what remains is the interpolation on the grid.
    np.testing.assert_allclose(gain[:, number("voucher")], expected, atol=0.15)
    assert (gain[~state.active_R] <= 0).all(), "for who has left a contact is its cost"


def test_the_worth_of_states_is_what_comes_when_nobody_is_contacted(start: Simulation) -> None:
    """Backward induction against simulation, in tenths of worth: own money over 26 weeks, friends left out."""
    world = replace(WORLD, referral_logit=-50.0)
    alone = started(world, 6000, seed=9)
    now, oracle = alone.present(), Oracle(world, 26)
    from constellation.worlds.loyalty.oracle import _drift

    state, people = now.state, now.people
    worth = oracle._worth_of(
        state, people, _drift(world, people), state.satisfaction_R, state.interest_R, 26, resolution=world.resolution
    )
    expected = np.where(state.active_R, worth * np.exp(people.log_amount_R), 0.0)
    happened = value_of(constant_policy(world, "none"), alone, num_weeks=26).net_C
    assert happened.mean() == pytest.approx(expected.mean(), rel=0.04)
    order = np.argsort(expected)
    for tenth in np.array_split(order, 10)[3:]:
        assert happened[tenth].mean() == pytest.approx(expected[tenth].mean(), rel=0.12)


def test_the_oracle_sees_the_effects_that_simulation_shows() -> None:
    """Its advantages against paired futures in which nobody is contacted after the first week."""
    world = replace(WORLD, referral_logit=-50.0)
    start = started(world, 250, seed=12)
    # One contact before the rest of nothing, so that a handful of actions tells.
    predicted = Oracle(world, 13).advantages(start.present(), 13)
    idle = constant_policy(world, "none")
    nets = []
    for name in world.action_names:
        future = start.futures(150)
        future.step(constant_policy(world, name)(future.features()))
        future.run(12, idle)
        nets.append(future.net_R[: future.num_customers].reshape(150, 250).mean(axis=0))
    simulated = np.stack(nets, axis=1) - nets[0][:, None]
    for action in range(1, 6):
        slope, _ = np.polyfit(predicted[:, action], simulated[:, action], 1)
        assert slope == pytest.approx(1.0, abs=0.25), world.action_names[action]
        assert np.corrcoef(predicted[:, action], simulated[:, action])[0, 1] > 0.6
    error = simulated[:, 1:].std() / 2
    assert abs((predicted - simulated)[:, 1:].mean()) < error


# -- The log against the truth ---------------------------------------------------------------------------------------


def test_the_log_holds_what_happened(simulated: Simulated) -> None:
    running = Simulation(WORLD, 3000, seed=2).run(WORLD.num_weeks)
    events, decisions = simulated.events, simulated.decisions
    assert decisions is not None
    assert set(events[EVENT_TYPE].unique()) == {
        "signup", "contact", "visit", "purchase", "survey", "complaint", "resolution", "referral"
    }  # fmt: skip
    paid = events[AMOUNT].fill_null(0.0).sum() - decisions["cost"].sum()
    assert paid == pytest.approx(running.net_R.sum())
    assert (events[EVENT_TYPE] == "purchase").sum() == running.state.num_purchases_R.sum()
    friends = events.filter((pl.col(EVENT_TYPE) == "signup") & (pl.col(CUSTOMER_ID) > 3000)).height
    referrals = (events[EVENT_TYPE] == "referral").sum()
    assert 0 < friends <= referrals <= friends + 30, "a friend signs up in the week after"
    assert simulated.attributes.height == events[CUSTOMER_ID].n_unique()
    assert events.equals(events.sort(CUSTOMER_ID, EVENT_TIME, EVENT_TYPE))


def test_decisions_lie_between_the_weeks_and_carry_exact_propensities(simulated: Simulated) -> None:
    decisions, events = simulated.decisions, simulated.events
    assert decisions is not None
    named = decisions.select(f"propensity_{name}" for name in WORLD.action_names).to_numpy()
    np.testing.assert_allclose(named.sum(axis=1), 1.0)
    assert named.min() >= WORLD.exploration / 6
    chosen = np.array([WORLD.action_names.index(name) for name in decisions[ACTION]])
    np.testing.assert_array_equal(named[np.arange(len(chosen)), chosen], decisions["propensity"].to_numpy())
    # Actions come as often as their probabilities say.
    for action in range(6):
        surprise = (chosen == action) - named[:, action]
        assert abs(surprise.mean()) < 4 * surprise.std() / np.sqrt(len(surprise))
    # Nothing happens between the start of a week and its decision, and each contact follows its own.
    hour = (events[EVENT_TIME].dt.epoch("us").to_numpy() - start_of_week(0)) / 3.6e9 % 168
    assert ((hour >= 9) & (hour < 164)).all()
    contacts = events.filter(pl.col(EVENT_TYPE) == "contact").select(
        CUSTOMER_ID, ACTION, decision_time=pl.col(EVENT_TIME) - pl.duration(hours=1)
    )
    sent = decisions.filter(pl.col(ACTION) != "none").select(CUSTOMER_ID, ACTION, "decision_time")
    assert contacts.sort(CUSTOMER_ID, "decision_time").equals(sent.sort(CUSTOMER_ID, "decision_time"))


def test_what_policies_know_can_be_worked_out_from_the_log() -> None:
    log = draw_log(WORLD, 300, 6, with_features=True)
    week = 60
    cutoff = pl.lit(start_of_week(week))
    at = (
        log.decisions["decision_time"].dt.epoch("us") // 3_600_000_000 == start_of_week(week) // 3_600_000_000 + 8
    ).to_numpy()
    assert log.features_QF is not None
    known = pl.DataFrame(log.features_QF[at].astype(np.float64), schema=list(FEATURES)).with_columns(
        log.decisions.filter(pl.Series(at))[CUSTOMER_ID]
    )
    seen = log.events.filter(pl.col(EVENT_TIME).dt.epoch("us") < cutoff).with_columns(
        age=week - 1 - (pl.col(EVENT_TIME).dt.epoch("us") - start_of_week(0)) // (7 * 86_400_000_000)
    )
    kind = pl.col(EVENT_TYPE)
    made = seen.group_by(CUSTOMER_ID).agg(
        num_purchases=(kind == "purchase").sum(),
        spent=pl.col(AMOUNT).sum(),
        since=pl.col("age").filter(kind == "purchase").min(),
        fatigue=(WORLD.fatigue_memory ** pl.col("age").filter(kind == "contact")).sum(),
        complaints=(kind == "complaint").sum(),
        resolutions=(kind == "resolution").sum(),
        score=pl.col("score").drop_nulls().last(),
        visits=(np.exp(-1 / 4) ** pl.col("age").filter(kind == "visit")).sum(),
        distinct=pl.col(PRODUCT).explode().drop_nulls().n_unique(),
    )
    both = known.join(made, on=CUSTOMER_ID)
    assert both.height == known.height > 250
    buyers = both.filter(pl.col("num_purchases_right") > 0)
    np.testing.assert_allclose(both["num_purchases"], both["num_purchases_right"])
    np.testing.assert_allclose(buyers["weeks_since_purchase"], buyers["since"])
    np.testing.assert_allclose(buyers["mean_amount"], buyers["spent"] / buyers["num_purchases"], rtol=1e-5)
    np.testing.assert_allclose(both["contacts_recent"], both["fatigue"], atol=1e-5)
    np.testing.assert_allclose(both["complaint_open"], both["complaints"] - both["resolutions"])
    np.testing.assert_allclose(both["last_score"], both["score"].fill_null(7.0))
    np.testing.assert_allclose(both["visits_recent"], both["visits"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(both["distinct_products"], both["distinct"])


@pytest.mark.parametrize("horizon_weeks", [1, 13])
def test_expected_value_is_the_mean_of_what_happens(simulated: Simulated, horizon_weeks: int) -> None:
    cutoff = start_of_week(65) - 1
    expected = simulated.truth.expected(cutoff, 7 * horizon_weeks)
    time = pl.col(EVENT_TIME).dt.epoch("us")
    inside = simulated.events.filter((time > cutoff) & (time < start_of_week(65 + horizon_weeks)))
    sums = inside.group_by(CUSTOMER_ID).agg(value=pl.col(AMOUNT).sum())
    table = expected.join(sums, on=CUSTOMER_ID, how="left", maintain_order="left").with_columns(
        pl.col("value").fill_null(0.0)
    )
    surprise = (table["value"] - table["value_expected"]).to_numpy()
    assert abs(surprise.mean()) < 4 * surprise.std() / np.sqrt(len(surprise))
    known = simulated.events.filter(time <= cutoff)[CUSTOMER_ID].unique().sort()
    assert expected[CUSTOMER_ID].equals(known), "all at risk, in the order of the store"
    assert expected.filter(~pl.col("is_active"))["value_expected"].max() == 0
    assert np.corrcoef(table["value"], table["value_expected"])[0, 1] > 0.5 / np.sqrt(2)


def test_weights_of_the_log_give_the_true_value_of_a_policy() -> None:
    """Inverse propensities on one week's decisions, against the simulated value of one decision by the same rule."""
    start = started(WORLD, 40_000, seed=21)
    seen, rewards = start.features(), start.copy()
    policy = uniform_policy(WORLD)
    first = rewards.step(rewards.logging())
    net_R = np.zeros(len(rewards.net_R))
    net_R[first.rows_C] += first.net_C
    for _ in range(3):
        week = rewards.step(rewards.logging())
        net_R[week.rows_C] += week.amount_C
    reward = net_R[first.rows_C]
    chosen = np.arange(len(reward)), first.action_C
    weight = policy(seen)[chosen] / first.probability_CA[chosen]
    assert weight.mean() == pytest.approx(1.0, abs=4 * weight.std() / np.sqrt(len(weight)))
    truth = value_of_one_decision(policy, start, reward_weeks=4)
    error = np.hypot((weight * reward).std() / np.sqrt(len(reward)), truth.standard_error)
    assert (weight * reward).mean() == pytest.approx(truth.mean, abs=4 * error)
    itself = value_of_one_decision(logging_policy(WORLD), start, reward_weeks=4)
    np.testing.assert_allclose(itself.net_C, reward)


# -- What is planted -------------------------------------------------------------------------------------------------


def test_effects_help_some_and_hurt_others_as_planted() -> None:
    world, num_customers = replace(WORLD, num_futures=96), 700
    truth = LoyaltyTruth(world, num_customers, 3)
    table = truth.effects(start_of_week(40) - 1, 28).pivot(ACTION, index=CUSTOMER_ID, values="effect")
    rows = table[CUSTOMER_ID].to_numpy() - 1
    now = Simulation(world, num_customers, 3).run(40)
    people, state = now.people.take(rows), now.state.take(rows)
    active = state.active_R
    assert (table["none"] == 0).all()

    def contrast(action: str, who: np.ndarray) -> None:
        effect = table[action].to_numpy()
        helped, others = effect[active & who], effect[active & ~who]
        error = np.hypot(helped.std() / np.sqrt(len(helped)), others.std() / np.sqrt(len(others)))
        assert helped.mean() - others.mean() > 3 * error, action
        assert helped.mean() > 0 > others.mean(), action

    contrast("newsletter", people.prefers_R == 0)
    contrast("connect", people.star_R > 0.5)
    contrast("challenge", people.curious_R > 0)
    call = table["call"].to_numpy()
    assert call[active & state.complaint_R].mean() > call[active & ~state.complaint_R].mean()
    voucher = table["voucher"].to_numpy()
    assert voucher[active & (people.deal_R > 0.6)].mean() > voucher[active & (people.deal_R < 0.2)].mean()
    for name in world.action_names[1:]:
        gone = table[name].to_numpy()[~active]
        np.testing.assert_allclose(gone, -world.actions[name].cost, atol=1e-9)
        assert (table[name].to_numpy()[active] < 0).mean() > 0.1


def test_constellations_are_bought_together_and_black_holes_bring_complaints(simulated: Simulated) -> None:
    truth = simulated.truth
    assert isinstance(truth, LoyaltyTruth)
    linked = {tuple(pair) for pair in truth.links().iter_rows()}
    assert linked == {tuple(sorted(pair)) for group in CONSTELLATIONS.values() for pair in combinations(group, 2)}
    baskets = simulated.events.filter(pl.col(EVENT_TYPE) == "purchase")
    counts = (
        baskets.explode(PRODUCT).group_by(CUSTOMER_ID, PRODUCT).len().pivot(PRODUCT, index=CUSTOMER_ID, values="len")
    )
    bought = counts.select(PRODUCTS).fill_null(0).to_numpy().astype(float)
    share = bought[bought.sum(axis=1) >= 10] / bought[bought.sum(axis=1) >= 10].sum(axis=1, keepdims=True)
    correlation = np.corrcoef(share.T)
    of_pair = {
        tuple(sorted((PRODUCTS[i], PRODUCTS[j]))): correlation[i, j] for i, j in combinations(range(len(PRODUCTS)), 2)
    }
    assert min(of_pair[pair] for pair in linked) > max(value for pair, value in of_pair.items() if pair not in linked)

    planted = truth.products()
    assert set(planted.filter(pl.col("is_black_hole"))[PRODUCT]) == set(BLACK_HOLES)
    complaint = simulated.events.filter(pl.col(EVENT_TYPE) == "complaint").select(
        CUSTOMER_ID, pl.col(EVENT_TIME) - pl.duration(hours=2), complained=pl.lit(True)
    )
    followed = baskets.join(complaint, on=[CUSTOMER_ID, EVENT_TIME], how="left").with_columns(
        hole=pl.col(PRODUCT).list.eval(pl.element().is_in(BLACK_HOLES)).list.any(),
        complained=pl.col("complained").fill_null(False),
    )
    rate = dict(followed.group_by("hole").agg(pl.col("complained").mean()).iter_rows())
    assert rate[True] > 1.5 * rate[False]


def test_tastes_and_policies_of_the_truth(simulated: Simulated) -> None:
    truth = simulated.truth
    assert isinstance(truth, LoyaltyTruth)
    tastes = truth.tastes()
    np.testing.assert_allclose(tastes.select(PRODUCTS).to_numpy().sum(axis=1), 1.0)
    assert tastes.height == simulated.attributes.height
    values = {row["policy"]: row for row in LoyaltyTruth(WORLD, 500, 0).policies(num_weeks=10).to_dicts()}
    assert set(values) == {"logging", "uniform", "oracle", *(f"always_{name}" for name in WORLD.action_names)}
    assert values["oracle"]["gain_over_logging"] > 0 == values["logging"]["gain_over_logging"]


# -- Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LoyaltyWorld(num_weeks=30), "num_weeks must be at least"),
        (lambda: LoyaltyWorld(actions={"none": {}}), "at least one contact"),
        (lambda: LoyaltyWorld(actions={"letter": {"channel": "email"}}), "must hold 'none'"),
        (lambda: LoyaltyWorld(actions={"none": {}, "letter": {"chanel": "email"}}), "letter has chanel"),
        (lambda: LoyaltyWorld(actions={"none": {}, "letter": {"channel": "pigeon"}}), "channel must be one of"),
        (lambda: LoyaltyWorld(actions={"none": {}, "x": {"channel": "app", "interest": {"rain": 1}}}), "hangs on rain"),
        (lambda: LoyaltyWorld(logging={"none": {}}), "logging must score each"),
        (lambda: LoyaltyWorld(churn=1.5), r"churn must lie in \[0, 1\]"),
        (lambda: LoyaltyWorld(exploration=0.0), "exploration must be a number above 0"),
        (lambda: Simulation(LoyaltyWorld(), 0, 0), "at least one customer"),
        (lambda: Simulation(LoyaltyWorld(), 5, -1), "seed must be 0 or more"),
        (lambda: constant_policy(LoyaltyWorld(), "shout"), "must be one of none, newsletter"),
        (lambda: LoyaltyTruth(LoyaltyWorld(), 5, 0).expected(start_of_week(30), 7), "ends of its weeks"),
        (lambda: LoyaltyTruth(LoyaltyWorld(), 5, 0).expected(start_of_week(30) - 1, 10), "counts in weeks"),
    ],
)
def test_bad_parameters_are_named(make, said: str) -> None:
    with pytest.raises(InputError, match=said):
        make()


def test_it_writes_a_data_set_whose_decisions_are_the_worlds(tmp_path: Path, capsys) -> None:
    import yaml

    from constellation.commands.simulate import simulate
    from constellation.journeys.dataset import DataSet
    from constellation.journeys.decisions import DecisionRule
    from constellation.journeys.prepare import prepare
    from constellation.journeys.sources import SqlSource
    from constellation.journeys.windows import Windows
    from constellation.tracking import Run

    world = LoyaltyWorld(num_futures=4)
    with Run.start(tmp_path / "draw", "simulate") as run:
        drawn = simulate(run, world=world, num_customers=80, seed=1)
    assert "constellation train data=simulated" in capsys.readouterr().out
    for name in drawn.further:
        assert pl.read_parquet(tmp_path / "draw" / f"{name}.parquet").height > 0
    config = yaml.safe_load((tmp_path / "draw" / "simulated.yaml").read_text())

    def part(name: str) -> dict:
        return {key: value for key, value in config[name].items() if key != "_target_"}

    data = DataSet(
        name=config["name"],
        source=SqlSource(**part("source")),
        schema=drawn.schema,
        windows=Windows(**part("windows")),
        decisions=DecisionRule(**part("decisions")),
        observed_until=config["observed_until"],
        root=config["root"],
        cache=str(tmp_path / "cache"),
    )
    store = prepare(data)
    decisions = store.decisions
    assert decisions is not None and drawn.decisions is not None
    assert len(decisions) == drawn.decisions.height
    np.testing.assert_allclose(decisions.propensity_Q, drawn.decisions["propensity"])
    assert [decisions.actions[code] for code in decisions.action_Q] == drawn.decisions[ACTION].to_list()
    # The reward by the rule is the money of so many weeks, less this contact's cost.
    reward_weeks = round(data.decisions.reward_days / 7)
    running, money = Simulation(world, 80, 1), []
    for _ in range(world.num_weeks):
        week = running.step(running.logging())
        paid_R = np.zeros(160)
        paid_R[week.rows_C] = week.amount_C
        money.append(paid_R)
    paid_WR = np.stack(money)
    at_W = (decisions.time_Q - start_of_week(0)) // (7 * 86_400_000_000)
    row_Q = store.customer_id_C[decisions.journey_Q].astype(int) - 1
    expected = [paid_WR[w : w + reward_weeks, r].sum() for w, r in zip(at_W, row_Q, strict=True)]
    np.testing.assert_allclose(decisions.reward_Q, np.array(expected) - decisions.cost_Q, atol=1e-6)
    np.testing.assert_array_equal(decisions.matured_Q, at_W + reward_weeks <= world.num_weeks - 1)
