"""Composing with an eye on what a person may have got wrong, and the paragraph that says so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from constellation.cli.composing import Composed, compose_unchecked, parameters_of, parsed, plain, quoted
from constellation.errors import InputError
from constellation.manual import choices_of, did_you_mean


def compose(command: str, overrides: Sequence[str] = ()) -> Composed:
    """The configuration of a command. Raises InputError for an unknown key or choice, or a value of a wrong kind."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        composed = compose_unchecked(command, overrides)
        _check_kinds(command, overrides, composed)
    except YAMLError as error:
        raise InputError(
            f"A configuration file cannot be read as YAML: {error}. Quote text that has a colon."
        ) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(_diagnosis(command, overrides, error)) from error
    return composed


def with_positionals(command: str, words: list[str]) -> list[str]:
    """Words without an equals sign are the `runs` of a command that takes several, or say `what` of one that asks."""
    bare = [word for word in words if "=" not in word and not word.startswith("~")]
    if not bare:
        return words
    config = compose(command).config
    if "what" in config and len(bare) == 1:
        return [f"what={quoted(bare[0])}", *(word for word in words if word not in bare)]
    if "runs" not in config:
        raise InputError(f"{bare[0]!r} is not key=value. See `constellation {command} --help`.")
    runs = ",".join(quoted(word) for word in bare)
    return [word for word in words if word not in bare] + [f"runs=[{runs}]"]


def _check_kinds(command: str, overrides: Sequence[str], composed: Composed) -> None:
    """The default's kind is the expected kind: a number, a switch, a list, a mapping, or free where it is null."""
    from omegaconf import DictConfig, ListConfig, OmegaConf

    values = [override for override in parsed(overrides) if _is_value(override, composed)]
    if not values:
        return
    chosen = [word for word, override in zip(overrides, parsed(overrides), strict=True) if override not in values]
    defaults = compose_unchecked(command, chosen).config
    for override in values:
        key = override.key_or_group
        if key == "hydra" or key.startswith("hydra."):
            raise InputError(f"{key} cannot be set: folders and logs of runs are this program's own.")
        default, value = OmegaConf.select(defaults, key), OmegaConf.select(composed.config, key)
        if isinstance(default, bool):
            wanted = None if isinstance(value, bool) else "true or false"
        elif isinstance(default, int | float):
            wanted = "a number" if isinstance(value, str | bool | ListConfig | DictConfig) else None
        elif isinstance(default, ListConfig):
            wanted = None if isinstance(value, ListConfig) else f"a list, such as {key}=[{value}],"
        elif isinstance(default, DictConfig):
            wanted = None if isinstance(value, DictConfig) else f"a group of keys ({', '.join(map(str, default))})"
        else:
            wanted = None
        if wanted is not None and value is not None:
            raise InputError(f"{key} is {value!r}, but {wanted} was expected. Its default is {plain(default)!r}.")


def _is_value(override: Any, composed: Composed) -> bool:
    """Whether an override sets the value of a key that exists (and does not choose, add or delete)."""
    return override.key_or_group not in composed.choices and not override.is_add() and not override.is_delete()


def _diagnosis(command: str, overrides: Sequence[str], error: Exception) -> str:
    """Which override was wrong, and what comes nearest to it; else what Hydra said."""
    from hydra.errors import HydraException, OverrideParseException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    said = " ".join(str(error).split())
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override!r} cannot be read as key=value. Quote a value that has spaces, commas, brackets or "
            "equals signs, twice over because of the shell: \"key='a, b'\"."
        )
    try:
        bare = compose_unchecked(command, [])
    except (HydraException, OmegaConfBaseException):
        return f"The configuration of {command} cannot be composed: {said}"
    groups = [override for override in parsed(overrides) if override.key_or_group in bare.choices]
    for override in groups:
        names = override.value() if isinstance(override.value(), list) else [override.value()]
        known = choices_of(override.key_or_group)
        for name in names:
            if name is not None and name not in known:
                return (
                    f"{override.key_or_group}={name}: there is no such choice. {did_you_mean(str(name), known)}"
                    f"Choices: {', '.join(known)}. Your own goes in ./configs/{override.key_or_group}/{name}.yaml."
                )
    try:
        config = compose_unchecked(command, [override.input_line for override in groups]).config
    except (HydraException, OmegaConfBaseException):
        return said
    keys = [*_keys(OmegaConf.to_container(config)), *bare.choices]
    for override in parsed(overrides):
        key = override.key_or_group
        if override.is_sweep_override():
            return f"{override.input_line} gives several values. A list is written {key}=[a,b]."
        if key not in keys and not override.is_add():
            meant = did_you_mean(key, [known for known in keys if not known.endswith("_target_")])
            return f"{command} has no key {key!r}. {meant}See `constellation {command} --help`."
    return said


def _keys(nested: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(nested, dict):
        yield from (f"{prefix}{name}" for name in parameters_of(nested) if name not in nested)
        for name, value in nested.items():
            yield f"{prefix}{name}"
            yield from _keys(value, f"{prefix}{name}.")
