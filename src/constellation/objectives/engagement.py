"""What does each action bring: the reward of every action at a decision, as a mean with members and quantiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from constellation.objectives.base import HEAD_STD, Loss, Objective

if TYPE_CHECKING:
    from constellation.journeys.batch import JourneyBatch
    from constellation.journeys.vocabulary import Vocabulary


class Engagement(Objective):
    """``reward(x, a) = customer(x) + action(a) + <u(x), v(a)>``, one model for all actions.

    ``v(a)`` is an embedding of the action plus a linear map of its features, so that an action that was never logged
    can be scored from its description (its embedding is then the mean, zero). Means are learned by squared error of
    rewards in units of their standard deviation, which makes totals right; ``num_members`` heads, each with Poisson(1)
    weights drawn once for each customer, are a bootstrap of the last layer (Osband et al. 2016) and say how sure the
    mean is. Quantiles of the reward of the chosen action are learned by pinball loss, monotone by construction.

    num_actions, action_features [A][Y], reward_mean, reward_std: of the training decisions, told by who builds the
    model. The history alone is read; the batch's ``decided`` holds what was chosen and is read by the loss only.
    """

    name = "engagement"
    features_AY: Tensor
    levels_G: Tensor

    def __init__(
        self,
        vocabulary: Vocabulary,
        state_width: int,
        readout_width: int,
        horizons_days: Sequence[int],
        *,
        weight: float = 1.0,
        num_members: int = 4,
        effect_width: int = 16,
        mean_weight: float = 1.0,
        quantile_weight: float = 0.5,
        num_levels: int = 9,
        num_actions: int = 2,
        action_features: Sequence[Sequence[float]] = (),
        reward_mean: float = 0.0,
        reward_std: float = 1.0,
    ) -> None:
        super().__init__(horizons_days=horizons_days, weight=weight)
        del vocabulary, state_width  # every objective is built with the same arguments
        self.num_actions, self.num_members, self.num_levels = num_actions, num_members, num_levels
        self.mean_weight, self.quantile_weight = mean_weight, quantile_weight
        self.reward_mean, self.reward_std = float(reward_mean), max(float(reward_std), 1e-9)
        described = torch.tensor([list(row) for row in action_features], dtype=torch.float32)
        described = described if described.numel() else torch.zeros(num_actions, 0)
        spread_Y = described.std(dim=0, correction=0) if len(described) else described.new_zeros(described.shape[1])
        scaled_AY = (described - described.mean(dim=0)) / torch.where(spread_Y > 0, spread_Y, torch.ones_like(spread_Y))
        self.register_buffer("features_AY", scaled_AY.nan_to_num(0.0))
        self.customer = nn.Linear(readout_width, num_members)
        self.of_customer = nn.Linear(readout_width, num_members * effect_width)
        self.of_action = nn.Parameter(torch.randn(num_actions, effect_width) * 0.1)
        self.of_features = nn.Linear(self.features_AY.shape[1], effect_width, bias=False)
        self.action_AM = nn.Parameter(torch.zeros(num_actions, num_members))
        self.quantile_head = nn.Linear(readout_width + effect_width, num_levels)
        self.register_buffer("levels_G", (torch.arange(num_levels) + 0.5) / num_levels, persistent=False)
        for part in (self.customer, self.of_customer, self.quantile_head):
            nn.init.normal_(part.weight, std=HEAD_STD)
            nn.init.zeros_(part.bias)

    def _actions(self) -> Tensor:
        """[A, E]: embedding and description together."""
        return self.of_action + self.of_features(self.features_AY)

    def _means(self, readout_QD: Tensor) -> Tensor:
        """[Q, A, M] in standard deviations from the mean reward."""
        customer_QEM = self.of_customer(readout_QD).unflatten(-1, (-1, self.num_members))
        meet_QAM = torch.einsum("qem,ae->qam", customer_QEM, self._actions())
        return (self.customer(readout_QD).unsqueeze(1) + self.action_AM + meet_QAM).float()

    def _quantiles(self, readout_QD: Tensor, action_QE: Tensor) -> Tensor:
        """[Q, G] ascending, in standard deviations from the mean reward."""
        raw_QG = self.quantile_head(torch.cat([readout_QD, action_QE], dim=-1)).float()
        return torch.cat(
            [raw_QG[..., :1], raw_QG[..., :1] + functional.softplus(raw_QG[..., 1:] - 2.0).cumsum(-1)], dim=-1
        )

    def loss(self, states_ND: Tensor, readout_QD: Tensor, batch: JourneyBatch) -> Loss:
        """Over the decisions of ``batch.decided`` whose reward is known."""
        decided = getattr(batch, "decided", None)
        assert decided is not None, "the batch carries no decisions"
        rows = torch.arange(len(decided.action_Q), device=readout_QD.device)
        known_Q = decided.known_Q
        reward_Q = (torch.where(known_Q, decided.reward_Q, 0.0) - self.reward_mean) / self.reward_std
        action_Q = torch.where(known_Q, decided.action_Q, 0)
        mean_QM = self._means(readout_QD)[rows, action_Q]
        weight_QM = decided.member_weight_QM[:, : self.num_members]
        square_QM = weight_QM * (mean_QM - reward_Q.unsqueeze(1)) ** 2
        quantile_QG = self._quantiles(readout_QD, self._actions()[action_Q])
        short_QG = reward_Q.unsqueeze(1) - quantile_QG
        pinball_QG = torch.maximum(self.levels_G * short_QG, (self.levels_G - 1) * short_QG)
        count = known_Q.sum()
        mean = torch.where(known_Q, square_QM.mean(dim=1), torch.zeros_like(reward_Q)).sum()
        quantile = torch.where(known_Q, pinball_QG.mean(dim=1), torch.zeros_like(reward_Q)).sum()
        parts: dict[str, Any] = {"mean": mean, "quantiles": quantile}
        return Loss(
            total=self.mean_weight * mean + self.quantile_weight * quantile,
            count=count,
            parts={name: part.detach() / count.clamp(min=1) for name, part in parts.items()},
        )

    def predict(self, readout_QD: Tensor, batch: JourneyBatch, levels: Sequence[float] | Tensor) -> dict[str, Tensor]:
        """``reward_members [Q, A, M]``, ``reward_expected [Q, A]`` and ``reward_quantiles [Q, A, L]``, as logged."""
        members_QAM = self._means(readout_QD) * self.reward_std + self.reward_mean
        levels_L = torch.as_tensor(levels, dtype=torch.float32, device=readout_QD.device)
        each = []
        for action_E in self._actions():
            quantile_QG = self._quantiles(readout_QD, action_E.expand(len(readout_QD), -1))
            each.append(_interpolate(quantile_QG, self.levels_G, levels_L) * self.reward_std + self.reward_mean)
        return {
            "reward_members": members_QAM,
            "reward_expected": members_QAM.mean(dim=2),
            "reward_quantiles": torch.stack(each, dim=1),
        }


def _interpolate(quantile_QG: Tensor, levels_G: Tensor, levels_L: Tensor) -> Tensor:
    """[Q, L]: linear between the grid's levels, flat beyond them."""
    place_L = torch.searchsorted(levels_G, levels_L.clamp(levels_G[0], levels_G[-1])).clamp(1, len(levels_G) - 1)
    share_L = ((levels_L - levels_G[place_L - 1]) / (levels_G[place_L] - levels_G[place_L - 1])).clamp(0.0, 1.0)
    return quantile_QG[:, place_L - 1] * (1 - share_L) + quantile_QG[:, place_L] * share_L
