"""Training throughput beside peers: interleaved rounds on the same data, shape, network size and threads."""

from __future__ import annotations

import logging
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from constellation.commands.benchmarks.throughput_ceiling import PRECISIONS, matrix_rates, operations_per_event
from constellation.commands.benchmarks.throughput_meter import Task
from constellation.commands.benchmarks.throughput_peers import (
    FULL_SOFTMAX,
    OURS_ITEMS,
    Failed,
    System,
    choose_peers,
    measure,
    our_system,
    peers_folder,
)
from constellation.commands.benchmarks.throughput_shapes import SHAPES, Events, Shape
from constellation.errors import InputError

if TYPE_CHECKING:
    from constellation.journeys.dataset import DataSet

WIDTH, BLOCKS, HEADS, FEED_FORWARD, DROPOUT = 64, 2, 2, 64, 0.2

METRICS = (
    "events_per_second",
    "events_per_second_min",
    "events_per_second_max",
    "cpu_seconds_per_million_events",
    "peak_memory_gib",
)
RATIOS = ("ratio", "ratio_min", "ratio_max", "cpu_ratio", "memory_ratio")
ITEMS = "items_"
"""Opens the ratios of ``constellation_items`` over a peer, in the peer's row."""

ITEMS_RATIOS = tuple(f"{ITEMS}{name}" for name in RATIOS)
CEILINGS = tuple(f"{what}_{name}" for name in PRECISIONS for what in ("ceiling", "share_of_ceiling"))

log = logging.getLogger(__name__)


def benchmark_throughput(
    data: DataSet,
    *,
    shapes: Sequence[str],
    peers: str | Sequence[str] | None,
    num_threads: Sequence[int],
    num_repeats: int,
    warmup_steps: int,
    num_steps: int,
    folder: Path | None = None,
) -> list[dict[str, Any]]:
    """One row per shape, number of threads and system: medians over the rounds, with the slowest and the fastest.

    In a round ours is measured before each peer, for each number of threads, and where events have more to them than
    one item, between the two ours on the items alone; each measurement is a training of ``warmup_steps`` and then
    ``num_steps`` counted steps in a fresh process. data: what the shape ``short`` reads.
    A shape whose data are absent, and a peer that fails, are named in a warning and left out; where no shape is left,
    InputError is raised, as for unknown shapes and peers.
    """
    if num_repeats < 1 or num_steps < 1 or warmup_steps < 1 or not num_threads or min(num_threads) < 1:
        raise InputError("num_threads, num_repeats, warmup_steps and num_steps must be numbers from 1 on.")
    unknown = [name for name in shapes if name not in SHAPES]
    if unknown or not shapes:
        found = f"found {unknown[0]!r}" if unknown else "found none"
        raise InputError(f"shapes must be some of [{','.join(SHAPES)}], {found}.")
    chosen = choose_peers(peers, peers_folder() if folder is None else folder)
    rows: list[dict[str, Any]] = []
    absent: list[InputError] = []
    for name in shapes:
        try:
            events = SHAPES[name].make(data)
        except InputError as error:
            log.warning("%s is left out: %s", name, error)
            absent.append(error)
            continue
        with tempfile.TemporaryDirectory(prefix="constellation-throughput-") as place:
            events.write(Path(place))
            task = make_task(SHAPES[name], events, Path(place), warmup_steps, num_steps)
            rows += measure_shape(SHAPES[name], events, task, chosen, num_threads, num_repeats)
    if not rows and absent:
        raise absent[0]
    return rows


def make_task(shape: Shape, events: Events, folder: Path, warmup_steps: int, num_steps: int) -> Task:
    return Task(
        folder=str(folder),
        num_items=events.num_items,
        max_length=shape.max_length,
        batch=shape.batch,
        width=WIDTH,
        blocks=BLOCKS,
        heads=HEADS,
        feed_forward=FEED_FORWARD,
        dropout=DROPOUT,
        warmup_steps=warmup_steps,
        num_steps=num_steps,
        num_threads=1,
        seed=0,
        settings={},
    )


def measure_shape(
    shape: Shape, events: Events, task: Task, peers: Sequence[System], num_threads: Sequence[int], num_repeats: int
) -> list[dict[str, Any]]:
    """Rows of one shape. Raises Failed where ours gives no result."""
    from dataclasses import replace

    ours = _our_systems(events, task)
    found: dict[tuple[int, str], list[tuple[dict[str, float], ...]]] = {}  # of ours, in their order, then of the peer
    rates: dict[int, list[dict[str, float]]] = {threads: [] for threads in num_threads}
    failed: set[str] = set()
    for repeat in range(num_repeats):
        for threads in num_threads:
            rates[threads].append(matrix_rates(threads))
            going: list[System | None] = [peer for peer in peers if peer.name not in failed]
            for peer in going or [None]:  # without peers ours is measured alone
                measured = []
                for system, given in [*ours, *([(peer, task)] if peer is not None else [])]:
                    try:
                        measured.append(measure(system, replace(given, num_threads=threads, seed=repeat)))
                    except Failed as error:
                        if system is not peer:
                            raise
                        log.warning("%s is left out of %s: it %s", system.name, shape.name, error)
                        failed.add(system.name)
                    else:
                        log.info("%s %s %d threads: %s", shape.name, system.name, threads, measured[-1])
                found.setdefault((threads, "" if peer is None else peer.name), []).append(tuple(measured))
    return [
        row
        for threads in num_threads
        for row in _rows_of(shape, events, task, threads, [system for system, _ in ours], peers, found, rates[threads])
    ]


def _our_systems(events: Events, task: Task) -> list[tuple[System, Task]]:
    """Ours, and ours on the items alone where that is less; prepared here, so that no measured process prepares."""
    from dataclasses import replace

    from constellation.commands.benchmarks.throughput_ours import data_set
    from constellation.journeys.prepare import prepare

    systems = [(our_system(events.clock), task)]
    prepare(data_set(Path(task.folder), events.clock))
    if events.says_more_than_items:
        alone, folder = events.items_alone(), Path(task.folder) / "items"
        folder.mkdir()
        alone.write(folder)
        prepare(data_set(folder, alone.clock))
        systems.append((our_system(alone.clock, OURS_ITEMS), replace(task, folder=str(folder))))
    return systems


def _rows_of(
    shape: Shape,
    events: Events,
    task: Task,
    threads: int,
    ours: Sequence[System],
    peers: Sequence[System],
    found: Mapping[tuple[int, str], Sequence[tuple[dict[str, float], ...]]],
    rates: Sequence[Mapping[str, float]],
) -> list[dict[str, Any]]:
    facts = {
        "shape": shape.name,
        "num_threads": threads,
        "num_journeys": events.num_journeys,
        "num_events": len(events.item_N),
        "num_items": events.num_items,
        "max_length": task.max_length,
        "batch": task.batch,
    }
    rounds = [measured for (of, _), all_of in found.items() if of == threads for measured in all_of]
    rows = []
    for place, system in enumerate(ours):
        summary = _summary([measured[place] for measured in rounds])
        row = facts | {"system": system.name, "loss": system.loss} | summary
        if place == 0:
            row |= _ceilings(summary["events_per_second"], operations_per_event(events, task), rates)
        rows.append(row)
    for peer in peers:
        measured = found.get((threads, peer.name), [])
        if not measured or any(len(one) <= len(ours) for one in measured):
            continue  # it failed
        row = facts | {"system": peer.name, "loss": peer.loss} | _summary([one[-1] for one in measured])
        row |= _ratios([(one[0], one[-1]) for one in measured])
        if len(ours) > 1:
            row |= {f"{ITEMS}{name}": x for name, x in _ratios([(one[1], one[-1]) for one in measured]).items()}
        rows.append(row)
    return rows


def _summary(measured: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    rates = [one["events_per_second"] for one in measured]
    cpu = [one["cpu_seconds_per_million_events"] for one in measured]
    return {
        "events_per_second": statistics.median(rates),
        "events_per_second_min": min(rates),
        "events_per_second_max": max(rates),
        "cpu_seconds_per_million_events": statistics.median(cpu),
        "peak_memory_gib": max(one["peak_memory_gib"] for one in measured),
        "rates": rates,
    }


def _ratios(pairs: Sequence[tuple[Mapping[str, float], Mapping[str, float]]]) -> dict[str, float]:
    """Ours over the peer, each measurement beside the one just before it: medians, smallest and largest."""
    ratios = [ours["events_per_second"] / peer["events_per_second"] for ours, peer in pairs]
    per_cpu = [
        peer["cpu_seconds_per_million_events"] / max(ours["cpu_seconds_per_million_events"], 1e-9)
        for ours, peer in pairs
    ]
    memory = [ours["peak_memory_gib"] / peer["peak_memory_gib"] for ours, peer in pairs]
    return {
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "cpu_ratio": statistics.median(per_cpu),
        "memory_ratio": statistics.median(memory),
    }


def _ceilings(rate: float, operations: float, rates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Events per second if matrix products were all, at the best rate of the run, and the share of it reached."""
    found = {"operations_per_event": operations}
    for name in PRECISIONS:
        best = max(one[name] for one in rates)
        found |= {f"matrix_rate_{name}": best, f"ceiling_{name}": best / operations}
        found[f"share_of_ceiling_{name}"] = rate * operations / best
    return found


# ---------------------------------------------------------------- what a person and a script read


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    for shape, threads in dict.fromkeys((row["shape"], row["num_threads"]) for row in rows):
        here = [row for row in rows if (row["shape"], row["num_threads"]) == (shape, threads)]
        ours = here[0]
        print(
            f"\n{shape}, {threads} thread{'s' if threads > 1 else ''}: {ours['num_journeys']:,} journeys, "
            f"{ours['num_events']:,} events, {ours['num_items']:,} items; last {ours['max_length']} events, "
            f"{ours['batch']} journeys a step; medians [slowest, fastest]"
        )
        print(f"{'system':<20}{'loss':<14}{'events/s':>10}  {'':<20}{'CPU s/M':>9}{'peak GiB':>10}  ours / it")
        for row in here:
            span = f"[{row['events_per_second_min']:,.0f}, {row['events_per_second_max']:,.0f}]"
            ratio = f"{row['ratio']:.2f} [{row['ratio_min']:.2f}, {row['ratio_max']:.2f}]" if "ratio" in row else ""
            print(
                f"{row['system']:<20}{row['loss']:<14}{row['events_per_second']:>10,.0f}  {span:<20}"
                f"{row['cpu_seconds_per_million_events']:>9,.1f}{row['peak_memory_gib']:>10.2f}  {ratio}".rstrip()
            )
        for label, peer in (("same loss, best peer", best_peer(here, True)), ("fastest", best_peer(here, False))):
            if peer is not None:
                print(
                    f"  {label}: {peer['ratio']:.2f} x {peer['system']} ({peer['cpu_ratio']:.2f} by CPU time), "
                    f"at {peer['memory_ratio']:.2f} of its memory"
                )
        like = best_peer(here, True, on=f"{ITEMS}ratio")
        if like is not None:
            print(
                f"  same loss on the items alone: {like[f'{ITEMS}ratio']:.2f} x {like['system']} "
                f"({like[f'{ITEMS}cpu_ratio']:.2f} by CPU time), at {like[f'{ITEMS}memory_ratio']:.2f} of its memory"
            )
        ceilings = ", ".join(
            f"{ours[f'ceiling_{name}']:,.0f} in {name} ({ours[f'share_of_ceiling_{name}']:.1%} reached; "
            f"{ours[f'matrix_rate_{name}'] / 1e9:,.0f} G/s)"
            for name in PRECISIONS
        )
        print(f"  {ours['operations_per_event'] / 1e6:.2f} million operations an event; ceiling {ceilings}")


def best_peer(rows: Sequence[Mapping[str, Any]], same_loss: bool, *, on: str = "ratio") -> Mapping[str, Any] | None:
    """Of the peers with the full softmax, or of those with a cheaper loss, the one that comes nearest; None without.

    Nearest by the ratio ``on`` of measurements side by side: by rate alone, one slow minute of a shared machine would
    make the second best the best, and flatter us.
    """
    peers = [row for row in rows if on in row and (row["loss"] == FULL_SOFTMAX) == same_loss]
    return min(peers, key=lambda row: row[on], default=None)


def metrics_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """``throughput/<shape>/<system>/<metric>`` and ``throughput/<shape>/ratio_same_loss``, for one thread.

    Those of ours on the items alone are ``throughput/<shape>/items_ratio_same_loss`` and so on.
    Metrics of several threads end in ``_<number>_threads``.
    """
    metrics: dict[str, float] = {}
    for shape, threads in dict.fromkeys((row["shape"], row["num_threads"]) for row in rows):
        here = [row for row in rows if (row["shape"], row["num_threads"]) == (shape, threads)]
        end = "" if threads == 1 else f"_{threads}_threads"
        for row in here:
            for name in (*METRICS, *RATIOS, *ITEMS_RATIOS, *CEILINGS):
                if name in row:
                    metrics[f"throughput/{shape}/{row['system']}/{name}{end}"] = float(row[name])
        for label, same_loss in (("same_loss", True), ("fastest", False)):
            peer = best_peer(here, same_loss)
            if peer is not None:
                for name in RATIOS:
                    metrics[f"throughput/{shape}/{name.replace('ratio', f'ratio_{label}')}{end}"] = float(peer[name])
        like = best_peer(here, True, on=f"{ITEMS}ratio")
        if like is not None:
            for name in RATIOS:
                place = f"throughput/{shape}/{ITEMS}{name.replace('ratio', 'ratio_same_loss')}{end}"
                metrics[place] = float(like[f"{ITEMS}{name}"])
    return metrics
