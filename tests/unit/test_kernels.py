"""The fast operations against their plain twins."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from constellation.kernels import cross_entropy, products
from constellation.kernels.attention import banded_attention, reference_attention, turned
from constellation.kernels.bags import summed_bags, weighted_total
from constellation.kernels.bands import BAND_PLACES, bands_of, journeys_per_band, padded_length
from constellation.kernels.cross_entropy import log_sum_exp_total, rows_per_chunk
from constellation.kernels.dropout import Dropout, keep_mask
from constellation.kernels.residual import gated_residual

CPU = torch.device("cpu")


def plain_total(query_RD, embedding_VD, bias_V, weight_R):
    logits_RV = query_RD @ embedding_VD.T + (0 if bias_V is None else bias_V)
    return (logits_RV.logsumexp(1) * weight_R).sum()


def parts(rows, vocabulary, width, *, bias, spread=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    query = (spread * torch.randn(rows, width, generator=generator)).requires_grad_()
    embedding = torch.randn(vocabulary, width, generator=generator).requires_grad_()
    bias_V = torch.randn(vocabulary, generator=generator).requires_grad_() if bias else None
    weight_R = (torch.rand(rows, generator=generator) > 0.3).float() * 1.5
    return query, embedding, bias_V, weight_R


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 5), (300, 700), (129, 9001)])
def test_log_sum_exp_total_is_exact_to_1e_5(rows, vocabulary, bias):
    query, embedding, bias_V, weight_R = parts(rows, vocabulary, 16, bias=bias)
    inputs = [each for each in (query, embedding, bias_V) if each is not None]
    ours = log_sum_exp_total(query, embedding, bias_V, weight_R)
    plain = plain_total(query, embedding, bias_V, weight_R)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
    for found, expected in zip(
        torch.autograd.grad(3.0 * ours, inputs), torch.autograd.grad(3.0 * plain, inputs), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_scores_that_overflow_are_shifted():
    """Logits of several hundred overflow exp, and of minus several hundred underflow it."""
    for offset in (500.0, -500.0):
        query, embedding, bias_V, weight_R = parts(40, 50, 8, bias=True, spread=20.0)
        bias_V = (bias_V.detach() + offset).requires_grad_()
        ours = log_sum_exp_total(query, embedding, bias_V, weight_R)
        plain = plain_total(query, embedding, bias_V, weight_R)
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-4)
        found, expected = (torch.autograd.grad(total, [query, embedding, bias_V]) for total in (ours, plain))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_bfloat16_products_round_factors_and_nothing_else():
    query, embedding, bias_V, weight_R = parts(500, 900, 32, bias=True, spread=0.3)
    with products.products_in(products.BFLOAT16):
        ours = log_sum_exp_total(query, embedding, bias_V, weight_R)
    plain = plain_total(query, embedding, bias_V, weight_R)
    torch.testing.assert_close(ours, plain, rtol=1e-3, atol=0)
    grads = torch.autograd.grad(ours, [query, embedding, bias_V])
    for found, expected in zip(grads, torch.autograd.grad(plain, [query, embedding, bias_V]), strict=True):
        assert (found - expected).norm() < 0.01 * expected.norm()


def test_no_more_than_a_chunk_of_logits_lives():
    rows, vocabulary = 4096, 50_000
    chunk = rows_per_chunk(vocabulary, torch.bfloat16, "cpu")
    assert chunk * vocabulary * 2 <= cross_entropy.CHUNK_BYTES["cpu"]
    assert rows_per_chunk(3416, torch.bfloat16, "cpu") == 256
    assert rows_per_chunk(10**6, torch.bfloat16, "cpu") * 10**6 * 2 < 0.01 * rows * 10**6 * 4


def test_no_rows_have_no_loss():
    query, embedding, bias_V, _ = parts(3, 7, 4, bias=True)
    total = log_sum_exp_total(query, embedding, bias_V, torch.zeros(3))
    assert total.item() == 0.0
    assert all(float(grad.abs().sum()) == 0.0 for grad in torch.autograd.grad(total, [query, embedding, bias_V]))


def attention_inputs(lengths, heads, head_width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    num_rows = int(np.sum(lengths))
    qkv = torch.randn(num_rows, 3 * heads * head_width, generator=generator)
    angle = 6.0 * torch.rand(num_rows, head_width // 2, generator=generator)
    turn = torch.polar(torch.ones_like(angle), angle)
    return qkv, turn, bands_of(np.asarray(lengths), CPU)


def one_at_a_time(qkv, turn_NP, lengths, heads):
    width = qkv.shape[1] // 3
    qk = turned(qkv[:, : 2 * width], turn_NP, heads)
    q, k, v = (part.unflatten(1, (heads, -1)) for part in (qk[:, :width], qk[:, width:], qkv[:, 2 * width :]))
    q = q * (width // heads) ** -0.5
    outputs, start = [], 0
    for length in lengths:
        rows = slice(start, start + length)
        scores = torch.einsum("ihd,jhd->hij", q[rows], k[rows])
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
        outputs.append(torch.einsum("hij,jhd->ihd", scores.softmax(-1), v[rows]).flatten(1))
        start += length
    return torch.cat(outputs)


LENGTHS = [3, 0, 130, 1, 40, 8, 97, 9, 530]


def test_attention_equals_one_journey_at_a_time():
    qkv, turn, bands = attention_inputs(LENGTHS, heads=2, head_width=8)
    expected = one_at_a_time(qkv, turn, LENGTHS, heads=2)
    torch.testing.assert_close(reference_attention(qkv, turn, bands, heads=2), expected, atol=1e-5, rtol=1e-4)
    fast = banded_attention(qkv.bfloat16(), turn, bands, heads=2).float()
    assert (fast - expected).norm() < 0.01 * expected.norm()


def test_gradients_of_the_fast_attention_are_those_of_the_plain_one():
    qkv, turn, bands = attention_inputs(LENGTHS, heads=2, head_width=8, seed=1)
    weight = torch.randn(len(qkv), 16)
    plain = qkv.clone().requires_grad_()
    (one_at_a_time(plain, turn, LENGTHS, heads=2) * weight).sum().backward()
    fast = qkv.bfloat16().requires_grad_()
    (banded_attention(fast, turn, bands, heads=2).float() * weight).sum().backward()
    reference = qkv.clone().requires_grad_()
    (reference_attention(reference, turn, bands, heads=2) * weight).sum().backward()
    torch.testing.assert_close(reference.grad, plain.grad, atol=1e-4, rtol=1e-4)
    assert (fast.grad.float() - plain.grad).norm() < 0.015 * plain.grad.norm()
    # Row by row too: no journey is wrong and drowned in the others.
    assert ((fast.grad.float() - plain.grad).norm(dim=1) < 0.06 * plain.grad.norm(dim=1) + 0.02).all()


@pytest.mark.parametrize("size", [60.0, -60.0])
def test_scores_beyond_the_range_of_exp_are_shifted(size):
    """All scores of a journey lie near ``size`` squared over the root of 8: exp would be infinite, or 0."""
    lengths = [5, 40, 230]
    qkv, turn, bands = attention_inputs(lengths, heads=2, head_width=8, seed=2)
    qkv[:, 16:32] = abs(size)
    qkv[:, :16] = size
    turn = torch.ones_like(turn)
    plain, fast = qkv.bfloat16().float().requires_grad_(), qkv.bfloat16().requires_grad_()
    expected, found = (one_at_a_time(plain, turn, lengths, heads=2), banded_attention(fast, turn, bands, heads=2))
    assert (found.float() - expected).norm() < 0.01 * expected.norm()
    weight = torch.randn(expected.shape)
    (expected * weight).sum().backward()
    (found.float() * weight).sum().backward()
    of_values = slice(32, 48)  # scores are all alike, so that queries and keys have gradients of rounding only
    assert (fast.grad[:, of_values].float() - plain.grad[:, of_values]).norm() < 0.015 * plain.grad.norm()


@given(
    rows=st.integers(0, 9),
    per_row=st.integers(1, 3),
    lists=st.integers(0, 2),
    num_codes=st.sampled_from([1, 7, 40_000]),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_bags_and_their_gradients_are_those_of_plain_indexing(rows, per_row, lists, num_codes, seed):
    rng = np.random.default_rng(seed)
    codes = torch.from_numpy(rng.integers(0, num_codes, (rows, per_row)))
    made = [rng.integers(0, 4, rows) for _ in range(lists)]
    given_bags = [
        (torch.from_numpy(rng.integers(0, num_codes, sizes.sum())), torch.from_numpy(np.append(0, sizes.cumsum())))
        for sizes in made
    ]
    table = torch.from_numpy(rng.normal(size=(num_codes, 4))).requires_grad_()
    expected = table[codes].sum(1)
    for codes_M, offsets in given_bags:
        row_M = torch.repeat_interleave(offsets.diff())
        expected = expected + torch.zeros(rows, 4, dtype=torch.float64).index_add(0, row_M, table[codes_M])
    found = summed_bags(table, codes, given_bags)
    torch.testing.assert_close(found, expected)
    weight = torch.from_numpy(rng.normal(size=(rows, 4)))
    grads = [torch.autograd.grad((out * weight).sum(), table)[0] for out in (found, expected)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("num_codes", [5, 40_000])
def test_a_weighted_total_is_its_sum_and_so_are_its_gradients(num_codes):
    generator = torch.Generator().manual_seed(0)
    query, table = (
        torch.randn(size, 6, generator=generator, dtype=torch.float64, requires_grad=True) for size in (4, num_codes)
    )
    codes, offsets = torch.tensor([3, 3, 0, num_codes - 1, 4]), torch.tensor([0, 2, 2, 5, 5])
    row, weight = torch.tensor([0, 0, 2, 2, 2]), torch.tensor([0.5, 0.25, 0.0, 2.0, 1.0])
    found = weighted_total(query, table, (codes, offsets), row, weight)
    expected = ((query[row] * table[codes]).sum(1) * weight).sum()
    torch.testing.assert_close(found, expected)
    for one, other in zip(*(torch.autograd.grad(3 * out, [query, table]) for out in (found, expected)), strict=True):
        torch.testing.assert_close(one, other)


@given(st.lists(st.integers(0, 600), min_size=1, max_size=60))
@settings(max_examples=40, deadline=None)
def test_bands_hold_every_event_once(lengths):
    bands = bands_of(np.asarray(lengths), CPU)
    flat = torch.cat([rows.flatten() for rows in bands.rows]) if bands.rows else torch.empty(0, dtype=torch.int64)
    assert torch.equal(flat[bands.place_N], torch.arange(sum(lengths)))
    assert len(bands.place_N) + len(bands.pads_P) == len(flat)
    assert not np.intersect1d(bands.place_N, bands.pads_P).size
    if bands.rows:
        layout = bands.by_head(3)
        values = torch.arange(3 * sum(lengths))
        assert torch.equal(values[layout.take][layout.back], values)


def test_padded_lengths_waste_an_eighth_at_most():
    for length in range(1, 9000):
        padded = padded_length(length)
        assert length <= padded < max(length + 8, 1.125 * length + 1)
        assert padded % 8 == 0
        # Some power of two of journeys fills the band, but for one very long journey.
        assert journeys_per_band(padded) * padded <= max(BAND_PLACES, padded)
    assert len({padded_length(length) for length in range(1, 8193)}) <= 64


@pytest.mark.parametrize("rows", [0, 1, 255, 256, 2048, 2049, 5000])
def test_linear_in_bfloat16_is_linear_but_for_rounding(rows):
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(*shape, requires_grad=True) for shape in ((rows, 16), (24, 16), (24,)))
    plain = functional.linear(x, weight, bias)
    with products.products_in(products.BFLOAT16):
        fast = products.linear(x, weight, bias)
    assert fast.shape == plain.shape
    assert (fast.float() - plain).norm() <= 0.01 * plain.norm()
    mix = torch.randn(plain.shape)
    found = torch.autograd.grad((fast.float() * mix).sum(), [x, weight, bias])
    for one, other in zip(found, torch.autograd.grad((plain * mix).sum(), [x, weight, bias]), strict=True):
        assert one.dtype == other.dtype
        assert (one - other).norm() <= 0.01 * other.norm()


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.6, 0.99])
def test_masks_keep_the_share_they_say(p):
    torch.manual_seed(0)
    mask, keep = keep_mask(torch.Size([400, 401]), p)
    assert abs((1 - keep) - p) <= 0.5 / 256 + 1e-9
    assert set(mask.unique().tolist()) <= {0, 1}
    error = math.sqrt(keep * (1 - keep) / mask.numel())
    assert abs(mask.float().mean().item() - keep) < 5 * error
    # Neighbours share a draw of 64 bits and must not know of each other.
    pairs = mask.flatten()[: mask.numel() // 8 * 8].view(-1, 8).float()
    correlation = torch.corrcoef(pairs.T) - torch.eye(8)
    assert correlation.abs().max() < 0.05


def test_dropout_keeps_the_mean_masks_the_gradient_and_repeats_with_the_generator():
    layer, x = Dropout(0.25), torch.ones(300, 64, requires_grad=True)
    torch.manual_seed(1)
    first = layer(x)
    torch.manual_seed(1)
    assert torch.equal(layer(x), first)
    assert abs(first.mean().item() - 1) < 0.02
    (grad,) = torch.autograd.grad(first.sum(), x)
    assert torch.equal(grad, first)
    assert torch.equal(layer.eval()(x), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gated_residual_is_its_formula(dtype):
    torch.manual_seed(0)
    x, gate = torch.randn(50, 8, requires_grad=True), torch.randn(8, requires_grad=True)
    branch = torch.randn(50, 8).to(dtype).requires_grad_()
    weight = torch.randn(50, 8)
    torch.manual_seed(5)
    ours = gated_residual(x, branch, gate, 0.5)
    torch.manual_seed(5)
    mask, keep = keep_mask(branch.shape, 0.5)
    plain = x + gate * (branch.float() * mask) / keep
    torch.testing.assert_close(ours, plain)
    found = torch.autograd.grad((ours * weight).sum(), [x, branch, gate])
    expected = torch.autograd.grad((plain * weight).sum(), [x, branch, gate])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(
            one.float(), other.float(), rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-4
        )
    torch.testing.assert_close(gated_residual(x, branch, gate, 0.0), x + gate * branch.float())


def test_products_are_float32_unless_a_block_says_otherwise():
    x, weight, bias = torch.randn(5, 16), torch.randn(4, 16), torch.randn(4)
    torch.testing.assert_close(products.linear(x, weight, bias), functional.linear(x, weight, bias))
    with products.products_in(products.BFLOAT16):
        assert products.linear(x, weight, bias).dtype == torch.bfloat16
    assert products.current() == products.FLOAT32


def test_the_choice_is_that_of_the_measured_rates(monkeypatch):
    for ratio, can_compile, expected in (
        (1.2, True, products.FLOAT32),
        (4.0, False, products.BFLOAT16),
        (4.0, True, products.FUSED),
    ):
        rates = {products.FLOAT32: 1e11, products.BFLOAT16: ratio * 1e11}
        monkeypatch.setattr(products, "measured_rates", lambda *_, rates=rates: rates)
        monkeypatch.setattr(products, "is_known_to_pay", lambda can_compile=can_compile: can_compile)
        assert products.measured_choice() == expected
