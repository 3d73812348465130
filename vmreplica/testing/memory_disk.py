"""A modelled shared disk: what a server keeps, what its power cut leaves, who sees what when.

Data go through three stages: dirty (only the writing host sees them, and loses them when it
crashes), written (all hosts see them), durable (they survive a power cut of the storage). Names
are seen at once by all, but for delayed listings, and survive a power cut after the directory has
been synced. Content is sparse: blocks of zeros take no room.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

BLOCK_BYTES = 4_096
_ZERO_BLOCK = bytes(BLOCK_BYTES)


class SparseBytes:
    """A file's content; copying it is cheap, blocks are never changed in place."""

    def __init__(self) -> None:
        self.length = 0
        self._blocks: dict[int, bytes] = {}

    def copy(self) -> SparseBytes:
        """An independent copy."""
        twin = SparseBytes()
        twin.length = self.length
        twin._blocks = dict(self._blocks)
        return twin

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Overwrite, growing as needed."""
        data = memoryview(data)
        position = 0
        while position < len(data):
            number, start = divmod(offset + position, BLOCK_BYTES)
            part = data[position : position + BLOCK_BYTES - start]
            if len(part) == BLOCK_BYTES:
                block = bytes(part)
            else:
                old = self._blocks.get(number, _ZERO_BLOCK)
                block = old[:start] + bytes(part) + old[start + len(part) :]
            if block == _ZERO_BLOCK:
                self._blocks.pop(number, None)
            else:
                self._blocks[number] = block
            position += len(part)
        self.length = max(self.length, offset + len(data))

    def read(self, length: int, offset: int) -> bytes:
        """Up to ``length`` bytes."""
        end = min(self.length, offset + length)
        pieces = []
        while offset < end:
            number, start = divmod(offset, BLOCK_BYTES)
            part = self._blocks.get(number, _ZERO_BLOCK)[start : start + end - offset]
            pieces.append(part)
            offset += len(part)
        return b"".join(pieces)

    def truncate(self, length: int) -> None:
        """Cut off or add a hole."""
        if length < self.length:
            number, start = divmod(length, BLOCK_BYTES)
            for block in [x for x in self._blocks if x > number or (x == number and not start)]:
                del self._blocks[block]
            if number in self._blocks:
                self._blocks[number] = self._blocks[number][:start].ljust(BLOCK_BYTES, b"\0")
        self.length = length


@dataclass(slots=True, eq=False)
class Inode:
    """One file."""

    written: SparseBytes = field(default_factory=SparseBytes)
    durable: SparseBytes = field(default_factory=SparseBytes)
    dirty: dict[str, SparseBytes] = field(default_factory=dict)
    links: int = 0
    read_only: bool = False
    locks: list[tuple[object, int, int]] = field(default_factory=list)

    def seen_by(self, host: str) -> SparseBytes:
        """The content as this host reads it."""
        return self.dirty.get(host, self.written)

    def settle(self, host: str, *, durable: bool) -> None:
        """A host's dirty data reach the server, and with ``durable`` its disk."""
        self.written = self.dirty.pop(host, self.written)
        if durable:
            self.durable = self.written.copy()


class Listing(NamedTuple):
    """What a directory held from ``since_ms`` on."""

    version: int
    since_ms: float
    names: tuple[str, ...]


@dataclass(slots=True, eq=False)
class Directory:
    """Entries as all see them, as a power cut would leave them, and as they were."""

    entries: dict[str, Node] = field(default_factory=dict)
    durable: dict[str, Node] = field(default_factory=dict)
    history: list[Listing] = field(default_factory=list)
    own: dict[str, int] = field(default_factory=dict)
    version: int = 0


Node = Inode | Directory

_HISTORY = 64


class MemoryDisk:
    """Storage shared by several hosts. The operations of one host: ``memory_files``.

    :param now_ms: true time, for how long a listing may lag.
    :param listing_lag_ms: a listing may be that old (0: always fresh), except that it shows the
        asking host's own last change of the directory and all before it.
    :param pick: chooses among that many admissible listings, 0 = the newest.
    :param shared_cache: hosts share one page cache, as namespaces of one machine do: nothing is
        lost when one of them dies.
    :param clones: files can share blocks.
    """

    def __init__(
        self,
        *,
        now_ms: Callable[[], float] = lambda: 0.0,
        listing_lag_ms: float = 0.0,
        pick: Callable[[int], int] = lambda _: 0,
        shared_cache: bool = False,
        total_bytes: int = 1 << 50,
        clones: bool = False,
    ) -> None:
        self.root = Directory()
        self.now_ms = now_ms
        self.listing_lag_ms = listing_lag_ms
        self.pick = pick
        self.shared_cache = shared_cache
        self.total_bytes = total_bytes
        self.clones = clones
        self.delayed: list[Callable[[], None]] = []

    # ---- what happens to the machines ----

    def crash(self, host: str) -> None:
        """A host dies: its page cache and its locks are gone."""
        for inode in self._inodes():
            if not self.shared_cache:
                inode.dirty.pop(host, None)
            else:
                inode.settle(host, durable=False)
            inode.locks = [lock for lock in inode.locks if getattr(lock[0], "host", "") != host]

    def power_cut(self) -> None:
        """The storage loses power: what had not been made durable never was."""
        self._restore(self.root)
        for inode in self._inodes():
            inode.dirty.clear()
            inode.locks.clear()
            inode.written = inode.durable.copy()
        for inode in self._inodes():
            inode.links = 0
        self._count_links(self.root)

    def deliver_delayed(self) -> None:
        """Requests that were given up by their hosts reach the server at last."""
        waiting, self.delayed = self.delayed, []
        for request in waiting:
            request()

    # ---- the tree ----

    def walk(self, path: str) -> Node | None:
        """The node at an absolute path."""
        node: Node = self.root
        for part in filter(None, path.split("/")):
            if not isinstance(node, Directory):
                raise NotADirectoryError(path)
            below = node.entries.get(part)
            if below is None:
                return None
            node = below
        return node

    def directory(self, path: str) -> Directory:
        """:raises FileNotFoundError, NotADirectoryError:"""
        node = self.walk(path)
        if node is None:
            raise FileNotFoundError(path)
        if not isinstance(node, Directory):
            raise NotADirectoryError(path)
        return node

    def parent(self, path: str) -> tuple[Directory, str]:
        """The directory that holds the last name of ``path``."""
        above, _, name = path.rpartition("/")
        return self.directory(above), name

    def changed(self, directory: Directory, host: str) -> None:
        """Note a change of entries for later listings."""
        directory.version += 1
        directory.own[host] = directory.version
        names = tuple(sorted(directory.entries))
        directory.history.append(Listing(directory.version, self.now_ms(), names))
        del directory.history[:-_HISTORY]

    def listing(self, directory: Directory, host: str) -> list[str]:
        """Names as this host's cache may show them now."""
        now = self.now_ms()
        seen = directory.own.get(host, 0)
        admissible: list[tuple[str, ...]] = []
        until = now
        for entry in reversed(directory.history):
            if admissible and (until < now - self.listing_lag_ms or entry.version < seen):
                break
            admissible.append(entry.names)
            until = entry.since_ms
        if not admissible:
            return sorted(directory.entries)
        choice = self.pick(len(admissible)) if self.listing_lag_ms and len(admissible) > 1 else 0
        return list(admissible[choice])

    def make_location(self, path: str) -> None:
        """A storage location that has been there for ever, with the directories above it."""
        node = self.root
        for part in filter(None, path.split("/")):
            below = node.entries.setdefault(part, Directory())
            node.durable[part] = below
            assert isinstance(below, Directory)
            node = below

    def _inodes(self) -> list[Inode]:
        found: dict[int, Inode] = {}
        waiting: list[Node] = [self.root]
        while waiting:
            node = waiting.pop()
            if isinstance(node, Inode):
                found[id(node)] = node
            else:
                waiting += node.entries.values()
        return list(found.values())

    def _restore(self, directory: Directory) -> None:
        directory.entries = dict(directory.durable)
        directory.history.clear()
        directory.own.clear()
        for node in directory.entries.values():
            if isinstance(node, Directory):
                self._restore(node)

    def _count_links(self, directory: Directory) -> None:
        for node in directory.entries.values():
            if isinstance(node, Inode):
                node.links += 1
            else:
                self._count_links(node)
