"""Off-policy estimates for sequences of decisions, where what is done now changes what comes later.

``J`` journeys, ``T`` steps; all arrays [J, T], with ``present_JT`` False after the end of a journey. A value is the
expected (discounted) sum of rewards of a journey; the rows of its terms are journeys. A reward belongs to one step
alone: what came between a decision and the next.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np

from constellation.policies.intervals import numbered
from constellation.policies.outcomes import OutcomeModel
from constellation.policies.terms import Terms


@dataclass(frozen=True)
class Steps:
    """Where the decisions of a log stand in their customers' sequences. row_JT: row of the log, 0 where a journey has
    ended; present_JT: whether it has not. Journeys are in the order of ``numbered(customer_Q)``."""

    row_JT: np.ndarray
    present_JT: np.ndarray

    @classmethod
    def of(cls, customer_Q: np.ndarray, time_Q: np.ndarray, num_steps: int) -> Steps:
        """The first ``num_steps`` decisions of each customer, by time."""
        journey_Q = numbered(customer_Q)
        order = np.lexsort((time_Q, journey_Q))
        counts_J = np.bincount(journey_Q)
        step_Q = np.arange(len(order)) - np.repeat(counts_J.cumsum() - counts_J, counts_J)
        kept = step_Q < num_steps
        row_JT = np.zeros((len(counts_J), min(num_steps, int(counts_J.max()))), dtype=np.int64)
        present_JT = np.zeros(row_JT.shape, dtype=bool)
        place = journey_Q[order][kept], step_Q[kept]
        row_JT[place], present_JT[place] = order[kept], True
        return cls(row_JT, present_JT)

    def __call__(self, values_Q: np.ndarray) -> np.ndarray:
        """[J, T, ...] of [Q, ...]; 0 after the end."""
        found = values_Q[self.row_JT]
        found[~self.present_JT] = 0
        return found


def per_decision(
    weight_JT: np.ndarray,
    reward_JT: np.ndarray,
    present_JT: np.ndarray,
    *,
    discount: float = 1.0,
    self_normalised: bool = False,
) -> Terms:
    """Each reward with the weights up to its own step only (Precup, Sutton and Singh 2000).

    self_normalised: each step over the mean of its weights; the rows are then those of the sum of ratios.
    """
    gain_JT = _discounted(reward_JT, present_JT, discount)
    up_to_JT = cumulated(weight_JT, present_JT)
    if not self_normalised:
        return Terms.mean_of((up_to_JT * gain_JT).sum(axis=1))
    mean_T = up_to_JT.mean(axis=0)
    there_T = np.where(mean_T > 0, mean_T, np.nan)  # a step that the target never reaches in the log has no value
    value_T = (up_to_JT * gain_JT).mean(axis=0) / there_T
    rows_JT = value_T + up_to_JT * (gain_JT - value_T) / there_T
    return Terms.mean_of(rows_JT.sum(axis=1))


def doubly_robust_sequence(
    weight_JT: np.ndarray,
    reward_JT: np.ndarray,
    present_JT: np.ndarray,
    q_JT: np.ndarray,
    v_JT: np.ndarray,
    *,
    discount: float = 1.0,
) -> Terms:
    """``V_t = v(x_t) + w_t (r_t + discount V_{t+1} - q(x_t, a_t))`` from the end (Jiang and Li 2016, eq. 10).

    q_JT: modelled value to go of what was done; v_JT: of what the target would do there; both cross-fitted.
    """
    value_J = np.zeros(len(weight_JT))
    for step in reversed(range(weight_JT.shape[1])):
        now_J = v_JT[:, step] + weight_JT[:, step] * (reward_JT[:, step] + discount * value_J - q_JT[:, step])
        value_J = np.where(present_JT[:, step], now_J, 0.0)
    return Terms.mean_of(value_J)


def fitted_q(
    model: OutcomeModel,
    features_JTX: np.ndarray,
    action_JT: np.ndarray,
    reward_JT: np.ndarray,
    present_JT: np.ndarray,
    target_JTA: np.ndarray,
    action_AY: np.ndarray,
    logging_JTA: np.ndarray,
    *,
    discount: float = 1.0,
    seed: int = 0,
) -> list[OutcomeModel | None]:
    """Models of the value to go of a target, one per step, by fitted Q evaluation (Le, Voloshin and Yue 2019).

    From the last step back each learns the reward plus what the target expects at the next step. ``model`` is copied,
    never fitted. For cross-fitting give some journeys and ask the models about others. None for a step that no journey
    at hand reaches.
    """
    fitted: list[OutcomeModel | None] = []
    next_J = np.zeros(len(reward_JT))
    for step in reversed(range(reward_JT.shape[1])):
        used = np.flatnonzero(present_JT[:, step])
        if not len(used):
            fitted.insert(0, None)
            continue
        part = copy.deepcopy(model)
        more = {"logging_QA": logging_JTA[used, step]} if part.reads_propensities else {}
        part.fit(
            features_JTX[used, step],
            action_JT[used, step],
            (reward_JT[:, step] + discount * next_J)[used],
            action_AY,
            target_JTA.shape[2],
            seed=seed,
            **more,
        )
        next_J = np.zeros(len(reward_JT))
        next_J[used] = expected(part.predict(features_JTX[used, step], action_AY), target_JTA[used, step])
        fitted.insert(0, part)
    return fitted


def expected(model_QA: np.ndarray, target_QA: np.ndarray) -> np.ndarray:
    """[Q]: what a model expects of a target. An action without probability may have no prediction."""
    return np.where(target_QA > 0, target_QA * model_QA, 0.0).sum(axis=1)


@dataclass(frozen=True)
class Marginal:
    """terms: their mean is the estimate, and their variance that of it. weight_JT: of each decision, the target's share
    of its state over the log's, times the weight of what was done; after the end the first alone."""

    terms: Terms
    weight_JT: np.ndarray


def marginal(
    weight_JT: np.ndarray,
    reward_JT: np.ndarray,
    present_JT: np.ndarray,
    state_JT: np.ndarray,
    *,
    discount: float = 1.0,
) -> Marginal:
    """Marginalised importance sampling over discrete states (Xie, Ma and Wang 2019).

    One weight per step instead of a product: the target's share of each state is carried forward through the weighted
    transitions. ``state_JT`` int, from 0; the end of a journey is a state of its own. The estimate hangs on how often
    the states, the moves between them and their rewards were seen; the rows are its value plus its derivatives by one
    journey more (the delta method), ``v_0(s) + sum_t m_t (w_t (r_t + discount v_{t+1}(s')) - v_t(s))`` with m the ratio
    of the shares and v the value to go of a state.
    """
    num, steps = state_JT.shape
    end = int(state_JT[present_JT].max(initial=-1)) + 1
    state_JT = np.where(present_JT, state_JT, end)
    weight_JT = np.where(present_JT, weight_JT, 1.0)
    gain_JT = np.where(present_JT, weight_JT * reward_JT, 0.0)
    seen_TS = np.stack([np.bincount(state_J, minlength=end + 1) for state_J in state_JT.T]) / num
    share_TS = np.zeros((steps, end + 1))
    share_TS[0] = seen_TS[0]
    ratio_JT = np.ones((num, steps))
    for step in range(steps):
        ratio_S = np.divide(share_TS[step], seen_TS[step], out=np.zeros(end + 1), where=seen_TS[step] > 0)
        ratio_JT[:, step] = ratio_S[state_JT[:, step]]
        if step + 1 < steps:
            # Share of the next state: each journey brings its state's share, evenly, times its weight.
            carried_J = ratio_JT[:, step] * weight_JT[:, step] / num
            share_TS[step + 1] = np.bincount(state_JT[:, step + 1], weights=carried_J, minlength=end + 1)
    to_go_TS = np.zeros((steps + 1, end + 1))
    rows_J = np.zeros(num)
    for step in reversed(range(steps)):
        here_J = state_JT[:, step]
        onward_J = discount * to_go_TS[step + 1][state_JT[:, step + 1]] if step + 1 < steps else np.zeros(num)
        brought_J = gain_JT[:, step] + weight_JT[:, step] * onward_J
        count_S = np.maximum(np.bincount(here_J, minlength=end + 1), 1)
        to_go_TS[step] = np.bincount(here_J, weights=brought_J, minlength=end + 1) / count_S
        rows_J += discount**step * ratio_JT[:, step] * (brought_J - to_go_TS[step][here_J])
    rows_J += to_go_TS[0][state_JT[:, 0]]
    return Marginal(Terms.mean_of(rows_J), ratio_JT * weight_JT)


def effective_sample_size_by_step(weight_JT: np.ndarray, present_JT: np.ndarray) -> np.ndarray:
    """[T]: of the cumulated weights; where it falls to a handful the horizon is too long for this log."""
    up_to_JT = cumulated(weight_JT, present_JT)
    squares_T = (up_to_JT**2).sum(axis=0)
    return np.where(squares_T > 0, up_to_JT.sum(axis=0) ** 2 / np.maximum(squares_T, 1e-300), 0.0)


def cumulated(weight_JT: np.ndarray, present_JT: np.ndarray) -> np.ndarray:
    """Weights up to and with each step [J, T]; after the end they stay as they are."""
    return np.cumprod(np.where(present_JT, weight_JT, 1.0), axis=1)


def _discounted(reward_JT: np.ndarray, present_JT: np.ndarray, discount: float) -> np.ndarray:
    return np.where(present_JT, reward_JT, 0.0) * discount ** np.arange(reward_JT.shape[1])
