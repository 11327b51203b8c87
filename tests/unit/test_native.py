"""The kernels in C++ against plain twins, and what they leave to torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

import constellation.kernels.whole_layer as whole_layer_module
from constellation.building import build_model
from constellation.encoders.transformer import Layer, Transformer
from constellation.journeys.vocabulary import Vocabulary
from constellation.kernels import cross_entropy, embedding, native, products
from constellation.kernels.attention import turned
from constellation.kernels.bags import summed_bags
from constellation.kernels.cross_entropy import log_sum_exp_total
from constellation.kernels.native import call, is_possible
from constellation.kernels.whole_layer import kept_values, takes, whole_layer
from constellation.model import JourneyModel
from tests.golden.tiny import tiny_batch, tiny_vocabulary
from tests.unit.test_resume import Interrupted, assert_equal, interrupt_at
from tests.unit.test_training import MODEL, OPTIONS, WINDOWS, train

compiled = pytest.mark.skipif(not is_possible(), reason="needs AVX512-BF16 and a C++ compiler")

LENGTHS = [3, 0, 130, 1, 40, 8, 97, 9, 231, 33, 32, 31]
SIZES = [(32, 2, 32), (96, 2, 64)]
"""Width, heads, inner width: heads of one vector and of three, and masks that end in the middle of 64 values."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def a_layer(width: int, heads: int, hidden: int) -> tuple[Layer, Tensor, Tensor, Tensor]:
    """With weights far from their start, rows, turns, and the offsets of ``LENGTHS``."""
    torch.manual_seed(0)
    layer = Layer(width, heads, hidden, 0.0)
    for weight in layer.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    angle = 6.0 * torch.rand(sum(LENGTHS), width // heads // 2)
    offsets_B = torch.from_numpy(np.r_[0, np.cumsum(LENGTHS)])
    return layer, torch.randn(sum(LENGTHS), width), torch.polar(torch.ones_like(angle), angle), offsets_B


def plain_layer(layer: Layer, x_ND: Tensor, turn_NP: Tensor, masks: list[Tensor]) -> Tensor:
    """In float32 and one journey at a time; masks: factors of the two branches."""
    width, heads = x_ND.shape[1], layer.heads
    qkv = layer.qkv(layer.norm_attend(x_ND))
    qk = turned(qkv[:, : 2 * width], turn_NP, heads)
    q, k, v = (part.unflatten(1, (heads, -1)) for part in (qk[:, :width], qk[:, width:], qkv[:, 2 * width :]))
    seen, start = [], 0
    for length in LENGTHS:
        rows = slice(start, start := start + length)
        scores = torch.einsum("ihd,jhd->hij", q[rows], k[rows]) * (width // heads) ** -0.5
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
        seen.append(torch.einsum("hij,jhd->ihd", scores.softmax(-1), v[rows]).flatten(1))
    x_ND = x_ND + layer.gate_attend_D * layer.join(torch.cat(seen)) * masks[0]
    hidden = functional.gelu(layer.up(layer.norm_feed(x_ND)))
    return x_ND + layer.gate_feed_D * layer.down(hidden) * masks[1]


def near(found: Tensor, expected: Tensor, within: float = 0.01) -> bool:
    return bool((found - expected).norm() <= within * expected.norm())


@compiled
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_layer_and_its_gradients_are_those_of_the_plain_one(sizes: tuple[int, int, int], dropout: float) -> None:
    layer, x, turn, offsets_B = a_layer(*sizes)
    weights = layer.weights()
    assert takes(x, weights, layer.heads)
    drop = round(256 * dropout)
    torch.manual_seed(5)
    given = x.clone().requires_grad_()
    found = whole_layer(given, turn, offsets_B, weights, layer.heads, dropout)
    torch.manual_seed(5)
    seed = int(torch.empty((), dtype=torch.int64).random_())
    masks = [torch.ones(())] * 2
    if drop:
        kept = [kept_values(seed, len(x), sizes[0], drop, feed=feed) for feed in (False, True)]
        masks = [torch.from_numpy(each).float() * 256 / (256 - drop) for each in kept]
    plain = x.clone().requires_grad_()
    expected = plain_layer(layer, plain, turn, masks)
    assert near(found - x, expected - x)
    # Row by row too: no journey is wrong and drowned in the others.
    assert ((found - expected).norm(dim=1) < 0.03 * (expected - x).norm(dim=1) + 0.01).all()
    grad = torch.randn_like(x)
    of_found, of_expected = (
        torch.autograd.grad(out, [start, *weights], grad) for out, start in ((found, given), (expected, plain))
    )
    assert near(of_found[0] - grad, of_expected[0] - grad)
    for mine, theirs in zip(of_found[1:], of_expected[1:], strict=True):
        assert near(mine, theirs, 0.015)


@compiled
def test_masks_keep_their_share_and_hang_on_seed_row_and_column() -> None:
    kept = kept_values(123, 4000, 64, 64, feed=False)
    share = np.sqrt(0.75 * 0.25 / 4000)
    assert np.abs(kept.mean(0) - 0.75).max() < 5 * share and abs(kept.mean() - 0.75) < 0.005
    assert np.abs(np.corrcoef(kept, rowvar=False) - np.eye(64)).max() < 0.09
    for other in (kept_values(124, 4000, 64, 64, feed=False), kept_values(123, 4000, 64, 64, feed=True)):
        assert abs((kept == other).mean() - (0.75**2 + 0.25**2)) < 0.01


@compiled
def test_the_same_generator_gives_the_same_layer_bit_for_bit() -> None:
    layer, x, turn, offsets_B = a_layer(*SIZES[0])
    layer.dropout = 0.3
    outs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        given = x.clone().requires_grad_()
        out = whole_layer(given, turn, offsets_B, layer.weights(), layer.heads, 0.3)
        outs.append([out, *torch.autograd.grad(out.square().sum(), [given, *layer.weights()])])
    assert all(torch.equal(first, second) for first, second in zip(outs[0], outs[1], strict=True))
    assert not torch.equal(outs[0][0], outs[2][0])


@compiled
@pytest.mark.parametrize("size", [60.0, -60.0])
def test_scores_far_from_zero_do_not_overflow(size: float) -> None:
    """All scores of a journey lie near size squared over the root of a head's width."""
    layer, x, turn, offsets_B = a_layer(*SIZES[0])
    with torch.no_grad():
        layer.qkv.weight[:64] *= 0.01
        layer.qkv.bias[32:64] = abs(size)
        layer.qkv.bias[:32] = size
    still = torch.ones_like(turn)
    given, plain = x.clone().requires_grad_(), x.clone().requires_grad_()
    found = whole_layer(given, still, offsets_B, layer.weights(), layer.heads, 0.0)
    expected = plain_layer(layer, plain, still, [torch.ones(())] * 2)
    assert torch.isfinite(found).all()
    # Scores of hundreds have steps of whole units in bfloat16, so what is seen differs, but stays a mean of values.
    assert near(found - x, expected - x, 0.2)
    assert all(torch.isfinite(each).all() for each in torch.autograd.grad(found.sum(), [given, *layer.weights()]))


@compiled
def test_an_encoder_is_the_same_by_torch_s_products_and_by_whole_layers() -> None:
    vocabulary, batch = tiny_vocabulary(), tiny_batch()
    torch.manual_seed(3)
    encoder = Transformer(vocabulary, width=32, layers=2, heads=2, dropout=0.0)
    states, grads = {}, {}
    for name in products.PRODUCTS:
        with products.products_in(name):
            states[name] = encoder(batch)
        grads[name] = torch.autograd.grad(states[name].square().sum(), list(encoder.parameters()))
    assert near(states[products.FUSED], states[products.FLOAT32])
    assert not torch.equal(states[products.FUSED], states[products.BFLOAT16])
    flat = {name: torch.cat([each.flatten() for each in found]) for name, found in grads.items()}
    assert near(flat[products.FUSED], flat[products.FLOAT32], 0.02)


@compiled
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 5), (300, 302), (129, 2001)])
def test_a_total_over_products_and_its_gradients_are_those_of_the_plain_one(
    rows: int, vocabulary: int, bias: bool
) -> None:
    torch.manual_seed(rows)
    query, embedding = (0.3 * torch.randn(rows, 32)).requires_grad_(), torch.randn(vocabulary, 32).requires_grad_()
    bias_V = torch.randn(vocabulary).requires_grad_() if bias else None
    weight_R = (torch.rand(rows) > 0.3).float() * 1.5 + (rows == 1)
    with products.products_in(products.FUSED):
        ours = log_sum_exp_total(query, embedding, bias_V, weight_R)
    assert "Fused" in ours.grad_fn.name()
    plain = ((query @ embedding.T + (0 if bias_V is None else bias_V)).logsumexp(1) * weight_R).sum()
    torch.testing.assert_close(ours, plain, rtol=5e-3, atol=1e-2)
    inputs = [each for each in (query, embedding, bias_V) if each is not None]
    for found, expected in zip(
        torch.autograd.grad(3.0 * ours, inputs), torch.autograd.grad(3.0 * plain, inputs), strict=True
    ):
        assert near(found, expected)


@compiled
@pytest.mark.parametrize("offset", [500.0, -500.0])
def test_logits_that_overflow_are_shifted(offset: float) -> None:
    torch.manual_seed(0)
    query, embedding = torch.randn(70, 32).requires_grad_(), torch.randn(50, 32).requires_grad_()
    bias_V = (torch.randn(50) + offset).requires_grad_()
    with products.products_in(products.FUSED):
        ours = log_sum_exp_total(query, embedding, bias_V)
    plain = (query @ embedding.T + bias_V).logsumexp(1).sum()
    torch.testing.assert_close(ours, plain, rtol=1e-3, atol=0)
    grads = (torch.autograd.grad(total, [query, embedding, bias_V]) for total in (ours, plain))
    assert all(near(found, expected, 0.02) for found, expected in zip(*grads, strict=True))


@compiled
def test_no_rows_have_no_loss() -> None:
    query, embedding = torch.randn(3, 32).requires_grad_(), torch.randn(7, 32).requires_grad_()
    with products.products_in(products.FUSED):
        total = log_sum_exp_total(query, embedding, None, torch.zeros(3))
    assert total.item() == 0.0
    assert all(not each.any() for each in torch.autograd.grad(total, [query, embedding]))


@compiled
@pytest.mark.parametrize("code", [-1, 40])
def test_a_code_beyond_the_table_is_refused(code: int) -> None:
    bags = [(torch.tensor([3]), torch.tensor([0, 0, 1]))]
    codes = torch.tensor([[1], [2]])
    for wrong in ((torch.tensor([[1], [code]]), bags), (codes, [(torch.tensor([code]), bags[0][1])])):
        with pytest.raises(IndexError, match="beyond the table"):
            embedding.embedded_events(torch.randn(40, 32), *wrong, None, None, None, 0.0)


@compiled
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("numbers", [0, 3])
def test_vectors_of_events_are_sums_of_embeddings_and_numbers(numbers: int, dropout: float) -> None:
    torch.manual_seed(0)
    rows, width, drop = 50, 32, round(256 * dropout)
    table, codes = torch.randn(40, width).requires_grad_(), torch.randint(40, (rows, 2))
    offsets = torch.from_numpy(np.r_[0, np.cumsum(np.arange(rows) % 4)])
    bags = [(torch.randint(40, (int(offsets[-1]),)), offsets)]
    weight, bias = torch.randn(width, 3).requires_grad_(), torch.randn(width).requires_grad_()
    values, given = (torch.randn(rows, 3), [table, weight, bias]) if numbers else (None, [table])
    with products.products_in(products.FUSED):
        assert embedding.takes(table)
    assert not embedding.takes(table)
    torch.manual_seed(9)
    matrix = (weight, bias) if numbers else (None, None)
    found = embedding.embedded_events(table, codes, bags, values, *matrix, dropout)
    torch.manual_seed(9)
    seed = int(torch.empty((), dtype=torch.int64).random_())
    kept = kept_values(seed, rows, width, drop, feed=False) if drop else np.ones(())
    plain = summed_bags(table, codes, bags) + (functional.linear(values, weight, bias) if numbers else 0)
    expected = plain * torch.from_numpy(kept).float() * 256 / (256 - drop)
    torch.testing.assert_close(found, expected)
    grad = torch.randn_like(found)
    grads = (torch.autograd.grad(out, given, grad) for out in (found, expected))
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@compiled
@pytest.mark.parametrize("num_threads", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_broken_off_training_of_whole_layers_goes_on_bit_for_bit(
    num_threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = {"_target_": "constellation.encoders.transformer.Transformer", "width": 32, "dropout": 0.3}
    options = replace(OPTIONS, checkpoint_every_steps=1, products=products.FUSED, num_threads=num_threads)

    def build(vocabulary: Vocabulary) -> JourneyModel:
        return build_model(MODEL | {"encoder": encoder}, vocabulary, WINDOWS.horizons_days)

    calls: list[int] = []
    original = whole_layer_module.call
    monkeypatch.setattr(whole_layer_module, "call", lambda *given: (calls.append(1), original(*given))[1])
    whole = train(tmp_path / "whole", options=options, build=build)
    assert calls and whole.refitted.products == products.FUSED
    assert whole.facts()["train/fused_layers"] == 1.0
    with monkeypatch.context() as patch:
        patch.setattr(native, "is_possible", lambda: False)
        assert whole.facts()["train/fused_layers"] == 0.0
    for step in (2, 7):
        with monkeypatch.context() as patch:
            interrupt_at(step, patch)
            with pytest.raises(Interrupted):
                train(tmp_path / str(step), options=options, build=build)
        assert_equal(train(tmp_path / str(step), options=options, build=build), whole)


# ---------------------------------------------------------------- what they take


@compiled
def test_what_does_not_fit_is_left_to_torch() -> None:
    layer, x, *_ = a_layer(*SIZES[0])
    assert takes(x, layer.weights(), 2)
    assert not takes(x.double(), layer.weights(), 2)
    assert not takes(torch.randn(4, 8), Layer(8, 2, 8, 0.0).weights(), 2)
    assert not takes(torch.randn(4, 32), Layer(32, 4, 32, 0.0).weights(), 4)  # heads of half a vector


@compiled
def test_biases_of_another_type_are_left_to_torch() -> None:
    query, embedding, bias_V = torch.randn(3, 32).requires_grad_(), torch.randn(5, 32), torch.randn(5)
    with products.products_in(products.FUSED):
        assert "Fused" in log_sum_exp_total(query, embedding, bias_V).grad_fn.name()
        assert "Fused" not in log_sum_exp_total(query, embedding, bias_V.double()).grad_fn.name()


@compiled
def test_gradients_that_lie_apart_and_weights_that_are_frozen_change_nothing() -> None:
    layer, x, turn, offsets_B = a_layer(*SIZES[0])
    for part in layer.parameters():
        part.requires_grad_(False)
    layer.up.weight.requires_grad_()
    given = x.t().contiguous().t().requires_grad_()  # columns lie end to end
    found = whole_layer(given, turn, offsets_B, layer.weights(), layer.heads, 0.0)
    assert torch.equal(found, whole_layer(x, turn, offsets_B, layer.weights(), layer.heads, 0.0))
    grad = torch.randn(x.shape[1], len(x))
    apart = torch.autograd.grad(found, [given, layer.up.weight], grad.t(), retain_graph=True)
    together = torch.autograd.grad(found, [given, layer.up.weight], grad.t().contiguous())
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(apart, together, strict=True))


def test_a_kernel_that_finds_no_memory_says_so() -> None:
    with pytest.raises(MemoryError, match="no memory"):
        call(lambda *_: 1, (1, 2), None)


def test_vocabularies_beyond_the_kernel_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "MOST_FUSED", 4)
    with products.products_in(products.FUSED):
        total = log_sum_exp_total(torch.randn(3, 32).requires_grad_(), torch.randn(5, 32))
    assert "Fused" not in total.grad_fn.name()
