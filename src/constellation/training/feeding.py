"""How batches reach the device: cut there out of a store that lies there, or made ahead by a thread."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from constellation.journeys.device_gather import DeviceGatherer, device_bytes
from constellation.training.options import AUTO

if TYPE_CHECKING:
    from constellation.journeys.batch import Gatherer
    from constellation.journeys.sampling import TrainingBatches
    from constellation.training.options import TrainingOptions

SHARE_OF_FREE_MEMORY = 1 / 3
"""A store takes at most so much of a device by itself; the rest is for the steps."""


def fed(batches: TrainingBatches, device: torch.device, options: TrainingOptions) -> TrainingBatches:
    """``batches``, or the same ones cut on ``device`` where ``training.store_on_device`` says so."""
    if not lies_on(batches.gatherer, device, options):
        return batches
    fed = copy.copy(batches)
    fed.gatherer = DeviceGatherer.of(batches.gatherer, device)
    return fed


def lies_on(gatherer: Gatherer, device: torch.device, options: TrainingOptions) -> bool:
    if options.store_on_device != AUTO:
        return bool(options.store_on_device)
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return device_bytes(gatherer.store, gatherer.vocabulary) <= SHARE_OF_FREE_MEMORY * free


def makes_ahead(device: torch.device, options: TrainingOptions) -> bool:
    """On a CPU a thread would take its time from the step: making a batch is 2 to 7 % of one."""
    return device.type == "cuda" if options.prefetch == AUTO else bool(options.prefetch)
