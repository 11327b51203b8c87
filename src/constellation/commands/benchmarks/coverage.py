"""Do intervals cover the truth, and are claims wrong no more often than they say? In a world whose truth is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from constellation.errors import InputError
from constellation.policies import estimators, intervals
from constellation.policies.cross_fit import cross_fit, person_folds
from constellation.policies.diagnostics import effective_sample_size
from constellation.policies.evaluation import CONSTANT, LOGGED, Experiment, evaluate_policies
from constellation.policies.greedy import Greedy
from constellation.policies.intervals import Interval
from constellation.policies.log import Log
from constellation.policies.outcomes import RidgeOutcome
from constellation.policies.pessimistic import Pessimistic
from constellation.policies.policy import Policy
from constellation.policies.softmax import Softmax
from constellation.policies.terms import Terms
from constellation.policies.verdict import BETTER, DELTA

if TYPE_CHECKING:
    from constellation.worlds.loyalty.waves import Waves
    from constellation.worlds.loyalty.world import LoyaltyWorld

LEVEL = 0.90
WEEKS = (26, 30, 34, 38, 42, 46)
"""Of the decisions: rewards run eight weeks, so those of one customer overlap."""
CUSTOMERS = 500
"""Per log: 3,000 decisions."""
TRUTH_CUSTOMERS = 100_000
LEARNED_FROM = 2_000
"""Customers of the log from which the policy that is judged was learned; they are in no replicate."""
BLOCK = 25_000
"""Customers simulated together, for the sake of memory."""
NUM_RESAMPLES = 400
SURE = 0.95
"""Of the binomial bounds: a correct method stays within them in so many of such studies."""

IntervalOf = Callable[[Terms, np.ndarray], Interval]
INTERVALS: dict[str, IntervalOf] = {
    "student": lambda terms, customer_Q: intervals.student(terms, customer_Q, level=LEVEL),
    "bootstrap": lambda terms, customer_Q: intervals.bootstrap(
        terms, customer_Q, level=LEVEL, num_resamples=NUM_RESAMPLES
    ),
    "sequence": lambda terms, customer_Q: intervals.confidence_sequence(terms, customer_Q, level=LEVEL),
}
"""The empirical Bernstein interval is not among them: money has no bound that could be known beforehand."""


def benchmark_coverage(
    *, num_replicates: int = 400, num_customers: int = CUSTOMERS, progress: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """Rows of two kinds, ``what``: ``coverage`` and ``wrong claims``.

    Coverage: share of logs whose 90 % interval holds the true value (or the true gain over the habit) of a policy that
    was fixed before, for each estimator and interval, from one log of ``num_customers`` customers each; the reward
    model is cross-fitted within the log. Wrong claims: policies learned, cross-fitted, from each log of the mirror
    world, where no policy is better than any other, and judged as ``evaluate`` does; share of logs with a wrong
    ``better``.
    low, high: binomial bounds of the share that a correct method shows.
    """
    if num_replicates < 2 or num_customers < 50:
        raise InputError(
            "coverage needs num_replicates of at least 2 and 50 customers in a log, "
            f"found {num_replicates} and {num_customers}."
        )
    return _coverage(num_replicates, num_customers, progress) + _wrong_claims(num_replicates, num_customers, progress)


def binomial_bounds(num: int, chance: float, sure: float = SURE) -> tuple[float, float]:
    """Between which shares of ``num`` trials a chance shows itself, at least ``sure`` of the time."""
    from scipy import stats

    low, high = stats.binom.ppf([(1 - sure) / 2, (1 + sure) / 2], num, chance) / num
    return float(low), float(high)


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    for what in ("coverage", "wrong claims"):
        of_kind = [row for row in rows if row["what"] == what]
        if not of_kind:
            continue
        print(f"{what}: share of {of_kind[0]['num_replicates']} logs, beside what a correct method shows")
        for row in of_kind:
            told = "" if row["within"] else ("  too few" if row["share"] < row["low"] else "  too many")
            print(
                f"  {row['policy']:<12}{row['estimator']:<8}{row['interval']:<11}{row['share']:>7.1%}  "
                f"[{row['low']:.1%}, {row['high']:.1%}]  width {row['width']:>7.3f}  effective sample "
                f"{row['effective_sample_share']:>6.1%}{told}"
            )


def metrics_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """``coverage/<policy>/<estimator>/<interval>/<share, low, high, within>``, and the same for ``wrong_claims``."""
    return {
        f"{row['what'].replace(' ', '_')}/{row['policy']}/{row['estimator']}/{row['interval']}/{name}": float(row[name])
        for row in rows
        for name in ("share", "low", "high", "within", "width", "effective_sample_share")
    }


def log_of(world: LoyaltyWorld, waves: Waves) -> Log:
    return Log.of(
        waves.action_Q, waves.reward_Q, waves.probability_QA, actions=world.action_names, customer_Q=waves.customer_Q
    )


def _drawn(world: LoyaltyWorld, num_replicates: int, num_customers: int, seed: int) -> list[Waves]:
    """As many logs, of customers who are each in one."""
    from constellation.worlds.loyalty.waves import draw_waves

    at_once = max(1, BLOCK // num_customers)
    logs: list[Waves] = []
    while len(logs) < num_replicates:
        several = min(at_once, num_replicates - len(logs))
        block = draw_waves(world, several * num_customers, seed + len(logs), WEEKS)
        logs += [block.of_customers(place * num_customers, (place + 1) * num_customers) for place in range(several)]
    return logs


def _coverage(num_replicates: int, num_customers: int, progress: Callable[[str], None]) -> list[dict[str, Any]]:
    from constellation.worlds.loyalty.value import constant_policy, logging_policy, uniform_policy
    from constellation.worlds.loyalty.waves import draw_waves, true_rewards
    from constellation.worlds.loyalty.world import LoyaltyWorld

    world = LoyaltyWorld()
    before = draw_waves(world, LEARNED_FROM, 9_000_001, WEEKS)
    model, none_AY = RidgeOutcome(), np.zeros((len(world.action_names), 0))
    model.fit(before.features_QF, before.action_Q, before.reward_Q, none_AY, len(none_AY))

    def learned(features_CF: np.ndarray) -> np.ndarray:
        return np.asarray(np.eye(len(none_AY))[model.predict(features_CF, none_AY).argmax(axis=1)])

    policies = {"uniform": uniform_policy(world), "voucher": constant_policy(world, "voucher"), "learned": learned}
    progress(f"true values of {', '.join(policies)}, by {TRUTH_CUSTOMERS:,} customers")
    truth: dict[str, list[np.ndarray]] = {}
    for block in range(0, TRUTH_CUSTOMERS, BLOCK):
        everyone = {LOGGED: logging_policy(world), **policies}
        for name, earned_C in true_rewards(world, everyone, BLOCK, 9_100_000 + block, WEEKS).items():
            truth.setdefault(name, []).append(earned_C)
    value = {name: float(np.concatenate(parts).mean()) for name, parts in truth.items()}
    progress(f"{num_replicates} logs of {num_customers} customers at {len(WEEKS)} decisions each")
    found: dict[tuple[str, str, str], list[tuple[bool, float]]] = {}
    effective: dict[str, list[float]] = {name: [] for name in policies}
    for replicate, waves in enumerate(_drawn(world, num_replicates, num_customers, 9_200_000)):
        log = log_of(world, waves)
        fold_Q = person_folds(log.customer_Q, 3, replicate)
        model_QA = np.empty(log.logging_QA.shape)
        for fold in range(3):
            own, part = fold_Q == fold, RidgeOutcome()
            part.fit(waves.features_QF[~own], log.action_Q[~own], log.reward_Q[~own], none_AY, len(none_AY))
            model_QA[own] = part.predict(waves.features_QF[own], none_AY)
        habit = estimators.doubly_robust(log, log.logging_QA, model_QA)
        for name, policy in policies.items():
            target_QA = policy(waves.features_QF)
            terms = estimators.doubly_robust(log, target_QA, model_QA)
            asked = {
                "ips": (estimators.ips(log, target_QA), value[name]),
                "snips": (estimators.snips(log, target_QA), value[name]),
                "dr": (terms, value[name]),
                "sndr": (estimators.self_normalised_doubly_robust(log, target_QA, model_QA), value[name]),
                "dr gain": (intervals.difference(terms, habit), value[name] - value[LOGGED]),
            }
            effective[name].append(effective_sample_size(log.weights(target_QA)) / len(log))
            for estimator, (each, true) in asked.items():
                for interval, of in INTERVALS.items():
                    bounds = of(each, log.customer_Q)
                    found.setdefault((name, estimator, interval), []).append(
                        (bounds.low <= true <= bounds.high, bounds.high - bounds.low)
                    )
    low, high = binomial_bounds(num_replicates, LEVEL)
    rows = []
    for (name, estimator, interval), seen in found.items():
        share = float(np.mean([covers for covers, _ in seen]))
        # A confidence sequence holds at all times at once, so at one of them it covers more often.
        within = share >= low and (share <= high or interval == "sequence")
        rows.append(
            {"what": "coverage", "policy": name, "estimator": estimator, "interval": interval, "share": share,
             "low": low, "high": 1.0 if interval == "sequence" else high, "within": within,
             "width": float(np.mean([width for _, width in seen])), "truth": value[name],
             "effective_sample_share": float(np.mean(effective[name])), "num_replicates": num_replicates,
             "num_customers": num_customers}
        )  # fmt: skip
    return rows


def _wrong_claims(num_replicates: int, num_customers: int, progress: Callable[[str], None]) -> list[dict[str, Any]]:
    from constellation.worlds.loyalty.world import LoyaltyWorld

    world = LoyaltyWorld(mirror=True)
    none_AY = np.zeros((len(world.action_names), 0))
    progress(f"{num_replicates} logs of {num_customers} customers of the mirror world")
    claims: dict[tuple[str, str], list[bool]] = {}
    widths: dict[str, list[float]] = {}
    effective: dict[str, list[float]] = {}
    for replicate, waves in enumerate(_drawn(world, num_replicates, num_customers, 9_300_000)):
        log = log_of(world, waves)
        fold_Q = person_folds(log.customer_Q, 2, replicate)
        predictions = cross_fit(
            RidgeOutcome(), waves.features_QF, log.action_Q, log.reward_Q, none_AY, log.customer_Q, fold_Q,
            log.logging_QA, seed=replicate,
        )  # fmt: skip
        candidates: dict[str, Policy] = {"greedy": Greedy(), "softmax": Softmax(), "pessimistic": Pessimistic()}
        experiment = Experiment(log, fold_Q, waves.features_QF, predictions)
        evaluated = evaluate_policies(experiment, candidates, num_resamples=2)
        better = {
            against: [
                (each.over_logging if against == LOGGED else each.over_constant).answer == BETTER
                for each in (evaluated[name] for name in candidates)
            ]
            for against in (LOGGED, CONSTANT)
        }
        for against, each in better.items():
            claims.setdefault(("any", f"over {against}"), []).append(any(each))
        claims.setdefault(("any", "over both"), []).append(any(evaluated[name].answer == BETTER for name in candidates))
        for name in candidates:
            claims.setdefault((name, "over both"), []).append(evaluated[name].answer == BETTER)
            widths.setdefault(name, []).append(evaluated[name].over_logging.gain - evaluated[name].over_logging.low)
            effective.setdefault(name, []).append(evaluated[name].diagnosis.effective_sample_share)
    rows = []
    for (name, against), each in claims.items():
        share = float(np.mean(each))
        nominal = DELTA if name == "any" else DELTA / len(widths)
        high = binomial_bounds(num_replicates, nominal)[1]
        seen = list(widths) if name == "any" else [name]
        rows.append(
            {"what": "wrong claims", "policy": name, "estimator": "verdict", "interval": against, "share": share,
             "low": 0.0, "high": high, "within": share <= high,
             "width": float(np.mean([widths[one] for one in seen])), "truth": 0.0,
             "effective_sample_share": float(np.mean([effective[one] for one in seen])),
             "num_replicates": num_replicates, "num_customers": num_customers}
        )  # fmt: skip
    return rows
