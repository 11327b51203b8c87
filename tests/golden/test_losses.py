"""Losses of every encoder with every objective on a fixed batch: a refactoring must not move them.

After a change of behaviour that is meant, write them anew and say why in the commit::

    PYTHONPATH=src python -m tests.golden.test_losses

Parameters are drawn from numpy, so the figures do not hang on torch's random numbers.
"""

import json
from pathlib import Path

import pytest

from constellation.encoders.bag import Bag
from constellation.encoders.gru import Gru
from constellation.encoders.readout import Readout
from constellation.encoders.transformer import Transformer
from constellation.model import JourneyModel
from constellation.objectives.families import Quantiles, Ziln
from constellation.objectives.next_event import NextEvent
from constellation.objectives.value import Value
from tests.golden.tiny import HORIZONS_DAYS, steady_parameters, tiny_batch, tiny_vocabulary

FILE = Path(__file__).parent / "losses.json"
ENCODERS = {"bag": Bag, "gru": Gru, "transformer": Transformer}
FAMILIES = {"ziln": Ziln, "quantiles": Quantiles}


def losses_of(encoder_name: str, family_name: str) -> dict[str, float]:
    vocabulary, batch = tiny_vocabulary(), tiny_batch()
    encoder = ENCODERS[encoder_name](vocabulary, width=8, layers=2)
    readout = Readout(vocabulary, encoder.width, width=12)
    sizes = (vocabulary, encoder.width, readout.width, HORIZONS_DAYS)
    objectives = {"value": Value(*sizes, family=FAMILIES[family_name]()), "next_event": NextEvent(*sizes, width=4)}
    model = steady_parameters(JourneyModel(encoder, readout, objectives))
    found = {}
    for name, loss in model.loss(batch).items():
        found |= {f"{name}/{part}": value.item() for part, value in loss.parts.items()}
        found[f"{name}/mean"] = loss.mean.item()
    return found


CASES = [(encoder, family) for encoder in ENCODERS for family in FAMILIES]


@pytest.mark.parametrize(("encoder", "family"), CASES)
def test_losses_are_the_recorded_ones(encoder, family):
    recorded = json.loads(FILE.read_text())[f"{encoder} {family}"]
    assert losses_of(encoder, family) == pytest.approx(recorded, rel=1e-5, abs=1e-6)


def test_nothing_stale_is_recorded():
    assert set(json.loads(FILE.read_text())) == {f"{encoder} {family}" for encoder, family in CASES}


if __name__ == "__main__":
    table = {f"{encoder} {family}": losses_of(encoder, family) for encoder, family in CASES}
    FILE.write_text(json.dumps(table, indent=2) + "\n")
