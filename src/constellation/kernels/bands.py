"""Bands: the journeys of a batch grouped by length, so that attention can pad a little instead of a lot."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

BAND_PLACES = 1536
"""About so many places a band has. Fewer make more calls, more pad more and leave the cache."""

MOSTLY_FULL = 0.85
"""A band of which less would be events is cut in half."""

GRAIN, GRAINS_PER_DOUBLING = 8, 8


@dataclass
class Bands:
    """Journeys laid out band after band; within a band ``[journeys, length]`` places, padding after the last event.

    rows: per band, the row of the batch at each place [journeys, length]; padding repeats the journey's last row.
    place_N: place of each event in the bands laid end to end. pads_P: the places that are padding.
    """

    rows: list[Tensor]
    place_N: Tensor
    pads_P: Tensor
    _layouts: dict[int, Layout] = field(default_factory=dict)
    _tiled: dict[tuple[int, float, bool], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def by_head(self, heads: int) -> Layout:
        """Where [heads, journeys, length] of each band finds its vectors in [N, heads], and back; made once."""
        if heads not in self._layouts:
            self._layouts[heads] = _layout(self, heads)
        return self._layouts[heads]

    def tiled(self, turn_NP: Tensor, heads: int, query_scale: float, *, conjugate: bool = False) -> Tensor:
        """[N, 2 heads P] complex: ``turn_NP`` side by side for all queries, scaled, then all keys; made once per batch.

        As one row it turns an event's queries and keys three times as fast as repeated by broadcasting.
        """
        key = heads, query_scale, conjugate
        if key not in self._tiled or self._tiled[key][0] is not turn_NP:
            turn = turn_NP.conj().resolve_conj() if conjugate else turn_NP
            self._tiled[key] = turn_NP, torch.cat([turn * query_scale] * heads + [turn] * heads, dim=1)
        return self._tiled[key][1]


@dataclass
class Layout:
    """take: for each place, by band, head, journey, step, its row in [N * heads]. back [N * heads]: the inverse.

    pads: the places that are padding.
    """

    take: Tensor
    back: Tensor
    pads: Tensor


def bands_of(lengths_B: np.ndarray, device: torch.device) -> Bands:
    """Bands of journeys of ``lengths_B`` events that lie end to end, longest first; empty journeys have no place.

    A band of a padded length has one of two sizes, so that shapes are few: kernels, memory pools and compilers prepare
    and keep something for each. The last band is filled up with copies, which are padding.
    """
    lengths_B = np.asarray(lengths_B, dtype=np.int64)
    offsets_B = np.cumsum(lengths_B) - lengths_B
    order = np.argsort(-lengths_B, kind="stable")[: np.count_nonzero(lengths_B)]
    rows, pads, start_B, used, first = [], [], np.zeros(len(lengths_B), dtype=np.int64), 0, 0
    while first < len(order):
        length = padded_length(int(lengths_B[order[first]]))
        journeys = journeys_per_band(length)
        if lengths_B[order[first : first + journeys]].sum() < MOSTLY_FULL * journeys * length:
            journeys = max(journeys // 2, 1)
        members = order[first : first + journeys]
        start_B[members] = used + np.arange(len(members)) * length
        filled = np.resize(members, journeys) if len(members) < journeys else members
        step = np.arange(length)
        is_pad = step >= lengths_B[filled, None]
        is_pad[len(members) :] = True
        row = offsets_B[filled, None] + np.minimum(step, lengths_B[filled, None] - 1)
        rows.append(torch.from_numpy(row).to(device))
        pads.append(used + np.flatnonzero(is_pad.ravel()))
        used += journeys * length
        first += journeys
    place_N = np.repeat(start_B - offsets_B, lengths_B) + np.arange(lengths_B.sum())
    pads_P = np.concatenate(pads) if pads else np.empty(0, dtype=np.int64)
    return Bands(rows, torch.from_numpy(place_N).to(device), torch.from_numpy(pads_P).to(device))


def padded_length(length: int) -> int:
    """The next multiple of 8, and beyond 64 of an eighth of the power of two below: at most an eighth is padding."""
    grain = max(GRAIN, (1 << (length - 1).bit_length()) // 2 // GRAINS_PER_DOUBLING)
    return -(-length // grain) * grain


def journeys_per_band(length: int) -> int:
    """The power of two, at least one, that comes nearest below ``BAND_PLACES``."""
    return 1 << max(0, (BAND_PLACES // length).bit_length() - 1)


def _layout(bands: Bands, heads: int) -> Layout:
    device = bands.place_N.device
    head = torch.arange(heads, device=device)
    take, used = [], 0
    back_P = torch.empty(sum(rows.numel() for rows in bands.rows), heads, dtype=torch.int64, device=device)
    for rows in bands.rows:
        size = rows.numel()
        take.append((rows.reshape(1, -1) * heads + head.unsqueeze(1)).flatten())
        place = torch.arange(size, device=device).unsqueeze(1)
        back_P[used : used + size] = used * heads + head * size + place
        used += size
    return Layout(
        torch.cat(take),
        back_P.index_select(0, bands.place_N).flatten(),
        back_P.index_select(0, bands.pads_P).flatten(),
    )
