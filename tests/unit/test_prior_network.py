"""The prior-fitted network's parts: features without units, counts, teaching that goes on bit for bit, its file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from constellation.distributions.rounded_log_normals import RoundedLogNormals
from constellation.errors import InputError
from constellation.prior import forecast as forecasting
from constellation.prior import weights as files
from constellation.prior.features import course, describe, units
from constellation.prior.forecast import context_of, forecast
from constellation.prior.histories import Histories
from constellation.prior.network import PriorNetwork
from constellation.prior.teaching import Teacher, Teaching, drawn, lesson, loss, population_of
from constellation.prior.validation import crps_of_pmf, inside, score_world, validate
from constellation.worlds.prior.hyperparameters import FAMILIES, draw
from constellation.worlds.prior.populations import simulate

SMALL = {"width": 8, "context": 6, "hidden": 10}
HAND = Histories(
    # Three customers: days 10, 4 and 1 ago; day 6 ago; never bought, known for 8 days.
    start_C=np.array([0, 3, 4, 4]),
    day_P=np.array([10.0, 4.0, 1.0, 6.0]),
    money_P=np.array([5.0, 10.0, 20.0, 0.0]),
    age_C=np.array([10.0, 6.0, 8.0]),
)


def some(seed: int = 5) -> Histories:
    return population_of(drawn(1, [seed], (150, 150)))


@pytest.fixture(scope="module")
def untaught() -> PriorNetwork:
    """Random weights everywhere, so that every input matters."""
    torch.manual_seed(1)
    network = PriorNetwork(**SMALL)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network.eval()


def test_units_by_hand():
    found = units(HAND, np.zeros(3, dtype=np.int64), np.array([5.0]))
    assert found.window_W[0] == 10.0 and found.money_W[0] == 10.0
    # Two repeat days in (10 + 6 + 8) / 10 windows, with one of each added.
    assert found.rate_W[0] == pytest.approx(3 / 3.4)


def test_anchors_and_spend_by_hand():
    world_C = np.zeros(3, dtype=np.int64)
    found = describe(HAND, world_C, units(HAND, world_C, np.array([5.0])))
    prior_windows = 3.4 / 3
    expected = [0.5 * 3 / (prior_windows + 1.0), 0.5 / (prior_windows + 0.6), 0.5 / (prior_windows + 0.8)]
    np.testing.assert_allclose(np.exp(found.anchor_C), expected, rtol=1e-6)
    # Logs of 0.5, 1 and 2 medians sum to 0; nothing paid counts as a fiftieth of the median.
    np.testing.assert_allclose(found.spend_C, [0.0, np.log(0.02) / 2, 0.0], atol=1e-6)
    features = found.features_CF
    np.testing.assert_array_equal(features[:, 0], [0, 0, 1])  # never bought
    np.testing.assert_array_equal(features[:, 1], [1, 0, 0])  # came back
    np.testing.assert_allclose(features[:, 2], np.log1p([2.0, 0, 0]), rtol=1e-6)
    np.testing.assert_allclose(features[:, 6], [0.1, 0.6, 0.8], rtol=1e-6)  # since the last, in windows


def test_nobody_paid_or_came_back():
    flat = Histories(np.array([0, 1, 2]), np.array([3.0, 0.0]), np.zeros(2), np.array([3.0, 0.0]))
    world_C = np.zeros(2, dtype=np.int64)
    measured = units(flat, world_C, np.array([7.0]))
    assert np.isnan(measured.money_W[0])
    assert np.isfinite(describe(flat, world_C, measured).features_CF).all()
    assert np.isfinite(course(flat, world_C, measured)).all()
    today = Histories(np.array([0, 1]), np.array([0.0]), np.ones(1), np.array([0.0]))
    assert np.isfinite(describe(today, world_C[:1], units(today, world_C[:1], np.array([7.0]))).features_CF).all()


@pytest.mark.parametrize(("time", "money"), [(7.0, 1.0), (24.0, 100.0), (1 / 7, 0.01)])
def test_units_of_time_and_money_do_not_matter(untaught, time, money):
    population = some()
    horizon = 40.0
    scaled = Histories(population.start_C, population.day_P * time, population.money_P * money, population.age_C * time)
    context, other = context_of(untaught, population, horizon), context_of(untaught, scaled, horizon * time)
    assert other.money == pytest.approx(context.money * money)
    said, again = forecast(untaught, population, context), forecast(untaught, scaled, other)
    torch.testing.assert_close(said.counts.mean(), again.counts.mean(), rtol=2e-4, atol=1e-5)
    torch.testing.assert_close(said.money.mean(), again.money.mean(), rtol=2e-4, atol=1e-5)
    torch.testing.assert_close(said.log_shock_W2, again.log_shock_W2, rtol=2e-4, atol=1e-5)


def test_the_order_of_customers_and_who_is_asked_beside_do_not_matter(untaught, monkeypatch):
    population = some()
    rows = np.random.default_rng(0).permutation(len(population))
    shuffled = population.take(rows)
    context, other = context_of(untaught, population, 30.0), context_of(untaught, shuffled, 30.0)
    torch.testing.assert_close(context.context_WD, other.context_WD, rtol=1e-5, atol=1e-6)
    said, again = forecast(untaught, population, context), forecast(untaught, shuffled, other)
    torch.testing.assert_close(said.counts.mean()[rows], again.counts.mean(), rtol=1e-4, atol=1e-6)
    few = forecast(untaught, population.take(np.array([7, 3])), context)
    torch.testing.assert_close(few.counts.mean(), said.counts.mean()[[7, 3]], rtol=1e-5, atol=1e-7)
    monkeypatch.setattr(forecasting, "ROWS_AT_ONCE", 13)
    parts = context_of(untaught, population, 30.0)
    torch.testing.assert_close(parts.context_WD, context.context_WD, rtol=1e-5, atol=1e-6)


def test_worlds_taught_together_do_not_touch(untaught):
    """A lesson of three worlds says of each what it says of it alone."""
    together = drawn(3, [8], (30, 60))
    contexts, all_said = [], lesson(together)
    sums_WD = untaught.sums(all_said.features_CF, all_said.world_C, 3)
    with torch.no_grad():
        whole = untaught.context(sums_WD, all_said.size_W, all_said.course_WK)
    for number in range(3):
        rows = np.flatnonzero(together.world_C == number)
        alone = population_of(together).take(rows)
        contexts.append(context_of(untaught, alone, float(together.horizon_days_W[number])).context_WD)
    torch.testing.assert_close(whole, torch.cat(contexts), rtol=1e-4, atol=1e-5)


def counts() -> RoundedLogNormals:
    return RoundedLogNormals(
        torch.tensor([0.5, -2.0, 6.0], dtype=torch.float64),
        torch.tensor([[0.0, 1.0], [0.3, 0.0], [0.0, 0.0]], dtype=torch.float64),
        torch.tensor([[0.0, 1.0], [-0.5, 0.5], [3.0, 4.2]], dtype=torch.float64),
        torch.tensor([[0.5, 0.8], [0.3, 0.6], [0.1, 0.05]], dtype=torch.float64),
    )


def test_counts_are_one_distribution_told_in_many_ways():
    family, number = counts(), torch.arange(4000)
    pmf = family.pmf(4000)
    torch.testing.assert_close(pmf.sum(1), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-7)
    torch.testing.assert_close(family.p_zero(), pmf[:, 0])
    torch.testing.assert_close(family.mean(), pmf @ number.double(), rtol=2e-3, atol=1e-6)
    for count in (0, 1, 2, 7, 20, 66):
        likelihood = family.log_likelihood(torch.full((3,), count)).exp()
        torch.testing.assert_close(likelihood, pmf[:, count], rtol=1e-6, atol=1e-12)
    levels = np.array([0.2, 0.5, 0.9, 0.99])
    expected = torch.searchsorted(pmf.cumsum(1), torch.as_tensor(levels).expand(3, -1).contiguous())
    torch.testing.assert_close(family.quantile(levels), expected.double())
    assert family.cdf(torch.tensor([-1.0, 0.0, 2.5]))[0] == 0
    drawn_SQ = family.sample(40_000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn_SQ.mean(0), family.mean(), rtol=0.03, atol=0)


def test_counts_far_out_keep_their_gradient():
    mu = torch.zeros(2, 1, requires_grad=True)
    family = RoundedLogNormals(torch.zeros(2), torch.zeros(2, 1), mu, torch.full((2, 1), 0.05))
    family.log_likelihood(torch.tensor([500, 1])).sum().backward()
    assert mu.grad is not None and torch.isfinite(mu.grad).all() and mu.grad[0] > 0


def test_crps_by_hand():
    # y = 1 under (1/2, 1/4, 1/4): (1/2)^2 + (3/4 - 1)^2; y = 5 lies three beyond the table.
    pmf = np.array([[0.5, 0.25, 0.25]] * 2)
    np.testing.assert_allclose(crps_of_pmf(pmf, np.array([1, 5])), [0.25 + 0.0625, 0.25 + 0.5625 + 1 + 2])


def test_a_value_lies_in_its_interval_or_not():
    edges = torch.tensor([0.04, 0.06, 0.5, 0.94, 0.96])
    assert inside(edges, edges).tolist() == [False, True, True, True, False]
    # The place within a mass is drawn: a certain value lies inside nine times of ten, the lowest tenth every second.
    none, half = torch.zeros(20_000), torch.full((20_000,), 0.5)
    assert inside(none, 2 * half).mean() == pytest.approx(0.9, abs=0.01)
    assert inside(none, half).mean() == pytest.approx(0.9, abs=0.01)
    assert inside(none, 0.2 * half).mean() == pytest.approx(0.5, abs=0.015)


def test_teaching_goes_on_bit_for_bit(tmp_path: Path):
    teaching = Teaching(steps=6, worlds_per_step=3, customers=(30, 60))
    heard: list[int] = []
    whole = Teacher(teaching, SMALL)
    assert whole.teach(max_seconds=60, report=lambda step, parts: heard.append(step), every=3)
    assert heard == [3, 6]
    first = Teacher(teaching, SMALL)
    assert not first.teach(max_seconds=0.0, report=lambda step, parts: None, every=3)  # no time, no step

    def killed(step: int, parts: dict[str, float]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.teach(max_seconds=60, report=killed, every=3)
    assert first.step == 3
    first.save(tmp_path / "last.pt")
    second = Teacher(teaching, SMALL)
    second.load(tmp_path / "last.pt")
    assert second.teach(max_seconds=60, report=lambda step, parts: None, every=3)
    for name, value in whole.averaged.state_dict().items():
        torch.testing.assert_close(second.averaged.state_dict()[name], value, rtol=0, atol=0, msg=name)
    with pytest.raises(InputError, match="begun with"):
        Teacher(Teaching(steps=7), SMALL).load(tmp_path / "last.pt")
    with pytest.raises(InputError, match="begun with"):
        Teacher(teaching, {**SMALL, "width": 9}).load(tmp_path / "last.pt")


def test_stopping_early_changes_no_step_before(tmp_path: Path):
    def taught(until: int | None) -> Teacher:
        teacher = Teacher(Teaching(steps=6, until=until, worlds_per_step=2, customers=(30, 60)), SMALL)
        assert teacher.teach(max_seconds=60, report=lambda step, parts: None, every=10)
        return teacher

    short, whole = taught(4), taught(None)
    assert (short.step, whole.step) == (4, 6)
    short.save(tmp_path / "last.pt")
    on = Teacher(Teaching(steps=6, worlds_per_step=2, customers=(30, 60)), SMALL)
    on.load(tmp_path / "last.pt")
    assert on.teach(max_seconds=60, report=lambda step, parts: None, every=10)
    for name, value in whole.averaged.state_dict().items():
        torch.testing.assert_close(on.averaged.state_dict()[name], value, rtol=0, atol=0, msg=name)
    with pytest.raises(InputError, match="until"):
        Teaching(steps=6, until=7)


def test_the_wide_prior_is_taught_by_the_same_steps(tmp_path: Path):
    teaching = Teaching(steps=2, worlds_per_step=3, customers=(30, 60), wide=True)
    wide = Teacher(teaching, SMALL)
    assert wide.teach(max_seconds=60, report=lambda step, parts: None, every=10)
    wide.save(tmp_path / "last.pt")
    with pytest.raises(InputError, match="begun with"):
        Teacher(Teaching(steps=2, worlds_per_step=3, customers=(30, 60)), SMALL).load(tmp_path / "last.pt")
    same, other = (drawn(3, [0, 0], (30, 60), wide=chosen) for chosen in (True, False))
    assert len(same.day_P) != len(other.day_P)


def test_a_few_steps_teach_something():
    teacher = Teacher(Teaching(steps=40, worlds_per_step=4, customers=(60, 120), lr=3e-3), SMALL)
    worlds = lesson(drawn(12, [99], (60, 120)))
    before = loss(teacher.network, worlds)[1]["days"]
    teacher.teach(max_seconds=60, report=lambda step, parts: None, every=100)
    assert loss(teacher.network, worlds)[1]["days"] < before - 0.005


def test_a_file_comes_back_as_it_was(untaught, tmp_path: Path):
    path = tmp_path / "weights.safetensors"
    files.save(untaught, path, {"steps": 3})
    assert files.made(str(path)) == {"steps": 3}
    for name, value in files.load(str(path)).state_dict().items():
        torch.testing.assert_close(value, untaught.state_dict()[name], rtol=0, atol=0)
    with pytest.raises(InputError, match="No weights in"):
        files.load(str(tmp_path / "missing"))
    (tmp_path / "junk").write_bytes(b"junk")
    with pytest.raises(InputError, match="no safetensors file"):
        files.load(str(tmp_path / "junk"))


def test_the_shipped_file_is_small_and_says_how_it_was_made():
    assert files.SHIPPED.stat().st_size < 2_000_000
    made = files.made()
    assert made["teaching"]["steps"] > 1000 and made["seconds"] > 0
    assert sum(parameter.numel() for parameter in files.load().parameters()) > 10_000


def test_the_file_is_read_at_the_first_answer_only():
    code = (
        "import sys; import constellation.baselines.prior_fitted as room; room.PriorFitted();"
        "assert not any(name.startswith('safetensors') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_shipped_network_is_near_the_truth_where_the_truth_is_known():
    """A fresh BG/NBD world: within 3 % of the CRPS of its true law, and far better than the population's own counts."""
    rng = np.random.default_rng(20_261)
    worlds = draw(1, rng, family="bgnbd").set(
        num_customers=2000, window_days=280, horizon_days=280, rate=3.0, rate_shape=0.8, leave_mean=0.2,
        leave_concentration=2.0, entry=0, entry_share=0.3,
    )  # fmt: skip
    populations = simulate(worlds, rng)
    score = score_world(files.load(), worlds, populations)
    assert score.crps["prior_fitted"] < 1.03 * score.crps["truth"]
    next_C = populations.next_days_C
    climatology = np.bincount(next_C) / len(next_C)
    assert score.crps["prior_fitted"] < 0.85 * crps_of_pmf(np.tile(climatology, (len(next_C), 1)), next_C).mean()
    assert abs(score.bias["prior_fitted"]) < 0.15


def test_validation_covers_every_family(untaught):
    scores = validate(untaught, worlds_per_family=1, customers=(200, 250), wide=True)
    assert len({score.family for score in scores}) == len(scores) == len(FAMILIES)
    assert all(np.isfinite(list(score.crps.values())).all() for score in scores)
