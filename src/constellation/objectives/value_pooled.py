"""Two forecasts of one value, pooled: heads that learn its distribution, and a purchase process that explains it.

Where there is much to learn from, heads win; where little, the process, which knows how buying works. How far each is
believed is learned at the validation cutoff and drawn towards halves by the noise of that one slice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from constellation.distributions.levels import as_levels
from constellation.distributions.pools import Evidence, crps_of, pool_quantiles
from constellation.errors import InputError
from constellation.objectives.base import Loss, Objective
from constellation.objectives.value import Value
from constellation.objectives.value_btyd import ValueBtyd

if TYPE_CHECKING:
    from constellation.journeys.batch import JourneyBatch
    from constellation.journeys.vocabulary import Vocabulary
    from constellation.journeys.windows import Queries
    from constellation.objectives.count_families import CountFamily
    from constellation.objectives.families import Family
    from constellation.objectives.purchase_processes import Process

KINDS = ("value", "purchases")
NUM_MEMBERS = 200
"""Equally likely members that each part's distribution is read at before they are pooled."""

PRIOR_SD = 0.5
"""Of the heads' share about a half, before the slice has spoken: all of [0, 1] is likely."""

MEAN_PRIOR_SD = 0.2
"""Of their share in expected values about that in distributions: ranks of one slice are noisy (experiments/0006)."""

CLEARLY, LEAST_CUSTOMERS = 2.0, 10
"""Standard errors by which another family of counts must be nearer; of fewer customers these are a guess."""


class ValuePooled(Objective):
    """``Value`` and ``ValueBtyd`` on one readout, trained together, answered by their linear pool.

    With share w of the heads the distribution is ``w F + (1 - w) G``: P(zero) is averaged, quantiles are those of the
    mixture. Its CRPS is ``w A + (1 - w) C - w (1 - w) D`` with A and C those of the parts and D the squared distance
    between them (Cramér), so the best share is ``1/2 + (C - A) / 2D``: one number for money and one for purchases, over
    all horizons that the slice has seen. ``settle`` learns it, and a refit keeps it.

    Expected values have shares of their own, learned from how the two rank customers (``Evidence.of_ranks``) and drawn
    to those of the distributions: who tells customers apart best need not know best how far each may stray.

    What the encoder's states say of customers it says well of those it has learned from, and few customers teach it to
    know them one by one. ``heads_read_state`` and ``process_read_state`` false: that part reads what the same readout
    says without the states (aggregates, silence, calendar, attributes); figures in experiments/0012. Where the readout
    knows nothing but states, both read them.

    Counts have a choice of two families: a negative binomial, or ``count_family`` where the slice shows that it is
    nearer, as it is of regular buyers (``settle_counts``).

    A horizon that no label teaches is answered by the process alone; so this objective answers every horizon. Longer
    horizons never fall below shorter ones.

    family, count_family, mean_weight, purchases_weight: of ``Value``. process, money_weight, num_paths, discount_rate,
    lifetime_years: of ``ValueBtyd``. process_weight: of its loss against that of the heads. share: of the heads before
    anything has been settled. Raises InputError where it is no share.
    """

    name = "value"
    needs_horizon_labels = False
    share_T: Tensor
    mean_share_T: Tensor
    taught_K: Tensor

    def __init__(
        self,
        vocabulary: Vocabulary,
        state_width: int,
        readout_width: int,
        horizons_days: Sequence[int],
        *,
        family: Family,
        process: Process,
        count_family: CountFamily | None = None,
        weight: float = 1.0,
        mean_weight: float = 1.0,
        purchases_weight: float = 0.5,
        process_weight: float = 1.0,
        money_weight: float = 1.0,
        num_paths: int = 512,
        discount_rate: float = 0.1,
        lifetime_years: float = 5.0,
        share: float = 0.5,
        heads_read_state: bool = True,
        process_read_state: bool = True,
    ) -> None:
        super().__init__(horizons_days=horizons_days, weight=weight)
        if not 0 <= share <= 1:
            raise InputError(f"share is that of the heads in the pool and must lie in [0, 1], found {share}.")
        widths = (vocabulary, state_width, readout_width, horizons_days)
        self.heads = Value(
            *widths,
            family=family,
            count_family=count_family,
            mean_weight=mean_weight,
            purchases_weight=purchases_weight,
        )
        self.heads.answer_counts(0)
        self.process = ValueBtyd(
            *widths,
            process=process,
            money_weight=money_weight,
            num_paths=num_paths,
            discount_rate=discount_rate,
            lifetime_years=lifetime_years,
        )
        self.process_weight, self.start_share = process_weight, float(share)
        self.heads_read_state, self.process_read_state = heads_read_state, process_read_state
        self.readouts: tuple[nn.Module, ...] = ()
        self.register_buffer("share_T", torch.full((len(KINDS),), self.start_share))
        self.register_buffer("mean_share_T", torch.full((len(KINDS),), self.start_share))
        self.register_buffer("taught_K", torch.ones(len(self.horizons_days), dtype=torch.bool))

    def teach(self, horizons_days: Sequence[int]) -> None:
        """Only these horizons have labels enough to learn from; the process answers the others."""
        self.taught_K.copy_(torch.tensor([days in horizons_days for days in self.horizons_days]))

    def connect_readout(self, readout: nn.Module) -> None:
        """Keep the model's readout, in a tuple, so that its weights do not count as this objective's too."""
        self.readouts = (readout,) if getattr(readout, "reads_beside_state", False) else ()

    def _read(self, readout_QD: Tensor, batch: JourneyBatch) -> tuple[Tensor, Tensor]:
        """What the heads read and what the process reads, [Q, D] each."""
        read_state = (self.heads_read_state, self.process_read_state)
        if all(read_state) or not self.readouts:
            return readout_QD, readout_QD
        without_QD = self.readouts[0](None, batch)
        heads_QD, process_QD = (readout_QD if reads else without_QD for reads in read_state)
        return heads_QD, process_QD

    def loss(self, states_ND: Tensor, readout_QD: Tensor, batch: JourneyBatch) -> Loss:
        """The heads' mean over what was seen of taught horizons, and the process's mean over what was watched."""
        assert batch.targets is not None
        heads_QD, process_QD = self._read(readout_QD, batch)
        observed_QK = batch.targets.observed_QK
        batch.targets.observed_QK = observed_QK & self.taught_K
        try:
            heads = self.heads.loss(states_ND, heads_QD, batch)
        finally:
            batch.targets.observed_QK = observed_QK
        process = self.process.loss(states_ND, process_QD, batch)
        # Both sums over one count, so that ranks can be added up.
        per_head = process.count / heads.count.clamp(min=1)
        return Loss(
            total=per_head * heads.total + self.process_weight * process.total,
            count=process.count,
            parts=heads.parts | {f"process_{name}": part for name, part in process.parts.items()},
        )

    def predict(self, readout_QD: Tensor, batch: JourneyBatch, levels: Sequence[float] | Tensor) -> dict[str, Tensor]:
        """What ``value`` answers, pooled; with ``p_alive`` and ``value_lifetime_expected`` of the process."""
        members_L = (torch.arange(NUM_MEMBERS, device=readout_QD.device, dtype=torch.float64) + 0.5) / NUM_MEMBERS
        read = zip((self.heads, self.process), self._read(readout_QD, batch), strict=True)
        parts = [part.predict(part_QD, batch, members_L) for part, part_QD in read]
        answers = {name: parts[1][name] for name in ("value_lifetime_expected", "p_alive")}
        for kind, shares in zip(KINDS, torch.stack([self.share_T, self.mean_share_T], dim=1), strict=True):
            shorter: dict[str, Tensor] = {}
            for days, taught in zip(self.horizons_days, self.taught_K, strict=True):
                target, share, mean_share = f"{kind}_{days}d", *torch.where(taught, shares, torch.zeros_like(shares))
                pooled = self._pooled(target, share, mean_share, parts, levels)
                if shorter:
                    pooled["expected"] = torch.maximum(pooled["expected"], shorter["expected"])
                    pooled["p_zero"] = torch.minimum(pooled["p_zero"], shorter["p_zero"])
                    pooled["quantiles"] = torch.maximum(pooled["quantiles"], shorter["quantiles"])
                shorter = pooled
                answers |= {f"{target}_{name}": answer for name, answer in pooled.items()}
        return answers

    def _pooled(
        self,
        target: str,
        share: Tensor,
        mean_share: Tensor,
        parts: list[dict[str, Tensor]],
        levels: Sequence[float] | Tensor,
    ) -> dict[str, Tensor]:
        heads, process = ({name: part[f"{target}_{name}"] for name in ("expected", "p_zero", "quantiles")}
                          for part in parts)  # fmt: skip
        pooled = {
            name: share_of * heads[name] + (1 - share_of) * process[name]
            for name, share_of in (("expected", mean_share), ("p_zero", share))
        }
        levels_L = as_levels(levels, heads["quantiles"])
        pooled["quantiles"] = pool_quantiles(heads["quantiles"], process["quantiles"], share, levels_L)
        return pooled

    def settle_counts(self, each: Sequence[Mapping[str, np.ndarray]], queries: Queries) -> int:
        """Choose the heads' family of counts by questions whose answers are known, and what the heads said with each.

        The first one stays unless another's CRPS, in units of the first one's and summed over the horizons seen, is
        lower by two standard errors of customers. Returns its place.
        """
        gain_FQ, place = np.zeros((len(each), len(queries))), 0
        for column, days in self._taught(queries):
            seen_Q = queries.observed_QK[:, column]
            realised_Q = queries.purchases_QK[seen_Q, column].astype(np.float64)
            crps_FQ = np.stack([crps_of(realised_Q, part[f"purchases_{days}d_quantiles"][seen_Q]) for part in each])
            gain_FQ[:, seen_Q] += (crps_FQ[0] - crps_FQ) / max(float(crps_FQ[0].mean()), 1e-12)
        if len(queries) >= LEAST_CUSTOMERS:
            error_F = gain_FQ.std(axis=1, ddof=1) / np.sqrt(len(queries))
            # A head that has gone astray is nobody's choice.
            place = int(np.argmax(np.nan_to_num(gain_FQ.mean(axis=1) - CLEARLY * error_F, nan=-np.inf)))
        self.heads.answer_counts(place)
        return place

    def _taught(self, queries: Queries) -> Iterator[tuple[int, int]]:
        """Columns and days of the horizons that labels teach and of which some questions know the answer."""
        for column, days in enumerate(queries.horizons_days):
            is_taught = days in self.horizons_days and bool(self.taught_K[self.horizons_days.index(days)])
            if is_taught and queries.observed_QK[:, column].any():
                yield column, days

    def settle(self, heads: Mapping[str, np.ndarray], process: Mapping[str, np.ndarray], queries: Queries) -> None:
        """Learn the shares from questions whose answers are known, and what each part alone said of them.

        heads, process: answers by name, with expected values [Q] and quantiles at equally likely levels
        [Q, L]; see ``only``.
        """
        for place, kind in enumerate(KINDS):
            realised_QK = queries.value_QK if kind == "value" else queries.purchases_QK
            evidence, of_ranks = [], []
            for column, days in self._taught(queries):
                seen_Q = queries.observed_QK[:, column]
                quantiles = (part[f"{kind}_{days}d_quantiles"][seen_Q] for part in (heads, process))
                means = (part[f"{kind}_{days}d_expected"][seen_Q] for part in (heads, process))
                realised_Q = realised_QK[seen_Q, column].astype(np.float64)
                evidence.append(Evidence.of(realised_Q, *quantiles))
                of_ranks.append(Evidence.of_ranks(realised_Q, *means))
            if evidence:
                share = Evidence.share(evidence, prior_sd=PRIOR_SD)
                self.share_T[place] = share
                self.mean_share_T[place] = Evidence.share(of_ranks, prior_sd=MEAN_PRIOR_SD, prior=share)

    def only(self, share: float) -> None:
        """Answer by the heads alone (1), by the process alone (0), or by a given pool."""
        self.share_T.fill_(share)
        self.mean_share_T.fill_(share)

    def shares(self) -> dict[str, float]:
        """Of the heads: ``share_value``, ``share_purchases``; in expected values ``mean_share_value``, and so on.

        Also, where counts have a choice, ``count_family``: the place of the chosen one in ``Value.count_families``.
        """
        named = {"share": self.share_T, "mean_share": self.mean_share_T}
        shares = {
            f"{name}_{kind}": share
            for name, share_T in named.items()
            for kind, share in zip(KINDS, share_T.tolist(), strict=True)
        }
        return shares | ({"count_family": float(self.heads.answering)} if len(self.heads.count_families) > 1 else {})

    def settle_as(self, other: Objective) -> None:
        """Take the shares that another one, of the same settings, has learned."""
        assert isinstance(other, ValuePooled)
        self.share_T.copy_(other.share_T)
        self.mean_share_T.copy_(other.mean_share_T)
        self.heads.answer_counts(int(other.heads.answering))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        """Weights of before expected values had shares of their own: they go on with those of the distribution."""
        if f"{prefix}share_T" in state_dict:
            state_dict.setdefault(f"{prefix}mean_share_T", state_dict[f"{prefix}share_T"])
        super()._load_from_state_dict(state_dict, prefix, *rest)
