"""The taught network as a file: safetensors, with its sizes and how it was made in the header."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from constellation.errors import InputError
from constellation.prior.features import NUM_COURSE, NUM_FEATURES
from constellation.prior.network import PriorNetwork

SHIPPED = Path(__file__).parent / "prior_fitted.safetensors"
"""Made by ``constellation train_prior``; experiments/0003-zero-shot says how."""

FORMAT = "constellation.prior 1"


def save(network: PriorNetwork, path: Path, made: Mapping[str, Any]) -> None:
    """made: how it was made, plain values for whoever opens the file."""
    from safetensors.torch import save_file

    shape = {"features": NUM_FEATURES, "course": NUM_COURSE, "sizes": network.sizes}
    header = {"format": FORMAT, "shape": json.dumps(shape), "made": json.dumps(dict(made))}
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, path, metadata=header)
    path.chmod(0o644)  # the library writes for its owner only, and a package is read by others


@functools.lru_cache(maxsize=4)
def load(path: str | None = None) -> PriorNetwork:
    """The network of a file, by default the shipped one, for predictions only. Raises InputError for another file."""
    from safetensors import safe_open

    where = SHIPPED if path is None else Path(path)
    if not where.is_file():
        raise InputError(f"No weights in {where}. Make some with `constellation train_prior`, or leave weights=null.")
    try:
        with safe_open(str(where), framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # the library raises errors of its own making for damaged files
        raise InputError(
            f"{where} is no safetensors file: {error}. Make one with `constellation train_prior`."
        ) from error
    shape = json.loads(header.get("shape", "{}"))
    if header.get("format") != FORMAT or (shape["features"], shape["course"]) != (NUM_FEATURES, NUM_COURSE):
        raise InputError(
            f"{where} was made for other inputs ({header.get('format')}, {shape}) than this release's ({FORMAT}, "
            f"{NUM_FEATURES} features, {NUM_COURSE} of the course). Make it anew with `constellation train_prior`."
        )
    network = PriorNetwork(**shape["sizes"])
    network.load_state_dict(tensors)
    return network.eval().requires_grad_(False)


def made(path: str | None = None) -> dict[str, Any]:
    """How a file was made, as its header says."""
    from safetensors import safe_open

    with safe_open(str(SHIPPED if path is None else Path(path)), framework="pt") as file:
        return dict(json.loads((file.metadata() or {}).get("made", "{}")))
