"""The files of a bundle: written whole or not at all, read with an explanation of what is wrong."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from torch import nn

from constellation import __version__
from constellation.errors import InputError

if TYPE_CHECKING:
    from constellation.tracking import Tracking

WEIGHTS, CONTENT, CARD = "weights.safetensors", "bundle.json", "README.md"
FORMAT, FORMAT_VERSION, OLDEST_VERSION = "constellation-bundle", 2, 2
"""Version 2 may carry a recalibration, which an older release would leave out; its readout has a part for newcomers."""

ENGAGEMENT = "engagement"
"""The part of ``bundle.json`` that only a bundle of ``objective=engagement`` has."""

Part = TypeVar("Part")


def locate(where: str | Path, *, tracking: Tracking | None = None) -> Path:
    """The folder of a bundle: the folder itself, or ``bundle/`` in a run's folder, MLflow run id, or ``latest``.

    A run of several seeds has a bundle per seed, and one of them must be named. tracking: where run ids are looked up.
    """
    folder = Path(where).expanduser()
    for place in (folder, folder / "bundle"):
        if (place / CONTENT).is_file():
            return place
    if folder.exists():
        _check_seeds(folder)
        raise InputError(
            f"{folder} is no bundle: neither {CONTENT} nor bundle/{CONTENT} is in it. Name the folder that "
            "`constellation train` or `constellation export` wrote, or the folder of a run."
        )
    from constellation.tracking import resolve_run

    run = resolve_run(where, tracking=tracking)
    if not (run / "bundle" / CONTENT).is_file():
        _check_seeds(run)
        raise InputError(f"The run {run} has no bundle, for it did not finish: `constellation train resume={run}`.")
    return run / "bundle"


def _check_seeds(run: Path) -> None:
    """Raise InputError, naming them, where a run has its bundles one folder deeper, one per seed."""
    seeds = sorted(str(path.parent.parent) for path in run.glob(f"seed_*/bundle/{CONTENT}"))
    if seeds:
        raise InputError(f"{run} was trained with several seeds, and each has a bundle. Name one: {', '.join(seeds)}.")


def read_content(folder: Path, what: str = "model") -> dict[str, Any]:
    """``bundle.json``, checked for what it claims to be; ``what`` is the part that tells the kinds of bundle apart."""
    for name in (CONTENT, WEIGHTS):
        if not (folder / name).is_file():
            raise InputError(f"{folder} is no whole bundle: {name} is missing. Copy the folder again, or export again.")
    try:
        content = json.loads((folder / CONTENT).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{folder / CONTENT} is damaged ({error}). Copy the bundle again, or export again.") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{folder / CONTENT} does not describe a bundle: its format should be {FORMAT!r}.")
    version = content.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise InputError(
            f"{folder} has format version {version}, this release reads up to {FORMAT_VERSION}. It was written by "
            f"constellation {content.get('package_version')}, here is {__version__}: update the package."
        )
    if version < OLDEST_VERSION:
        raise InputError(
            f"{folder} has format version {version}, this release reads {OLDEST_VERSION} to {FORMAT_VERSION}: its "
            "model lacks parts that models have by now. Train again, or score with the release that wrote it."
        )
    if not isinstance(content.get(what), dict):
        if isinstance(content.get(ENGAGEMENT if what == "model" else "model"), dict):
            right = "EngagementBundle" if what == "model" else "Bundle"
            raise InputError(f"{folder} is a bundle of another kind: read it with {right}.load.")
        raise InputError(f"{folder / CONTENT} lacks its part {what!r}. Export the bundle again.")
    return content


def part(content: Mapping[str, Any], name: str, read: Callable[[Any], Part]) -> Part:
    """One part of ``bundle.json``, or an InputError that names it."""
    try:
        return read(content[name])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"The part {name!r} of {CONTENT} is missing or not what was expected ({type(error).__name__}: {error}). "
            "Export the bundle again."
        ) from error


def read_weights(folder: Path, model: nn.Module) -> None:
    """Fill the model in place; every tensor must be there with its shape, and none else."""
    from safetensors import SafetensorError
    from safetensors.torch import load_model

    path = folder / WEIGHTS
    try:
        load_model(model, path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged or cut short ({error}). Copy the bundle again, or export again.") from None
    except RuntimeError as error:
        raise InputError(f"{path} does not fit the model that {CONTENT} describes: {error}") from None


def write_weights(folder: Path, model: nn.Module) -> None:
    from safetensors.torch import save_model

    save_model(model, str(folder / WEIGHTS), metadata={"format": "pt"})


def read_arrays(folder: Path) -> dict[str, np.ndarray]:
    """All arrays of a bundle by name."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return dict(load_file(folder / WEIGHTS))
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{folder / WEIGHTS} is damaged or cut short ({error}). Copy the bundle again, or export again."
        ) from None


def write_arrays(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    from safetensors.numpy import save

    # The library takes the memory as it lies, whatever the strides say.
    plain_arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    (folder / WEIGHTS).write_bytes(save(plain_arrays, metadata={"format": "np"}))


def is_engagement(folder: Path) -> bool:
    """Whether a bundle answers about actions: an ``EngagementBundle``."""
    path = folder / CONTENT
    return path.is_file() and ENGAGEMENT in json.loads(path.read_text(encoding="utf-8"))


def write_content(folder: Path, content: Mapping[str, Any]) -> None:
    head = {"format": FORMAT, "format_version": FORMAT_VERSION, "package_version": __version__}
    text = json.dumps(plain({**head, **content}), indent=1, ensure_ascii=False, allow_nan=False)
    (folder / CONTENT).write_text(text + "\n", encoding="utf-8")


def plain(value: Any) -> Any:
    """Containers, numbers and texts of JSON; a number that is not finite becomes null."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(name): plain(found) for name, found in value.items()}
    if isinstance(value, list | tuple | set | np.ndarray):
        return [plain(found) for found in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def check_replaceable(folder: Path) -> None:
    """Only a new or empty folder, or an older bundle, may be written to."""
    if folder.is_file():
        raise InputError(f"The bundle {folder} is a file; a folder was expected. Choose another name.")
    found = {path.name for path in folder.iterdir()} if folder.exists() else set()
    strange = sorted(found - {WEIGHTS, CONTENT, CARD})
    if strange:
        raise InputError(f"The folder {folder} is no bundle, it holds {', '.join(strange[:3])}. Choose another folder.")


def partial_folder(folder: Path) -> Path:
    """A folder beside the final one, so that putting it in its place is a rename."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    mask = os.umask(0)
    os.umask(mask)
    partial.chmod(0o777 & ~mask)  # mkdtemp shuts out everybody else; a bundle is made to be handed on
    return partial


def put_in_place(partial: Path, folder: Path) -> None:
    """Rename; what stood there is moved aside first and then removed."""
    old = None
    if folder.exists():
        old = partial.with_name(partial.name + ".old")
        folder.rename(old)
    partial.rename(folder)
    if old is not None:
        shutil.rmtree(old)
