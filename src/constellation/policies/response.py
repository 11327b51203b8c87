"""How strongly customers respond to whatever is done: one factor on all that helps them, and one on all that harms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from constellation.policies.moments import Moments


class Responses:
    """Learns the factors ``1 + common(x) . up`` and ``1 + common(x) . down`` of effects that are known but for them.

    Effects are counted from ``reference``, an action; what lies above it is multiplied by the first factor, what lies
    below by the second: rest and pace make every message tell more or less, whichever it is, and so all actions' rows
    speak about a few coefficients. They are fitted by the R-loss on what the effects left, in ``Moments.relevant``.
    Effects of each half of the rows are judged on the other, too: ``learned`` is 0 where factors do not tell it better.

    effects_KAX: of the first half, of the second, and of all rows, linear in the design.
    """

    def __init__(self, effects_KAX: Sequence[np.ndarray], reference: int) -> None:
        self.effects_KAX, self.reference = effects_KAX, reference
        self.own, self.other = [Moments(), Moments()], [Moments(), Moments()]
        self.whole = Moments()

    def add(
        self, half: int, design_QX: np.ndarray, common_QG: np.ndarray, moved_QA: np.ndarray, left_Q: np.ndarray,
        root_Q: np.ndarray,
    ) -> None:  # fmt: skip
        """A block of rows of one half: what was chosen less its propensities, what m left, roots of the weights."""
        for place, parts in enumerate((self.own if half == 0 else self.other, self.own if half == 1 else self.other)):
            parts[place].add(*self._told(place, design_QX, common_QG, moved_QA, left_Q, root_Q))
        self.whole.add(*self._told(2, design_QX, common_QG, moved_QA, left_Q, root_Q))

    def _told(
        self, place: int, design_QX: np.ndarray, common_QG: np.ndarray, moved_QA: np.ndarray, left_Q: np.ndarray,
        root_Q: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        effect_QA = design_QX @ self.effects_KAX[place].T.astype(np.float32)
        sides = [(moved_QA * side_QA).sum(axis=1) * root_Q for side_QA in up_and_down(effect_QA, self.reference)]
        columns = np.concatenate([side_Q[:, None] * common_QG for side_Q in sides], axis=1)
        rest_Q = (left_Q - (moved_QA * effect_QA).sum(axis=1)) * root_Q
        return columns.astype(np.float32), rest_Q.astype(np.float32)

    def learned(self, noise: float, caution: Sequence[float]) -> np.ndarray:
        """[2, G], up and down; noise: variance of a row, taken ``caution`` times as great, whichever tells best."""
        group_Z = np.arange(len(np.asarray(self.whole.aim)))
        best, least = np.zeros(len(group_Z)), 0.0
        for each in caution:
            loss = sum(
                other.loss(own.relevant(each * noise, group_Z)) for own, other in zip(self.own, self.other, strict=True)
            )
            if loss < least:
                best, least = self.whole.relevant(each * noise, group_Z), loss
        return best.reshape(2, -1)


def up_and_down(effect_QA: np.ndarray, reference: int) -> tuple[np.ndarray, np.ndarray]:
    """What lies above the reference action, and what below, [Q, A] each."""
    from_QA = effect_QA - effect_QA[:, reference : reference + 1]
    return np.maximum(from_QA, 0.0), np.minimum(from_QA, 0.0)


def responded(effect_QA: np.ndarray, common_QG: np.ndarray, response_2G: np.ndarray, reference: int) -> np.ndarray:
    """Effects [Q, A] times their factors; no factor lies below 0, for help does not turn to harm."""
    factor_Q2 = np.maximum(common_QG @ response_2G.T, -1.0)
    up_QA, down_QA = up_and_down(effect_QA, reference)
    return effect_QA + factor_Q2[:, :1] * up_QA + factor_Q2[:, 1:] * down_QA
