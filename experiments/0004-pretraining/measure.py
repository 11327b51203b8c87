"""Fine-tune on a tenth of the customers from several starts, and score the others at the validation cutoff.

    python experiments/0004-pretraining/measure.py spenders 0 scratch next_event:1.0 next_event:0.3

Arguments: the data, the seed, and the starts: ``scratch``, or objectives joined by a plus sign and the learning rate of
what was taken. Prints one line of JSON for each start. Nothing after the test cutoff is read.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from constellation.building import build_model, targets
from constellation.cli.building import build
from constellation.cli.composing import compose_unchecked, resolved
from constellation.journeys.batch import Gatherer
from constellation.journeys.prepare import prepare
from constellation.journeys.splits import Splits
from constellation.journeys.vocabulary import Vocabulary
from constellation.model import JourneyModel
from constellation.training.initial import Initial
from constellation.training.study import Scorer, Study, select_then_refit

MODEL = ["encoder=gru", "encoder.width=32", "encoder.layers=1", "readout.width=32", "training.refit=false"]
DATA = {
    "spenders": ["data=spenders", "data.source.arguments.seed=11", "data.source.arguments.num_customers=1000"],
    "completejourney": ["data=completejourney"],
}
EPOCHS = {"spenders": (40, 8), "completejourney": (15, 5)}
"""At most, and patience, of fine-tuning; pretraining has the defaults."""
PRETRAINED_ON, TUNED_ON = 0.1, 0.9  # held out: pretraining has nine tenths of the customers, fine-tuning a tenth


def train(words: list[str], seed: int, initial: Initial | None = None) -> tuple[Splits, Study, Any]:
    config = resolved(compose_unchecked("train", [*words, "baseline=[]"]))
    model_config = {name: config[name] for name in ("encoder", "readout", "objective")}
    data, training = build(config["data"], "data"), build(config["training"], "training")
    optimizer = build(config["optimizer"], "optimizer")
    splits = Splits(prepare(data), data.windows)

    def made(vocabulary: Vocabulary) -> JourneyModel:
        return build_model(model_config, vocabulary, data.windows.horizons_days, trusted=targets(model_config))

    with tempfile.TemporaryDirectory() as folder:
        study = select_then_refit(
            splits, made, optimizer, training, Path(folder), seed=seed, report=lambda phase, row: None, initial=initial
        )
    return splits, study, training


def pretrained(data: str, objectives: str, seed: int, rate: float) -> Initial:
    words = [*DATA[data], *MODEL, f"objective=[{objectives}]", f"data.windows.holdout_share={PRETRAINED_ON}"]
    _, study, _ = train(words, seed)
    return Initial(study.selected.model, study.selected_vocabulary, rate)


def main(data: str, seed: int, starts: list[str]) -> None:
    epochs, patience = EPOCHS[data]
    words = [*DATA[data], *MODEL, "objective=[value_quantiles]", f"data.windows.holdout_share={TUNED_ON}"]
    words += [f"training.max_epochs={epochs}", f"training.patience={patience}"]
    for start in starts:
        kind, _, rate = start.partition(":")
        initial = None
        if kind != "scratch":
            # The Complete Journey was pretrained once, for all seeds.
            initial = pretrained(data, kind.replace("+", ","), seed if data == "spenders" else 0, float(rate))
        began = time.process_time()
        splits, study, training = train(words, seed, initial)
        others = np.flatnonzero(splits.held_out_C)
        queries = splits.windows.questions(splits.store, splits.select_until, splits.refit_until, others)
        gatherer = Gatherer(splits.store, study.selected_vocabulary, training.max_events)
        scores = Scorer(gatherer, queries)(study.selected.model)
        facts = {"data": data, "seed": seed, "start": kind, "rate": rate, "num_labelled": len(splits.train_journeys)}
        facts |= {"num_scored": len(queries), "best_epoch": study.selected.best_epoch}
        print(json.dumps(facts | {"cpu_seconds": round(time.process_time() - began, 1)} | scores), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
