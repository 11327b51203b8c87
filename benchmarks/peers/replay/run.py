"""RePlay's SASRec from its own parts: Parquet module, default transforms, `SasRec.from_params`, Lightning module.

With ``settings.bucket_size`` the encoder is wrapped in RePlay's own length buckets.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import lightning as L
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from replay.data import FeatureHint, FeatureSource, FeatureType
from replay.data.nn import ParquetModule, TensorFeatureInfo, TensorFeatureSource, TensorSchema
from replay.nn.lightning import LightningModule
from replay.nn.sequential import SasRec
from replay.nn.sequential.length_bucket import LengthBucketedQueryEncoder
from replay.nn.transform.template import make_default_sasrec_transforms
from throughput_meter import Meter, Task

ITEM = "item_id"


class Count(L.Callback):
    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        # RePlay also predicts the first event from padding alone; a target counts where an event stands before it.
        self.meter.step(int((batch["padding_mask"] & batch["target_padding_mask"].squeeze(-1)).sum()))


def write_journeys(task: Task, path: Path) -> None:
    """One row per journey with its last ``max_length + 1`` items, numbered from 0; the number of items is padding."""
    start_C, end_C = task.windows()
    item_N = task.sequences()["item"] - 1
    rows = [item_N[start:end] for start, end in zip(start_C, end_C, strict=True)]
    offsets = np.concatenate([[0], np.cumsum(end_C - start_C)])
    lists = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(np.concatenate(rows), pa.int64()))
    pq.write_table(pa.table({ITEM: lists.cast(pa.list_(pa.int64()))}), path)


def main() -> None:
    warnings.filterwarnings("ignore")
    task = Task.read()
    schema = TensorSchema(
        [
            TensorFeatureInfo(
                ITEM,
                is_seq=True,
                feature_type=FeatureType.CATEGORICAL,
                embedding_dim=task.width,
                padding_value=task.num_items,
                cardinality=task.num_items,
                feature_hint=FeatureHint.ITEM_ID,
                feature_sources=[TensorFeatureSource(FeatureSource.INTERACTIONS, ITEM)],
            )
        ]
    )
    model = SasRec.from_params(
        schema,
        embedding_dim=task.width,
        num_heads=task.heads,
        num_blocks=task.blocks,
        max_sequence_length=task.max_length,
        dropout=task.dropout,
        hidden_dim=task.feed_forward,
    )
    if task.settings.get("bucket_size"):
        model.body.encoder = LengthBucketedQueryEncoder(model.body.encoder, bucket_size=task.settings["bucket_size"])
    with tempfile.TemporaryDirectory(dir=task.folder) as folder:
        path = Path(folder) / "journeys.parquet"
        write_journeys(task, path)
        data = ParquetModule(
            batch_size=task.batch,
            # The key is `padding`, whatever the docstring says; one event more than is read, for the shift.
            metadata={"train": {ITEM: {"shape": task.max_length + 1, "padding": task.num_items}}},
            transforms={"train": make_default_sasrec_transforms(schema)["train"]},
            train_path=str(path),
        )
        trainer = L.Trainer(
            max_steps=task.warmup_steps + task.num_steps,
            accelerator="cpu",
            devices=1,
            limit_val_batches=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=False,
            callbacks=[Count(Meter(task))],
        )
        trainer.fit(LightningModule(model), data)


if __name__ == "__main__":
    main()
