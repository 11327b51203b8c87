"""Compiling the kernels in C++: once, where it can be done, and what happens where it cannot."""

from __future__ import annotations

import logging
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from constellation.encoders.attention import Spans
from constellation.kernels import native, products
from constellation.kernels.bands import Bands, bands_of
from constellation.kernels.native import is_possible, library
from constellation.training import precision
from tests.golden.tiny import tiny_batch
from tests.unit.test_native import LENGTHS, a_layer, compiled
from tests.unit.test_training import OPTIONS


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty folder of kernels, and nothing remembered of earlier ones; before and after."""
    monkeypatch.setenv("CONSTELLATION_KERNELS", str(tmp_path / "kernels"))
    caches = (native.library, native.is_possible, native._version)
    monkeypatch.setattr(native, "_processor_flags", lambda: frozenset(native.NEEDED_FLAGS))
    for each in caches:
        each.cache_clear()
    yield tmp_path
    for each in caches:
        each.cache_clear()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of where libraries lie and not of what they compute: compiled in half the time, and slower."""
    monkeypatch.setattr(native, "FLAGS", tuple("-O0" if flag == "-O2" else flag for flag in native.FLAGS))


def test_without_a_compiler_torch_s_kernels_give_the_same(forgetful: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(forgetful / "nowhere"))
    assert not is_possible() and library("layer", width=32, hidden=32, heads=2) is None
    layer, x, turn, _ = a_layer(32, 2, 32)
    spans = Spans(tiny_batch())
    spans.bands = bands()
    with products.products_in(products.FUSED):
        fused = layer(x, spans, turn)
    with products.products_in(products.BFLOAT16):
        assert torch.equal(fused, layer(x, spans, turn))


def bands() -> Bands:
    return bands_of(np.asarray(LENGTHS), torch.device("cpu"))


def test_a_compiler_that_fails_is_named_once(
    forgetful: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = forgetful / "broken"
    broken.write_text("#!/bin/sh\n[ $1 = --version ] && exit 0\necho 'no such flag' >&2\nexit 1\n", encoding="utf-8")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(broken))
    with caplog.at_level(logging.WARNING):
        assert library("softmax", width=32) is None and library("softmax", width=32) is None
    assert [record.getMessage() for record in caplog.records] == [
        "The kernels in C++ could not be compiled, torch's do their work: no such flag\n"
    ]
    assert not list((forgetful / "kernels").iterdir())  # nothing half done is left


@compiled
@pytest.mark.usefixtures("hasty")
def test_a_library_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSTELLATION_KERNELS", str(tmp_path))
    first = native._built("softmax", {"width": 32})
    made = first.stat().st_mtime_ns
    assert native._built("softmax", {"width": 32}) == first and first.stat().st_mtime_ns == made
    assert {path.name for path in tmp_path.iterdir()} == {first.name}
    assert native._built("softmax", {"width": 64}) != first


@compiled
@pytest.mark.usefixtures("hasty")
def test_a_library_cut_short_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSTELLATION_KERNELS", str(tmp_path))
    path = native._built("softmax", {"width": 32})
    size = path.stat().st_size
    path.write_bytes(b"")
    assert native._loaded("softmax", {"width": 32}).softmax_total
    assert path.stat().st_size == size


@compiled
@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("name", [".", "with spaces, 'quotes' and %41", "-o"])
def test_a_folder_may_be_relative_and_have_any_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONSTELLATION_KERNELS", name)
    assert native._loaded("softmax", {"width": 32}).softmax_total
    assert len(list((tmp_path / name).glob("softmax-*.so"))) == 1


def test_without_a_place_for_them_torch_does_the_work(
    forgetful: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (forgetful / "file").write_text("no folder", encoding="utf-8")
    compiler = forgetful / "compiler"
    compiler.write_text("#!/bin/sh\nexit 0\n", encoding="utf-8")
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("CONSTELLATION_KERNELS", str(forgetful / "file" / "kernels"))
    assert library("softmax", width=32) is None
    monkeypatch.delenv("CONSTELLATION_KERNELS")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(native.Path, "home", homeless)
    assert library("softmax", width=64) is None
    assert all("(CONSTELLATION_KERNELS may name another folder)" in line for line in caplog.messages)
    assert len(caplog.messages) == 2


@pytest.mark.parametrize(("script", "said"), [("printf '\\377' >&2\nexit 1", "\ufffd"), ("exec sleep 9", "timed out")])
def test_a_compiler_that_hangs_or_speaks_in_odd_bytes_is_named(
    script: str, said: str, forgetful: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    odd = forgetful / "odd"
    odd.write_text(f"#!/bin/sh\n[ $1 = --version ] && exit 0\n{script}\n", encoding="utf-8")
    odd.chmod(odd.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(odd))
    monkeypatch.setattr(native, "TIME_LIMIT_SECONDS", 0.5)
    assert library("softmax", width=32) is None
    assert len(caplog.messages) == 1 and said in caplog.messages[0]


def test_fused_products_that_this_machine_cannot_make_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    options = replace(OPTIONS, accelerator="cpu")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(native, "is_possible", lambda: True)
    assert [precision.warned(name, options) for name in ("fused", "bfloat16")] == ["fused", "bfloat16"]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(native, "starter", lambda: 1)
    assert precision.warned("fused", options) == "fused" and not caplog.messages
    monkeypatch.setattr(native, "starter", lambda: 0)
    assert precision.warned("fused", options) == "fused" and "upon OpenMP" in caplog.messages[0]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(native, "is_possible", lambda: False)
    assert precision.warned("fused", options) == "fused" and "AVX512-BF16" in caplog.messages[1]


def test_tiles_of_amx_are_not_known_to_be_slower(forgetful: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_compiler", lambda: "c++")
    assert is_possible() and native.is_known_to_pay()
    monkeypatch.setattr(native, "_processor_flags", lambda: frozenset(native.NEEDED_FLAGS | {"amx_bf16"}))
    assert is_possible() and not native.is_known_to_pay()
    is_possible.cache_clear()
    monkeypatch.setattr(native, "_processor_flags", lambda: frozenset({"avx2"}))
    assert not is_possible() and not native.is_known_to_pay()
