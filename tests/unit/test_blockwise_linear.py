"""A linear layer in C++ against its plain twin in float32, on one thread and on more."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from constellation.kernels import products
from constellation.kernels.linear import takes
from tests.unit.test_native import compiled, near, one_thread  # noqa: F401 - a fixture of every test here

pytestmark = compiled


def given(rows: int, width: int, out: int, bias: bool) -> list[Tensor]:
    torch.manual_seed(rows)
    parts = [torch.randn(rows, width), torch.randn(out, width), *([torch.randn(out)] if bias else [])]
    return [part.requires_grad_() for part in parts]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("rows", "width", "out"), [(0, 32, 32), (1, 64, 32), (200, 32, 96), (513, 96, 64)])
def test_rows_and_gradients_are_those_of_the_plain_one(rows: int, width: int, out: int, bias: bool) -> None:
    parts, grad = given(rows, width, out, bias), torch.randn(rows, out)
    expected = functional.linear(*parts)
    of_expected = torch.autograd.grad(expected, parts, grad)
    found = []
    for num_threads in (1, 3, 3):
        torch.set_num_threads(num_threads)
        with products.products_in(products.FUSED):
            result = products.linear(*parts)  # type: ignore[arg-type]
        assert result.dtype == torch.float32
        found.append([result.detach(), *torch.autograd.grad(result, parts, grad)])
    assert all(near(mine, theirs) for mine, theirs in zip(found[0], [expected, *of_expected], strict=True))
    assert all(torch.equal(*pair) for pair in zip(found[1], found[2], strict=True))
    assert all(torch.equal(found[0][place], found[1][place]) for place in (0, 1))  # rows, and the gradients of rows
    assert all(near(*pair, 2e-6) for pair in zip(found[1], found[0], strict=True))


def test_rows_that_need_no_gradient_get_none_and_odd_ones_are_left_to_torch() -> None:
    rows, weight, bias = given(70, 32, 32, bias=True)
    with products.products_in(products.FUSED):
        result = products.linear(rows.detach(), weight, bias)
        of_weight, of_bias = torch.autograd.grad(result.sum(), [weight, bias])
    torch.testing.assert_close(of_weight, rows.detach().sum(0).expand(32, -1), rtol=0.01, atol=0.1)
    torch.testing.assert_close(of_bias, torch.full((32,), 70.0))
    assert takes(rows, weight, bias)
    assert not takes(rows.bfloat16(), weight, bias) and not takes(rows, weight.double(), bias)
    assert not takes(rows, weight[:5], bias[:5]) and not takes(torch.randn(2, 8), torch.randn(32, 8), None)
    with products.products_in(products.FUSED):
        assert products.linear(rows, weight[:5], bias[:5]).dtype == torch.bfloat16
