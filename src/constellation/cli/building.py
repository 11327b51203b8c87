"""Objects from plain configuration."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from typing import Any

from constellation.errors import InputError
from constellation.manual import did_you_mean


def build(value: Any, key: str) -> Any:
    """Objects from plain configuration. Raises InputError when a constructor does not take what it was given."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    if not isinstance(value, dict | list):
        return value
    try:
        built = instantiate(value, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, InputError | FileNotFoundError):
            raise cause from error
        if cause is None or isinstance(cause, TypeError | ImportError):
            raise InputError(f"{key} cannot be built: {cause or str(error)}") from error
        raise
    for name, part in _partials(built, key):
        _check_keywords(name, part)
    return built


def _partials(built: Any, key: str) -> Iterator[tuple[str, functools.partial[Any]]]:
    if isinstance(built, functools.partial):
        yield key, built
    elif isinstance(built, dict):
        for name, value in built.items():
            yield from _partials(value, f"{key}.{name}")


def _check_keywords(key: str, part: functools.partial[Any]) -> None:
    # A partial would only complain when it is called, minutes later.
    parameters = inspect.signature(part.func).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for name in part.keywords:
        if name not in parameters:
            takes = ", ".join(parameters)
            raise InputError(f"{key} has no key {name!r}. {did_you_mean(name, parameters)}It takes {takes}.")
