"""Which event comes next, and with which products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from constellation.journeys.vocabulary import FIRST_KNOWN
from constellation.objectives.base import HEAD_STD, Loss, Objective
from constellation.objectives.repeats import RepeatedProducts
from constellation.schema import EVENT_TYPE, PRODUCT

if TYPE_CHECKING:
    from constellation.journeys.batch import JourneyBatch, Ragged
    from constellation.journeys.vocabulary import Vocabulary


class NextEvent(Objective):
    """Type of the next event by softmax, products of the next basket by a softmax that shares its mass over the set.

    Asked at every event (of its state) and at every cutoff (of the readout); both are projected into one space where
    types and products have an output embedding each. At a cutoff the products also get a term for what this customer
    bought before (``repeats.py``), while there are at most ``max_repeat_products``.
    A query's products are those of its next basket, even if another event comes before it.

    width: of the shared space.
    """

    name = "next_event"

    def __init__(
        self,
        vocabulary: Vocabulary,
        state_width: int,
        readout_width: int,
        horizons_days: Sequence[int],
        *,
        weight: float = 1.0,
        width: int = 64,
        max_repeat_products: int = 4096,
    ) -> None:
        super().__init__(horizons_days=horizons_days, weight=weight)
        self.num_products = len(vocabulary.products)
        self.from_state = nn.Linear(state_width, width)
        self.from_readout = nn.Linear(readout_width, width)
        self.types = _Output(vocabulary.num_codes(EVENT_TYPE) - FIRST_KNOWN, width)
        self.products = _Output(self.num_products, width) if self.num_products else None
        repeats = 0 < self.num_products <= max_repeat_products
        self.repeats = RepeatedProducts(self.num_products, readout_width) if repeats else None

    def loss(self, states_ND: Tensor, readout_QD: Tensor, batch: JourneyBatch) -> Loss:
        targets = batch.targets
        assert targets is not None
        follows_N = targets.next_N >= 0
        next_type_N = torch.where(follows_N, batch.categorical[EVENT_TYPE][targets.next_N.clamp(min=0)], 0)
        event_query, cutoff_query = self.from_state(states_ND), self.from_readout(readout_QD)
        parts = {
            "type": [
                code_cross_entropy(self.types(event_query), next_type_N),
                code_cross_entropy(self.types(cutoff_query), targets.next_type_Q),
            ]
        }
        if self.products is not None:
            parts["product"] = [
                set_cross_entropy(self.products(event_query), *following_products(batch, targets.next_N)),
                set_cross_entropy(
                    self._product_logits(readout_QD, cutoff_query, batch),
                    targets.next_products[0],
                    row_of_value(targets.next_products),
                ),
            ]
        total = sum((term for terms in parts.values() for term, _ in terms), start=states_ND.new_zeros(()))
        # The number of questions, not of terms: an event without a basket still counts once.
        count = follows_N.sum() + (targets.next_type_Q > 0).sum()
        means = {name: (a.detach() + b.detach()) / (m + n).clamp(min=1) for name, ((a, m), (b, n)) in parts.items()}
        return Loss(total=total, count=count, parts=means)

    def predict(self, readout_QD: Tensor, batch: JourneyBatch, levels: Sequence[float] | Tensor) -> dict[str, Tensor]:
        """``next_type_scores`` [Q, types] over the known event types and ``next_product_scores`` [Q, V], as logits.

        ``levels`` say nothing here: there is no amount.
        """
        query_QD = self.from_readout(readout_QD)
        answers = {"next_type_scores": self.types(query_QD)}
        if self.products is not None:
            answers["next_product_scores"] = self._product_logits(readout_QD, query_QD, batch)
        return answers

    def _product_logits(self, readout_QD: Tensor, query_QD: Tensor, batch: JourneyBatch) -> Tensor:
        assert self.products is not None
        logits_QV = self.products(query_QD)
        return logits_QV if self.repeats is None else logits_QV + self.repeats(readout_QD, batch)


class _Output(nn.Module):
    """Scores of ``size`` known values: product with their embedding, plus a bias each."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.embedding_VD = nn.Parameter(torch.randn(size, width) * HEAD_STD)
        self.bias_V = nn.Parameter(torch.zeros(size))

    def forward(self, query_RD: Tensor) -> Tensor:
        return functional.linear(query_RD, self.embedding_VD, self.bias_V).float()


def code_cross_entropy(logits_RV: Tensor, code_R: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the cross entropies of known codes, and their number. Codes below the first known are no targets."""
    known_R = code_R >= FIRST_KNOWN
    target_R = torch.where(known_R, code_R - FIRST_KNOWN, -1)
    return functional.cross_entropy(logits_RV, target_R, ignore_index=-1, reduction="sum"), known_R.sum()


def set_cross_entropy(logits_RV: Tensor, code_M: Tensor, row_M: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over rows of the mean of -log softmax over the known members of the row's set, and the number of such rows.

    Member m has code ``code_M[m]`` and belongs to row ``row_M[m]``, -1 for none.
    """
    known_M = ((code_M >= FIRST_KNOWN) & (row_M >= 0)).to(logits_RV.dtype)
    row_M = row_M.clamp(min=0)
    size_R = torch.zeros_like(logits_RV[:, 0]).index_add(0, row_M, known_M)
    share_M = known_M / size_R.clamp(min=1)[row_M]
    member_M = logits_RV[row_M, (code_M - FIRST_KNOWN).clamp(min=0)]
    asked_R = size_R > 0
    log_sum_R = torch.where(asked_R, logits_RV.logsumexp(dim=1), torch.zeros_like(size_R))
    return log_sum_R.sum() - (member_M * share_M).sum(), asked_R.sum()


def row_of_value(ragged: Ragged) -> Tensor:
    """Row of each value of a list column, [M]."""
    values_M, offsets = ragged
    # The length is known, so that the device need not be asked for it.
    return torch.repeat_interleave(offsets.diff(), output_size=len(values_M))


def following_products(batch: JourneyBatch, next_N: Tensor) -> tuple[Tensor, Tensor]:
    """Code of each product of the batch, and the event that is followed by the event it belongs to, -1 for none."""
    here_N = torch.arange(len(next_N), device=next_N.device)
    spare = len(next_N)  # rows without a next event write to one place more, which is cut off
    before_N = next_N.new_full((spare + 1,), -1).scatter(0, torch.where(next_N >= 0, next_N, spare), here_N)[:spare]
    return batch.lists[PRODUCT][0], before_N[row_of_value(batch.lists[PRODUCT])]
