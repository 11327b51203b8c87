"""A model that begins from another: what is taken, by which names, and that a fine-tuning still resumes exactly."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from constellation.building import build_model
from constellation.errors import InputError
from constellation.journeys.batch import Gatherer
from constellation.journeys.splits import Splits
from constellation.journeys.vocabulary import FIRST_KNOWN, Vocabulary
from constellation.journeys.windows import ask
from constellation.model import JourneyModel
from constellation.training.initial import Initial, Slowed, check_encoder
from constellation.training.named_axes import named_axes
from constellation.training.study import Study, select_then_refit
from tests.golden.tiny import HORIZONS_DAYS, KNOWN_UNTIL, steady_parameters, tiny_queries, tiny_store, tiny_vocabulary
from tests.helpers import random_attributes, random_events
from tests.unit.test_resume import Interrupted, interrupt_at, losses
from tests.unit.test_training import ADAM, OPTIONS, STORE, WINDOWS, same, store_of

ENCODER = {"_target_": "constellation.encoders.gru.Gru", "width": 8, "layers": 1}
READOUT = {"_target_": "constellation.encoders.readout.Readout", "width": 8, "layers": 1}
NEXT = {"_target_": "constellation.objectives.next_event.NextEvent", "width": 8}
VALUE = {
    "_target_": "constellation.objectives.value.Value",
    "family": {"_target_": "constellation.objectives.families.Ziln"},
}
TIMES = {"_target_": "constellation.objectives.time_to_event.TimeToEvent"}


def described(**objectives: Any) -> dict[str, Any]:
    return {"encoder": ENCODER, "readout": READOUT, "objective": objectives}


def model_of(
    vocabulary: Vocabulary, seed: int, horizons: tuple[int, ...] = HORIZONS_DAYS, **objectives: Any
) -> JourneyModel:
    model = build_model(described(**objectives), vocabulary, horizons)
    return steady_parameters(model, seed, keep=())


def shuffled(vocabulary: Vocabulary) -> Vocabulary:
    """The same columns in another order of values, with a new product and without an old one."""
    categories = dict(vocabulary.categories)
    products = categories["product"]
    categories["product"] = ["grapes", *reversed(products[1:])]
    categories["event_type"] = list(reversed(categories["event_type"]))
    categories["attributes.region"] = list(reversed(categories["attributes.region"]))
    aggregates = replace(vocabulary.aggregates, event_types=tuple(reversed(vocabulary.aggregates.event_types)))
    return replace(vocabulary, categories=categories, aggregates=aggregates)


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return tiny_vocabulary()


def test_the_same_model_is_taken_whole_and_answers_alike(vocabulary: Vocabulary) -> None:
    there = model_of(vocabulary, 1, next_event=NEXT, value=VALUE)
    here = model_of(vocabulary, 2, next_event=NEXT, value=VALUE)
    taken = Initial(there, vocabulary).start(here, vocabulary)
    assert taken.share == 1.0
    assert len(taken.whole) == len(list(here.parameters()))
    assert not (taken.fresh or taken.left or taken.unused or taken.other_shape or taken.other_kind)
    for name, parameter in here.named_parameters():
        assert torch.equal(parameter, dict(there.named_parameters())[name]), name


def test_values_are_found_by_name_and_not_by_place(vocabulary: Vocabulary) -> None:
    other = shuffled(vocabulary)
    there, here = model_of(vocabulary, 1, next_event=NEXT), model_of(other, 2, next_event=NEXT)
    before = {name: parameter.detach().clone() for name, parameter in here.named_parameters()}
    taken = Initial(there, vocabulary).start(here, other)

    def row(model: JourneyModel, words: Vocabulary, column: str, value: str) -> torch.Tensor:
        events = model.encoder.events
        return events.table.weight[events.start_of[column] + FIRST_KNOWN + words.categories[column].index(value)]

    common = [product for product in vocabulary.products if product in other.products]
    assert len(common) == len(vocabulary.products) - 1
    for product in common:
        assert torch.equal(row(here, other, "product", product), row(there, vocabulary, "product", product))
        mine, theirs = other.products.index(product), vocabulary.products.index(product)
        of_here, of_there = here.objectives["next_event"], there.objectives["next_event"]
        assert torch.equal(of_here.products.embedding_VD[mine], of_there.products.embedding_VD[theirs])
        assert torch.equal(of_here.products.bias_V[mine], of_there.products.bias_V[theirs])
        assert torch.equal(of_here.repeats.weight_CV[:, mine], of_there.repeats.weight_CV[:, theirs])
    for kind in vocabulary.categories["event_type"]:
        assert torch.equal(row(here, other, "event_type", kind), row(there, vocabulary, "event_type", kind))
    table = "readout.from_attributes.0.weight"
    swapped = [0, 1, 3, 2]  # missing, unknown, and the two regions the other way round
    assert torch.equal(dict(here.named_parameters())[table], dict(there.named_parameters())[table][swapped])
    kept = [vocabulary.aggregates.names[place] for place in there.readout.kept_F.tolist()]
    mine = [other.aggregates.names[place] for place in here.readout.kept_F.tolist()]
    assert mine != kept
    assert torch.equal(
        here.readout.from_aggregates.weight,
        there.readout.from_aggregates.weight[:, [kept.index(name) for name in mine]],
    )
    # The new product starts as it was, in the events and in the head.
    start = here.encoder.events.start_of["product"] + FIRST_KNOWN
    assert torch.equal(here.encoder.events.table.weight[start], before["encoder.events.table.weight"][start])
    assert torch.equal(
        here.objectives["next_event"].products.bias_V[0], before["objectives.next_event.products.bias_V"][0]
    )
    assert taken.fresh == {"product": 1}
    assert taken.left == {"product": 1}
    # Whole are those of which nothing is new; the tables of products are not.
    names = [name for name, _ in here.named_parameters()]
    partly = {names[place] for place in range(len(names))} - {names[place] for place in taken.whole}
    assert partly == {
        "encoder.events.table.weight",
        "objectives.next_event.products.embedding_VD",
        "objectives.next_event.products.bias_V",
        "objectives.next_event.repeats.weight_CV",
    }
    said = "\n".join(taken.lines())
    assert "new values, which start fresh: product 1" in said
    assert "encoder: all" not in said


def test_a_permuted_vocabulary_answers_alike() -> None:
    """The oracle of the mapping: the same customers, read through two vocabularies, get the same states."""
    store = tiny_store()
    first = tiny_vocabulary(store)
    categories = {name: list(reversed(values)) for name, values in first.categories.items()}
    second = replace(first, categories=categories)
    there, here = model_of(first, 1, next_event=NEXT, value=VALUE), model_of(second, 2, next_event=NEXT, value=VALUE)
    assert Initial(there, first).start(here, second).share == 1.0
    queries = tiny_queries(store)
    answers = []
    for words, model in ((first, there), (second, here)):
        batch = Gatherer(store, words).gather(np.arange(store.num_customers), KNOWN_UNTIL, queries)
        with torch.no_grad():
            answers.append(model.predict(batch, [0.5]))
    order = [second.products.index(product) for product in first.products]
    torch.testing.assert_close(answers[1]["next_product_scores"][:, order], answers[0]["next_product_scores"])
    torch.testing.assert_close(answers[1]["value_91d_expected"], answers[0]["value_91d_expected"])


def test_what_has_no_place_is_left_and_said(vocabulary: Vocabulary) -> None:
    there = model_of(vocabulary, 1, next_event=NEXT, time_to_event=TIMES)
    here = model_of(vocabulary, 2, value=VALUE)
    before = here.objectives["value"].head.weight.detach().clone()
    taken = Initial(there, vocabulary).start(here, vocabulary)
    assert torch.equal(here.objectives["value"].head.weight, before)
    assert taken.unused == ["objective next_event", "objective time_to_event"]
    assert taken.taken["encoder"] == taken.total["encoder"] > 0
    assert taken.taken["objective value"] == 0
    said = "\n".join(taken.lines())
    assert "objective value: nothing: it starts fresh" in said
    assert "nobody asks for it here: objective next_event, objective time_to_event" in said


def test_heads_of_other_horizons_families_and_kinds_are_not_mistaken(vocabulary: Vocabulary) -> None:
    gamma = VALUE | {"family": {"_target_": "constellation.objectives.families.HurdleGamma"}}
    there, here = model_of(vocabulary, 1, value=VALUE), model_of(vocabulary, 2, value=gamma)
    taken = Initial(there, vocabulary).start(here, vocabulary)
    # Of the six outputs of each horizon the last two are the family's.
    assert taken.taken["objective value"] == taken.total["objective value"] * 4 // 6
    btyd = {
        "_target_": "constellation.objectives.value_btyd.ValueBtyd",
        "process": {"_target_": "constellation.objectives.purchase_processes.BgNbd"},
    }
    taken = Initial(there, vocabulary).start(model_of(vocabulary, 2, value=btyd), vocabulary)
    assert taken.taken["objective value"] == 0
    assert taken.other_kind == ["objective value (Value there, ValueBtyd here)"]
    shorter = (30, 60)
    store = tiny_store()
    queries = ask(store, np.arange(8), np.full(8, KNOWN_UNTIL // 2), shorter, KNOWN_UNTIL)
    words = Vocabulary.fit(store, queries, journeys=np.arange(8), until=KNOWN_UNTIL, num_bins=4)
    taken = Initial(there, vocabulary).start(model_of(words, 2, shorter, value=VALUE), words)
    assert taken.taken["objective value"] == taken.total["objective value"] // 2  # of 30 days; 60 are not 91
    assert not taken.other_shape


def test_another_width_of_the_readout_is_left(vocabulary: Vocabulary) -> None:
    there = model_of(vocabulary, 1, value=VALUE)
    config = described(value=VALUE) | {"readout": READOUT | {"width": 12}}
    here = build_model(config, vocabulary, HORIZONS_DAYS)
    taken = Initial(there, vocabulary).start(here, vocabulary)
    assert taken.taken["encoder"] == taken.total["encoder"]
    assert "readout.from_aggregates.weight" in taken.other_shape
    assert "left, for its shape is another: " in "\n".join(taken.lines())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"width": 16}, r"trained with encoder\.width=8 \(here 16\).*Write encoder\.width=8"),
        ({"layers": 2}, r"encoder\.layers=1 \(here 2\)"),
        ({"_target_": "constellation.encoders.bag.Bag"}, r"another encoder \(.*Gru\).*Choose encoder=gru"),
    ],
)
def test_another_encoder_is_refused(vocabulary: Vocabulary, change: dict[str, Any], match: str) -> None:
    there = model_of(vocabulary, 1, value=VALUE)
    with pytest.raises(InputError, match=match):
        check_encoder(ENCODER | change, ENCODER, there)


def test_dropout_and_a_default_written_out_are_no_other_encoder(vocabulary: Vocabulary) -> None:
    there = model_of(vocabulary, 1, value=VALUE)
    check_encoder({**ENCODER, "dropout": 0.4}, ENCODER, there)
    without = {"_target_": ENCODER["_target_"], "width": 8}
    check_encoder(without | {"layers": 2}, without, there)


def test_what_was_taken_whole_learns_slowly() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    made = Slowed(partial(torch.optim.SGD, lr=0.5), frozenset({1}), 0.1)(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones(2)
    made.step()
    assert [float(parameter[0].detach()) for parameter in parameters] == pytest.approx([-0.5, -0.05, -0.5])
    alone = Slowed(partial(torch.optim.SGD, lr=0.5), frozenset({0, 1, 2}), 0.1)(parameters)
    assert [group["lr"] for group in alone.param_groups] == pytest.approx([0.05])


@pytest.mark.parametrize("rate", [0.0, -1.0, 1.5])
def test_a_rate_lies_within_reason(vocabulary: Vocabulary, rate: float) -> None:
    with pytest.raises(InputError, match="init_rate must lie in"):
        Initial(model_of(vocabulary, 1, value=VALUE), vocabulary, rate)


def test_every_table_of_the_vocabulary_has_names(vocabulary: Vocabulary) -> None:
    """Tables that are as long as the vocabulary must not be taken by place: no axis of theirs may be without names."""
    other = shuffled(vocabulary)
    objectives = {"next_event": NEXT, "value": VALUE, "time_to_event": TIMES}
    first, second = model_of(vocabulary, 1, **objectives), model_of(other, 1, **objectives)
    larger = {name: [*values, "further", "and more"] for name, values in vocabulary.categories.items()}
    third = model_of(replace(vocabulary, categories=larger), 1, **objectives)
    named = named_axes(first, vocabulary)
    sizes = {name: parameter.shape for name, parameter in third.named_parameters()}
    for name, parameter in first.named_parameters():
        for axis, (size, longer) in enumerate(zip(parameter.shape, sizes[name], strict=True)):
            labels = named[name].axes[axis]
            assert size == longer or labels is not None, (name, axis)
            assert labels is None or len(labels) == len(set(labels)) == size, (name, axis)
    assert named_axes(second, other).keys() == named.keys()


# ---------------------------------------------------------------- in training

TUNED = described(value=VALUE)


def pretrained() -> Initial:
    """A model of other data: fewer products, other customers."""
    store = store_of(random_events(9, num_customers=20, num_events=200))
    splits = Splits(store, WINDOWS)
    words = Vocabulary.fit(
        store, splits.select_panel, journeys=splits.train_journeys, until=splits.select_until, windows_days=(2, 7)
    )
    return Initial(model_of(words, 3, WINDOWS.horizons_days, next_event=NEXT), words, 0.3)


def tune(folder: Path, initial: Initial | None, options: Any = OPTIONS) -> Study:
    def build(words: Vocabulary) -> JourneyModel:
        return build_model(TUNED, words, WINDOWS.horizons_days)

    splits = Splits(STORE, WINDOWS)
    return select_then_refit(
        splits, build, ADAM, options, folder, seed=0, report=lambda phase, row: None, initial=initial
    )


def test_both_phases_begin_at_the_initial_weights(tmp_path: Path) -> None:
    initial = pretrained()
    heard: list[Any] = []
    told = replace(initial, tell=heard.append)
    options = replace(OPTIONS, max_epochs=1, averaging=0.0, warmup_share=0.0)
    frozen = partial(torch.optim.SGD, lr=0.0)
    splits = Splits(STORE, WINDOWS)
    study = select_then_refit(
        splits,
        lambda words: build_model(TUNED, words, WINDOWS.horizons_days),
        frozen,
        options,
        tmp_path,
        seed=0,
        report=lambda phase, row: None,
        initial=told,
    )
    assert len(heard) == 2
    theirs = dict(initial.model.named_parameters())
    for fitted in (study.selected, study.refitted):
        mine = dict(fitted.model.named_parameters())
        assert torch.equal(mine["encoder.recurrent.weight_hh_l0"], theirs["encoder.recurrent.weight_hh_l0"])
        assert torch.equal(mine["readout.from_state.1.weight"], theirs["readout.from_state.1.weight"])


@pytest.mark.parametrize("step", [4, 8])
def test_a_fine_tuning_that_was_broken_off_goes_on_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    initial = pretrained()
    options = replace(OPTIONS, checkpoint_every_steps=1)
    whole = tune(tmp_path / "whole", initial, options)
    with monkeypatch.context() as patch:
        interrupt_at(step, patch)
        with pytest.raises(Interrupted):
            tune(tmp_path / "broken", initial, options)
    again = tune(tmp_path / "broken", initial, options)
    assert losses(again) == losses(whole)
    assert same(again, whole)
    fresh = tune(tmp_path / "fresh", None, options)
    assert not same(fresh, whole)


def test_attributes_keep_their_tables_in_another_order() -> None:
    """Two attributes of one size: by place they would change their tables."""
    events, people = random_events(1), random_attributes(0)
    people["tier"] = people["segment"].map({"gold": "one", "iron": "two"})
    from tests.helpers import built_store

    first = built_store(events, None, people[["customer_id", "segment", "tier"]])
    second = built_store(events, None, people[["customer_id", "tier", "segment"]])
    models, words = [], []
    for seed, store in ((1, first), (2, second)):
        splits = Splits(store, WINDOWS)
        words.append(
            Vocabulary.fit(
                store,
                splits.select_panel,
                journeys=splits.train_journeys,
                until=splits.select_until,
                windows_days=(2, 7),
            )
        )
        models.append(model_of(words[-1], seed, WINDOWS.horizons_days, value=VALUE))
    assert models[0].readout.attributes == ["segment", "tier"]
    assert models[1].readout.attributes == ["tier", "segment"]
    Initial(models[0], words[0]).start(models[1], words[1])
    tables = [[table.weight for table in model.readout.from_attributes] for model in models]
    assert torch.equal(tables[1][1], tables[0][0])
    assert torch.equal(tables[1][0], tables[0][1])
