"""The films of MovieLens-1M and -100K as the literature cuts them. Needs the data: set CONSTELLATION_DATA."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from constellation import cli
from constellation.journeys.baskets import next_products, seen_products
from constellation.journeys.dataset import DataSet
from constellation.journeys.prepare import prepare
from constellation.journeys.splits import Splits
from constellation.journeys.vocabulary import Vocabulary

DATA = Path(os.environ.get("CONSTELLATION_DATA", ""))


def data_set(name: str, folder: str, cache: Path) -> DataSet:
    if not (DATA / folder / "interactions.parquet").is_file():
        pytest.skip(f"no {folder} in CONSTELLATION_DATA")
    from hydra.utils import instantiate

    return instantiate(cli.compose("prepare", [f"data={name}", f"data.cache={cache}"]).config.data)


def test_ml1m_is_the_set_of_the_literature(tmp_path: Path) -> None:
    data = data_set("ml1m", "ml-1m", tmp_path)
    store = prepare(data)
    assert (store.num_customers, store.num_events) == (6040, 999_611)
    assert len(store.dictionaries["product"]) - 1 == 3416
    assert not store.has_clock
    splits = Splits(store, data.windows)
    assert len(splits.val) == len(splits.test) == 6040, "everybody has rated enough films"
    # Positions are 0 .. n - 1 in each journey, so the test film is the one at the last of them.
    last_C = store.first_event_C[1:] - 1
    np.testing.assert_array_equal(splits.test.next_basket_Q, last_C)
    np.testing.assert_array_equal(splits.val.next_basket_Q, last_C - 1)
    vocabulary = Vocabulary.fit(store, splits.select_panel, journeys=splits.train_journeys, until=splits.select_until)
    assert len(vocabulary.products) == 3416, "every film occurs in the training part, so all are ranked"
    assert (next_products(store, vocabulary, splits.test)[0] >= 0).all()
    # Nobody rates a film twice, so what is excluded is never what is asked for.
    seen, offsets = seen_products(store, vocabulary, splits.test)
    assert offsets[-1] == 999_611 - 6040
    asked = next_products(store, vocabulary, splits.test)[0]
    assert not (seen == np.repeat(asked, np.diff(offsets))).any()


def test_ml1m_most_popular_by_hand(tmp_path: Path) -> None:
    """The baseline's NDCG@10 against a dense ranking by torch, which shares no code with ours."""
    from constellation.assessment import Assessment
    from constellation.baselines.most_popular import MostPopular
    from constellation.metrics.evaluate import Evaluation

    data = data_set("ml1m", "ml-1m", tmp_path)
    store = prepare(data)
    splits = Splits(store, data.windows)
    vocabulary = Vocabulary.fit(store, splits.select_panel, journeys=splits.train_journeys, until=splits.select_until)
    system = MostPopular()
    system.fit(store, vocabulary, splits.select_panel, until=splits.select_until)
    evaluation = Evaluation(num_resamples=1)
    everyone = {"val": np.ones(len(splits.val), dtype=bool)}
    assessed = Assessment(evaluation, store, vocabulary, splits.val, everyone, exclude_seen=True)
    assessed.add("most_popular", lambda queries: system.predict(store, queries, np.array([0.5])))

    film_N = store.lists["product"][0].astype(np.int64)  # one film an event
    user_N = np.repeat(np.arange(6040), np.diff(store.first_event_C))
    place_N = np.arange(len(film_N)) - store.first_event_C[:-1][user_N]
    num_C = np.diff(store.first_event_C)
    train_N = place_N < num_C[user_N] - 2
    count_V = torch.zeros(3417, dtype=torch.float64).index_add(
        0, torch.from_numpy(film_N[train_N]), torch.ones(int(train_N.sum()), dtype=torch.float64)
    )
    # Ours breaks ties by the order of the vocabulary: more frequent first, then by name.
    names = np.array([""] + [str(name) for name in store.dictionaries["product"][1:]])
    order = np.lexsort((names, -count_V.numpy()))
    count_V[order] -= torch.arange(3417) * 1e-6
    count_V[0] = -np.inf
    scores = count_V.expand(6040, -1).clone()
    scores[user_N[train_N], film_N[train_N]] = -np.inf
    asked = film_N[store.first_event_C[1:] - 2]
    rank = (scores > scores[torch.arange(6040), asked][:, None]).sum(dim=1).double()
    ndcg = torch.where(rank < 10, 1 / torch.log2(rank + 2), 0.0).mean()
    flat = evaluation.flat()
    assert flat["val/next_product/most_popular/ndcg_at_10"] == pytest.approx(float(ndcg), abs=1e-12)
    assert flat["val/next_product/most_popular/hit_rate_at_10"] == pytest.approx(float((rank < 10).double().mean()))


def test_ml100k_holds_a_whole_second_out(tmp_path: Path) -> None:
    data = data_set("ml100k", "ml-100k", tmp_path)
    store = prepare(data)
    assert (store.num_customers, store.num_events) == (943, 100_000)
    splits = Splits(store, data.windows)
    assert len(splits.test) == 943
    test = splits.test
    assert (store.time_N[test.next_event_Q] > store.time_N[test.last_event_Q]).all()
    np.testing.assert_array_equal(test.cutoff_Q, store.time_N[test.last_event_Q])
