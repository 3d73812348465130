"""Proves between two nodes that a storage location offers what the manifest log stands on.

Atomic link(2), fsync of directories, listings that show one's own creation and all before it,
byte-range locks between nodes, synced data that the other node reads. One node prepares, its peer
probes, the first finishes; each step says what it found. That a server keeps synced data through
its own power cut cannot be tested from here.
"""

from __future__ import annotations

from dataclasses import dataclass

from node.disk.files import Files, OpenFile, Piece
from node.disk.names import plain
from vmreplica.core.cycle import digest
from vmreplica.ports.randomness import Randomness
from vmreplica.ports.replica_store import StorageFailed

_PREFIX = ".vmreplica-check"
_PROBE_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Finding:
    """One property of the storage: whether it holds, and what was seen."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True, slots=True)
class ProbeTicket:
    """What the peer needs: the probe directory's tag, and the digest of what lies in it."""

    tag: str
    probe_digest: bytes


class StoreCheck:
    """One check of one storage location, on the node that runs it or on its peer.

    The preparing node keeps a lock between ``prepare`` and ``finish``; always call ``finish``.
    """

    def __init__(self, files: Files, location: str, randomness: Randomness) -> None:
        self._files = files
        self._location = location.rstrip("/")
        self._randomness = randomness
        self._lock: OpenFile | None = None

    async def prepare(self) -> tuple[ProbeTicket, tuple[Finding, ...]]:
        """First step: what can be tested alone, and the probe directory for the peer.

        :raises StorageFailed: the location cannot be written at all.
        """
        data = self._randomness.token(_PROBE_BYTES)
        ticket = ProbeTicket(self._randomness.token(8).hex(), digest(data))
        directory = self._directory(ticket)
        await self._files.make_directory(directory)
        await self._files.sync_directory(self._location)
        await self._files.write_new(f"{directory}/probe", data)
        self._lock = await self._files.create(f"{directory}/lock")
        await self._lock.pwrite([Piece(0, b"\0\0")])
        await self._lock.fdatasync()
        locked = await self._lock.try_lock(0, 1)
        findings = [
            Finding("lock", locked, "a byte-range lock was " + ("given" if locked else "refused")),
            await self._link_finding(directory, "first", "one"),
            await self._listing_finding(directory, {"probe", "lock", "first", "one"}),
        ]
        await self._files.sync_directory(directory)
        return ticket, tuple(findings)

    async def probe(self, ticket: ProbeTicket) -> tuple[Finding, ...]:
        """The peer's step."""
        directory = self._directory(ticket)
        return (
            await self._listing_finding(directory, {"probe", "lock", "first", "one"}),
            await self._content_finding(f"{directory}/probe", ticket.probe_digest),
            await self._foreign_lock_finding(f"{directory}/lock"),
            await self._taken_finding(directory, "second", "one"),
            await self._link_finding(directory, "third", "two"),
        )

    async def finish(self, ticket: ProbeTicket, *, probed: bool = True) -> tuple[Finding, ...]:
        """Last step: what the peer made is seen here; then everything is removed.

        :param probed: false when the peer could not be asked; nothing of it is expected then.
        """
        directory = self._directory(ticket)
        findings: list[Finding] = []
        if probed:
            findings.append(await self._listing_finding(directory, {"second", "third", "two"}))
            findings.append(await self._taken_finding(directory, "fourth", "two"))
        if self._lock is not None:
            await self._lock.close()
            self._lock = None
        for name in await self._files.list_directory(directory):
            await self._files.unlink(f"{directory}/{name}")
        await self._files.remove_directory(directory)
        await self._files.sync_directory(self._location)
        return tuple(findings)

    def _directory(self, ticket: ProbeTicket) -> str:
        return f"{self._location}/{_PREFIX}.{plain('tag', ticket.tag)}"

    async def _link_finding(self, directory: str, draft: str, name: str) -> Finding:
        """A link is made once, is refused the second time, and is counted."""
        source, target = f"{directory}/{draft}", f"{directory}/{name}"
        try:
            await self._files.write_new(source, draft.encode())
            await self._files.link(source, target)
            await self._files.sync_directory(directory)
        except (StorageFailed, FileExistsError) as error:
            return Finding("link", False, f"a fresh name could not be linked: {error}")
        try:
            await self._files.link(source, target)
        except FileExistsError:
            count = await self._files.link_count(source)
            return Finding("link", count == 2, f"linked once, refused twice, {count} names")
        except StorageFailed as error:
            return Finding("link", False, f"a second link failed oddly: {error}")
        return Finding("link", False, "a name was linked twice")

    async def _taken_finding(self, directory: str, draft: str, name: str) -> Finding:
        """A name that the other node has linked is refused here."""
        source = f"{directory}/{draft}"
        try:
            await self._files.write_new(source, draft.encode())
            await self._files.link(source, f"{directory}/{name}")
        except FileExistsError:
            alone = await self._files.link_count(source) == 1
            return Finding("link between nodes", alone, "a name taken by the other was refused")
        except StorageFailed as error:
            return Finding("link between nodes", False, f"failed: {error}")
        return Finding("link between nodes", False, "a name taken by the other could be linked")

    async def _listing_finding(self, directory: str, wanted: set[str]) -> Finding:
        try:
            missing = wanted - set(await self._files.list_directory(directory))
        except (FileNotFoundError, NotADirectoryError, StorageFailed) as error:
            return Finding("listing", False, f"the probe directory is not to be seen: {error}")
        if missing:
            return Finding("listing", False, f"not shown: {', '.join(sorted(missing))}")
        return Finding("listing", True, "shows all that was made before")

    async def _content_finding(self, path: str, wanted: bytes) -> Finding:
        try:
            same = digest(await self._files.read(path)) == wanted
        except (FileNotFoundError, StorageFailed) as error:
            return Finding("synced data", False, f"not readable by the other node: {error}")
        return Finding("synced data", same, "read back by the other node" if same else "differ")

    async def _foreign_lock_finding(self, path: str) -> Finding:
        try:
            file = await self._files.open(path, write=True)
        except (FileNotFoundError, StorageFailed) as error:
            return Finding("lock between nodes", False, f"failed: {error}")
        try:
            held = not await file.try_lock(0, 1)
            free = await file.try_lock(1, 1)
        except StorageFailed as error:
            return Finding("lock between nodes", False, f"failed: {error}")
        finally:
            await file.close()
        if not held:
            return Finding("lock between nodes", False, "a byte locked by the other was given")
        return Finding("lock between nodes", free, "held byte refused, free byte given")
