"""Eligible sets of decisions, and what no decision can be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from constellation.errors import InputError

if TYPE_CHECKING:
    import polars as pl

    from constellation.journeys.decisions import Decisions
    from constellation.journeys.store import Store

SEPARATOR = "|"
"""Between the actions of an eligible set."""


def take_eligible(decisions: Decisions, given: pl.Series) -> None:
    """True or false, or lists of actions; a missing list stands for all actions."""
    import polars as pl

    if not isinstance(given.dtype, pl.List):
        decisions.eligible_Q = given.cast(pl.Boolean).fill_null(False).to_numpy()
        return
    joined = given.cast(pl.List(pl.String)).list.sort().list.join(SEPARATOR)
    decisions.choice_sets = [None, *joined.drop_nulls().unique().sort().to_list()]
    codes = {text: code for code, text in enumerate(decisions.choice_sets)}
    decisions.choices_Q = np.array([codes[text] for text in joined.to_list()], dtype=np.int32)
    decisions.eligible_Q = (given.list.len().fill_null(1) > 0).to_numpy()


def take_chances(decisions: Decisions, table: pl.DataFrame) -> None:
    """``propensity_<action>`` of every action, where the table has them; they must agree with the chosen one's own."""
    from constellation.journeys.decisions import CHANCE

    given = [name for name in table.columns if name.startswith(CHANCE)]
    if not given:
        return
    missing = [f"{CHANCE}{name}" for name in decisions.actions[1:] if f"{CHANCE}{name}" not in given]
    if missing:
        raise InputError(f"The decisions give {', '.join(given)}, but not {', '.join(missing)}: give all or none.")
    # What could have been chosen is an action, even where nobody happened to choose it.
    never = [name.removeprefix(CHANCE) for name in given if name.removeprefix(CHANCE) not in decisions.actions]
    decisions.actions = [*decisions.actions, *never]
    chance_QA = table.select(f"{CHANCE}{name}" for name in decisions.actions[1:]).to_numpy()
    if not (np.isfinite(chance_QA) & (chance_QA >= 0)).all() or not np.allclose(chance_QA.sum(axis=1), 1, atol=1e-3):
        raise InputError(f"The columns {CHANCE}... of a decision must be probabilities that add up to 1.")
    named = np.flatnonzero(decisions.action_Q > 0)
    own_Q = chance_QA[named, decisions.action_Q[named] - 1]
    told_Q = decisions.propensity_Q[named]
    if not np.allclose(own_Q, np.where(np.isnan(told_Q), own_Q, told_Q), atol=1e-6):
        raise InputError(f"propensity and {CHANCE}<action> disagree about the chosen action. Mend the table.")
    decisions.propensity_QA = np.ascontiguousarray(chance_QA, dtype=np.float64)
    decisions.propensity_Q = decisions.propensity_Q.copy()
    decisions.propensity_Q[named] = own_Q


def check_decisions(decisions: Decisions, store: Store) -> None:
    """Raise InputError for a propensity outside (0, 1], a decision in the future, or a choice that was not eligible."""
    wrong_Q = (decisions.propensity_Q <= 0) | (decisions.propensity_Q > 1)
    if wrong_Q.any():
        raise InputError(
            f"{int(wrong_Q.sum()):,} decisions have a propensity outside (0, 1], such as "
            f"{decisions.propensity_Q[wrong_Q][0]:g}. It is the probability of the chosen action."
        )
    late_Q = decisions.time_Q > store.manifest.observed_until
    if late_Q.any():
        raise InputError(
            f"{int(late_Q.sum()):,} decisions lie in the future, after the data end. Leave them out, "
            "or move observed_until."
        )
    named = np.flatnonzero(decisions.action_Q > 0)
    chosen = decisions.eligible_QA()[named, decisions.action_Q[named] - 1]
    if not chosen.all():
        first = named[~chosen][0]
        raise InputError(
            f"{int((~chosen).sum()):,} decisions chose an action outside eligible, such as "
            f"{decisions.actions[decisions.action_Q[first]]!r}. Eligible is what could have been chosen; mend "
            f"the table."
        )
