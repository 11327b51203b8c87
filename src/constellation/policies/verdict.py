"""Better, not shown, or worse: a claim about a policy, paid for and gated. Never a bare number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from constellation.policies.diagnostics import Diagnosis
from constellation.policies.intervals import difference, miss_chances, numbered, skewness, standard_error
from constellation.policies.terms import Terms

BETTER, NOT_SHOWN, WORSE = 1, 0, -1
WORDS = {BETTER: "better", NOT_SHOWN: "not shown", WORSE: "worse"}
MIN_SAMPLE_SHARE = 0.05
"""METHODS 4.6 H3: below about 5 % effective sample size no estimator is to be trusted."""
MIN_SAMPLE = 100.0
"""Effective decisions below which a Student bound does not hold whatever their share."""
MAX_EXCESS = 2.0
"""A claim is held back where skewness makes it so many times as likely to be wrong as was paid for."""
ROUNDING = 1e-9
"""Of a value: what sums of the same numbers in another order may differ by."""
DELTA = 0.05
"""Chance of a wrong claim, shared by all candidates that were looked at."""


@dataclass(frozen=True)
class Verdict:
    """One policy against another.

    gain: estimated value less the other's, paired by decision; low and high: one-sided bounds, each at
    ``DELTA / num_candidates``. detectable: the smallest gain that would have been found better in four of five such
    logs. wrong: estimated chance that such a claim would be wrong, were there no difference: what was paid for, moved
    by how much few great rewards carry the gain. answer: 1 better, 0 not shown, -1 worse; reason: in words, naming the
    gate where one held it back.
    """

    against: str
    gain: float
    low: float
    high: float
    detectable: float
    wrong: float
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
    reference_diagnosis: Diagnosis | None = None,
    num_candidates: int = 1,
    delta: float = DELTA,
    min_sample_share: float = MIN_SAMPLE_SHARE,
    counted: str = "decisions",
) -> Verdict:
    """Whether ``candidate`` earns more than ``reference``, from paired rows of one estimator over the same decisions.

    num_candidates: how many policies were tried; the chance of a wrong claim is split over them (Bonferroni).
    diagnosis, reference_diagnosis: of the candidate and of the reference against the log (None for the logging policy,
    of which the log holds all there is); where an effective sample is too small, or a policy chooses what the log never
    did, or the weights do not average to 1, the answer is "not shown" whatever the numbers say. So it is where the gain
    hangs on so few customers that the bound would fail ``MAX_EXCESS`` times as often as it says. counted: what the
    effective sample is a number of, in words.
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
    paid = delta / num_candidates
    below, above = miss_chances(skewness(gained, customer_Q), paid)
    wrong = below if gained.value > 0 else above
    if answer != NOT_SHOWN and wrong > MAX_EXCESS * paid:
        answer = NOT_SHOWN
        reason = f"few customers carry the gain: the bound fails in about {wrong:.1%}, not {paid:.1%}"
    stopped = _gate(diagnosis, min_sample_share, "this policy", counted)
    if stopped is None and reference_diagnosis is not None:
        stopped = _gate(reference_diagnosis, min_sample_share, f"{against}, which it is compared with", counted)
    if stopped is not None:
        answer, reason = NOT_SHOWN, stopped
    return Verdict(against, gained.value, low, high, detectable, wrong, answer, reason)


def joint(verdicts: list[Verdict]) -> int:
    """Against several references at once: better only where better than each, worse where worse than any."""
    answers = [verdict.answer for verdict in verdicts]
    return WORSE if WORSE in answers else min(answers)


def _gate(diagnosis: Diagnosis, min_sample_share: float, whom: str, counted: str) -> str | None:
    if diagnosis.effective_sample_share < min_sample_share or diagnosis.effective_sample_size < MIN_SAMPLE:
        return (
            f"the log holds only {diagnosis.effective_sample_size:.0f} effective {counted} "
            f"({diagnosis.effective_sample_share:.1%}) for {whom}"
        )
    if diagnosis.unsupported > 1e-9:
        return f"{diagnosis.unsupported:.1%} of the choices of {whom} were never made in the log"
    if not diagnosis.weights_fit:
        return (
            f"the weights of {whom} average to {diagnosis.mean_weight:.3f} "
            f"([{diagnosis.mean_weight_low:.3f}, {diagnosis.mean_weight_high:.3f}]), not to 1: propensities are wrong"
        )
    return None
