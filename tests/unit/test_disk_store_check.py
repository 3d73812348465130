"""The storage check passes on a sound storage and finds each way in which one can be unfit."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.disk.files import Files
from node.disk.os_files import OsFiles
from node.disk.store_check import Finding, ProbeTicket, StoreCheck
from vmreplica.core.problems import Problem
from vmreplica.testing.memory_disk import MemoryDisk
from vmreplica.testing.memory_files import MemoryFile, MemoryFiles
from vmreplica.testing.seeded_randomness import SeededRandomness


async def run(a: Files, b: Files, root: str) -> dict[tuple[str, str], Finding]:
    one = StoreCheck(a, root, SeededRandomness("a"))
    two = StoreCheck(b, root, SeededRandomness("b"))
    ticket, prepared = await one.prepare()
    probed = await two.probe(ticket)
    finished = await one.finish(ticket)
    sides = {"prepare": prepared, "probe": probed, "finish": finished}
    return {(side, x.name): x for side, found in sides.items() for x in found}


def bad(found: dict[tuple[str, str], Finding]) -> set[tuple[str, str]]:
    return {key for key, finding in found.items() if not finding.ok}


def hosts() -> tuple[MemoryDisk, MemoryFiles, MemoryFiles]:
    disk = MemoryDisk()
    disk.make_location("/store")
    return disk, MemoryFiles(disk, "a"), MemoryFiles(disk, "b")


async def test_sound_storage_passes_and_is_left_clean(tmp_path: Path) -> None:
    disk, a, b = hosts()
    found = await run(a, b, "/store")
    assert not bad(found) and len(found) >= 9
    assert not disk.directory("/store").entries
    root = str(tmp_path)
    assert not bad(await run(OsFiles([root]), OsFiles([root]), root))
    assert not list(tmp_path.iterdir())


async def test_two_directories_that_are_not_one_storage() -> None:
    _, a, _ = hosts()
    _, b, _ = hosts()
    one = StoreCheck(a, "/store", SeededRandomness("a"))
    ticket, _ = await one.prepare()
    findings = await StoreCheck(b, "/store", SeededRandomness("b")).probe(ticket)
    assert all(not x.ok for x in findings)
    await one.finish(ticket, probed=False)


async def test_locks_that_other_nodes_do_not_see() -> None:
    class Unlocked(MemoryFile):
        async def try_lock(self, offset: int, length: int) -> bool:
            return True

    class OwnLocks(MemoryFiles):
        async def open(self, path: str, *, write: bool = False) -> MemoryFile:
            file = await super().open(path, write=write)
            file.__class__ = Unlocked
            return file

    disk, a, _ = hosts()
    found = await run(a, OwnLocks(disk, "b"), "/store")
    assert bad(found) == {("probe", "lock between nodes")}


async def test_a_link_that_replaces() -> None:
    class Replacing(MemoryFiles):
        async def link(self, source: str, target: str) -> None:
            await self.unlink(target)
            await super().link(source, target)

    disk, a, _ = hosts()
    found = await run(a, Replacing(disk, "b"), "/store")
    assert ("probe", "link between nodes") in bad(found)
    assert ("probe", "link") in bad(found)


async def test_listings_that_lag() -> None:
    disk = MemoryDisk(listing_lag_ms=1e9, pick=lambda count: count - 1)
    disk.make_location("/store")
    found = await run(MemoryFiles(disk, "a"), MemoryFiles(disk, "b"), "/store")
    assert ("probe", "listing") in bad(found)


async def test_data_that_the_other_node_does_not_see() -> None:
    class Unsynced(MemoryFile):
        async def fdatasync(self) -> None:
            return

    class Lying(MemoryFiles):
        async def create(self, path: str) -> MemoryFile:
            file = await super().create(path)
            file.__class__ = Unsynced
            return file

    disk, _, b = hosts()
    found = await run(Lying(disk, "a"), b, "/store")
    assert ("probe", "synced data") in bad(found)


async def test_a_foreign_tag_leads_nowhere() -> None:
    _, a, _ = hosts()
    check = StoreCheck(a, "/store", SeededRandomness("a"))
    with pytest.raises(Problem):
        await check.probe(ProbeTicket("../x", bytes(16)))
