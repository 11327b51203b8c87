"""After selection: let objectives that weigh two forecasts learn from the validation cutoff how far to believe each."""

from __future__ import annotations

from constellation.answering import answer_all
from constellation.journeys.batch import Gatherer
from constellation.journeys.windows import Queries
from constellation.metrics import LEVELS
from constellation.model import JourneyModel
from constellation.objectives.value_pooled import ValuePooled

HEADS, PROCESS = 1.0, 0.0
POOLED = ("value_", "purchases_")


def settle(model: JourneyModel, gatherer: Gatherer, queries: Queries) -> dict[str, float]:
    """Settle the model's pools, and say how, see ``ValuePooled.shares``; nothing without one.

    queries: with known answers that the model has not learned from.
    """
    facts: dict[str, float] = {}
    for pool in _pools(model):
        pool.only(HEADS)
        by_family = []
        for place in range(len(pool.heads.count_families)):
            pool.heads.answer_counts(place)
            by_family.append(answer_all(model, gatherer, queries, LEVELS, beginning=POOLED))
        heads = by_family[pool.settle_counts(by_family, queries)]
        pool.only(PROCESS)
        process = answer_all(model, gatherer, queries, LEVELS, beginning=POOLED)
        pool.only(pool.start_share)
        pool.settle(heads, process, queries)
        facts |= pool.shares()
    return facts


def settle_as(model: JourneyModel, settled: JourneyModel) -> None:
    """A refit keeps what the selection settled, and its season until it has learned its own."""
    model.season.take(settled.season)
    for pool, other in zip(_pools(model), _pools(settled), strict=True):
        pool.settle_as(other)


def _pools(model: JourneyModel) -> list[ValuePooled]:
    return [objective for objective in model.objectives.values() if isinstance(objective, ValuePooled)]
