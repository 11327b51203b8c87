"""The recipe of pmixer/SASRec.pytorch (default branch, March 2026) in our own words: a bare loop, one negative, BCE.

As there: padded on the left to ``max_length``; items scaled by the root of the width plus learned positions; post-norm
blocks of `torch.nn.MultiheadAttention` with a causal mask, which keeps the attention weights, and of two pointwise
convolutions; Xavier start; Adam with betas (0.9, 0.98) and learning rate 1e-3; the loss reads the places that hold an
event. Other than there: negatives are drawn for a whole batch at once in this process, which is cheaper than its three
sampler processes and their Python loops, and batches go through the journeys in random order without repeats. An
unlucky negative may be an item that the customer bought; there it is drawn again.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from throughput_meter import Meter, Task
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    def __init__(self, task: Task) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(task.width, task.heads, task.dropout, batch_first=False)
        self.after_attention = nn.LayerNorm(task.width, eps=1e-8)
        self.widen = nn.Conv1d(task.width, task.feed_forward, kernel_size=1)
        self.narrow = nn.Conv1d(task.feed_forward, task.width, kernel_size=1)
        self.dropout = nn.Dropout(task.dropout)
        self.after_feed = nn.LayerNorm(task.width, eps=1e-8)

    def forward(self, x_BLD: Tensor, hidden_LL: Tensor) -> Tensor:
        x_LBD = x_BLD.transpose(0, 1)
        seen_LBD, _ = self.attention(x_LBD, x_LBD, x_LBD, attn_mask=hidden_LL)
        x_BLD = self.after_attention(x_LBD + seen_LBD).transpose(0, 1)
        inner_BFL = functional.relu(self.dropout(self.widen(x_BLD.transpose(1, 2))))
        return self.after_feed(x_BLD + self.dropout(self.narrow(inner_BFL)).transpose(1, 2))


class Sasrec(nn.Module):
    def __init__(self, task: Task) -> None:
        super().__init__()
        self.items = nn.Embedding(task.num_items + 1, task.width, padding_idx=0)
        self.places = nn.Embedding(task.max_length + 1, task.width, padding_idx=0)
        self.dropout = nn.Dropout(task.dropout)
        self.blocks = nn.ModuleList(Block(task) for _ in range(task.blocks))
        self.norm_out = nn.LayerNorm(task.width, eps=1e-8)
        for weight in self.parameters():
            if weight.dim() > 1:
                nn.init.xavier_normal_(weight)
        with torch.no_grad():
            self.items.weight[0] = 0
            self.places.weight[0] = 0

    def forward(self, item_BL: Tensor) -> Tensor:
        length = item_BL.shape[1]
        place_BL = torch.arange(1, length + 1).expand_as(item_BL) * (item_BL != 0)
        x_BLD = self.dropout(self.items(item_BL) * self.items.embedding_dim**0.5 + self.places(place_BL))
        hidden_LL = ~torch.ones(length, length, dtype=torch.bool).tril()
        for block in self.blocks:
            x_BLD = block(x_BLD, hidden_LL)
        return self.norm_out(x_BLD)

    def scores(self, states_BLD: Tensor, item_BL: Tensor) -> Tensor:
        return (states_BLD * self.items(item_BL)).sum(-1)


def batches(task: Task) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Inputs, next items and one negative each, [B, L] padded with 0 on the left, without end."""
    start_C, end_C = task.windows()
    item_N = task.sequences()["item"]
    rng = np.random.default_rng(task.seed)
    while True:
        order = rng.permutation(len(start_C))
        for first in range(0, len(order) - task.batch + 1, task.batch) or (0,):
            input_BL = np.zeros((min(task.batch, len(order)), task.max_length), dtype=np.int64)
            target_BL = np.zeros_like(input_BL)
            for row, journey in enumerate(order[first : first + task.batch]):
                items = item_N[start_C[journey] : end_C[journey]]
                input_BL[row, -len(items) + 1 :] = items[:-1]
                target_BL[row, -len(items) + 1 :] = items[1:]
            negative_BL = rng.integers(1, task.num_items + 1, target_BL.shape)
            yield torch.from_numpy(input_BL), torch.from_numpy(target_BL), torch.from_numpy(negative_BL)


def main() -> None:
    task = Task.read()
    meter = Meter(task)
    model = Sasrec(task)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.98))
    for input_BL, target_BL, negative_BL in batches(task):
        states_BLD = model(input_BL)
        is_event_BL = target_BL != 0
        positive = model.scores(states_BLD, target_BL)[is_event_BL]
        negative = model.scores(states_BLD, negative_BL)[is_event_BL]
        loss = functional.binary_cross_entropy_with_logits(positive, torch.ones_like(positive))
        loss = loss + functional.binary_cross_entropy_with_logits(negative, torch.zeros_like(negative))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # it is printed there at every step
        meter.step(int(is_event_BL.sum()))
        if meter.is_done:
            break


if __name__ == "__main__":
    main()
