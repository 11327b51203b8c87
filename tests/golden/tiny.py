"""A tiny fixed world for tests of encoders, objectives and the model: eight customers in one batch."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from constellation.journeys.batch import Gatherer, JourneyBatch
from constellation.journeys.sampling import TrainingBatches
from constellation.journeys.store import MICROSECONDS_PER_DAY, MONEY_SCALE, Manifest, Store
from constellation.journeys.vocabulary import Vocabulary
from constellation.journeys.windows import Queries, ask
from constellation.schema import EventSchema

LENGTHS = (5, 1, 0, 12, 3, 9, 20, 2)
HORIZONS_DAYS = (30, 91)
KNOWN_UNTIL = 400 * MICROSECONDS_PER_DAY
NOISE = 0.1


def tiny_store(seed: int = 0, lengths: tuple[int, ...] = LENGTHS) -> Store:
    """Visits, purchases with baskets of up to four of six products, and refunds, over 400 days from 1970 on."""
    rng = np.random.default_rng(seed)
    num_events = sum(lengths)
    first_event_C = np.concatenate([[0], np.cumsum(lengths)])
    days = [np.sort(rng.uniform(0, 400, length)) for length in lengths]
    time_N = (np.concatenate(days) * MICROSECONDS_PER_DAY).astype(np.int64)
    event_type = rng.choice([1, 2, 3], size=num_events, p=[0.3, 0.6, 0.1]).astype(np.int32)
    amount = np.where(event_type == 2, rng.lognormal(3, 1, num_events), np.nan)
    amount = np.where(event_type == 3, -rng.uniform(1, 5, num_events), amount)
    sizes = np.where(event_type == 2, rng.integers(1, 5, num_events), 0)
    products = (rng.choice(6, sizes.sum(), p=[0.4, 0.2, 0.2, 0.1, 0.05, 0.05]) + 1).astype(np.int32)
    purchase_N = event_type == 2
    whole = np.rint(np.nan_to_num(amount) * MONEY_SCALE).astype(np.int64)
    manifest = Manifest(
        name="tiny",
        schema=EventSchema(attributes=("region", "age")),
        kinds={
            "event_type": "categorical",
            "channel": "categorical",
            "amount": "numeric",
            "score": "numeric",
            "product": "list",
        },
        num_customers=len(lengths),
        num_events=num_events,
        first_time=int(time_N.min()),
        last_time=int(time_N.max()),
        observed_until=KNOWN_UNTIL,
        fingerprint="tiny",
    )
    return Store(
        manifest=manifest,
        customer_id_C=np.arange(len(lengths)),
        first_event_C=first_event_C,
        time_N=time_N,
        categorical={"event_type": event_type, "channel": rng.integers(0, 3, num_events).astype(np.int32)},
        numeric={"amount": amount, "score": np.where(rng.random(num_events) < 0.2, 7.0, np.nan)},
        lists={"product": (products, np.concatenate([[0], np.cumsum(sizes)]))},
        dictionaries={
            "event_type": [None, "visit", "purchase", "refund"],
            "channel": [None, "shop", "web"],
            "product": [None, "apple", "bread", "cheese", "dates", "eggs", "figs"],
            "attributes.region": [None, "north", "south"],
        },
        attributes_categorical={"region": rng.integers(0, 3, len(lengths)).astype(np.int32)},
        attributes_numeric={"age": rng.uniform(20, 80, len(lengths))},
        purchase_N=purchase_N,
        amount_sum_N=np.concatenate([[0], np.cumsum(whole)]),
        purchase_sum_N=np.concatenate([[0], np.cumsum(purchase_N)]),
    )


def tiny_batches(**changes: Any) -> TrainingBatches:
    """Batches for training, two journeys each; ``changes``: other options of TrainingBatches."""
    store = tiny_store()
    options = {"cutoffs_per_journey": 4, "max_journeys": 2, "before_first_share": 0.3} | changes
    return TrainingBatches(
        Gatherer(store, tiny_vocabulary(store)), np.arange(store.num_customers), KNOWN_UNTIL, HORIZONS_DAYS, **options
    )


def tiny_queries(store: Store) -> Queries:
    """Every customer at four cutoffs; the last leaves no room for the longer horizon."""
    cutoffs = np.array([100, 200, 300, 350]) * MICROSECONDS_PER_DAY
    journeys = np.arange(store.num_customers)
    return ask(store, np.repeat(journeys, len(cutoffs)), np.tile(cutoffs, len(journeys)), HORIZONS_DAYS, KNOWN_UNTIL)


def tiny_vocabulary(store: Store | None = None) -> Vocabulary:
    store = store or tiny_store()
    journeys = np.arange(store.num_customers)
    return Vocabulary.fit(store, tiny_queries(store), journeys=journeys, until=KNOWN_UNTIL, num_bins=4)


def gather(store: Store, vocabulary: Vocabulary, journeys: np.ndarray, queries: Queries) -> JourneyBatch:
    return Gatherer(store, vocabulary).gather(journeys, KNOWN_UNTIL, queries)


def tiny_batch(store: Store | None = None, vocabulary: Vocabulary | None = None) -> JourneyBatch:
    store = store or tiny_store()
    journeys = np.arange(store.num_customers)
    return gather(store, vocabulary or tiny_vocabulary(store), journeys, tiny_queries(store))


def steady_parameters(
    module: torch.nn.Module, seed: int = 0, keep: tuple[str, ...] = ("value.head.bias",)
) -> torch.nn.Module:
    """Fill the parameters from numpy's generator, name by name in sorted order, and switch to evaluation.

    Golden figures must not hang on torch's generator, whose streams may change between releases. Parameters that start
    as a constant (gates, norms) or from the data (``keep``, by the end of the name) keep their start below the noise.
    """
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            noise = torch.from_numpy(rng.standard_normal(parameter.shape).astype(np.float32))
            start = parameter if name.endswith(keep) or parameter.min() == parameter.max() else torch.zeros(())
            parameter.copy_(start + NOISE * noise)
    return module.eval()


def replaced(batch: JourneyBatch, **changes: object) -> JourneyBatch:
    return dataclasses.replace(batch, **changes)  # type: ignore[arg-type]
