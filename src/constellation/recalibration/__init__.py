"""Recalibration: what held-out customers or earlier days say about a system's answers, put to use."""

from constellation.recalibration.corrections import Corrections
from constellation.recalibration.learned import Recalibration
from constellation.recalibration.recalibrator import Recalibrator
from constellation.recalibration.swings import Swings, measured_swings
from constellation.recalibration.totals import (
    EXACT_CUSTOMERS,
    PastTotal,
    Shock,
    Total,
    Totals,
    relative_noise,
    total_interval,
)

__all__ = [
    "EXACT_CUSTOMERS",
    "Corrections",
    "PastTotal",
    "Recalibration",
    "Recalibrator",
    "Shock",
    "Swings",
    "Total",
    "Totals",
    "measured_swings",
    "relative_noise",
    "total_interval",
]
