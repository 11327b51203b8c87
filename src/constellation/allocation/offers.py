"""Stored predictions, long format, as dense arrays: what each engagement would bring each customer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from constellation.errors import InputError
from constellation.journeys.decisions import NONE
from constellation.schema import ACTION, CHANNEL, CUSTOMER_ID

if TYPE_CHECKING:
    import polars as pl

EXPECTED, LOWER, COST, ELIGIBLE, PROPENSITY, GROUP = "expected", "lower", "cost", "eligible", "propensity", "group"
NUMBERS = (EXPECTED, LOWER, COST, PROPENSITY)
BATCH_ROWS = 1_000_000
EXACT_COSTS = 20_000_000
"""Up to so many, costs of their own per customer are kept as they are; beyond, as float32, rounded up."""


@dataclass
class Offers:
    """``A`` engagements (``none`` is not among them) for ``C`` customers.

    customer_id_C: values as given, in the order of the table. action, channel: text by engagement ``A``.
    expected_CA, lower_CA: float32, net value, NaN where an engagement is not offered to a customer (and in ``lower_CA``
    where no bound is known). eligible_CA: bool. cost: [A] where each action has one cost, else [C, A] (many as float32,
    rounded up). none_expected_C, none_lower_C: float32, of no contact. group_C: int16 codes of ``groups``, or None.
    weight_CA: float32, the share of each engagement when exploring, or None for equal shares; none_weight_C beside it.
    """

    customer_id_C: np.ndarray
    action: list[str]
    channel: list[str]
    expected_CA: np.ndarray
    lower_CA: np.ndarray
    eligible_CA: np.ndarray
    cost: np.ndarray
    none_expected_C: np.ndarray
    none_lower_C: np.ndarray
    group_C: np.ndarray | None = None
    groups: tuple[str, ...] = ()
    weight_CA: np.ndarray | None = None
    none_weight_C: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.customer_id_C)


def read_offers(
    source: str | Path | pl.DataFrame,
    *,
    costs: Mapping[str, float] | None = None,
    channels: Mapping[str, str] | None = None,
    is_net: bool = True,
) -> Offers:
    """Offers from a Parquet file or a polars frame with ``customer_id, action, expected`` and, as known, ``lower,
    channel, cost, eligible, propensity, group``; one row per customer, action and channel.

    A file whose customers lie together is read in batches; else it is sorted in memory. Rows with the action ``none``
    give the value of no contact, 0 where there is none. is_net: costs are taken off ``expected`` and ``lower`` already.
    Raises InputError for a table that is not of this form.
    """
    import polars as pl

    table = pl.scan_parquet(source) if isinstance(source, str | Path) else source.lazy()
    if isinstance(source, str | Path) and not Path(source).is_file():
        raise InputError(f"There are no predictions at {source}. A Parquet file was expected.")
    columns = table.collect_schema()
    missing = [name for name in (CUSTOMER_ID, ACTION, EXPECTED) if name not in columns]
    if missing:
        raise InputError(f"The predictions lack {', '.join(missing)}; they have {', '.join(columns.names())}.")
    wanted = [CUSTOMER_ID, ACTION, EXPECTED]
    wanted += [name for name in (LOWER, CHANNEL, COST, ELIGIBLE, PROPENSITY, GROUP) if name in columns]
    kinds = [pl.col(name).cast(pl.Float64) for name in NUMBERS if name in columns]
    kinds += [pl.col(name).cast(pl.String) for name in (ACTION, CHANNEL, GROUP) if name in columns]
    kinds += [pl.col(ELIGIBLE).cast(pl.Boolean)] if ELIGIBLE in columns else []
    table = table.select(wanted)

    ids, source_is_sorted = _customers(source)
    if len(ids) == 0:
        raise InputError("The predictions have no rows.")
    if ids.null_count():
        raise InputError(f"{ids.null_count():,} predictions have no {CUSTOMER_ID}.")
    if not source_is_sorted:
        table = table.sort(CUSTOMER_ID, maintain_order=True)
        source = table.collect()
    offers, key_of, group_of = _empty(table, ids, columns, costs, channels)
    num_rows, seen_CA = 0, np.zeros(offers.expected_CA.shape, dtype=bool)
    costs_A = _CostRange(len(offers.action))
    seen_none_C = np.zeros(len(ids), dtype=bool)
    last_id, row = None, -1
    for batch in _batches(source, wanted):
        batch = batch.with_columns(kinds)
        _check_batch(batch)
        id_N = batch[CUSTOMER_ID]
        is_new_N = (id_N != id_N.shift(1)).fill_null(True).to_numpy().copy()
        is_new_N[0] = last_id is None or id_N[0] != last_id
        row_N = row + np.cumsum(is_new_N)
        row, last_id = int(row_N[-1]), id_N[-1]
        _place(offers, batch, row_N, key_of, group_of, channels, seen_CA, seen_none_C, costs_A)
        num_rows += len(batch)
    repeated = num_rows - int(seen_CA.sum()) - int(seen_none_C.sum())
    if repeated:
        raise InputError(
            f"{repeated:,} predictions repeat a customer, action and channel; one row of each was expected."
        )
    if offers.cost.ndim == 2 and np.all(costs_A.low >= costs_A.high):  # no matrix is carried about for nothing
        offers.cost = costs_A.high
    if not is_net:
        price = np.where(seen_CA, offers.cost, 0).astype(np.float32)
        offers.expected_CA -= price
        offers.lower_CA -= price
    offers.eligible_CA &= seen_CA
    return offers


def _customers(source: Any) -> tuple[pl.Series, bool]:
    """The ids, one each, in order of appearance where the rows of each lie together, else ascending."""
    import polars as pl

    runs = [batch[CUSTOMER_ID].rle().struct.field("value") for batch in _batches(source, [CUSTOMER_ID])]
    ids = pl.concat(runs) if runs else pl.Series(CUSTOMER_ID, [], dtype=pl.Int64)
    ids = ids.rle().struct.field("value").alias(CUSTOMER_ID)  # a customer may lie on both sides of a batch's edge
    if ids.n_unique() == len(ids):
        return ids, True
    return ids.unique().sort(), False


def _batches(source: Any, columns: list[str]) -> Iterator[pl.DataFrame]:
    import polars as pl

    if isinstance(source, str | Path):
        import pyarrow.parquet as pq

        for batch in pq.ParquetFile(source).iter_batches(BATCH_ROWS, columns=columns):
            if batch.num_rows:
                frame = pl.from_arrow(batch)
                assert isinstance(frame, pl.DataFrame)
                yield frame.select(columns)
    elif len(source):
        yield source.select(columns)


def _empty(
    table: pl.LazyFrame,
    ids: pl.Series,
    columns: Any,
    costs: Mapping[str, float] | None,
    channels: Mapping[str, str] | None,
) -> tuple[Offers, dict[tuple[str, str], int], dict[str, int]]:
    """Offers to be filled, and the place of each engagement and group."""
    import polars as pl

    named = [ACTION, CHANNEL] if CHANNEL in columns else [ACTION]
    pairs = table.select(pl.col(named).cast(pl.String)).unique().collect()
    if pairs[ACTION].null_count():
        raise InputError("Some predictions have no action. Call the choice not to contact `none`.")
    keys = sorted({(row[ACTION], _channel(row, channels)) for row in pairs.to_dicts() if row[ACTION] != NONE})
    if not keys:
        raise InputError("The predictions know no action but `none`; there is nothing to plan.")
    actions = {action for action, _ in keys}
    for name, given in (("costs", costs), ("channels", channels)):
        stray = sorted(set(given or {}) - actions - {NONE})
        if stray:
            raise InputError(f"constraints.{name} names {stray[0]}, which is no action: {', '.join(sorted(actions))}.")
    groups: list[str] = []
    if GROUP in columns:
        groups = sorted(table.select(pl.col(GROUP).cast(pl.String).unique()).collect()[GROUP].fill_null("").to_list())
    shape = (len(ids), len(keys))
    exact = shape[0] * shape[1] <= EXACT_COSTS
    cost: np.ndarray = np.zeros(shape, np.float64 if exact else np.float32)
    if COST not in columns:
        cost = np.array([float((costs or {}).get(action, 0.0)) for action, _ in keys])
    offers = Offers(
        customer_id_C=ids.to_numpy(),
        action=[action for action, _ in keys],
        channel=[channel for _, channel in keys],
        expected_CA=np.full(shape, np.nan, np.float32),
        lower_CA=np.full(shape, np.nan, np.float32),
        eligible_CA=np.ones(shape, dtype=bool),
        cost=cost,
        none_expected_C=np.zeros(len(ids), np.float32),
        none_lower_C=np.zeros(len(ids), np.float32),
        group_C=np.zeros(len(ids), np.int16) if groups else None,
        groups=tuple(groups),
        weight_CA=np.zeros(shape, np.float32) if PROPENSITY in columns else None,
        none_weight_C=np.zeros(len(ids), np.float32) if PROPENSITY in columns else None,
    )
    return offers, {key: place for place, key in enumerate(keys)}, {name: code for code, name in enumerate(groups)}


def _channel(row: Mapping[str, Any], channels: Mapping[str, str] | None) -> str:
    return row.get(CHANNEL) or (channels or {}).get(row[ACTION]) or row[ACTION]


def _check_batch(batch: pl.DataFrame) -> None:
    import polars as pl

    unknown = int((~pl.select(batch[EXPECTED].is_finite().fill_null(False)).to_series()).sum())
    if unknown:
        raise InputError(
            f"{unknown:,} predictions have no finite `expected`. Leave out the row of an action that cannot be scored."
        )
    for name, low, high in ((COST, 0.0, float("inf")), (PROPENSITY, 0.0, 1.0)):
        if name in batch.columns:
            values = batch[name].drop_nulls()
            if len(values) and not bool(values.is_between(low, high).all()):
                raise InputError(f"`{name}` of the predictions must lie in [{low:g}, {high:g}]; some do not.")


def _place(
    offers: Offers,
    batch: pl.DataFrame,
    row_N: np.ndarray,
    key_of: Mapping[tuple[str, str], int],
    group_of: Mapping[str, int],
    channels: Mapping[str, str] | None,
    seen_CA: np.ndarray,
    seen_none_C: np.ndarray,
    costs_A: _CostRange,
) -> None:
    """Put the rows of a batch where they belong."""
    import polars as pl

    named = [ACTION, CHANNEL] if CHANNEL in batch.columns else [ACTION]
    pairs = batch.select(named).unique()
    places = [-1 if row[ACTION] == NONE else key_of[row[ACTION], _channel(row, channels)] for row in pairs.to_dicts()]
    place = batch.join(
        pairs.with_columns(pl.Series("place", places)), on=named, how="left", nulls_equal=True, maintain_order="left"
    )["place"].to_numpy()
    contact = place >= 0
    at = row_N[contact], place[contact]
    none = row_N[~contact]
    columns = {name: batch[name].to_numpy() for name in NUMBERS if name in batch.columns}
    offers.expected_CA[at] = columns[EXPECTED][contact]
    offers.none_expected_C[none] = columns[EXPECTED][~contact]
    if LOWER in columns:
        offers.lower_CA[at] = columns[LOWER][contact]
        offers.none_lower_C[none] = columns[LOWER][~contact]
    if COST in columns:
        cost = np.nan_to_num(columns[COST])
        if (cost[~contact] > 0).any():
            raise InputError("Some rows of the action `none` have a cost; not to contact must cost nothing.")
        offers.cost[at] = cost[contact] if offers.cost.dtype == np.float64 else _rounded_up(cost[contact])
        costs_A.add(place[contact], cost[contact])
    if ELIGIBLE in batch.columns:
        eligible = batch[ELIGIBLE].fill_null(False).to_numpy()
        offers.eligible_CA[at] = eligible[contact]
        if not eligible[~contact].all():
            raise InputError("Some rows of the action `none` are not eligible; not to contact is always allowed.")
    if offers.weight_CA is not None and offers.none_weight_C is not None:
        offers.weight_CA[at] = np.nan_to_num(columns[PROPENSITY][contact])
        offers.none_weight_C[none] = np.nan_to_num(columns[PROPENSITY][~contact])
    if offers.group_C is not None:
        names = batch[GROUP].fill_null("")
        codes = names.replace_strict(list(group_of), list(group_of.values()), return_dtype=pl.Int16).to_numpy()
        offers.group_C[row_N] = codes
        if (offers.group_C[row_N] != codes).any():
            raise InputError("Some customers are in several groups; one `group` per customer was expected.")
    seen_CA[at] = True
    seen_none_C[none] = True


def _rounded_up(cost: np.ndarray) -> np.ndarray:
    """As float32, never below: a budget that holds for these holds for the costs given."""
    near = cost.astype(np.float32)
    return np.where(near < cost, np.nextafter(near, np.float32(np.inf)), near).astype(np.float32)


class _CostRange:
    """Lowest and highest cost of each engagement so far, float64 [A]."""

    def __init__(self, num_engagements: int) -> None:
        self.low, self.high = np.full(num_engagements, np.inf), np.zeros(num_engagements)

    def add(self, place_N: np.ndarray, cost_N: np.ndarray) -> None:
        np.minimum.at(self.low, place_N, cost_N)
        np.maximum.at(self.high, place_N, cost_N)
