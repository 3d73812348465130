"""Every interleaving of a stale owner, its successor and the storage's oddities.

The manifest log under test is the production one. What must hold after every single step: no
acknowledged commit is lost, replaced or reordered; manifests never change; nothing that the
highest manifest names is missing. Planted variants prove that the check can fail.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from node.disk.manifest_log import ManifestLog
from node.disk.merge import InlineMerger
from node.disk.names import manifest_name, manifest_number
from node.disk.replica_folder import DiskReplicaFolder
from vmreplica.core.cycle import Disk
from vmreplica.core.manifest import Layer, Manifest
from vmreplica.core.manifest_text import manifest_digest, parse_manifest, render_manifest
from vmreplica.ports.replica_store import Deposed, NotOurs, StorageFailed
from vmreplica.testing.interleaver import Actor, Explored, Tape, explore, pause
from vmreplica.testing.memory_disk import Directory, Inode, MemoryDisk
from vmreplica.testing.memory_files import LinkFault, MemoryFiles, Step
from vmreplica.testing.seeded_randomness import SeededRandomness

FOLDER = "/store/r1.inc1"
BASE = Manifest(
    replica_id="r1",
    vm_uuid="u",
    vm_name="vm",
    domain_name="vm",
    trust_group="g",
    primary_access_point="p:1",
    storage_location="/store",
    policy={},
    epoch=1,
    n=1,
    incarnation="i1",
    disks=(Disk("vda", 65_536),),
)


@cache
def _parsed(data: bytes) -> Manifest:
    return parse_manifest(data)


class Observed:
    """Notes every answer a host gets: what its coroutine knows."""

    def __init__(self, files: MemoryFiles, seen: list[Any]) -> None:
        self._files = files
        self._seen = seen

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._files, name)

        async def observed(*args: Any) -> Any:
            try:
                result = await operation(*args)
            except Exception as error:
                self._seen.append((name, args[-1], type(error).__name__))
                raise
            self._seen.append(
                (name, args[-1], tuple(result) if name == "list_directory" else result)
            )
            return result

        return observed


class Owners:
    """The world: one directory, one owner record, owners one after the other.

    ``log`` and ``sweep_first`` plant faults. ``faults``: which link faults the first owner may
    meet, once. ``stale``: listings may be arbitrarily old.
    """

    def __init__(
        self,
        tape: Tape,
        *,
        log: Callable[..., ManifestLog] = ManifestLog,
        sweep: bool = True,
        sweep_first: bool = False,
        faults: tuple[LinkFault, ...] = (),
        stale: bool = False,
        owners: int = 2,
        commits: int = 2,
        kept: int = 64,
    ) -> None:
        self.tape = tape
        self.disk = MemoryDisk(
            listing_lag_ms=1e9 if stale else 0.0, now_ms=lambda: 0.0, pick=tape.choose
        )
        self.disk.make_location(FOLDER)
        for inner in ("layers", "incoming", "runs"):
            self.disk.make_location(f"{FOLDER}/{inner}")
        self.steps = {"list", "link", "rename", "unlink"} | ({"read"} if kept == 1 else set())
        self.log = log
        self.sweep = sweep
        self.sweep_first = sweep_first
        self.faults = faults
        self.commits = commits
        self.kept = kept
        self.record = 1
        self.acknowledged: set[bytes] = set()
        self.history: tuple[bytes, ...] = ()
        self.stale = stale
        self.checked: tuple[tuple[int, int], int] = ((0, 0), 0)
        self.first_seen: dict[str, bytes] = {}
        self.observed: dict[int, list[Any]] = {epoch: [] for epoch in range(1, owners + 1)}
        first = replace(BASE, layers=(self._layer("base", 1),))
        self._put(f"{FOLDER}/{first.layers[0].file}", b"base")
        self._put(f"{FOLDER}/{manifest_name(1)}", render_manifest(first))
        self.start = first

    def _put(self, path: str, data: bytes) -> None:
        directory, name = self.disk.parent(path)
        inode = Inode(links=1)
        inode.written.write(0, data)
        directory.entries[name] = inode
        self.disk.changed(directory, "setup")

    @staticmethod
    def _layer(tag: str, epoch: int) -> Layer:
        name = f"layers/vda.1-1.e{epoch}.{tag.encode().hex():0<16.16}.qcow2"
        return Layer(file=name, target="vda", from_seq=1, to_seq=1, size_bytes=65_536, bytes=4)

    # ---- World ----

    def actors(self) -> dict[str, Actor]:
        return {f"owner{epoch}": self._live(epoch) for epoch in self.observed}

    def events(self) -> dict[str, Callable[[], None]]:
        return {"deliver": self.disk.deliver_delayed} if self.disk.delayed else {}

    def state(self) -> Hashable:
        folder = self.disk.directory(FOLDER)
        return (
            self.record,
            frozenset(self.acknowledged),
            tuple(tuple(seen) for seen in self.observed.values()),
            tuple(sorted(folder.entries)),
            tuple(sorted(self.disk.directory(f"{FOLDER}/layers").entries)),
            tuple(self._listings(folder, f"owner{epoch}") for epoch in self.observed),
            len(self.disk.delayed),
            self.faults,
        )

    def _listings(self, folder: Directory, host: str) -> Hashable:
        """What a host may still be shown."""
        if not self.stale:
            return None
        own = folder.own.get(host, 0)
        return tuple(entry.names for entry in folder.history if entry.version >= own)

    def check(self) -> None:
        folder = self.disk.directory(FOLDER)
        now = (folder.version, self.disk.directory(f"{FOLDER}/layers").version)
        if (now, len(self.acknowledged)) == self.checked:
            return
        self.checked = (now, len(self.acknowledged))
        manifests: dict[int, Manifest] = {}
        for name, node in folder.entries.items():
            if not manifest_number(name):
                continue
            assert isinstance(node, Inode)
            data = node.written.read(node.written.length, 0)
            if self.kept > 1:
                assert self.first_seen.setdefault(name, data) == data, f"{name} was replaced"
            manifests[manifest_number(name)] = _parsed(data)
        highest = manifests[max(manifests)]
        history = highest.recent_cycle_ids
        assert history[: len(self.history)] == self.history, f"{self.history} became {history}"
        self.history = history
        lost = self.acknowledged - set(history)
        assert not lost, f"{lost} was acknowledged and is not in {history}"
        for number, manifest in manifests.items():
            before = manifests.get(number - 1)
            # A pruned number can be linked again by an owner who was away; nobody reads it.
            if before is not None and self.kept > 1:
                assert manifest.previous == manifest_digest(before), "history is not linear"
        for file in highest.named_files():
            assert self.disk.walk(f"{FOLDER}/{file}") is not None, f"{file} is named and gone"

    # ---- an owner ----

    async def _gate(self, step: Step) -> None:
        # The others touch what this host alone knows, or what nobody changes any more.
        own_draft = step.path.endswith(".tmp")
        directory_only = step.operation == "list" and step.path != FOLDER
        if step.operation in self.steps and not own_draft and not directory_only:
            await pause()
        if step.operation == "link" and self.faults and step.host == "owner1":
            choice = self.tape.choose(len(self.faults) + 1)
            if choice:
                self.files.faults.links = [self.faults[choice - 1]]
                self.faults = ()

    async def _live(self, epoch: int) -> None:
        try:
            await self._own(epoch)
        except (Deposed, NotOurs, StorageFailed):
            pass
        finally:
            # What it knew decides nothing any more.
            self.observed[epoch].clear()

    async def _own(self, epoch: int) -> None:
        files = MemoryFiles(self.disk, f"owner{epoch}", gate=self._gate)
        if epoch == 1:
            self.files = files
        seen = self.observed[epoch]
        observed: Any = Observed(files, seen)
        randomness = SeededRandomness(epoch)
        folder = DiskReplicaFolder(
            observed, FOLDER, randomness, InlineMerger(observed), lambda: False
        )
        folder._log = self.log(observed, FOLDER, randomness, kept=self.kept, prune_at_once=1)
        if epoch > 1:
            await pause()
            self.record = epoch

        async def named() -> bool:
            await pause()
            seen.append(("record", self.record))
            return self.record == epoch

        try:
            manifest = await folder.take_over(epoch, f"i{epoch}", named, None)
            for number in range(self.commits if epoch < 3 else 0):
                manifest = await self._commit(folder, files, manifest, number)
        except StorageFailed:
            # The outcome is unknown: forget the state and take over anew.
            manifest = await folder.take_over(epoch, f"i{epoch}", named, None)
            await self._commit(folder, files, manifest, 9)

    async def _commit(
        self, folder: DiskReplicaFolder, files: MemoryFiles, manifest: Manifest, number: int
    ) -> Manifest:
        """One cycle that also merges: its layer takes the place of all before it."""
        layer = self._layer(f"{manifest.epoch}{number}", manifest.epoch)
        self._put(f"{FOLDER}/{layer.file}", b"data")
        cycle = f"{manifest.epoch}.{number}".encode()
        following = replace(
            manifest,
            n=manifest.n + 1,
            layers=(layer,),
            recent_cycle_ids=(*manifest.recent_cycle_ids, cycle),
        )
        if self.sweep_first:
            highest = await folder.read_highest()
            if highest is None or highest.epoch != manifest.epoch:
                raise Deposed("checked")
            await files.unlink(f"{FOLDER}/{manifest.layers[0].file}")
        await folder.commit(following)
        # The deadline check passes here, however late it is: a paused host's clock stood still.
        self.acknowledged.add(cycle)
        if self.sweep:
            await folder.remove_unnamed(following, following.epoch)
        return following


SHORT: dict[str, Any] = {"sweep": False, "commits": 1}
WORLDS: dict[str, dict[str, Any]] = {
    "two owners": {},
    "three owners": {"owners": 3, **SHORT},
    "stale listings": {"stale": True, "sweep": False},
    "link answered twice": {"faults": (LinkFault.TWICE,), **SHORT},
    "answer of a link lost": {"faults": (LinkFault.LOST_ANSWER,), **SHORT},
    "link delayed": {"faults": (LinkFault.DELAYED,), **SHORT},
    "old manifests pruned at once": {"kept": 1, **SHORT},
    "pruned at once, stale listings": {"kept": 1, "stale": True, **SHORT},
}
if os.environ.get("MODEL_CHECK") == "full":
    WORLDS["stale listings, deletes"] = {"stale": True, "commits": 1}
    WORLDS["all link faults, stale listings"] = {
        "faults": tuple(LinkFault),
        "stale": True,
        **SHORT,
    }


def search(name: str, **options: Any) -> Explored:
    found = explore(lambda tape: Owners(tape, **options))
    print(f"{name}: {found.interleavings} interleavings, {found.states} states {found.failure}")
    return found


@pytest.mark.parametrize("name", WORLDS)
def test_no_interleaving_loses_a_commit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Listings that stay stale for ever would make takeovers, and the exploration, endless.
    monkeypatch.setattr("node.disk.manifest_log.TAKEOVER_ATTEMPTS", 3)
    found = search(name, **WORLDS[name])
    assert not found.failure, (found.failure, found.trace)
    assert found.interleavings > 1_000


class CommitsByRename(ManifestLog):
    """Rename puts the draft in place, whoever is there already."""

    async def _link(self, draft: str, number: int) -> bool:
        await self._files.rename(draft, f"{self._folder}/{manifest_name(number)}")
        return True


class ReusesANumber(ManifestLog):
    """Tries the same number again after an unknown outcome, and takes EEXIST for its own."""

    async def _link(self, draft: str, number: int) -> bool:
        target = f"{self._folder}/{manifest_name(number)}"
        try:
            await self._files.link(draft, target)
        except FileExistsError:
            return await self._files.link_count(draft) > 1
        except StorageFailed:
            try:
                await self._files.link(draft, target)
            except FileExistsError:
                return True
        return True


class AdoptsWithoutALink(ManifestLog):
    """A takeover that only reads: the old owner is not deposed by it."""

    async def take_over(
        self,
        epoch: int,
        incarnation: str,
        still_named: Callable[[], Awaitable[bool]],
        first: Manifest | None,
    ) -> Manifest:
        if not await still_named():
            raise NotOurs("no")
        found = await self.read_highest()
        assert found is not None
        self._current = replace(found, epoch=epoch, incarnation=incarnation)
        return self._current


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("commit by rename", {"log": CommitsByRename, **SHORT}),
        ("check before unlink", {"sweep_first": True, "commits": 1}),
        (
            "reuse of a number",
            {"log": ReusesANumber, "faults": (LinkFault.DELAYED,), **SHORT},
        ),
        ("takeover without a link", {"log": AdoptsWithoutALink, "commits": 1}),
    ],
)
def test_a_planted_fault_is_found(name: str, options: dict[str, Any]) -> None:
    found = search(name, **options)
    assert found.failure, f"the model check does not find: {name}"
