"""The options of the training loop; every key of ``configs/training`` is a field here."""

from __future__ import annotations

from dataclasses import dataclass

from constellation.errors import InputError


@dataclass(frozen=True)
class TrainingOptions:
    """How a model is trained and selected.

    max_epochs, patience: at most so many passes over the training journeys, ending after ``patience`` passes without a
    better validation score. monitor: ``<target>/<metric>`` on the validation cutoff, such as ``value_91d/crps``; null
    takes the CRPS of money over the longest horizon that the validation span covers, else NDCG@10 of the products.
    max_tokens, max_journeys: the most events and journeys of a batch. max_events: a journey keeps its last so many.
    gradient_clip: largest norm of a step's gradient; 0 never clips. Money is heavy-tailed: clipping shrinks just the
    steps that the best customers cause; at a norm of 1 every total came out 5 to 10 % low, in training too.
    cutoffs_per_journey: questions drawn per journey and epoch. warmup_share: of all steps, with a rising learning rate,
    which then falls along a cosine to ``final_rate`` of its peak.
    averaging: decay of the moving average of the weights that is scored and kept; 0 keeps the last weights.
    num_threads: of the CPU; null leaves the choice to PyTorch. Short journeys make many small kernels, which a second
    thread speeds up by a tenth at best, and which crawl where threads wait for one another on busy cores.
    windows_days: look-back windows of the aggregates. min_count: rarer categories are read as unknown.
    """

    max_epochs: int = 8
    patience: int = 3
    monitor: str | None = None
    max_tokens: int = 8192
    max_journeys: int = 32
    max_events: int = 1024
    cutoffs_per_journey: int = 8
    gradient_clip: float = 0.0
    warmup_share: float = 0.05
    final_rate: float = 0.05
    averaging: float = 0.99
    windows_days: tuple[int, ...] = (7, 30, 91, 182, 365)
    min_count: int = 1
    accelerator: str = "auto"
    devices: int | str = 1
    strategy: str = "auto"
    precision: str = "32-true"
    num_threads: int | None = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "windows_days", tuple(int(days) for days in self.windows_days))
        for name in ("max_epochs", "patience", "max_tokens", "max_journeys", "max_events", "cutoffs_per_journey"):
            if getattr(self, name) < 1:
                raise InputError(f"training.{name} must be at least 1, found {getattr(self, name)}.")
        if not 0 <= self.averaging < 1:
            raise InputError(f"training.averaging must lie in [0, 1), found {self.averaging}.")
        if not 0 <= self.warmup_share < 1 or not 0 <= self.final_rate <= 1:
            raise InputError("training.warmup_share must lie in [0, 1) and training.final_rate in [0, 1].")
