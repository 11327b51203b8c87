"""Explain one answer for many customers: contributions that sum to the difference from the baseline, checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from constellation.errors import InputError
from constellation.explanation.answers import Answer
from constellation.explanation.baseline import Baseline
from constellation.explanation.gradients import integrate
from constellation.explanation.inputs import TIME, Layers
from constellation.explanation.table import EVENT, Rows
from constellation.journeys.sampling import PredictionBatches

if TYPE_CHECKING:
    import pandas as pd

    from constellation.journeys.batch import Gatherer
    from constellation.journeys.windows import Queries
    from constellation.model import JourneyModel

SMALL_DIFFERENCE = 0.01
"""Of the prediction: where it differs less from its baseline, the gap is measured against so much of it."""


@dataclass(frozen=True)
class Options:
    """tolerance: the gap between the sum of the contributions and the difference that they explain, at most, over that
    difference. first_steps, max_steps: points on the path; doubled for the customers whose gap is larger until it is
    not, or the most is reached. max_tokens: events in a batch."""

    tolerance: float = 0.01
    first_steps: int = 16
    max_steps: int = 256
    max_tokens: int = 8192

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise InputError(f"tolerance must lie in (0, 1), found {self.tolerance}: a share of the difference.")
        if not 1 <= self.first_steps <= self.max_steps or self.max_tokens < 1:
            raise InputError(
                f"max_steps must be at least first_steps ({self.first_steps}) and both at least 1, found "
                f"{self.max_steps}; max_tokens at least 1, found {self.max_tokens}."
            )


@dataclass
class Explanation:
    """What moved one answer.

    customers: a row per question: ``customer_id, cutoff, prediction, baseline`` (the same for all), ``contribution``
    (their sum), ``gap`` (prediction less baseline less that sum), ``relative_gap``, ``steps``, ``is_complete``.
    contributions: a row per question x event x field, and per question x input of the cutoff: ``customer_id, cutoff,
    part`` (event, journey, aggregate, silence, calendar, attribute, past_products), ``event`` (place in the journey as
    read, from 0), ``event_time, field, value, contribution``. All contributions are in the unit of the answer.
    """

    answer: str
    baseline: float
    num_reference: int
    customers: pd.DataFrame
    contributions: pd.DataFrame

    def by_field(self) -> pd.DataFrame:
        """A row per part and field (aggregates together): ``mean_absolute`` over customers of the sum of its
        contributions, their ``mean``, and the ``share`` of the former; largest first."""
        frame = self.contributions
        named = frame["field"].where(frame["part"] != "aggregate", "aggregates")
        sums = frame.groupby([frame["customer_id"], frame["cutoff"], frame["part"], named], sort=False)[
            "contribution"
        ].sum()
        num = max(len(self.customers), 1)
        found = sums.abs().groupby(level=["part", "field"]).sum().to_frame("mean_absolute") / num
        found["mean"] = sums.groupby(level=["part", "field"]).sum() / num
        found["share"] = found["mean_absolute"] / max(float(found["mean_absolute"].sum()), 1e-300)
        return found.sort_values("mean_absolute", ascending=False).reset_index()

    def largest(self, place: int) -> pd.DataFrame:
        """The contributions to row ``place`` of ``customers``, each with a ``name`` for people, largest first."""
        asked = self.customers.iloc[place]
        frame = self.contributions
        mine = frame[(frame["customer_id"] == asked["customer_id"]) & (frame["cutoff"] == asked["cutoff"])]
        order = mine["contribution"].abs().sort_values(ascending=False, kind="stable").index
        mine = mine.loc[order].reset_index(drop=True)
        return mine.assign(name=[_name(row) for row in mine.to_dict("records")])


def _name(row: Mapping[str, Any]) -> str:
    """``2017-09-21 amount 12.5`` for an event, ``num_purchases_91d 4`` for what the cutoff reads."""
    is_missing = row["value"] is None or row["value"] != row["value"]
    if row["part"] != EVENT:
        return row["field"] if is_missing else f"{row['field']} {row['value']}"
    time = f"{row['event_time']:%Y-%m-%d}" if hasattr(row["event_time"], "year") else str(row["event_time"])
    said = "" if row["field"] == TIME else " missing" if is_missing else f" {row['value']}"
    return f"{time} {row['field']}{said}"


def explain(
    model: JourneyModel,
    gatherer: Gatherer,
    queries: Queries,
    answer: str,
    *,
    reference: Queries | None = None,
    options: Options | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Explanation:
    """Explain ``answer`` for each of ``queries``; see :class:`Answer` for the names and :class:`Baseline` for what is
    compared with: averages over the questions ``reference`` (None: over ``queries`` themselves).

    Which customers share a batch changes nothing but rounding. ``progress(done, total)`` counts customers. Raises
    InputError for an answer that the model does not give, or that has no gradient.
    """
    options = options or Options()
    reference = queries if reference is None else reference
    if not len(queries) or not len(reference):
        raise InputError("There is nobody to explain: no customer has an event at or before the cutoff.")
    was_training = model.training
    model.eval()
    try:
        first, _ = next(iter(PredictionBatches(gatherer, queries.take(np.arange(1)), targets=False)))
        found = Answer.find(answer, model, first.to(next(model.parameters()).device), gatherer.vocabulary)
        layers = Layers.of(model, found)
        baseline = Baseline.learn(model, layers, gatherer, reference, found, options.max_tokens)
        return _explained(model, gatherer, queries, found, layers, baseline, options, progress)
    finally:
        model.train(was_training)


def _explained(
    model: JourneyModel,
    gatherer: Gatherer,
    queries: Queries,
    answer: Answer,
    layers: Layers,
    baseline: Baseline,
    options: Options,
    progress: Callable[[int, int], None],
) -> Explanation:
    device = next(model.parameters()).device
    rows = Rows(gatherer, queries)
    pending = np.arange(len(queries))
    steps = options.first_steps
    while len(pending):
        missed = []
        batches = PredictionBatches(gatherer, queries.take(pending), max_tokens=options.max_tokens, targets=False)
        for batch, places in batches:
            there = batch.to(device)
            ends = baseline.ends(layers, there)
            moved = integrate(model, layers, there, ends, answer, steps)
            # The journey's own part is a difference of two predictions: there is nothing to integrate.
            gap_Q = moved.end_Q - moved.start_Q - moved.sum_Q(there.journey_N)
            scale_Q = torch.maximum((moved.end_Q - moved.start_Q).abs(), SMALL_DIFFERENCE * moved.end_Q.abs())
            relative_Q = gap_Q.abs() / scale_Q.clamp(min=1e-12)
            done_Q = (relative_Q <= options.tolerance).cpu().numpy() | (2 * steps > options.max_steps)
            rows.add(batch, pending[places], done_Q, moved, baseline.prediction, relative_Q, steps, options.tolerance)
            missed.append(pending[places[~done_Q]])
            progress(rows.num_done, len(queries))
        pending, steps = np.sort(np.concatenate(missed)), 2 * steps
    customers, contributions = rows.frames()
    return Explanation(answer.name, baseline.prediction, baseline.num_customers, customers, contributions)
