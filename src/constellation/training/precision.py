"""In which precision the products of a training on a CPU run: asked for, or chosen when a phase begins, and kept."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from constellation.journeys.sampling import TrainingBatches
from constellation.kernels.native import can_work
from constellation.kernels.products import BFLOAT16, FLOAT32, FUSED, measured_choice
from constellation.training.footprint import trains_on_gpu
from constellation.training.options import AUTO, TrainingOptions

if TYPE_CHECKING:
    from constellation.encoders.base import Encoder

log = logging.getLogger(__name__)

SMALL_STEP_EVENTS = 1500
"""Events of a step from which bfloat16 products pay: at 84 a step was 13 % cheaper in float32, at 800 12 %, at 1,600
there was nothing between them (width 64, 2 layers)."""

PRODUCTS_LIKE_A_BODY = 650
"""Products of the shop over which a full softmax has as much to gain from bfloat16 as the rest of such a step."""


def chosen_products(
    options: TrainingOptions, folder: Path, batches: TrainingBatches, num_ranks: int, encoder: Encoder
) -> str:
    """Chosen once per phase: killed before its first checkpoint, it must not choose again on a busier machine.

    ``fused`` is bfloat16 by torch for whatever the kernels do not take. Where they take an encoder's layers whole there
    are few casts, and they pay for few events too; else steps must be large enough for bfloat16 products to pay.
    """
    if options.products != AUTO:
        return options.products
    path = folder / "products.txt"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        chosen = measured_choice()
        if chosen == FUSED and not can_work():
            chosen = BFLOAT16
        has_few_casts = chosen == FUSED and encoder.has_whole_layers
        if chosen != FLOAT32 and not has_few_casts and has_small_steps(batches, num_ranks):
            chosen = FLOAT32
        partial.write_text(chosen, encoding="utf-8")
        partial.replace(path)
    return path.read_text(encoding="utf-8")


def warned(products: str, options: TrainingOptions) -> str:
    """Asked for, or chosen on another machine before this one took the training up."""
    if products == FUSED and not trains_on_gpu(options) and not can_work():
        log.warning(
            "Products are chosen as fused, which needs a processor with AVX512-BF16, a C++ compiler and, for more than "
            "one thread, a torch built upon OpenMP. Not all of that is here: torch's bfloat16 products do the work, as "
            "for bfloat16."
        )
    return products


def has_small_steps(batches: TrainingBatches, num_ranks: int) -> bool:
    """Whether the casts of torch's bfloat16 products cost a step more than these save it, wherever they are faster.

    What a cast costs hangs on the number of products, not on their size. A full softmax over the products of the shop
    counts as work, as if a model had one.
    """
    events_of_a_step = batches.num_events * batches.passes / max(len(batches), 1) / num_ranks
    num_products = len(batches.gatherer.vocabulary.products)
    return events_of_a_step * (1 + num_products / PRODUCTS_LIKE_A_BODY) < SMALL_STEP_EVENTS
