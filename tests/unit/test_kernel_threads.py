"""The kernels in C++ on several threads: rows as with one, weights' gradients to the last bits, and always the same."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from constellation.encoders.transformer import Layer
from constellation.kernels import embedding, native, products
from constellation.kernels.cross_entropy import log_sum_exp_total
from constellation.kernels.native import call, library
from constellation.kernels.whole_layer import takes, whole_layer
from tests.unit.test_native import LENGTHS, a_layer, compiled, near, plain_layer

pytestmark = compiled

LAST_BITS = 2e-6
"""Of float32: a sum over rows whose parts are added in another order."""


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def threads() -> set[str]:
    """Of this process."""
    return {path.name for path in Path("/proc/self/task").iterdir()}


def on_threads(num_threads: int, work: Callable[[], list[Tensor]]) -> list[Tensor]:
    torch.set_num_threads(num_threads)
    torch.manual_seed(7)  # of the masks
    return work()


def check(work: Callable[[], list[Tensor]], num_same: int) -> None:
    """The first ``num_same`` tensors do not hang on the number of threads; the others hardly, and never on chance."""
    alone, two, again, five = (on_threads(num_threads, work) for num_threads in (1, 2, 2, 5))
    assert all(torch.equal(*pair) for pair in zip(two, again, strict=True))
    for found in (two, five):
        assert all(torch.equal(*pair) for pair in zip(found[:num_same], alone[:num_same], strict=True))
        assert all(near(*pair, LAST_BITS) for pair in zip(found[num_same:], alone[num_same:], strict=True))


@pytest.mark.parametrize(
    "lengths",
    [LENGTHS, [150], [3, 5], [1], [0, 0, 7, 0], [0, 0], [*(5 for _ in range(90)), 300]],
    ids=["many", "one journey", "fewer blocks than threads", "one event", "mostly empty", "no events", "one long"],
)
def test_a_layer_hangs_on_the_threads_in_the_last_bits_of_its_weights_gradients(lengths: list[int]) -> None:
    torch.manual_seed(0)
    rows, (width, heads, hidden) = sum(lengths), (96, 2, 64)
    layer = Layer(width, heads, hidden, 0.2)
    angle = 6.0 * torch.rand(rows, width // heads // 2)
    turn, offsets_B = torch.polar(torch.ones_like(angle), angle), torch.from_numpy(np.r_[0, np.cumsum(lengths)])
    given, grad = torch.randn(rows, width).requires_grad_(), torch.randn(rows, width)

    def work() -> list[Tensor]:
        out = whole_layer(given, turn, offsets_B, layer.weights(), heads, 0.2)
        return [out.detach(), *torch.autograd.grad(out, [given, *layer.weights()], grad)]

    check(work, num_same=2)


def test_a_layer_on_threads_is_the_plain_one() -> None:
    layer, x, turn, offsets_B = a_layer(96, 2, 64)
    torch.set_num_threads(3)
    assert takes(x, layer.weights(), layer.heads)
    given, plain = x.clone().requires_grad_(), x.clone().requires_grad_()
    found = whole_layer(given, turn, offsets_B, layer.weights(), layer.heads, 0.0)
    expected = plain_layer(layer, plain, turn, [torch.ones(())] * 2)
    assert near(found - x, expected - x)
    grad, weights = torch.randn_like(x), layer.weights()
    mine, theirs = (
        torch.autograd.grad(out, [start, *weights], grad) for out, start in ((found, given), (expected, plain))
    )
    assert all(near(first, second, 0.015) for first, second in zip(mine[1:], theirs[1:], strict=True))


@pytest.mark.parametrize(
    ("rows", "vocabulary", "offset"), [(1, 5, 0.0), (40, 7, 0.0), (300, 302, 0.0), (700, 1500, 0.0), (200, 50, 500.0)]
)
def test_a_total_over_products_hangs_on_the_threads_in_its_last_bits(rows: int, vocabulary: int, offset: float) -> None:
    torch.manual_seed(1)
    query, embedding_VD = (0.3 * torch.randn(rows, 32)).requires_grad_(), torch.randn(vocabulary, 32).requires_grad_()
    bias_V = (torch.randn(vocabulary) + offset).requires_grad_()
    weight_R = torch.rand(rows) + 0.1

    def work() -> list[Tensor]:
        with products.products_in(products.FUSED):
            total = log_sum_exp_total(query, embedding_VD, bias_V, weight_R)
        assert "Fused" in total.grad_fn.name()  # type: ignore[union-attr]
        of_query, *others = torch.autograd.grad(total, [query, embedding_VD, bias_V])
        return [of_query, total.detach(), *others]

    check(work, num_same=1)


@pytest.mark.parametrize(("rows", "width"), [(0, 32), (1, 32), (130, 96), (900, 96)])
def test_vectors_of_events_and_their_gradients_do_not_hang_on_the_threads(rows: int, width: int) -> None:
    torch.manual_seed(2)
    table, codes = torch.randn(40, width).requires_grad_(), torch.randint(40, (rows, 2))
    offsets = torch.from_numpy(np.r_[0, np.cumsum(np.arange(rows) % 4)])
    bags, values = [(torch.randint(40, (int(offsets[-1]),)), offsets)], torch.randn(rows, 3)
    weight, bias = torch.randn(width, 3).requires_grad_(), torch.randn(width).requires_grad_()

    def work() -> list[Tensor]:
        out = embedding.embedded_events(table, codes, bags, values, weight, bias, 0.3)
        return [out.detach(), *torch.autograd.grad(out.square().sum(), [table, weight, bias])]

    check(work, num_same=4)


def test_a_code_beyond_the_table_is_refused_whichever_thread_meets_it() -> None:
    torch.set_num_threads(3)
    codes = torch.zeros(2000, 1, dtype=torch.int64)
    codes[1990] = 40
    with pytest.raises(IndexError, match="beyond the table"):
        embedding.embedded_events(torch.randn(40, 32), codes, [], None, None, None, 0.0)


def test_a_thread_that_finds_no_memory_says_so() -> None:
    """A journey of more events than any machine holds: its part cannot make its blocks."""
    layer, x, turn, _ = a_layer(32, 2, 32)
    made = library("layer", width=32, hidden=32, heads=2)
    assert made is not None
    qkv, seen = torch.zeros(len(x) + 8, 96).bfloat16(), torch.zeros(len(x) + 8, 32).bfloat16()
    offsets_B, log_sums = torch.tensor([0, 2**44]), torch.zeros(len(x), 2)
    torch.set_num_threads(2)
    sizes, weights = (len(x), 1, 0), [each.detach() for each in layer.weights()]
    with pytest.raises(MemoryError, match="no memory"):
        call(
            made.layer_forward, sizes, ctypes.c_uint64(0), offsets_B, x, turn, weights, qkv, seen, log_sums,
            torch.empty_like(x),
        )  # fmt: skip


def test_the_threads_are_those_of_torch() -> None:
    layer, x, turn, offsets_B = a_layer(32, 2, 32)
    torch.set_num_threads(3)
    torch.ones(2**20).exp()  # torch starts its threads
    before = threads()
    whole_layer(x, turn, offsets_B, layer.weights(), layer.heads, 0.0)
    assert threads() <= before


def test_no_thread_ends_where_parts_are_fewer() -> None:
    """Torch's next operation would have to start it anew: milliseconds, where there are many."""
    torch.set_num_threads(4)
    torch.ones(2**20).exp()
    before, table = threads(), torch.randn(40, 32).requires_grad_()
    out = embedding.embedded_events(table, torch.zeros(300, 1, dtype=torch.int64), [], None, None, None, 0.0)
    out.sum().backward()  # in two parts
    torch.ones(2**20).exp()
    assert threads() >= before


def test_without_threads_of_torch_one_is_enough_and_more_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x, *_ = a_layer(32, 2, 32)
    monkeypatch.setattr(native, "starter", lambda: 0)
    torch.set_num_threads(1)
    assert takes(x, layer.weights(), layer.heads)
    torch.set_num_threads(2)
    assert not takes(x, layer.weights(), layer.heads)
