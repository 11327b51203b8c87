"""Predictions to try a plan on: simulated customers, ten engagements over four channels, and past contacts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from constellation.journeys.decisions import NONE
from constellation.schema import ACTION, CHANNEL, CUSTOMER_ID, EVENT_TIME

if TYPE_CHECKING:
    import polars as pl

START = "2026-01-05"
ENGAGEMENTS = {
    # action: channel, cost, mean gain, share eligible
    "email_news": ("email", 0.01, 0.15, 0.90),
    "email_offer": ("email", 0.60, 0.70, 0.90),
    "email_tips": ("email", 0.01, 0.20, 0.90),
    "push_news": ("push", 0.00, 0.05, 0.55),
    "push_offer": ("push", 0.55, 0.50, 0.55),
    "letter_voucher": ("letter", 2.10, 1.20, 1.00),
    "letter_catalogue": ("letter", 1.40, 0.60, 1.00),
    "phone_advice": ("phone", 7.50, 2.50, 0.40),
    "phone_upgrade": ("phone", 7.50, 1.50, 0.30),
    "phone_care": ("phone", 6.00, 0.80, 0.40),
}
GROUPS, GROUP_SHARES = ("new", "regular", "lapsed"), (0.2, 0.5, 0.3)


@dataclass(frozen=True)
class Example:
    """predictions: long format, one row per customer and action. contacts: eight weeks before ``START``."""

    predictions: pl.DataFrame
    contacts: pl.DataFrame


def example(num_customers: int, seed: int = 0, first_id: int = 1) -> Example:
    """Draw predictions and past contacts. Gains over none follow a customer's responsiveness, and are partly negative;
    the lower bound lies wider below where the gain is larger."""
    import polars as pl

    generator = np.random.default_rng(seed)
    channel, cost, mean_gain, share = (list(column) for column in zip(*ENGAGEMENTS.values(), strict=True))
    names, num = list(ENGAGEMENTS), len(ENGAGEMENTS)
    group_C = generator.choice(len(GROUPS), num_customers, p=GROUP_SHARES)
    none_C = generator.gamma(1.5, 20.0, num_customers) * np.array([0.5, 1.3, 0.2])[group_C]
    responsive_C = generator.lognormal(0, 0.7, num_customers) * np.array([1.2, 1.0, 0.6])[group_C]
    gain_CA = responsive_C[:, None] * np.array(mean_gain) * generator.normal(1, 0.6, (num_customers, num))
    gain_CA -= generator.gamma(1.0, 0.2, (num_customers, 1))  # weariness
    gain_CA -= np.array(cost)
    width_CA = 0.1 + 0.25 * np.abs(gain_CA) * generator.uniform(0.5, 1.5, gain_CA.shape)
    eligible_CA = generator.random(gain_CA.shape) < np.array(share)
    expected_CA = np.concatenate([none_C[:, None], none_C[:, None] + gain_CA], axis=1)
    # The bound of none is its own value: gains are what is uncertain here.
    lower_CA = np.concatenate([none_C[:, None], none_C[:, None] + gain_CA - width_CA], axis=1)
    rows = num + 1
    ids = np.arange(first_id, first_id + num_customers)
    actions, channels = pl.Series([NONE, *names]), pl.Series([None, *channel], dtype=pl.String)
    which = np.tile(np.arange(rows), num_customers)
    predictions = pl.DataFrame(
        {
            CUSTOMER_ID: np.repeat(ids, rows),
            ACTION: actions.gather(which),
            "expected": expected_CA.ravel().astype(np.float32),
            "lower": lower_CA.ravel().astype(np.float32),
            CHANNEL: channels.gather(which),
            "cost": np.tile(np.array([0.0, *cost]), num_customers),
            "eligible": np.concatenate([np.ones((num_customers, 1), bool), eligible_CA], axis=1).ravel(),
            "group": pl.Series(GROUPS).gather(np.repeat(group_C, rows)),
        }
    )
    num_contacts = generator.poisson(1.6, num_customers)
    who = np.repeat(ids, num_contacts)
    what = generator.choice(num, len(who), p=np.array([4, 3, 4, 5, 3, 1, 1, 0.4, 0.3, 0.3]) / 22)
    before = generator.integers(0, 56 * 86_400, len(who)) + 1
    end = pl.Series([START]).str.to_datetime(time_unit="us")[0]
    moments = pl.select(pl.lit(end) - pl.lit(pl.Series(before * 1_000_000).cast(pl.Duration("us")))).to_series()
    contacts = pl.DataFrame(
        {
            CUSTOMER_ID: who,
            EVENT_TIME: moments,
            ACTION: pl.Series(names).gather(what),
            CHANNEL: pl.Series(channel).gather(what),
        }
    )
    return Example(predictions, contacts)
