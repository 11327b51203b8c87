"""Heads and a purchase process in one objective: who answers what, and what the validation cutoff decides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_model, save_file, save_model

from constellation.errors import InputError
from constellation.journeys.windows import ask
from constellation.metrics import LEVELS as HUNDRED
from constellation.objectives.count_families import CountMixture
from constellation.objectives.families import Quantiles
from constellation.objectives.purchase_processes import ParetoNbd
from constellation.objectives.value_pooled import ValuePooled
from tests.golden.tiny import HORIZONS_DAYS, KNOWN_UNTIL, tiny_batch, tiny_store, tiny_vocabulary

WIDTH = 8
LEVELS = torch.tensor(np.array(HUNDRED))


@pytest.fixture
def pooled() -> ValuePooled:
    torch.manual_seed(0)
    made = ValuePooled(tiny_vocabulary(), 3, WIDTH, HORIZONS_DAYS, family=Quantiles(num_levels=5), process=ParetoNbd())
    with torch.no_grad():  # a head that says something of its own about everybody
        made.heads.head.weight.normal_(std=0.3)
    return made.requires_grad_(False)


def asked(seed: int = 0):
    batch = tiny_batch()
    return batch, torch.randn(batch.num_queries, WIDTH, generator=torch.Generator().manual_seed(seed))


def test_alone_each_part_answers_as_it_would(pooled: ValuePooled) -> None:
    batch, readout_QD = asked()
    members = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    for share, part in ((1.0, pooled.heads), (0.0, pooled.process)):
        pooled.only(share)
        answers, wanted = pooled.predict(readout_QD, batch, members), part.predict(readout_QD, batch, members)
        for name, expected in wanted.items():
            if not name.endswith(f"_{HORIZONS_DAYS[1]}d_quantiles"):  # of random heads they fall, of a pool they do not
                torch.testing.assert_close(answers[name], expected)


def test_expected_values_have_a_share_of_their_own(pooled: ValuePooled) -> None:
    batch, readout_QD = asked()
    heads, process = (part.predict(readout_QD, batch, LEVELS) for part in (pooled.heads, pooled.process))
    pooled.share_T.copy_(torch.tensor([0.25, 0.5]))
    pooled.mean_share_T.copy_(torch.tensor([0.75, 0.125]))
    answers = pooled.predict(readout_QD, batch, LEVELS)
    for kind, share, mean_share in (("value", 0.25, 0.75), ("purchases", 0.5, 0.125)):
        for part, wanted in (("p_zero", share), ("expected", mean_share)):
            name = f"{kind}_{HORIZONS_DAYS[0]}d_{part}"
            torch.testing.assert_close(answers[name], wanted * heads[name] + (1 - wanted) * process[name])


def test_expected_values_are_averaged_and_zeros_agree(pooled: ValuePooled) -> None:
    batch, readout_QD = asked()
    heads, process = (part.predict(readout_QD, batch, LEVELS) for part in (pooled.heads, pooled.process))
    pooled.only(0.25)
    answers = pooled.predict(readout_QD, batch, LEVELS)
    for kind in ("value", "purchases"):
        name = f"{kind}_{HORIZONS_DAYS[0]}d"
        for part in ("expected", "p_zero"):
            torch.testing.assert_close(
                answers[f"{name}_{part}"], 0.25 * heads[f"{name}_{part}"] + 0.75 * process[f"{name}_{part}"]
            )
        share_zero = (answers[f"{name}_quantiles"] <= 0).double().mean(dim=1)
        assert (share_zero - answers[f"{name}_p_zero"]).abs().max() < 0.02
    counts = answers[f"purchases_{HORIZONS_DAYS[1]}d_quantiles"]
    assert torch.equal(counts, counts.round())


def test_longer_horizons_never_fall_below_shorter_ones(pooled: ValuePooled) -> None:
    batch, readout_QD = asked()
    pooled.only(1.0)
    pooled.teach(HORIZONS_DAYS[:1])  # the heads answer the shorter one, the process the longer one
    answers = pooled.predict(readout_QD, batch, LEVELS)
    short, long = (f"value_{days}d" for days in HORIZONS_DAYS)
    assert (answers[f"{long}_expected"] >= answers[f"{short}_expected"]).all()
    assert (answers[f"{long}_p_zero"] <= answers[f"{short}_p_zero"]).all()
    assert (answers[f"{long}_quantiles"] >= answers[f"{short}_quantiles"]).all()


def test_what_no_label_teaches_is_the_matter_of_the_process(pooled: ValuePooled) -> None:
    batch, readout_QD = asked()
    states_ND = torch.zeros(batch.num_events, 3)
    pooled.teach(HORIZONS_DAYS[:1])
    seen = batch.targets.observed_QK.clone()
    before = pooled.loss(states_ND, readout_QD, batch)
    assert torch.equal(batch.targets.observed_QK, seen)
    batch.targets.observed_QK = seen & torch.tensor([True, False])
    heads = pooled.heads.loss(states_ND, readout_QD, batch)
    process = pooled.process.loss(states_ND, readout_QD, batch)
    torch.testing.assert_close(before.mean, heads.mean + process.mean)
    pooled.only(1.0)
    answers = pooled.predict(readout_QD, batch, LEVELS)
    alone = pooled.process.predict(readout_QD, batch, LEVELS)
    long = f"purchases_{HORIZONS_DAYS[1]}d_expected"
    short = answers[f"purchases_{HORIZONS_DAYS[0]}d_expected"]
    torch.testing.assert_close(answers[long], torch.maximum(alone[long], short))


def test_the_slice_decides_and_the_weights_keep_it(pooled: ValuePooled, tmp_path: Path) -> None:
    store = tiny_store(lengths=(9,) * 60)
    cutoff = KNOWN_UNTIL - 100 * 86_400_000_000
    queries = ask(store, np.arange(60), np.full(60, cutoff), HORIZONS_DAYS, KNOWN_UNTIL)
    right, wrong = {}, {}
    for column, days in enumerate(HORIZONS_DAYS):
        for kind, realised_QK in (("value", queries.value_QK), ("purchases", queries.purchases_QK)):
            truth_Q1 = np.asarray(realised_QK[:, column], dtype=np.float64)[:, None]
            spread_L = np.linspace(0.8, 1.2, 100)
            target = f"{kind}_{days}d"
            right[f"{target}_quantiles"] = np.sort(truth_Q1 * spread_L, axis=1)
            wrong[f"{target}_quantiles"] = np.sort(truth_Q1 * spread_L * 3 + 5, axis=1)
            right[f"{target}_expected"], wrong[f"{target}_expected"] = truth_Q1[:, 0], np.ones(60)
    pooled.settle(right, wrong, queries)
    assert list(pooled.shares()) == ["share_value", "share_purchases", "mean_share_value", "mean_share_purchases"]
    # A constant ranks nobody, so that any blend ranks as the other does: by a parabola three quarters are best.
    assert all(share > 0.95 for share in pooled.share_T.tolist())
    assert all(share > 0.7 for share in pooled.mean_share_T.tolist())
    pooled.settle(wrong, right, queries)
    assert all(share < 0.05 for share in pooled.share_T.tolist())
    assert all(share < 0.3 for share in pooled.mean_share_T.tolist())
    crossed = {name: (right if name.endswith("expected") else wrong)[name] for name in right}
    pooled.settle(crossed, {name: (wrong if name.endswith("expected") else right)[name] for name in right}, queries)
    assert pooled.shares()["share_value"] < 0.1
    assert pooled.shares()["mean_share_value"] > pooled.shares()["share_value"] + 0.2
    pooled.teach(HORIZONS_DAYS[:1])
    save_model(pooled, str(tmp_path / "weights.safetensors"))
    again = ValuePooled(tiny_vocabulary(), 3, WIDTH, HORIZONS_DAYS, family=Quantiles(num_levels=5), process=ParetoNbd())
    other = ValuePooled(tiny_vocabulary(), 3, WIDTH, HORIZONS_DAYS, family=Quantiles(num_levels=5), process=ParetoNbd())
    load_model(again, str(tmp_path / "weights.safetensors"))
    other.settle_as(pooled)
    assert again.shares() == other.shares() == pooled.shares()
    assert again.taught_K.tolist() == [True, False]


def with_choice(seed: int) -> ValuePooled:
    torch.manual_seed(seed)
    choice = {"family": Quantiles(num_levels=5), "count_family": CountMixture(num_parts=2), "process": ParetoNbd()}
    return ValuePooled(tiny_vocabulary(), 3, WIDTH, HORIZONS_DAYS, **choice).requires_grad_(False)


def test_another_family_of_counts_answers_where_it_is_clearly_nearer() -> None:
    pooled, store = with_choice(0), tiny_store(lengths=(9,) * 60)
    queries = ask(store, np.arange(60), np.full(60, KNOWN_UNTIL - 100 * 86_400_000_000), HORIZONS_DAYS, KNOWN_UNTIL)
    noise_Q = np.random.default_rng(0).normal(0, 1, 60)

    def answers(off_Q: np.ndarray) -> dict[str, np.ndarray]:
        columns = enumerate(HORIZONS_DAYS)
        return {f"purchases_{days}d_quantiles": (queries.purchases_QK[:, k] + off_Q)[:, None] for k, days in columns}

    # Off by 2 everywhere against 1: shown. Off by 2 against 2 give or take 1, a little less in the mean: not shown.
    shown, not_shown = np.full(60, 1.0), 1.98 + (noise_Q - noise_Q.mean())
    for second_Q, place in ((shown, 1), (not_shown, 0), (np.full(60, 3.0), 0)):
        assert pooled.settle_counts([answers(np.full(60, 2.0)), answers(second_Q)], queries) == place
        assert pooled.shares()["count_family"] == place
    # A head gone astray, what is said of a few, and what nothing can be said of stay with the first one.
    assert pooled.settle_counts([answers(np.full(60, 2.0)), answers(np.full(60, np.nan))], queries) == 0
    few = np.arange(9)
    said = [{name: part[few] for name, part in answers(np.full(60, off)).items()} for off in (2.0, 1.0)]
    assert pooled.settle_counts(said, queries.take(few)) == 0
    assert pooled.settle_counts([answers(np.full(60, 2.0)), answers(shown)], queries.take(np.arange(0))) == 0
    pooled.teach(())
    assert pooled.settle_counts([answers(np.full(60, 2.0)), answers(shown)], queries) == 0


def test_the_chosen_family_answers_and_is_kept(tmp_path: Path) -> None:
    pooled, (batch, readout_QD) = with_choice(0), asked()
    pooled.only(1.0)
    levels, name = torch.linspace(0.05, 0.95, 19), f"purchases_{HORIZONS_DAYS[0]}d_quantiles"
    said = []
    for place in (0, 1):
        pooled.heads.answer_counts(place)
        said.append(pooled.predict(readout_QD, batch, levels)[name])
    assert not torch.equal(*said)
    save_model(pooled, str(tmp_path / "weights.safetensors"))
    again, other = with_choice(1), with_choice(1)
    other.heads.answer_counts(0)
    load_model(again, str(tmp_path / "weights.safetensors"))
    other.settle_as(pooled)
    assert again.shares() == other.shares() == pooled.shares() and pooled.shares()["count_family"] == 1
    assert torch.equal(again.predict(readout_QD, batch, levels)[name], said[1])


def test_older_weights_go_on_with_one_share_for_both(pooled: ValuePooled, tmp_path: Path) -> None:
    pooled.only(0.25)
    whole = torch.nn.ModuleDict({"value": pooled})
    weights = {name: part for name, part in whole.state_dict().items() if name != "value.mean_share_T"}
    save_file(weights, str(tmp_path / "weights.safetensors"))
    again = ValuePooled(tiny_vocabulary(), 3, WIDTH, HORIZONS_DAYS, family=Quantiles(num_levels=5), process=ParetoNbd())
    load_model(torch.nn.ModuleDict({"value": again}), str(tmp_path / "weights.safetensors"))
    assert again.mean_share_T.tolist() == again.share_T.tolist() == [0.25, 0.25]


def test_a_share_must_be_one() -> None:
    with pytest.raises(InputError, match="share"):
        ValuePooled(tiny_vocabulary(), 3, WIDTH, HORIZONS_DAYS, family=Quantiles(), process=ParetoNbd(), share=1.5)
