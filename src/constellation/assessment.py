"""Every system through the same evaluation: the same questions, the same rows, the same resamples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from constellation.errors import InputError
from constellation.journeys.baskets import next_products, recent_products, seen_products
from constellation.journeys.store import MICROSECONDS_PER_DAY, Store
from constellation.journeys.vocabulary import Vocabulary
from constellation.journeys.waits import Waits, churn_types, has_left, waits
from constellation.journeys.windows import CLOCK_CHANGE, Queries
from constellation.metrics.evaluate import Evaluation, equal_count_labels
from constellation.metrics.names import flat_name
from constellation.metrics.ranking import concatenate, product_columns
from constellation.metrics.survival import Followed, SurvivalStatistics, watched_enough
from constellation.recalibration import Shock, Total, Totals
from constellation.schema import AMOUNT

SLICES = ("tenure", "recency", "spend_decile", "history")
TIMED = ("tenure", "recency")
RECENT_DAYS = 30  # what was bought in so many days before the cutoff is not new
CHUNK_QUERIES = 8192  # product scores are [chunk, V] and are ranked before the next chunk is asked ...
CHUNK_SCORES = 1 << 23  # ... and are at most so many, 32 MiB, for ranking makes copies

EXCLUDED = "all products ranked but those a customer already has"
INCLUDED = "all products ranked, those a customer already has among them"

Predict = Callable[[Queries], Mapping[str, np.ndarray]]
"""Answers of one system to questions, by the names of ``Predictions`` in docs/design.md, at ``metrics.LEVELS``."""


@dataclass
class Assessment:
    """Collects answers of systems to ``queries`` into an :class:`Evaluation`.

    splits: name of each split and the mask of its rows, for example ``test`` all and ``test_new`` the held out.
    exclude_seen: rank only products that the customer does not have; the printed table says which was done.
    """

    evaluation: Evaluation
    store: Store
    vocabulary: Vocabulary
    queries: Queries
    splits: Mapping[str, np.ndarray]
    exclude_seen: bool = False

    def __post_init__(self) -> None:
        self.evaluation.notes["next_product"] = EXCLUDED if self.exclude_seen else INCLUDED
        self.customer_Q = np.asarray(self.store.customer_id_C)[self.queries.journey_Q]
        self.totals: dict[tuple[str, str, str], tuple[Total, float]] = {}

    def add(self, system: str, predict: Predict, shocks: Mapping[str, Shock] | None = None) -> None:
        """Ask one system everything and score what it can say.

        shocks: of ``value`` and ``purchases``, shared by all customers; where given (even empty), the intervals of
        totals are kept too, in ``totals`` by split, target and system with what was realised.
        """
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
                    if shocks is not None:
                        self._add_total(split, target, system, realised[observed], said, observed, shocks)
            self._add_survival(split, system, rows, answers)
            if products:
                columns = {key: values[rows] for key, values in products.items()}
                self.evaluation.add_products(split, system, columns, self.customer_Q[rows])

    def _add_total(
        self,
        split: str,
        target: str,
        system: str,
        realised_Q: np.ndarray,
        said: Mapping[str, np.ndarray],
        observed_Q: np.ndarray,
        shocks: Mapping[str, Shock],
    ) -> None:
        totals = Totals(len(realised_Q))
        totals.add(np.arange(len(realised_Q)), {name: values[observed_Q] for name, values in said.items()})
        for total in totals.intervals(shocks).values():  # one, or none where the system gives no quantiles
            self.totals[split, target, system] = total, float(realised_Q.sum())

    def total_metrics(self) -> dict[str, float]:
        """``test/value_91d/model/total_expected``, ``total_q05``, ``total_q95``; ``total_coverage_90``: 1 if inside."""
        flat: dict[str, float] = {}
        for (split, target, system), (total, realised) in self.totals.items():
            found = {
                "total_expected": total.expected,
                "total_q05": total.low,
                "total_q95": total.high,
                "total_coverage_90": float(total.low <= realised <= total.high),
            }
            flat |= {flat_name(split, target, system, name): value for name, value in found.items()}
        return flat

    def total_lines(self, system: str, split: str) -> list[str]:
        """The totals of one system, for people."""
        return [
            f"total {target}: expected {total.expected:,.0f}, 90 % interval {total.low:,.0f} to {total.high:,.0f}, "
            f"realised {realised:,.0f}"
            for (of_split, target, of_system), (total, realised) in self.totals.items()
            if (of_split, of_system) == (split, system)
        ]

    def _add_survival(self, split: str, system: str, rows: np.ndarray, answers: Mapping[str, np.ndarray]) -> None:
        """P(purchase) over each horizon, and P(active) where ends of the relationship are declared."""
        queries = self.queries
        if not self.store.has_clock or queries.known_until_Q is None:
            return
        found: Waits | None = None
        for days in queries.horizons_days:
            for target in (f"p_purchase_{days}d", f"p_active_{days}d"):
                ends = target.startswith("p_active")
                if target not in answers or (ends and not churn_types(self.store)):
                    continue  # without declared ends, active means buying
                found = waits(self.store, queries) if found is None else found
                kept_Q = rows & ~has_left(self.store, queries) if ends else rows
                event_Q = found.churn_QR.min(axis=1) if ends else found.purchase_Q
                p_event_Q = 1 - answers[target] if ends else answers[target]
                # A day on which the clock changes still counts as watched.
                followed = Followed.of(event_Q[kept_Q], found.watched_Q[kept_Q] + CLOCK_CHANGE / MICROSECONDS_PER_DAY)
                if watched_enough(followed, days):
                    statistics = SurvivalStatistics(followed, p_event_Q[kept_Q], days)
                    customer_Q = self.customer_Q[rows]
                    self.evaluation.add_survival(split, target, system, statistics, customer_Q, kept_Q[rows])

    def _ask(self, predict: Predict) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Answers [Q, ...] without the product scores, and the product metrics per row."""
        parts: list[Mapping[str, np.ndarray]] = []
        products: list[dict[str, np.ndarray]] = []
        size = max(1, min(CHUNK_QUERIES, CHUNK_SCORES // max(len(self.vocabulary.products), 1)))
        for start in range(0, len(self.queries), size):
            queries = self.queries.take(np.arange(start, min(start + size, len(self.queries))))
            answers = dict(predict(queries))
            scores_QV = answers.pop("next_product_scores", None)
            answers.pop("next_type_scores", None)
            if scores_QV is not None and scores_QV.shape[1]:
                bought = next_products(self.store, self.vocabulary, queries)
                # Days mean nothing where only the order is known, and so does what was bought lately.
                lately = self.store.has_clock
                recent = recent_products(self.store, self.vocabulary, queries, RECENT_DAYS) if lately else None
                seen = seen_products(self.store, self.vocabulary, queries) if self.exclude_seen else None
                products.append(product_columns(scores_QV, bought, recent, excluded=seen))
            parts.append(answers)
        names = parts[0] if parts else {}
        whole = {name: np.concatenate([part[name] for part in parts]) for name in names}
        return whole, concatenate(products) if products else {}


def check_slices(store: Store, names: Sequence[str]) -> None:
    """Raises InputError for a name that :func:`slice_labels` does not know."""
    known = [*SLICES, *store.attributes_categorical]
    for name in names:
        if name not in known:
            raise InputError(f"There is no slice {name!r}. Choose from {', '.join(known)}.")


def meaningless_slices(store: Store, names: Sequence[str]) -> dict[str, str]:
    """Of the names those that these data cannot be sliced by, and why."""
    found = {name: "only the order of events is known" for name in names if name in TIMED and not store.has_clock}
    if "spend_decile" in names and AMOUNT not in store.numeric:
        found["spend_decile"] = "events have no amount"
    return found


def slice_labels(store: Store, vocabulary: Vocabulary, queries: Queries, names: list[str]) -> dict[str, np.ndarray]:
    """Labels of each query by a name of ``SLICES`` or of a categorical attribute.

    ``history`` is the number of events that the question may see.
    """
    check_slices(store, names)
    features_QF = vocabulary.aggregates.compute(store, queries.journey_Q, queries.cutoff_Q, queries.last_event_Q)
    place = {name: column for column, name in enumerate(vocabulary.aggregates.names)}
    labels: dict[str, np.ndarray] = {}
    for name in names:
        if name == "tenure":
            labels[name] = _bands(features_QF[:, place["tenure_days"]], (30, 91, 182, 365), "days")
        elif name == "recency":
            labels[name] = _bands(features_QF[:, place["since_last_event_days"]], (7, 14, 30, 91), "days")
        elif name == "spend_decile":
            labels[name] = equal_count_labels(features_QF[:, place["money_ever"]])
        elif name == "history":
            labels[name] = _bands(features_QF[:, place["num_events_ever"]], (5, 20, 50, 100, 200), "events")
        else:
            dictionary = np.array(store.dictionaries[f"attributes.{name}"], dtype=object)
            labels[name] = dictionary[store.attributes_categorical[name][queries.journey_Q]]
    return labels


def _bands(amount_Q: np.ndarray, edges: tuple[int, ...], unit: str) -> np.ndarray:
    """Labels such as ``000-030 days``, ordered as text."""
    names = [f"{low:03d}-{high:03d} {unit}" for low, high in zip((0, *edges), edges, strict=False)]
    names.append(f"over {edges[-1]:03d} {unit}")
    return np.array(names, dtype=object)[np.searchsorted(edges, np.nan_to_num(amount_Q, nan=np.inf), side="left")]
