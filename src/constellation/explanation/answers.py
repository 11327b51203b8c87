"""The one number that is explained: a name such as ``value_91d``, made a tensor [Q] that has a gradient."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from constellation.errors import InputError
from constellation.journeys.vocabulary import Vocabulary
from constellation.schema import EVENT_TYPE, PRODUCT

if TYPE_CHECKING:
    from constellation.journeys.batch import JourneyBatch
    from constellation.model import JourneyModel
    from constellation.objectives.base import Objective

EXPECTED, QUANTILES, SCORES = "_expected", "_quantiles", "_scores"
COLUMN_OF = {"next_product": PRODUCT, "next_type": EVENT_TYPE}
MIDDLE = 0.5


@dataclass(frozen=True)
class Answer:
    """One number per question, out of what one objective predicts.

    name: as it was asked for. key: of the prediction. objective: whose it is. level: of a quantile. place: column of
    the product or type whose probability is meant, None for each question's own likeliest one.
    """

    name: str
    key: str
    objective: str
    level: float = MIDDLE
    place: int | None = None

    @classmethod
    def find(cls, name: str, model: JourneyModel, batch: JourneyBatch, vocabulary: Vocabulary) -> Answer:
        """``value_91d`` and ``purchases_30d`` are means; ``value_91d_q90`` a quantile; ``next_product`` and
        ``next_product:milk`` probabilities; every other answer of one number by its own name.

        Raises InputError for an answer that this model does not give, naming those it does.
        """
        owner, shapes = {}, {}
        with torch.no_grad():
            _, readout_QD = model(batch)
            for objective, part in model.objectives.items():
                for key, values in cast("Objective", part).predict(readout_QD, batch, [MIDDLE]).items():
                    owner[key], shapes[key] = objective, values.dim()
        column, _, wanted = name.partition(":")
        if column in COLUMN_OF and f"{column}{SCORES}" in owner:
            known = vocabulary.categories[COLUMN_OF[column]]
            if wanted and wanted not in known:
                raise InputError(
                    f"answer={name}: the model knows no {column.removeprefix('next_')} {wanted!r}. It knows "
                    f"{', '.join(known[:8])}{', ..' if len(known) > 8 else ''}."
                )
            key = f"{column}{SCORES}"
            return cls(name, key, owner[key], place=known.index(wanted) if wanted else None)
        quantile = re.fullmatch(r"(.+)_q(\d{2,})", name)
        if quantile is not None and f"{quantile[1]}{QUANTILES}" in owner and int(quantile[2]):
            key = f"{quantile[1]}{QUANTILES}"
            return cls(name, key, owner[key], level=int(quantile[2]) / 10 ** len(quantile[2]))
        for key in (name, f"{name}{EXPECTED}"):
            if shapes.get(key) == 1:
                return cls(name, key, owner[key])
        raise InputError(
            f"answer={name} is nothing that this model says as one number. It says {', '.join(_names(shapes))}."
        )

    @property
    def is_of_products(self) -> bool:
        return self.key == f"next_product{SCORES}"

    def of(self, answers: Mapping[str, Tensor], chosen_Q: Tensor | None = None) -> Tensor:
        """[Q]; ``chosen_Q``: the column of each question where the likeliest is meant."""
        values = answers[self.key]
        if self.key.endswith(QUANTILES):
            return values[:, 0]
        if not self.key.endswith(SCORES):
            return values
        place_Q = chosen_Q if self.place is None else torch.full_like(values[:, 0], self.place, dtype=torch.long)
        assert place_Q is not None
        return values.softmax(dim=1).gather(1, place_Q.unsqueeze(1)).squeeze(1)

    def choose(self, answers: Mapping[str, Tensor]) -> Tensor | None:
        """The likeliest column of each question [Q], where that is what was asked for; else None."""
        if self.place is not None or not self.key.endswith(SCORES):
            return None
        return answers[self.key].argmax(dim=1)

    def predict(self, model: JourneyModel, batch: JourneyBatch) -> dict[str, Tensor]:
        """What the one objective says; the others, perhaps slow, are not asked."""
        return model.predict(batch, [self.level], only=self.objective)


def _names(shapes: Mapping[str, int]) -> list[str]:
    names = [key.removesuffix(EXPECTED) for key, dim in shapes.items() if dim == 1]
    names += [f"{key.removesuffix(QUANTILES)}_q90" for key in shapes if key.endswith(QUANTILES)]
    return names + [f"{key.removesuffix(SCORES)}:<value>" for key in shapes if key.removesuffix(SCORES) in COLUMN_OF]
