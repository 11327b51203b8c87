"""Customer attributes as columns of a regression: standardised numbers, one column per known category."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from constellation.errors import InputError

if TYPE_CHECKING:
    from constellation.journeys.store import Store
    from constellation.journeys.vocabulary import Vocabulary


@dataclass(frozen=True)
class Covariates:
    """Names of attributes, and what the training customers taught of each.

    categories: known values of a categorical attribute, each a column of zeros and ones less its training mean.
    A missing or unknown value is 0 everywhere, as is a missing number: the average customer.
    """

    names: tuple[str, ...]
    categories: dict[str, tuple[str, ...]]
    shares: dict[str, np.ndarray]
    moments: dict[str, tuple[float, float]]

    @classmethod
    def fit(cls, store: Store, vocabulary: Vocabulary, journeys: np.ndarray, names: Sequence[str]) -> Covariates:
        """Learn from ``journeys``. Raises InputError for a name that is no attribute of the customers table."""
        known = [*store.attributes_categorical, *store.attributes_numeric]
        missing = [name for name in names if name not in known]
        if missing:
            raise InputError(
                f"The covariates {', '.join(missing)} are no attributes of the customers; these have "
                f"{', '.join(known) or 'none'}. Name some of those, or leave covariates empty."
            )
        categories, shares, moments = {}, {}, {}
        for name in names:
            if name in store.attributes_categorical:
                categories[name] = tuple(vocabulary.categories[f"attributes.{name}"])
                shares[name] = _indicators(store, name, journeys, categories[name]).mean(axis=0)
            else:
                values = store.attributes_numeric[name][journeys]
                values = values[np.isfinite(values)]
                spread = float(values.std()) if len(values) else 0.0
                moments[name] = (float(values.mean()) if len(values) else 0.0, spread if spread > 1e-9 else 1.0)
        return cls(tuple(names), categories, shares, moments)

    @property
    def num_columns(self) -> int:
        return sum(len(values) for values in self.categories.values()) + len(self.moments)

    def matrix(self, store: Store, journey_Q: np.ndarray) -> np.ndarray:
        """[Q, F], float64."""
        columns = [np.empty((len(journey_Q), 0))]
        for name in self.names:
            if name in self.categories:
                found_QV = _indicators(store, name, journey_Q, self.categories[name])
                known_Q1 = found_QV.any(axis=1, keepdims=True)
                columns.append(np.where(known_Q1, found_QV - self.shares[name], 0.0))
            else:
                mean, spread = self.moments[name]
                values_Q1 = store.attributes_numeric[name][journey_Q][:, None]
                columns.append(np.nan_to_num((values_Q1 - mean) / spread))
        return np.concatenate(columns, axis=1)


def _indicators(store: Store, name: str, journey_Q: np.ndarray, values: Sequence[str]) -> np.ndarray:
    dictionary = store.dictionaries[f"attributes.{name}"]
    place = {value: row for row, value in enumerate(dictionary)}
    codes = np.array([place.get(value, -1) for value in values], dtype=np.int64)
    return (store.attributes_categorical[name][journey_Q][:, None] == codes).astype(np.float64)
