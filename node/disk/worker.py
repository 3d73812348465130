"""The store worker: ``python -m node.disk.worker LOCATION…``, one line of JSON in, one out.

It does the long writing to storage (merges), so that the guard can kill it at the node's deadline
without killing the node. It dies with its parent, and ends when its input does.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from typing import BinaryIO

from node.disk.layer_reader import LayerDamaged
from node.disk.merge import merge_layers
from node.disk.merge_message import parse_request, render_done, render_failed
from node.disk.os_files import OsFiles
from node.disk.overlay_rows import BoundaryMissing
from vmreplica.core.problems import Problem
from vmreplica.ports.replica_store import StorageFailed

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """SIGKILL for this process when its parent thread ends; at once if it already has."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:
        os._exit(1)


async def serve(files: OsFiles, requests: BinaryIO, answers: BinaryIO) -> None:
    """Carry out one request after the other until there are no more."""
    # Blocking reads: there is nothing else to do in this process.
    while line := requests.readline():
        number, request = parse_request(line)
        try:
            answer = render_done(number, await merge_layers(files, request))
        except (StorageFailed, BoundaryMissing, Problem) as failure:
            no_space = isinstance(failure, StorageFailed) and failure.no_space
            kind = "damaged" if isinstance(failure, LayerDamaged) else "failed"
            answer = render_failed(number, kind, str(failure), no_space=no_space)
        answers.write(answer)
        answers.flush()


def main(arguments: Sequence[str]) -> None:
    """``PARENT_PID LOCATION…``"""
    die_with_parent(int(arguments[0]))
    # A terminal's Ctrl-C is for the parent, which ends this process in its own order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    files = OsFiles(arguments[1:], inline=True)
    asyncio.run(serve(files, sys.stdin.buffer, sys.stdout.buffer))


if __name__ == "__main__":
    main(sys.argv[1:])
