"""One host's operations on a modelled disk: the storage primitives, with every fault they have.

Each primitive operation is one step: it is written to the journal, passes the ``gate`` (where a
test may hold, order, fail or kill it), then happens at once.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ParamSpec, TypeVar

from vmreplica.ports.replica_store import Space, StorageFailed
from vmreplica.testing.memory_disk import Directory, Inode, MemoryDisk, SparseBytes

_CLONE_UNIT_BYTES = 64 << 10

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Step:
    """One primitive operation of one host; ``number`` counts this host's steps from 1."""

    host: str
    number: int
    operation: str
    path: str


class HostKilled(BaseException):
    """The host died at this step. Not an Exception: no handler of the code under test stops it."""


class LinkFault(StrEnum):
    """What may happen to a link request on its way."""

    TWICE = "twice"
    """It is repeated by the network; the second answer, EEXIST, is the one that arrives."""
    LOST_ANSWER = "lost-answer"
    """It happens, but the caller gets an I/O error."""
    DELAYED = "delayed"
    """The caller gets an I/O error; it happens when ``deliver_delayed`` is called."""


@dataclass(slots=True)
class Faults:
    """Faults to come, for one host.

    ``fail_at``: step number → errno. ``kill_at``: step number at which the host dies, before the
    step happens. ``links``: what happens to the next link requests (None: nothing).
    """

    fail_at: dict[int, int] = field(default_factory=dict)
    kill_at: int = 0
    links: list[LinkFault | None] = field(default_factory=list)


async def _no_gate(_: Step) -> None:
    return


class MemoryFiles:
    """Implements node.disk.files.Files for one host of a MemoryDisk."""

    def __init__(
        self,
        disk: MemoryDisk,
        host: str,
        *,
        gate: Callable[[Step], Awaitable[None]] = _no_gate,
        faults: Faults | None = None,
    ) -> None:
        self.disk = disk
        self.host = host
        self.gate = gate
        self.faults = faults or Faults()
        self.journal: list[Step] = []

    async def step(self, operation: str, path: str) -> None:
        """Every operation begins here."""
        step = Step(self.host, len(self.journal) + 1, operation, path)
        self.journal.append(step)
        await self.gate(step)
        if step.number == self.faults.kill_at:
            raise HostKilled(f"{self.host} died before {operation} {path}")
        code = self.faults.fail_at.get(step.number)
        if code is not None:
            no_space = code in (errno.ENOSPC, errno.EDQUOT)
            raise StorageFailed(f"{path}: {operation} failed: {code}", no_space=no_space)

    async def make_directory(self, path: str) -> bool:
        """mkdir."""
        await self.step("mkdir", path)
        directory, name = self._parent(path)
        there = directory.entries.get(name)
        if there is not None:
            if isinstance(there, Inode):
                raise StorageFailed(f"{path} is no directory")
            return False
        directory.entries[name] = Directory()
        self.disk.changed(directory, self.host)
        return True

    async def list_directory(self, path: str) -> list[str]:
        """A listing, perhaps an old one."""
        await self.step("list", path)
        return self.disk.listing(self.disk.directory(path), self.host)

    async def sync_directory(self, path: str) -> None:
        """Entries become durable."""
        await self.step("fsync-directory", path)
        directory = self._directory(path)
        directory.durable = dict(directory.entries)

    async def create(self, path: str) -> MemoryFile:
        """O_EXCL."""
        await self.step("create", path)
        directory, name = self._parent(path)
        if name in directory.entries:
            raise StorageFailed(f"{path} exists")
        inode = Inode(links=1)
        directory.entries[name] = inode
        self.disk.changed(directory, self.host)
        return MemoryFile(self, inode, path, writable=True)

    async def open(self, path: str, *, write: bool = False) -> MemoryFile:
        """An existing file."""
        await self.step("open", path)
        inode = self._inode(path)
        if write and inode.read_only:
            raise StorageFailed(f"{path} is read-only")
        return MemoryFile(self, inode, path, writable=write)

    async def read(self, path: str) -> bytes:
        """A whole file."""
        await self.step("read", path)
        content = self._inode(path).seen_by(self.host)
        return content.read(content.length, 0)

    async def write_new(self, path: str, data: bytes) -> None:
        """Three steps, as the system calls are."""
        file = await self.create(path)
        await file.pwrite([(0, data)])
        await file.fdatasync()

    async def link(self, source: str, target: str) -> None:
        """link(2), with the faults of a network file system."""
        await self.step("link", target)
        inode = self._inode(source, StorageFailed)
        fault = self.faults.links.pop(0) if self.faults.links else None
        if fault is LinkFault.DELAYED:
            self.disk.delayed.append(lambda: self._late_link(inode, target))
            raise StorageFailed(f"{target}: link: no answer")
        self._link(inode, target)
        if fault is LinkFault.TWICE:
            raise FileExistsError(target)
        if fault is LinkFault.LOST_ANSWER:
            raise StorageFailed(f"{target}: link: no answer")

    def _link(self, inode: Inode, target: str) -> None:
        directory, name = self._parent(target)
        if name in directory.entries:
            raise FileExistsError(target)
        directory.entries[name] = inode
        inode.links += 1
        self.disk.changed(directory, self.host)

    def _late_link(self, inode: Inode, target: str) -> None:
        try:
            self._link(inode, target)
        except (FileExistsError, StorageFailed):
            return

    async def link_count(self, path: str) -> int:
        """st_nlink."""
        await self.step("stat", path)
        return self._inode(path, StorageFailed).links

    async def rename(self, source: str, target: str) -> None:
        """rename(2): it would replace, as the real one does."""
        await self.step("rename", target)
        inode = self._inode(source, StorageFailed)
        from_directory, old = self._parent(source)
        to_directory, new = self._parent(target)
        replaced = to_directory.entries.get(new)
        if isinstance(replaced, Inode):
            replaced.links -= 1
        del from_directory.entries[old]
        to_directory.entries[new] = inode
        self.disk.changed(from_directory, self.host)
        self.disk.changed(to_directory, self.host)

    async def unlink(self, path: str) -> bool:
        """Remove a name."""
        await self.step("unlink", path)
        try:
            directory, name = self.disk.parent(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        inode = directory.entries.get(name)
        if inode is None:
            return False
        if not isinstance(inode, Inode):
            raise StorageFailed(f"{path} is a directory")
        del directory.entries[name]
        inode.links -= 1
        self.disk.changed(directory, self.host)
        return True

    async def remove_directory(self, path: str) -> bool:
        """rmdir."""
        await self.step("rmdir", path)
        try:
            directory, name = self.disk.parent(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        there = directory.entries.get(name)
        if not isinstance(there, Directory) or there.entries:
            return False
        del directory.entries[name]
        self.disk.changed(directory, self.host)
        return True

    async def set_read_only(self, path: str) -> None:
        """0444."""
        await self.step("chmod", path)
        self._inode(path, StorageFailed).read_only = True

    async def space(self, path: str) -> Space:
        """The disk's nominal size; nothing is counted."""
        await self.step("statvfs", path)
        return Space(self.disk.total_bytes, self.disk.total_bytes // 2)

    async def can_clone(self, path: str) -> bool:
        """As the disk was made."""
        del path
        return self.disk.clones

    async def offload(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """At once: simulations have no threads."""
        return work(*args, **kwargs)

    def _directory(self, path: str) -> Directory:
        try:
            return self.disk.directory(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise StorageFailed(f"{path} is missing") from error

    def _parent(self, path: str) -> tuple[Directory, str]:
        above, _, name = path.rpartition("/")
        return self._directory(above), name

    def _inode(self, path: str, missing: type[Exception] = FileNotFoundError) -> Inode:
        try:
            node = self.disk.walk(path)
        except NotADirectoryError as error:
            raise StorageFailed(f"{path}: not a directory on the way") from error
        if node is None:
            raise missing(path)
        if not isinstance(node, Inode):
            raise StorageFailed(f"{path} is a directory")
        return node


class MemoryFile:
    """Implements node.disk.files.OpenFile."""

    def __init__(self, files: MemoryFiles, inode: Inode, path: str, *, writable: bool) -> None:
        self.host = files.host
        self._files = files
        self._inode = inode
        self._path = path
        self._writable = writable

    async def pwrite(self, pieces: Sequence[tuple[int, bytes | bytearray | memoryview]]) -> None:
        """Into this host's page cache."""
        await self._files.step("write", self._path)
        self._check_writable()
        for offset, data in pieces:
            self._dirty_content().write(offset, data)

    async def pread(self, length: int, offset: int) -> bytes:
        """As this host sees it."""
        await self._files.step("read", self._path)
        return self.content().read(length, offset)

    async def clone(self, source: object, ranges: Sequence[tuple[int, int, int]]) -> bool:
        """A copy: it differs from a write only in what a real disk would count."""
        await self._files.step("clone", self._path)
        self._check_writable()
        if not self._files.disk.clones:
            return False
        assert isinstance(source, MemoryFile)
        for start, target, length in ranges:
            data = source.content().read(length, start)
            if any(x % _CLONE_UNIT_BYTES for x in (start, target, length)) or len(data) != length:
                return False
            self._dirty_content().write(target, data)
        return True

    async def length(self) -> int:
        """As this host sees it."""
        await self._files.step("stat", self._path)
        return self._inode.seen_by(self.host).length

    async def truncate(self, length: int) -> None:
        """In this host's page cache."""
        await self._files.step("truncate", self._path)
        self._check_writable()
        self._dirty_content().truncate(length)

    async def fdatasync(self) -> None:
        """All of the host's writes to the file become durable."""
        await self._files.step("fdatasync", self._path)
        self._inode.settle(self.host, durable=True)

    async def try_lock(self, offset: int, length: int) -> bool:
        """Between hosts and between open files."""
        await self._files.step("lock", self._path)
        for holder, start, size in self._inode.locks:
            if holder is not self and start < offset + length and offset < start + size:
                return False
        self._inode.locks.append((self, offset, length))
        return True

    async def close(self) -> None:
        """What was written reaches the server (not its disk): close-to-open."""
        self._inode.settle(self.host, durable=False)
        self._inode.locks = [lock for lock in self._inode.locks if lock[0] is not self]

    def content(self) -> SparseBytes:
        """As this host sees it."""
        return self._inode.seen_by(self.host)

    def _check_writable(self) -> None:
        if not self._writable:
            raise StorageFailed(f"{self._path} was opened for reading")

    def _dirty_content(self) -> SparseBytes:
        inode = self._inode
        if self.host not in inode.dirty:
            inode.dirty[self.host] = inode.written.copy()
        return inode.dirty[self.host]
