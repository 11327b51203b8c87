"""What follows from the events in their order: running sums, and the fingerprint of it all."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from constellation.journeys import layout
from constellation.journeys.spool import NUM_EVENTS
from constellation.journeys.store import MONEY_SCALE
from constellation.schema import AMOUNT, CUSTOMER_ID

if TYPE_CHECKING:
    import polars as pl

    from constellation.journeys.build import Ordered
    from constellation.journeys.tables import CodedAttributes


class ContentHash:
    """Fingerprint of what a store holds, fed column by column in any chunks; equal for equal stores."""

    def __init__(self) -> None:
        self._hashes: dict[str, Any] = {}

    def update(self, name: str, values: np.ndarray) -> None:
        hasher = self._hashes.setdefault(name, hashlib.blake2b(digest_size=16))
        hasher.update(np.ascontiguousarray(values).view(np.uint8))

    def digest(self, ordered: Ordered, attributes: CodedAttributes) -> str:
        for name, (values, dictionary) in attributes.items():
            if len(values):
                self.update(layout.ATTRIBUTE + name, values)
            self._hashes[layout.ATTRIBUTE + name + ".dictionary"] = _hash_json(dictionary)
        ids = ordered.customers[CUSTOMER_ID]
        if ids.len():
            self.update(CUSTOMER_ID, ids.to_numpy() if ids.dtype.is_integer() else _string_bytes(ids))
            self.update(NUM_EVENTS, ordered.customers[NUM_EVENTS].to_numpy())
        self._hashes["dictionaries"] = _hash_json(ordered.dictionaries)
        self._hashes["schema"] = _hash_json(asdict(ordered.schema))
        return _hash_json({name: hasher.hexdigest() for name, hasher in self._hashes.items()}).hexdigest()


def _hash_json(value: Any) -> Any:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=16)


def _string_bytes(ids: pl.Series) -> np.ndarray:
    return np.frombuffer("\x00".join(ids.to_list()).encode(), dtype=np.uint8)


class RunningSums:
    """Money in whole millionths and number of purchases, carried from range to range."""

    def __init__(self) -> None:
        self.amount = self.purchases = 0

    def extend(self, columns: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Sums up to and including each event, int64."""
        purchase_N = columns[layout.PURCHASE]
        purchases_N = np.cumsum(purchase_N, dtype=np.int64) + self.purchases
        if AMOUNT in columns:
            money_N = np.nan_to_num(columns[AMOUNT] * MONEY_SCALE)
            # Sums may wrap around 64 bits in very large stores; their differences stay exact.
            amounts_N = np.cumsum(np.rint(money_N, out=money_N).astype(np.int64)) + np.int64(self.amount)
        else:
            amounts_N = np.zeros(len(purchase_N), dtype=np.int64)
        if len(purchase_N):
            self.amount, self.purchases = amounts_N[-1], purchases_N[-1]
        return amounts_N, purchases_N


def feed(content: ContentHash, columns: dict[str, Any], list_starts: dict[str, int]) -> None:
    """Hash a stretch of the store; what follows from other columns (sums, rows of customers) is left out."""
    for name, values in columns.items():
        if name == layout.JOURNEY:
            continue
        if isinstance(values, tuple):
            content.update(name, values[0])
            content.update(name + ".ends", values[1][1:] + list_starts[name])
        else:
            content.update(name, values)
