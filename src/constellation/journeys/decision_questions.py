"""Decisions that are to be made: who is asked about, when, what may be chosen, and what was done before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from constellation.errors import InputError
from constellation.journeys.decision_checks import take_eligible
from constellation.journeys.decision_derivation import derived
from constellation.journeys.decisions import (
    CHANCE,
    CONTEXT,
    DECISION_TIME,
    NONE,
    DecisionRule,
    Decisions,
    clean_decisions,
)
from constellation.schema import ACTION, CUSTOMER_ID, EVENT_TIME, EventSchema, numbers

if TYPE_CHECKING:
    import polars as pl

    from constellation.journeys.store import Store


@dataclass(frozen=True)
class Asked:
    """Open decisions among those of the past.

    decisions: past ones and open ones, these with the action missing; actions in the order of the training.
    rows: places of the open ones [Q]. eligible_QA: of them, over the actions of the training and then the further ones.
    logging_QA: given probabilities of the logging policy over the actions of the training, or None.
    knows_past: False where earlier decisions exist only in a table that was not given. num_stale: open decisions whose
    context is that of the customer's last decision, or unknown where there is none.
    """

    decisions: Decisions
    rows: np.ndarray
    eligible_QA: np.ndarray
    logging_QA: np.ndarray | None
    knows_past: bool
    num_stale: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def journey_Q(self) -> np.ndarray:
        return np.asarray(self.decisions.journey_Q[self.rows])

    @property
    def time_Q(self) -> np.ndarray:
        return np.asarray(self.decisions.time_Q[self.rows])

    @property
    def last_event_Q(self) -> np.ndarray:
        return np.asarray(self.decisions.last_event_Q[self.rows])

    def contacts(self, store: Store) -> pl.DataFrame | None:
        """Past decisions to contact: ``customer_id, event_time, action``; None where no past is known."""
        import polars as pl

        if not self.knows_past:
            return None
        past, names = self.decisions, self.decisions.actions
        code_of_none = names.index(NONE) if NONE in names else -1
        rows = np.flatnonzero((past.action_Q > 0) & (past.action_Q != code_of_none))
        times = pl.Series(past.time_Q[rows])
        return pl.DataFrame(
            {
                CUSTOMER_ID: pl.Series(store.customer_id_C[past.journey_Q[rows]].tolist()),
                EVENT_TIME: times.cast(pl.Datetime("us", "UTC")),
                ACTION: pl.Series(names, dtype=pl.String).gather(past.action_Q[rows]),
            }
        )

    def take(self, rows: np.ndarray) -> Asked:
        """Some of the open decisions; the past stays whole."""
        logging_QA = None if self.logging_QA is None else self.logging_QA[rows]
        return replace(self, rows=self.rows[rows], eligible_QA=self.eligible_QA[rows], logging_QA=logging_QA)


def clean_questions(table: pl.DataFrame, schema: EventSchema) -> pl.DataFrame:
    """A table of decisions, some or all of them open (``action`` empty), with ids and times in the form of a store."""
    import polars as pl

    if ACTION not in table.columns:
        table = table.with_columns(pl.lit(None, dtype=pl.String).alias(ACTION))
    cleaned = clean_decisions(table, schema)
    assert cleaned is not None
    columns = [name for name in cleaned.columns if name in (CUSTOMER_ID, DECISION_TIME, ACTION, "eligible")]
    further = [numbers(table[name]) for name in table.columns if name.startswith((CHANCE, CONTEXT))]
    return cleaned.select(columns).with_columns(pl.col(ACTION).cast(pl.String), *further)


def decisions_table(store: Store) -> pl.DataFrame:
    """The decisions of a store in the form of ``clean_questions``: all of them past."""
    import polars as pl

    decisions = store.decisions
    assert decisions is not None
    known = (
        {} if decisions.context_QX is None else dict(zip(decisions.context_names, decisions.context_QX.T, strict=True))
    )
    return pl.DataFrame(
        {
            CUSTOMER_ID: pl.Series(store.customer_id_C[decisions.journey_Q].tolist()),
            DECISION_TIME: pl.Series(np.asarray(decisions.time_Q), dtype=pl.Int64),
            ACTION: pl.Series(decisions.actions, dtype=pl.String).gather(np.asarray(decisions.action_Q)).fill_null(""),
        }
        | {f"{CONTEXT}{name}": pl.Series(np.asarray(column)) for name, column in known.items()}
    )


def ask_decisions(
    store: Store,
    rule: DecisionRule,
    actions: Sequence[str],
    cutoff: int,
    table: pl.DataFrame | None = None,
    *,
    further: Sequence[str] = (),
    context: Sequence[str] = (),
) -> Asked:
    """The open decisions of a store, at most those up to ``cutoff`` (microseconds UTC).

    table: of ``clean_questions``; rows without an action are the open decisions, those with one are the past. Where
    all rows have an action, or there is no table, every customer with an event up to the cutoff, or without any event,
    is asked about at the cutoff. Without a table the past is read off the events as in training.
    further: actions that the training did not know. context: what the table should say was known (``context_<name>``);
    an open decision without it gets that of the customer's last one. Raises InputError where nobody is left to be asked
    about, or some of the context is given and some not.
    """
    import polars as pl

    names: list[str | None] = [None, *actions]
    past, is_open = None, None
    if table is not None:
        table = table.filter(pl.col(DECISION_TIME) <= cutoff)
        past, is_open = table.filter(pl.col(ACTION).is_not_null()), table.filter(pl.col(ACTION).is_null())
    if is_open is None or len(is_open) == 0:
        last_C = store.last_event(np.arange(store.num_customers), np.full(store.num_customers, cutoff))
        journey_Q = np.flatnonzero((last_C >= 0) | (np.diff(store.first_event_C) == 0))
        asked = _open(store, journey_Q, np.full(len(journey_Q), cutoff), names)
        logging_QA, eligible = None, None
        asked.context_QX = np.full((len(asked), len(context)), np.nan, dtype=np.float32)
    else:
        is_open = is_open.sort(CUSTOMER_ID, DECISION_TIME, maintain_order=True)
        asked = _open(store, _journeys(store, is_open), is_open[DECISION_TIME].to_numpy(), names)
        logging_QA = _logging(is_open, actions)
        asked.context_QX = _context(is_open, context)
        eligible = is_open["eligible"] if "eligible" in is_open.columns else None
    if len(asked) == 0:
        raise InputError("Nobody is to be decided about: no customer has an event at or before the cutoff. Move it.")
    extended = replace(asked, actions=[*names, *further])
    if eligible is not None:
        take_eligible(extended, eligible)
    before, knows_past = _past(store, rule, cutoff, names, past, context)
    num_stale = _carry_on(before, asked) if context else 0
    return Asked(
        _together(before, asked, tuple(context)),
        np.arange(len(before), len(before) + len(asked)),
        extended.eligible_QA(),
        logging_QA,
        knows_past,
        num_stale,
    )


def _past(
    store: Store,
    rule: DecisionRule,
    cutoff: int,
    names: list[str | None],
    given: pl.DataFrame | None,
    context: Sequence[str],
) -> tuple[Decisions, bool]:
    """Decisions of the past with actions coded as in training, and whether they are known at all."""
    if given is not None:
        codes = {name: code for code, name in enumerate(names)}
        past = _open(store, _journeys(store, given), given[DECISION_TIME].to_numpy(), names)
        past.action_Q = np.array([codes.get(name, 0) for name in given[ACTION].to_list()], dtype=np.int32)
        past.context_QX = _context(given, context)
        return past, True
    nothing = np.empty(0, dtype=np.int64)
    if rule.kind == "table" or store.num_events == 0:
        return _open(store, nothing, nothing, names), rule.kind != "table"
    # A grid is counted back from the end of what is known, which is the cutoff.
    at_cutoff = replace(store, manifest=replace(store.manifest, observed_until=cutoff), decisions=None)
    found = derived(replace(rule, reward="amount"), at_cutoff, may_lack=True)
    kept = found.time_Q <= cutoff
    past = _open(store, found.journey_Q[kept], found.time_Q[kept], names)
    past.last_event_Q = found.last_event_Q[kept]
    place_A = np.array([names.index(name) if name in names else 0 for name in found.actions], dtype=np.int32)
    past.action_Q = place_A[found.action_Q[kept]]
    return past, True


def _open(store: Store, journey_Q: np.ndarray, time_Q: np.ndarray, names: list[str | None]) -> Decisions:
    """Decisions about which nothing is known but who and when."""
    num, unknown_Q = len(journey_Q), np.full(len(journey_Q), np.nan)
    return Decisions(
        journey_Q=np.asarray(journey_Q, dtype=np.int64),
        time_Q=np.asarray(time_Q, dtype=np.int64),
        last_event_Q=store.last_event(journey_Q, time_Q) if num else np.empty(0, dtype=np.int64),
        action_Q=np.zeros(num, dtype=np.int32),
        actions=names,
        propensity_Q=unknown_Q,
        eligible_Q=np.ones(num, dtype=bool),
        cost_Q=unknown_Q,
        reward_Q=unknown_Q,
        matured_Q=np.zeros(num, dtype=bool),
    )


def _together(first: Decisions, second: Decisions, context: tuple[str, ...]) -> Decisions:
    columns = [name for name in vars(first) if name.endswith("_Q") and name != "choices_Q"]
    known_QX = None
    if context:
        unknown_QX = np.full((len(first), len(context)), np.nan, dtype=np.float32)
        assert second.context_QX is not None
        known_QX = np.concatenate([unknown_QX if first.context_QX is None else first.context_QX, second.context_QX])
    joined: dict[str, Any] = {name: np.concatenate([getattr(first, name), getattr(second, name)]) for name in columns}
    return replace(first, choices_Q=None, context_QX=known_QX, context_names=context, **joined)


def _context(table: pl.DataFrame, wanted: Sequence[str]) -> np.ndarray:
    """float32 [Q, X], NaN where unknown. Raises InputError where some columns are there and others are not."""
    names = [f"{CONTEXT}{name}" for name in wanted]
    missing = [name for name in names if name not in table.columns]
    if missing and len(missing) < len(names):
        raise InputError(
            f"The decisions lack {', '.join(missing)}, which the models read. Add what is unknown as an empty column."
        )
    if missing or not names:
        return np.full((len(table), len(names)), np.nan, dtype=np.float32)
    return np.asarray(table.select(names).fill_null(float("nan")).to_numpy(), dtype=np.float32)


def _carry_on(past: Decisions, asked: Decisions) -> int:
    """Open decisions without any context get that of the customer's last decision before; how many had none."""
    assert asked.context_QX is not None
    stale = np.flatnonzero(np.isnan(asked.context_QX).all(axis=1))
    if past.context_QX is None or not len(past) or not len(stale):
        return len(stale)
    order = np.lexsort((past.time_Q, past.journey_Q))
    key_Q = np.rec.fromarrays([past.journey_Q[order], past.time_Q[order]])
    wanted = np.rec.fromarrays([asked.journey_Q[stale], asked.time_Q[stale]])
    place = np.searchsorted(key_Q, wanted) - 1
    has_past = (place >= 0) & (past.journey_Q[order][np.maximum(place, 0)] == asked.journey_Q[stale])
    known_QX = asked.context_QX.copy()
    known_QX[stale[has_past]] = past.context_QX[order][place[has_past]]
    asked.context_QX = known_QX
    return len(stale)


def _journeys(store: Store, table: pl.DataFrame) -> np.ndarray:
    """Row in the store of the customer of each row, who must be there."""
    import polars as pl

    if len(table) == 0:
        return np.empty(0, dtype=np.int64)
    ids = pl.Series(CUSTOMER_ID, store.customer_id_C)
    asked = table[CUSTOMER_ID]
    if ids.dtype != asked.dtype:
        raise InputError(
            f"{CUSTOMER_ID} is {ids.dtype} in the events and {asked.dtype} in the decisions. Write the ids alike."
        )
    place_Q = ids.search_sorted(asked).to_numpy()
    here = pl.Series(store.customer_id_C[np.minimum(place_Q, len(ids) - 1)], dtype=ids.dtype) == asked
    if not here.all():
        raise InputError(
            f"{int((~here).sum()):,} decisions are about customers without events and attributes, such as "
            f"{asked.filter(~here)[0]!r}. Give a row of attributes for them, or leave them out."
        )
    return np.asarray(place_Q, dtype=np.int64)


def _logging(table: pl.DataFrame, actions: Sequence[str]) -> np.ndarray | None:
    """Given probabilities of every action [Q, A], or None. Raises InputError where they are no probabilities."""
    given = [name for name in table.columns if name.startswith(CHANCE)]
    if not given:
        return None
    missing = [f"{CHANCE}{name}" for name in actions if f"{CHANCE}{name}" not in given]
    if missing:
        raise InputError(f"The decisions give {', '.join(given)}, but not {', '.join(missing)}: give all or none.")
    chance_QA = table.select(f"{CHANCE}{name}" for name in actions).to_numpy()
    if not (np.isfinite(chance_QA) & (chance_QA >= 0)).all() or not np.allclose(chance_QA.sum(axis=1), 1, atol=1e-3):
        raise InputError(f"The columns {CHANCE}... of a decision must be probabilities that add up to 1.")
    return np.asarray(chance_QA, dtype=np.float64)
