"""An event becomes a vector: the sum of the embeddings of its fields."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from constellation.journeys.vocabulary import FIRST_KNOWN
from constellation.kernels.bags import summed_bags
from constellation.kernels.dropout import Dropout
from constellation.kernels.embedding import embedded_events, takes
from constellation.schema import PRODUCT

if TYPE_CHECKING:
    from constellation.journeys.batch import JourneyBatch
    from constellation.journeys.vocabulary import Vocabulary

EMBEDDING_STD = 0.02
"""A small start learns several times faster here than Xavier's (SASRec on ml-1m, full softmax)."""

ELAPSED_SCALES_DAYS = (1.0, 7.0, 30.0)
NUM_WEEKDAYS, NUM_HOURS = 7, 24


class EventEmbedding(nn.Module):
    """``JourneyBatch -> events_ND`` on the ragged rows; no value of one event depends on another event's fields.

    All codes (categories, list values, bins of numbers, weekday, hour, first event) share one table with an offset per
    field, so that the single-valued fields are one ``embedding_bag``; a list adds the sum of its values. Numbers enter
    twice: as quantile bin and as scaled signed log. Elapsed time enters as log days and as decays of 1, 7 and 30 days.
    Where only the order of events is known, time and calendar are left out.
    A sum, with nothing non-linear inside, so that an order-blind encoder above it is truly blind to order.
    """

    start_F: Tensor
    elapsed_scales: Tensor
    numeric_low: Tensor
    numeric_high: Tensor
    numeric_mean: Tensor
    numeric_std: Tensor

    def __init__(self, vocabulary: Vocabulary, width: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.width = width
        self.categorical, self.lists, self.numeric = vocabulary.categorical, vocabulary.lists, vocabulary.numeric
        sizes = {name: vocabulary.num_codes(name) for name in (*self.categorical, *self.lists)}
        sizes |= {f"bin of {name}": vocabulary.num_bins(name) for name in self.numeric}
        self.has_clock, self.num_products = vocabulary.has_clock, len(vocabulary.products)
        calendar = {"its weekday": NUM_WEEKDAYS, "its hour": NUM_HOURS} if self.has_clock else {}
        sizes |= calendar | {"is first": 2}
        self.start_of: dict[str, int] = {}
        total = 0
        for field, size in sizes.items():
            self.start_of[field] = total
            total += size
        single = [*self.categorical, *(f"bin of {name}" for name in self.numeric), *calendar, "is first"]
        self.register_buffer("start_F", torch.tensor([self.start_of[field] for field in single]), persistent=False)
        scalers = [vocabulary.numeric_scaler[name] for name in self.numeric]
        for part in ("low", "high", "mean", "std"):
            values = [float(getattr(scaler, part)[0]) for scaler in scalers]
            self.register_buffer(f"numeric_{part}", torch.tensor(values, dtype=torch.float32), persistent=False)
        self.register_buffer("elapsed_scales", torch.tensor(ELAPSED_SCALES_DAYS), persistent=False)
        self.table = nn.Embedding(total, width)
        num_amounts = len(self.numeric) + (1 + len(ELAPSED_SCALES_DAYS)) * self.has_clock
        self.amounts = nn.Linear(num_amounts, width) if num_amounts else None
        self.dropout = Dropout(dropout)
        nn.init.normal_(self.table.weight, std=EMBEDDING_STD)
        if self.amounts is not None:
            # The same small start, or the numbers would drown the categories.
            nn.init.normal_(self.amounts.weight, std=EMBEDDING_STD)
            nn.init.zeros_(self.amounts.bias)

    def forward(self, batch: JourneyBatch) -> Tensor:
        """Event vectors [N, width]."""
        single = [batch.categorical[name] for name in self.categorical]
        single += [batch.numeric_bin[name] for name in self.numeric]
        single += [batch.weekday_N, batch.hour_N] if self.has_clock else []
        single.append(batch.first_N.long())
        codes_NF = torch.stack(single, dim=1) + self.start_F
        lists = [(batch.lists[name][0] + self.start_of[name], batch.lists[name][1]) for name in self.lists]
        numbers = None if self.amounts is None else self.numbers(batch)
        weight, bias = (None, None) if self.amounts is None else (self.amounts.weight, self.amounts.bias)
        if takes(self.table.weight, numbers, weight, bias):
            drop = self.dropout.p if self.training else 0.0
            return embedded_events(self.table.weight, codes_NF, lists, numbers, weight, bias, drop)
        events_ND = summed_bags(self.table.weight, codes_NF, lists)
        if self.amounts is not None:
            events_ND = events_ND + self.amounts(numbers)
        dropped_ND: Tensor = self.dropout(events_ND)
        return dropped_ND

    def product_embedding(self) -> Tensor:
        """Embeddings [V, width] of the known products, a view of the table, for objectives that share them."""
        first = self.start_of[PRODUCT] + FIRST_KNOWN
        return self.table.weight[first : first + self.num_products]

    def numbers(self, batch: JourneyBatch) -> Tensor:
        """Scaled signed logs of the numeric columns, then elapsed time, [N, features] float32."""
        parts = []
        if self.has_clock:
            elapsed_N1 = batch.elapsed_days_N.unsqueeze(1)
            parts = [elapsed_N1.log1p() / 3.0, torch.exp(-elapsed_N1 / self.elapsed_scales)]
        if self.numeric:
            raw = torch.stack([batch.numeric[name] for name in self.numeric], dim=1)
            logs = raw.sign() * raw.abs().log1p()
            scaled = (torch.clamp(logs, self.numeric_low, self.numeric_high) - self.numeric_mean) / self.numeric_std
            parts.insert(0, torch.nan_to_num(scaled, nan=0.0))
        return torch.cat(parts, dim=1)
