"""What one step of the network frees serves the next one, and goes back to the system when it is told to."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

STEPS = """
import resource, numpy as np
from SAM2AssistLib.engine.heap import give_freed_memory_back, keep_freed_memory
keep_freed_memory()
def pages(action):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    action()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def step():
    tensors = [np.ones(20 << 20, np.uint8) for _ in range(5)]
step()
print(pages(step))
give_freed_memory_back()
print(pages(step))
"""
PAGES_OF_A_STEP = (100 << 20) // os.sysconf("SC_PAGESIZE") if hasattr(os, "sysconf") else 0


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="this is about the heap of glibc"
)
def test_a_step_takes_fresh_pages_only_after_what_the_one_before_has_left_was_given_back():
    environment = {**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0"}  # huge pages would be taken a few at a time
    done = subprocess.run([sys.executable, "-c", STEPS], env=environment, capture_output=True, text=True, check=True)
    kept, given_back = map(int, done.stdout.split())
    assert kept < 0.1 * PAGES_OF_A_STEP
    assert given_back > 0.9 * PAGES_OF_A_STEP
