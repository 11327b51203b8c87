"""Whether a log can speak about a policy at all: effective sample size, support, tails of the weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from constellation.policies.intervals import student
from constellation.policies.log import Log
from constellation.policies.terms import Terms

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Diagnosis:
    """Of one policy against one log.

    effective_sample_size: ``(sum w)^2 / sum w^2``, in decisions; share: over the number of decisions.
    mean_weight: 1 in expectation; low and high its 99 % interval by customer; weights_fit: whether 1 lies inside.
    max_weight, max_weight_share: the largest weight, and its part of their sum; top_share: part of the top 1 %.
    unsupported: the target's mean probability of actions that the logging policy never chooses there.
    """

    effective_sample_size: float
    effective_sample_share: float
    mean_weight: float
    mean_weight_low: float
    mean_weight_high: float
    weights_fit: bool
    max_weight: float
    max_weight_share: float
    top_share: float
    unsupported: float

    def numbers(self) -> dict[str, float]:
        return {name: float(value) for name, value in asdict(self).items()}


def effective_sample_size(weights_Q: np.ndarray) -> float:
    """Number of decisions of the target's own that would say as much (Kish); 0 where every weight is 0."""
    squares = float((weights_Q**2).sum())
    return float(weights_Q.sum()) ** 2 / squares if squares > 0 else 0.0


def diagnose(log: Log, target_QA: np.ndarray) -> Diagnosis:
    unsupported = float(np.where(log.logging_QA <= 0, target_QA, 0.0).sum(axis=1).mean())
    return diagnose_weights(log.weights(target_QA), log.customer_Q, unsupported)


def diagnose_weights(weights_Q: np.ndarray, customer_Q: np.ndarray, unsupported: float) -> Diagnosis:
    """Of weights however they came about, such as those of whole sequences, a row for each."""
    total = float(weights_Q.sum())
    interval = student(Terms.mean_of(weights_Q), customer_Q, level=0.99)
    top = np.sort(weights_Q)[-max(1, len(weights_Q) // 100) :]
    size = effective_sample_size(weights_Q)
    # A policy that never varies its weights has an interval of no width; rounding must not fail it.
    fits = interval.low - 1e-9 <= 1.0 <= interval.high + 1e-9
    return Diagnosis(
        effective_sample_size=size,
        effective_sample_share=size / len(weights_Q),
        mean_weight=interval.value,
        mean_weight_low=interval.low,
        mean_weight_high=interval.high,
        weights_fit=bool(fits),
        max_weight=float(weights_Q.max()),
        max_weight_share=float(weights_Q.max()) / total if total > 0 else 0.0,
        top_share=float(top.sum()) / total if total > 0 else 0.0,
        unsupported=unsupported,
    )


def balance(log: Log, features_QX: np.ndarray, action: int) -> np.ndarray:
    """Standardised mean difference [X] of each feature: rows with ``action``, weighted by 1 / propensity, and all that
    could have had it.

    Beyond 0.1 the propensities do not describe who got the action. NaN features are left out one by one.
    """
    chosen_Q, possible_Q = log.action_Q == action, log.logging_QA[:, action] > 0
    weights_Q = 1.0 / log.propensity_Q[chosen_Q]
    differences = []
    for column in features_QX.T:
        known_Q = np.isfinite(column) & possible_Q
        some_Q = known_Q[chosen_Q]
        spread = column[known_Q].std() if known_Q.any() else 0.0
        if spread == 0 or not some_Q.any():
            differences.append(0.0)
            continue
        weighted = np.average(column[chosen_Q][some_Q], weights=weights_Q[some_Q])
        differences.append(float((weighted - column[known_Q].mean()) / spread))
    return np.array(differences)


def overlap_figure(log: Log, targets: dict[str, np.ndarray]) -> Figure:
    """Per policy: the weights, on a log scale. Two hills far apart are two policies that never meet."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4))
    for name, target_QA in targets.items():
        weights_Q = log.weights(target_QA)
        seen_Q = weights_Q > 0
        if seen_Q.any():
            edges = np.linspace(-3, max(3.0, np.log10(weights_Q.max()) + 0.1), 60)
            shown_Q = np.log10(np.maximum(weights_Q[seen_Q], 1e-3))
            label = (
                f"{name} (ESS {effective_sample_size(weights_Q) / len(weights_Q):.0%}, zero {1 - seen_Q.mean():.0%})"
            )
            axis.hist(shown_Q, bins=edges.tolist(), histtype="step", label=label)
    axis.axvline(0, color="grey", lw=0.8)
    axis.set_xlabel("log10 of target / logging probability of the chosen action")
    axis.set_ylabel("decisions")
    axis.legend(fontsize=7)
    figure.tight_layout()
    return figure
