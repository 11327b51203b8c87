"""One week in the life of customers: contact, mood, purchase, complaint, recommendation, farewell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from constellation.worlds.loyalty.actions import Effects
from constellation.worlds.loyalty.draws import Draws, Stream
from constellation.worlds.loyalty.people import CONSTELLATION_V, HOLE_V, People, reasons
from constellation.worlds.loyalty.state import FAST_WEEKS, SLOW_WEEKS, State

if TYPE_CHECKING:
    from constellation.worlds.loyalty.world import LoyaltyWorld

NOTHING = -1
"""Product of an empty place in a basket."""
HALF_CENT = 0.005


@dataclass(frozen=True)
class Week:
    """What happened to ``C`` customers in a week. ``rows_C`` names them; all other arrays are aligned with it.

    probability_CA: of each action; action_C: the chosen one. amount_C: what was paid (0 without a purchase). cost_C: of
    the contact. lead_C, companion_C: products bought, -1 for none. score_C: NaN where nobody asked or answered.
    """

    week: int
    rows_C: np.ndarray
    probability_CA: np.ndarray
    action_C: np.ndarray
    visited_C: np.ndarray
    bought_C: np.ndarray
    amount_C: np.ndarray
    cost_C: np.ndarray
    lead_C: np.ndarray
    companion_C: np.ndarray
    complained_C: np.ndarray
    resolved_C: np.ndarray
    score_C: np.ndarray
    referred_C: np.ndarray
    left_C: np.ndarray

    @property
    def net_C(self) -> np.ndarray:
        return self.amount_C - self.cost_C


def sigmoid(logit: np.ndarray) -> np.ndarray:
    from scipy.special import expit

    return expit(logit)


def impulses(
    world: LoyaltyWorld, effects: Effects, reason_CJ: np.ndarray, fatigue_C: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What each action would add to interest, satisfaction and the week's logit, [C, A] each.

    Good impulses shrink with fatigue and vanish at ``fatigue_limit``; harm does not. A contact on top of fatigue hurts.
    """
    open_C1 = np.clip(1.0 - fatigue_C / world.fatigue_limit, 0.0, 1.0)[:, None]
    interest_CA = reason_CJ @ effects.interest_JA
    satisfaction_CA = reason_CJ @ effects.satisfaction_JA
    interest_CA = np.where(interest_CA > 0, interest_CA * open_C1, interest_CA)
    satisfaction_CA = np.where(satisfaction_CA > 0, satisfaction_CA * open_C1, satisfaction_CA)
    satisfaction_CA[:, 1:] -= effects.fatigue_hurt * fatigue_C[:, None]
    return interest_CA, satisfaction_CA, (reason_CJ @ effects.boost_JA) * open_C1


def churn_probability(world: LoyaltyWorld, satisfaction_C: np.ndarray, complaint_C: np.ndarray) -> np.ndarray:
    """Probability of leaving at the end of a week, at most one half."""
    return np.minimum(
        world.churn * np.exp(world.churn_complaint * complaint_C - world.churn_slope * satisfaction_C), 0.5
    )


def complaint_probability(world: LoyaltyWorld, satisfaction_C: np.ndarray, hole_C: np.ndarray) -> np.ndarray:
    """Probability that a purchase is followed by a complaint; hole_C: whether, or how likely, it held a black hole."""
    return sigmoid(world.complaint_logit - world.complaint_slope * satisfaction_C + world.complaint_hole * hole_C)


def referral_probability(world: LoyaltyWorld, satisfaction_C: np.ndarray) -> np.ndarray:
    """Weekly probability that a customer who has brought no friend so far brings one."""
    return sigmoid(world.referral_logit + world.referral_slope * satisfaction_C)


def live_a_week(
    world: LoyaltyWorld,
    effects: Effects,
    people: People,
    taste_RV: np.ndarray,
    state: State,
    draws: Draws,
    week: int,
    rows_C: np.ndarray,
    probability_CA: np.ndarray,
    action_C: np.ndarray,
) -> Week:
    """Move ``state`` (of ``rows_C``, changed in place) on by a week. taste_RV holds all rows; the rest is aligned.

    In order: the contact acts; a visit, and a purchase with its basket; products move satisfaction; a complaint opens,
    or an earlier one is resolved or festers; a survey; a recommendation; the customer stays or leaves, silently; moods
    fade towards what they were.
    """
    from scipy.special import ndtri

    num = len(rows_C)

    def uniform(stream: Stream) -> np.ndarray:
        return draws.uniform(week, stream, rows_C)

    chosen = np.arange(num), action_C
    reason_CJ = reasons(people, state.complaint_R, state.satisfaction_R)
    interest_CA, satisfaction_CA, boost_CA = impulses(world, effects, reason_CJ, state.fatigue_R)
    interest_C = state.interest_R + interest_CA[chosen]
    satisfaction_C = state.satisfaction_R + satisfaction_CA[chosen]
    logit_C = people.rate_R + interest_C + world.purchase_slope * satisfaction_C

    visited_C = state.active_R & (uniform(Stream.VISIT) < sigmoid(logit_C + world.visit_logit))
    bought_C = state.active_R & (uniform(Stream.BUY) < sigmoid(logit_C + boost_CA[chosen]))
    log_amount_C = people.log_amount_R + world.amount_sigma * ndtri(uniform(Stream.AMOUNT))
    full_C = np.exp(log_amount_C - world.amount_sigma**2 / 2) * (1.0 - effects.discount_A[action_C])
    amount_C = np.where(bought_C, np.maximum(np.round(full_C, 2), 2 * HALF_CENT), 0.0)
    lead_C, companion_C = _baskets(world, taste_RV, rows_C, bought_C, uniform(Stream.LEAD), uniform(Stream.COMPANION))
    hole_C = bought_C & (HOLE_V[lead_C] | ((companion_C != NOTHING) & HOLE_V[companion_C]))
    satisfaction_C += np.where(hole_C, -world.hole_hurt, np.where(bought_C, world.purchase_joy, 0.0))

    was_open_C = state.complaint_R
    complains_C = uniform(Stream.COMPLAIN) < complaint_probability(world, satisfaction_C, hole_C)
    complained_C = bought_C & ~was_open_C & complains_C
    solves_C = uniform(Stream.RESOLVE) < np.maximum(world.resolution, effects.resolves_A[action_C])
    resolved_C = was_open_C & state.active_R & solves_C
    festers_C = was_open_C & ~resolved_C
    satisfaction_C += (
        world.recovery * resolved_C - world.complaint_hurt * complained_C - world.festering_hurt * festers_C
    )
    complaint_C = (was_open_C & ~resolved_C) | complained_C

    answers_C = bought_C & (uniform(Stream.SURVEY) < world.survey_share)
    said_C = np.clip(np.round(7.0 + 2.0 * satisfaction_C + world.score_sigma * ndtri(uniform(Stream.SCORE))), 0, 10)
    score_C = np.where(answers_C, said_C, np.nan)
    recommends_C = uniform(Stream.REFER) < referral_probability(world, satisfaction_C)
    # Friends bring nobody: the chain ends with them, so that a customer's luck reaches two rows and no others.
    referred_C = state.active_R & ~state.referred_R & (rows_C < draws.num_customers) & recommends_C
    leaves_C = uniform(Stream.LEAVE) < churn_probability(world, satisfaction_C, complaint_C)
    left_C = state.active_R & leaves_C

    contacted_C = action_C != 0
    state.active_R = state.active_R & ~left_C
    state.satisfaction_R = satisfaction_C + world.reversion * (people.baseline_R - satisfaction_C)
    state.interest_R = world.interest_memory * interest_C
    state.fatigue_R = world.fatigue_memory * state.fatigue_R + contacted_C
    state.complaint_R = complaint_C
    state.referred_R = state.referred_R | referred_C
    state.weeks_since_purchase_R = np.where(bought_C, 0.0, state.weeks_since_purchase_R + 1)
    state.weeks_since_contact_R = np.where(contacted_C, 0.0, state.weeks_since_contact_R + 1)
    state.purchases_fast_R = np.exp(-1 / FAST_WEEKS) * state.purchases_fast_R + bought_C
    state.purchases_slow_R = np.exp(-1 / SLOW_WEEKS) * state.purchases_slow_R + bought_C
    state.visits_R = np.exp(-1 / FAST_WEEKS) * state.visits_R + visited_C
    state.num_purchases_R = state.num_purchases_R + bought_C
    state.amount_R = state.amount_R + amount_C
    state.num_complaints_R = state.num_complaints_R + complained_C
    state.score_R = np.where(answers_C, said_C, state.score_R)
    vouched_C = world.discounted[action_C]
    state.vouchers_R = state.vouchers_R + vouched_C
    state.redeemed_R = state.redeemed_R + (vouched_C & bought_C)
    for product_C in (lead_C, companion_C):
        holding = np.flatnonzero(product_C != NOTHING)
        state.bought_RV[holding, product_C[holding]] += 1
    return Week(
        week=week,
        rows_C=rows_C,
        probability_CA=probability_CA,
        action_C=action_C,
        visited_C=visited_C,
        bought_C=bought_C,
        amount_C=amount_C,
        cost_C=effects.cost_A[action_C],
        lead_C=lead_C,
        companion_C=companion_C,
        complained_C=complained_C,
        resolved_C=resolved_C,
        score_C=score_C,
        referred_C=referred_C,
        left_C=left_C,
    )


def _baskets(
    world: LoyaltyWorld,
    taste_RV: np.ndarray,
    rows_C: np.ndarray,
    bought_C: np.ndarray,
    lead_uniform_C: np.ndarray,
    companion_uniform_C: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The first product of each basket by taste, and the second: one of the same constellation, or none, [C] each."""
    lead_C = np.full(len(rows_C), NOTHING, dtype=np.int64)
    companion_C = lead_C.copy()
    buyers = np.flatnonzero(bought_C)
    below_BV = np.cumsum(taste_RV[rows_C[buyers]], axis=1) < lead_uniform_C[buyers, None]
    lead_B = np.minimum(below_BV.sum(axis=1), taste_RV.shape[1] - 1)
    lead_C[buyers] = lead_B
    # One number decides both whether there is a companion and, by what is left of it, which of the other two.
    share_B = companion_uniform_C[buyers] / world.companion_share
    linked = np.flatnonzero((CONSTELLATION_V[lead_B] >= 0) & (share_B < 1))
    first_L = 3 * CONSTELLATION_V[lead_B[linked]]
    other_L = first_L + (lead_B[linked] - first_L + 1 + (share_B[linked] >= 0.5)) % 3
    companion_C[buyers[linked]] = other_L
    return lead_C, companion_C
