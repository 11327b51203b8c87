"""The options of the training loop; every key of ``configs/training`` is a field here."""

from __future__ import annotations

from dataclasses import dataclass

from constellation.errors import InputError

AUTO = "auto"
PRODUCTS = ("float32", "bfloat16", "fused")
"""As in ``kernels/products.py``, said again so that the door can check options without torch."""
PIECES = "pieces"
LONG_JOURNEYS = ("last", "drawn", PIECES)
"""As in ``journeys/sampling.py``, likewise."""

SMALL_BATCH, LARGE_BATCH, STEPS_OF_AN_EPOCH = 32, 256, 150
"""Journeys of a batch by default: few where customers are few, so that there are steps enough to learn in."""

LEAST_STEPS, MOST_PASSES = 64, 16
"""Of an epoch by default: 2,000 customers give so many steps in batches of 32, and eight epochs of them are enough; of
fewer customers each pass asks new questions, until the epoch is as long."""


@dataclass(frozen=True)
class TrainingOptions:
    """How a model is trained and selected.

    max_epochs, patience: at most so many epochs, ending after ``patience`` epochs without a better validation score.
    passes: over the training journeys in an epoch, each with cutoffs of its own; ``auto``: as many as bring it nearest
    to 64 steps, 16 at most, and one where no cutoffs are drawn or where contacts are learned from
    (``objective=engagement`` asks about its decisions, all of them once). monitor: ``<target>/<metric>`` on the
    validation cutoff, such as ``value_91d/crps``; null takes the CRPS of money over the longest horizon that the
    validation span covers, else NDCG@10 of the products.
    max_scored: validation questions scored after each epoch, at most, the same ones each time; null: all.
    max_tokens, max_journeys: the most events and journeys of a batch; ``auto``: 32 journeys, and up to 256 where there
    are so many that an epoch still has 150 steps. max_events: a journey keeps its last so many.
    long_journeys: what trains of a longer one where each event is asked for the next alone (``cutoffs_per_journey=0``):
    its ``last`` max_events, a stretch ``drawn`` for each epoch, or all of it, cut from its end into ``pieces``. Where
    cutoffs are drawn, a longer one ends at one of them.
    gradient_clip: largest norm of a step's gradient; 0 never clips. Money is heavy-tailed: clipping shrinks just the
    steps that the best customers cause; at a norm of 1 every total came out 5 to 10 % low, in training too.
    cutoffs_per_journey: questions drawn per journey and epoch; 0 asks only what follows each event, of its state.
    before_first_share: further questions, as a share of a batch's, about customers before their first event, of whom
    only attributes are known; 0 asks none. Data without attributes have none.
    refit: train again on all that is known at the test cutoff; false tests the selected weights, as most published
    figures of leave-one-out do. warmup_share: of all steps, with a rising learning rate,
    which then falls along a cosine to ``final_rate`` of its peak.
    averaging: decay of the moving average of the weights that is scored and kept; 0 keeps the last weights.
    season: where the history holds two years of a horizon, learn from the model's totals at the same time of earlier
    years by how much to move its level, see ``training/seasons.py``.
    num_threads: of the CPU; null leaves the choice to PyTorch. A second thread pays with ``fused`` products on a
    machine of one's own; by torch's kernels it gains a tenth at best on short journeys, and on busy cores, where
    threads wait for one another, several crawl.
    devices, strategy: processes that share each batch, one per device: by a copy of the model each (ddp, the choice of
    auto) or with the weights spread over them (fsdp). max_tokens and max_journeys are those of the whole batch.
    checkpoint_every_steps: a checkpoint within the epoch after so many steps; null: by the clock, after
    ``checkpoint_every_minutes``, and never for over a hundredth of the time. Each epoch ends with one in any case.
    products: precision of the large matrix products of a CPU step: ``float32``, ``bfloat16``, ``fused`` (bfloat16, with
    the vectors of events, the full softmax and a transformer's layers in kernels that this machine's C++ compiler makes
    and that work on ``num_threads``), or ``auto``: measured when training starts, see ``kernels/products.py``, and kept
    in the checkpoint. Of steps under some 1,500 events it chooses float32, but for a transformer of such a size that
    the kernels do its layers whole (width a multiple of 32, heads of 16). On a GPU ``precision`` decides.
    store_on_device: the events that training reads lie on the device, and batches are cut there; auto: on a GPU, where
    they take at most a third of its free memory. prefetch: a thread makes batches ahead; auto: on a GPU.
    compile: fuse the row-wise parts of a transformer's layers by torch.compile, which takes a minute at the first step
    and pays on a GPU.
    adapt_batch: where a batch does not fit in memory, halve the journeys that are worked on at once until it does, and
    average the gradients of the parts, so that a step still learns from the whole batch (its losses are means over each
    part, and the parts weigh the same); false refuses it with advice.
    windows_days: look-back windows of the aggregates. min_count: rarer categories are read as unknown.
    """

    max_epochs: int = 8
    patience: int = 3
    passes: int | str = AUTO
    monitor: str | None = None
    max_scored: int | None = None
    max_tokens: int = 8192
    max_journeys: int | str = AUTO
    max_events: int = 1024
    long_journeys: str = PIECES
    cutoffs_per_journey: int = 8
    before_first_share: float = 0.05
    refit: bool = True
    gradient_clip: float = 0.0
    warmup_share: float = 0.05
    final_rate: float = 0.05
    averaging: float = 0.99
    season: bool = True
    windows_days: tuple[int, ...] = (7, 30, 91, 182, 365)
    min_count: int = 1
    accelerator: str = "auto"
    devices: int | str = 1
    strategy: str = "auto"
    precision: str = "32-true"
    products: str = AUTO
    store_on_device: bool | str = AUTO
    prefetch: bool | str = AUTO
    compile: bool = False
    adapt_batch: bool = False
    num_threads: int | None = 1
    checkpoint_every_steps: int | None = None
    checkpoint_every_minutes: float = 5.0

    def journeys_of_a_batch(self, num_journeys: int) -> int:
        """At most so many, where training has ``num_journeys``."""
        if isinstance(self.max_journeys, str):
            return min(max(num_journeys // STEPS_OF_AN_EPOCH, SMALL_BATCH), LARGE_BATCH)
        return self.max_journeys

    def passes_of_an_epoch(self, num_batches: int) -> int:
        """Over the training journeys, where one pass has ``num_batches``."""
        if not isinstance(self.passes, str):
            return self.passes
        if self.cutoffs_per_journey == 0:
            return 1
        return min(max(round(LEAST_STEPS / max(num_batches, 1)), 1), MOST_PASSES)

    def __post_init__(self) -> None:
        object.__setattr__(self, "windows_days", tuple(int(days) for days in self.windows_days))
        for name in ("max_journeys", "passes"):
            if isinstance(getattr(self, name), str) and getattr(self, name) != AUTO:
                raise InputError(f"training.{name} must be a number or auto, found {getattr(self, name)!r}.")
        for name in ("max_epochs", "patience", "passes", "max_tokens", "max_journeys", "max_events"):
            if not isinstance(getattr(self, name), str) and (getattr(self, name) < 1 or getattr(self, name) % 1):
                raise InputError(f"training.{name} must be a whole number, at least 1, found {getattr(self, name)}.")
        if self.checkpoint_every_steps is not None and self.checkpoint_every_steps < 1:
            raise InputError(
                f"training.checkpoint_every_steps must be at least 1, found {self.checkpoint_every_steps}."
            )
        if self.checkpoint_every_minutes < 0:
            raise InputError(f"training.checkpoint_every_minutes is {self.checkpoint_every_minutes}, below 0.")
        if self.long_journeys not in LONG_JOURNEYS:
            raise InputError(
                f"training.long_journeys must be one of {', '.join(LONG_JOURNEYS)}, found {self.long_journeys!r}."
            )
        if self.max_scored is not None and self.max_scored < 1:
            raise InputError(f"training.max_scored must be at least 1, or null for all; found {self.max_scored}.")
        if self.cutoffs_per_journey < 0:
            raise InputError(f"training.cutoffs_per_journey must be 0 or more, found {self.cutoffs_per_journey}.")
        if not 0 <= self.before_first_share <= 1:
            raise InputError(f"training.before_first_share must lie in [0, 1], found {self.before_first_share}.")
        if self.products not in (AUTO, *PRODUCTS):
            raise InputError(
                f"training.products must be one of {', '.join((AUTO, *PRODUCTS))}, found {self.products!r}."
            )
        for name in ("store_on_device", "prefetch"):
            if getattr(self, name) not in (AUTO, True, False):
                raise InputError(f"training.{name} must be true, false or auto, found {getattr(self, name)!r}.")
        if not 0 <= self.averaging < 1:
            raise InputError(f"training.averaging must lie in [0, 1), found {self.averaging}.")
        if not 0 <= self.warmup_share < 1 or not 0 <= self.final_rate <= 1:
            raise InputError("training.warmup_share must lie in [0, 1) and training.final_rate in [0, 1].")
