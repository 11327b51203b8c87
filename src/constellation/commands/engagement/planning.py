"""From an engagement run or bundle to what a plan reads: offers by the model, past contacts, when the plan begins."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from constellation.bundle.engagement_answers import Answers
from constellation.commands.engagement.scoring import Question, answer_question, metrics_of, tell
from constellation.policies.policy import NONE
from constellation.schema import ACTION, CHANNEL, CUSTOMER_ID, EVENT_TIME
from constellation.zones import EPOCH

if TYPE_CHECKING:
    import polars as pl

    from constellation.allocation.constraints import Constraints
    from constellation.journeys.dataset import DataSet
    from constellation.tracking import Run

SECOND = 1_000_000


@dataclass(frozen=True)
class Scored:
    """predictions: long, as ``read_offers`` takes them. contacts: past ones. constraints: with a start and channels."""

    predictions: pl.DataFrame
    contacts: pl.DataFrame | None
    constraints: Constraints


def score_for_plan(
    run: Run,
    folder: Path,
    question: Question,
    constraints: Constraints,
    *,
    trained: Path | None,
    data: DataSet | None,
    contacts: bool,
) -> Scored:
    """Answers about the last open decision of each customer; written as ``predictions.parquet``.

    ``lower`` of an action is that of ``none`` (its expectation) plus the lower bound of what the action adds to it: a
    plan gains differences, and a customer who is uncertain to buy at all is not uncertain to gain. ``propensity``,
    with a policy, weighs the draws of customers that explore. contacts: past ones are given, so none are looked for;
    else the decisions of the past that were not ``none`` are, and the plan begins after them.
    """
    answers = answer_question(folder, question, trained=trained, data=data).last_of_each()
    tell(answers)
    channels = answers.channels | dict(constraints.channels or {})
    predictions = offers_frame(answers, channels)
    predictions.write_parquet(run.folder / "predictions.parquet")  # with customer ids, so it stays in the folder
    run.log_metrics(metrics_of(answers))
    run.set_tag("cutoff", str(answers.facts["cutoff"]))
    # A decision is for the time after it; the plan's clock knows whole seconds.
    start = EPOCH + dt.timedelta(seconds=int(answers.time_Q.max()) // SECOND + 1)
    if constraints.start is None:
        constraints = replace(constraints, start=start.isoformat())
    past = None if contacts or answers.past is None else _with_channels(answers.past, channels)
    if past is not None:
        print(f"  {len(past):,} earlier decisions to contact count against caps and cool-downs")
    return Scored(predictions, past, constraints)


def offers_frame(answers: Answers, channels: Mapping[str, str]) -> pl.DataFrame:
    """One row per customer and action, with ``channel``, and ``lower`` by what each action adds to ``none``."""
    import polars as pl

    frame = answers.frame().drop("decision_time")
    if answers.gain_lower_QA is not None:
        none = answers.actions.index(NONE)
        lower_QA = answers.expected_QA[:, none, None] + answers.gain_lower_QA
        frame = frame.with_columns(lower=pl.Series(lower_QA.ravel()))
    if answers.target_QA is None:
        frame = frame.drop("propensity")  # without a policy, who explores draws evenly
    known = pl.Series([channels.get(name) for name in answers.actions], dtype=pl.String)
    frame = frame.with_columns(known.gather(np.tile(np.arange(len(answers.actions)), len(answers))).alias(CHANNEL))
    return frame


def _with_channels(past: pl.DataFrame, channels: Mapping[str, str]) -> pl.DataFrame:
    import polars as pl

    named = pl.col(ACTION).replace_strict(dict(channels), default=pl.col(ACTION)) if channels else pl.col(ACTION)
    return past.select(CUSTOMER_ID, EVENT_TIME, ACTION, named.alias(CHANNEL))
