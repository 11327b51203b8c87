"""Losses over a vocabulary of products, and the sets of products they are asked for.

A query's answer is a set, such as a basket: it shares the mass of one among its known members. ``FullSoftmax`` is the
exact cross entropy and the default; ``SampledSoftmax`` and ``GeneralisedCrossEntropy`` look at a few negatives, drawn
anew for each batch and shared by its rows, for vocabularies too large for that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from constellation.errors import InputError
from constellation.journeys.vocabulary import FIRST_KNOWN
from constellation.kernels.cross_entropy import set_cross_entropy_total
from constellation.kernels.products import linear

UNIFORM, LOG_UNIFORM = "uniform", "log_uniform"

OUT = -1e9
"""Score of what is not to be counted. Minus infinity would leave a row of nothing else without a gradient."""


@dataclass
class ProductSets:
    """A set of products for each of R rows: ``product_M`` from 0, ``share_M`` summing to 1 in a row, or all 0.

    Row r holds members ``offsets[r] : offsets[r + 1]``; ``row_M`` says the same from the other side.
    ``asked_R`` is 1.0 where the row has a known member and is asked at all, else 0.0.
    query_R: which query each row is asked of, no one twice; None: the one in its own place.
    """

    product_M: Tensor
    share_M: Tensor
    row_M: Tensor
    offsets: Tensor
    asked_R: Tensor
    query_R: Tensor | None = None

    @classmethod
    def of(
        cls, code_M: Tensor, offsets: Tensor, asked_R: Tensor | None = None, query_R: Tensor | None = None
    ) -> ProductSets:
        """From the model codes of a list column; missing and unknown codes are no members."""
        # The length is known, so that the device need not be asked for it.
        row_M = torch.repeat_interleave(offsets.diff(), output_size=len(code_M))
        known_M = (code_M >= FIRST_KNOWN).float()
        if asked_R is not None:
            known_M = known_M * asked_R.float().index_select(0, row_M)
        size_R = known_M.new_zeros(len(offsets) - 1).index_add(0, row_M, known_M)
        share_M = known_M / size_R.clamp(min=1).index_select(0, row_M)
        return cls((code_M - FIRST_KNOWN).clamp(min=0), share_M, row_M, offsets, (size_R > 0).float(), query_R)

    def queries(self, query_ND: Tensor) -> Tensor:
        """The query of each row [R, D]."""
        return query_ND if self.query_R is None else query_ND.index_select(0, self.query_R)


class Products(nn.Module):
    """Scores of ``size`` products: product with their embedding, plus a bias each.

    tied: take the embeddings that events are read with, by :meth:`tie`, instead of own ones.
    """

    def __init__(self, size: int, width: int, *, std: float, tied: bool = False) -> None:
        super().__init__()
        self.embedding_VD = None if tied else nn.Parameter(torch.randn(size, width) * std)
        self.bias_V = nn.Parameter(torch.zeros(size))
        # In a tuple, or the encoder would be registered as a part of the objective, its weights saved twice.
        self._source: tuple[nn.Module, ...] = ()

    def tie(self, source: nn.Module) -> None:
        """``source.product_embedding()`` gives the embeddings [V, D]."""
        self._source = (source,)

    @property
    def embedding(self) -> Tensor:
        if self.embedding_VD is not None:
            return self.embedding_VD
        (source,) = self._source
        table: Tensor = source.product_embedding()  # type: ignore[operator]
        return table

    def forward(self, query_RD: Tensor) -> Tensor:
        """Scores [R, V], float32."""
        return functional.linear(query_RD, self.embedding, self.bias_V).float()

    def of_members(self, query_RD: Tensor, sets: ProductSets) -> Tensor:
        """Scores [M] of the members of each row's set."""
        query_MD = query_RD.index_select(0, sets.row_M)
        own_MD = functional.embedding(sets.product_M, self.embedding)
        return (query_MD * own_MD).sum(1) + self.bias_V.index_select(0, sets.product_M)


class FullSoftmax(nn.Module):
    """Cross entropy with the softmax over all products, never holding all their scores."""

    def forward(self, query_ND: Tensor, products: Products, sets: ProductSets) -> Tensor:
        """Sum over the asked rows of the mean of -log softmax over the row's set."""
        return set_cross_entropy_total(
            query_ND,
            products.embedding,
            products.bias_V,
            (sets.product_M, sets.offsets),
            sets.row_M,
            sets.share_M,
            sets.asked_R,
            sets.query_R,
        )


class _Negatives(nn.Module):
    """num_negatives: drawn per batch with replacement. negatives: ``log_uniform`` draws the rank of a product, the most
    frequent first, with density 1 / rank, near to how often products are bought; ``uniform`` draws all alike."""

    def __init__(self, *, num_negatives: int, negatives: str) -> None:
        super().__init__()
        if num_negatives < 1:
            raise InputError(f"num_negatives must be at least 1, found {num_negatives}.")
        if negatives not in (UNIFORM, LOG_UNIFORM):
            raise InputError(f"negatives must be {LOG_UNIFORM} or {UNIFORM}, found {negatives!r}.")
        self.num_negatives, self.negatives = int(num_negatives), negatives

    def draw(self, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Products in ascending order [K], and the log of drawn / expected number for each.

        On a CPU they are different. Elsewhere, where their number would have to be waited for, K is ``num_negatives``:
        a product that was drawn before stands there again, with ``OUT`` instead of the logarithm.
        """
        uniform = torch.rand(self.num_negatives, dtype=torch.float64, device=device)
        if self.negatives == UNIFORM:
            drawn = (uniform * size).long()
        else:
            drawn = torch.exp(uniform * math.log(size + 1)).long() - 1
        product_K, count_K = _counted(drawn.clamp(0, size - 1), shortened=device.type == "cpu")
        if self.negatives == UNIFORM:
            chance_K = torch.full_like(product_K, 1.0 / size, dtype=torch.float64)
        else:
            chance_K = torch.log1p(1.0 / (product_K.double() + 1.0)) / math.log(size + 1)
        log_weight_K = (count_K.clamp(min=1) / (self.num_negatives * chance_K)).log().float()
        return product_K, torch.where(count_K > 0, log_weight_K, OUT)

    @staticmethod
    def scores(query_RD: Tensor, products: Products, sets: ProductSets, product_K: Tensor) -> Tensor:
        """Scores [R, K] of the negatives; about ``OUT`` where a negative is a member of the row's own set."""
        embedding_KD = functional.embedding(product_K, products.embedding)
        logits_RK = linear(query_RD, embedding_KD).float() + products.bias_V.index_select(0, product_K)
        place_M = torch.searchsorted(product_K, sets.product_M).clamp(max=len(product_K) - 1)
        is_hit_M = (product_K.index_select(0, place_M) == sets.product_M) & (sets.share_M > 0)
        hits_RK = torch.zeros_like(logits_RK).index_put(
            (sets.row_M, place_M), torch.where(is_hit_M, OUT, 0.0), accumulate=True
        )
        return logits_RK + hits_RK


def _counted(drawn_K: Tensor, *, shortened: bool) -> tuple[Tensor, Tensor]:
    """The values in ascending order and how often each was drawn; not shortened: a value's further places count 0."""
    if shortened:
        values, counts = drawn_K.unique(return_counts=True)
        return values, counts
    sorted_K = drawn_K.sort().values
    is_first_K = torch.ones_like(sorted_K, dtype=torch.bool)
    is_first_K[1:] = sorted_K[1:] != sorted_K[:-1]
    of_value_K = is_first_K.cumsum(0) - 1
    count_K = torch.zeros_like(sorted_K).index_add(0, of_value_K, torch.ones_like(sorted_K))
    return sorted_K, torch.where(is_first_K, count_K.index_select(0, of_value_K), 0)


class SampledSoftmax(_Negatives):
    """Cross entropy whose sum over all products is estimated from negatives.

    Each negative counts for drawn / expected many (Bengio and Senecal 2008, the logQ correction); members of the set
    are in the sum as they are, without a correction, and are no negatives of their own row. So the estimate of the sum
    is unbiased.
    """

    def __init__(self, *, num_negatives: int = 1024, negatives: str = LOG_UNIFORM) -> None:
        super().__init__(num_negatives=num_negatives, negatives=negatives)

    def forward(self, query_ND: Tensor, products: Products, sets: ProductSets) -> Tensor:
        query_RD = sets.queries(query_ND)
        product_K, log_weight_K = self.draw(len(products.bias_V), query_RD.device)
        others_R = (self.scores(query_RD, products, sets, product_K) + log_weight_K).logsumexp(1)
        own_M = products.of_members(query_RD, sets).float()
        member_M = sets.share_M > 0
        counted_M = torch.where(member_M, own_M, OUT)
        most_R = others_R.detach().scatter_reduce(0, sets.row_M, counted_M.detach(), "amax")
        sum_R = (others_R - most_R).exp().index_add(0, sets.row_M, (counted_M - most_R[sets.row_M]).exp())
        log_sum_R = torch.where(sets.asked_R > 0, sum_R.clamp(min=torch.finfo(sum_R.dtype).tiny).log() + most_R, 0.0)
        return log_sum_R.sum() - (torch.where(member_M, own_M, 0.0) * sets.share_M).sum()


class GeneralisedCrossEntropy(_Negatives):
    """gBCE (Petrov and Macdonald 2023): binary cross entropy whose positive is raised to a power beta.

    With few negatives plain binary cross entropy is overconfident; beta, from the sampling rate and ``calibration`` t
    in [0, 1], undoes that: t = 1 calibrates fully, t = 0 is the plain one.
    """

    def __init__(self, *, num_negatives: int = 256, negatives: str = UNIFORM, calibration: float = 0.75) -> None:
        super().__init__(num_negatives=num_negatives, negatives=negatives)
        if not 0.0 <= calibration <= 1.0:
            raise InputError(f"calibration must lie in [0, 1], found {calibration}.")
        self.calibration = float(calibration)

    def power(self, size: int) -> float:
        """beta = alpha (t (1 - 1 / alpha) + 1 / alpha), with alpha the share of the other products that is drawn."""
        rate = min(1.0, self.num_negatives / max(size - 1, 1))
        return rate * (self.calibration * (1.0 - 1.0 / rate) + 1.0 / rate)

    def forward(self, query_ND: Tensor, products: Products, sets: ProductSets) -> Tensor:
        """Per row the mean over the positive and the negatives, summed over the asked rows."""
        size, query_RD = len(products.bias_V), sets.queries(query_ND)
        product_K, log_weight_K = self.draw(size, query_RD.device)
        again_K = torch.where(log_weight_K == OUT, OUT, 0.0)
        logits_RK = self.scores(query_RD, products, sets, product_K) + again_K
        negative_R = functional.softplus(logits_RK).sum(1)
        positive_M = functional.softplus(-products.of_members(query_RD, sets).float()) * sets.share_M
        total = self.power(size) * positive_M.sum() + (negative_R * sets.asked_R).sum()
        return total / (1 + self.num_negatives)
