"""What a batch carries for questions of staying and of purchase days: the record at a cutoff, and what came after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from constellation.journeys.waits import has_left, waits
from constellation.zones import MICROSECONDS_PER_DAY

if TYPE_CHECKING:
    from constellation.journeys.store import Store
    from constellation.journeys.windows import Queries


@dataclass
class PurchaseRecord:
    """What may be seen at each cutoff, float32 [Q]: an input. See ``journeys.recency.PurchaseDays``.

    x_Q: repeat purchase days; t_x_Q: weeks from the first purchase day to the last; T_Q: weeks from the first purchase
    day to the cutoff; spend_Q: money of the repeat days, 0 where it is not positive; left_Q: bool, the customer has
    ended the relationship (a churn event and no purchase since).
    """

    x_Q: Tensor
    t_x_Q: Tensor
    T_Q: Tensor
    spend_Q: Tensor
    left_Q: Tensor


@dataclass
class AfterCutoff:
    """What came after each cutoff, float32 [Q]: answers, never inputs.

    Days, infinite where it had not happened when watching ended: watched_days_Q is how long that was,
    purchase_days_Q to the next purchase, churn_days_QR to each declared end of the relationship.
    In ``(cutoff, min(cutoff + longest horizon, known_until)]``, of weeks_Q weeks: days_Q new purchase days, last_Q
    weeks to the last of them, money_Q and purchases_Q on them; first_day_Q, second_day_Q: days to the first two of
    them; value_Q: all net money, refunds too.
    """

    watched_days_Q: Tensor
    purchase_days_Q: Tensor
    churn_days_QR: Tensor
    weeks_Q: Tensor
    days_Q: Tensor
    last_Q: Tensor
    money_Q: Tensor
    purchases_Q: Tensor
    first_day_Q: Tensor
    second_day_Q: Tensor
    value_Q: Tensor


def purchase_record(store: Store, queries: Queries) -> PurchaseRecord | None:
    """The records of ``queries``; None where times are unknown."""
    if not store.has_clock:
        return None
    record = store.purchase_index.before(queries)
    spend_Q = np.where(record.x_Q > 0, np.nan_to_num(record.mean_spend_Q) * record.x_Q, 0.0)
    return PurchaseRecord(
        x_Q=_tensor(record.x_Q),
        t_x_Q=_tensor(record.t_x_Q),
        T_Q=_tensor(record.T_Q),
        spend_Q=_tensor(np.maximum(spend_Q, 0.0)),
        left_Q=torch.from_numpy(has_left(store, queries)),
    )


def after_cutoff(store: Store, queries: Queries) -> AfterCutoff | None:
    """What came after the cutoffs of ``queries``; None where times are unknown or nothing is known of the answers."""
    if not store.has_clock or queries.known_until_Q is None or not queries.horizons_days:
        return None
    found = waits(store, queries)
    end_Q = np.minimum(queries.cutoff_Q + queries.horizons_days[-1] * MICROSECONDS_PER_DAY, queries.known_until_Q)
    end_Q = np.maximum(end_Q, queries.cutoff_Q)
    new = store.purchase_index.after(queries, end_Q)
    start_Q = store.end_event(queries.journey_Q, queries.cutoff_Q)
    value_Q = store.money_between(start_Q, np.maximum(store.end_event(queries.journey_Q, end_Q), start_Q))
    return AfterCutoff(
        watched_days_Q=_tensor(found.watched_Q),
        purchase_days_Q=_tensor(found.purchase_Q),
        churn_days_QR=_tensor(found.churn_QR),
        weeks_Q=_tensor(new.weeks_Q),
        days_Q=_tensor(new.days_Q),
        last_Q=_tensor(new.last_Q),
        money_Q=_tensor(new.money_Q),
        purchases_Q=_tensor(new.purchases_Q),
        first_day_Q=_tensor(new.first_day_Q),
        second_day_Q=_tensor(new.second_day_Q),
        value_Q=_tensor(value_Q),
    )


def _tensor(values: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
