"""Every objective in ``configs/objective`` keeps the contract; a new YAML is tested by standing in the folder."""

import importlib
import inspect
from pathlib import Path

import pytest
import torch
import yaml

import constellation.objectives
from constellation.objectives.base import Objective
from constellation.objectives.value_pooled import NUM_MEMBERS, ValuePooled
from tests.golden.tiny import HORIZONS_DAYS, replaced, tiny_batch, tiny_vocabulary

EVERY = sorted((Path(__file__).parents[2] / "configs" / "objective").glob("*.yaml"))
CONFIGS = [path for path in EVERY if path.stem != "engagement"]  # asks decisions, not cutoffs: see test_engagement.py
STATE_WIDTH, READOUT_WIDTH = 6, 10
LEVELS = [0.05, 0.25, 0.5, 0.75, 0.95]

objectives = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)


def instantiate(config):
    """Hydra's instantiate, in little: nested ``_target_`` first."""
    config = {key: instantiate(value) if isinstance(value, dict) else value for key, value in config.items()}
    if "_target_" not in config:
        return config
    module, name = config.pop("_target_").rsplit(".", 1)
    config.pop("_partial_", None)
    return lambda *args, **changes: getattr(importlib.import_module(module), name)(*args, **(config | changes))


def build(path, vocabulary, **changes):
    config = yaml.safe_load(path.read_text())
    nested = {k: instantiate(v)() for k, v in config.items() if isinstance(v, dict) and "_target_" in v}
    return instantiate({k: v for k, v in config.items() if k not in nested})(
        vocabulary, STATE_WIDTH, READOUT_WIDTH, HORIZONS_DAYS, **nested, **changes
    )


@pytest.fixture(scope="module")
def vocabulary():
    return tiny_vocabulary()


@pytest.fixture
def batch():
    return tiny_batch()


def loss_of(objective, *inputs):
    """With the same draws every time, for objectives that sample negatives."""
    torch.manual_seed(1)
    return objective.loss(*inputs)


def inputs(batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    states_ND = torch.randn(batch.num_events, STATE_WIDTH, generator=generator).requires_grad_()
    return states_ND, torch.randn(batch.num_queries, READOUT_WIDTH, generator=generator).requires_grad_()


def test_every_objective_has_a_yaml():
    folder = Path(constellation.objectives.__file__).parent
    found = set()
    for path in folder.glob("[a-z]*.py"):
        module = importlib.import_module(f"constellation.objectives.{path.stem}")
        for name, member in inspect.getmembers(module, inspect.isclass):
            if issubclass(member, Objective) and member is not Objective and member.__module__ == module.__name__:
                found.add(f"{module.__name__}.{name}")
    assert found == {yaml.safe_load(path.read_text())["_target_"] for path in EVERY}


@objectives
def test_yaml_lands_under_the_name_of_its_objective(path, vocabulary):
    name = build(path, vocabulary).name
    assert path.read_text().splitlines()[0] == f"# @package objective.{name}"
    assert path.stem.startswith(name)
    assert build(path, vocabulary, weight=0.25).weight == 0.25
    with pytest.raises(TypeError):
        build(path, vocabulary, no_such_parameter=1)


@objectives
def test_loss_is_a_finite_sum_over_targets(path, vocabulary, batch):
    torch.manual_seed(0)
    objective = build(path, vocabulary)
    states_ND, readout_QD = inputs(batch)
    loss = objective.loss(states_ND, readout_QD, batch)
    assert loss.total.shape == loss.count.shape == ()
    assert torch.isfinite(loss.total)
    assert loss.total > 0
    assert loss.count > 0
    assert loss.parts
    assert all(torch.isfinite(part) and not part.requires_grad for part in loss.parts.values())
    loss.total.backward()
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name
    assert readout_QD.grad.abs().sum() > 0


@objectives
def test_censored_answers_and_absent_events_are_not_read(path, vocabulary, batch):
    torch.manual_seed(0)
    objective = build(path, vocabulary)
    states_ND, readout_QD = inputs(batch)
    targets = batch.targets
    assert not targets.observed_QK.all()
    before = loss_of(objective, states_ND, readout_QD, batch)
    censored = ~targets.observed_QK
    targets.value_QK[censored] = float("nan")
    targets.purchases_QK[censored] = float("nan")
    lonely = targets.next_N < 0
    other = states_ND.detach().clone()
    other[lonely] = 1e3
    after = loss_of(objective, other, readout_QD, batch)
    assert after.count == before.count
    torch.testing.assert_close(after.total, before.total)


@objectives
def test_no_questions_no_loss(path, vocabulary, batch):
    from constellation.journeys.batch import Gatherer
    from tests.golden.tiny import tiny_store

    empty = Gatherer(tiny_store(), vocabulary).gather([2], 0, None)
    loss = build(path, vocabulary).loss(*inputs(empty), empty)
    assert loss.total == 0
    assert loss.count == 0
    assert loss.mean == 0


def rows_of(columns, rows):
    """A dataclass of columns [Q], at some rows."""
    return replaced(columns, **{name: column[rows] for name, column in vars(columns).items()})


@objectives
def test_the_sum_of_parts_is_the_whole(path, vocabulary):
    """Totals add over queries, so that ranks may be summed: asking half and half is asking all."""
    torch.manual_seed(0)
    objective = build(path, vocabulary).eval()
    batch = tiny_batch()
    states_ND, readout_QD = inputs(batch)
    whole = loss_of(objective, states_ND, readout_QD, batch)
    totals, counts = 0.0, 0
    for part, rows in enumerate((torch.arange(0, 20), torch.arange(20, batch.num_queries))):
        values_M, offsets = batch.targets.next_products
        basket = (
            values_M[offsets[rows[0]] : offsets[rows[-1] + 1]],
            offsets[rows[0] : rows[-1] + 2] - offsets[rows[0]],
        )
        answered = {
            name: getattr(batch.targets, name)[rows]
            for name in ("value_QK", "purchases_QK", "observed_QK", "next_type_Q")
        }
        answered["after"] = rows_of(batch.targets.after, rows)
        next_N = batch.targets.next_N if part == 0 else torch.full_like(batch.targets.next_N, -1)
        targets = replaced(batch.targets, **answered, next_products=basket, next_N=next_N)
        names = ("query_journey_Q", "cutoff_Q", "last_event_Q", "since_last_days_Q", "weekday_Q", "aggregates_QF")
        asked = replaced(
            batch,
            **{name: getattr(batch, name)[rows] for name in names},
            targets=targets,
            num_past_products=None,
            record=rows_of(batch.record, rows),
        )
        loss = loss_of(objective, states_ND, readout_QD[rows], asked)
        totals, counts = totals + loss.total, counts + loss.count
    assert counts == whole.count
    torch.testing.assert_close(totals, whole.total, rtol=1e-5, atol=1e-4)


@objectives
def test_predictions_are_named_finite_and_ordered(path, vocabulary, batch):
    torch.manual_seed(0)
    objective = build(path, vocabulary).eval()
    batch = replaced(batch, targets=None)  # as when scoring
    _, readout_QD = inputs(batch)
    answers = objective.predict(30 * readout_QD, batch, LEVELS)
    names = {"next_type_scores", "next_product_scores", "value_lifetime_expected", "p_alive", "wait_expected_days"}
    names |= {f"{what}_{days}d" for what in ("p_purchase", "p_active") for days in HORIZONS_DAYS}
    for days in HORIZONS_DAYS:
        names |= {
            f"{what}_{days}d_{part}" for what in ("value", "purchases") for part in ("expected", "p_zero", "quantiles")
        }
    assert answers
    assert set(answers) <= names
    for name, answer in answers.items():
        assert torch.isfinite(answer).all(), name
        assert len(answer) == batch.num_queries
        if name.endswith("_quantiles"):
            assert answer.shape[1] == len(LEVELS)
            assert (answer.diff(dim=1) >= 0).all(), name
            assert (answer >= 0).all()
            p_zero = answers[name.replace("quantiles", "p_zero")]
            # At a level of no more than P(zero) the quantile is zero, above it is not.
            levels = torch.tensor(LEVELS)
            # A pool is read off so many members of each part, and knows levels no finer.
            finest = 1 / NUM_MEMBERS if isinstance(objective, ValuePooled) else 1e-4
            clear = (levels - p_zero[:, None]).abs() > finest
            assert ((answer == 0) == (levels <= p_zero[:, None]))[clear].all(), name
        if name.endswith("_p_zero"):
            assert ((answer >= 0) & (answer <= 1)).all()
    if "next_product_scores" in answers:
        assert answers["next_product_scores"].shape == (batch.num_queries, len(vocabulary.products))
    short, long = HORIZONS_DAYS
    for what in {name.split("_")[0] for name in answers} & {"value", "purchases"}:
        assert (answers[f"{what}_{long}d_expected"] >= answers[f"{what}_{short}d_expected"]).all()
    if f"value_{short}d_p_zero" in answers:
        assert (answers[f"value_{long}d_p_zero"] <= answers[f"value_{short}d_p_zero"]).all()


@objectives
def test_answers_do_not_hang_on_the_company(path, vocabulary, batch):
    """The prediction for a query is the same whatever else is in the batch."""
    from constellation.journeys.batch import Gatherer
    from tests.golden.tiny import KNOWN_UNTIL, tiny_queries, tiny_store

    torch.manual_seed(0)
    objective = build(path, vocabulary).eval()
    _, readout_QD = inputs(batch)
    store = tiny_store()
    queries = tiny_queries(store)
    own = queries.journey_Q == 6
    alone = Gatherer(store, vocabulary).gather([6], KNOWN_UNTIL, queries.take(own))
    together = objective.predict(readout_QD, batch, LEVELS)
    for name, answer in objective.predict(readout_QD[torch.from_numpy(own)], alone, LEVELS).items():
        torch.testing.assert_close(answer, together[name][torch.from_numpy(own)], atol=1e-5, rtol=1e-5)
