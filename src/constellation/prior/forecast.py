"""From histories to answers in their own units: the context of a population, then its customers by it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from constellation.prior.features import Units, course, describe, units
from constellation.prior.histories import Histories
from constellation.prior.network import Answer, PriorNetwork

ROWS_AT_ONCE = 1 << 15


@dataclass(frozen=True)
class Context:
    """What is kept of a population for one horizon: its units, and the network's context [1, D]."""

    units: Units
    context_WD: Tensor

    @property
    def money(self) -> float:
        """Median money of a purchase day, in the currency of the histories; NaN where nobody paid."""
        return float(self.units.money_W[0])


@torch.no_grad()
def context_of(network: PriorNetwork, population: Histories, horizon: float) -> Context:
    """Read a population of at least one customer. horizon: in the unit of the histories' times.

    All its customers count alike and in any order; they are taken some at a time.
    """
    num = len(population)
    assert num > 0
    world_C = np.zeros(num, dtype=np.int64)
    measured = units(population, world_C, np.array([horizon]))
    # In double precision, so that the order of customers moves nothing that a reader could see.
    sums_WD = torch.zeros(1, 2 * network.sizes["width"], dtype=torch.float64)
    for start in range(0, num, ROWS_AT_ONCE):
        part = population.take(np.arange(start, min(start + ROWS_AT_ONCE, num)))
        features_CF = torch.as_tensor(describe(part, world_C[: len(part)], measured).features_CF)
        each_CD = network.each(features_CF).double()
        sums_WD += torch.cat([each_CD, each_CD.square()], dim=1).sum(0, keepdim=True)
    means_WD = (sums_WD / num).float()
    course_WK = torch.as_tensor(course(population, world_C, measured))
    return Context(measured, network.context(means_WD, torch.ones(1), course_WK))


@torch.no_grad()
def forecast(network: PriorNetwork, customers: Histories, context: Context) -> Answer:
    """Answers for customers, who need not be of the population; money in the population's median."""
    world_C = np.zeros(len(customers), dtype=np.int64)
    described = describe(customers, world_C, context.units)
    columns = (described.features_CF, described.anchor_C, described.spend_C, world_C)
    return network(*(torch.as_tensor(column) for column in columns), context.context_WD)
