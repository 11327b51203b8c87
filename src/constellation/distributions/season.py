"""The time of year: what a model's totals missed at this season of earlier years, taken off what it answers now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from constellation.distributions.levels import as_levels

STEP_DAYS = 14
YEAR_DAYS = 364
"""Whole weeks, so that a weekday meets the same weekday of the year before."""

MOST_YEARS = 3
NUM_SLOTS = (MOST_YEARS + 1) * YEAR_DAYS // STEP_DAYS + 1
"""Cutoffs that are kept, every ``STEP_DAYS`` back from the last."""

MICROSECONDS_PER_DAY = 86_400_000_000

GRID = (0.0001, 0.0005, *((step + 0.5) / 400 for step in range(400)), 0.9995, 0.9999)
"""Levels at which the distribution to be moved is known."""


class Season(nn.Module):
    """A factor of the level of each target, by the cutoff; without anything learned, answers stay as they are.

    Of each target (``value_91d``) it keeps, at cutoffs every ``STEP_DAYS`` before ``until``, the log of realised over
    expected total against all of them, where known, and how far that is believed to come again. At a cutoff the factor
    is the exponential of what is believed times the mean of the log ratios one, two and three years earlier; 1 where no
    earlier year is known. Nothing after ``until`` is in it. At a past cutoff it reads the ratios of years before that
    cutoff alone, but their level and the belief come from all years that were learned from.

    The level moves as a rate of purchases would: P(zero) becomes ``P(zero) ** factor``, the rest of the distribution
    stretches until its mean is the expected value times the factor, and counts stay whole.
    """

    log_ratio_KT: Tensor
    known_KT: Tensor
    believed_K: Tensor
    until: Tensor

    def __init__(self, targets: Sequence[str]) -> None:
        """targets: as ``kind_<h>d``."""
        super().__init__()
        self.targets = sorted(targets, key=lambda target: (target.partition("_")[0], _days(target)))
        self.register_buffer("log_ratio_KT", torch.zeros(len(self.targets), NUM_SLOTS))
        self.register_buffer("known_KT", torch.zeros(len(self.targets), NUM_SLOTS, dtype=torch.bool))
        self.register_buffer("believed_K", torch.zeros(len(self.targets)))
        self.register_buffer("until", torch.zeros((), dtype=torch.int64))

    def forget(self) -> None:
        for buffer in self.buffers():
            buffer.zero_()

    def learn(self, until: int, target: str, log_ratio_T: Tensor, believed: float) -> None:
        """log_ratio_T: [NUM_SLOTS] at ``until`` (microseconds) and every ``STEP_DAYS`` before, NaN where unknown."""
        assert 0 <= believed <= 1 and log_ratio_T.shape == (NUM_SLOTS,)
        place = self.targets.index(target)
        self.until.fill_(until)
        self.known_KT[place] = log_ratio_T.isfinite().to(self.known_KT)
        self.log_ratio_KT[place] = log_ratio_T.nan_to_num(nan=0.0).to(self.log_ratio_KT)
        self.believed_K[place] = believed

    def take(self, other: Season) -> None:
        """What another one, of the same targets, has learned."""
        assert self.targets == other.targets
        for name, buffer in self.named_buffers():
            buffer.copy_(other.get_buffer(name))

    def factor(self, target: str, cutoff_Q: Tensor) -> Tensor:
        """[Q] for cutoffs in microseconds UTC."""
        place = self.targets.index(target)
        years_Y1 = torch.arange(1, MOST_YEARS + 1, device=cutoff_Q.device).unsqueeze(1)
        back_YQ = self.until - cutoff_Q + years_Y1 * (YEAR_DAYS * MICROSECONDS_PER_DAY)
        step = STEP_DAYS * MICROSECONDS_PER_DAY
        rows_YQ = (back_YQ // step).clamp(0, NUM_SLOTS - 2)
        share_YQ = (back_YQ - rows_YQ * step).to(torch.float32) / step
        log_ratio_T, known_T = self.log_ratio_KT[place], self.known_KT[place]
        near_YQ, far_YQ = log_ratio_T[rows_YQ], log_ratio_T[rows_YQ + 1]
        # On a slot its own value counts, whether or not the next one is known.
        known_YQ = known_T[rows_YQ] & (known_T[rows_YQ + 1] | (share_YQ == 0)) & (share_YQ >= 0) & (share_YQ <= 1)
        total_Q = torch.where(known_YQ, near_YQ + share_YQ * (far_YQ - near_YQ), 0.0).sum(0)
        return torch.exp(self.believed_K[place] * total_Q / known_YQ.sum(0).clamp(min=1))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Weights from before there was a season are read as such that have learned none."""
        for name, buffer in self.named_buffers():
            state_dict.setdefault(prefix + name, torch.zeros_like(buffer))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def asked_levels(self, levels: Sequence[float] | Tensor, like: Tensor) -> Tensor:
        """What to ask of the objectives so that :meth:`forward` can answer ``levels``: float64, ascending."""
        levels_L = as_levels(levels, like.double())
        if not self.has_learned:
            return levels_L
        return torch.cat([levels_L, torch.tensor(GRID, dtype=levels_L.dtype, device=levels_L.device)]).unique()

    @property
    def has_learned(self) -> bool:
        """Whether the level of any target moves."""
        return bool((self.believed_K > 0).any())

    def forward(
        self, answers: Mapping[str, Tensor], cutoff_Q: Tensor, asked_A: Tensor, levels: Sequence[float] | Tensor
    ) -> dict[str, Tensor]:
        """The answers at ``levels``, the level of each target moved, from those at ``asked_levels(levels)``.

        Longer horizons never fall below shorter ones. Moved quantiles are straight between the points of a fixed grid,
        so that none hangs on what else was asked for.
        """
        if not self.has_learned:
            return dict(answers)
        levels_L = as_levels(levels, asked_A)
        chosen_L = torch.searchsorted(asked_A, levels_L)
        grid_G = torch.searchsorted(asked_A, torch.tensor(GRID, dtype=asked_A.dtype, device=asked_A.device))
        # Quantiles of anything without a season: those that were asked for.
        new = {name: answer[:, chosen_L] if name.endswith("_quantiles") else answer for name, answer in answers.items()}
        shorter: dict[str, str] = {}
        for target, is_believed in zip(self.targets, (self.believed_K > 0).tolist(), strict=True):
            if f"{target}_expected" not in answers:
                continue
            kind = target.partition("_")[0]
            if is_believed:
                factor_Q = self.factor(target, cutoff_Q)
                new[f"{target}_expected"] = answers[f"{target}_expected"] * factor_Q.to(answers[f"{target}_expected"])
                if {f"{target}_p_zero", f"{target}_quantiles"} <= answers.keys():
                    parts = answers[f"{target}_p_zero"], answers[f"{target}_quantiles"][:, grid_G]
                    new[f"{target}_p_zero"], new[f"{target}_quantiles"] = _moved(
                        *parts, factor_Q, levels_L, is_count=kind == "purchases"
                    )
            for part, ordered in _ORDERED.items() if kind in shorter else ():
                name, of_shorter = f"{target}_{part}", f"{shorter[kind]}_{part}"
                if name in new and of_shorter in new:
                    new[name] = ordered(new[name], new[of_shorter])
            shorter[kind] = target
        return new


_ORDERED = {"expected": torch.maximum, "p_zero": torch.minimum, "quantiles": torch.maximum}


def _moved(
    p_zero_Q: Tensor, quantiles_QG: Tensor, factor_Q: Tensor, levels_L: Tensor, *, is_count: bool
) -> tuple[Tensor, Tensor]:
    """P(zero) [Q] and quantiles [Q, L] of the moved distribution; quantiles_QG: at the levels of ``GRID``."""
    old_Q1 = p_zero_Q.double().clamp(0.0, 1.0).unsqueeze(1)
    new_Q1 = old_Q1 ** factor_Q.double().unsqueeze(1)
    some_Q1, some_new_Q1 = 1 - old_Q1, (1 - new_Q1).clamp(min=1e-12)
    stretch_Q1 = torch.where(some_Q1 > 0, factor_Q.double().unsqueeze(1) * some_Q1 / some_new_Q1, 1.0)
    level_QL = old_Q1 + some_Q1 * ((levels_L - new_Q1) / some_new_Q1)
    is_zero_QL = levels_L <= new_Q1
    grid_G = torch.tensor(GRID, dtype=torch.float64, device=quantiles_QG.device)
    high_QL = torch.searchsorted(grid_G, level_QL.contiguous()).clamp(1, len(grid_G) - 1)
    low_QL = high_QL - 1
    share_QL = ((level_QL - grid_G[low_QL]) / (grid_G[high_QL] - grid_G[low_QL])).clamp(0.0, 1.0)
    low_QL, high_QL = (quantiles_QG.double().gather(1, place_QL) for place_QL in (low_QL, high_QL))
    if is_count:
        moved_QL = (high_QL * stretch_Q1).round().clamp(min=1.0)
        moved_QL = torch.where(high_QL > 0, moved_QL, 0.0)
    else:
        moved_QL = (low_QL + share_QL * (high_QL - low_QL)) * stretch_Q1
    moved_QL = torch.where(is_zero_QL, 0.0, moved_QL)
    return new_Q1.squeeze(1).to(p_zero_Q), moved_QL.to(quantiles_QG)


def _days(target: str) -> int:
    return int(target.rpartition("_")[2].removesuffix("d"))
