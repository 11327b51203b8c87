"""Memory of this process."""

import sys

import numpy as np
import pytest

from constellation.memory import available_memory_gib, give_back_memory, peak_memory_gib, resident_memory_gib


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
