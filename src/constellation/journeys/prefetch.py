"""The next batches are made, and cross to the device, while the present one is learned from."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import torch
from torch import Tensor

from constellation.journeys.batch import JourneyBatch
from constellation.journeys.packing import map_tensors

DEPTH = 2
"""Batches that lie ready. One would do if all took equally long."""

POLL_SECONDS = 0.1


class Prefetched:
    """The batches of an iterator in the same order, on ``device``, made by a thread of their own.

    On a CUDA device that thread has a stream of its own, so that copies (from page-locked memory) and index arithmetic
    run beside the step. Whoever takes a batch makes his stream wait for it, not the host.
    A mistake in the iterator is raised where its batch would have come. ``close`` ends the thread and waits for it.
    """

    def __init__(self, batches: Iterator[JourneyBatch], device: torch.device) -> None:
        self._ready: queue.Queue[_Made | None] = queue.Queue(maxsize=DEPTH)
        self._closing = threading.Event()
        self._is_done = False
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)
            # Columns of the store that lie on the device were written by the stream at hand.
            self._stream.wait_stream(torch.cuda.current_stream(device))
        # It gets no reference to this object: one that is dropped in the middle of an epoch must end its thread.
        given = (batches, device, self._ready, self._closing, self._stream)
        self._thread = threading.Thread(target=_make, args=given, name="prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Prefetched:
        return self

    def __next__(self) -> JourneyBatch:
        made = None if self._is_done else self._ready.get()
        if made is None:
            self._is_done = True
            raise StopIteration
        if isinstance(made, BaseException):
            self.close()
            raise made
        batch, event = made
        if event is not None:
            stream = torch.cuda.current_stream(batch.time_N.device)
            stream.wait_event(event)

            def keep(tensor: Tensor) -> Tensor:
                # Its memory was the other stream's, which may otherwise have it back before this one has read it.
                tensor.record_stream(stream)
                return tensor

            map_tensors(batch, keep)
        return batch

    def close(self) -> None:
        self._is_done = True
        self._closing.set()
        self._thread.join()

    def __del__(self) -> None:
        self._closing.set()


_Made = tuple[JourneyBatch, torch.cuda.Event | None] | BaseException


def _make(
    batches: Iterator[JourneyBatch],
    device: torch.device,
    ready: queue.Queue[_Made | None],
    closing: threading.Event,
    stream: torch.cuda.Stream | None,
) -> None:
    made: _Made | None
    while not closing.is_set():
        try:
            with torch.cuda.stream(stream):
                batch = next(batches, None)
                made = None if batch is None else (batch.to(device), None if stream is None else stream.record_event())
        except BaseException as error:  # raised again by whoever waits for the batch
            made = error
        while not closing.is_set():
            try:
                ready.put(made, timeout=POLL_SECONDS)
                break
            except queue.Full:
                continue
        if made is None or isinstance(made, BaseException):
            return
