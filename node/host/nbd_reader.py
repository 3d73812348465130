"""Reads one disk of a pull backup over NBD: which clusters changed, and their bytes.

Everything here blocks and belongs into a thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from node.host.nbd_module import load_nbd
from vmreplica.core.cycle import CLUSTER_BYTES
from vmreplica.core.extents import ClusterRun, Extent, cluster_runs
from vmreplica.core.frame_plan import FrameSpec
from vmreplica.ports.change_source import SourceFailed

READ_BYTES = 256 << 10
ASK_BYTES = 0xFFFF_0000
"""Most bytes one block status request may ask about: below 4 GiB, a multiple of 64 KiB."""
WORTH_ASKING = 16
"""Dirty runs shorter than this many clusters are read without asking whether they are zeros."""
_ZERO_FLAG = 2
_DIRTY_FLAG = 1
_ALLOCATION = "base:allocation"


class NbdExport:
    """One export of a pull backup.

    :param bitmap: name of the exported dirty bitmap; "" = all of the disk counts.
    :param full: nothing sent before: zeros need not be told.
    """

    def __init__(self, socket_path: str, name: str, size_bytes: int, *, bitmap: str) -> None:
        self._socket_path = socket_path
        self._name = name
        self._bitmap = bitmap
        self.size_bytes = size_bytes
        self._reader: Any = None

    def runs(self, *, keep_zeros: bool) -> tuple[ClusterRun, ...]:
        """The clusters that count, as runs of data and of zeros. :raises SourceFailed:"""
        try:
            reader = self._connect(_ALLOCATION)
            self._reader = reader
            if not self._bitmap:
                extents = self._allocation(reader, 0, self.size_bytes)
                return cluster_runs(extents, self.size_bytes, keep_zeros=keep_zeros)
            return self._dirty_runs(reader)
        except load_nbd().Error as error:
            raise SourceFailed(f"export {self._name}: {error}") from error

    def start_read(self, spec: FrameSpec, into: memoryview, done: Callable[[str], None]) -> int:
        """Begin reading the data clusters of ``spec`` into ``into``, one behind the other.

        :param done: called in ``poll`` for each request with "" or what went wrong.
        :returns: how many requests were begun.
        """
        at = 0
        begun = 0
        for run in spec.runs:
            if run.zero:
                continue
            start = run.first * CLUSTER_BYTES
            end = min(run.end * CLUSTER_BYTES, self.size_bytes)
            while start < end:
                size = min(READ_BYTES, end - start)
                self._pread(into[at + start - run.first * CLUSTER_BYTES :][:size], start, done)
                start += size
                begun += 1
            at += run.count * CLUSTER_BYTES
        return begun

    def poll(self, timeout_ms: int) -> None:
        """Let requests progress. :raises SourceFailed: the server is gone."""
        try:
            self._reader.poll(timeout_ms)
        except load_nbd().Error as error:
            raise SourceFailed(f"export {self._name}: {error}") from error

    def close(self) -> None:
        """Disconnect. Idempotent; a server that is gone is no error."""
        reader, self._reader = self._reader, None
        if reader is not None:
            try:
                reader.shutdown()
            except load_nbd().Error:
                return

    def _pread(self, into: memoryview, offset: int, done: Callable[[str], None]) -> None:
        def completed(error: Any) -> int:
            code = error if isinstance(error, int) else error.value
            done("" if code == 0 else f"read at {offset} failed with error {code}")
            return 1

        try:
            self._reader.aio_pread(into, offset, completion=completed)
        except load_nbd().Error as error:
            raise SourceFailed(f"export {self._name}: {error}") from error

    def _connect(self, context: str) -> Any:
        handle = load_nbd().NBD()
        handle.add_meta_context(context)
        handle.set_export_name(self._name)
        handle.connect_unix(self._socket_path)
        if not handle.can_meta_context(context):
            raise SourceFailed(f"export {self._name} does not offer {context}")
        size = handle.get_size()
        if size != self.size_bytes:
            raise SourceFailed(f"export {self._name} has {size} bytes, not {self.size_bytes}")
        return handle

    def _dirty_runs(self, reader: Any) -> tuple[ClusterRun, ...]:
        # On a connection of its own: asked together, allocation would be computed for the whole
        # disk, which takes minutes on large ones.
        context = f"qemu:dirty-bitmap:{self._bitmap}"
        asker = self._connect(context)
        try:
            marks = self._status(asker, context, 0, self.size_bytes)
        finally:
            asker.shutdown()
        dirty = [Extent(o, n) for o, n, flags in marks if flags & _DIRTY_FLAG]
        extents: list[Extent] = []
        for run in cluster_runs(dirty, self.size_bytes, keep_zeros=False):
            start = run.first * CLUSTER_BYTES
            length = min(run.end * CLUSTER_BYTES, self.size_bytes) - start
            if run.count < WORTH_ASKING:
                extents.append(Extent(start, length))
            else:
                extents.extend(self._allocation(reader, start, length))
        return cluster_runs(extents, self.size_bytes, keep_zeros=True)

    def _allocation(self, reader: Any, offset: int, length: int) -> list[Extent]:
        return [
            Extent(start, size, zero=bool(flags & _ZERO_FLAG))
            for start, size, flags in self._status(reader, _ALLOCATION, offset, length)
        ]

    def _status(
        self, handle: Any, context: str, offset: int, length: int
    ) -> list[tuple[int, int, int]]:
        """Extents of ``context`` that cover the range exactly, (offset, length, flags)."""
        found: list[tuple[int, int, int]] = []
        end = offset + length
        while offset < end:
            entries: list[int] = []

            def collect(name: str, _offset: int, flags: list[int], _error: Any) -> int:
                if name == context:
                    entries.extend(flags)  # noqa: B023 - called before the next round
                return 0

            handle.block_status(min(end - offset, ASK_BYTES), offset, collect)
            if not entries:
                raise SourceFailed(f"export {self._name}: no block status at {offset}")
            for size, flags in zip(entries[::2], entries[1::2], strict=True):
                size = min(size, end - offset)  # noqa: PLW2901 - the last may reach beyond
                if size:
                    found.append((offset, size, flags))
                    offset += size
        return found
