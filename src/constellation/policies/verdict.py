"""Better, not shown, or worse: a claim about a policy, paid for and gated. Never a bare number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from constellation.policies.diagnostics import Diagnosis
from constellation.policies.intervals import difference, numbered, standard_error
from constellation.policies.terms import Terms

BETTER, NOT_SHOWN, WORSE = 1, 0, -1
WORDS = {BETTER: "better", NOT_SHOWN: "not shown", WORSE: "worse"}
MIN_SAMPLE_SHARE = 0.05
"""METHODS 4.6 H3: below about 5 % effective sample size no estimator is to be trusted."""
MIN_SAMPLE = 100.0
"""Effective decisions below which a Student bound does not hold whatever their share."""
ROUNDING = 1e-9
"""Of a value: what sums of the same numbers in another order may differ by."""
DELTA = 0.05
"""Chance of a wrong claim, shared by all candidates that were looked at."""


@dataclass(frozen=True)
class Verdict:
    """One policy against another.

    gain: estimated value less the other's, paired by decision; low and high: one-sided bounds, each at
    ``DELTA / num_candidates``. detectable: the smallest gain that would have been found better in four of five such
    logs. answer: 1 better, 0 not shown, -1 worse; reason: in words, naming the gate where one held it back.
    """

    against: str
    gain: float
    low: float
    high: float
    detectable: float
    answer: int
    reason: str

    @property
    def word(self) -> str:
        return WORDS[self.answer]


def judge(
    candidate: Terms,
    reference: Terms,
    customer_Q: np.ndarray,
    diagnosis: Diagnosis,
    *,
    against: str,
    num_candidates: int = 1,
    delta: float = DELTA,
    min_sample_share: float = MIN_SAMPLE_SHARE,
) -> Verdict:
    """Whether ``candidate`` earns more than ``reference``, from paired rows of one estimator over the same decisions.

    num_candidates: how many policies were tried; the chance of a wrong claim is split over them (Bonferroni).
    diagnosis: of the candidate against the log; where its effective sample is too small, or it chooses what the log
    never did, or the weights do not average to 1, the answer is "not shown" whatever the numbers say.
    """
    from scipy import stats

    assert num_candidates >= 1
    gained = difference(candidate, reference)
    num = int(numbered(customer_Q).max()) + 1
    error = standard_error(gained, customer_Q)
    student_t = stats.t(max(num - 1, 1))
    width = float(student_t.ppf(1 - delta / num_candidates)) * error
    low, high = gained.value - width, gained.value + width
    detectable = width + float(student_t.ppf(0.8)) * error
    answer, reason = NOT_SHOWN, f"the bounds [{low:.4g}, {high:.4g}] contain 0"
    # Of two policies that are the same, rounding alone is left, and it varies so little that it would pass for shown.
    rounding = ROUNDING * max(abs(candidate.value), abs(reference.value))
    if low > rounding:
        answer, reason = BETTER, f"the lower bound {low:.4g} is above 0"
    elif high < -rounding:
        answer, reason = WORSE, f"the upper bound {high:.4g} is below 0"
    stopped = _gate(diagnosis, min_sample_share)
    if stopped is not None:
        answer, reason = NOT_SHOWN, stopped
    return Verdict(against, gained.value, low, high, detectable, answer, reason)


def joint(verdicts: list[Verdict]) -> int:
    """Against several references at once: better only where better than each, worse where worse than any."""
    answers = [verdict.answer for verdict in verdicts]
    return WORSE if WORSE in answers else min(answers)


def _gate(diagnosis: Diagnosis, min_sample_share: float) -> str | None:
    if diagnosis.effective_sample_share < min_sample_share or diagnosis.effective_sample_size < MIN_SAMPLE:
        return (
            f"the log holds only {diagnosis.effective_sample_size:.0f} effective decisions "
            f"({diagnosis.effective_sample_share:.1%}) for this policy"
        )
    if diagnosis.unsupported > 1e-9:
        return f"{diagnosis.unsupported:.1%} of its choices were never made in the log"
    if not diagnosis.weights_fit:
        return (
            f"the weights average to {diagnosis.mean_weight:.3f} "
            f"([{diagnosis.mean_weight_low:.3f}, {diagnosis.mean_weight_high:.3f}]), not to 1: propensities are wrong"
        )
    return None
