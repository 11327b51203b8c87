"""Explanations: sums that are complete, contributions by hand, and nothing for what cannot matter."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from torch import Tensor, nn

from constellation.answering import answer_all
from constellation.building import build_model
from constellation.encoders.base import Encoder
from constellation.encoders.events import EventEmbedding
from constellation.encoders.readout import Readout, StateReadout
from constellation.errors import InputError
from constellation.explanation import Explanation, Options, explain
from constellation.explanation.answers import Answer
from constellation.explanation.asking import rows_of, some_at_risk
from constellation.explanation.inputs import bias_of, field_vectors
from constellation.journeys.batch import Gatherer
from constellation.journeys.store import MICROSECONDS_PER_DAY, Store
from constellation.journeys.vocabulary import Vocabulary
from constellation.journeys.windows import Queries, ask
from constellation.model import JourneyModel
from constellation.objectives.base import Loss, Objective
from tests.bundles import CUTOFF, shop_attributes, shop_bundle, shop_events
from tests.golden.tiny import HORIZONS_DAYS, KNOWN_UNTIL, steady_parameters, tiny_store, tiny_vocabulary
from tests.helpers import at, events_frame, fit_vocabulary, make_store

ENCODERS = sorted((Path(__file__).resolve().parents[2] / "configs" / "encoder").glob("*.yaml"))
DAY = MICROSECONDS_PER_DAY
ANSWERS = (
    "value_91d",
    "value_30d_p_zero",
    "purchases_91d",
    "purchases_30d_p_zero",
    "next_product:bread",
    "p_purchase_30d",
)


@pytest.fixture(scope="module")
def store() -> Store:
    return tiny_store(lengths=(5, 1, 0, 12, 3, 9, 20, 2, 7, 30))


@pytest.fixture(scope="module")
def vocabulary(store: Store) -> Vocabulary:
    return tiny_vocabulary(store)


def asked(store: Store, cutoff: int = KNOWN_UNTIL) -> Queries:
    everybody = np.arange(store.num_customers)
    return ask(store, everybody, np.full(len(everybody), cutoff), HORIZONS_DAYS, cutoff)


def whole_model(vocabulary: Vocabulary, path: Path = ENCODERS[0], **changes: Any) -> JourneyModel:
    encoder = yaml.safe_load(path.read_text()) | {"width": 8, "layers": 2}
    config = {
        "encoder": encoder,
        "readout": {"_target_": "constellation.encoders.readout.Readout", "width": 8},
        "objective": {
            "next_event": {"_target_": "constellation.objectives.next_event.NextEvent", "width": 8},
            "value": {
                "_target_": "constellation.objectives.value.Value",
                "family": {"_target_": "constellation.objectives.families.Quantiles"},
                "count_family": {"_target_": "constellation.objectives.count_families.CountMixture"},
            },
            "time_to_event": {"_target_": "constellation.objectives.time_to_event.TimeToEvent"},
        },
    } | changes
    return steady_parameters(build_model(config, vocabulary, HORIZONS_DAYS))


# ---------------------------------------------------------------- completeness


@pytest.mark.parametrize("path", ENCODERS, ids=lambda path: path.stem)
@pytest.mark.parametrize("name", ANSWERS)
def test_contributions_sum_to_the_difference(store: Store, vocabulary: Vocabulary, path: Path, name: str) -> None:
    model, gatherer, queries = whole_model(vocabulary, path), Gatherer(store, vocabulary), asked(store)
    found = explain(model, gatherer, queries, name)
    answers = answer_all(model, gatherer, queries, [0.5])
    if name == "next_product:bread":
        scores_QV = torch.from_numpy(answers["next_product_scores"]).softmax(dim=1)
        expected_Q = scores_QV[:, vocabulary.products.index("bread")].numpy()
    else:
        expected_Q = answers.get(name, answers.get(f"{name}_expected"))
    customers = found.customers
    np.testing.assert_allclose(customers["prediction"], expected_Q, rtol=1e-5)
    sums = found.contributions.groupby("customer_id")["contribution"].sum()[customers["customer_id"]].to_numpy()
    np.testing.assert_allclose(sums, customers["contribution"], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(customers["prediction"] - customers["baseline"] - sums, customers["gap"], atol=1e-9)
    assert customers["is_complete"].all()
    span = float(np.abs(expected_Q - found.baseline).max())
    assert span > 0
    np.testing.assert_allclose(found.baseline + sums, expected_Q, atol=0.01 * span)
    # A row per event and field, one per aggregate, and the journey's own.
    fields = [*vocabulary.kinds, "time"]
    events = found.contributions[found.contributions["part"] == "event"]
    assert len(events) == store.num_events * len(fields)
    assert set(events["field"]) == set(fields)
    counted = found.contributions["part"].value_counts()
    assert counted["aggregate"] == store.num_customers * len(vocabulary.aggregates.names)
    assert counted["journey"] == counted["silence"] == store.num_customers
    assert counted["attribute"] == 2 * store.num_customers
    assert ("past_products" in counted) == name.startswith("next_product")


@pytest.mark.parametrize("path", ENCODERS, ids=lambda path: path.stem)
def test_fields_sum_to_what_an_event_is_embedded_as(store: Store, vocabulary: Vocabulary, path: Path) -> None:
    model = whole_model(vocabulary, path)
    batch = Gatherer(store, vocabulary).gather(np.arange(store.num_customers), KNOWN_UNTIL)
    (events,) = (part for part in model.encoder.modules() if isinstance(part, EventEmbedding))
    parts = field_vectors(events, batch)
    torch.testing.assert_close(torch.stack(list(parts.values())).sum(dim=0) + bias_of(events), events(batch))


def test_steps_are_raised_until_the_gap_is_small_and_else_it_is_said(store: Store, vocabulary: Vocabulary) -> None:
    model = whole_model(vocabulary)
    with torch.no_grad():  # sharply bent, so that few points miss the path
        for layer in model.readout.layers:
            layer[1].weight *= 40.0
    gatherer, queries = Gatherer(store, vocabulary), asked(store)
    rough = explain(model, gatherer, queries, "value_91d", options=Options(first_steps=1, max_steps=1)).customers
    assert not rough["is_complete"].all()
    assert (rough["steps"] == 1).all()
    assert (rough["is_complete"] == (rough["relative_gap"] <= 0.01)).all()
    fine = explain(model, gatherer, queries, "value_91d", options=Options(first_steps=1, max_steps=512)).customers
    assert fine["is_complete"].all()
    assert fine["steps"].nunique() > 1
    # Who was complete at once keeps what one step said.
    at_once = rough["is_complete"]
    assert (fine["steps"][at_once] == 1).all()
    np.testing.assert_allclose(fine["gap"][at_once], rough["gap"][at_once], atol=1e-5)


def test_company_changes_nothing(store: Store, vocabulary: Vocabulary) -> None:
    gatherer, queries = Gatherer(store, vocabulary), asked(store)
    model = whole_model(vocabulary, ENCODERS[-1])
    together = explain(model, gatherer, queries, "value_91d", reference=queries)
    small = explain(model, gatherer, queries, "value_91d", reference=queries, options=Options(max_tokens=10))
    pd.testing.assert_frame_equal(small.contributions, together.contributions, atol=1e-4, rtol=1e-3)
    for place in (6, 2):
        alone = explain(model, gatherer, queries.take(np.array([place])), "value_91d", reference=queries)
        mine = together.contributions[together.contributions["customer_id"] == place].reset_index(drop=True)
        pd.testing.assert_frame_equal(alone.contributions, mine, atol=1e-4, rtol=1e-3)
    backwards = queries.take(np.arange(len(queries))[::-1].copy())
    turned = explain(model, gatherer, backwards, "value_91d", reference=queries)
    assert turned.customers["customer_id"].tolist() == together.customers["customer_id"].tolist()[::-1]
    np.testing.assert_allclose(turned.customers["gap"][::-1], together.customers["gap"], atol=1e-4)


def test_the_model_is_left_as_it_was(store: Store, vocabulary: Vocabulary) -> None:
    model, gatherer, queries = whole_model(vocabulary).train(), Gatherer(store, vocabulary), asked(store)
    explain(model, gatherer, queries, "value_91d")
    assert model.training
    assert all(not part._forward_hooks for part in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


# ---------------------------------------------------------------- by hand


class RunningSum(Encoder):
    """A state is the sum of the events so far: linear in every field."""

    def __init__(self, vocabulary: Vocabulary, *, width: int, own: bool = False) -> None:
        super().__init__()
        self.width, self.own = width, own
        self.events = EventEmbedding(vocabulary, width)

    def forward(self, batch: Any) -> Tensor:
        events_ND = self.events(batch)
        if self.own:  # of its own event alone: what came before cannot matter
            return torch.tanh(events_ND)
        sums_ND = torch.cat([torch.zeros_like(events_ND[:1]), events_ND]).cumsum(dim=0)
        return sums_ND[1:] - sums_ND[batch.offsets_B[batch.journey_N]]


class Linear(Objective):
    """``score`` is a weighted sum of the readout, and ``stiff`` the same without a gradient."""

    name = "linear"

    def __init__(self, width: int) -> None:
        super().__init__(horizons_days=HORIZONS_DAYS, weight=1.0)
        self.weight_D = nn.Parameter(torch.linspace(-1.0, 1.0, width))

    def loss(self, states_ND: Tensor, readout_QD: Tensor, batch: Any) -> Loss:
        target_Q = batch.targets.value_QK[:, 0]
        return Loss(((readout_QD @ self.weight_D - target_Q) ** 2).sum(), torch.tensor(float(len(target_Q))))

    def predict(self, readout_QD: Tensor, batch: Any, levels: Sequence[float] | Tensor) -> dict[str, Tensor]:
        score_Q = readout_QD @ self.weight_D
        return {"score": score_Q, "stiff": score_Q.detach()}


def linear_model(vocabulary: Vocabulary, *, own: bool = False, readout: nn.Module | None = None) -> JourneyModel:
    encoder = RunningSum(vocabulary, width=6, own=own)
    readout = readout or StateReadout(vocabulary, 6)
    return steady_parameters(JourneyModel(encoder, readout, {"linear": Linear(6)}), keep=("weight_D",))


def by_field(found: Explanation, store: Store, name: str) -> np.ndarray:
    """Contributions of a field to each event, in the order of the store."""
    frame = found.contributions
    return frame[(frame["part"] == "event") & (frame["field"] == name)]["contribution"].to_numpy()


def test_a_linear_model_by_hand(store: Store, vocabulary: Vocabulary) -> None:
    model, queries = linear_model(vocabulary), asked(store)
    weight_D = model.objectives["linear"].weight_D.detach()
    events = model.encoder.events
    found = explain(model, Gatherer(store, vocabulary), queries, "score", options=Options(first_steps=1, max_steps=1))
    batch = Gatherer(store, vocabulary).gather(np.arange(store.num_customers), int(queries.cutoff_Q[0]))
    table = events.table.weight.detach()
    channel_ND = table[events.start_of["channel"] + batch.categorical["channel"]]
    expected_N = (channel_ND - channel_ND.mean(dim=0)) @ weight_D
    np.testing.assert_allclose(by_field(found, store, "channel"), expected_N, atol=1e-6)
    values_M, offsets = batch.lists["product"]
    baskets = [
        table[events.start_of["product"] + values_M[start:end]].sum(dim=0) for start, end in itertools.pairwise(offsets)
    ]
    basket_ND = torch.stack(baskets)
    expected_N = (basket_ND - basket_ND.mean(dim=0)) @ weight_D
    np.testing.assert_allclose(by_field(found, store, "product"), expected_N, atol=1e-6)
    # An amount counts twice: by its bin, and by its size.
    scaled_N = vocabulary.numeric_scaler["amount"](batch.numeric["amount"].numpy()[:, None])[:, 0]
    amount_ND = table[events.start_of["bin of amount"] + batch.numeric_bin["amount"]]
    column = list(vocabulary.numeric).index("amount")
    amount_ND = amount_ND + torch.from_numpy(scaled_N)[:, None] * events.amounts.weight.detach()[:, column]
    expected_N = (amount_ND - amount_ND.mean(dim=0)) @ weight_D
    np.testing.assert_allclose(by_field(found, store, "amount"), expected_N, atol=1e-6)
    # The baseline: as many average events as each journey has; the journey's own part is its length's.
    mean_event = events(batch).detach().mean(dim=0) @ weight_D
    lengths = batch.lengths_on_host
    starts = np.where(lengths > 0, lengths * float(mean_event), float(model.readout.start_state_D.detach() @ weight_D))
    assert found.baseline == pytest.approx(starts.mean(), abs=1e-5)
    journey = found.contributions[found.contributions["part"] == "journey"]["contribution"]
    np.testing.assert_allclose(journey, starts - starts.mean(), atol=1e-5)
    assert found.customers["relative_gap"].max() < 1e-4


def test_aggregates_and_attributes_of_a_linear_readout_by_hand(store: Store, vocabulary: Vocabulary) -> None:
    readout = Readout(vocabulary, 6, width=6, layers=0, dropout=0.0)
    model, queries = linear_model(vocabulary, readout=readout), asked(store)
    weight_D = model.objectives["linear"].weight_D.detach()
    gatherer = Gatherer(store, vocabulary)
    found = explain(model, gatherer, queries, "score", options=Options(first_steps=32))
    known = np.array([0, 1, 3, 4, 5, 6, 7, 8, 9])  # customer 2 has no events, and a sum of its own
    frame = found.contributions[found.contributions["customer_id"] != 2]
    batch = gatherer.gather(queries.journey_Q, queries.cutoff_Q, queries)
    names = vocabulary.aggregates.names
    kept = readout.kept_F.tolist()
    centred_QF = batch.aggregates_QF - batch.aggregates_QF.mean(dim=0)
    effect_QF = centred_QF[:, readout.kept_F] * (weight_D @ readout.from_aggregates.weight.detach())
    for place, column in enumerate(kept):
        mine = frame[(frame["part"] == "aggregate") & (frame["field"] == names[column])]["contribution"]
        np.testing.assert_allclose(mine, effect_QF[known, place], atol=1e-6)
    left_out = frame[(frame["part"] == "aggregate") & ~frame["field"].isin([names[column] for column in kept])]
    assert len(left_out)
    assert (left_out["contribution"] == 0).all()
    region_QD = readout.from_attributes[0].weight.detach()[batch.attributes["region"]]
    mine = frame[(frame["part"] == "attribute") & (frame["field"] == "region")]
    np.testing.assert_allclose(mine["contribution"], ((region_QD - region_QD.mean(dim=0)) @ weight_D)[known], atol=1e-6)
    words = {value for value in mine["value"] if isinstance(value, str)}
    assert words == {"north", "south"}
    age_Q = batch.attributes_numeric["age"]
    mine = frame[(frame["part"] == "attribute") & (frame["field"] == "age")]["contribution"]
    slope = float(weight_D @ readout.from_numbers.weight.detach()[:, 0])
    np.testing.assert_allclose(mine, ((age_Q - age_Q.mean()) * slope)[known], atol=1e-6)
    assert found.customers["is_complete"].all()


def test_what_cannot_matter_gets_nothing(store: Store, vocabulary: Vocabulary) -> None:
    queries = asked(store)
    found = explain(linear_model(vocabulary, own=True), Gatherer(store, vocabulary), queries, "score")
    events = found.contributions[found.contributions["part"] == "event"]
    last = events.groupby("customer_id")["event"].transform("max")
    assert (events[events["event"] < last]["contribution"] == 0).all()
    assert (events[events["event"] == last]["contribution"] != 0).any()
    others = found.contributions[found.contributions["part"].isin(["aggregate", "silence"])]
    assert (others["contribution"] == 0).all()  # a readout of the state alone reads none of it
    model = linear_model(vocabulary)
    with torch.no_grad():  # a field whose embedding is the same whatever it says
        table = model.encoder.events.table.weight
        start = model.encoder.events.start_of["channel"]
        table[start : start + vocabulary.num_codes("channel")] = 0.7
    silent = explain(model, Gatherer(store, vocabulary), queries, "score")
    np.testing.assert_allclose(by_field(silent, store, "channel"), 0.0, atol=1e-6)


def test_values_are_what_the_events_say(store: Store, vocabulary: Vocabulary) -> None:
    found = explain(linear_model(vocabulary), Gatherer(store, vocabulary, max_events=4), asked(store), "score")
    frame = found.contributions
    longest = frame[(frame["customer_id"] == 9) & (frame["part"] == "event")]
    rows = np.arange(int(store.first_event_C[10]) - 4, int(store.first_event_C[10]))  # the last four of thirty
    assert longest["event"].tolist() == sorted([0, 1, 2, 3] * 6)
    types = longest[longest["field"] == "event_type"]
    words = [store.dictionaries["event_type"][code] for code in store.categorical["event_type"][rows]]
    assert types["value"].tolist() == words
    assert types["event_time"].tolist() == pd.to_datetime(store.time_N[rows], unit="us", utc=True).tolist()
    values_M, offsets = store.lists["product"]
    baskets = [
        "|".join(store.dictionaries["product"][code] for code in values_M[offsets[row] : offsets[row + 1]])
        for row in rows
    ]
    said = longest[longest["field"] == "product"]["value"]
    assert [value if isinstance(value, str) else "" for value in said] == baskets
    none = frame[(frame["customer_id"] == 2) & (frame["part"] == "event")]
    assert none.empty  # a customer without events is explained by what the cutoff reads
    top = found.largest(9)
    assert (top["contribution"].abs().diff().dropna() <= 0).all()
    assert top["name"].str.match(r"1971-\d\d-\d\d|.*").all()


# ---------------------------------------------------------------- answers


def test_answers_by_their_names(store: Store, vocabulary: Vocabulary) -> None:
    model, gatherer, queries = whole_model(vocabulary), Gatherer(store, vocabulary), asked(store)
    batch = gatherer.gather(queries.journey_Q, queries.cutoff_Q, queries, targets=False)
    with torch.no_grad():
        answers = model.predict(batch, [0.9])
        for name, expected_Q in {
            "value_91d": answers["value_91d_expected"],
            "value_91d_p_zero": answers["value_91d_p_zero"],
            "value_91d_q90": answers["value_91d_quantiles"][:, 0],
            "wait_expected_days": answers["wait_expected_days"],
            "next_product": answers["next_product_scores"].softmax(dim=1).amax(dim=1),
            "next_type": answers["next_type_scores"].softmax(dim=1).amax(dim=1),
        }.items():
            found = Answer.find(name, model, batch, vocabulary)
            said = found.predict(model, batch)
            torch.testing.assert_close(found.of(said, found.choose(said)), expected_Q)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("value_7d", r"answer=value_7d is nothing.*It says .*value_91d, .*next_product:<value>"),
        ("value_91d_quantiles", "is nothing that this model says as one number"),
        ("next_product:gold", "the model knows no product 'gold'. It knows"),
    ],
)
def test_an_unknown_answer_is_refused(store: Store, vocabulary: Vocabulary, name: str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        explain(whole_model(vocabulary), Gatherer(store, vocabulary), asked(store), name)


def test_an_answer_without_a_gradient_is_refused(store: Store, vocabulary: Vocabulary) -> None:
    with pytest.raises(InputError, match="answer=stiff has no gradient"):
        explain(linear_model(vocabulary), Gatherer(store, vocabulary), asked(store), "stiff")


def test_options_and_customers_are_checked(store: Store) -> None:
    with pytest.raises(InputError, match="tolerance must lie in"):
        Options(tolerance=0.0)
    with pytest.raises(InputError, match="max_steps must be at least first_steps"):
        Options(first_steps=8, max_steps=4)
    assert rows_of(store, [3, "1", 3]).tolist() == [3, 1]
    with pytest.raises(InputError, match="'77' is none of them"):
        rows_of(store, ["77"])
    with pytest.raises(InputError, match="customers is empty"):
        rows_of(store, [])
    seen = some_at_risk(store, KNOWN_UNTIL, 100)
    assert sorted(seen.tolist()) == [0, 1, 3, 4, 5, 6, 7, 8, 9]  # customer 2 has no events
    assert some_at_risk(store, KNOWN_UNTIL, 3).tolist() == seen[:3].tolist()


# ---------------------------------------------------------------- a world in which one thing matters


def test_the_field_that_matters_moves_most() -> None:
    """Visits on the web bring money a day later, others nothing; all other fields are noise."""
    rng = np.random.default_rng(3)
    rows, worth = [], {}
    for person in range(240):
        channels = rng.choice(["shop", "web"], 4)
        worth[f"c{person:03d}"] = float((channels == "web").sum())
        rows += [
            {
                "customer_id": f"c{person:03d}",
                "event_time": at(float(day) + float(rng.random())),
                "event_type": str(rng.choice(["visit", "call"])),
                "channel": str(channel),
                "product": [str(rng.choice(["bread", "milk", "tea"]))],
                "score": float(rng.integers(0, 10)),
            }
            for day, channel in zip(sorted(rng.choice(40, 4, replace=False)), channels, strict=True)
        ]
    store = make_store(events_frame(rows))
    vocabulary = fit_vocabulary(store, at(50))
    everybody, cutoff = np.arange(store.num_customers), at(50)
    queries = ask(store, everybody, np.full(len(everybody), cutoff), (3, 10), cutoff)
    target_Q = torch.tensor([worth[name] for name in store.customer_id_C])
    torch.manual_seed(0)
    config = {
        "encoder": {"_target_": "constellation.encoders.gru.Gru", "width": 16, "layers": 1},
        "readout": {"_target_": "constellation.encoders.readout.Readout", "width": 16, "layers": 1},
    }
    encoder = build_model(
        config | {"objective": {"t": {"_target_": "constellation.objectives.time_to_event.TimeToEvent"}}},
        vocabulary,
        (3, 10),
    )
    model = JourneyModel(encoder.encoder, encoder.readout, {"linear": Linear(16)})
    gatherer = Gatherer(store, vocabulary)
    batch = gatherer.gather(queries.journey_Q, queries.cutoff_Q, queries)
    batch.targets = replace(batch.targets, value_QK=target_Q.unsqueeze(1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model.train()
    for _ in range(150):
        optimizer.zero_grad()
        loss = model.loss(batch)["linear"].mean
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.3 * float(target_Q.var())
    found = explain(model, gatherer, queries, "score")
    assert found.customers["is_complete"].all()
    table = found.by_field()
    assert table.iloc[0][["part", "field"]].tolist() == ["event", "channel"]
    assert table.iloc[0]["mean_absolute"] > 2 * table.iloc[1]["mean_absolute"]
    # Of two channels one brings and the other does not.
    events = found.contributions[(found.contributions["part"] == "event") & (found.contributions["field"] == "channel")]
    means = events.groupby("value")["contribution"].mean()
    assert means["web"] > 0.2 > 0 > means["shop"]


# ---------------------------------------------------------------- the bundle


def test_a_bundle_explains_a_table() -> None:
    bundle = shop_bundle()
    frame = bundle.predict(shop_events(), CUTOFF, shop_attributes()).set_index("customer_id")
    found = bundle.explain(shop_events(), CUTOFF, "value_10d", shop_attributes(), customers=["c03", "c01"])
    assert found.customers["customer_id"].tolist() == ["c03", "c01"]
    np.testing.assert_allclose(
        found.customers["prediction"], frame.loc[["c03", "c01"], "value_10d_expected"], rtol=1e-5
    )
    assert found.customers["is_complete"].all()
    everybody = bundle.explain(shop_events(), CUTOFF, "value_10d", shop_attributes())
    assert len(everybody.customers) == len(frame)
    assert everybody.baseline == found.baseline
