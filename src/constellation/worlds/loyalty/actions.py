"""What the club may do for a customer in a week, and what that does, to whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from constellation.errors import InputError

NONE = "none"
CHANNELS = ("email", "app", "phone")

REASONS = ("always", "email", "app", "phone", "deal", "star", "curious", "complaint", "unhappy")
"""On what an effect may hang, in the order of the columns of ``people.reasons``: on nothing; the preferred channel
(1 or 0); a fondness of deals (0 to 1), a bright constellation (1 or 0), curiosity (-1 to 1), an open complaint (1 or
0); how far satisfaction lies below 0 (at most 2)."""


@dataclass(frozen=True)
class Engagement:
    """One action. Effects are sums over ``REASONS`` of weight times reason.

    channel: one of ``CHANNELS``; empty for ``none``. cost: money per contact.
    interest: impulse on the logit of a weekly purchase, which fades over weeks. satisfaction: impulse on satisfaction.
    boost: on the logit of a purchase in this week alone. discount: share of the amount of a purchase in this week.
    resolves: probability that an open complaint is resolved within the week.
    """

    channel: str = ""
    cost: float = 0.0
    interest: Mapping[str, float] = field(default_factory=dict)
    satisfaction: Mapping[str, float] = field(default_factory=dict)
    boost: Mapping[str, float] = field(default_factory=dict)
    discount: float = 0.0
    resolves: float = 0.0

    def __post_init__(self) -> None:
        if self.channel and self.channel not in CHANNELS:
            raise InputError(f"channel must be one of {', '.join(CHANNELS)}, found {self.channel!r}.")
        if self.cost < 0:
            raise InputError(f"cost of an action must be 0 or more, found {self.cost}.")
        for name in ("discount", "resolves"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} of an action must lie in [0, 1], found {getattr(self, name)}.")
        for name in ("interest", "satisfaction", "boost"):
            weights = dict(getattr(self, name))
            unknown = sorted(set(weights) - set(REASONS))
            if unknown:
                raise InputError(f"{name} hangs on {', '.join(unknown)}; known reasons are {', '.join(REASONS)}.")
            object.__setattr__(self, name, weights)


ACTIONS: dict[str, Engagement] = {
    NONE: Engagement(),
    # Read by those who prefer e-mail; to the others it is noise.
    "newsletter": Engagement(
        channel="email",
        cost=0.4,
        interest={"always": -0.15, "email": 1.0},
        satisfaction={"always": -0.05, "email": 0.05},
    ),
    # Brings a purchase where deals are liked; the discount is a gift to who would have bought anyway.
    "voucher": Engagement(
        channel="app",
        cost=0.4,
        boost={"always": 0.1, "deal": 2.2},
        discount=0.2,
    ),
    # Connects: what goes with a bright constellation. Nothing to say to who has none.
    "connect": Engagement(
        channel="app",
        cost=0.6,
        interest={"always": -0.4, "star": 1.3, "app": 0.1},
        satisfaction={"always": -0.08, "star": 0.12},
    ),
    # Challenges: a new star. The curious like it, the settled do not.
    "challenge": Engagement(
        channel="email",
        cost=0.6,
        interest={"curious": 1.1, "email": 0.05},
        satisfaction={"curious": 0.1},
    ),
    # Settles complaints and comforts the unhappy, weeks before money shows it; disturbs everybody else.
    "call": Engagement(
        channel="phone",
        cost=4.0,
        interest={"phone": 0.3},
        satisfaction={"always": -0.3, "phone": 0.15, "complaint": 1.0, "unhappy": 0.3},
        resolves=0.9,
    ),
}
"""The sizes are chosen so that a contact is worth about nothing on average, harms about half of those it could go to,
and gains a few units of money where it fits: about a tenth of a basket per contact."""


def as_engagements(given: Mapping[str, Engagement | Mapping[str, Any]]) -> dict[str, Engagement]:
    """Actions by name, ``none`` first, from objects or plain mappings (as YAML has them). Raises InputError."""
    known = {entry.name for entry in fields(Engagement)}
    made: dict[str, Engagement] = {}
    for name, entry in given.items():
        if not isinstance(entry, Engagement):
            unknown = sorted(set(entry) - known)
            if unknown:
                raise InputError(f"The action {name} has {', '.join(unknown)}; known are {', '.join(sorted(known))}.")
            entry = Engagement(**entry)
        made[str(name)] = entry
    if made.pop(NONE, None) != Engagement():
        raise InputError(f"actions must hold {NONE!r}, without any effect or cost, beside the contacts.")
    if not made or any(not entry.channel for entry in made.values()):
        raise InputError("actions must hold at least one contact, and every contact needs a channel.")
    return {NONE: Engagement(), **made}


@dataclass(frozen=True)
class Effects:
    """The actions as arrays: ``J`` reasons, ``A`` actions; all zero in the mirror."""

    interest_JA: np.ndarray
    satisfaction_JA: np.ndarray
    boost_JA: np.ndarray
    discount_A: np.ndarray
    resolves_A: np.ndarray
    cost_A: np.ndarray
    fatigue_hurt: float

    @classmethod
    def of(cls, actions: Mapping[str, Engagement], *, fatigue_hurt: float, mirror: bool) -> Effects:
        scale = 0.0 if mirror else 1.0

        def weights(name: str) -> np.ndarray:
            return scale * np.array(
                [[getattr(entry, name).get(reason, 0.0) for entry in actions.values()] for reason in REASONS]
            )

        def numbers(name: str) -> np.ndarray:
            return scale * np.array([getattr(entry, name) for entry in actions.values()])

        return cls(
            interest_JA=weights("interest"),
            satisfaction_JA=weights("satisfaction"),
            boost_JA=weights("boost"),
            discount_A=numbers("discount"),
            resolves_A=numbers("resolves"),
            cost_A=numbers("cost"),
            fatigue_hurt=scale * fatigue_hurt,
        )
