"""pytorch-lifestream's GPT (`GptPretrainModule`): several fields in, the next event's categorical fields out.

Every window is whole (``min_len = max_len``) and the loss begins at the second event (``seed_seq_len=0``; by default
the first 16 teach nothing), so that its targets are those of the other systems.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytorch_lightning as pl
import torch
from ptls.frames import PtlsDataModule
from ptls.frames.gpt import GptDataset, GptPretrainModule
from ptls.nn import TrxEncoder
from ptls.nn.seq_encoder.gpt_encoder import GptEncoder
from throughput_meter import Meter, Task

ITEM = "item"
FIELD_WIDTH = 16  # of each field but the item


class Count(pl.Callback):
    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self.meter.step(int((batch.payload[ITEM][:, 1:] != 0).sum()))


def columns(task: Task) -> tuple[dict[str, np.ndarray], dict[str, int], list[str]]:
    """Arrays over all events, the number of codes of each categorical field, and the numeric fields."""
    arrays = task.sequences()
    data = {ITEM: arrays["item"]}
    sizes = {ITEM: task.num_items + 1}
    numbers = []
    for name, values in arrays.items():
        kind, _, field = name.partition(".")
        if kind == "field" and values.max(initial=0) >= 2:  # a field with one value says nothing, and is refused
            # Code 0 is padding in the loss: what is missing becomes the last code.
            size = int(values.max()) + 2
            data[field], sizes[field] = np.where(values == 0, size - 1, values), size
        elif kind == "number":
            data[field] = np.nan_to_num(values).astype(np.float32)
            numbers.append(field)
    if numbers:  # a shape with fields has times worth reading too
        days = np.diff(arrays["time"], prepend=arrays["time"][:1]) / 86_400e6
        days[arrays["offsets"][:-1]] = 0
        data["elapsed_days"] = days.astype(np.float32)
        numbers.append("elapsed_days")
    return data, sizes, numbers


def main() -> None:
    warnings.filterwarnings("ignore")
    task = Task.read()
    data, sizes, numbers = columns(task)
    tensors = {name: torch.from_numpy(values) for name, values in data.items()}
    start_C, end_C = task.windows()
    journeys = [
        {name: values[start:end] for name, values in tensors.items()} for start, end in zip(start_C, end_C, strict=True)
    ]
    length = task.max_length + 1
    module = GptPretrainModule(
        trx_encoder=TrxEncoder(
            embeddings={
                name: {"in": size, "out": task.width if name == ITEM else FIELD_WIDTH} for name, size in sizes.items()
            },
            numeric_values=dict.fromkeys(numbers, "log"),
            linear_projection_size=task.width if len(sizes) > 1 or numbers else 0,
        ),
        seq_encoder=GptEncoder(
            n_embd=task.width,
            n_layer=task.blocks,
            n_head=task.heads,
            n_inner=task.feed_forward,
            resid_pdrop=task.dropout,
            embd_pdrop=task.dropout,
            attn_pdrop=task.dropout,
        ),
        head_hidden_size=task.width,
        seed_seq_len=0,
    )
    trainer = pl.Trainer(
        max_steps=task.warmup_steps + task.num_steps,
        accelerator="cpu",
        devices=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        callbacks=[Count(Meter(task))],
    )
    windows = GptDataset(journeys, min_len=length, max_len=length)
    trainer.fit(module, PtlsDataModule(train_data=windows, train_batch_size=task.batch))


if __name__ == "__main__":
    main()
