"""A plan in tables and words: who gets what and why, where options are lost, what one more of each limit is worth."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from constellation.allocation.contacts import touched_by
from constellation.allocation.exact import Program
from constellation.allocation.plan import Plan, values_of
from constellation.allocation.problem import NOTHING
from constellation.journeys.decisions import NONE
from constellation.schema import ACTION, CHANNEL, CUSTOMER_ID
from constellation.zones import MICROSECONDS_PER_DAY

if TYPE_CHECKING:
    import polars as pl

STAGES = ("offered", "eligible", "suitable", "within_caps", "arbitrated", "chosen")
"""Offered in the predictions; eligible; worth more than none; left by caps and cool-downs; worth more than none at the
shadow prices; chosen."""

CURVE_CUSTOMERS = 2_000
CURVE_SHARES = (0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)


def wishes(plan: Plan) -> np.ndarray:
    """What each customer would get without caps, budget and capacity: the best eligible engagement, -1 for none."""
    wish_C = np.empty(len(plan.offers), dtype=np.int16)
    for part, gain in _eligible_gains(plan):
        wish_C[part] = np.where(gain.max(axis=1) > 0, gain.argmax(axis=1), NOTHING)
    return wish_C


def _eligible_gains(plan: Plan) -> Iterator[tuple[slice, np.ndarray]]:
    """Gains over none [n, A] by chunk, -inf where not eligible; caps do not count."""
    contact_CA, none_C = values_of(plan.offers, plan.utility)
    for part in plan.problem.chunks():
        gain = contact_CA[part] - none_C[part, None]
        yield part, np.where(plan.offers.eligible_CA[part], gain, -np.inf)


def _by_action(flag_CO: np.ndarray, num_actions: int) -> np.ndarray:
    """Whether any time window of an engagement is set: bool [n, A]."""
    return np.asarray(flag_CO.reshape(len(flag_CO), -1, num_actions).any(axis=1))


def funnel(plan: Plan) -> tuple[pl.DataFrame, np.ndarray]:
    """Engagements left at each stage, in all and by action; and the number left to each customer within caps [C].

    Of the customers that do not explore. ``num_options``: pairs of customer and engagement; ``num_customers``:
    customers with at least one.
    """
    import polars as pl

    offers, num_actions = plan.offers, plan.num_actions
    options_SA = np.zeros((len(STAGES), num_actions), dtype=np.int64)
    customers_S = np.zeros(len(STAGES), dtype=np.int64)
    left_C = np.empty(len(offers), dtype=np.int16)
    planned_C = np.ones(len(offers), dtype=bool)
    if plan.exploration is not None:
        planned_C = ~plan.exploration.is_explorer_C
    action_C = plan.action_of(plan.choice_C)
    for part, gain in _eligible_gains(plan):
        suitable = gain > 0
        within = suitable & _by_action(np.isfinite(plan.problem.gain_CO[part]), num_actions)
        worth = within & _by_action(plan.solution.prices.reduced(plan.problem, part) >= -1e-6, num_actions)
        chosen = action_C[part, None] == np.arange(num_actions)
        left_C[part] = within.sum(axis=1)
        offered = np.isfinite(offers.expected_CA[part])
        for stage, flag in enumerate((offered, offers.eligible_CA[part], suitable, within, worth, chosen)):
            flag = flag & planned_C[part, None]
            options_SA[stage] += flag.sum(axis=0)
            customers_S[stage] += int(flag.any(axis=1).sum())
    names = _names(plan)
    frame = pl.DataFrame(
        {
            "stage": [stage for stage in STAGES for _ in range(num_actions + 1)],
            ACTION: ["all", *names] * len(STAGES),
            "num_options": np.concatenate([options_SA.sum(axis=1, keepdims=True), options_SA], axis=1).ravel(),
            "num_customers": np.concatenate([customers_S[:, None], options_SA], axis=1).ravel(),
        }
    )
    return frame, left_C


def optionality(left_C: np.ndarray) -> pl.DataFrame:
    """How many customers have how many engagements left that are worth more than none, within caps."""
    import polars as pl

    counts = np.bincount(left_C)
    return pl.DataFrame(
        {"num_actions_left": np.arange(len(counts)), "num_customers": counts, "share": counts / len(left_C)}
    )


def shadow_prices(plan: Plan) -> pl.DataFrame:
    """Each shared limit: what it is, what is used of it, what one more is worth, and that in words."""
    import polars as pl

    problem, prices, used = plan.problem, plan.solution.prices, plan.used
    rows: list[tuple[str, float, float, float, str]] = []
    if np.isfinite(problem.budget):
        words = _worth("One more unit of budget", prices.budget)
        rows.append(("budget", problem.budget, used.cost, prices.budget, words))
    for row, name in enumerate(plan.row_names):
        channel, _, window = name.partition("/")
        where = f" in window {window}" if window else ""
        price, uses = float(prices.row_R[row]), float(used.uses_R[row])
        if np.isfinite(problem.high_R[row]):
            words = _worth(f"Room for one more {channel}{where}", max(price, 0.0))
            rows.append((f"capacity/{name}", float(problem.high_R[row]), uses, max(price, 0.0), words))
        if problem.low_R[row] > 0:
            words = _worth(f"One {channel} less to be committed to{where}", max(-price, 0.0))
            rows.append((f"min_use/{name}", float(problem.low_R[row]), uses, max(-price, 0.0) + 0.0, words))
    if problem.gap is not None:
        rate_G = used.contacts_G / np.maximum(problem.size_G, 1)
        worth = float(np.maximum(prices.group_G * problem.size_G, 0).sum()) / 100
        words = _worth("One percentage point more between groups", worth)
        rows.append(("max_gap", problem.gap, float(np.ptp(rate_G[problem.size_G > 0])), worth, words))
    schema = {"limit": pl.String, "allowed": pl.Float64, "used": pl.Float64, "price": pl.Float64, "words": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _worth(what: str, price: float) -> str:
    return f"{what} is worth {price:,.4g}." if price > 1e-9 else f"{what} is worth nothing: the limit does not bind."


def plan_table(plan: Plan, left_C: np.ndarray) -> pl.DataFrame:
    """One row per customer: what, through which channel, when, what it should bring, and why."""
    import polars as pl

    offers, choice_C = plan.offers, plan.choice_C
    action_C, window_C = plan.action_of(choice_C), plan.window_of(choice_C)
    wish_C = wishes(plan)
    columns = {
        CUSTOMER_ID: pl.Series(offers.customer_id_C),
        ACTION: _coded([*offers.action, NONE], action_C),
        CHANNEL: _coded([*offers.channel, None], action_C),
        "time_window": pl.Series(window_C, dtype=pl.Int16).replace(NOTHING, None),
    }
    if plan.start is not None:
        length = round(plan.constraints.window_days * MICROSECONDS_PER_DAY)
        moments = pl.Series(plan.start + window_C.astype(np.int64) * length).cast(pl.Datetime("us", "UTC"))
        columns["window_start"] = pl.select(pl.when(pl.Series(window_C >= 0)).then(moments)).to_series()
    columns |= {
        name: pl.Series(plan.value_of(choice_C, name).astype(np.float32)).fill_nan(None)
        for name in ("expected", "lower")
    }
    columns |= {
        "propensity": pl.Series(plan.propensity_C),
        "explored": pl.Series(plan.exploration.is_explorer_C if plan.exploration else np.zeros(len(offers), bool)),
        "action_without_limits": _coded([*offers.action, NONE], wish_C),
        "expected_without_limits": pl.Series(plan.value_of(wish_C, "expected").astype(np.float32)),
        "num_actions_left": pl.Series(left_C),
        "reason": _reasons(plan, wish_C, left_C),
    }
    return pl.DataFrame(columns)


def _coded(names: list[str | None], code_C: np.ndarray) -> pl.Series:
    """Names by code as text that is stored once each; -1 is the last name."""
    import polars as pl

    known = sorted({name for name in names if name is not None})
    return pl.Series(names, dtype=pl.Enum(known)).gather(np.where(code_C < 0, len(names) - 1, code_C))


def _reasons(plan: Plan, wish_C: np.ndarray, left_C: np.ndarray) -> pl.Series:
    """Why each customer gets what they get; as many texts as there are cases, not customers."""
    import polars as pl

    offers, action_C = plan.offers, plan.action_of(plan.choice_C)
    at = np.arange(len(offers))
    explored_C = plan.exploration.is_explorer_C if plan.exploration else np.zeros(len(offers), bool)
    wish_open_C = np.ones(len(offers), dtype=bool)
    gain_C = np.zeros(len(offers), dtype=np.float32)
    for part in plan.problem.chunks():
        is_open = _by_action(np.isfinite(plan.problem.gain_CO[part]), plan.num_actions)
        wish_open_C[part] = is_open[at[: len(is_open)], np.maximum(wish_C[part], 0)]
        choice = plan.choice_C[part]
        gain = plan.problem.gain_CO[part][at[: len(is_open)], np.maximum(choice, 0)]
        gain_C[part] = np.where(choice == NOTHING, 0, gain)
    cases = [
        explored_C,
        (action_C != NOTHING) & (gain_C <= 0),
        (action_C != NOTHING) & (action_C == wish_C),
        (action_C != NOTHING) & ~wish_open_C,
        action_C != NOTHING,
        ~offers.eligible_CA.any(axis=1),
        wish_C == NOTHING,
        left_C == 0,
        ~wish_open_C,
    ]
    case_C = np.select(cases, np.arange(len(cases)), len(cases))
    limit_C = _dearest_limit(plan, np.maximum(wish_C, 0))
    rule_C = np.where(np.isin(case_C, (3, 7, 8)), _closing_rule(plan, np.maximum(wish_C, 0)), -1)
    # Only what the case's words name may tell texts apart.
    wish_C = np.where(np.isin(case_C, (3, 4, 8, 9)), wish_C, 0)
    limit_C = np.where(np.isin(case_C, (4, 9)), limit_C, 0)
    key_C = ((case_C * 1024 + wish_C) * 256 + rule_C + 1) * 4 + limit_C
    keys, code_C = np.unique(key_C, return_inverse=True)
    texts = []
    for key in keys:
        rest, limit = divmod(int(key), 4)
        rest, rule = divmod(rest, 256)
        case, wish = divmod(rest, 1024)
        texts.append(_reason(plan, case, wish, rule - 1, limit))
    names = sorted(set(texts))
    return pl.Series(texts, dtype=pl.Enum(names)).gather(code_C)


def _reason(plan: Plan, case: int, wish: int, rule: int, limit: int) -> str:
    constraints = plan.constraints
    name = _names(plan)[wish]
    forbids = constraints.rules[rule].words() if rule >= 0 else ""
    channel = plan.offers.channel[wish]
    elsewhere = (
        "all limits are full with as good",
        "the budget is worth more elsewhere",
        f"the capacity of {channel} is worth more elsewhere",
        "the gap between groups would be passed",
    )[limit]
    return (
        "drawn at random, to learn",
        "taken although none is worth more, to keep a minimum use or the gap between groups",
        "worth most of all eligible actions",
        f"{name} would be worth more, but is closed: {forbids}",
        f"{name} would be worth more, but {elsewhere}",
        "none: no action is eligible",
        "none: no eligible action is worth more",
        f"none: all that would be worth more is closed: {forbids}",
        f"none: {name} is closed: {forbids}; for what is left the limits are worth more elsewhere",
        f"none: {name} would be worth more, but {elsewhere}",
    )[case]


def _closing_rule(plan: Plan, wish_C: np.ndarray) -> np.ndarray:
    """The first cap or cool-down that closes an engagement in every window, -1 for none."""
    found_C = np.full(len(wish_C), -1)
    for place, rule in reversed(list(enumerate(plan.constraints.rules))):
        is_full_C = (plan.rules_C >> np.uint64(place)) & np.uint64(1) == 1
        found_C[is_full_C & touched_by(rule, plan.offers.action, plan.offers.channel)[wish_C]] = place
    return found_C


def _dearest_limit(plan: Plan, wish_C: np.ndarray) -> np.ndarray:
    """Which limit asks most for an engagement: 0 nothing, 1 the budget, 2 capacity, 3 the gap between groups."""
    problem, prices = plan.problem, plan.solution.prices
    budget_C = prices.budget * problem.cost_of(np.arange(len(wish_C)), wish_C.astype(np.int64))
    toll_O = np.where(problem.row_O >= 0, np.append(prices.row_R, 0.0)[problem.row_O], 0.0)
    capacity_C = toll_O.reshape(-1, plan.num_actions).min(axis=0)[wish_C]  # in its cheapest window
    group_C = np.zeros(len(wish_C))
    if problem.group_C is not None:
        group_C = prices.group_G[problem.group_C]
    return np.stack([np.full(len(wish_C), 1e-9), budget_C, capacity_C, group_C]).argmax(axis=0)


def _names(plan: Plan) -> list[str]:
    """Engagements by name, with the channel where an action has several."""
    pairs = list(zip(plan.offers.action, plan.offers.channel, strict=True))
    return [f"{action} by {channel}" if plan.offers.action.count(action) > 1 else action for action, channel in pairs]


def budget_curve(plan: Plan, seed: int = 0) -> pl.DataFrame | None:
    """Gain over none against budget, all other limits as they are: the linear program over a sample, scaled up.

    ``budget, gain, price`` (gain of one more unit there). None where nothing costs anything.
    """
    import dataclasses

    import polars as pl

    problem = plan.problem
    spent = plan.used.cost
    reference = problem.budget if np.isfinite(problem.budget) else spent
    if reference <= 0:
        return None
    num = min(len(problem), CURVE_CUSTOMERS)
    share = num / len(problem)
    sample = problem.take(np.sort(np.random.default_rng(seed).choice(len(problem), num, replace=False)))
    rows = []
    for fraction in CURVE_SHARES:
        budget = fraction * reference
        scaled = dataclasses.replace(
            sample,
            budget=budget * share,
            high_R=problem.high_R * share,
            low_R=np.floor(problem.low_R * share),
            size_G=problem.size_G * share,
        )
        found = Program(scaled, whole_limits=False).linear()
        if found is not None:
            rows.append((budget, found.value / share, found.prices.budget))
    return pl.DataFrame(rows, schema={"budget": pl.Float64, "gain": pl.Float64, "price": pl.Float64}, orient="row")


def next_contacts(plan: Plan, table: pl.DataFrame) -> pl.DataFrame | None:
    """The planned contacts as rows of a contacts table, to be appended to it before the next plan."""
    import polars as pl

    from constellation.schema import EVENT_TIME

    if plan.start is None:
        return None
    chosen = table.filter(pl.col(ACTION).cast(pl.String) != NONE)
    return chosen.select(
        CUSTOMER_ID,
        pl.col("window_start").alias(EVENT_TIME),
        pl.col(ACTION).cast(pl.String),
        pl.col(CHANNEL).cast(pl.String),
    )
