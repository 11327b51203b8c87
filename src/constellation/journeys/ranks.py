"""A global batch split over ranks: disjoint parts of near-equal numbers of events, one part per rank and step."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from constellation.journeys.batch import JourneyBatch
from constellation.journeys.sampling import TrainingBatches


def balanced_parts(lengths: np.ndarray, num_parts: int) -> list[np.ndarray]:
    """Places of ``lengths`` in ``num_parts`` disjoint parts of near-equal sums, ascending within each part.

    Longest processing time first (Graham 1969): every journey, the longest first, goes to the part that has the fewest
    events so far. The largest part exceeds the mean by less than one journey. Parts may be empty.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    part_R = np.zeros(len(lengths), dtype=np.int64)
    loads = [(0, 0, part) for part in range(num_parts)]  # events, then journeys, which decide between equal loads
    order = np.argsort(-lengths, kind="stable")
    for place, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        num_events, num_journeys, lightest = loads[0]
        part_R[place] = lightest
        heapq.heapreplace(loads, (num_events + length, num_journeys + 1, lightest))
    return [np.flatnonzero(part_R == part) for part in range(num_parts)]


@dataclass
class RankBatches:
    """The part of one rank of each batch of ``batches``; with one rank the batches themselves.

    pieces: each part comes in so many pieces, one after the other, for the memory of one; all pieces of all ranks are
    as many parts of the batch.
    Every rank plans the same epoch and draws the same cutoffs, so nothing needs to be agreed: the parts of all ranks
    together are the batch that one process would have, every rank has as many steps, and a rank may have nothing to do.
    """

    batches: TrainingBatches
    rank: int = 0
    num_ranks: int = 1
    pieces: int = 1

    def __len__(self) -> int:
        return len(self.batches) * self.pieces

    def from_place(self, first: int) -> Iterator[JourneyBatch]:
        """The batches (or pieces) of the present epoch from place ``first`` on; those before are not gathered."""
        num_parts = self.num_ranks * self.pieces
        for place, (rows, cutoff_RK) in enumerate(self.batches.draws()):
            if (place + 1) * self.pieces <= first:
                continue
            if num_parts == 1:
                yield self.batches.gather(rows, cutoff_RK)
                continue
            parts = balanced_parts(self.batches.lengths[rows], num_parts)
            customers, cutoffs = self.batches._ask_newcomers(rows)  # of the whole batch, dealt out in turn
            for piece in range(max(first - place * self.pieces, 0), self.pieces):
                part = self.rank * self.pieces + piece
                newcomers = customers[part::num_parts], cutoffs[part::num_parts]
                yield self.batches.gather(rows[parts[part]], cutoff_RK[parts[part]], newcomers)
