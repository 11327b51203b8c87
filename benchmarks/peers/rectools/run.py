"""RecTools' SASRec, trained as its users train it: `SASRecModel(...).fit(Dataset)`, with a callback that counts."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
from pytorch_lightning import Callback, Trainer
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from throughput_meter import Meter, Task


class Count(Callback):
    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self.meter.step(int((batch["y"] != 0).sum()))


def main() -> None:
    warnings.filterwarnings("ignore")
    task = Task.read()
    meter = Meter(task)

    def make_trainer() -> Trainer:
        """The trainer that RecTools makes by default, but for a number of steps and not of epochs."""
        return Trainer(
            max_steps=task.warmup_steps + task.num_steps,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            logger=False,
            devices=1,
            accelerator="cpu",
            callbacks=[Count(meter)],
        )

    arrays = task.sequences()
    lengths = np.diff(arrays["offsets"])
    rank = np.arange(len(arrays["item"])) - np.repeat(arrays["offsets"][:-1], lengths)
    interactions = pd.DataFrame(
        {
            "user_id": np.repeat(np.arange(len(lengths)), lengths),
            "item_id": arrays["item"],
            "weight": 1.0,
            # RecTools orders by time alone; a second per place keeps the order of events at the same time.
            "datetime": pd.Timestamp("2020-01-01") + pd.to_timedelta(rank, unit="s"),
        }
    )
    model = SASRecModel(
        n_blocks=task.blocks,
        n_heads=task.heads,
        n_factors=task.width,
        dropout_rate=task.dropout,
        session_max_len=task.max_length,
        batch_size=task.batch,
        get_trainer_func=make_trainer,
    )
    model.fit(Dataset.construct(interactions))


if __name__ == "__main__":
    main()
