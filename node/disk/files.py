"""Primitive operations on a storage location: all that the disk protocols are written over.

Paths are absolute and lie in a configured storage location. An operation fails with
FileNotFoundError, FileExistsError or NotADirectoryError only where it says so, and with
StorageFailed for every other error. A file once opened is reached through its handle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, ParamSpec, Protocol, TypeVar

from vmreplica.ports.replica_store import Space

P = ParamSpec("P")
T = TypeVar("T")

Buffer = bytes | bytearray | memoryview


class Piece(NamedTuple):
    """Bytes that belong at an offset of a file."""

    offset: int
    data: Buffer


class CloneRange(NamedTuple):
    """``length`` bytes of a file at ``source`` that belong at ``target`` of another.

    All three are multiples of 64 KiB.
    """

    source: int
    target: int
    length: int


class OpenFile(Protocol):
    """One open file. Reading and writing name their offset; nothing is kept in between."""

    async def pwrite(self, pieces: Sequence[Piece]) -> None:
        """Write all pieces, in their order; what lies between them stays as it is (a hole)."""
        ...

    async def pread(self, length: int, offset: int) -> bytes:
        """Up to ``length`` bytes; fewer at the end of the file only."""
        ...

    async def clone(self, source: OpenFile, ranges: Sequence[CloneRange]) -> bool:
        """Share ``source``'s blocks; what is cloned is durable after ``fdatasync``, as writes are.

        False: the file system refuses to; some ranges may have been cloned nevertheless.
        """
        ...

    async def length(self) -> int:
        """Bytes in the file."""
        ...

    async def truncate(self, length: int) -> None:
        """Set the length; what is added is a hole."""
        ...

    async def fdatasync(self) -> None:
        """Make data and length durable. Never repeated after an error."""
        ...

    async def try_lock(self, offset: int, length: int) -> bool:
        """Take an exclusive byte-range lock that belongs to this open file; False: held."""
        ...

    async def close(self) -> None:
        """Give the handle back. Idempotent."""
        ...


class Files(Protocol):
    """What a host can do with the files of its storage locations."""

    async def make_directory(self, path: str) -> bool:
        """Make a directory (0700). False: it was there."""
        ...

    async def list_directory(self, path: str) -> list[str]:
        """Names in a directory, in no order. Shows one's own creations and all before.

        :raises FileNotFoundError, NotADirectoryError:
        """
        ...

    async def sync_directory(self, path: str) -> None:
        """Make a directory's entries durable."""
        ...

    async def create(self, path: str) -> OpenFile:
        """A new empty file (0600), open for reading and writing. An existing one is an error."""
        ...

    async def open(self, path: str, *, write: bool = False) -> OpenFile:
        """An existing file. :raises FileNotFoundError:"""
        ...

    async def read(self, path: str) -> bytes:
        """A whole small file. :raises FileNotFoundError:"""
        ...

    async def write_new(self, path: str, data: bytes) -> None:
        """Create, write and fsync a file. The name itself is durable after sync_directory."""
        ...

    async def link(self, source: str, target: str) -> None:
        """link(2). :raises FileExistsError: also when the first request was ours and repeated."""
        ...

    async def link_count(self, path: str) -> int:
        """How many names the file has."""
        ...

    async def rename(self, source: str, target: str) -> None:
        """rename(2); only ever to a fresh name."""
        ...

    async def unlink(self, path: str) -> bool:
        """Remove a name. False: it was gone."""
        ...

    async def remove_directory(self, path: str) -> bool:
        """Remove an empty directory. False: it was gone, or something is in it."""
        ...

    async def set_read_only(self, path: str) -> None:
        """Mode 0444: nobody is meant to write it again."""
        ...

    async def space(self, path: str) -> Space:
        """Room on the file system."""
        ...

    async def can_clone(self, path: str) -> bool:
        """Whether files in this storage location can share blocks: tried, once a location."""
        ...

    async def offload(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run computing that would hold up the event loop (in a thread, where there are any)."""
        ...
