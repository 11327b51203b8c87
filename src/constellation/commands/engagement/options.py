"""The options of `train objective=engagement`; every key of the block ``engagement`` in ``configs/train.yaml``."""

from __future__ import annotations

from dataclasses import dataclass

from constellation.errors import InputError

REFIT, FOLDS = "refit", "folds"
"""Who acts: models refitted on the whole log, or all folds' models together."""


@dataclass(frozen=True)
class EngagementOptions:
    """How decisions are split and how their rewards are modelled.

    num_folds: over persons; a customer's decisions are predicted and judged by models of the other folds. test_from: a
    date or time instead: decisions after it (a date: after that day) are judged, earlier ones whose rewards were known
    by then are learned from. num_members: of the ensembles, by bootstrap of customers. num_inner: inner folds of the
    training customers.
    clip_quantile: rewards are cut at this quantile where models learn from them (never where values are estimated);
    1 cuts nothing. windows_days: of the aggregates. context_alone: outcome models read what the table of decisions says
    was known (``context_...``) and nothing else. sequence_model: train the encoder too, where there are events.
    lookahead: further windows of ``reward_days`` that models learn to see, by the worth of the customer's next decision
    after the first; 0 sees the reward alone. Estimates are of the reward alone in any case.
    deploy: who acts, scores and plans. ``refit``: models fitted once more on the whole log, while the folds' models,
    each of which learned from a part, are judged. ``folds``: these models together.
    """

    num_folds: int = 5
    test_from: str | None = None
    num_members: int = 2
    num_inner: int = 2
    clip_quantile: float = 0.99
    windows_days: tuple[int, ...] = (3, 7, 14, 30, 91, 365)
    context_alone: bool = False
    sequence_model: bool = True
    lookahead: int = 0
    deploy: str = REFIT

    def __post_init__(self) -> None:
        object.__setattr__(self, "windows_days", tuple(int(days) for days in self.windows_days))
        for name, least in {"num_folds": 2, "num_members": 1, "num_inner": 2, "lookahead": 0}.items():
            if getattr(self, name) < least:
                raise InputError(f"engagement.{name} must be at least {least}, found {getattr(self, name)}.")
        if self.deploy not in (REFIT, FOLDS):
            raise InputError(f"engagement.deploy must be {REFIT} or {FOLDS}, found {self.deploy}.")
        if not 0.5 < self.clip_quantile <= 1:
            raise InputError(f"engagement.clip_quantile must lie in (0.5, 1], found {self.clip_quantile}.")
        if not self.windows_days or min(self.windows_days) < 1:
            raise InputError(f"engagement.windows_days must be whole days of 1 or more, found {self.windows_days}.")
