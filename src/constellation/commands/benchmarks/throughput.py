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
    OURS,
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

    In a round ours is measured before each peer, for each number of threads; each measurement is a training of
    ``warmup_steps`` and then ``num_steps`` counted steps in a fresh process. data: what the shape ``short`` reads.
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

    from constellation.commands.benchmarks.throughput_ours import data_set
    from constellation.journeys.prepare import prepare

    prepare(data_set(Path(task.folder), events.clock))  # here, so that no measured process prepares
    ours = our_system(events.clock)
    pairs: dict[tuple[int, str], list[tuple[dict[str, float], dict[str, float]]]] = {}
    alone: dict[int, list[dict[str, float]]] = {threads: [] for threads in num_threads}
    rates: dict[int, list[dict[str, float]]] = {threads: [] for threads in num_threads}
    failed: set[str] = set()
    for repeat in range(num_repeats):
        for threads in num_threads:
            at_hand = replace(task, num_threads=threads, seed=repeat)
            rates[threads].append(matrix_rates(threads))
            going: list[System | None] = [peer for peer in peers if peer.name not in failed]
            for peer in going or [None]:  # without peers ours is measured alone
                of_ours = measure(ours, at_hand)
                alone[threads].append(of_ours)
                if peer is None:
                    continue
                log.info("%s %s %d threads: %s", shape.name, OURS, threads, of_ours)
                try:
                    of_peer = measure(peer, at_hand)
                except Failed as error:
                    log.warning("%s is left out of %s: it %s", peer.name, shape.name, error)
                    failed.add(peer.name)
                    continue
                log.info("%s %s %d threads: %s", shape.name, peer.name, threads, of_peer)
                pairs.setdefault((threads, peer.name), []).append((of_ours, of_peer))
    operations = operations_per_event(events, task)
    rows = []
    for threads in num_threads:
        facts = {
            "shape": shape.name,
            "num_threads": threads,
            "num_journeys": events.num_journeys,
            "num_events": len(events.item_N),
            "num_items": events.num_items,
            "max_length": task.max_length,
            "batch": task.batch,
        }
        found = _summary(alone[threads])
        ceilings = _ceilings(found["events_per_second"], operations, rates[threads])
        rows.append(facts | {"system": OURS, "loss": ours.loss} | found | ceilings)
        for peer in peers:
            both = pairs.get((threads, peer.name))
            if both and peer.name not in failed:
                of_peers = _summary([of_peer for _, of_peer in both])
                rows.append(facts | {"system": peer.name, "loss": peer.loss} | of_peers | _ratios(both))
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
        print(f"{'system':<16}{'loss':<14}{'events/s':>10}  {'':<20}{'CPU s/M':>9}{'peak GiB':>10}  ours / it")
        for row in here:
            span = f"[{row['events_per_second_min']:,.0f}, {row['events_per_second_max']:,.0f}]"
            ratio = f"{row['ratio']:.2f} [{row['ratio_min']:.2f}, {row['ratio_max']:.2f}]" if "ratio" in row else ""
            print(
                f"{row['system']:<16}{row['loss']:<14}{row['events_per_second']:>10,.0f}  {span:<20}"
                f"{row['cpu_seconds_per_million_events']:>9,.1f}{row['peak_memory_gib']:>10.2f}  {ratio}".rstrip()
            )
        for label, peer in (("same loss, best peer", best_peer(here, True)), ("fastest", best_peer(here, False))):
            if peer is not None:
                print(
                    f"  {label}: {peer['ratio']:.2f} x {peer['system']} ({peer['cpu_ratio']:.2f} by CPU time), "
                    f"at {peer['memory_ratio']:.2f} of its memory"
                )
        ceilings = ", ".join(
            f"{ours[f'ceiling_{name}']:,.0f} in {name} ({ours[f'share_of_ceiling_{name}']:.1%} reached; "
            f"{ours[f'matrix_rate_{name}'] / 1e9:,.0f} G/s)"
            for name in PRECISIONS
        )
        print(f"  {ours['operations_per_event'] / 1e6:.2f} million operations an event; ceiling {ceilings}")


def best_peer(rows: Sequence[Mapping[str, Any]], same_loss: bool) -> Mapping[str, Any] | None:
    """Of the peers with the full softmax, or of those with a cheaper loss, the one that comes nearest; None without.

    Nearest by the ratio of measurements side by side: by rate alone, one slow minute of a shared machine would make the
    second best the best, and flatter us.
    """
    peers = [row for row in rows if row["system"] != OURS and (row["loss"] == FULL_SOFTMAX) == same_loss]
    return min(peers, key=lambda row: row["ratio"], default=None)


def metrics_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """``throughput/<shape>/<system>/<metric>`` and ``throughput/<shape>/ratio_same_loss``, for one thread.

    Metrics of several threads end in ``_<number>_threads``.
    """
    metrics: dict[str, float] = {}
    for shape, threads in dict.fromkeys((row["shape"], row["num_threads"]) for row in rows):
        here = [row for row in rows if (row["shape"], row["num_threads"]) == (shape, threads)]
        end = "" if threads == 1 else f"_{threads}_threads"
        for row in here:
            for name in (*METRICS, *RATIOS, *CEILINGS):
                if name in row:
                    metrics[f"throughput/{shape}/{row['system']}/{name}{end}"] = float(row[name])
        for label, same_loss in (("same_loss", True), ("fastest", False)):
            peer = best_peer(here, same_loss)
            if peer is not None:
                for name in RATIOS:
                    metrics[f"throughput/{shape}/{name.replace('ratio', f'ratio_{label}')}{end}"] = float(peer[name])
    return metrics
