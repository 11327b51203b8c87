"""Who the customers are: traits that never change, and the shelf of products with its planted structure."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from constellation.worlds.loyalty.actions import CHANNELS
from constellation.worlds.loyalty.draws import Draws, Stream

if TYPE_CHECKING:
    from constellation.worlds.loyalty.world import LoyaltyWorld

CONSTELLATIONS: dict[str, tuple[str, ...]] = {
    "breakfast": ("bread", "coffee", "honey"),
    "evening": ("cheese", "olives", "wine"),
    "garden": ("pots", "seeds", "tools"),
}
"""Planted: who likes one product of a constellation likes the others, and they are bought together."""
BLACK_HOLES = ("club_box", "ready_meal")
"""Planted: they take money, and satisfaction with it."""
LONERS = ("batteries",)
PRODUCTS = (*(name for group in CONSTELLATIONS.values() for name in group), *BLACK_HOLES, *LONERS)
CONSTELLATION_V = np.array([group for group in range(3) for _ in range(3)] + [-1, -1, -1])
"""Number of the constellation of each product, -1 for none."""
HOLE_V = np.array([name in BLACK_HOLES for name in PRODUCTS])
POPULARITY_V = np.array([0.6, 0.8, 0.0, 0.3, -0.2, 0.3, -0.3, 0.1, -0.3, -0.9, -0.6, -0.4])
"""Logit of the average taste; coffee is the commonest, the club box the rarest."""
BRIGHT_SHARE = 0.5
"""Of a customer's taste: a constellation that has more is bright, and named as favourite when the customer joins."""


@dataclass(frozen=True)
class People:
    """Traits of ``R`` rows: the customers, then the friend that each of them may bring, alike but not the same.

    prefers_R: number of the preferred channel. family_R, age_R: household and age in years; both are attributes.
    rate_R: logit of a weekly purchase in a neutral mood. log_amount_R: mean logarithm of an amount.
    baseline_R: satisfaction to which mood returns. deal_R [0, 1], star_R (0 or 1), curious_R [-1, 1]: see ``REASONS``.
    favourite_R: number of the constellation that the customer names as favourite when joining, -1 for none; an
    attribute. taste_RV: probability of each product as the first of a basket; rows sum to one.
    """

    prefers_R: np.ndarray
    family_R: np.ndarray
    age_R: np.ndarray
    rate_R: np.ndarray
    log_amount_R: np.ndarray
    baseline_R: np.ndarray
    deal_R: np.ndarray
    star_R: np.ndarray
    curious_R: np.ndarray
    favourite_R: np.ndarray
    taste_RV: np.ndarray

    def take(self, rows: np.ndarray) -> People:
        return People(**{entry.name: getattr(self, entry.name)[rows] for entry in fields(self)})


def draw_people(world: LoyaltyWorld, draws: Draws) -> People:
    """Traits of all ``2 * num_customers`` rows; half of what makes a friend's pace and purse is the customer's own."""
    from scipy.special import ndtri

    num_customers = draws.num_customers
    rows = np.arange(2 * num_customers)
    normal_RJ = ndtri(draws.uniform(-1, Stream.TRAIT, rows, 8))
    alike = np.sqrt(0.5)
    normal_RJ[num_customers:, :3] = alike * (normal_RJ[num_customers:, :3] + normal_RJ[:num_customers, :3])
    uniform_RJ = draws.uniform(-1, Stream.CURIOSITY_OF_TASTE, rows, 2)

    family_R = uniform_RJ[:, 0] < 0.4
    age_R = np.clip(np.round(45 + 15 * normal_RJ[:, 3]), 18, 95)
    curious_R = np.clip((45 - age_R) / 20 + 0.1 * normal_RJ[:, 4], -1, 1)
    # A curious customer's tastes lie closer together, which the log shows as variety.
    fondness_RG = ndtri(draws.uniform(-1, Stream.TASTE, rows, len(PRODUCTS) + 4))
    logits_RV = POPULARITY_V + 0.5 * fondness_RG[:, 4:]
    member_GV = np.arange(len(CONSTELLATIONS))[:, None] == CONSTELLATION_V
    for group, member_V in enumerate(member_GV):
        logits_RV[:, member_V] += world.link_strength * fondness_RG[:, group : group + 1]
    logits_RV[:, HOLE_V] += fondness_RG[:, 3:4]
    logits_RV *= (1.0 - 0.4 * curious_R)[:, None]
    taste_RV = np.exp(logits_RV - logits_RV.max(axis=1, keepdims=True))
    taste_RV /= taste_RV.sum(axis=1, keepdims=True)
    share_RG = np.stack([taste_RV[:, member_V].sum(axis=1) for member_V in member_GV], axis=1)
    bright_R = share_RG.max(axis=1) > BRIGHT_SHARE
    return People(
        prefers_R=np.searchsorted(np.array([0.4, 0.75]), uniform_RJ[:, 1], side="right").astype(np.int64),
        family_R=family_R,
        age_R=age_R,
        rate_R=world.rate_logit + world.rate_sigma * normal_RJ[:, 0],
        log_amount_R=np.log(world.median_amount) + world.customer_sigma * normal_RJ[:, 1],
        baseline_R=world.baseline_sigma * normal_RJ[:, 2],
        deal_R=np.clip(np.where(family_R, 0.7, 0.15) + 0.2 * normal_RJ[:, 5], 0, 1),
        star_R=bright_R.astype(np.float64),
        curious_R=curious_R,
        favourite_R=np.where(bright_R, share_RG.argmax(axis=1), -1),
        taste_RV=taste_RV,
    )


def reasons(people: People, complaint_C: np.ndarray, satisfaction_C: np.ndarray) -> np.ndarray:
    """The values [C, J] of ``REASONS`` for customers in a state."""
    columns = [
        np.ones(len(complaint_C)),
        *(people.prefers_R == channel for channel in range(len(CHANNELS))),
        people.deal_R,
        people.star_R,
        people.curious_R,
        complaint_C,
        np.clip(-satisfaction_C, 0, 2),
    ]
    return np.stack(columns, axis=1).astype(np.float64)
