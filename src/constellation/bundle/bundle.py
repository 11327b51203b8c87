"""The exported artefact: weights, vocabulary and schema in one folder; a table of events in, a table of answers out.

::

    bundle = Bundle.load("bundle")
    predictions = bundle.predict(events, "2017-09-30")     # one row per customer_id

A bundle is safetensors and JSON. Nothing in it is unpickled; predicting needs neither Hydra nor Lightning nor MLflow.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from constellation.answering import answer, answer_all
from constellation.building import build_model, targets
from constellation.bundle import card, files
from constellation.bundle.example import example_events
from constellation.bundle.reading import Reading
from constellation.bundle.table import DEFAULT_LEVELS, AnswerTable, check_levels, describe, largest_difference
from constellation.errors import InputError
from constellation.journeys.batch import Gatherer
from constellation.journeys.store import Store
from constellation.journeys.vocabulary import Vocabulary
from constellation.journeys.windows import Queries, ask
from constellation.schema import EventSchema

if TYPE_CHECKING:
    import datetime as dt

    import pandas as pd
    import torch

    from constellation.model import JourneyModel

TOLERANCE = 1e-5
"""Largest relative difference between the predictions of a model and of its bundle, loaded again on the same device."""

MAX_SCORES = 4_000_000
"""Product scores in one batch, at most: the counts behind them are several times as large."""


@dataclass
class Bundle:
    """A trained model with all it needs to read an event table.

    model_config: ``encoder``, ``readout`` and ``objective`` as plain JSON, from which the model can be built again.
    max_events: a journey is read from its last so many events.
    trained_on: data set, fingerprint, cutoffs, seed, commit: facts for the model card.
    metrics: flat names to numbers, for the model card.
    """

    model: JourneyModel = field(repr=False)
    vocabulary: Vocabulary = field(repr=False)
    schema: EventSchema
    model_config: Mapping[str, Any]
    max_events: int = 1024
    trained_on: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)

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
    ) -> pd.DataFrame:
        """One row per customer with an event at or before the cutoff, or with a row in ``attributes``.

        events, attributes: pandas, polars or pyarrow, with the columns of the model card. cutoff: a date (its whole day
        in the zone of the schema is seen), a time, or None: the end of the last event's day. A datetime is a moment, at
        midnight too. Where the schema says ``clock: order``, it is a rank.
        Columns: ``value_91d_expected``, ``_p_zero``, ``_q05`` .. for ``levels``, ``purchases_91d_*`` alike,
        ``next_product_1`` .. with ``next_product_1_score``; the model card lists them with their units.
        Later events are ignored: ``attrs`` of the result counts them (``events_ignored``), rows that could not be read
        (``events_rejected``), and the share of values per column that training never saw (``unknown_share``).
        Raises InputError for missing columns, too many unreadable rows, an impossible cutoff, or nobody to score.
        """
        levels = check_levels(levels)
        if top_products < 1:
            raise InputError(f"top_products must be at least 1, found {top_products}.")
        reading = Reading.of(events, attributes, cutoff, self.schema, self.vocabulary)
        frame = self.predict_customers(reading.store, None, reading.cutoff, levels=levels, top_products=top_products)
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
    ) -> pd.DataFrame:
        """The same table for ``journeys`` (rows of the store, None for all) at a cutoff in microseconds UTC."""
        journeys = np.arange(store.num_customers) if journeys is None else np.asarray(journeys, dtype=np.int64)
        # Nothing after the cutoff is known, so no answer is looked up: every horizon is censored.
        queries = ask(store, journeys, np.full(len(journeys), cutoff), self.horizons_days, cutoff)
        table = AnswerTable(self.vocabulary, len(queries), levels, top_products)
        for rows, answers in answer(self.model, self._gatherer(store), queries, tuple(levels), **self._limits()):
            table.add(rows, answers)
        return table.frame(np.asarray(store.customer_id_C)[journeys])

    def predict_store(
        self, store: Store, queries: Queries, levels: Sequence[float] | np.ndarray = DEFAULT_LEVELS
    ) -> dict[str, np.ndarray]:
        """Answers [Q, ...] to questions about a prepared store, by the names of ``Predictions`` in docs/design.md."""
        return answer_all(self.model, self._gatherer(store), queries, tuple(levels), **self._limits())

    @property
    def horizons_days(self) -> tuple[int, ...]:
        return self.vocabulary.horizons_days

    def _gatherer(self, store: Store) -> Gatherer:
        return Gatherer(store, self.vocabulary, self.max_events)

    def _limits(self) -> dict[str, int]:
        return {"max_journeys": min(1024, max(16, MAX_SCORES // max(len(self.vocabulary.products), 1)))}

    def _content(self) -> dict[str, Any]:
        return {
            "model": dict(self.model_config),
            "max_events": self.max_events,
            "horizons_days": list(self.horizons_days),
            "schema": files.plain(self.schema),
            "trained_on": dict(self.trained_on),
            "metrics": dict(self.metrics),
            "vocabulary": self.vocabulary.to_json(),
        }
