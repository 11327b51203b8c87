"""The model composes what it is handed."""

import pytest
import torch

from constellation.encoders.gru import Gru
from constellation.encoders.readout import Readout
from constellation.model import JourneyModel
from constellation.objectives.families import Ziln
from constellation.objectives.next_event import NextEvent
from constellation.objectives.value import Value
from tests.golden.tiny import HORIZONS_DAYS, tiny_batch, tiny_vocabulary


def small_model(vocabulary, **objectives):
    encoder = Gru(vocabulary, width=8, layers=1)
    readout = Readout(vocabulary, encoder.width, width=12)
    sizes = (vocabulary, encoder.width, readout.width, HORIZONS_DAYS)
    chosen = objectives or {"value": Value(*sizes, family=Ziln()), "next_event": NextEvent(*sizes, width=4)}
    return JourneyModel(encoder, readout, chosen)


def test_forward_loss_and_predict_agree_with_the_parts():
    torch.manual_seed(0)
    batch, model = tiny_batch(), small_model(tiny_vocabulary()).eval()
    states_ND, readout_QD = model(batch)
    assert states_ND.shape == (batch.num_events, 8)
    assert readout_QD.shape == (batch.num_queries, 12)
    losses = model.loss(batch)
    assert list(losses) == ["value", "next_event"]
    for name, loss in losses.items():
        torch.testing.assert_close(loss.total, model.objectives[name].loss(states_ND, readout_QD, batch).total)
    answers = model.predict(batch, [0.5])
    own = [model.objectives[name].predict(readout_QD, batch, [0.5]) for name in losses]
    assert set(answers) == set(own[0]) | set(own[1])
    torch.testing.assert_close(answers["value_91d_expected"], own[0]["value_91d_expected"])


def test_two_objectives_cannot_answer_the_same_question():
    vocabulary = tiny_vocabulary()
    sizes = (vocabulary, 8, 12, HORIZONS_DAYS)
    model = small_model(vocabulary, a=Value(*sizes, family=Ziln()), b=Value(*sizes, family=Ziln()))
    with pytest.raises(AssertionError, match="same question"):
        model.predict(tiny_batch(), [0.5])


def test_learns_who_spends():
    """Forty steps on eight customers: the joint loss falls well below its start, in every part."""
    torch.manual_seed(0)
    vocabulary, batch = tiny_vocabulary(), tiny_batch()
    model = small_model(vocabulary)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    history = []
    for _ in range(40):
        losses = model.loss(batch)
        total = sum(model.objectives[name].weight * loss.mean for name, loss in losses.items())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        parts = [(f"{name}/{part}", value) for name, loss in losses.items() for part, value in loss.parts.items()]
        history.append({part: value.item() for part, value in parts})
    for part, value in history[-1].items():
        assert value < 0.9 * history[0][part], part


def test_the_state_dict_holds_no_derived_buffers():
    """Scalers come from the vocabulary: saved are what is learned, what the head starts from, and the season."""
    model = small_model(tiny_vocabulary())
    learned = {name for name, _ in model.named_parameters()}
    rest = set(model.state_dict()) - learned
    season = {f"season.{name}" for name, _ in model.season.named_buffers()}
    assert rest == {f"objectives.value.{name}" for name in ("location_K", "scale_K", "mean_K")} | season
