"""From a model's configuration, plain JSON, to the model. Training and the bundle build through this one door.

::

    model = build_model(
        {
            "encoder": {"_target_": "constellation.encoders.gru.Gru", "width": 64},
            "readout": {"_target_": "constellation.encoders.readout.Readout", "width": 64},
            "objective": {"value": {"_target_": "constellation.objectives.value.Value", "family": {"_target_": ...}}},
        },
        vocabulary,
        horizons_days=(30, 91),
    )

A bundle may come from a stranger, so a name in it must not reach further than the parts of a model: only classes of the
modelling rooms are built, and classes of modules that the caller trusts by name.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from constellation.errors import InputError

if TYPE_CHECKING:
    from constellation.journeys.vocabulary import Vocabulary
    from constellation.model import JourneyModel

TARGET = "_target_"
OWN_ROOMS = ("constellation.encoders", "constellation.objectives", "constellation.distributions", "constellation.model")
"""Modules whose classes only compute; the rest of the package opens files and runs commands."""

_OF_HYDRA = {"_partial_", "_convert_", "_recursive_"}


def build_model(
    config: Mapping[str, Any], vocabulary: Vocabulary, horizons_days: Sequence[int], *, trusted: Sequence[str] = ()
) -> JourneyModel:
    """The untrained model of ``config``, with keys ``encoder``, ``readout`` and ``objective`` (one entry per question).

    trusted: modules or classes outside this package that may be built, ``("mypackage.",)``; see :func:`targets`.
    Raises InputError for a missing or unknown part, a name that is not trusted, or a setting a part does not have.
    """
    wanted = ("encoder", "readout", "objective")
    if sorted(config) != sorted(wanted) or not config["objective"]:
        raise InputError(
            f"A model has {', '.join(wanted)}, with one objective or more; found {', '.join(config) or 'nothing'}."
        )
    horizons_days = tuple(int(days) for days in horizons_days)
    encoder = build(config["encoder"], vocabulary, trusted=trusted)
    readout = build(config["readout"], vocabulary, encoder.width, trusted=trusted)
    objectives = {
        name: build(part, vocabulary, encoder.width, readout.width, horizons_days, trusted=trusted)
        for name, part in config["objective"].items()
    }
    # By name: the model stands on our own floor, where rooms do not import each other.
    return _resolve("constellation.model.JourneyModel", ())(encoder, readout, objectives)


def build(config: Mapping[str, Any], *arguments: Any, trusted: Sequence[str] = ()) -> Any:
    """The object that ``_target_`` names, called with ``arguments`` and the other keys; nested targets are built first.

    With ``_partial_: true`` a nested part stays a ``functools.partial``; here, where arguments are given, it is called.
    """
    if TARGET not in config:
        raise InputError(
            f"A part of the model needs {TARGET}, the dotted name of its class; found {', '.join(config)}."
        )
    found = _resolve(str(config[TARGET]), trusted)
    settings = {
        str(name): _nested(value, trusted) for name, value in config.items() if name not in {TARGET, *_OF_HYDRA}
    }
    _check_settings(found, arguments, settings)
    return found(*arguments, **settings)


def targets(config: Any) -> tuple[str, ...]:
    """All dotted names in a configuration: what to trust where the configuration is one's own."""
    return tuple(dict.fromkeys(_targets(config)))


def _targets(config: Any) -> Iterator[str]:
    if isinstance(config, Mapping):
        if TARGET in config:
            yield str(config[TARGET])
        for value in config.values():
            yield from _targets(value)
    elif isinstance(config, list | tuple):
        for value in config:
            yield from _targets(value)


def _nested(value: Any, trusted: Sequence[str]) -> Any:
    if isinstance(value, Mapping):
        if TARGET not in value:
            return {name: _nested(part, trusted) for name, part in value.items()}
        if not value.get("_partial_"):
            return build(value, trusted=trusted)
        found = _resolve(str(value[TARGET]), trusted)
        kept = {name: _nested(part, trusted) for name, part in value.items() if name not in {TARGET, *_OF_HYDRA}}
        return functools.partial(found, **kept)
    if isinstance(value, list | tuple):
        return [_nested(part, trusted) for part in value]
    return value


def _resolve(name: str, trusted: Sequence[str]) -> Any:
    """The class of a dotted name, once we know that its module may be imported."""
    own, given = _within(name, OWN_ROOMS), _within(name, trusted)
    module_name, _, class_name = name.rpartition(".")
    if not (own or given):
        raise InputError(
            f"The model is made with {name}, which lies outside the modelling rooms of this package. Loading it would "
            f"run code of {module_name or name!r}. If you trust that code, pass trusted=({module_name + '.'!r},)."
        )
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except ModuleNotFoundError as error:
        # A module that is there but lacks a dependency of its own says so itself.
        if error.name is None or not _within(module_name, (error.name,)):
            raise
        raise InputError(
            f"The model is made with {name}, but the module {error.name!r} is not installed here."
        ) from None
    except AttributeError:
        raise InputError(f"The model is made with {name}, but {module_name} has no {class_name}.") from None
    # What a module of ours merely imported is not ours: constellation.encoders.base.Tensor is torch's.
    if not isinstance(found, type) or (own and not given and not _within(found.__module__, OWN_ROOMS)):
        raise InputError(f"The model is made with {name}, which is no part of a model. Name the class of a part.")
    return found


def _within(name: str, places: Sequence[str]) -> bool:
    """Whether a dotted name is one of ``places`` or lies inside one; ``mine`` does not open ``mine_too``."""
    return any(name == place.rstrip(".") or name.startswith(place.rstrip(".") + ".") for place in places)


def _check_settings(found: type, arguments: Sequence[Any], settings: Mapping[str, Any]) -> None:
    signature = inspect.signature(found)
    try:
        signature.bind(*arguments, **settings)
    except TypeError as error:
        known = [name for name, parameter in signature.parameters.items() if parameter.kind is parameter.KEYWORD_ONLY]
        part = f"{found.__module__}.{found.__qualname__}"
        raise InputError(f"{part} cannot be built: {error}. Its settings are {', '.join(known) or 'none'}.") from None
