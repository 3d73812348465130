"""The store worker as the node's main process sees it: a Merger in a child process."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Sequence
from contextlib import suppress

from node.disk.layer_reader import LayerDamaged
from node.disk.merge import MergeRequest
from node.disk.merge_message import parse_layer, render_request
from vmreplica.core.manifest import Layer
from vmreplica.ports.replica_store import StorageFailed

_log = logging.getLogger(__name__)

_LINE_LIMIT_BYTES = 1 << 20


class StoreWorker:
    """Implements merge.Merger. The child is started at the first merge, and again after it died.

    :param started: called with the child's pid before it may write: the guard must know it.
    :param ended: called with the pid once the child has been reaped.
    """

    def __init__(
        self,
        locations: Sequence[str],
        *,
        started: Callable[[int], None] = lambda _: None,
        ended: Callable[[int], None] = lambda _: None,
        python: str = sys.executable,
    ) -> None:
        self._locations = tuple(locations)
        self._started = started
        self._ended = ended
        self._python = python
        self._process: Process | None = None
        self._turn = asyncio.Lock()
        self._number = 0

    @property
    def pid(self) -> int:
        """The child's pid; 0 = none runs."""
        return self._process.pid if self._process is not None else 0

    async def merge(self, request: MergeRequest) -> Layer:
        """One merge at a time. :raises LayerDamaged, StorageFailed: also when the child died."""
        async with self._turn:
            process = await self._running()
            self._number += 1
            try:
                answer = await self._ask(process, render_request(self._number, request))
            except asyncio.CancelledError:
                # Its answer would be taken for the next request's.
                await self._stop()
                raise
            if not answer:
                await self._stop()
                raise StorageFailed(f"{request.folder}: the store worker died during a merge")
        data = json.loads(answer)
        if "layer" in data:
            return parse_layer(data["layer"])
        if data["kind"] == "damaged":
            raise LayerDamaged(data["message"])
        raise StorageFailed(data["message"], no_space=data["no_space"])

    async def close(self) -> None:
        """End the child."""
        async with self._turn:
            await self._stop()

    async def _running(self) -> Process:
        if self._process is not None and self._process.returncode is None:
            return self._process
        await self._stop()
        command = (self._python, "-m", "node.disk.worker", str(os.getpid()), *self._locations)
        process = await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, limit=_LINE_LIMIT_BYTES
        )
        self._process = process
        self._started(process.pid)
        _log.info("store worker %d started", process.pid)
        return process

    @staticmethod
    async def _ask(process: Process, line: bytes) -> bytes:
        assert process.stdin is not None and process.stdout is not None
        with suppress(ConnectionError):
            process.stdin.write(line)
            await process.stdin.drain()
            return await process.stdout.readline()
        return b""

    async def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        self._ended(process.pid)
