"""What a person sees of a run: lines while it works, tables at its end, pictures beside them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from constellation.journeys.purchases import NO_MONEY, has_money, without_purchases
from constellation.journeys.splits import Splits
from constellation.journeys.store import Store
from constellation.journeys.windows import format_time
from constellation.metrics.evaluate import Evaluation

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from constellation.tracking import Run


MANY_CUSTOMERS = 20_000
"""From so many on, it is seconds to minutes before the first epoch and after the last one."""


class Report:
    """Terminal, MLflow and figures of one run; commands decide when, this class how."""

    def __init__(self, run: Run, name: str, store: Store, splits: Splits) -> None:
        self.run, self.name, self.store, self.splits = run, name, store, splits
        self._is_heard = True

    @cached_property
    def has_money(self) -> bool:
        """Whether money is worth showing; else the number of purchases stands in its place."""
        return has_money(self.store)

    @property
    def _headline(self) -> str:
        return "value_" if self.has_money else "purchases_"

    def say(self, line: str) -> None:
        """A line for whoever listens; a reader that went away, such as ``head``, ends no training."""
        if self._is_heard:
            try:
                print(line, flush=True)
            except BrokenPipeError:
                self._is_heard = False

    def step(self, line: str) -> None:
        """What is done now, where the store is so large that it takes long enough to be told of."""
        if self.store.num_customers >= MANY_CUSTOMERS:
            self.say(line)

    def opening(self, seeds: Sequence[int]) -> None:
        store, zone = self.store, self.store.schema.timezone
        first, last = (format_time(time, zone) for time in (store.manifest.first_time, store.manifest.observed_until))
        span = f"{first} to {last}" if store.has_clock else "only their order is known"
        self.say(f"{self.name}: {store.num_customers:,} customers, {store.num_events:,} events, {span}")
        self.say(
            f"{self.splits.windows.describe(store)}, "
            f"{int(self.splits.held_out_C.sum()):,} customers held out, seeds {list(seeds)}"
        )
        missing = without_purchases(store) if self.splits.windows.horizons_days else None
        if missing is not None:
            self.say(f"WARNING: {missing}")

    def epoch(self, run: Run, phase: str, row: Mapping[str, float]) -> None:
        """One line per epoch; the same numbers go to MLflow under the phase."""
        shown = [f"{phase} epoch {int(row['epoch']):>3}", f"loss {row['train/loss']:.4f}"]
        shown += [f"{name.removeprefix('val/')} {row[name]:.4f}" for name in row if self._is_headline(name)]
        shown.append(f"{row['train/events_per_second']:,.0f} events/s")
        self.say("  ".join(shown))
        named = {f"{phase}/{name}": value for name, value in row.items() if name not in ("epoch", "step")}
        run.log_metrics({name: value for name, value in named.items() if math.isfinite(value)}, step=int(row["step"]))
        run.flush()  # the checkpoint that comes next may be the one that a killed run goes on from

    def curves(self, history: Sequence[Mapping[str, float]], best_epoch: int) -> Figure:
        """Learning curves of the selection, whose epochs have validation scores."""
        from constellation.metrics.plots import learning_curves

        return learning_curves([dict(row) for row in history], best_epoch=best_epoch)

    def spread(self, of_seeds: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Mean over seeds under each name, and the standard deviation under ``<name>_sd``."""
        spread: dict[str, float] = {}
        for name in of_seeds[0]:
            values = [metrics[name] for metrics in of_seeds if name in metrics]
            spread[name] = statistics.fmean(values)
            if not name.endswith(("_low", "_high")):
                spread[f"{name}_sd"] = statistics.stdev(values) if len(values) > 1 else 0.0
        return spread

    def seeds_table(self, of_seeds: Sequence[Mapping[str, float]]) -> None:
        """Mean and spread over seeds on the test split."""
        spread = self.spread(of_seeds)
        self.say(f"\nmodel on test, mean and standard deviation over {len(of_seeds)} seeds")
        for name in spread:
            if name.startswith("test/") and f"{name}_sd" in spread:
                self.say(f"  {name.removeprefix('test/'):<46} {spread[name]:>12.4f} ± {spread[f'{name}_sd']:.4f}")

    def tables(self, evaluation: Evaluation) -> None:
        """A table per target on the first split that is not validation; the other splits are in metrics.json."""
        from constellation.metrics.table import print_table

        hidden = [target for _, target in evaluation.groups() if target.startswith("value_") and not self.has_money]
        if hidden:
            self.say(f"\n{NO_MONEY}")
        for split, target in evaluation.groups():
            if split in ("test", "train") and target not in hidden:
                print()
                print_table(evaluation, split, target)
        self.run.log_table("metrics", evaluation.frame())

    def figures(self, evaluation: Evaluation, split: str) -> None:
        """Decile calibration, Lorenz curves, predicted against realised and PIT, for money (or, without, purchases)."""
        from constellation.metrics import plots

        for group, target in evaluation.groups():
            if group != split or not target.startswith(self._headline):
                continue
            for name, figure in plots.value_figures(evaluation, split, target).items():
                self.run.log_figure(f"{split}_{target}_{name}", figure)

    def slices(self, table: pandas.DataFrame) -> None:
        """The model's headline metrics by slice: longest horizon of money (or, without, of purchases), or products."""
        targets = [target for target in table["target"].unique() if target.startswith(self._headline)]
        targets = targets or [target for target in table["target"].unique() if target == "next_product"]
        if not targets:
            return
        chosen = table[(table["target"] == targets[-1]) & (table["system"] == "model")]
        present = set(chosen["metric"])
        wanted = [
            name
            for name in ("gini_normalised", "mae", "bias_total", "coverage_90", "ndcg_at_10", "hit_rate_at_10")
            if name in present
        ]
        wide = chosen.pivot_table(index=["slice", "level", "num_rows"], columns="metric", values="estimate")[wanted]
        self.say(f"\nmodel, {targets[-1]}, by slice; customers without a label are in none")
        self.say(wide.reset_index().to_string(index=False, float_format=lambda value: f"{value:.3f}"))

    def _is_headline(self, name: str) -> bool:
        of_value = name.startswith(f"val/{self._headline}") and name.endswith("/crps")
        return of_value or name == "val/next_product/ndcg_at_10"
