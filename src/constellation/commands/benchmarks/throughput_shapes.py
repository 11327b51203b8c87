"""The shapes on which throughput is measured, and the common input: one folder per shape that every system reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from constellation.errors import InputError
from constellation.journeys.store import MICROSECONDS_PER_DAY
from constellation.paths import data_root
from constellation.schema import AMOUNT, CHANNEL, CUSTOMER_ID, EVENT_TIME, EVENT_TYPE, PRODUCT

if TYPE_CHECKING:
    from constellation.journeys.dataset import DataSet

FIRST_TIME = 1_577_836_800_000_000  # 2020-01-01, for data that have none of their own
SHORT_FIELDS = ("store_id", CHANNEL)  # what a shop knows of a purchase beside its products and its amount
CATALOGUE_SIZE = 50_000


@dataclass(frozen=True)
class Shape:
    """Data and the size of a step. ``batch`` journeys; of a journey the last ``max_length`` events are read."""

    name: str
    about: str
    max_length: int
    batch: int
    make: Callable[[DataSet], Events]


@dataclass
class Events:
    """All events of a shape, journey after journey, each in the order of time.

    offsets: [C + 1]. time_N: int64 microseconds, or the place in the journey where ``clock`` is ``order`` (as in
    ``EventSchema``). item_N: int64 from 1 to ``num_items``, for systems that read one item per event.
    products: codes from 0 [M], offsets [N + 1], and the names of the codes; None where the item is the product.
    categories: codes from 1 [N], 0 for missing, and the names of the codes. numbers: float64 [N], NaN for missing.
    """

    offsets: np.ndarray
    time_N: np.ndarray
    item_N: np.ndarray
    num_items: int
    categories: dict[str, tuple[np.ndarray, list[str]]]
    numbers: dict[str, np.ndarray] = field(default_factory=dict)
    products: tuple[np.ndarray, np.ndarray, list[str]] | None = None
    clock: str = "time"

    @property
    def num_journeys(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_products(self) -> int:
        return self.num_items if self.products is None else len(self.products[2])

    @property
    def says_more_than_items(self) -> bool:
        """Whether an event has more to it than one item and its place: a time, several products, fields."""
        several_types = len(self.categories[EVENT_TYPE][1]) > 1
        return self.clock != "order" or self.products is not None or several_types or len(self.categories) > 1

    def items_alone(self) -> Events:
        """What systems read that take one item per event: the items in their order, and nothing else."""
        place_N = np.arange(len(self.item_N)) - np.repeat(self.offsets[:-1], np.diff(self.offsets))
        types = {EVENT_TYPE: (np.ones(len(self.item_N), dtype=np.int64), ["event"])}
        return Events(self.offsets, place_N, self.item_N, self.num_items, types, clock="order")

    def write(self, folder: Path) -> None:
        """Write ``sequences.npz`` for peers (see ``throughput_meter.Task``) and the event table ``events.parquet``."""
        import polars as pl

        arrays: dict[str, Any] = {"offsets": self.offsets, "item": self.item_N, "time": self.time_N}
        arrays |= {f"field.{name}": codes for name, (codes, _) in self.categories.items()}
        arrays |= {f"number.{name}": values for name, values in self.numbers.items()}
        np.savez(folder / "sequences.npz", **arrays)
        time = pl.Series(self.time_N)
        columns = {
            CUSTOMER_ID: pl.Series(np.repeat(np.arange(self.num_journeys), np.diff(self.offsets))),
            EVENT_TIME: time if self.clock == "order" else time.cast(pl.Datetime("us")),
            PRODUCT: self._product_lists(),
        }
        for name, (codes, names) in self.categories.items():
            columns[name] = pl.Series([None, *names], dtype=pl.String).gather(codes)
        columns |= {name: pl.Series(values) for name, values in self.numbers.items()}
        pl.DataFrame(columns).write_parquet(folder / "events.parquet")

    def _product_lists(self) -> pl.Series:  # type: ignore[name-defined]  # noqa: F821
        import polars as pl
        import pyarrow as pa

        if self.products is None:
            return pl.Series(self.item_N).cast(pl.String)
        codes_M, offsets_N, names = self.products
        values = pa.DictionaryArray.from_arrays(pa.array(codes_M.astype(np.int32)), pa.array(names)).cast(pa.string())
        return pl.Series(pa.LargeListArray.from_arrays(pa.array(offsets_N, pa.int64()), values))


def films(_: DataSet) -> Events:
    """MovieLens-1M in the order of its ratings, less each person's last two, which belong to validation and test.

    Raises InputError where ``ml-1m/interactions.parquet`` is not in the folder of raw data.
    """
    import polars as pl

    path = data_root() / "ml-1m" / "interactions.parquet"
    if not path.is_file():
        raise InputError(
            f"The shapes films_200 and films_50 read MovieLens-1M (ml-1m), but there is no {path}. Put it there, set "
            "the environment variable CONSTELLATION_DATA to the folder that has ml-1m, or leave these shapes out."
        )
    ratings = (
        pl.read_parquet(path, columns=["sasrec_user", "sasrec_item", "position"])
        .drop_nulls()
        .sort("sasrec_user", "position")
        .filter(pl.col("position") < pl.col("position").max().over("sasrec_user") - 1)
    )
    lengths = ratings["sasrec_user"].rle().struct.field("len").to_numpy()
    item_N = ratings["sasrec_item"].to_numpy().astype(np.int64)
    return Events(
        offsets=_offsets(lengths),
        time_N=ratings["position"].to_numpy().astype(np.int64),
        item_N=item_N,
        num_items=int(item_N.max()),
        categories={EVENT_TYPE: (np.ones(len(item_N), dtype=np.int64), ["rating"])},
        clock="order",
    )


def short(data: DataSet) -> Events:
    """The events of ``data``: type, list of products, store, amount and time.

    Systems that read one item per event get its main product, which is the one that is rarest in the data and so says
    most about the event; an event without products gets an item of its type.
    """
    from constellation.journeys.prepare import prepare

    store = prepare(data)
    kept = np.flatnonzero(np.diff(store.first_event_C) > 0)
    names = [name for name in (EVENT_TYPE, *SHORT_FIELDS) if name in store.categorical]
    categories = {
        name: (store.categorical[name].astype(np.int64), [str(value) for value in store.dictionaries[name][1:]])
        for name in names
    }
    type_N, types = categories[EVENT_TYPE]
    products, item_N, num_products = None, np.zeros(store.num_events, dtype=np.int64), 0
    if PRODUCT in store.lists:
        codes_M, offsets_N = (np.asarray(part, dtype=np.int64) for part in store.lists[PRODUCT])
        products = (codes_M - 1, offsets_N, [str(value) for value in store.dictionaries[PRODUCT][1:]])
        item_N, num_products = _rarest(codes_M, offsets_N), len(products[2])
    return Events(
        offsets=_offsets(np.diff(store.first_event_C)[kept]),
        time_N=np.array(store.time_N),
        item_N=np.where(item_N > 0, item_N, num_products + type_N),
        num_items=num_products + len(types),
        categories=categories,
        numbers={AMOUNT: np.array(store.numeric[AMOUNT])} if AMOUNT in store.numeric else {},
        products=products,
    )


def catalogue(_: DataSet) -> Events:
    """A made-up shop of 50,000 products: few are bought often (Zipf), every one at least once; journeys are short."""
    return simulate_catalogue(num_journeys=20_000, num_products=CATALOGUE_SIZE, seed=0)


def simulate_catalogue(*, num_journeys: int, num_products: int, seed: int) -> Events:
    """Log-normal journey lengths (median 15, deviation of the log 0.9 as in the Complete Journey, 2 to 500 events).

    A product of popularity rank r is drawn with weight 1 / r; a random event for each product makes sure of it. Times
    between events are exponential with a mean of a week.
    """
    rng = np.random.default_rng(seed)
    lengths = np.clip(np.round(rng.lognormal(np.log(15.0), 0.9, num_journeys)), 2, 500).astype(np.int64)
    num_events = int(lengths.sum())
    weights = 1.0 / np.arange(1, num_products + 1)
    ranks_N = rng.choice(num_products, num_events, p=weights / weights.sum())
    sure = rng.permutation(num_events)[:num_products]
    ranks_N[sure] = np.arange(len(sure))
    item_N = rng.permutation(num_products)[ranks_N] + 1  # so that the number of a product says nothing about its rank
    offsets = _offsets(lengths)
    gaps_N = rng.exponential(7 * MICROSECONDS_PER_DAY, num_events)
    gaps_N[offsets[:-1]] = rng.uniform(0, 365 * MICROSECONDS_PER_DAY, num_journeys)
    running_N = np.cumsum(gaps_N)
    before_C = running_N[offsets[:-1]] - gaps_N[offsets[:-1]]
    time_N = FIRST_TIME + (running_N - np.repeat(before_C, lengths)).astype(np.int64)
    return Events(
        offsets=offsets,
        time_N=time_N,
        item_N=item_N,
        num_items=num_products,
        categories={EVENT_TYPE: (np.ones(num_events, dtype=np.int64), ["purchase"])},
    )


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def _rarest(codes_M: np.ndarray, offsets_N: np.ndarray) -> np.ndarray:
    """Of each list the value that occurs least in all lists, the smallest of equals; 0 for an empty list."""
    rank_V = np.empty(int(codes_M.max(initial=0)) + 1, dtype=np.int64)
    order = np.argsort(np.bincount(codes_M, minlength=len(rank_V)), kind="stable")
    rank_V[order] = np.arange(len(order))
    found_N = np.zeros(len(offsets_N) - 1, dtype=np.int64)
    filled = np.flatnonzero(np.diff(offsets_N) > 0)
    if len(filled):
        found_N[filled] = order[np.minimum.reduceat(rank_V[codes_M], offsets_N[:-1][filled])]
    return found_N


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("films_200", "MovieLens-1M less each person's last two ratings", 200, 128, films),
        Shape("films_50", "the same, cut to 50", 50, 256, films),
        Shape("short", "several fields per event, skewed journeys", 200, 128, short),
        Shape("catalogue", "simulated shop of 50,000 products, short journeys", 50, 64, catalogue),
    )
}
