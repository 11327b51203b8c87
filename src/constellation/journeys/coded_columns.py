"""The columns of a store in the codes of a vocabulary, row by row, as numpy arrays."""

from __future__ import annotations

import numpy as np

from constellation.errors import InputError
from constellation.journeys.store import Store
from constellation.journeys.vocabulary import Vocabulary, ragged_arange
from constellation.schema import CATEGORICAL, NUMERIC


class CodedColumns:
    """What the rows of a store say, in model codes. A column or attribute that the store lacks is missing everywhere.

    Raises InputError where the store holds a column as another kind than the vocabulary was fitted on.
    """

    def __init__(self, store: Store, vocabulary: Vocabulary) -> None:
        _check_kinds(store, vocabulary)
        self.store, self.vocabulary = store, vocabulary
        names = [*vocabulary.categorical, *vocabulary.lists]
        names += [f"attributes.{name}" for name in vocabulary.attributes_categorical]
        self.tables = {
            name: vocabulary.table(name, store.dictionaries[name]) for name in names if name in store.dictionaries
        }

    def categorical(self, name: str, rows_N: np.ndarray) -> np.ndarray:
        """Model codes of a categorical column at these events, int64 [N]."""
        if name not in self.store.categorical:
            return np.zeros(len(rows_N), dtype=np.int64)
        return self.tables[name][self.store.categorical[name][rows_N]]

    def numeric(self, name: str, rows_N: np.ndarray) -> np.ndarray:
        """In the units of the store, float64 [N]; NaN is missing."""
        if name not in self.store.numeric:
            return np.full(len(rows_N), np.nan)
        return np.asarray(self.store.numeric[name][rows_N], dtype=np.float64)

    def entries(self, name: str, rows_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Model codes [M] of a list column and where each row's begin, [N + 1]; a row of -1 is an empty list."""
        if name not in self.store.lists:
            return np.empty(0, dtype=np.int64), np.zeros(len(rows_N) + 1, dtype=np.int64)
        values_M, offsets = self.store.lists[name]
        begin_N = offsets[np.maximum(rows_N, 0)].astype(np.int64)
        length_N = offsets[rows_N + 1].astype(np.int64) - begin_N  # row -1 ends at offset 0, where row 0 begins
        codes_M = self.tables[name][values_M[ragged_arange(begin_N, length_N)]]
        return codes_M, np.concatenate([[0], np.cumsum(length_N)])

    def attribute(self, name: str, journeys: np.ndarray) -> np.ndarray:
        """Model codes of a categorical attribute of these customers, int64 [B]."""
        if name not in self.store.attributes_categorical:
            return np.zeros(len(journeys), dtype=np.int64)
        return self.tables[f"attributes.{name}"][self.store.attributes_categorical[name][journeys]]

    def attribute_number(self, name: str, journeys: np.ndarray) -> np.ndarray:
        """A numeric attribute of these customers, scaled, [B]; missing is 0."""
        if name not in self.store.attributes_numeric:
            return np.zeros(len(journeys), dtype=np.float32)
        return self.vocabulary.attribute_scaler[name](self.store.attributes_numeric[name][journeys][:, None])[:, 0]


def _check_kinds(store: Store, vocabulary: Vocabulary) -> None:
    """Raise InputError where a column was fitted as one kind and comes as another, with something in it."""
    for name, kind in vocabulary.kinds.items():
        found = store.manifest.kinds.get(name, kind)
        if found != kind:
            raise InputError(_other_kind(f"column {name!r}", kind, found))
    for name in vocabulary.attributes_numeric:
        if len(store.dictionaries.get(f"attributes.{name}", ())) > 1:
            raise InputError(_other_kind(f"attribute {name!r}", NUMERIC, CATEGORICAL))
    for name in vocabulary.attributes_categorical:
        if np.isfinite(store.attributes_numeric.get(name, np.empty(0))).any():
            raise InputError(_other_kind(f"attribute {name!r}", CATEGORICAL, NUMERIC))


def _other_kind(what: str, fitted: str, found: str) -> str:
    return (
        f"The {what} was {fitted} when the model was trained and is {found} here. "
        "Give it the type that it has in the training data."
    )
