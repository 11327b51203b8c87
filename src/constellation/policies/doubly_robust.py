"""A policy learned from doubly-robust scores, with a price on variance and on leaving the logging policy."""

from __future__ import annotations

import numpy as np

from constellation.errors import InputError
from constellation.policies.policy import Policy, Situation

MAX_STANDARD = 5.0


class DoublyRobustLearned(Policy):
    """Softmax of a linear function of the features, learned by METHODS 3.7:

    ``max  mean_i sum_a pi(a|x_i) G_i(a)  -  variance sqrt(var_i / n)  -  logging KL(pi | logging)  -  ridge |theta|^2``
    with doubly-robust scores G (Athey and Wager 2021; the variance term of Swaminathan and Joachims 2015), in units of
    the scores' spread. ``ridges``: tried from weak to strong on a half of the training customers each, the one with the
    best doubly-robust value on the other half is kept. As features: standardised, NaN as the mean.
    num_steps: of L-BFGS.
    """

    name = "doubly_robust"

    def __init__(
        self,
        *,
        variance: float = 1.0,
        logging: float = 0.0,
        ridges: tuple[float, ...] = (0.001, 0.01, 0.1),
        num_steps: int = 40,
        max_features: int = 64,
        seed: int = 0,
    ) -> None:
        if variance < 0 or logging < 0 or not ridges or min(ridges) < 0 or num_steps < 1 or max_features < 1:
            raise InputError(
                "policy.doubly_robust needs variance, logging and ridges of 0 or more, "
                "and num_steps and max_features of 1 or more."
            )
        self.variance, self.logging, self.ridges = variance, logging, tuple(ridges)
        self.num_steps, self.max_features, self.seed = num_steps, max_features, seed
        self.theta_XA: np.ndarray | None = None

    def fit(self, situation: Situation, scores_QA: np.ndarray, customer_Q: np.ndarray) -> None:
        features_QX = situation.features_QX
        # Features that vary, by coverage: an all-missing column says nothing.
        spread_X = np.nan_to_num(np.nanstd(np.where(np.isfinite(features_QX), features_QX, np.nan), axis=0))
        known_X = np.isfinite(features_QX).mean(axis=0)
        self.kept_X = np.flatnonzero((spread_X > 0) & (known_X > 0.05))[: self.max_features]
        kept = np.where(np.isfinite(features_QX[:, self.kept_X]), features_QX[:, self.kept_X], np.nan)
        self.middle_X, self.spread_X = np.nanmean(kept, axis=0), np.nanstd(kept, axis=0)
        design_QX = self._design(features_QX)
        ridge = self.ridges[0]
        if len(self.ridges) > 1:
            halves_Q = np.random.default_rng(self.seed).integers(0, 2, int(customer_Q.max()) + 1)[customer_Q] == 0
            value_R = np.zeros(len(self.ridges))
            for half_Q in (halves_Q, ~halves_Q):
                for place, tried in enumerate(self.ridges):
                    theta = self._learn(design_QX[half_Q], situation.take(half_Q), scores_QA[half_Q], tried)
                    other = situation.take(~half_Q)
                    target_QA = _policy(design_QX[~half_Q], theta, other.eligible_QA)
                    value_R[place] += (target_QA * scores_QA[~half_Q]).sum()
            ridge = self.ridges[int(value_R.argmax())]
        self.ridge = ridge
        self.theta_XA = self._learn(design_QX, situation, scores_QA, ridge)

    def probabilities(self, situation: Situation) -> np.ndarray:
        assert self.theta_XA is not None, "fit first"
        return _policy(self._design(situation.features_QX), self.theta_XA, situation.eligible_QA)

    def _design(self, features_QX: np.ndarray) -> np.ndarray:
        scaled_QX = (features_QX[:, self.kept_X] - self.middle_X) / self.spread_X
        scaled_QX = np.clip(np.where(np.isfinite(scaled_QX), scaled_QX, 0.0), -MAX_STANDARD, MAX_STANDARD)
        return np.concatenate([np.ones((len(scaled_QX), 1)), scaled_QX], axis=1)

    def _learn(self, design_QX: np.ndarray, situation: Situation, scores_QA: np.ndarray, ridge: float) -> np.ndarray:
        import torch

        unit = max(float(scores_QA.mean(axis=0).std()), float(scores_QA.std()) / np.sqrt(len(scores_QA)), 1e-12)
        centred = (scores_QA - scores_QA.mean(axis=1, keepdims=True)) / unit
        design, gain = torch.from_numpy(design_QX).float(), torch.from_numpy(centred).float()
        closed = torch.from_numpy(~situation.eligible_QA)
        logged = torch.from_numpy(situation.logging_QA).float().clamp(min=1e-6).log()
        theta = torch.zeros(design.shape[1], gain.shape[1], requires_grad=True)
        optimizer = torch.optim.LBFGS([theta], max_iter=self.num_steps, line_search_fn="strong_wolfe")

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            log_pi = (design @ theta).masked_fill(closed, -torch.inf).log_softmax(dim=1)
            pi = log_pi.exp()
            value = (pi * gain).sum(dim=1)
            # The bias term is the constant policy, which a penalty must not stand against.
            loss = -value.mean() + ridge * theta[1:].square().sum()
            loss = loss + self.variance * ((value - value.mean()).square().mean() / len(value)).sqrt()
            if self.logging > 0:
                divergence = torch.where(pi > 0, pi * (log_pi.clamp(min=-60.0) - logged), torch.zeros_like(pi))
                loss = loss + self.logging * divergence.sum(dim=1).mean()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)
        return theta.detach().numpy().astype(np.float64)


def _policy(design_QX: np.ndarray, theta_XA: np.ndarray, eligible_QA: np.ndarray) -> np.ndarray:
    logits_QA = np.where(eligible_QA, design_QX @ theta_XA, -np.inf)
    odds_QA = np.exp(logits_QA - logits_QA.max(axis=1, keepdims=True))
    return odds_QA / odds_QA.sum(axis=1, keepdims=True)
