"""Decisions: when a customer could be contacted, what was chosen, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from constellation.errors import InputError
from constellation.journeys.decision_checks import SEPARATOR, check_decisions
from constellation.schema import ACTION, CUSTOMER_ID

if TYPE_CHECKING:
    import polars as pl

    from constellation.journeys.store import Store

NONE = "none"
"""The action of a decision not to contact."""

DECISION_TIME = "decision_time"
DEFAULT = "default"
"""In ``propensity`` by action: all actions that are not named."""
TABLE_COLUMNS = (ACTION, "propensity", "eligible", "cost", "reward", "matured")
CHANCE, CONTEXT = "propensity_", "context_"
"""Columns of a table of decisions: the probability of each action (``propensity_mail``), and numbers that whoever
decided had before them (``context_visits``)."""


@dataclass
class Decisions:
    """One row per decision, by journey and time. None of its columns but the past is ever an input of an encoder.

    journey_Q: row of the customer in the store. time_Q: microseconds UTC. last_event_Q: store index of the event
    ordered just before the decision, -1 for none. action_Q: codes int32 of ``actions`` (entry 0 is missing).
    propensity_Q: probability of the chosen action under the logging policy, NaN where unknown. eligible_Q: whether the
    customer could have been contacted. cost_Q: in units of the currency. reward_Q: what came after, less the cost.
    matured_Q: False where the reward window ends after the data do; the reward is then what was seen so far.
    choices_Q: codes int32 of ``choice_sets``, the actions that could be chosen, joined by ``|``; code 0 is all of them.
    propensity_QA: of every action over ``actions[1:]``, where a table gives them all. context_QX: float32, what a table
    says was known at the decision, by ``context_names``; None without such columns.
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
    propensity_QA: np.ndarray | None = None
    context_QX: np.ndarray | None = None
    context_names: tuple[str, ...] = ()

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
    eligible, cost, reward, matured``). ``eligible`` is true or false, or the list of actions that could be chosen;
    ``propensity_<action>`` of every action and ``context_<anything>``, a number known at the decision, are read too.
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
        from constellation.journeys.decision_derivation import derived

        decisions = derived(self, store, table)
        self._fill_propensity(decisions)
        check_decisions(decisions, store)
        return decisions

    def logging_QA(self, decisions: Decisions) -> np.ndarray | None:
        """Probability of every action [Q, A] over ``actions[1:]``; None where only the chosen one's is known."""
        if self.propensity is None:
            return None
        names = decisions.actions[1:]
        chance_A = np.array([self.chance_of(name) for name in names])
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

    def chance_of(self, action: str | None) -> float:
        """Probability of one action under the logging policy, where all can be chosen."""
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

    def cost_of(self, action: str | None) -> float:
        """Of one action, in units of the currency."""
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

    columns += [numbers(table[name]) for name in table.columns if name.startswith((CHANCE, CONTEXT))]
    return pl.DataFrame(columns)
