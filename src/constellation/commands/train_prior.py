"""Teach the prior-fitted value model on simulated worlds: the weights behind baseline=[prior_fitted].

No data set is read. Writes ``prior_fitted.safetensors``, how it did in held-out worlds of each family
(``validation.csv``), and ``last.pt`` to go on from: ``resume=FOLDER`` continues a run that ``max_minutes`` ended.
To use other weights than those of the package: ``baseline.prior_fitted.weights=FILE``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from constellation.prior.network import PriorNetwork
    from constellation.prior.teaching import Teaching
    from constellation.prior.validation import WorldScore
    from constellation.tracking import Run

WEIGHTS, CHECKPOINT, VALIDATION = "prior_fitted.safetensors", "last.pt", "validation.csv"


def train_prior(
    run: Run,
    *,
    teaching: Teaching,
    network: Mapping[str, int],
    weights: str | None,
    worlds_per_family: int,
    max_minutes: float | None,
    resume: Path | None = None,
) -> None:
    """teaching.wide chooses the worlds, to teach and to judge on. network: sizes of ``PriorNetwork``. weights: a file
    to judge only, without teaching. worlds_per_family: held-out worlds behind the table; 0: no table. max_minutes: of
    this job; null: until all steps are done.
    """
    from constellation.errors import InputError
    from constellation.prior import weights as files

    if worlds_per_family < 0 or (max_minutes is not None and max_minutes <= 0):
        raise InputError(
            f"worlds_per_family must not be negative, and max_minutes above 0 or null; found {worlds_per_family}, "
            f"{max_minutes}."
        )
    with _one_thread():
        judged = files.load(weights) if weights else _taught(run, teaching, dict(network), max_minutes, resume)
        if judged is not None and worlds_per_family:
            _judge(run, judged, worlds_per_family, wide=teaching.wide)


def _taught(
    run: Run, teaching: Teaching, sizes: dict[str, int], max_minutes: float | None, resume: Path | None
) -> PriorNetwork | None:
    """The network, its file written; None where the time was up before."""
    from constellation.errors import InputError
    from constellation.prior import weights as files
    from constellation.prior.teaching import Teacher, held_out_loss

    teacher, checkpoint = Teacher(teaching, sizes), run.folder / CHECKPOINT
    if resume is not None:
        if not checkpoint.is_file():
            raise InputError(f"{resume} has no {CHECKPOINT} to go on from. Begin anew without resume.")
        teacher.load(checkpoint)
        print(f"going on after step {teacher.step:,}")

    def report(step: int, parts: dict[str, float]) -> None:
        run.log_metrics({f"train_prior/{name}": value for name, value in parts.items()}, step=step)
        shown = ", ".join(f"{name} {value:.4f}" for name, value in parts.items())
        print(f"step {step:>6,} of {teaching.steps:,}, {teacher.seconds / 60:.1f} min: {shown}", flush=True)
        teacher.save(checkpoint)

    limit = float("inf") if max_minutes is None else 60 * max_minutes
    finished = teacher.teach(max_seconds=limit, report=report, every=max(1, min(250, teaching.steps // 4)))
    teacher.save(checkpoint)
    if not finished:
        print(f"{max_minutes} minutes are up after step {teacher.step:,}. Go on with resume={run.folder}")
        return None
    network = teacher.averaged.eval().requires_grad_(False)
    held_out = held_out_loss(network, num_worlds=100, customers=teaching.customers, wide=teaching.wide)
    made = {"teaching": _plain(vars(teaching)), "seconds": round(teacher.seconds), "held_out_loss": held_out}
    files.save(network, run.folder / WEIGHTS, made)
    size = (run.folder / WEIGHTS).stat().st_size
    run.log_metrics({"train_prior/held_out_loss": held_out, "train_prior/bytes": size})
    print(f"held-out loss {held_out:.4f}, {size / 1e6:.2f} MB")
    return network


@contextmanager
def _one_thread() -> Iterator[None]:
    """The arrays are small, and threads would only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _judge(run: Run, network: PriorNetwork, worlds_per_family: int, *, wide: bool) -> None:
    import pandas as pd

    from constellation.prior.validation import summary, validate

    scores = validate(network, worlds_per_family=worlds_per_family, wide=wide)
    rows = summary(scores)
    _table(scores).to_csv(run.folder / VALIDATION, index=False)
    run.log_metrics(
        {
            f"validation/{row['family']}/{name}": float(value)
            for row in rows
            for name, value in row.items()
            if name != "family"
        }
    )
    print("held-out worlds: CRPS of purchase days over that of others (-0.01: 1 % lower), bias and cover of totals,")
    print("slope of purchase days on their expectation, cover of customers")
    print(pd.DataFrame(rows).to_string(index=False, float_format=lambda value: f"{value:.3f}"))


def _table(scores: list[WorldScore]) -> Any:
    import pandas as pd

    return pd.DataFrame(
        {name: value for name, value in vars(score).items() if not isinstance(value, dict)}
        | {f"crps_{name}": value for name, value in score.crps.items()}
        | {f"bias_{name}": value for name, value in score.bias.items()}
        for score in scores
    )


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple | list) else value for name, value in values.items()}
