"""What is known at each decision, as a table: aggregates of the journey, attributes, and what was done before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from constellation.errors import InputError
from constellation.journeys.aggregates import Aggregates
from constellation.journeys.decisions import Decisions
from constellation.journeys.store import MICROSECONDS_PER_DAY, Store
from constellation.schema import EVENT_TYPE

MAX_CATEGORIES = 32
"""Attributes with more categories are one column of codes instead of one column each."""
WINDOWS_DAYS = (3, 7, 14, 30, 91, 365)


@dataclass(frozen=True)
class FeatureTable:
    """names: of the columns. values_QX: float64, NaN where undefined."""

    names: tuple[str, ...]
    values_QX: np.ndarray


@dataclass(frozen=True)
class FeatureRecipe:
    """Which columns there are, fixed on one store, so that another one is described by the same.

    aggregates: of events, None where there are none. numeric: attributes that are numbers. categories: the values of
    the others (None is missing), a column each, or, for those in ``coded``, a place in the list. past_actions: those
    whose past is counted; empty where nobody is decided about twice. context: what the table of decisions says was
    known, in columns of its own.
    """

    aggregates: Aggregates | None
    numeric: tuple[str, ...] = ()
    categories: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)
    coded: tuple[str, ...] = ()
    past_actions: tuple[str, ...] = ()
    context: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        store: Store,
        decisions: Decisions,
        windows_days: tuple[int, ...] = WINDOWS_DAYS,
        *,
        context_alone: bool = False,
    ) -> FeatureRecipe:
        """Nothing is learned from what came of the decisions, so there is nothing to leak between folds.

        context_alone: the context that the decisions came with, nothing else. Raises InputError where they have none.
        """
        if context_alone:
            if not decisions.context_names:
                raise InputError("The decisions have no columns context_..., so there is no context to read alone.")
            return cls(None, context=decisions.context_names)
        aggregates = None
        if store.num_events:
            types = [str(name) for name in store.dictionaries.get(EVENT_TYPE, [None])[1:]]
            span_days = (store.manifest.last_time - store.manifest.first_time) / MICROSECONDS_PER_DAY
            aggregates = Aggregates.fit(store, windows_days, span_days, types)
        categories: dict[str, tuple[str | None, ...]] = {}
        coded = []
        for name, codes_C in store.attributes_categorical.items():
            known = tuple(store.dictionaries[f"attributes.{name}"])
            categories[name] = known
            if len(known) > MAX_CATEGORIES:
                coded.append(name)
            elif not (codes_C == 0).any():
                categories[name] = known[1:]
        again = len(np.unique(decisions.journey_Q)) < len(decisions)
        past = tuple(map(str, decisions.actions[1:])) if again and len(decisions.actions) - 1 <= MAX_CATEGORIES else ()
        numeric = tuple(store.attributes_numeric)
        return cls(aggregates, numeric, categories, tuple(coded), past, decisions.context_names)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FeatureRecipe:
        return cls(
            None if data["aggregates"] is None else Aggregates.from_json(data["aggregates"]),
            tuple(data["numeric"]),
            {name: tuple(values) for name, values in data["categories"].items()},
            tuple(data["coded"]),
            tuple(data["past_actions"]),
            tuple(data.get("context", ())),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "aggregates": None if self.aggregates is None else self.aggregates.to_json(),
            "numeric": list(self.numeric),
            "categories": {name: list(values) for name, values in self.categories.items()},
            "coded": list(self.coded),
            "past_actions": list(self.past_actions),
            "context": list(self.context),
        }

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the attributes that are read."""
        return (*self.numeric, *self.categories)

    def compute(self, store: Store, decisions: Decisions) -> FeatureTable:
        """Features [Q, X] of every decision, from events up to its ``last_event`` and from decisions before it.

        Neither the decision's own action, propensity, eligibility and reward, nor anything ordered after it, is read.
        A column that the store knows nothing about is 0 where it counts or asks yes or no, else NaN.
        """
        journey_Q, num = decisions.journey_Q, len(decisions)
        columns: dict[str, np.ndarray] = {}
        if self.aggregates is not None:
            values_QF = self.aggregates.compute(store, journey_Q, decisions.time_Q, decisions.last_event_Q)
            columns |= {name: values_QF[:, place] for place, name in enumerate(self.aggregates.names)}
        for name in self.numeric:
            given_C = store.attributes_numeric.get(name)
            columns[name] = np.full(num, np.nan) if given_C is None else given_C[journey_Q]
        for name in self.categories:
            columns |= self._category(store, name, journey_Q)
        past = _past_actions(decisions) if self.past_actions else {}
        for action in self.past_actions:
            columns[f"past_{action}"] = past.get(f"past_{action}", np.zeros(num))
            columns[f"days_since_{action}"] = past.get(f"days_since_{action}", np.full(num, np.nan))
        columns |= self._context(decisions)
        if not columns:
            columns["nothing_known"] = np.zeros(num)
        values_QX = np.stack([np.asarray(column, dtype=np.float64) for column in columns.values()], axis=1)
        return FeatureTable(tuple(columns), values_QX)

    def _context(self, decisions: Decisions) -> dict[str, np.ndarray]:
        missing = [name for name in self.context if name not in decisions.context_names]
        if missing:
            raise InputError(
                f"The models read the columns {', '.join(f'context_{name}' for name in missing)} of the decisions, "
                "which these decisions do not have."
            )
        values_QX = decisions.context_QX
        return {
            f"context_{name}": values_QX[:, decisions.context_names.index(name)]  # type: ignore[index]
            for name in self.context
        }

    def _category(self, store: Store, name: str, journey_Q: np.ndarray) -> dict[str, np.ndarray]:
        here = list(store.dictionaries.get(f"attributes.{name}", [None]))
        codes_Q = store.attributes_categorical[name][journey_Q] if name in store.attributes_categorical else None
        codes_Q = np.zeros(len(journey_Q), dtype=np.int64) if codes_Q is None else codes_Q
        if name in self.coded:
            known = {value: place for place, value in enumerate(self.categories[name])}
            # A value that was not there is as good as missing.
            return {name: np.array([known.get(value, 0) for value in here], dtype=np.float64)[codes_Q]}
        columns = {}
        for value in self.categories[name]:
            code = here.index(value) if value in here else -1
            columns[f"{name}={'missing' if value is None else value}"] = (codes_Q == code).astype(np.float64)
        return columns


def decision_features(store: Store, decisions: Decisions, windows_days: tuple[int, ...] = WINDOWS_DAYS) -> FeatureTable:
    """Features [Q, X] of every decision of a store, by the recipe of that store."""
    return FeatureRecipe.of(store, decisions, windows_days).compute(store, decisions)


def _past_actions(decisions: Decisions) -> dict[str, np.ndarray]:
    """How often each action was chosen for the customer before, and days since the last decision of each."""
    num = len(decisions)
    order = np.lexsort((decisions.time_Q, decisions.journey_Q))
    journey_Q, time_Q = decisions.journey_Q[order], decisions.time_Q[order]
    first_Q = np.ones(num, dtype=bool)
    first_Q[1:] = journey_Q[1:] != journey_Q[:-1]
    if first_Q.all() or len(decisions.actions) - 1 > MAX_CATEGORIES:
        return {}
    begin_Q = np.maximum.accumulate(np.where(first_Q, np.arange(num), 0))
    # Decisions at one moment are one round: none of them is another's past.
    same_Q = np.zeros(num, dtype=bool)
    same_Q[1:] = ~first_Q[1:] & (time_Q[1:] == time_Q[:-1])
    round_Q = np.maximum.accumulate(np.where(same_Q, 0, np.arange(num)))
    columns = {}
    for code, action in enumerate(decisions.actions[1:], start=1):
        before_Q = np.concatenate([[0], (decisions.action_Q[order] == code).cumsum()])
        columns[f"past_{action}"] = (before_Q[round_Q] - before_Q[begin_Q]).astype(np.float64)
        last_Q = np.maximum.accumulate(
            np.concatenate([[-1], np.where(decisions.action_Q[order] == code, np.arange(num), -1)])
        )[round_Q]
        known_Q = last_Q >= begin_Q
        since_Q = (time_Q - time_Q[np.maximum(last_Q, 0)]) / MICROSECONDS_PER_DAY
        columns[f"days_since_{action}"] = np.where(known_Q, since_Q, np.nan)
    back = np.argsort(order, kind="stable")
    return {name: column[back] for name, column in columns.items()}


def action_features(
    actions: list[str], described: Mapping[str, Mapping[str, Any]] | None
) -> tuple[tuple[str, ...], np.ndarray]:
    """Names and numbers [A, Y] of what describes the actions: numbers as they are, names as 0/1 columns.

    An action without a description has NaN throughout. Without any description: no columns.
    """
    if not described:
        return (), np.zeros((len(actions), 0))
    keys = list(next(iter(described.values())))
    columns: dict[str, np.ndarray] = {}
    for key in keys:
        values = [described[action][key] if action in described else None for action in actions]
        if all(value is None or isinstance(value, int | float) for value in values):
            columns[key] = np.array([np.nan if value is None else float(value) for value in values])
        else:
            for name in sorted({str(features[key]) for features in described.values()}):
                columns[f"{key}={name}"] = np.array(
                    [np.nan if value is None else float(str(value) == name) for value in values]
                )
    return tuple(columns), np.stack(list(columns.values()), axis=1)
