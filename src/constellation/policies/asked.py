"""Estimates and intervals that are made when they are asked for, beside the usual ones of ``evaluation``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from constellation.errors import InputError
from constellation.policies import estimators
from constellation.policies.intervals import (
    Interval,
    bootstrap,
    confidence_sequence,
    empirical_bernstein,
    numbered,
    student,
)
from constellation.policies.log import Log
from constellation.policies.terms import Terms

DIRECT, IPS, SNIPS, DR, SNDR, SWITCH_DR, DROS, MRDR = (
    "direct", "ips", "snips", "dr", "sndr", "switch_dr", "dros", "mrdr"
)  # fmt: skip
ESTIMATORS = (DIRECT, IPS, SNIPS, DR, SNDR, SWITCH_DR, DROS, MRDR)
ALWAYS = (DR, SNIPS)
"""Estimated with an interval whether asked for or not."""
BOUNDED = (IPS, DR, MRDR)
"""Plain means without bias where propensities are known: what a bound at any number of customers is a bound for."""
BOOTSTRAP, STUDENT, BERNSTEIN, SEQUENCE = "bootstrap", "student", "empirical_bernstein", "confidence_sequence"
INTERVALS = (BOOTSTRAP, STUDENT, BERNSTEIN, SEQUENCE)


def _as_range(given: object) -> tuple[float, float]:
    """Least and greatest, from whatever a person wrote."""
    try:
        low, high = (float(bound) for bound in given)  # type: ignore[attr-defined]
        if low < high:
            return low, high
    except (TypeError, ValueError):
        pass
    raise InputError(
        "reward_range must be the least and the greatest reward there can be, such as [0,1] for a response; "
        f"found {given}."
    )


@dataclass(frozen=True)
class Asked:
    """estimators, intervals: names of ``ESTIMATORS`` and ``INTERVALS``; the bootstrap is always among the intervals.

    reward_range: the least and the greatest reward of a decision, net of its cost, that there can be, known beforehand;
    the empirical Bernstein interval needs it, and the switch is chosen by it where it is given.
    Raises InputError for unknown names, and for a range that is missing or empty.
    """

    estimators: Sequence[str] = ()
    intervals: Sequence[str] = ()
    reward_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name, known in (("estimators", ESTIMATORS), ("intervals", INTERVALS)):
            object.__setattr__(self, name, checked(getattr(self, name), known, name))
        if self.reward_range is not None:
            object.__setattr__(self, "reward_range", _as_range(self.reward_range))
        elif BERNSTEIN in self.intervals:
            raise InputError(
                f"intervals={BERNSTEIN} needs reward_range, the least and the greatest reward there can be, known "
                "beforehand; found none. The span of the log is no bound. Give reward_range=[0,1] for a response, or "
                f"ask for {BOOTSTRAP}, {STUDENT} or {SEQUENCE}: money has no bound."
            )

    def check(self, log: Log) -> None:
        """Raise InputError where a reward of the log lies outside ``reward_range``."""
        if self.reward_range is None:
            return
        low, high = float(log.reward_Q.min()), float(log.reward_Q.max())
        if low < self.reward_range[0] or high > self.reward_range[1]:
            raise InputError(
                f"reward_range says that rewards lie in [{self.reward_range[0]:g}, {self.reward_range[1]:g}], but in "
                f"the log they go from {low:g} to {high:g}. Give a range that holds for every decision."
            )

    @property
    def further(self) -> tuple[str, ...]:
        """Intervals beside the bootstrap."""
        return tuple(name for name in self.intervals if name != BOOTSTRAP)

    @property
    def shown(self) -> tuple[str, ...]:
        """Estimators with a row of their own: those asked for, and the usual two where intervals were asked for."""
        return (*(name for name in ALWAYS if self.further and name not in self.estimators), *self.estimators)

    @property
    def switch_reach(self) -> float | None:
        return None if self.reward_range is None else self.reward_range[1] - self.reward_range[0]


def checked(given: Sequence[str], known: Sequence[str], what: str) -> tuple[str, ...]:
    """Names without repeats. Raises InputError for one that is not known."""
    names = (given,) if isinstance(given, str) else tuple(dict.fromkeys(given))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(
            f"{what} must be among {', '.join(known)}; found {', '.join(map(str, unknown))}. "
            f"Write {what}=[{known[0]},{known[-1]}], for instance."
        )
    return names


def further_intervals(
    name: str, terms: Terms, log: Log, target_QA: np.ndarray, model_QA: np.ndarray, asked: Asked
) -> dict[str, Interval]:
    """Those of ``asked`` beside the bootstrap, by name. An estimator without such a bound has none: see ``BOUNDED``.

    model_QA: what the estimator reads, that of MRDR for it.
    """
    found: dict[str, Interval] = {}
    for interval in asked.further:
        if interval == STUDENT:
            found[interval] = student(terms, log.customer_Q)
        elif interval == SEQUENCE:
            found[interval] = confidence_sequence(terms, log.customer_Q)
        elif name in BOUNDED:
            found[interval] = bernstein_of(name, log, target_QA, model_QA, asked)
    return found


def bernstein_of(name: str, log: Log, target_QA: np.ndarray, model_QA: np.ndarray, asked: Asked) -> Interval:
    """Empirical Bernstein of IPS or a doubly robust estimate, from what a customer's row can span.

    A row of IPS lies in ``w [least, greatest]``, 0 included; one of a doubly robust estimate, its model cut to the
    range of rewards, within ``w`` times the range of it; w the greatest weight that any decision at hand could have
    had. A customer's rows are added up, and so are their bounds: between the fewest and the most decisions that anybody
    has, for where rewards are far from 0 the number alone moves the sum.
    """
    assert asked.reward_range is not None
    low, high = asked.reward_range
    weight = float(np.divide(target_QA, log.logging_QA, out=np.zeros(target_QA.shape), where=log.logging_QA > 0).max())
    if name == IPS:
        terms, bounds = estimators.ips(log, target_QA), weight * np.array([min(low, 0.0), max(high, 0.0)])
    else:
        terms = estimators.doubly_robust(log, target_QA, np.clip(model_QA, low, high))
        bounds = np.array([low, high]) + weight * (high - low) * np.array([-1.0, 1.0])
    each_C = np.bincount(numbered(log.customer_Q))
    sums = np.outer([each_C.min(), each_C.max()], bounds)
    return empirical_bernstein(terms, log.customer_Q, reach=float(np.ptp(sums)) * len(each_C) / len(log))


def estimate(
    name: str, log: Log, target_QA: np.ndarray, model_QA: np.ndarray, *, switch_reach: float | None = None
) -> tuple[Terms, dict[str, float]]:
    """Terms of an estimator by its name, and the setting that it chose. ``mrdr`` is doubly robust with its own
    model."""
    if name == SWITCH_DR:
        switch = estimators.switch_threshold(log, target_QA, model_QA, reach=switch_reach)
        terms = estimators.switch_doubly_robust(log, target_QA, model_QA, switch=switch)
        return terms, {"switch_threshold": min(switch, 1e9)}
    if name == DROS:
        terms, shrinkage = estimators.tuned(
            lambda value: estimators.shrunk_doubly_robust(log, target_QA, model_QA, shrinkage=value)
        )
        return terms, {"dros_lambda": min(shrinkage, 1e9)}
    plain = {
        DIRECT: lambda: estimators.direct(log, target_QA, model_QA),
        IPS: lambda: estimators.ips(log, target_QA),
        SNIPS: lambda: estimators.snips(log, target_QA),
        DR: lambda: estimators.doubly_robust(log, target_QA, model_QA),
        MRDR: lambda: estimators.doubly_robust(log, target_QA, model_QA),
        SNDR: lambda: estimators.self_normalised_doubly_robust(log, target_QA, model_QA),
    }
    return plain[name](), {}


@dataclass(frozen=True)
class Estimate:
    """One estimate of one policy. interval: the bootstrap's; further: by name. settings: what it chose by itself."""

    interval: Interval
    further: dict[str, Interval]
    settings: dict[str, float]

    def numbers(self, name: str) -> dict[str, float]:
        """``value_<name>``, its ``_low`` and ``_high``, and those of further intervals under their names."""
        found = {f"value_{name}": self.interval.value, f"value_{name}_low": self.interval.low}
        found[f"value_{name}_high"] = self.interval.high
        for interval, each in self.further.items():
            found[f"value_{name}_{interval}_low"], found[f"value_{name}_{interval}_high"] = each.low, each.high
        return found | self.settings


def estimates(
    log: Log,
    target_QA: np.ndarray,
    model_QA: np.ndarray,
    mrdr_QA: np.ndarray | None,
    asked: Asked,
    *,
    num_resamples: int,
    seed: int,
) -> dict[str, Estimate]:
    """Every estimate of ``asked.shown``; mrdr_QA: the model fitted for it, where MRDR is among them."""
    found = {}
    for name in asked.shown:
        of_name_QA = model_QA
        if name == MRDR:
            assert mrdr_QA is not None
            of_name_QA = mrdr_QA
        terms, settings = estimate(name, log, target_QA, of_name_QA, switch_reach=asked.switch_reach)
        found[name] = Estimate(
            bootstrap(terms, log.customer_Q, num_resamples=num_resamples, seed=seed),
            further_intervals(name, terms, log, target_QA, of_name_QA, asked),
            settings,
        )
    return found
