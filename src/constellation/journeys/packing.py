"""Many small tensors as one: a batch crosses to the device in a single copy and is taken apart there by views."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

ALIGNMENT = 16
"""Bytes; a view in another dtype must begin at a multiple of its size, and wide loads like sixteen."""


def map_tensors(thing: Any, change: Any) -> Any:
    """Apply ``change`` to every tensor in dataclasses, dicts and tuples, always in the same order."""
    if isinstance(thing, Tensor):
        return change(thing)
    if is_dataclass(thing) and not isinstance(thing, type):
        return type(thing)(**{field.name: map_tensors(getattr(thing, field.name), change) for field in fields(thing)})
    if isinstance(thing, dict):
        return {name: map_tensors(value, change) for name, value in thing.items()}
    if isinstance(thing, tuple):
        return tuple(map_tensors(value, change) for value in thing)
    return thing


def pack(thing: Any, *, pinned: bool = False) -> Tensor:
    """All tensors of ``thing`` (on the CPU) end to end in one buffer of bytes; pinned: in page-locked memory."""
    tensors: list[Tensor] = []
    map_tensors(thing, tensors.append)
    starts, total = _starts(tensors)
    buffer = torch.empty(total, dtype=torch.uint8, pin_memory=pinned)
    for tensor, start in zip(tensors, starts, strict=True):
        _view(buffer, tensor, start).copy_(tensor)
    return buffer


def unpack(buffer: Tensor, like: Any) -> Any:
    """``like`` with its tensors as views into ``buffer``, wherever that lies; the inverse of :func:`pack`."""
    tensors: list[Tensor] = []
    map_tensors(like, tensors.append)
    starts, _ = _starts(tensors)
    views = iter([_view(buffer, tensor, start) for tensor, start in zip(tensors, starts, strict=True)])
    return map_tensors(like, lambda _: next(views))


def to_device(thing: Any, device: torch.device, non_blocking: bool = True) -> Any:
    """``thing`` on ``device`` by one copy from page-locked memory, which torch's allocator keeps for the next batch."""
    on_cuda = device.type == "cuda"
    return unpack(pack(thing, pinned=on_cuda).to(device, non_blocking=non_blocking and on_cuda), thing)


def _starts(tensors: list[Tensor]) -> tuple[list[int], int]:
    starts, total = [], 0
    for tensor in tensors:
        starts.append(total)
        total += -(-tensor.numel() * tensor.element_size() // ALIGNMENT) * ALIGNMENT
    return starts, total


def _view(buffer: Tensor, like: Tensor, start: int) -> Tensor:
    size = like.numel() * like.element_size()
    return buffer[start : start + size].view(like.dtype).view(like.shape)
