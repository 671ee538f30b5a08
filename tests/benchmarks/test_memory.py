"""Memory that training frees stays with the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks.machine.memory import keep_freed_memory

SCRIPT = """
import ctypes, resource, sys
from benchmarks.machine.memory import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory()

c = ctypes.CDLL(None)
c.malloc.restype = ctypes.c_void_p
c.free.argtypes = [ctypes.c_void_p]
size = 24 << 20

def step():
    blocks = [c.malloc(size) for _ in range(4)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    for block in blocks:
        c.free(block)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(3):
    step()
before = faults()
for _ in range(5):
    step()
print(faults() - before)
"""


def faults(kind: str) -> int:
    """Return the page faults of five steps in a process of its own."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, kind], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not keep_freed_memory(), reason="the C library is not glibc")
def test_steps_take_no_new_pages_from_the_system() -> None:
    as_usual, kept = faults("as usual"), faults("kept")
    assert as_usual > 50_000  # 96 MiB in pages of 4 KiB, five times: what the setting is for
    assert kept < as_usual / 100


def test_a_library_without_the_setting_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert keep_freed_memory.__wrapped__() is False
