"""Next products without those that a customer already has, in the answers of a bundle."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from constellation.cli import main
from constellation.schema import CUSTOMER_ID, EVENT_TIME, PRODUCT
from tests.bundles import CUTOFF, shop_bundle, shop_events

NAMES = [f"next_product_{place}" for place in range(1, 5)]


def had() -> dict[str, set[str]]:
    events = shop_events()
    seen = events[events[EVENT_TIME] < pd.Timestamp(CUTOFF) + pd.Timedelta(days=1)]
    return {
        customer: {value for cell in group for value in cell} for customer, group in seen.groupby(CUSTOMER_ID)[PRODUCT]
    }


def test_what_a_customer_has_is_not_recommended() -> None:
    bundle = shop_bundle()
    number = len(bundle.vocabulary.products)
    plain = bundle.predict(shop_events(), CUTOFF, top_products=number)
    found = bundle.predict(shop_events(), CUTOFF, top_products=number, exclude_seen=True)
    pd.testing.assert_frame_equal(
        plain.filter(regex="value|purchases|next_type"), found.filter(regex="value|purchases|next_type")
    )
    seen, num_named = had(), 0
    for row, before in zip(found.to_dict("records"), plain.to_dict("records"), strict=True):
        has = seen[row[CUSTOMER_ID]]
        named = [row[f"next_product_{place + 1}"] for place in range(number)]
        named = [None if pd.isna(name) else name for name in named]
        expected = [before[f"next_product_{place + 1}"] for place in range(number)]
        expected = [name for name in expected if name not in has]
        # The others in their order, and empty cells where nothing is left.
        assert named == expected + [None] * (number - len(expected))
        scores = np.array([row[f"next_product_{place + 1}_score"] for place in range(number)])
        assert np.isnan(scores[len(expected) :]).all()
        if expected:
            np.testing.assert_allclose(scores[: len(expected)].sum(), 1.0, atol=1e-6)
        num_named += len(expected)
    assert 0 < num_named < number * len(found)
    assert any(not (set(bundle.vocabulary.products) - has) for has in seen.values()), "nobody has everything"


def test_a_bundle_excludes_as_it_was_evaluated() -> None:
    bundle = shop_bundle()
    as_films = replace(bundle, trained_on={**bundle.trained_on, "exclude_seen": True})
    excluded = bundle.predict(shop_events(), CUTOFF, exclude_seen=True)
    pd.testing.assert_frame_equal(as_films.predict(shop_events(), CUTOFF), excluded)
    pd.testing.assert_frame_equal(
        as_films.predict(shop_events(), CUTOFF, exclude_seen=False), bundle.predict(shop_events(), CUTOFF)
    )


def test_from_the_command_line(work_folder: Path) -> None:
    shop_bundle().save(work_folder / "bundle")
    shop_events().to_parquet(work_folder / "events.parquet", index=False)
    words = ["bundle=bundle", "events=events.parquet", f"cutoff={CUTOFF}", "exclude_seen=true", "top_products=4"]
    assert main(["score", *words, "tracking=none", "output=scored"]) == 0
    found = pd.read_parquet(work_folder / "scored" / "predictions.parquet")
    seen = had()
    for row in found.to_dict("records"):
        assert not seen[row[CUSTOMER_ID]] & {row[name] for name in NAMES if row.get(name) is not None}
    assert json.loads((work_folder / "scored" / "metrics.json").read_text())["score/num_customers"] == len(found)
