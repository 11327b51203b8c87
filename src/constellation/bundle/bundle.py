"""The exported artefact: weights, vocabulary and schema in one folder; a table of events in, a table of answers out.

::

    bundle = Bundle.load("bundle")
    predictions = bundle.predict(events, "2017-09-30")     # one row per customer_id

A bundle is safetensors and JSON. Nothing in it is unpickled; predicting needs neither Hydra nor Lightning nor MLflow.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from constellation.answering import answer, answer_all
from constellation.building import build_model, targets
from constellation.bundle import card, files
from constellation.bundle.example import example_events
from constellation.bundle.lifetime import Lifetime
from constellation.bundle.reading import Reading
from constellation.bundle.table import (
    DEFAULT_LEVELS,
    QUANTILES,
    AnswerTable,
    check_levels,
    describe,
    largest_difference,
)
from constellation.errors import InputError
from constellation.journeys.baskets import seen_products
from constellation.journeys.batch import Gatherer
from constellation.journeys.store import Store
from constellation.journeys.vocabulary import Vocabulary
from constellation.journeys.windows import Queries, ask
from constellation.metrics import LEVELS
from constellation.recalibration import Corrections, Totals
from constellation.schema import EventSchema

if TYPE_CHECKING:
    import datetime as dt

    import pandas as pd
    import torch

    from constellation.explanation import Explanation, Options
    from constellation.model import JourneyModel

TOLERANCE = 1e-5
"""Largest relative difference between the predictions of a model and of its bundle, loaded again on the same device."""

NEXT_PRODUCTS = "next_product_scores"
MAX_SCORES = 4_000_000
"""Product scores in one batch, at most: the counts behind them are several times as large."""


@dataclass
class Bundle:
    """A trained model with all it needs to read an event table.

    model_config: ``encoder``, ``readout`` and ``objective`` as plain JSON, from which the model can be built again.
    max_events: a journey is read from its last so many events.
    trained_on: data set, fingerprint, cutoffs, seed, commit: facts for the model card.
    metrics: flat names to numbers, for the model card.
    corrections: what recalibration learned for this model, a part of every answer; None: answers as the model says.
    """

    model: JourneyModel = field(repr=False)
    vocabulary: Vocabulary = field(repr=False)
    schema: EventSchema
    model_config: Mapping[str, Any]
    max_events: int = 1024
    trained_on: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    corrections: Corrections | None = None

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu", trusted: Sequence[str] = ()) -> Bundle:
        """Read a bundle from its folder.

        trusted: modules outside this package whose classes may be built, ``("mypackage.",)``: their code will run.
        Raises InputError where a file is missing, damaged, newer than this release, or names code that is not trusted.
        """
        folder = Path(folder)
        content = files.read_content(folder)
        vocabulary = files.part(content, "vocabulary", Vocabulary.from_json)
        model = build_model(content["model"], vocabulary, vocabulary.horizons_days, trusted=trusted)
        files.read_weights(folder, model)
        return cls(
            model=model.to(device).eval(),
            vocabulary=vocabulary,
            schema=files.part(content, "schema", lambda found: EventSchema(**found)),
            model_config=content["model"],
            max_events=files.part(content, "max_events", int),
            trained_on=files.part(content, "trained_on", dict),
            metrics=files.part(content, "metrics", dict),
            corrections=files.part({"recalibration": None} | content, "recalibration", _corrections),
        )

    def save(self, folder: str | Path) -> Path:
        """Write the folder, load it again, compare the answers to made-up journeys, and only then put it in its place.

        A bundle that is there already is replaced. Raises InputError where the folder holds anything else.
        """
        folder = Path(folder).expanduser().absolute()
        files.check_replaceable(folder)
        partial = files.partial_folder(folder)
        try:
            files.write_weights(partial, self.model)
            files.write_content(partial, self._content())
            events = example_events(self.vocabulary, self.schema)
            answers = self.predict(events, None)
            (partial / files.CARD).write_text(card.model_card(self, describe(answers, self.schema)), encoding="utf-8")
            device = next(self.model.parameters()).device
            again = Bundle.load(partial, device, trusted=targets(self.model_config)).predict(events, None)
            difference = largest_difference(answers, again)
            assert difference <= TOLERANCE, f"the bundle's answers differ from the model's by {difference:.1e}"
            files.put_in_place(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return folder

    def predict(
        self,
        events: Any,
        cutoff: str | dt.date | int | None,
        attributes: Any = None,
        *,
        levels: Sequence[float] = DEFAULT_LEVELS,
        top_products: int = 10,
        lifetime: Lifetime | None = None,
        exclude_seen: bool | None = None,
    ) -> pd.DataFrame:
        """One row per customer with an event at or before the cutoff, or with a row in ``attributes``.

        events, attributes: pandas, polars or pyarrow, with the columns of the model card. cutoff: a date (its whole day
        in the zone of the schema is seen), a time, or None: the end of the last event's day. A datetime is a moment, at
        midnight too. Where the schema says ``clock: order``, it is a rank.
        Columns: ``value_91d_expected``, ``_p_zero``, ``_q05`` .. for ``levels``, ``purchases_91d_*`` alike,
        ``next_product_1`` .. with ``next_product_1_score``; the model card lists them with their units.
        lifetime: adds ``value_lifetime_by_survival_expected``, an extension beyond what was learned; see its class.
        exclude_seen: next products are ranked without those a customer already has, and their scores add up to 1 over
        the others; where fewer are left than asked for, cells are empty. None does as the training's evaluation did.
        ``attrs["totals"]`` holds the total of each target and its 90 % interval (``expected``, ``low``, ``high``).
        Later events are ignored: ``attrs`` of the result counts them (``events_ignored``), rows that could not be read
        (``events_rejected``), and the share of values per column that training never saw (``unknown_share``).
        Raises InputError for missing columns, too many unreadable rows, an impossible cutoff, or nobody to score.
        """
        levels = check_levels(levels)
        if top_products < 1:
            raise InputError(f"top_products must be at least 1, found {top_products}.")
        reading = Reading.of(events, attributes, cutoff, self.schema, self.vocabulary)
        frame = self.predict_customers(
            reading.store,
            None,
            reading.cutoff,
            levels=levels,
            top_products=top_products,
            lifetime=lifetime,
            exclude_seen=exclude_seen,
        )
        frame.attrs.update(reading.facts())
        return frame

    def predict_customers(
        self,
        store: Store,
        journeys: np.ndarray | None,
        cutoff: int,
        *,
        levels: Sequence[float] = DEFAULT_LEVELS,
        top_products: int = 10,
        lifetime: Lifetime | None = None,
        exclude_seen: bool | None = None,
    ) -> pd.DataFrame:
        """The same table for ``journeys`` (rows of the store, None for all) at a cutoff in microseconds UTC."""
        journeys = np.arange(store.num_customers) if journeys is None else np.asarray(journeys, dtype=np.int64)
        # Nothing after the cutoff is known, so no answer is looked up: every horizon is censored.
        queries = ask(store, journeys, np.full(len(journeys), cutoff), self.horizons_days, cutoff)
        table, totals = AnswerTable(self.vocabulary, len(queries), levels, top_products), Totals(len(queries))
        excluded = bool(self.trained_on.get("exclude_seen", False)) if exclude_seen is None else exclude_seen
        # Totals are drawn from equally likely members; the quantiles asked for follow from the same ones.
        corrections = self.corrections or Corrections()
        both = np.unique(np.concatenate([LEVELS, np.asarray(levels, dtype=np.float64)]))
        asked_places, member_places = np.searchsorted(both, np.asarray(levels)), np.searchsorted(both, LEVELS)
        for rows, answers in self._answers(store, queries, both):
            totals.add(rows, _at(answers, member_places))
            answers = _at(answers, asked_places)
            if excluded:
                answers |= self._without_seen(store, queries.take(rows), answers)
            if lifetime is not None:
                answers |= lifetime.answers(answers, self.horizons_days)
            table.add(rows, answers)
        frame = table.frame(np.asarray(store.customer_id_C)[journeys])
        intervals = totals.intervals(corrections.shocks)
        frame.attrs["totals"] = {target: asdict(total) for target, total in intervals.items()}  # plain, for Parquet
        return frame

    def predict_store(
        self, store: Store, queries: Queries, levels: Sequence[float] | np.ndarray = DEFAULT_LEVELS
    ) -> dict[str, np.ndarray]:
        """Answers [Q, ...] to questions about a prepared store, by the names of ``Predictions`` in docs/design.md."""
        limits = self._limits()
        gatherer = self._gatherer(store)
        return answer_all(self.model, gatherer, queries, tuple(levels), corrections=self.corrections, **limits)

    def _answers(
        self, store: Store, queries: Queries, levels: np.ndarray
    ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        gatherer, limits = self._gatherer(store), self._limits()
        return answer(self.model, gatherer, queries, levels, corrections=self.corrections, **limits)

    def _without_seen(self, store: Store, queries: Queries, answers: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Scores of next products with minus infinity for those that each customer already has."""
        if NEXT_PRODUCTS not in answers:
            return {}
        products_M, offsets = seen_products(store, self.vocabulary, queries)
        scores_QV = np.array(answers[NEXT_PRODUCTS], dtype=np.float64)
        row_M = np.repeat(np.arange(len(queries)), np.diff(offsets))
        known_M = products_M >= 0
        scores_QV[row_M[known_M], products_M[known_M]] = -np.inf
        return {NEXT_PRODUCTS: scores_QV}

    def explain(
        self,
        events: Any,
        cutoff: str | dt.date | int | None,
        answer: str,
        attributes: Any = None,
        *,
        customers: Sequence[Any] | None = None,
        options: Options | None = None,
    ) -> Explanation:
        """What moved ``answer`` (``value_91d``, ``next_product:milk``, ..) of ``customers`` (ids; None: of everybody).

        events, cutoff, attributes: as :meth:`predict` reads them. Compared is with the average of the customers there,
        so give more of them than are to be explained. See :func:`constellation.explanation.explain`; of a recalibrated
        bundle the answer of the model before recalibration is explained.
        """
        from constellation.explanation.asking import NUM_REFERENCE, rows_of, some_at_risk

        reading = Reading.of(events, attributes, cutoff, self.schema, self.vocabulary)
        store = reading.store
        wanted = np.arange(store.num_customers) if customers is None else rows_of(store, customers)
        reference = some_at_risk(store, reading.cutoff, NUM_REFERENCE)
        return self.explain_customers(store, wanted, reading.cutoff, answer, reference, options=options)

    def explain_customers(
        self,
        store: Store,
        journeys: np.ndarray,
        cutoff: int,
        answer: str,
        reference: np.ndarray,
        *,
        options: Options | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Explanation:
        """The same for rows of a store, against the average of the customers ``reference``, at a cutoff in its time."""
        from constellation.explanation import explain

        def asked(rows: np.ndarray) -> Queries:
            return ask(store, rows, np.full(len(rows), cutoff), self.horizons_days, cutoff)

        gatherer, against = self._gatherer(store), asked(reference)
        found = asked(journeys)
        return explain(self.model, gatherer, found, answer, reference=against, options=options, progress=progress)

    @property
    def horizons_days(self) -> tuple[int, ...]:
        return self.vocabulary.horizons_days

    def _gatherer(self, store: Store) -> Gatherer:
        return Gatherer(store, self.vocabulary, self.max_events)

    def _limits(self) -> dict[str, Any]:
        return {"max_journeys": min(1024, max(16, MAX_SCORES // max(len(self.vocabulary.products), 1)))}

    def _content(self) -> dict[str, Any]:
        return {
            "model": dict(self.model_config),
            "max_events": self.max_events,
            "horizons_days": list(self.horizons_days),
            "schema": files.plain(self.schema),
            "trained_on": dict(self.trained_on),
            "metrics": dict(self.metrics),
            "recalibration": None if self.corrections is None else self.corrections.to_json(),
            "vocabulary": self.vocabulary.to_json(),
        }


def _corrections(found: Mapping[str, Any] | None) -> Corrections | None:
    return None if found is None else Corrections.from_json(found)


def _at(answers: Mapping[str, np.ndarray], places: np.ndarray) -> dict[str, np.ndarray]:
    """The answers with some of their levels only."""
    return {name: values[:, places] if name.endswith(QUANTILES) else values for name, values in answers.items()}
