"""Build the store of a data set, or find it built, and print its profile."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from constellation.journeys.dataset import DataSet
    from constellation.tracking import Run


def prepare(run: Run, *, data: DataSet, rebuild: bool = False) -> dict[str, Any]:
    """Prepare ``data``; returns the profile, which is also printed, and written to ``profile.json`` in the run."""
    from constellation.journeys.derived_windows import settle
    from constellation.journeys.prepare import describe_place
    from constellation.journeys.prepare import prepare as prepare_store
    from constellation.journeys.profile import format_profile, profile
    from constellation.journeys.windows import Windows

    bar = ProgressLine()
    started = time.perf_counter()
    store = prepare_store(data, rebuild=rebuild, progress=bar)
    seconds = time.perf_counter() - started
    bar.close()
    place = describe_place(data, store)
    windows = settle(data.windows, store)
    facts = profile(store, windows.horizons_days)
    print(f"{data.name}: {format_profile(facts)}")
    if isinstance(data.windows, Windows) and data.windows.is_open and isinstance(windows, Windows):
        print(f"  {'derived':<22} {windows.describe(store)}; give windows in the YAML to choose others")
    if place["rejected"] is not None:
        print(f"  {'rejected rows are in':<22} {place['rejected']}")
    verb = f"built in {seconds:.1f} s" if bar.called else "reused, built before"
    print(f"  {'store':<22} {place['folder']} ({verb}; fingerprint {store.manifest.fingerprint[:12]})")
    path = run.folder / "profile.json"
    path.write_text(json.dumps(facts, indent=2, ensure_ascii=False), encoding="utf-8")
    run.log_file(path)
    run.log_dataset(data.name, store.manifest.content, source=data.source.label, profile=store.manifest.profile)
    metrics = {"prepare/num_events": float(store.num_events), "prepare/num_customers": float(store.num_customers)}
    if bar.called:
        metrics |= {"prepare/seconds": seconds, "prepare/events_per_second": store.num_events / max(seconds, 1e-9)}
    run.log_metrics(metrics)
    return facts


class ProgressLine:
    """One line on stderr with rate and time left, refreshed a few times a second; silent without a terminal."""

    def __init__(self) -> None:
        self.called = False
        self._shown = sys.stderr.isatty()
        self._stage, self._started, self._printed = "", 0.0, 0.0

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        now = time.perf_counter()
        self.called = True
        if stage != self._stage:
            self._stage, self._started = stage, now
        if not self._shown or (now - self._printed < 0.2 and done != total):
            return
        self._printed = now
        rate = done / max(now - self._started, 1e-9)
        text = f"{stage}: {done:,} events" if total is None else f"{stage}: {done:,} of {total:,} events"
        if now > self._started:
            text += f", {rate:,.0f} per second"
            if total is not None:
                text += f", {max(total - done, 0) / max(rate, 1e-9):.0f} s left"
        print(f"\r{text:<100}", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._shown and self.called:
            print(f"\r{'':<100}\r", end="", file=sys.stderr, flush=True)
