"""What is known at each decision, as a table: aggregates of the journey, attributes, and what was done before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

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


def decision_features(store: Store, decisions: Decisions, windows_days: tuple[int, ...] = WINDOWS_DAYS) -> FeatureTable:
    """Features [Q, X] of every decision, from events up to its ``last_event`` and from decisions before it.

    Neither the decision's own action, propensity, eligibility and reward, nor anything ordered after it, is read.
    Nothing is learned from the data, so there is nothing to leak between folds.
    """
    columns: dict[str, np.ndarray] = {}
    if store.num_events:
        types = [str(name) for name in store.dictionaries.get(EVENT_TYPE, [None])[1:]]
        span_days = (store.manifest.last_time - store.manifest.first_time) / MICROSECONDS_PER_DAY
        aggregates = Aggregates.fit(store, windows_days, span_days, types)
        values_QF = aggregates.compute(store, decisions.journey_Q, decisions.time_Q, decisions.last_event_Q)
        columns |= {name: values_QF[:, place] for place, name in enumerate(aggregates.names)}
    for name, values_C in store.attributes_numeric.items():
        columns[name] = values_C[decisions.journey_Q]
    for name, codes_C in store.attributes_categorical.items():
        codes_Q = codes_C[decisions.journey_Q]
        known = store.dictionaries[f"attributes.{name}"]
        if len(known) > MAX_CATEGORIES:
            columns[name] = codes_Q.astype(np.float64)
            continue
        for code, value in enumerate(known):
            if code or (codes_C == 0).any():
                columns[f"{name}={'missing' if value is None else value}"] = (codes_Q == code).astype(np.float64)
    columns |= _past_actions(decisions)
    if not columns:
        columns["nothing_known"] = np.zeros(len(decisions))
    values_QX = np.stack([np.asarray(column, dtype=np.float64) for column in columns.values()], axis=1)
    return FeatureTable(tuple(columns), values_QX)


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
