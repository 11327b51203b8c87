"""From command-line words to a configuration: Hydra's side of the door."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from constellation.errors import InputError
from constellation.manual import choices_of
from constellation.paths import config_directories


@dataclass
class Composed:
    """A composed configuration and the choice made in each group."""

    config: Any  # omegaconf.DictConfig
    choices: dict[str, Any]


def compose_unchecked(command: str, overrides: Sequence[str]) -> Composed:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import ConfigCompositionException
    from omegaconf import open_dict

    folders = [str(folder.absolute()) for folder in config_directories()]
    # Hydra takes the command's own YAML from one folder only; the others add choices of groups.
    first = next((folder for folder in folders if (Path(folder) / f"{command}.yaml").is_file()), folders[0])
    others = [folder for folder in folders if folder != first]
    search = ",".join(quoted(f"file://{folder}") for folder in others)
    with initialize_config_dir(config_dir=first, version_base="1.3"):
        every = [*_without_null_groups(command, overrides), f"hydra.searchpath=[{search}]"]
        try:
            config = hydra_compose(config_name=command, overrides=every, return_hydra_config=True)
        except ConfigCompositionException:
            added = _added_where_taken(every, command, hydra_compose)
            if added == every:
                raise
            config = hydra_compose(config_name=command, overrides=added, return_hydra_config=True)
    # Hydra tells the choice of each group, but leaves out groups of which several or none are chosen by default.
    choices = _default_choices(command) | {
        override.key_or_group: override.value()
        for override in parsed(overrides)
        if choices_of(override.key_or_group) and not override.is_delete()
    }
    choices |= {group: choice for group, choice in config.hydra.runtime.choices.items() if "hydra" not in group}
    _check_hidden(Path(first), choices)
    with open_dict(config):
        del config["hydra"]
    return Composed(config, choices)


def _check_hidden(first: Path, choices: dict[str, Any]) -> None:
    """Raise InputError where a choice stands in a nearer folder too, which Hydra would pass by without a word."""
    folders = [folder.absolute() for folder in config_directories()]
    for folder in folders[: folders.index(first)]:
        for group, chosen in choices.items():
            for name in chosen if isinstance(chosen, list) else [chosen]:
                own, shipped = (place / group / f"{name}.yaml" for place in (folder, first))
                if own.is_file() and shipped.is_file():
                    raise InputError(
                        f"{group}={name} names two files: yours, {own}, and {name}, which comes with constellation and "
                        f"would be taken. Give yours a name of its own, such as {group}/my_{name}.yaml, and choose "
                        f"{group}=my_{name}."
                    )


def _added_where_taken(overrides: Sequence[str], command: str, hydra_compose: Callable[..., Any]) -> list[str]:
    """Keys that a YAML leaves to the defaults of its class are there to be set all the same: Hydra says ``+key``."""
    read = parsed(overrides)
    groups = [word for word, override in zip(overrides, read, strict=True) if "." not in override.key_or_group]
    search = [word for word in overrides if word.startswith("hydra.searchpath=")]
    config = hydra_compose(config_name=command, overrides=[*groups, *search])

    def is_new(override: Any) -> bool:
        return not override.is_add() and not override.is_delete() and takes(config, override.key_or_group)

    return [f"+{word}" if is_new(override) else word for word, override in zip(overrides, read, strict=True)]


def takes(config: Any, key: str) -> bool:
    """Whether the class that a part is made of has a parameter ``key`` that the part's YAML leaves out."""
    from omegaconf import DictConfig, OmegaConf

    parent, _, name = key.rpartition(".")
    part = OmegaConf.select(config, parent) if parent else None
    return isinstance(part, DictConfig) and name not in part and name in parameters_of(part)


def parameters_of(part: Any) -> list[str]:
    """Names that the class or function of a part takes; none where it has none."""
    from hydra.utils import get_object

    try:
        return list(inspect.signature(get_object(str(part["_target_"]))).parameters) if "_target_" in part else []
    except (ImportError, ValueError, TypeError):  # building the part says what is wrong with it
        return []


def _without_null_groups(command: str, overrides: Sequence[str]) -> list[str]:
    """``group=null`` as Hydra says it: ``~group``, of a list ``group=[]``; left out where nothing is chosen anyway."""
    defaults = _default_choices(command)
    words = []
    for override in parsed(overrides):
        is_set = not override.is_add() and not override.is_delete() and not override.is_sweep_override()
        if is_set and override.value() is None and override.key_or_group in defaults:
            chosen = defaults[override.key_or_group]
            if isinstance(chosen, list):
                words.append(f"{override.key_or_group}=[]")
            elif chosen is not None:
                words.append(f"~{override.key_or_group}")
        elif is_set and override.value() is None and choices_of(override.key_or_group):
            # Hydra would end in an error of its own.
            raise InputError(f"{command} has no key {override.key_or_group!r}. See `constellation {command} --help`.")
        else:
            words.append(override.input_line)
    return words


def _default_choices(command: str) -> dict[str, Any]:
    """The groups in the defaults list of a command's YAML, with what is chosen there."""
    from omegaconf import OmegaConf

    for folder in config_directories():
        path = folder / f"{command}.yaml"
        if path.is_file():
            written = OmegaConf.to_container(OmegaConf.load(path))
            assert isinstance(written, dict)
            return {
                str(group).removeprefix("override "): choice
                for entry in written.get("defaults", [])
                if isinstance(entry, dict)
                for group, choice in entry.items()
            }
    return {}


def parsed(overrides: Sequence[str]) -> list[Any]:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_overrides(overrides=list(overrides))


def quoted(text: str) -> str:
    return "'" + text.replace("'", "\\'") + "'"


def plain(value: Any) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def resolved(composed: Composed) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        plain = OmegaConf.to_container(composed.config, resolve=True)
    except OmegaConfBaseException as error:
        raise InputError(f"The configuration cannot be resolved: {error}") from error
    assert isinstance(plain, dict)
    return {str(name): value for name, value in plain.items()}


def to_yaml(config: Any) -> str:
    """YAML with interpolations resolved where they can be."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_yaml(config, resolve=True)
    except OmegaConfBaseException:
        return OmegaConf.to_yaml(config)
