"""What the true value of a policy costs in the world of loyalty."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from constellation.commands.benchmarks.child import measured_in_child
from constellation.errors import InputError
from constellation.memory import peak_memory_gib

if TYPE_CHECKING:
    from constellation.worlds.loyalty.simulation import Simulation
    from constellation.worlds.loyalty.value import PolicyValue

MODULE = "constellation.commands.benchmarks.world"  # not __name__, which is __main__ in the process it starts
METRICS = (
    "start_seconds",
    "seconds",
    "processor_seconds",
    "customer_weeks_per_second",
    "peak_memory_gib",
    "value",
    "value_standard_error",
)
SEED = 0


def benchmark_world(sizes: Sequence[int], *, num_weeks: int = 52) -> list[dict[str, Any]]:
    """Value of each policy for each number of customers over ``num_weeks`` weeks, in a process of its own.

    The weeks of joining, which come before and are the same for every policy, are ``start_seconds``. On a machine that
    others use, ``processor_seconds`` says what the weeks themselves cost.
    Raises InputError for sizes that are no numbers of customers.
    """
    if not sizes or min(sizes) < 1:
        raise InputError(f"sizes must be numbers of customers, such as [10000,100000], found {list(sizes)}.")
    if num_weeks < 1:
        raise InputError(f"num_weeks must be 1 or more, found {num_weeks}.")
    return [_in_process(policy, num_customers, num_weeks) for num_customers in sizes for policy in POLICIES]


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    print(
        f"{'customers':>12}{'weeks':>7}  {'policy':<12}{'start s':>9}{'seconds':>9}{'CPU s':>8}{'customer-weeks/s':>18}"
        f"{'peak GiB':>10}{'value':>10}"
    )
    for row in rows:
        print(
            f"{row['num_customers']:>12,}{row['num_weeks']:>7}  {row['policy']:<12}{row['start_seconds']:>9.2f}"
            f"{row['seconds']:>9.2f}{row['processor_seconds']:>8.2f}{row['customer_weeks_per_second']:>18,.0f}{row['peak_memory_gib']:>10.2f}"
            f"{row['value']:>10.2f}"
        )


def metrics_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """``world/<policy>/<num_customers>/<metric>``."""
    return {
        f"world/{row['policy']}/{row['num_customers']}/{name}": float(row[name]) for row in rows for name in METRICS
    }


def _logging(start: Simulation, num_weeks: int) -> PolicyValue:
    from constellation.worlds.loyalty.value import logging_policy, value_of

    return value_of(logging_policy(start.world), start, num_weeks=num_weeks)


def _always_none(start: Simulation, num_weeks: int) -> PolicyValue:
    from constellation.worlds.loyalty.actions import NONE
    from constellation.worlds.loyalty.value import constant_policy, value_of

    return value_of(constant_policy(start.world, NONE), start, num_weeks=num_weeks)


def _oracle(start: Simulation, num_weeks: int) -> PolicyValue:
    from constellation.worlds.loyalty.value import value_of_oracle

    return value_of_oracle(start, num_weeks=num_weeks)


POLICIES: dict[str, Callable[[Simulation, int], PolicyValue]] = {
    "logging": _logging,
    "always_none": _always_none,
    "oracle": _oracle,
}


def _in_process(policy: str, num_customers: int, num_weeks: int) -> dict[str, Any]:
    """Seconds (imports not counted) and peak resident memory of one policy in a fresh process."""
    found = measured_in_child(MODULE, policy, str(num_customers), str(num_weeks), what=f"The benchmark of {policy}")
    return {
        "policy": policy,
        "num_customers": num_customers,
        "num_weeks": num_weeks,
        **found,
    }


def _main(policy: str, num_customers: str, num_weeks: str) -> None:
    from constellation.worlds.loyalty.value import started
    from constellation.worlds.loyalty.world import LoyaltyWorld

    # scipy is imported by the first step: one small run pays for it.
    POLICIES[policy](started(LoyaltyWorld(), 10, SEED), 2)
    began = time.perf_counter()
    start = started(LoyaltyWorld(), int(num_customers), SEED)
    ready, working = time.perf_counter(), time.process_time()
    value = POLICIES[policy](start, int(num_weeks))
    seconds = time.perf_counter() - ready
    print(
        json.dumps(
            {
                "start_seconds": ready - began,
                "seconds": seconds,
                "processor_seconds": time.process_time() - working,
                "customer_weeks_per_second": int(num_customers) * int(num_weeks) / seconds,
                "peak_memory_gib": peak_memory_gib(),
                "value": value.mean,
                "value_standard_error": value.standard_error,
            }
        )
    )


if __name__ == "__main__":
    _main(*sys.argv[1:])
