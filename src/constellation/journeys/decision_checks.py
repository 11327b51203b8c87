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
