"""The learned policy's descent: its slopes, what it leaves of a strong penalty, and of a misleading first part."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from constellation.policies import doubly_robust as module
from constellation.policies.doubly_robust import DoublyRobustLearned
from constellation.policies.policy import Situation

ACTIONS = ("none", "mail", "call", "visit", "gift")
MEAN_A = np.array([0.0, 0.5, 0.2, -3.0, -9.0])
"""One action is far below the others, as a call is in the world `loyalty`: against it the bias row runs off."""


def personal_log(num: int = 6000, seed: int = 3) -> tuple[Situation, np.ndarray]:
    """Scores without noise: mail is best for everybody together, call or none for most customers alone."""
    rng = np.random.default_rng(seed)
    features_QX = rng.normal(size=(num, 6))
    gain_QA = np.tile(MEAN_A, (num, 1))
    gain_QA[:, 0] += features_QX[:, 0]
    gain_QA[:, 2] -= features_QX[:, 0]
    even_QA = np.full(gain_QA.shape, 1 / len(ACTIONS))
    eligible_QA = np.ones(gain_QA.shape, dtype=bool)
    return Situation(ACTIONS, gain_QA, gain_QA[None], 1.0, eligible_QA, even_QA, features_QX, num), gain_QA


def worth(policy: DoublyRobustLearned, situation: Situation, gain_QA: np.ndarray) -> float:
    return float((policy.probabilities(situation) * gain_QA).sum(axis=1).mean())


def test_weak_penalties_are_personal_after_one_that_left_one_action_for_all() -> None:
    situation, gain_QA = personal_log()
    constant, best = gain_QA.mean(axis=0).max(), gain_QA.max(axis=1).mean()
    strong = DoublyRobustLearned(ridges=(1000.0,))
    strong.fit(situation, gain_QA, np.arange(len(gain_QA)))
    assert worth(strong, situation, gain_QA) == pytest.approx(constant, abs=0.01)
    assert (strong.probabilities(situation)[:, 1] > 0.99).all()
    for ridges in ((1000.0, 0.001), (1000.0, 100.0, 10.0, 1.0, 0.1, 0.01, 0.001)):
        policy = DoublyRobustLearned(ridges=ridges)
        policy.fit(situation, gain_QA, np.arange(len(gain_QA)))
        assert policy.ridge <= 0.01
        assert worth(policy, situation, gain_QA) > constant + 0.7 * (best - constant)


def test_each_penalty_finds_what_it_finds_alone() -> None:
    """No penalty leaves a trace in the next: chosen among seven, the policy is the one that its penalty gives alone."""
    situation, gain_QA = personal_log(num=2000)
    among = DoublyRobustLearned(ridges=(1000.0, 100.0, 10.0, 1.0, 0.1, 0.01, 0.001))
    among.fit(situation, gain_QA, np.arange(len(gain_QA)))
    alone = DoublyRobustLearned(ridges=(among.ridge,))
    alone.fit(situation, gain_QA, np.arange(len(gain_QA)))
    np.testing.assert_array_equal(among.probabilities(situation), alone.probabilities(situation))


def test_a_first_part_that_misleads_is_left_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every eighth row, of which the first part is made, says that a call is best for all; the others say mail."""
    situation, _ = personal_log(num=8000)
    gain_QA = np.tile([0.0, 0.5, 0.2, -1.0, -1.0], (8000, 1))
    gain_QA[::8, 2] += 1.0
    monkeypatch.setattr(module, "COARSE_ROWS", 500)
    policy = DoublyRobustLearned(ridges=(10.0,), clip_quantile=1.0)
    policy.fit(situation, gain_QA, np.arange(len(gain_QA)))
    assert gain_QA[::8].mean(axis=0).argmax() == 2
    assert gain_QA.mean(axis=0).argmax() == 1
    assert (policy.probabilities(situation)[:, 1] > 0.9).all()


def test_slopes_are_those_of_automatic_differentiation() -> None:
    rng = np.random.default_rng(0)
    num, num_actions = 2 * module.CACHED_ROWS + 77, 4
    eligible_QA = rng.random((num, num_actions)) < 0.8
    eligible_QA[:, 0] = True
    design_QX = np.c_[np.ones(num), rng.normal(size=(num, 3))].astype(np.float32)
    logging_QA, scores_QA = rng.dirichlet(np.ones(num_actions), num), 3 * rng.normal(size=(num, num_actions))
    start_XA = rng.normal(size=(4, num_actions))
    ground = module._Ground(design_QX, eligible_QA, logging_QA, scores_QA)
    found = module._Sums(ground, 2.0, with_logging=True).at(start_XA)

    theta = torch.tensor(start_XA, requires_grad=True)
    log_pi = (torch.tensor(design_QX).double() @ theta).masked_fill(torch.tensor(~eligible_QA), -torch.inf)
    log_pi = log_pi.log_softmax(dim=1)
    pi = log_pi.exp()
    gain = torch.tensor((scores_QA - scores_QA.mean(axis=1, keepdims=True)) / 2.0)
    value = (pi * gain).sum(dim=1)
    logged = torch.tensor(logging_QA).clamp(min=1e-6).log()
    divergence = torch.where(pi > 0, pi * (log_pi.clamp(min=-60.0) - logged), 0.0).sum(dim=1).mean()
    for loss, number, slope_XA, factor in (
        (value.mean(), found.value, found.value_XA, 1.0),
        (value.square().mean(), found.square, found.square_XA, 2.0),
        (divergence, found.divergence, found.divergence_XA, 1.0),
    ):
        (slope,) = torch.autograd.grad(loss, theta, retain_graph=True)
        assert number == pytest.approx(loss.item(), abs=1e-6)
        np.testing.assert_allclose(factor * slope_XA, slope.numpy(), atol=1e-6)
