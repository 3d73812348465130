"""The allocator's settings, seen from outside: page faults of buffers that come and go."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import resource, sys
from vmreplica.adapters.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def work():
    for _ in range(50):
        held = [b"x" * (1 << 20) for _ in range(8)]
        del held
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(mode: str) -> int:
    line = [sys.executable, "-c", _PROGRAM, mode]
    return int(subprocess.run(line, capture_output=True, text=True, check=True).stdout)


def test_buffers_are_reused() -> None:
    """8 MiB are taken and freed 50 times: without a fault once they are there."""
    kept, given_back = _faults("keep"), _faults("default")
    assert kept < 2048, "fewer faults than one round has pages"
    assert given_back > 10 * 2048, "else this shows nothing"
