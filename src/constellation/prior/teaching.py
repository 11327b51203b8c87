"""Teaching: each step draws new worlds, so nothing is seen twice and nothing can be learned by heart."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from constellation.errors import InputError
from constellation.prior.features import Units, course, describe, units
from constellation.prior.histories import Histories
from constellation.prior.network import Answer, PriorNetwork
from constellation.worlds.prior.hyperparameters import draw
from constellation.worlds.prior.populations import Populations, simulate
from constellation.worlds.prior.widening import draw_wide

MEAN_WEIGHT, MONEY_WEIGHT, SHOCK_WEIGHT = 0.2, 0.4, 0.02
LEAST_TOTAL = 20
"""Purchase days in a world's horizon below which its total says nothing about a common shock."""

HELD_OUT_SEED = 7_000_000
"""Held-out worlds are drawn from seeds that no step uses."""


@dataclass(frozen=True)
class Teaching:
    """steps in all, of worlds_per_step worlds of customers = least and most; lr falls to 1 % of it by a cosine; seed;
    average: share of the weights' moving average that a step keeps, less in the first steps; until: the step after
    which to stop, with the lr of all steps; None: after the last; wide: worlds of the wide prior, not of the plain one.
    """

    steps: int = 3600
    worlds_per_step: int = 12
    customers: tuple[int, int] = (120, 1200)
    lr: float = 2e-3
    seed: int = 0
    average: float = 0.998
    until: int | None = None
    wide: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "customers", tuple(self.customers))
        if self.steps < 0 or self.worlds_per_step < 1 or self.lr <= 0 or not 0 <= self.average < 1:
            raise InputError(
                "prior training needs steps >= 0, worlds_per_step >= 1, lr > 0 and average in [0, 1); found "
                f"{self.steps}, {self.worlds_per_step}, {self.lr}, {self.average}."
            )
        if self.until is not None and not 0 <= self.until <= self.steps:
            raise InputError(f"until must lie between 0 and steps ({self.steps}), found {self.until}.")

    @property
    def last(self) -> int:
        return self.steps if self.until is None else self.until


@dataclass(frozen=True)
class Lesson:
    """Worlds as the network is shown them, and what came after. money in the population's unit."""

    world_C: Tensor
    size_W: Tensor
    features_CF: Tensor
    anchor_C: Tensor
    spend_C: Tensor
    course_WK: Tensor
    next_days_C: Tensor
    next_money_C: Tensor
    paid_W: Tensor

    @property
    def num_worlds(self) -> int:
        return len(self.size_W)


def population_of(populations: Populations) -> Histories:
    return Histories(populations.start_C, populations.day_P, populations.money_P, populations.age_C)


def lesson(populations: Populations) -> Lesson:
    """Everybody is both context and question."""
    customers, world_C = population_of(populations), populations.world_C
    measured: Units = units(customers, world_C, populations.horizon_days_W)
    described = describe(customers, world_C, measured)
    money_W = np.nan_to_num(measured.money_W, nan=1.0)
    return Lesson(
        world_C=torch.as_tensor(world_C),
        size_W=torch.as_tensor(np.bincount(world_C, minlength=populations.num_worlds)).float(),
        features_CF=torch.as_tensor(described.features_CF),
        anchor_C=torch.as_tensor(described.anchor_C),
        spend_C=torch.as_tensor(described.spend_C),
        course_WK=torch.as_tensor(course(customers, world_C, measured)),
        next_days_C=torch.as_tensor(populations.next_days_C).float(),
        next_money_C=torch.as_tensor(populations.next_money_C / money_W[world_C]).float(),
        paid_W=torch.as_tensor(np.isfinite(measured.money_W)),
    )


def drawn(
    num_worlds: int, seed: list[int], customers: tuple[int, int], family: str | None = None, *, wide: bool = False
) -> Populations:
    """Worlds whose every population has a customer and a horizon to predict; the same seed gives the same worlds."""
    rng = np.random.default_rng(seed)
    while True:
        populations = simulate((draw_wide if wide else draw)(num_worlds, rng, family=family, customers=customers), rng)
        if len(np.unique(populations.world_C)) == num_worlds:
            return populations


def answer(network: PriorNetwork, lesson: Lesson, rows: Tensor | None = None) -> Answer:
    """About all customers, or about those of ``rows``, in the context of all."""
    sums_WD = network.sums(lesson.features_CF, lesson.world_C, lesson.num_worlds)
    context_WD = network.context(sums_WD, lesson.size_W, lesson.course_WK)
    columns = (lesson.features_CF, lesson.anchor_C, lesson.spend_C, lesson.world_C)
    return network(*(column if rows is None else column[rows] for column in columns), context_WD)


def loss(network: PriorNetwork, lesson: Lesson) -> tuple[Tensor, dict[str, float]]:
    """Mean over customers of the negative log-likelihood of days and money, joined by their means' Poisson deviance and
    by the likelihood of each population's totals, from which the common shock is learned.

    Every second customer is asked about, all are context: customers of one world share its chances, so that further
    ones cost more than they teach.
    """
    rows = torch.arange(0, len(lesson.world_C), 2)
    said, num = answer(network, lesson, rows), lesson.num_worlds
    world_Q, next_days_Q = lesson.world_C[rows], lesson.next_days_C[rows]
    # Sums of money beyond two thousand median purchases are cut: one such customer must not turn a step around.
    next_money_Q = lesson.next_money_C[rows].clamp(max=2e3)

    def per_world(values_Q: Tensor) -> Tensor:
        return torch.zeros(num, dtype=values_Q.dtype).index_add(0, world_Q, values_Q)

    asked_W = per_world(torch.ones_like(next_days_Q)).clamp(min=1)

    def deviance(mean_Q: Tensor, next_Q: Tensor) -> Tensor:
        scale_W = 1 + per_world(next_Q) / asked_W
        mean_Q = mean_Q.clamp(1e-6, 1e6)
        return ((mean_Q - next_Q * mean_Q.log()) / scale_W[world_Q]).mean()

    days_mean_Q, money_mean_Q = said.counts.mean(), said.money.mean()
    days = -said.counts.log_likelihood(next_days_Q).mean()
    paid_Q = lesson.paid_W[world_Q].float()
    money_Q = said.money.log_likelihood(torch.where(next_money_Q > 0, next_money_Q.clamp(min=1e-3), next_money_Q))
    money = -(money_Q * paid_Q).mean()
    means = deviance(days_mean_Q, next_days_Q) + deviance(money_mean_Q * paid_Q, next_money_Q * paid_Q)
    total = days + MONEY_WEIGHT * money + MEAN_WEIGHT * means

    enough_W = (per_world(next_days_Q) >= LEAST_TOTAL) & lesson.paid_W
    pairs = [(days_mean_Q.detach(), next_days_Q), (money_mean_Q.detach(), next_money_Q)]
    for place, (mean_Q, next_Q) in enumerate(pairs):
        expected_W = per_world(mean_Q).clamp(min=1e-6)
        noise_W = per_world((next_Q - mean_Q).square()) / expected_W.square()
        error_W = (per_world(next_Q).clamp(min=1e-6) / expected_W).log().clamp(-2, 2)
        variance_W = (2 * said.log_shock_W2[:, place]).exp() + noise_W
        total = total + SHOCK_WEIGHT * (0.5 * (variance_W.log() + error_W.square() / variance_W) * enough_W).mean()
    return total, {"days": days.item(), "money": money.item()}


class Teacher:
    """Network, optimiser and moving average; ``save`` and ``load`` go on bit for bit."""

    def __init__(self, teaching: Teaching, sizes: dict[str, int]) -> None:
        torch.manual_seed(teaching.seed)
        self.teaching = teaching
        self.network, self.averaged = PriorNetwork(**sizes), PriorNetwork(**sizes)
        self.averaged.load_state_dict(self.network.state_dict())
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=teaching.lr, weight_decay=1e-4)
        self.step, self.seconds = 0, 0.0

    def teach(self, *, max_seconds: float, report: Callable[[int, dict[str, float]], None], every: int) -> bool:
        """Steps until all are done (True) or the time is up (False). report: step and mean losses, ``every`` steps."""
        teaching, begun = self.teaching, time.perf_counter()
        before, sums, count = self.seconds, {"days": 0.0, "money": 0.0}, 0
        while self.step < teaching.last:
            if time.perf_counter() - begun > max_seconds:
                return False
            warm = min(1.0, (self.step + 1) / 200)
            lr = teaching.lr * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * self.step / teaching.steps)))
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            worlds = drawn(teaching.worlds_per_step, [teaching.seed, self.step], teaching.customers, wide=teaching.wide)
            total, parts = loss(self.network, lesson(worlds))
            self.optimizer.zero_grad(set_to_none=True)
            total.backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            self.optimizer.step()
            self.step += 1
            keep = min(teaching.average, self.step / (self.step + 10))
            with torch.no_grad():
                for mean, new in zip(self.averaged.parameters(), self.network.parameters(), strict=True):
                    mean.lerp_(new, 1 - keep)
            self.seconds = before + time.perf_counter() - begun
            sums, count = {name: sums[name] + parts[name] for name in sums}, count + 1
            if self.step % every == 0 or self.step == teaching.last:
                report(self.step, {name: value / count for name, value in sums.items()})
                sums, count = dict.fromkeys(sums, 0.0), 0
        return True

    def _settings(self) -> dict[str, Any]:
        # Where to stop changes no step before it, so one may go on from there.
        return {**{name: value for name, value in vars(self.teaching).items() if name != "until"}, **self.network.sizes}

    def save(self, path: Path) -> None:
        """Written aside and renamed, so that a stop in between loses nothing."""
        state: dict[str, Any] = {
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "settings": self._settings(),
        }
        aside = path.with_suffix(".new")
        torch.save(state, aside)
        aside.replace(path)

    def load(self, path: Path) -> None:
        """Raises InputError where the settings are not those it was begun with."""
        state = torch.load(path, weights_only=True)
        if state["settings"] != self._settings():
            raise InputError(
                f"{path} was begun with {state['settings']}, and {self._settings()} is asked for now. Go on with the "
                "same settings, or begin anew without resume."
            )
        self.network.load_state_dict(state["network"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]


@torch.no_grad()
def held_out_loss(
    network: PriorNetwork, *, num_worlds: int, customers: tuple[int, int], seed: int = 0, wide: bool = False
) -> float:
    """Mean negative log-likelihood of purchase days in worlds that no step sees."""
    found = []
    for number in range(max(1, num_worlds // 10)):
        worlds = lesson(drawn(10, [HELD_OUT_SEED, seed, number], customers, wide=wide))
        found.append(-answer(network, worlds).counts.log_likelihood(worlds.next_days_C).mean().item())
    return float(np.mean(found))
