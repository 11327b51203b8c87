"""The softmax over products that takes the members of sets off its total: by torch, in C++, and on threads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from constellation.kernels import products
from constellation.kernels.cross_entropy import set_cross_entropy_total
from tests.unit.test_native import compiled, near, one_thread  # noqa: F401 - a fixture of every test here

NAMES = [products.FLOAT32, pytest.param(products.FUSED, marks=compiled)]


class Case:
    """Sets of none to three products for each row, a few of them unknown, asked of queries in another order."""

    def __init__(self, rows: int, vocabulary: int, offset: float = 0.0, *, moved: bool = True) -> None:
        torch.manual_seed(rows)
        self.query = (0.3 * torch.randn(rows + 3, 32)).requires_grad_()
        self.embedding = torch.randn(vocabulary, 32).requires_grad_()
        self.bias = (torch.randn(vocabulary) + offset).requires_grad_()
        self.offsets = torch.from_numpy(np.r_[0, np.cumsum((np.arange(rows) + 1) % 4)])
        self.code = torch.randint(vocabulary, (int(self.offsets[-1]),))
        self.row = torch.repeat_interleave(self.offsets.diff())
        known = (torch.rand(len(self.code)) > 0.2).float()
        size = torch.zeros(rows).index_add(0, self.row, known)
        self.share, self.asked = known / size.clamp(min=1)[self.row], (size > 0).float()
        self.query_of = torch.randperm(rows + 3)[:rows] if moved else None

    def total(self) -> Tensor:
        query = self.query if self.query_of is not None else self.query[: len(self.asked)]
        bag = self.code, self.offsets
        return set_cross_entropy_total(
            query, self.embedding, self.bias, bag, self.row, self.share, self.asked, self.query_of
        )

    def plain(self) -> Tensor:
        """Row by row, member by member."""
        total = self.query.new_zeros(())
        for row, asked in enumerate(self.asked):
            place = row if self.query_of is None else int(self.query_of[row])
            logits = self.query[place] @ self.embedding.T + self.bias
            total = total + asked * logits.logsumexp(0)
            for member in range(int(self.offsets[row]), int(self.offsets[row + 1])):
                total = total - self.share[member] * logits[self.code[member]]
        return total

    def gradients(self, total: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(3.0 * total, [self.query, self.embedding, self.bias])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("moved", [True, False])
@pytest.mark.parametrize(("rows", "vocabulary", "offset"), [(1, 5, 0.0), (150, 302, 0.0), (70, 50, 400.0)])
def test_a_total_over_sets_is_its_sum_and_so_are_its_gradients(
    rows: int, vocabulary: int, offset: float, moved: bool, name: str
) -> None:
    case = Case(rows, vocabulary, offset, moved=moved)
    with products.products_in(name):
        found = case.total()
    assert ("Fused" in found.grad_fn.name()) == (name == products.FUSED)  # type: ignore[union-attr]
    expected = case.plain()
    torch.testing.assert_close(found, expected, rtol=5e-3, atol=1e-2)
    within = 0.01 if name == products.FUSED else 1e-4
    for mine, theirs in zip(case.gradients(found), case.gradients(expected), strict=True):
        assert near(mine, theirs, within)


@compiled
@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 5), (400, 302), (300, 1500)])
def test_on_threads_it_is_the_same_but_for_its_last_bits(rows: int, vocabulary: int) -> None:
    case, found = Case(rows, vocabulary), []
    for num_threads in (1, 3, 3):
        torch.set_num_threads(num_threads)
        with products.products_in(products.FUSED):
            total = case.total()
        found.append([total.detach(), *case.gradients(total)])
    assert all(torch.equal(*pair) for pair in zip(found[1], found[2], strict=True))
    assert torch.equal(found[0][1], found[1][1])  # of the queries
    assert all(near(*pair, 2e-6) for pair in zip(found[1], found[0], strict=True))


@compiled
def test_nothing_asked_is_no_loss_and_no_gradient() -> None:
    case = Case(9, 7)
    case.asked, case.share = torch.zeros_like(case.asked), torch.zeros_like(case.share)
    with products.products_in(products.FUSED):
        total = case.total()
    assert total.item() == 0.0 and not any(each.any() for each in case.gradients(total))


@compiled
@pytest.mark.parametrize("code", [-1, 7])
def test_a_member_beyond_the_vocabulary_is_refused(code: int) -> None:
    case = Case(9, 7)
    case.code[case.share.nonzero()[0]] = code
    with products.products_in(products.FUSED), pytest.raises(IndexError, match="beyond the table"):
        case.total()
