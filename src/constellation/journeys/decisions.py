"""Decisions: when a customer could be contacted, what was chosen, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from constellation.errors import InputError
from constellation.journeys.decision_checks import SEPARATOR, check_decisions, take_eligible
from constellation.journeys.decision_rewards import reward_by_expression
from constellation.schema import ACTION, CUSTOMER_ID, EVENT_TYPE
from constellation.zones import MICROSECONDS_PER_DAY

if TYPE_CHECKING:
    import polars as pl

    from constellation.journeys.store import Store

NONE = "none"
"""The action of a decision not to contact."""

DECISION_TIME = "decision_time"
DEFAULT = "default"
"""In ``propensity`` by action: all actions that are not named."""
TABLE_COLUMNS = (ACTION, "propensity", "eligible", "cost", "reward", "matured")


@dataclass
class Decisions:
    """One row per decision, by journey and time. None of its columns but the past is ever an input of an encoder.

    journey_Q: row of the customer in the store. time_Q: microseconds UTC. last_event_Q: store index of the event
    ordered just before the decision, -1 for none. action_Q: codes int32 of ``actions`` (entry 0 is missing).
    propensity_Q: probability of the chosen action under the logging policy, NaN where unknown. eligible_Q: whether the
    customer could have been contacted. cost_Q: in units of the currency. reward_Q: what came after, less the cost.
    matured_Q: False where the reward window ends after the data do; the reward is then what was seen so far.
    choices_Q: codes int32 of ``choice_sets``, the actions that could be chosen, joined by ``|``; code 0 is all of them.
    """

    journey_Q: np.ndarray
    time_Q: np.ndarray
    last_event_Q: np.ndarray
    action_Q: np.ndarray
    actions: list[str | None]
    propensity_Q: np.ndarray
    eligible_Q: np.ndarray
    cost_Q: np.ndarray
    reward_Q: np.ndarray
    matured_Q: np.ndarray
    choices_Q: np.ndarray | None = None
    choice_sets: list[str | None] = field(default_factory=lambda: [None])

    def __post_init__(self) -> None:
        if self.choices_Q is None:
            self.choices_Q = np.zeros(len(self.journey_Q), dtype=np.int32)

    def eligible_QA(self) -> np.ndarray:
        """Whether each action could be chosen, bool [Q, A] over ``actions[1:]``; only ``none`` where not eligible."""
        names = self.actions[1:]
        sets = [
            np.ones(len(names), dtype=bool)
            if given is None
            else np.array([name in given.split(SEPARATOR) for name in names], dtype=bool)
            for given in self.choice_sets
        ]
        assert self.choices_Q is not None
        possible_QA = np.stack(sets)[self.choices_Q] if names else np.ones((len(self), 0), dtype=bool)
        only_none_A = np.array([name == NONE for name in names], dtype=bool)
        return np.where(self.eligible_Q[:, None], possible_QA, only_none_A)

    def __len__(self) -> int:
        return len(self.journey_Q)

    def to_frame(self, store: Store) -> pl.DataFrame:
        """As a table with ``customer_id``, ``decision_time``, ``action`` and the rest under their plain names."""
        import polars as pl

        times = pl.Series(self.time_Q)
        return pl.DataFrame(
            {
                CUSTOMER_ID: store.customer_id_C[self.journey_Q],
                DECISION_TIME: times.cast(pl.Datetime("us", "UTC")) if store.schema.clock == "time" else times,
                "last_event": self.last_event_Q,
                ACTION: pl.Series(self.actions, dtype=pl.String).gather(self.action_Q),
                "propensity": self.propensity_Q,
                "eligible": self.eligible_Q,
                "cost": self.cost_Q,
                "reward": self.reward_Q,
                "matured": self.matured_Q,
            }
        )


@dataclass(frozen=True)
class DecisionRule:
    """How decisions are read off the data.

    kind: ``events``: each event of ``types`` is a decision at its own time, its ``action`` the chosen one (its type,
    where the column is missing). ``grid``: every ``every_days`` back from the end of the data, each customer with an
    event so far; the action is that of the first event of ``types`` in the period that begins, or ``none``.
    ``table``: the source's own table of decisions (``customer_id, decision_time, action`` and, as known, ``propensity,
    eligible, cost, reward, matured``). ``eligible`` is true or false, or the list of actions that could be chosen.
    reward: of the events ordered after the decision, up to and including ``decision_time + reward_days``: ``amount``
    (net money), ``purchases`` (their number), ``response`` (1 where any is a purchase), or an SQL expression that
    aggregates them (``sum(amount) - sum(reward_paid)``; see ``decision_rewards``). A reward column of a table is taken
    as it is, and has matured where it is not missing.
    cost: of every action, or by action (others 0; ``none`` costs nothing); taken off the reward.
    propensity: probability of each action under the logging policy, where it does not hang on the customer: one number
    for all, or by action with ``default`` for those not named. A propensity column of a table goes first.
    action_features: what describes an action, by action: numbers and names, the same keys for each. A model with action
    features can score an action that it has not seen.
    """

    kind: str = "events"
    types: tuple[str, ...] = ()
    every_days: int | None = None
    reward_days: float = 30
    reward: str = "amount"
    cost: float | Mapping[str, float] = 0.0
    propensity: float | Mapping[str, float] | None = None
    action_features: Mapping[str, Mapping[str, Any]] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "types", tuple(self.types))
        if self.kind not in ("events", "grid", "table"):
            raise InputError(f"decisions.kind must be events, grid or table, found {self.kind!r}.")
        if self.kind != "table" and not self.types:
            raise InputError(f"decisions.kind={self.kind} needs decisions.types: the event types that are contacts.")
        if self.kind == "grid" and (self.every_days is None or self.every_days < 1):
            raise InputError(f"decisions.kind=grid needs every_days of at least 1, found {self.every_days}.")
        given = self.propensity
        for value in [] if given is None else (given.values() if isinstance(given, Mapping) else [given]):
            if not 0 < float(value) <= 1:
                raise InputError(f"decisions.propensity must lie in (0, 1], found {value}.")
        if self.action_features is not None:
            keys = {tuple(sorted(features)) for features in self.action_features.values()}
            if len(keys) > 1:
                raise InputError(
                    "decisions.action_features must have the same keys for every action, found "
                    f"{'; '.join(', '.join(each) for each in sorted(keys))}."
                )
        if self.reward_days <= 0:
            raise InputError(f"decisions.reward_days must be positive, found {self.reward_days}.")

    def derive(self, store: Store, table: pl.DataFrame | None = None) -> Decisions:
        """The decisions of a store; ``table`` is the source's, for kind ``table``. Vectorised, in memory.

        Raises InputError for a propensity outside (0, 1], a chosen action that was not eligible, and a decision that
        lies after the data end.
        """
        decisions = self._derive(store, table)
        self._fill_propensity(decisions)
        check_decisions(decisions, store)
        return decisions

    def logging_QA(self, decisions: Decisions) -> np.ndarray | None:
        """Probability of every action [Q, A] over ``actions[1:]``; None where only the chosen one's is known."""
        if self.propensity is None:
            return None
        names = decisions.actions[1:]
        chance_A = np.array([self._propensity(name) for name in names])
        eligible_QA = decisions.eligible_QA()
        chance_QA = np.where(eligible_QA, chance_A, 0.0)
        # What could not be chosen left its share to the others.
        chance_QA = chance_QA / np.maximum(chance_QA.sum(axis=1, keepdims=True), 1e-300)
        total = float(chance_A.sum())
        if not 0.999 < total < 1.001:
            raise InputError(
                f"decisions.propensity adds up to {total:.4f} over the actions {', '.join(map(str, names))}; "
                "the probabilities of all actions add up to 1."
            )
        return chance_QA

    def _propensity(self, action: str | None) -> float:
        if isinstance(self.propensity, Mapping):
            found = self.propensity.get(str(action), self.propensity.get(DEFAULT))
            if found is None:
                raise InputError(f"decisions.propensity names neither {action!r} nor {DEFAULT}.")
            return float(found)
        assert self.propensity is not None
        return float(self.propensity)

    def _fill_propensity(self, decisions: Decisions) -> None:
        missing_Q = np.isnan(decisions.propensity_Q) & (decisions.action_Q > 0)
        if self.propensity is None or not missing_Q.any():
            return
        chance_QA = self.logging_QA(decisions)
        assert chance_QA is not None
        rows = np.flatnonzero(missing_Q)
        given_Q = decisions.propensity_Q.copy()
        given_Q[rows] = chance_QA[rows, decisions.action_Q[rows] - 1]
        decisions.propensity_Q = given_Q

    def _derive(self, store: Store, table: pl.DataFrame | None) -> Decisions:
        if self.kind == "table":
            if table is None:
                raise InputError("decisions.kind=table needs a table: give the source decisions_sql.")
            return self._from_table(store, table)
        known = store.dictionaries[EVENT_TYPE]
        missing = [name for name in self.types if name not in known]
        if missing:
            raise InputError(
                f"decisions.types names {', '.join(missing)}, which no event has. "
                f"Event types of the data: {', '.join(str(name) for name in known[1:])}."
            )
        contacts = np.flatnonzero(np.isin(store.categorical[EVENT_TYPE], [known.index(name) for name in self.types]))
        return self._from_events(store, contacts) if self.kind == "events" else self._from_grid(store, contacts)

    def _from_events(self, store: Store, contacts: np.ndarray) -> Decisions:
        journey_Q = _journeys(store, contacts)
        last_event_Q = np.where(contacts > store.first_event_C[journey_Q], contacts - 1, -1)
        action_Q, actions = self._chosen(store, contacts)
        return self._finish(store, journey_Q, store.time_N[contacts], last_event_Q, contacts + 1, action_Q, actions)

    def _from_grid(self, store: Store, contacts: np.ndarray) -> Decisions:
        assert self.every_days is not None
        step = self.every_days * MICROSECONDS_PER_DAY
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
        chosen_Q = contacts[np.minimum(place_Q, len(contacts) - 1)]
        period_end_Q = store.last_event(journey_Q, time_Q + step)
        sent_Q = (place_Q < len(contacts)) & (chosen_Q <= period_end_Q)
        codes, actions = self._chosen(store, contacts)
        action_Q = np.full(len(journey_Q), actions.index(NONE) if NONE in actions else len(actions), dtype=np.int32)
        if NONE not in actions:
            actions = [*actions, NONE]
        action_Q[sent_Q] = codes[place_Q[sent_Q]]
        return self._finish(store, journey_Q, time_Q, last_event_Q, last_event_Q + 1, action_Q, actions)

    def _chosen(self, store: Store, contacts: np.ndarray) -> tuple[np.ndarray, list[str | None]]:
        """Codes of the action of each contact, its event type where it names none, and their dictionary."""
        types = store.dictionaries[EVENT_TYPE]
        type_Q = store.categorical[EVENT_TYPE][contacts]
        if ACTION not in store.categorical:
            return type_Q.astype(np.int32), list(types)
        actions = list(store.dictionaries[ACTION])
        for name in self.types:
            if name not in actions:
                actions.append(name)
        of_type = np.array([actions.index(name) if name in actions else 0 for name in types], dtype=np.int32)
        action_Q = store.categorical[ACTION][contacts]
        return np.where(action_Q == 0, of_type[type_Q], action_Q).astype(np.int32), actions

    def _from_table(self, store: Store, table: pl.DataFrame) -> Decisions:
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
        decisions = self._finish(
            store, journey_Q, time_Q, last_event_Q, start_Q, coder.rank(encoded)[ACTION].to_numpy(), actions,
            cost_Q=_column(table, "cost"),
        )  # fmt: skip
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
        return decisions

    def _finish(
        self,
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
        if store.schema.clock == "order":
            end_time_Q = time_Q + int(self.reward_days)  # ranks: so many steps
        else:
            end_time_Q = time_Q + round(self.reward_days * MICROSECONDS_PER_DAY)
        last_Q = store.last_event(journey_Q, end_time_Q)
        end_Q = np.maximum(last_Q + 1, start_Q)
        if self.reward == "amount":
            gained_Q = (store.amount_sum_N[end_Q] - store.amount_sum_N[start_Q]) / 1e6
        elif self.reward in ("purchases", "response"):
            gained_Q = (store.purchase_sum_N[end_Q] - store.purchase_sum_N[start_Q]).astype(np.float64)
            if self.reward == "response":
                gained_Q = np.minimum(gained_Q, 1.0)
        else:
            gained_Q = reward_by_expression(store, self.reward, start_Q, end_Q, time_Q)
        if cost_Q is None:
            cost_Q = np.array([self._cost(name) for name in actions])[action_Q]
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

    def _cost(self, action: str | None) -> float:
        if action is None or action == NONE:
            return 0.0
        return float(self.cost.get(action, 0.0)) if isinstance(self.cost, Mapping) else float(self.cost)


def clean_decisions(table: pl.DataFrame | None, schema: Any) -> pl.DataFrame | None:
    """The source's table of decisions with ids and times in the form of the store. Raises InputError."""
    from constellation.journeys.tables import identifiers
    from constellation.schema import numbers, times

    if table is None:
        return None
    missing = [name for name in (CUSTOMER_ID, DECISION_TIME, ACTION) if name not in table.columns]
    if missing:
        raise InputError(f"The table of decisions lacks {', '.join(missing)}; it has {', '.join(table.columns)}.")
    moments = times(table[DECISION_TIME], schema)
    if moments.null_count():
        raise InputError(f"{moments.null_count():,} decisions have no valid {DECISION_TIME}. Mend decisions_sql.")
    columns = [identifiers(table[CUSTOMER_ID], "the table of decisions"), moments]
    for name in TABLE_COLUMNS:
        if name in table.columns:
            columns.append(numbers(table[name]) if name in ("propensity", "cost", "reward") else table[name])
    import polars as pl

    return pl.DataFrame(columns)


def _column(table: pl.DataFrame, name: str) -> np.ndarray | None:
    if name not in table.columns:
        return None
    return table[name].fill_null(0.0 if name == "cost" else float("nan")).to_numpy()


def _journeys(store: Store, events: np.ndarray) -> np.ndarray:
    """Row of the customer of each event."""
    return np.searchsorted(store.first_event_C, events, side="right").astype(np.int64) - 1
