"""Answers as a table: which columns, in which units, and how far two tables are apart."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from constellation.errors import InputError
from constellation.journeys.vocabulary import Vocabulary
from constellation.metrics.ranking import top_k
from constellation.schema import CUSTOMER_ID, EVENT_TYPE, PRODUCT, EventSchema

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)

QUANTILES, SCORES = "_quantiles", "_scores"
RANKED = {"next_product": PRODUCT, "next_type": EVENT_TYPE}
"""Answers that score the known values of a column; the best of them enter the table."""

MAX_TYPES = 3  # event types are few, and the likeliest say it all


def check_levels(levels: Sequence[float]) -> list[float]:
    """Ascending distinct levels strictly between 0 and 1, or InputError."""
    found = [float(level) for level in levels]
    if not found or any(not 0 < level < 1 for level in found) or sorted(set(found)) != found:
        raise InputError(f"levels must rise strictly within (0, 1), such as [0.05, 0.5, 0.95]; found {found}.")
    return found


def level_name(level: float) -> str:
    """``q05`` for 0.05, ``q50`` for 0.5, ``q975`` for 0.975: the digits after the point, two at least."""
    digits = np.format_float_positional(level, trim="-").split(".")[1]
    return f"q{digits:0<2}"


class AnswerTable:
    """Collects answers batch by batch: numbers as they are, quantiles one column per level, the best of the scores."""

    def __init__(self, vocabulary: Vocabulary, num_rows: int, levels: Sequence[float], top_products: int) -> None:
        self.vocabulary, self.num_rows, self.levels, self.top_products = vocabulary, num_rows, levels, top_products
        self.columns: dict[str, np.ndarray] = {}

    def add(self, rows: np.ndarray, answers: Mapping[str, np.ndarray]) -> None:
        """Answers [rows, ...] by the names of docs/design.md, for ``rows`` of the table."""
        for name, values in answers.items():
            if name.endswith(QUANTILES):
                assert values.shape == (len(rows), len(self.levels))
                for place, level in enumerate(self.levels):
                    self._put(f"{name.removesuffix(QUANTILES)}_{level_name(level)}", rows, values[:, place])
            elif name.endswith(SCORES):
                self._rank(name.removesuffix(SCORES), rows, values)
            else:
                self._put(name, rows, values)

    def _rank(self, name: str, rows: np.ndarray, scores_QV: np.ndarray) -> None:
        values = np.array(self.vocabulary.categories[RANKED[name]], dtype=object)
        assert scores_QV.shape == (len(rows), len(values))
        # The scores are logits of one softmax: as probabilities they can be compared between customers.
        exponent_QV = np.exp((scores_QV - scores_QV.max(axis=1, keepdims=True, initial=-np.inf)).astype(np.float64))
        probability_QV = exponent_QV / exponent_QV.sum(axis=1, keepdims=True)
        most = min(self.top_products if name == "next_product" else MAX_TYPES, len(values))
        best_QT = top_k(scores_QV, most)
        for place in range(most):
            self._put(f"{name}_{place + 1}", rows, values[best_QT[:, place]])
            best_Q1 = best_QT[:, place : place + 1]
            self._put(f"{name}_{place + 1}_score", rows, np.take_along_axis(probability_QV, best_Q1, axis=1)[:, 0])

    def _put(self, name: str, rows: np.ndarray, values: np.ndarray) -> None:
        if name not in self.columns:
            # Sums of money over many customers need more digits than float32 has.
            self.columns[name] = np.empty(self.num_rows, dtype=object if values.dtype == object else np.float64)
        self.columns[name][rows] = values

    def frame(self, customer_id: np.ndarray) -> pd.DataFrame:
        """One row per customer, values before purchases before products, horizons as the model gives them."""
        import pandas as pd

        def turn(name: str) -> int:
            return 0 if name.startswith("value_") else 1 if name.startswith("purchases_") else 2

        names = sorted(self.columns, key=turn)
        return pd.DataFrame({CUSTOMER_ID: customer_id} | {name: self.columns[name] for name in names})


def describe(frame: pd.DataFrame, schema: EventSchema) -> dict[str, tuple[str, str]]:
    """Unit and meaning of each column of a table of predictions, for the model card."""
    money = schema.currency or "money, in the unit of `amount`"
    found = {}
    for name in map(str, frame.columns):
        amount = re.fullmatch(r"(value|purchases)_(\d+)d_(expected|p_zero|q\d+)", name)
        ranked = re.fullmatch(r"(next_product|next_type)_(\d+)(_score)?", name)
        if name == CUSTOMER_ID:
            found[name] = ("", "the key, as in the events")
        elif amount is not None:
            what, days, kind = amount.groups()
            unit = money if what == "value" else "purchases"
            thing = "money" if what == "value" else "number of purchases"
            if kind == "p_zero":
                found[name] = ("probability", f"that the {thing} in the {days} days after the cutoff is zero")
            elif kind == "expected":
                found[name] = (unit, f"expected {thing} in the {days} days after the cutoff")
            else:
                found[name] = (unit, f"quantile 0.{kind[1:]} of the {thing} in the {days} days after the cutoff")
        elif ranked is not None:
            what, place, score = ranked.groups()
            thing = "product of the next basket" if what == "next_product" else "type of the next event"
            if score:
                found[name] = ("probability", f"of `{name.removesuffix('_score')}`; all known values together have 1")
            else:
                found[name] = ("", f"likeliest {thing}, rank {place}")
        else:
            found[name] = ("", "see the objective that the model was trained with")
    return found


def largest_difference(first: pd.DataFrame, second: pd.DataFrame) -> float:
    """Largest relative difference between the numbers of two tables with the same customers, matched by id.

    Relative to the larger of the two, and to a thousandth of the column's mean size at least, so that two near-zeros
    are equal. Names of products count through their scores alone, because equal scores may change places. Of each
    column of quantiles the largest hundredth is left out: counts step, and money near the level P(zero) rises straight
    up, so that there the last digit of a float32 shows. Infinite where the columns or the customers differ, or a number
    on one side only is not finite.
    """
    first, second = (frame.set_index(CUSTOMER_ID).sort_index() for frame in (first, second))
    if not first.columns.equals(second.columns) or not first.index.equals(second.index):
        return float("inf")
    largest = 0.0
    for name in first.select_dtypes("number").columns:
        one, two = first[name].to_numpy(dtype=np.float64), second[name].to_numpy(dtype=np.float64)
        if not np.array_equal(np.isfinite(one), np.isfinite(two)):
            return float("inf")
        one, two = one[np.isfinite(one)], two[np.isfinite(two)]
        if len(one):
            size = np.maximum(np.maximum(np.abs(one), np.abs(two)), max(1e-3 * float(np.abs(one).mean()), 1e-12))
            share = 0.99 if re.search(r"_q\d+$", name) else 1.0
            largest = max(largest, float(np.quantile(np.abs(one - two) / size, share, method="lower")))
    return largest
