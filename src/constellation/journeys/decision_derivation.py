"""From the data to decisions: contacts among the events, a grid of dates, or a table of the source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from constellation.errors import InputError
from constellation.journeys.decision_checks import take_chances, take_eligible
from constellation.journeys.decision_rewards import reward_by_expression
from constellation.journeys.decisions import CONTEXT, DECISION_TIME, NONE, TABLE_COLUMNS, DecisionRule, Decisions
from constellation.schema import ACTION, CUSTOMER_ID, EVENT_TYPE
from constellation.zones import MICROSECONDS_PER_DAY

if TYPE_CHECKING:
    import polars as pl

    from constellation.journeys.store import Store


def derived(
    rule: DecisionRule, store: Store, table: pl.DataFrame | None = None, *, may_lack: bool = False
) -> Decisions:
    """The decisions of a store as they are found, before propensities are filled in and anything is checked.

    may_lack: a store in which a type of the rule did not occur is no mistake, as when few customers are scored.
    """
    if rule.kind == "table":
        if table is None:
            raise InputError("decisions.kind=table needs a table: give the source decisions_sql.")
        return _from_table(rule, store, table)
    known = store.dictionaries[EVENT_TYPE]
    missing = [name for name in rule.types if name not in known]
    if missing and not may_lack:
        raise InputError(
            f"decisions.types names {', '.join(missing)}, which no event has. "
            f"Event types of the data: {', '.join(str(name) for name in known[1:])}."
        )
    codes = [known.index(name) for name in rule.types if name in known]
    contacts = np.flatnonzero(np.isin(store.categorical[EVENT_TYPE], codes))
    return _from_events(rule, store, contacts) if rule.kind == "events" else _from_grid(rule, store, contacts)


def _from_events(rule: DecisionRule, store: Store, contacts: np.ndarray) -> Decisions:
    journey_Q = _journeys(store, contacts)
    last_event_Q = np.where(contacts > store.first_event_C[journey_Q], contacts - 1, -1)
    action_Q, actions = _used(*_chosen(rule, store, contacts))
    return _finish(rule, store, journey_Q, store.time_N[contacts], last_event_Q, contacts + 1, action_Q, actions)


def _from_grid(rule: DecisionRule, store: Store, contacts: np.ndarray) -> Decisions:
    assert rule.every_days is not None
    step = rule.every_days * MICROSECONDS_PER_DAY
    end, first = store.manifest.observed_until, store.manifest.first_time
    times = np.arange(end - step, first - 1, -step, dtype=np.int64)[::-1]
    journeys = np.arange(store.num_customers, dtype=np.int64)
    # One date at a time keeps the memory at one row per customer until the rows are known to be wanted.
    parts = []
    for time in times:
        last = store.last_event(journeys, np.full(len(journeys), time))
        seen = np.flatnonzero(last >= 0)
        parts.append((seen, np.full(len(seen), time), last[seen]))
    nothing = np.empty(0, dtype=np.int64)
    journey_Q, time_Q, last_event_Q = (np.concatenate([nothing, *(part[i] for part in parts)]) for i in range(3))
    order = np.lexsort((time_Q, journey_Q))
    journey_Q, time_Q, last_event_Q = journey_Q[order], time_Q[order], last_event_Q[order]
    place_Q = np.searchsorted(contacts, last_event_Q + 1)
    next_Q = np.append(contacts, store.num_events)[place_Q]
    sent_Q = next_Q <= store.last_event(journey_Q, time_Q + step)
    codes, actions = _chosen(rule, store, contacts)
    action_Q = np.full(len(journey_Q), actions.index(NONE) if NONE in actions else len(actions), dtype=np.int32)
    if NONE not in actions:
        actions = [*actions, NONE]
    action_Q[sent_Q] = codes[place_Q[sent_Q]]
    action_Q, actions = _used(action_Q, actions)
    return _finish(rule, store, journey_Q, time_Q, last_event_Q, last_event_Q + 1, action_Q, actions)


def _chosen(rule: DecisionRule, store: Store, contacts: np.ndarray) -> tuple[np.ndarray, list[str | None]]:
    """Codes of the action of each contact, its event type where it names none, and their dictionary."""
    types = store.dictionaries[EVENT_TYPE]
    type_Q = store.categorical[EVENT_TYPE][contacts]
    if ACTION not in store.categorical:
        return type_Q.astype(np.int32), list(types)
    actions = list(store.dictionaries[ACTION])
    for name in rule.types:
        if name not in actions:
            actions.append(name)
    of_type = np.array([actions.index(name) if name in actions else 0 for name in types], dtype=np.int32)
    action_Q = store.categorical[ACTION][contacts]
    return np.where(action_Q == 0, of_type[type_Q], action_Q).astype(np.int32), actions


def _used(action_Q: np.ndarray, actions: list[str | None]) -> tuple[np.ndarray, list[str | None]]:
    """Only the actions that some decision chose, and ``none``: the other values of the column are no engagements."""
    count_A = np.bincount(action_Q, minlength=len(actions))
    kept = [code for code, name in enumerate(actions) if code == 0 or count_A[code] or name == NONE]
    place_A = np.zeros(len(actions), dtype=np.int32)
    place_A[kept] = np.arange(len(kept))
    return place_A[action_Q], [actions[code] for code in kept]


def _from_table(rule: DecisionRule, store: Store, table: pl.DataFrame) -> Decisions:
    import polars as pl

    from constellation.journeys.order import StorageCodes
    from constellation.schema import CATEGORICAL, texts

    ids = pl.Series(CUSTOMER_ID, store.customer_id_C, dtype=table[CUSTOMER_ID].dtype)
    table = table.with_columns(pl.Series("journey", np.arange(len(ids)))[ids.search_sorted(table[CUSTOMER_ID])])
    table = table.sort(["journey", DECISION_TIME, *(name for name in TABLE_COLUMNS if name in table.columns)])
    journey_Q, time_Q = table["journey"].to_numpy(), table[DECISION_TIME].to_numpy()
    last_event_Q = store.last_event(journey_Q, time_Q)
    coder = StorageCodes({ACTION: CATEGORICAL})
    encoded = coder.encode(texts(table[ACTION]).to_frame())
    actions = coder.dictionaries()[ACTION]
    start_Q = np.where(last_event_Q >= 0, last_event_Q + 1, store.first_event_C[journey_Q])
    action_Q = coder.rank(encoded)[ACTION].to_numpy()
    decisions = _finish(
        rule, store, journey_Q, time_Q, last_event_Q, start_Q, action_Q, actions, cost_Q=_column(table, "cost")
    )
    for name in ("propensity", "reward"):
        given_Q = _column(table, name)
        if given_Q is not None:
            setattr(decisions, f"{name}_Q", given_Q)
    if "reward" in table.columns:
        decisions.matured_Q = table["reward"].is_not_null().to_numpy()
    if "matured" in table.columns:
        decisions.matured_Q = table["matured"].cast(pl.Boolean).fill_null(False).to_numpy()
    if "eligible" in table.columns:
        take_eligible(decisions, table["eligible"])
    take_chances(decisions, table)
    known = [name for name in table.columns if name.startswith(CONTEXT)]
    if known:
        decisions.context_QX = table.select(pl.col(known).cast(pl.Float32).fill_null(float("nan"))).to_numpy()
        decisions.context_names = tuple(name.removeprefix(CONTEXT) for name in known)
    return decisions


def _finish(
    rule: DecisionRule,
    store: Store,
    journey_Q: np.ndarray,
    time_Q: np.ndarray,
    last_event_Q: np.ndarray,
    start_Q: np.ndarray,
    action_Q: np.ndarray,
    actions: Sequence[str | None],
    *,
    cost_Q: np.ndarray | None = None,
) -> Decisions:
    """Rewards from running sums over events ``start_Q`` up to the end of the reward window."""
    end_time_Q = window_end(rule, store, time_Q)
    last_Q = store.last_event(journey_Q, end_time_Q)
    gained_Q = gained(rule, store, start_Q, np.maximum(last_Q + 1, start_Q), time_Q)
    if cost_Q is None:
        cost_Q = np.array([rule.cost_of(name) for name in actions])[action_Q]
    return Decisions(
        journey_Q=journey_Q,
        time_Q=time_Q,
        last_event_Q=last_event_Q,
        action_Q=action_Q.astype(np.int32),
        actions=list(actions),
        propensity_Q=np.full(len(journey_Q), np.nan),
        eligible_Q=np.ones(len(journey_Q), dtype=bool),
        cost_Q=cost_Q,
        reward_Q=gained_Q - cost_Q,
        matured_Q=end_time_Q <= store.manifest.observed_until,
    )


def window_end(rule: DecisionRule, store: Store, time_Q: np.ndarray) -> np.ndarray:
    """Until when, inclusive, the events after decisions at ``time_Q`` count."""
    if store.schema.clock == "order":
        return time_Q + int(rule.reward_days)  # ranks: so many steps
    return time_Q + round(rule.reward_days * MICROSECONDS_PER_DAY)


def gained(rule: DecisionRule, store: Store, start_Q: np.ndarray, end_Q: np.ndarray, time_Q: np.ndarray) -> np.ndarray:
    """What the events ``start_Q : end_Q`` brought, by the rule, before costs."""
    if rule.reward == "amount":
        return np.asarray((store.amount_sum_N[end_Q] - store.amount_sum_N[start_Q]) / 1e6)
    if rule.reward in ("purchases", "response"):
        number_Q = (store.purchase_sum_N[end_Q] - store.purchase_sum_N[start_Q]).astype(np.float64)
        return np.minimum(number_Q, 1.0) if rule.reward == "response" else number_Q
    return reward_by_expression(store, rule.reward, start_Q, end_Q, time_Q)


def _column(table: pl.DataFrame, name: str) -> np.ndarray | None:
    if name not in table.columns:
        return None
    return table[name].fill_null(0.0 if name == "cost" else float("nan")).to_numpy()


def _journeys(store: Store, events: np.ndarray) -> np.ndarray:
    """Row of the customer of each event."""
    return np.searchsorted(store.first_event_C, events, side="right").astype(np.int64) - 1
