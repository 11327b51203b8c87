"""The benchmark of the world of loyalty: its rows are measured, its values those of the simulation."""

from __future__ import annotations

import pytest

from constellation.commands.benchmarks import world as of_world
from constellation.errors import InputError
from constellation.worlds.loyalty.value import logging_policy, started, value_of
from constellation.worlds.loyalty.world import LoyaltyWorld


def test_rows_hold_the_simulated_value_and_its_cost(capsys: pytest.CaptureFixture[str]) -> None:
    rows = of_world.benchmark_world([60], num_weeks=3)
    assert [row["policy"] for row in rows] == list(of_world.POLICIES)
    world = LoyaltyWorld()
    truth = value_of(logging_policy(world), started(world, 60, of_world.SEED), num_weeks=3)
    metrics = of_world.metrics_of(rows)
    assert metrics["world/logging/60/value"] == truth.mean
    assert len(metrics) == len(rows) * len(of_world.METRICS)
    for row in rows:
        assert row["seconds"] > 0 and row["start_seconds"] > 0 and row["peak_memory_gib"] > 0
        assert row["customer_weeks_per_second"] == pytest.approx(60 * 3 / row["seconds"])
    of_world.print_rows(rows)
    assert "oracle" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("sizes", "weeks", "said"), [([], 5, "sizes must be"), ([0], 5, "sizes"), ([5], 0, "num_weeks")]
)
def test_settings_that_cannot_be_measured_are_refused(sizes: list[int], weeks: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        of_world.benchmark_world(sizes, num_weeks=weeks)
