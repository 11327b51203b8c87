"""Recency, frequency and money of purchase days: they live beside the store, for heads need them too."""

from constellation.journeys.recency import (
    DAYS_PER_WEEK,
    PurchaseDays,
    purchase_days,
    purchase_range,
)

__all__ = ["DAYS_PER_WEEK", "PurchaseDays", "purchase_days", "purchase_range"]
