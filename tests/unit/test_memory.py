"""Memory of this process."""

import subprocess
import sys

import numpy as np
import pytest

from constellation import memory
from constellation.memory import (
    FreedMemory,
    available_memory_gib,
    give_back_memory,
    peak_memory_gib,
    resident_memory_gib,
)


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc is told")
def test_freed_memory_goes_back_to_the_system():
    # Pieces too small to be mapped one by one, every other one freed, then all: the heap stays grown until told.
    pieces = [np.ones(8192) for _ in range(8000)]
    grown = resident_memory_gib()
    del pieces[::2]
    pieces.clear()
    give_back_memory()
    assert resident_memory_gib() < grown - 0.3
    assert peak_memory_gib() >= grown - 0.05
    assert available_memory_gib() > 0


def test_memory_is_given_back_once_it_has_grown_beyond_what_is_needed(monkeypatch):
    resident, given = [1.0], []
    monkeypatch.setattr(memory, "resident_memory_gib", lambda: resident[0])
    monkeypatch.setattr(memory, "give_back_memory", lambda: given.append(resident[0]))
    freed = FreedMemory()
    for step in range(FreedMemory.SETTLING_STEPS):
        resident[0] = 1.0 if step < FreedMemory.FIRST_STEPS else 1.3  # what comes later was not needed at first
        assert not freed.after_step()
    resident[0] = 1.24  # not beyond 1.15 x 1 + 0.1
    assert not freed.after_step()
    resident[0] = 1.26
    assert freed.after_step()
    assert given == [1.26]
    # It settles anew, so that a larger step is not answered with giving back after every step.
    assert not any(freed.after_step() for _ in range(5 * FreedMemory.SETTLING_STEPS))


def test_what_was_expected_is_not_given_back(monkeypatch):
    resident, given = [1.0], []
    monkeypatch.setattr(memory, "resident_memory_gib", lambda: resident[0])
    monkeypatch.setattr(memory, "give_back_memory", lambda: given.append(resident[0]))
    freed = FreedMemory(expected_gib=2.0)
    assert not any(freed.after_step() for _ in range(20))
    resident[0] = 2.39  # not beyond 1.15 x 2 + 0.1
    assert not freed.after_step()
    resident[0] = 2.41
    assert freed.after_step() and given == [2.41]


@pytest.mark.skipif(sys.platform != "linux", reason="page faults are counted on Linux, where glibc's allocator is")
def test_large_blocks_are_kept_until_they_are_given_back() -> None:
    code = (
        "import resource, torch\n"
        "from constellation.memory import keep_freed_memory\n"
        "keep_freed_memory()\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(20): torch.empty(2**22).fill_(1.0)\n"  # 16 MiB each
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "faults(); print(faults())\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert int(said.stdout) < 4096, said.stderr  # one of the twenty would take as many
