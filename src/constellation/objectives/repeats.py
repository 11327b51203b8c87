"""What a customer bought before, as a score of what comes next: groceries repeat."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from constellation.journeys.store import MICROSECONDS_PER_DAY
from constellation.journeys.vocabulary import FIRST_KNOWN
from constellation.schema import PRODUCT

if TYPE_CHECKING:
    from constellation.journeys.batch import JourneyBatch

HALF_LIVES_DAYS = (10.0, 30.0, 90.0)
HALF_LIFE_EVENTS = 5.0
NUM_COUNTS = len(HALF_LIVES_DAYS) + 2
START_WEIGHT = 0.3
"""Together a slope of 1.5 on the log of the counts before anything is learned: already the customer's favourites."""


class RepeatedProducts(nn.Module):
    """Learned weights on ``log(1 + rate * count)`` of each product in the past of the query.

    Counts: all, decayed with half-lives of 10, 30, 90 days, and decayed by 5 events (which works without a clock too).
    Weights differ by product (milk returns, a garden hose does not) and bend with the readout.
    """

    def __init__(self, num_products: int, readout_width: int) -> None:
        super().__init__()
        self.num_products = num_products
        self.weight_CV = nn.Parameter(torch.full((NUM_COUNTS, num_products), START_WEIGHT))
        self.log_rate_C = nn.Parameter(torch.zeros(NUM_COUNTS))
        self.bend = nn.Linear(readout_width, NUM_COUNTS)
        nn.init.normal_(self.bend.weight, std=1e-3)
        nn.init.zeros_(self.bend.bias)

    def forward(self, readout_QD: Tensor, batch: JourneyBatch) -> Tensor:
        """Scores [Q, V]."""
        counts_CQV = past_counts(batch, self.num_products)
        logs_CQV = torch.log1p(counts_CQV * self.log_rate_C.exp()[:, None, None])
        weight_CQV = self.weight_CV.unsqueeze(1) * (1 + self.bend(readout_QD).float().T.unsqueeze(-1))
        return (logs_CQV * weight_CQV).sum(dim=0)


@torch.no_grad()
def past_counts(batch: JourneyBatch, num_products: int) -> Tensor:
    """Decayed counts [NUM_COUNTS, Q, V] of known products in the events each query may see; ages at its cutoff."""
    values_M, offsets = batch.lists[PRODUCT]
    num_queries = len(batch.cutoff_Q)
    seen_Q = batch.last_event_Q >= 0
    first_Q = batch.offsets_B[batch.query_journey_Q]
    # The products a query may see lie side by side: those of its journey's first event to those of its last.
    begin_Q = torch.where(seen_Q, offsets[first_Q], 0)
    length_Q = torch.where(seen_Q, offsets[batch.last_event_Q + 1] - offsets[first_Q], 0)
    places_P, pair_offsets = ragged_rows(begin_Q, length_Q, batch.num_past_products)
    query_P = torch.repeat_interleave(pair_offsets.diff(), output_size=len(places_P))
    event_P = torch.repeat_interleave(offsets.diff(), output_size=len(values_M))[places_P]
    days_P = (batch.cutoff_Q[query_P] - batch.time_N[event_P]).double() / MICROSECONDS_PER_DAY
    events_P = (batch.last_event_Q[query_P] - event_P).double()
    ages = [days_P / half_life for half_life in HALF_LIVES_DAYS] + [events_P / HALF_LIFE_EVENTS]
    product_P = values_M[places_P] - FIRST_KNOWN
    known_P = (product_P >= 0).float()
    cell_P = query_P * num_products + product_P.clamp(min=0)
    counts = [known_P] + [torch.exp2(-age).float() * known_P for age in ages]
    empty = torch.zeros(num_queries * num_products, device=known_P.device)
    return torch.stack([empty.index_add(0, cell_P, count) for count in counts]).view(
        NUM_COUNTS, num_queries, num_products
    )


def ragged_rows(begin_R: Tensor, length_R: Tensor, total: int | None = None) -> tuple[Tensor, Tensor]:
    """``cat([arange(b, b + l) for b, l in zip(begin, length)])`` and its offsets [R + 1].

    total: sum of the lengths, where the host knows it and the device need not be asked.
    """
    offsets = torch.cat([length_R.new_zeros(1), length_R.cumsum(0)])
    row = torch.repeat_interleave(length_R, output_size=total)
    return torch.arange(len(row), device=row.device) + (begin_R - offsets[:-1])[row], offsets
