"""Every encoder in ``configs/encoder`` keeps the contract; a new YAML is tested by standing in the folder."""

import importlib
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import constellation.encoders
from constellation.encoders.base import Encoder
from constellation.journeys.windows import Queries
from tests.golden.tiny import gather, tiny_batch, tiny_queries, tiny_store, tiny_vocabulary

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "encoder").glob("*.yaml"))
SMALL = {"width": 16}


@pytest.fixture(scope="module")
def vocabulary():
    return tiny_vocabulary()


@pytest.fixture(scope="module")
def batch():
    return tiny_batch()


def build(path, vocabulary, **changes):
    """The object of a YAML as the command line would make it, without Hydra."""
    config = yaml.safe_load(path.read_text())
    module, name = config.pop("_target_").rsplit(".", 1)
    config.pop("_partial_", None)
    return getattr(importlib.import_module(module), name)(vocabulary, **(config | changes))


encoders = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)


def test_every_encoder_has_a_yaml():
    folder = Path(constellation.encoders.__file__).parent
    found = set()
    for path in folder.glob("*.py"):
        module = importlib.import_module(
            f"constellation.encoders.{path.stem}" if path.stem != "__init__" else "constellation.encoders"
        )
        for name, member in inspect.getmembers(module, inspect.isclass):
            if issubclass(member, Encoder) and member is not Encoder and member.__module__ == module.__name__:
                found.add(f"{module.__name__}.{name}")
    targets = {yaml.safe_load(path.read_text())["_target_"] for path in CONFIGS}
    assert found == targets


@encoders
def test_yaml_names_real_parameters_and_width_is_asked(path, vocabulary, batch):
    encoder = build(path, vocabulary)
    assert encoder.width == yaml.safe_load(path.read_text())["width"]
    states_ND = encoder(batch)
    assert states_ND.shape == (batch.num_events, encoder.width)
    assert states_ND.dtype == torch.float32
    assert torch.isfinite(states_ND).all()
    with pytest.raises(TypeError):
        build(path, vocabulary, no_such_size=1)


@encoders
def test_causal(path, vocabulary):
    """Everything after an event may change; its state, and those before it, do not."""
    encoder = build(path, vocabulary, **SMALL).eval()
    batch = tiny_batch()
    before = encoder(batch).detach()
    cut = 4
    later = batch.position_N > cut
    generator = torch.Generator().manual_seed(1)
    for codes in batch.categorical.values():
        codes[later] = torch.randint(0, 3, (int(later.sum()),), generator=generator)
    for name, bins in batch.numeric_bin.items():
        bins[later] = torch.randint(0, vocabulary.num_bins(name), (int(later.sum()),), generator=generator)
        batch.numeric[name][later] = 123.0
    values_M, offsets = batch.lists["product"]
    of_later_M = later[torch.repeat_interleave(offsets.diff())]
    values_M[of_later_M] = (values_M[of_later_M] + 1) % vocabulary.num_codes("product")
    batch.time_N[later] += 86_400_000_000 * 7
    batch.elapsed_days_N[later] += 7
    batch.weekday_N[later] = (batch.weekday_N[later] + 1) % 7
    after = encoder(batch).detach()
    torch.testing.assert_close(after[~later], before[~later], atol=1e-6, rtol=0)
    assert (after[later] - before[later]).abs().max() > 1e-3


@encoders
def test_the_past_is_seen(path, vocabulary):
    """The state of the last event changes when the first event of its journey does."""
    encoder = build(path, vocabulary, **SMALL).eval()
    batch = tiny_batch()
    before = encoder(batch).detach()
    first, last = int(batch.offsets_B[6]), int(batch.offsets_B[7]) - 1
    batch.categorical["event_type"][first] = (batch.categorical["event_type"][first] - 1) % 3 + 2
    after = encoder(batch).detach()
    assert (after[last] - before[last]).abs().max() > 1e-6
    others = batch.journey_N != 6
    torch.testing.assert_close(after[others], before[others], atol=1e-6, rtol=0)


@encoders
def test_order_of_journeys_does_not_matter(path, vocabulary):
    store = tiny_store()
    encoder = build(path, vocabulary, **SMALL).eval()
    none = tiny_queries(store)
    none = none.take(np.zeros(len(none), dtype=bool))
    assert isinstance(none, Queries)
    order = np.array([6, 2, 0, 7, 3, 1, 5, 4])
    straight = encoder(gather(store, vocabulary, np.arange(8), none))
    shuffled_batch = gather(store, vocabulary, order, none)
    shuffled = encoder(shuffled_batch)
    starts = torch.from_numpy(store.first_event_C[order].astype(np.int64))
    rows = starts[shuffled_batch.journey_N] + shuffled_batch.position_N
    torch.testing.assert_close(shuffled, straight[rows], atol=1e-5, rtol=1e-5)


@encoders
def test_gradient_reaches_every_parameter(path, vocabulary, batch):
    torch.manual_seed(0)
    encoder = build(path, vocabulary, **SMALL)
    (encoder(batch) * torch.randn(batch.num_events, SMALL["width"])).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
        assert torch.isfinite(parameter.grad).all(), name


@encoders
def test_deterministic_on_cpu(path, vocabulary, batch):
    outcomes = []
    for _ in range(2):
        torch.manual_seed(3)
        encoder = build(path, vocabulary, **SMALL)
        states_ND = encoder(batch)
        states_ND.square().sum().backward()
        outcomes.append([states_ND, *(parameter.grad for parameter in encoder.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))
