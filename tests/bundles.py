"""A small bundle that knows baskets, refunds and attributes, and tables to ask it about."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch

from constellation.building import build_model
from constellation.bundle import Bundle
from constellation.journeys.build import store_from_frame
from constellation.schema import CUSTOMER_ID, EVENT_TIME, EventSchema
from tests.helpers import at, fit_vocabulary, random_attributes, random_events

ZONE = "Europe/Berlin"
SCHEMA = EventSchema(timezone=ZONE, currency="EUR", lists=("tags",))
CUTOFF = "2017-04-10"
MODEL = {
    "encoder": {"_target_": "constellation.encoders.gru.Gru", "width": 8, "layers": 1},
    "readout": {"_target_": "constellation.encoders.readout.Readout", "width": 8, "layers": 1},
    "objective": {
        "value": {
            "_target_": "constellation.objectives.value.Value",
            "family": {"_target_": "constellation.objectives.families.Ziln"},
        },
        "next_event": {"_target_": "constellation.objectives.next_event.NextEvent", "width": 8},
    },
}


def shop_events(seed: int = 0, **sizes: Any) -> pd.DataFrame:
    """The random log of the tests with times as a person has them: naive, in Berlin."""
    events = random_events(seed, **sizes)
    utc = pd.to_datetime(events[EVENT_TIME].astype("int64"), unit="us", utc=True)
    return events.assign(**{EVENT_TIME: utc.dt.tz_convert(ZONE).dt.tz_localize(None)})


def shop_attributes() -> pd.DataFrame:
    return random_attributes(0)


def shop_bundle(model_config: dict[str, Any] | None = None, trusted: tuple[str, ...] = ()) -> Bundle:
    """An untrained model with noise on every weight, so that every input counts."""
    store = store_from_frame(shop_events(), SCHEMA, shop_attributes())
    vocabulary = fit_vocabulary(store, at(45))
    config = MODEL if model_config is None else model_config
    torch.manual_seed(0)
    model = build_model(config, vocabulary, vocabulary.horizons_days, trusted=trusted)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return Bundle(
        model=model,
        vocabulary=vocabulary,
        schema=SCHEMA,
        model_config=config,
        max_events=50,
        trained_on={"data": "shop", "test_cutoff": "2017-04-15", "seed": np.int64(0), "commit": None},
        metrics={"test/value_10d/model/mae": 12.34567, "test/value_10d/model/crps": float("nan")},
    )


def people(frame: pd.DataFrame) -> list[Any]:
    return sorted(frame[CUSTOMER_ID])
