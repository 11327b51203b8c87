"""Which event comes next, and with which products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from constellation.errors import InputError
from constellation.journeys.vocabulary import FIRST_KNOWN
from constellation.kernels.products import linear
from constellation.objectives.base import HEAD_STD, Loss, Objective
from constellation.objectives.repeats import RepeatedProducts
from constellation.objectives.softmaxes import FullSoftmax, Products, ProductSets
from constellation.schema import EVENT_TYPE, PRODUCT

if TYPE_CHECKING:
    from constellation.journeys.batch import JourneyBatch
    from constellation.journeys.vocabulary import Vocabulary


class NextEvent(Objective):
    """Type of the next event by softmax, products of the next basket by a softmax that shares its mass over the set.

    Asked at every event (of its state) and at every cutoff (of the readout); both are projected into one space where
    types and products have an output embedding each. At a cutoff the products also get a term for what this customer
    bought before (``repeats.py``), while there are at most ``max_repeat_products``.
    A query's products are those of its next basket, even if another event comes before it.

    width: of the shared space. softmax: loss over the products, see ``softmaxes.py``; the full one by default.
    tied: products have the embedding they are read with, and ``width`` must be the encoder's.
    shared: one projection for events and cutoffs, so that cutoffs can be answered where only events are learned from;
    wants a readout as wide as the states, such as ``readout=state``.
    """

    name = "next_event"
    needs_horizon_labels = False

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
        softmax: nn.Module | None = None,
        tied: bool = False,
        shared: bool = False,
    ) -> None:
        super().__init__(horizons_days=horizons_days, weight=weight)
        if tied and width != state_width:
            raise InputError(f"Tied products want objective.next_event.width={state_width}, found {width}.")
        if shared and readout_width != state_width:
            raise InputError(
                f"With objective.next_event.shared=true the readout must be as wide as the states ({state_width}), "
                f"found {readout_width}. Choose readout=state."
            )
        self.num_products = len(vocabulary.products)
        self.from_state = nn.Linear(state_width, width)
        self.from_readout = None if shared else nn.Linear(readout_width, width)
        self.needs_cutoffs = not shared
        self.types = Products(vocabulary.num_codes(EVENT_TYPE) - FIRST_KNOWN, width, std=HEAD_STD)
        self.tied = tied and self.num_products > 0
        self.products = Products(self.num_products, width, std=HEAD_STD, tied=tied) if self.num_products else None
        self.softmax = FullSoftmax() if softmax is None else softmax
        repeats = 0 < self.num_products <= max_repeat_products
        self.repeats = RepeatedProducts(self.num_products, readout_width) if repeats else None

    def connect(self, encoder: nn.Module) -> None:
        if self.tied:
            assert self.products is not None
            self.products.tie(encoder.events)  # type: ignore[arg-type]

    def loss(self, states_ND: Tensor, readout_QD: Tensor, batch: JourneyBatch) -> Loss:
        targets = batch.targets
        assert targets is not None
        before_N, follows_N = events_before(targets.next_N)
        event_query = _project(self.from_state, states_ND)
        cutoff_query = self._cutoff_query(readout_QD)
        parts = {"type": self._types(event_query, cutoff_query, batch)}
        if self.products is not None:
            sets = ProductSets.of(*batch.lists[PRODUCT], before_N >= 0, before_N.clamp(min=0))
            parts["product"] = [(self.softmax(event_query, self.products, sets), sets.asked_R.sum())]
            if len(readout_QD):
                parts["product"].append(self._next_basket(readout_QD, cutoff_query, batch))
        total = sum((term for terms in parts.values() for term, _ in terms), start=states_ND.new_zeros(()))
        # The number of questions, not of terms: an event without a basket still counts once.
        count = follows_N.sum() + (targets.next_type_Q > 0).sum()
        means = {
            name: torch.stack([term.detach() for term, _ in terms]).sum()
            / torch.stack([number for _, number in terms]).sum().clamp(min=1)
            for name, terms in parts.items()
        }
        return Loss(total=total, count=count, parts=means)

    def predict(self, readout_QD: Tensor, batch: JourneyBatch, levels: Sequence[float] | Tensor) -> dict[str, Tensor]:
        """``next_type_scores`` [Q, types] over the known event types and ``next_product_scores`` [Q, V], as logits.

        ``levels`` say nothing here: there is no amount.
        """
        query_QD = self._cutoff_query(readout_QD)
        answers = {"next_type_scores": self.types(query_QD)}
        if self.products is not None:
            answers["next_product_scores"] = self._product_logits(readout_QD, query_QD, batch)
        return answers

    def _cutoff_query(self, readout_QD: Tensor) -> Tensor:
        return _project(self.from_state if self.from_readout is None else self.from_readout, readout_QD)

    def _types(self, event_query: Tensor, cutoff_query: Tensor, batch: JourneyBatch) -> list[tuple[Tensor, Tensor]]:
        assert batch.targets is not None
        next_N = batch.targets.next_N
        next_type_N = torch.where(next_N >= 0, batch.categorical[EVENT_TYPE][next_N.clamp(min=0)], 0)
        terms = [(event_query, next_type_N), (cutoff_query, batch.targets.next_type_Q)]
        return [code_cross_entropy(self.types(query), codes) for query, codes in terms]

    def _next_basket(self, readout_QD: Tensor, query_QD: Tensor, batch: JourneyBatch) -> tuple[Tensor, Tensor]:
        assert self.products is not None
        assert batch.targets is not None
        sets = ProductSets.of(*batch.targets.next_products)
        if self.repeats is None:
            return self.softmax(query_QD, self.products, sets), sets.asked_R.sum()
        return set_cross_entropy(self._product_logits(readout_QD, query_QD, batch), sets)

    def _product_logits(self, readout_QD: Tensor, query_QD: Tensor, batch: JourneyBatch) -> Tensor:
        assert self.products is not None
        logits_QV: Tensor = self.products(query_QD)
        return logits_QV if self.repeats is None else logits_QV + self.repeats(readout_QD, batch)


def _project(layer: nn.Linear, rows_RD: Tensor) -> Tensor:
    return linear(rows_RD, layer.weight, layer.bias).float()


def code_cross_entropy(logits_RV: Tensor, code_R: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the cross entropies of known codes, and their number. Codes below the first known are no targets."""
    known_R = code_R >= FIRST_KNOWN
    target_R = torch.where(known_R, code_R - FIRST_KNOWN, -1)
    return functional.cross_entropy(logits_RV, target_R, ignore_index=-1, reduction="sum"), known_R.sum()


def set_cross_entropy(logits_RV: Tensor, sets: ProductSets) -> tuple[Tensor, Tensor]:
    """Sum over rows of the mean of -log softmax over the members of the row's set, and the number of such rows."""
    member_M = logits_RV[sets.row_M, sets.product_M]
    log_sum_R = torch.where(sets.asked_R > 0, logits_RV.logsumexp(dim=1), torch.zeros_like(sets.asked_R))
    return log_sum_R.sum() - (member_M * sets.share_M).sum(), sets.asked_R.sum()


def events_before(next_N: Tensor) -> tuple[Tensor, Tensor]:
    """Row of the event that each event follows, -1 for none, and whether an event is followed by another."""
    follows_N = next_N >= 0
    here_N = torch.arange(len(next_N), device=next_N.device)
    spare = len(next_N)  # rows without a next event write to one place more, which is cut off
    before_N = next_N.new_full((spare + 1,), -1).scatter(0, torch.where(follows_N, next_N, spare), here_N)[:spare]
    return before_N, follows_N
