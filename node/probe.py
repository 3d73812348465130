"""The probe: writes and fsyncs one small file in each storage location every 2 s.

A process of its own, child of the guard: a storage that hangs holds only the probe's thread.
``python -m node.probe PAGE_FD NODE LOCATION…``
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from node.guard_page import GuardPage, boottime_ms

EVERY_S = 2.0


def probe_once(location: str, node: str) -> None:
    """Write the present time durably. :raises OSError:"""
    path = Path(location) / f".vmreplica-probe.{node}"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.pwrite(descriptor, f"{boottime_ms():020d}\n".encode(), 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _watch(page: GuardPage, place: int, location: str, node: str, stop: threading.Event) -> None:
    while not stop.wait(EVERY_S):
        try:
            probe_once(location, node)
        except OSError:
            # Its age grows, and that is the message.
            continue
        page.set_answered_ms(place, boottime_ms())


def main(arguments: list[str]) -> int:
    """Runs until the guard dies."""
    page, node = GuardPage(int(arguments[0])), arguments[1]
    stop = threading.Event()
    for place, location in enumerate(arguments[2:]):
        watch = threading.Thread(
            target=_watch, args=(page, place, location, node, stop), daemon=True
        )
        watch.start()
    parent = os.getppid()
    while os.getppid() == parent:
        stop.wait(1.0)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
