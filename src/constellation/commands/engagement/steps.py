"""Rewards of single steps: what came between a decision and the customer's next one, so that nothing counts twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from constellation.journeys.decision_derivation import gained, window_end

if TYPE_CHECKING:
    from constellation.journeys.decisions import DecisionRule, Decisions
    from constellation.journeys.store import Store


def step_rewards(store: Store, rule: DecisionRule, decisions: Decisions) -> np.ndarray | None:
    """Rewards [Q] of all decisions of a store, cut off where the customer's next decision was taken.

    Where windows end before that, the rewards themselves. None where windows run over the next decision and the
    rewards are a table's own: what came when is not known then.
    """
    journey_Q, time_Q = np.asarray(decisions.journey_Q), np.asarray(decisions.time_Q)
    same_Q = np.append(journey_Q[1:] == journey_Q[:-1], False)
    window_Q = window_end(rule, store, time_Q)
    over_Q = same_Q & (window_Q >= np.append(time_Q[1:], 0))
    reward_Q = np.array(decisions.reward_Q, dtype=np.float64)
    if not over_Q.any():
        return reward_Q
    first_Q = store.first_event_C[journey_Q]
    last_Q = np.asarray(decisions.last_event_Q)
    start_Q = np.where(last_Q >= 0, last_Q + 1, first_Q)
    next_Q = np.append(start_Q[1:], 0)
    if rule.kind == "events":
        start_Q = start_Q + 1  # the contact itself, of this decision; of the next one it is not reached
    end_Q = np.maximum(store.last_event(journey_Q, window_Q) + 1, start_Q)
    known_Q = np.asarray(decisions.matured_Q) & np.isfinite(reward_Q)
    cost_Q = np.asarray(decisions.cost_Q)
    whole_Q = gained(rule, store, start_Q, end_Q, time_Q) - cost_Q
    if not np.allclose(whole_Q[known_Q], reward_Q[known_Q], rtol=1e-6, atol=1e-6):
        return None
    cut_Q = np.maximum(np.where(over_Q, np.minimum(end_Q, next_Q), end_Q), start_Q)
    return gained(rule, store, start_Q, cut_Q, time_Q) - cost_Q
