"""What may be tried: parameters of a configuration, and the ranges or choices of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from constellation.errors import InputError

if TYPE_CHECKING:
    import optuna

FORBIDDEN = ("data", "search", "tracking", "output", "study", "storage")
"""What a trial must not change: it would compare answers to different questions."""


@dataclass(frozen=True)
class Parameter:
    """One key of the configuration, or one group.

    name: the key as on the command line. Either choices, or low and high: whole numbers give whole numbers. log: even
    on a logarithmic scale. step: between the values of an even one. where: other parameters of the space and the value
    that each must have for this one to be asked.
    """

    name: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    step: float | None = None
    choices: tuple[Any, ...] = ()
    where: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", tuple(self.choices))
        if self.name.partition(".")[0] in FORBIDDEN:
            raise InputError(
                f"{self.name} cannot be tuned: trials must answer the same questions, in the same place. "
                "Tune encoder, readout, objective, optimizer or training."
            )
        is_range = self.low is not None and self.high is not None
        if is_range == bool(self.choices):
            raise InputError(
                f"The search parameter {self.name} needs either low and high, or choices; found "
                f"{'both' if is_range else 'neither'}."
            )
        if is_range and not self.low <= self.high:  # type: ignore[operator]
            raise InputError(f"The search parameter {self.name} has low {self.low} above high {self.high}.")
        if is_range and self.log and (self.low <= 0 or self.step is not None):  # type: ignore[operator]
            raise InputError(
                f"The search parameter {self.name} is logarithmic: low must be above 0, and step left out."
            )
        strange = [value for value in self.choices if not isinstance(value, str | int | float | bool | None)]
        if strange:
            raise InputError(
                f"The search parameter {self.name} has the choice {strange[0]!r}; numbers and text were expected. "
                'Write a list as text, "[next_event,value]".'
            )

    def suggest(self, trial: optuna.Trial) -> Any:
        """The value that this trial is to try."""
        if self.choices:
            return trial.suggest_categorical(self.name, list(self.choices))
        assert self.low is not None and self.high is not None
        if isinstance(self.low, int) and isinstance(self.high, int):
            step = int(self.step or 1)
            return trial.suggest_int(self.name, self.low, self.high, step=1 if self.log else step, log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)


@dataclass(frozen=True)
class Search:
    """The space, and Optuna's parts that walk it.

    sampler: called with ``seed=``. pruner: ends a trial whose epochs fall behind those of earlier ones; trials with
    several metrics are never pruned, for there is no one order of them.
    """

    parameters: Sequence[Parameter | Mapping[str, Any]]
    sampler: Callable[..., Any]
    pruner: Any

    def __post_init__(self) -> None:
        made = []
        for part in self.parameters:
            if isinstance(part, Mapping):
                unknown = set(part) - set(Parameter.__dataclass_fields__)
                if unknown or "name" not in part:
                    raise InputError(
                        "A search parameter has name and low, high, log, step or choices, and where; found "
                        f"{dict(part)}."
                    )
                part = Parameter(**part)
            made.append(part)
        if not made:
            raise InputError("search.parameters is empty: there is nothing to tune.")
        names = [part.name for part in made]
        for part in made:
            absent = sorted(set(part.where) - set(names))
            if absent:
                raise InputError(f"{part.name} depends on {absent[0]}, which is no parameter of this search space.")
        object.__setattr__(self, "parameters", tuple(made))

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """Values by name; parameters whose conditions do not hold are left out."""
        values: dict[str, Any] = {}
        for part in self.parameters:
            assert isinstance(part, Parameter)
            if all(name in values and values[name] == wanted for name, wanted in part.where.items()):
                values[part.name] = part.suggest(trial)
        return values


def words(values: Mapping[str, Any]) -> list[str]:
    """Values as overrides of a command line; floats in full, so that a trial can be repeated exactly."""

    def text(value: Any) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        return "null" if value is None else repr(value) if isinstance(value, float) else str(value)

    return [f"{name}={text(value)}" for name, value in values.items()]
