"""The club: its parameters, what a draw of it holds, and the door through which data sets read it.

A step is one week. A member's mood (satisfaction) moves with what happens: products that please, black holes that
take money and please nobody, complaints and how they end, contacts that suit and contacts that annoy. Mood and a
fleeting interest set how likely a purchase is; mood sets how likely the member complains, brings a friend, or leaves
without a word. The club contacts members by a softmax rule over what its log says, so the propensity of every decision
is known. Each contact helps some and hurts others, by ``actions``, in part at once and in part weeks later, and less
the more contacts went before. In the mirror contacts do nothing and cost nothing, and everything else is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from constellation.errors import InputError
from constellation.schema import EventSchema
from constellation.worlds.loyalty.actions import ACTIONS, NONE, Effects, Engagement, as_engagements
from constellation.worlds.loyalty.state import FEATURES
from constellation.worlds.simulated import Simulated, check_people, check_positive, check_share, plus_days

if TYPE_CHECKING:
    from pathlib import Path

    import polars

MONDAY, ZONE, WEEK_DAYS = "2024-01-01", "UTC", 7
CONSTANT = "constant"
HORIZON_WEEKS, SHORT_WEEKS = 13, 4
"""Of the value that is asked for."""
REWARD_WEEKS = 8
"""Of a decision: interest is gone by then, and a mood is back by two thirds; longer ones see more, and more noise."""

LOGGING: dict[str, dict[str, float]] = {
    NONE: {CONSTANT: 1.5},
    "newsletter": {CONSTANT: 0.5},
    "voucher": {CONSTANT: -0.6, "purchases_recent": 0.35},
    "connect": {CONSTANT: -0.4, "prefers_app": 0.3},
    "challenge": {CONSTANT: -0.4},
    "call": {CONSTANT: -1.6, "complaint_open": 0.7},
}
"""What the club does by habit: mostly nothing or a newsletter, vouchers to those who buy anyway, few calls."""


@dataclass(frozen=True)
class LoyaltyWorld:
    """Parameters; rates and probabilities are per week, money in units of the currency, moods without unit.

    num_weeks, joining_weeks: length of the log, and of its first part, in which customers join.
    rate_logit, rate_sigma: logit of a purchase in a week, mean and spread between customers.
    median_amount, customer_sigma, amount_sigma: mean money of the median customer's purchase; spread of logarithms
    between and within customers.
    baseline_sigma, reversion: spread of the satisfaction to which moods return, and how much of the way per week.
    interest_memory, fatigue_memory: share of interest and of fatigue left after a week.
    fatigue_limit: contacts, decayed, at which good effects are gone. fatigue_hurt: satisfaction lost per contact and
    unit of fatigue it meets.
    purchase_slope: of the logit of a purchase in satisfaction. visit_logit: by how much that of a visit is higher.
    purchase_joy, hole_hurt: satisfaction won by a basket, and lost by one with a black hole.
    complaint_logit, complaint_slope, complaint_hole: logit of a complaint after a purchase; what satisfaction takes off
    and a black hole adds. complaint_hurt, festering_hurt: satisfaction lost at once, and per week unresolved.
    resolution, recovery: probability that a complaint is resolved unasked; satisfaction won then.
    churn, churn_slope, churn_complaint: hazard in a neutral mood, how satisfaction lowers and an open complaint raises
    its logarithm. referral_logit, referral_slope: of bringing a friend.
    survey_share, score_sigma: probability of a score after a purchase; its noise.
    link_strength: spread of fondness of a constellation. companion_share: baskets with a second product of it.
    actions: by name, ``none`` among them; see :class:`Engagement`. logging: score of each action, a sum over features
    (``state.FEATURES``, and ``constant``) of weight times feature. exploration: share of uniform choice mixed in.
    num_futures: simulated per customer for the tables of truth. mirror: contacts do nothing and cost nothing.
    """

    num_weeks: int = 78
    joining_weeks: int = 26
    rate_logit: float = -1.1
    rate_sigma: float = 0.6
    median_amount: float = 25.0
    customer_sigma: float = 0.35
    amount_sigma: float = 0.3
    baseline_sigma: float = 0.35
    reversion: float = 0.12
    interest_memory: float = 0.5
    fatigue_memory: float = 0.5
    fatigue_limit: float = 6.0
    fatigue_hurt: float = 0.03
    purchase_slope: float = 0.3
    visit_logit: float = 0.5
    purchase_joy: float = 0.05
    hole_hurt: float = 0.4
    complaint_logit: float = -3.0
    complaint_slope: float = 0.6
    complaint_hole: float = 1.2
    complaint_hurt: float = 0.4
    festering_hurt: float = 0.15
    resolution: float = 0.2
    recovery: float = 0.4
    churn: float = 0.006
    churn_slope: float = 0.8
    churn_complaint: float = 0.7
    referral_logit: float = -5.5
    referral_slope: float = 0.8
    survey_share: float = 0.2
    score_sigma: float = 1.0
    link_strength: float = 1.2
    companion_share: float = 0.5
    exploration: float = 0.06
    num_futures: int = 64
    mirror: bool = False
    actions: Mapping[str, Any] = field(default_factory=lambda: dict(ACTIONS))
    logging: Mapping[str, Mapping[str, float]] = field(default_factory=lambda: {**LOGGING})

    def __post_init__(self) -> None:
        object.__setattr__(self, "actions", as_engagements(self.actions))
        object.__setattr__(self, "logging", {name: dict(weights) for name, weights in self.logging.items()})
        check_positive(
            joining_weeks=self.joining_weeks,
            median_amount=self.median_amount,
            fatigue_limit=self.fatigue_limit,
            companion_share=self.companion_share,
            exploration=self.exploration,
            num_futures=self.num_futures,
        )
        check_share(
            reversion=self.reversion,
            interest_memory=self.interest_memory,
            fatigue_memory=self.fatigue_memory,
            resolution=self.resolution,
            churn=self.churn,
            survey_share=self.survey_share,
            companion_share=self.companion_share,
            exploration=self.exploration,
        )
        if self.num_weeks < self.joining_weeks + 2 * HORIZON_WEEKS:
            raise InputError(
                f"num_weeks must be at least joining_weeks ({self.joining_weeks}) and two horizons of {HORIZON_WEEKS} "
                f"weeks, for validation and test, found {self.num_weeks}."
            )
        if set(self.logging) != set(self.actions):
            raise InputError(
                f"logging must score each of the actions {', '.join(self.actions)}, found {', '.join(self.logging)}."
            )
        unknown = sorted({name for weights in self.logging.values() for name in weights} - {CONSTANT, *FEATURES})
        if unknown:
            raise InputError(f"logging scores by {', '.join(unknown)}; known are {CONSTANT}, {', '.join(FEATURES)}.")

    @property
    def action_names(self) -> tuple[str, ...]:
        """In the order of every array of actions; ``none`` is the first."""
        return tuple(self.actions)

    @cached_property
    def discounted(self) -> np.ndarray:
        """Whether an action holds a discount [A]: in the mirror, too, where it is worth nothing."""
        return np.array([entry.discount > 0 for entry in self.actions.values()])

    def effects(self) -> Effects:
        engagements: Mapping[str, Engagement] = self.actions
        return Effects.of(engagements, fatigue_hurt=self.fatigue_hurt, mirror=self.mirror)

    def logging_weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Weights [F, A] and constants [A] of the scores of the logging policy."""
        weight_FA = np.array([[self.logging[name].get(known, 0.0) for name in self.actions] for known in FEATURES])
        return weight_FA, np.array([self.logging[name].get(CONSTANT, 0.0) for name in self.actions])

    def simulate(self, num_customers: int, seed: int) -> Simulated:
        """Draw a log; customers are 1, 2, ..., and the friend of customer c is ``num_customers + c``."""
        from constellation.worlds.loyalty.log import draw_log
        from constellation.worlds.loyalty.truth import LoyaltyTruth

        check_people(num_customers)
        log = draw_log(self, num_customers, seed)
        truth = LoyaltyTruth(self, num_customers, seed)
        test_day = (self.num_weeks - HORIZON_WEEKS) * WEEK_DAYS - 1  # a Sunday
        return Simulated(
            name="loyalty_mirror" if self.mirror else "loyalty",
            events=log.events,
            attributes=log.attributes,
            schema=EventSchema(timezone=ZONE, currency="EUR", purchase_types=("purchase",)),
            windows={
                # Cutoffs fall on the ends of Sundays: a week is over, the next decision ahead.
                "val_cutoff": plus_days(MONDAY, test_day - HORIZON_WEEKS * WEEK_DAYS),
                "test_cutoff": plus_days(MONDAY, test_day),
                "horizons_days": (SHORT_WEEKS * WEEK_DAYS, HORIZON_WEEKS * WEEK_DAYS),
                "train_cutoffs_every_days": WEEK_DAYS,
            },
            observed_until=plus_days(MONDAY, self.num_weeks * WEEK_DAYS - 1),
            truth=truth,
            decisions=log.decisions,
            decision_rule={"kind": "table", "reward_days": REWARD_WEEKS * WEEK_DAYS},
            further=truth.tables(),
        )


def loyalty(
    root: Path | None = None, *, num_customers: int, seed: int, **parameters: Any
) -> dict[str, polars.DataFrame]:
    """The tables of a ``LoyaltyWorld(**parameters)`` as the source of a data set (``configs/data/loyalty.yaml``)."""
    from constellation.worlds.simulated import tables

    return tables(LoyaltyWorld(**parameters), num_customers, seed)
