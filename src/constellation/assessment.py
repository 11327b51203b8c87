"""Every system through the same evaluation: the same questions, the same rows, the same resamples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from constellation.errors import InputError
from constellation.journeys.baskets import next_products, recent_products
from constellation.journeys.store import Store
from constellation.journeys.vocabulary import Vocabulary
from constellation.journeys.windows import Queries
from constellation.metrics.evaluate import Evaluation, equal_count_labels
from constellation.metrics.ranking import concatenate, product_columns

RECENT_DAYS = 30  # what was bought in so many days before the cutoff is not new
CHUNK_QUERIES = 8192  # product scores are [chunk, V] and are ranked before the next chunk is asked

Predict = Callable[[Queries], Mapping[str, np.ndarray]]
"""Answers of one system to questions, by the names of ``Predictions`` in docs/design.md, at ``metrics.LEVELS``."""


@dataclass
class Assessment:
    """Collects answers of systems to ``queries`` into an :class:`Evaluation`.

    splits: name of each split and the mask of its rows, for example ``test`` all and ``test_new`` the held out.
    """

    evaluation: Evaluation
    store: Store
    vocabulary: Vocabulary
    queries: Queries
    splits: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        self.customer_Q = np.asarray(self.store.customer_id_C)[self.queries.journey_Q]

    def add(self, system: str, predict: Predict) -> None:
        """Ask one system everything and score what it can say."""
        answers, products = self._ask(predict)
        for split, rows in self.splits.items():
            if not rows.any():
                continue
            for name, realised_QK in (("value", self.queries.value_QK), ("purchases", self.queries.purchases_QK)):
                for column, days in enumerate(self.queries.horizons_days):
                    target = f"{name}_{days}d"
                    observed = self.queries.observed_QK[rows, column]
                    if f"{target}_expected" not in answers or not observed.any():
                        continue
                    said = {key: values[rows] for key, values in answers.items() if key.startswith(f"{target}_")}
                    realised = realised_QK[rows, column].astype(np.float64)
                    self.evaluation.add_value(split, target, system, realised, said, self.customer_Q[rows], observed)
            if products:
                columns = {key: values[rows] for key, values in products.items()}
                self.evaluation.add_products(split, system, columns, self.customer_Q[rows])

    def _ask(self, predict: Predict) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Answers [Q, ...] without the product scores, and the product metrics per row."""
        parts: list[Mapping[str, np.ndarray]] = []
        products: list[dict[str, np.ndarray]] = []
        for start in range(0, len(self.queries), CHUNK_QUERIES):
            queries = self.queries.take(np.arange(start, min(start + CHUNK_QUERIES, len(self.queries))))
            answers = dict(predict(queries))
            scores_QV = answers.pop("next_product_scores", None)
            answers.pop("next_type_scores", None)
            if scores_QV is not None and scores_QV.shape[1]:
                bought = next_products(self.store, self.vocabulary, queries)
                recent = recent_products(self.store, self.vocabulary, queries, RECENT_DAYS)
                products.append(product_columns(scores_QV, bought, recent))
            parts.append(answers)
        names = parts[0] if parts else {}
        whole = {name: np.concatenate([part[name] for part in parts]) for name in names}
        return whole, concatenate(products) if products else {}


def check_slices(store: Store, names: Sequence[str]) -> None:
    """Raises InputError for a name that :func:`slice_labels` does not know."""
    known = ["tenure", "recency", "spend_decile", *store.attributes_categorical]
    for name in names:
        if name not in known:
            raise InputError(f"There is no slice {name!r}. Choose from {', '.join(known)}.")


def slice_labels(store: Store, vocabulary: Vocabulary, queries: Queries, names: list[str]) -> dict[str, np.ndarray]:
    """Labels of each query by ``tenure``, ``recency``, ``spend_decile``, or the name of a categorical attribute."""
    check_slices(store, names)
    features_QF = vocabulary.aggregates.compute(store, queries.journey_Q, queries.cutoff_Q, queries.last_event_Q)
    place = {name: column for column, name in enumerate(vocabulary.aggregates.names)}
    labels: dict[str, np.ndarray] = {}
    for name in names:
        if name == "tenure":
            labels[name] = _days(features_QF[:, place["tenure_days"]], (30, 91, 182, 365))
        elif name == "recency":
            labels[name] = _days(features_QF[:, place["since_last_event_days"]], (7, 14, 30, 91))
        elif name == "spend_decile":
            labels[name] = equal_count_labels(features_QF[:, place["money_ever"]])
        else:
            dictionary = np.array(store.dictionaries[f"attributes.{name}"], dtype=object)
            labels[name] = dictionary[store.attributes_categorical[name][queries.journey_Q]]
    return labels


def _days(days_Q: np.ndarray, edges: tuple[int, ...]) -> np.ndarray:
    """Labels such as ``000-030 days``, ordered as text."""
    names = [f"{low:03d}-{high:03d} days" for low, high in zip((0, *edges), edges, strict=False)]
    names.append(f"over {edges[-1]:03d} days")
    return np.array(names, dtype=object)[np.searchsorted(edges, np.nan_to_num(days_Q, nan=np.inf), side="left")]
