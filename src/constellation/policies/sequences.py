"""Off-policy estimates for sequences of decisions, where what is done now changes what comes later.

``J`` journeys, ``T`` steps; all arrays [J, T], with ``present_JT`` False after the end of a journey. A value is the
expected (discounted) sum of rewards of a journey; its rows are journeys.
"""

from __future__ import annotations

import numpy as np

from constellation.policies.terms import Terms


def trajectory(weight_JT: np.ndarray, reward_JT: np.ndarray, present_JT: np.ndarray, *, discount: float = 1.0) -> Terms:
    """Importance sampling of whole journeys: the product of all weights times the whole return."""
    weight_J = np.where(present_JT, weight_JT, 1.0).prod(axis=1)
    return Terms.mean_of(weight_J * _discounted(reward_JT, present_JT, discount).sum(axis=1))


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
    up_to_JT = _cumulative(weight_JT, present_JT)
    if not self_normalised:
        return Terms.mean_of((up_to_JT * gain_JT).sum(axis=1))
    mean_T = up_to_JT.mean(axis=0)
    value_T = (up_to_JT * gain_JT).mean(axis=0) / mean_T
    rows_JT = value_T + up_to_JT * (gain_JT - value_T) / mean_T
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
    features_JTX: np.ndarray,
    action_JT: np.ndarray,
    reward_JT: np.ndarray,
    present_JT: np.ndarray,
    target_JTA: np.ndarray,
    *,
    discount: float = 1.0,
    ridge: float = 1.0,
    fitted_J: np.ndarray | None = None,
) -> np.ndarray:
    """Values to go [J, T, A] of a target by fitted Q evaluation (Le, Voloshin and Yue 2019), linear per action and
    step.

    Regresses, from the last step back, the reward plus the value the target expects at the next step on the features.
    The horizon is the number of steps. ``fitted_J``: journeys to learn from, by default all; for cross-fitting take the
    values of the others.
    """
    num, steps, num_actions = target_JTA.shape
    learned_J = np.ones(num, dtype=bool) if fitted_J is None else fitted_J
    q_JTA = np.zeros((num, steps, num_actions))
    next_J = np.zeros(num)
    design_JTX = np.concatenate([np.ones((num, steps, 1)), features_JTX], axis=2)
    penalty = ridge * np.eye(design_JTX.shape[2])
    penalty[0, 0] = 0.0
    for step in reversed(range(steps)):
        aim_J = reward_JT[:, step] + discount * next_J
        for action in range(num_actions):
            used_J = learned_J & present_JT[:, step] & (action_JT[:, step] == action)
            design = design_JTX[used_J, step]
            if used_J.any():
                coefficient = np.linalg.lstsq(design.T @ design + penalty, design.T @ aim_J[used_J], rcond=None)[0]
                q_JTA[:, step, action] = design_JTX[:, step] @ coefficient
        next_J = (target_JTA[:, step] * q_JTA[:, step]).sum(axis=1)
        next_J = np.where(present_JT[:, step], next_J, 0.0)
    return q_JTA


def marginal(
    weight_JT: np.ndarray,
    reward_JT: np.ndarray,
    present_JT: np.ndarray,
    state_JT: np.ndarray,
    *,
    discount: float = 1.0,
) -> float:
    """Marginalised importance sampling over discrete states (Xie, Ma and Wang 2019).

    One weight per step instead of a product: the target's share of each state is carried forward through the weighted
    transitions. ``state_JT`` int, from 0; the end of a journey is a state of its own. A number: resample journeys for
    an interval.
    """
    num_states = int(state_JT[present_JT].max(initial=-1)) + 1
    if num_states == 0:
        return 0.0
    state_JT = np.where(present_JT, state_JT, num_states)
    share_S = np.asarray(np.bincount(state_JT[:, 0], minlength=num_states + 1) / len(state_JT), dtype=np.float64)
    total = 0.0
    for step in range(state_JT.shape[1]):
        here_J = state_JT[:, step]
        weight_J = np.where(present_JT[:, step], weight_JT[:, step], 1.0)
        count_S = np.maximum(np.bincount(here_J, minlength=num_states + 1), 1)
        gain_J = np.where(present_JT[:, step], weight_J * reward_JT[:, step], 0.0)
        gain_S = np.bincount(here_J, weights=gain_J, minlength=num_states + 1) / count_S
        total += discount**step * float(share_S @ gain_S)
        if step + 1 < state_JT.shape[1]:
            # Share of the next state: each journey brings its state's share, evenly, times its weight.
            carried_J = share_S[here_J] * weight_J / count_S[here_J]
            carried_S = np.bincount(state_JT[:, step + 1], weights=carried_J, minlength=num_states + 1)
            share_S = np.asarray(carried_S, dtype=np.float64)
    return total


def effective_sample_size_by_step(weight_JT: np.ndarray, present_JT: np.ndarray) -> np.ndarray:
    """[T]: of the cumulated weights; where it falls to a handful the horizon is too long for this log."""
    up_to_JT = _cumulative(weight_JT, present_JT)
    squares_T = (up_to_JT**2).sum(axis=0)
    return np.where(squares_T > 0, up_to_JT.sum(axis=0) ** 2 / np.maximum(squares_T, 1e-300), 0.0)


def _cumulative(weight_JT: np.ndarray, present_JT: np.ndarray) -> np.ndarray:
    return np.cumprod(np.where(present_JT, weight_JT, 1.0), axis=1)


def _discounted(reward_JT: np.ndarray, present_JT: np.ndarray, discount: float) -> np.ndarray:
    return np.where(present_JT, reward_JT, 0.0) * discount ** np.arange(reward_JT.shape[1])
