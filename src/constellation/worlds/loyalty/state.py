"""What can change about a customer: what nobody sees, what the log tells, and the features drawn from the latter."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from constellation.worlds.loyalty.actions import CHANNELS
from constellation.worlds.loyalty.people import CONSTELLATIONS, PRODUCTS, People

if TYPE_CHECKING:
    from constellation.worlds.loyalty.world import LoyaltyWorld

NEVER = 1_000_000
"""The week in which somebody joins who does not."""
FAST_WEEKS, SLOW_WEEKS = 4.0, 26.0
"""Memory of the two decayed counts of purchases."""
NEUTRAL_SCORE = 7.0
"""Stands for the last survey score of a customer who has answered none."""

FEATURES = (
    "weeks_since_joining",
    "weeks_since_purchase",
    "weeks_since_contact",
    "contacts_recent",
    "purchases_recent",
    "purchases_slow",
    "visits_recent",
    "num_purchases",
    "mean_amount",
    "distinct_products",
    "complaint_open",
    "num_complaints",
    "last_score",
    "score_known",
    "num_vouchers",
    "share_redeemed",
    "has_referred",
    "prefers_email",
    "prefers_app",
    "prefers_phone",
    "is_family",
    "age",
    *(f"favourite_{name}" for name in CONSTELLATIONS),
    *(f"share_{product}" for product in PRODUCTS),
)
"""What a policy may know, in the order of the columns; all of it can be worked out from events and attributes."""


@dataclass
class State:
    """``R`` rows as in :class:`People`. Times in weeks.

    Hidden: active_R (has not left), satisfaction_R, interest_R (impulse on the logit of a purchase).
    Known: joined_week_R; fatigue_R (contacts, decayed); complaint_R (one is open); referred_R (has brought a friend);
    weeks since the last purchase (since joining, where there is none) and contact; purchases_fast_R, purchases_slow_R,
    visits_R (decayed counts); num_purchases_R, amount_R (sum), bought_RV (times each product was bought);
    num_complaints_R, score_R (the last, NaN for none), vouchers_R and redeemed_R (weeks with a voucher, and
    purchases in them).
    """

    active_R: np.ndarray
    satisfaction_R: np.ndarray
    interest_R: np.ndarray
    joined_week_R: np.ndarray
    fatigue_R: np.ndarray
    complaint_R: np.ndarray
    referred_R: np.ndarray
    weeks_since_purchase_R: np.ndarray
    weeks_since_contact_R: np.ndarray
    purchases_fast_R: np.ndarray
    purchases_slow_R: np.ndarray
    visits_R: np.ndarray
    num_purchases_R: np.ndarray
    amount_R: np.ndarray
    num_complaints_R: np.ndarray
    score_R: np.ndarray
    vouchers_R: np.ndarray
    redeemed_R: np.ndarray
    bought_RV: np.ndarray

    @classmethod
    def fresh(cls, people: People, joined_week_R: np.ndarray) -> State:
        num_rows = len(joined_week_R)

        def zeros() -> np.ndarray:
            return np.zeros(num_rows)

        return cls(
            active_R=np.ones(num_rows, dtype=bool),
            satisfaction_R=people.baseline_R.copy(),
            interest_R=zeros(),
            joined_week_R=joined_week_R,
            fatigue_R=zeros(),
            complaint_R=np.zeros(num_rows, dtype=bool),
            referred_R=np.zeros(num_rows, dtype=bool),
            weeks_since_purchase_R=zeros(),
            weeks_since_contact_R=zeros(),
            purchases_fast_R=zeros(),
            purchases_slow_R=zeros(),
            visits_R=zeros(),
            num_purchases_R=zeros(),
            amount_R=zeros(),
            num_complaints_R=zeros(),
            score_R=np.full(num_rows, np.nan),
            vouchers_R=zeros(),
            redeemed_R=zeros(),
            bought_RV=np.zeros((num_rows, len(PRODUCTS)), dtype=np.float32),
        )

    def take(self, rows: np.ndarray) -> State:
        return State(**{entry.name: getattr(self, entry.name)[rows] for entry in fields(self)})

    def put(self, rows: np.ndarray, part: State) -> None:
        for entry in fields(self):
            getattr(self, entry.name)[rows] = getattr(part, entry.name)


def features(state: State, people: People, week: int) -> np.ndarray:
    """The columns of ``FEATURES``, float32 [C, F], at the start of ``week``."""
    made = np.empty((len(state.active_R), len(FEATURES)), dtype=np.float32)
    num_purchases = np.maximum(state.num_purchases_R, 1.0)
    columns = [
        week - state.joined_week_R,
        state.weeks_since_purchase_R,
        state.weeks_since_contact_R,
        state.fatigue_R,
        state.purchases_fast_R,
        state.purchases_slow_R,
        state.visits_R,
        state.num_purchases_R,
        state.amount_R / num_purchases,
        (state.bought_RV > 0).sum(axis=1),
        state.complaint_R,
        state.num_complaints_R,
        np.where(np.isnan(state.score_R), NEUTRAL_SCORE, state.score_R),
        ~np.isnan(state.score_R),
        state.vouchers_R,
        state.redeemed_R / np.maximum(state.vouchers_R, 1.0),
        state.referred_R,
        *(people.prefers_R == channel for channel in range(len(CHANNELS))),
        people.family_R,
        people.age_R,
        *(people.favourite_R == group for group in range(len(CONSTELLATIONS))),
    ]
    for place, column in enumerate(columns):
        made[:, place] = column
    made[:, len(columns) :] = state.bought_RV / np.maximum(state.bought_RV.sum(axis=1, keepdims=True), 1.0)
    return made


def logging_probabilities(world: LoyaltyWorld, features_CF: np.ndarray) -> np.ndarray:
    """What the club did while the log was made: a softmax over features, mixed with a uniform share, [C, A]."""
    weight_FA, constant_A = world.logging_weights()
    used = np.flatnonzero(weight_FA.any(axis=1))
    score_CA = features_CF[:, used].astype(np.float64) @ weight_FA[used] + constant_A
    score_CA = np.exp(score_CA - score_CA.max(axis=1, keepdims=True))
    score_CA /= score_CA.sum(axis=1, keepdims=True)
    return (1.0 - world.exploration) * score_CA + world.exploration / score_CA.shape[1]
