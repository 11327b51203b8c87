"""Which part of the pooled value reads what the encoder says of a customer, and that it travels as the rest does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from constellation.building import build_model
from constellation.explanation import explain
from constellation.journeys.batch import Gatherer
from constellation.journeys.windows import ask
from constellation.model import JourneyModel
from tests.golden.tiny import HORIZONS_DAYS, KNOWN_UNTIL, steady_parameters, tiny_batch, tiny_store, tiny_vocabulary

READOUT = {"_target_": "constellation.encoders.readout.Readout", "width": 8}
BESIDE = ("use_aggregates", "use_elapsed", "use_calendar", "use_attributes")
HEADS, PROCESS = 1.0, 0.0


def model_of(readout: dict[str, Any] = READOUT, **settings: Any) -> JourneyModel:
    config = {
        "encoder": {"_target_": "constellation.encoders.gru.Gru", "width": 8, "layers": 1, "dropout": 0.0},
        "readout": readout,
        "objective": {
            "value": {
                "_target_": "constellation.objectives.value_pooled.ValuePooled",
                "family": {"_target_": "constellation.objectives.families.Quantiles", "num_levels": 5},
                "process": {"_target_": "constellation.objectives.purchase_processes.ParetoNbd"},
                "num_paths": 64,
                **settings,
            }
        },
    }
    return steady_parameters(build_model(config, tiny_vocabulary(), HORIZONS_DAYS))


def reach(model: JourneyModel, share: float) -> float:
    """How far the encoder's weights move the expected money, as a sum of absolute gradients."""
    model.objectives["value"].only(share)
    model.zero_grad()
    model.predict(tiny_batch(), [0.5])["value_91d_expected"].sum().backward()
    return sum(float(part.grad.abs().sum()) for part in model.encoder.parameters() if part.grad is not None)


@pytest.mark.parametrize("heads", [True, False])
@pytest.mark.parametrize("process", [True, False])
def test_each_part_reads_the_states_or_does_not(heads: bool, process: bool) -> None:
    model = model_of(heads_read_state=heads, process_read_state=process)
    assert (reach(model, HEADS) > 0) == heads
    assert (reach(model, PROCESS) > 0) == process


def test_without_states_it_is_the_readout_that_never_had_any() -> None:
    """Same weights, same answers, and what is left out cannot say anything."""
    model = model_of(heads_read_state=False, process_read_state=False)
    bare = model_of(READOUT | {"use_state": False})
    weights = {name: part for name, part in model.state_dict().items() if name in bare.state_dict()}
    bare.load_state_dict(weights)
    with torch.no_grad():
        answers, wanted = (each.predict(tiny_batch(), [0.25, 0.75]) for each in (model, bare))
    for name, expected in wanted.items():
        torch.testing.assert_close(answers[name], expected)


def test_the_weights_are_the_same_whoever_reads_what() -> None:
    """A run or bundle of before loads, and answers as it did unless it is told otherwise."""
    before, after = model_of(), model_of(heads_read_state=False)
    assert list(before.state_dict()) == list(after.state_dict())
    assert reach(before, HEADS) > 0


@pytest.mark.parametrize(
    "readout",
    [
        {"_target_": "constellation.encoders.readout.StateReadout"},
        READOUT | dict.fromkeys(BESIDE, False),
        READOUT | dict.fromkeys(BESIDE, False) | {"use_calendar": True},
    ],
    ids=["state", "nothing beside", "weekday beside"],
)
def test_a_readout_of_states_alone_is_read_by_all(readout: dict[str, Any]) -> None:
    assert reach(model_of(readout, heads_read_state=False, process_read_state=False), HEADS) > 0


def test_the_loss_of_a_part_stays_away_from_the_encoder() -> None:
    for settings, reaches in (({}, True), ({"process_weight": 0.0}, False)):
        model = model_of(heads_read_state=False, **settings).train()
        model.loss(tiny_batch())["value"].mean.backward()
        gradients = [part.grad.abs().sum() for part in model.encoder.parameters() if part.grad is not None]
        assert bool(gradients and sum(gradients) > 0) == reaches
        assert all(part.grad is not None for part in model.readout.from_aggregates.parameters())


@pytest.mark.parametrize("answer", ["value_91d", "purchases_30d"])
def test_explanations_sum_where_a_part_reads_no_states(answer: str) -> None:
    store, model = tiny_store(), model_of(heads_read_state=False)
    everybody = np.arange(store.num_customers)
    queries = ask(store, everybody, np.full(len(everybody), KNOWN_UNTIL), HORIZONS_DAYS, KNOWN_UNTIL)
    found = explain(model, Gatherer(store, tiny_vocabulary(store)), queries, answer)
    customers = found.customers
    assert customers["is_complete"].all()
    sums = found.contributions.groupby("customer_id")["contribution"].sum()[customers["customer_id"]].to_numpy()
    span = float(np.abs(customers["prediction"] - found.baseline).max())
    np.testing.assert_allclose(found.baseline + sums, customers["prediction"], atol=0.01 * span)
    attributes = found.contributions.loc[found.contributions["part"] == "attribute", "contribution"]
    assert attributes.abs().sum() > 0
