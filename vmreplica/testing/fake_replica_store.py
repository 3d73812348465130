"""A shared storage location in memory, at the level of ports.replica_store.

Quick and small, for tests of the services alone; crash tests of the manifest protocol run the
real store over MemoryFiles instead. Directories are shared by all hosts that are given the same
``FakeStorage``.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from vmreplica.core.cycle import CLUSTER_BYTES, DIGEST_BYTES, Disk, Frame, digest
from vmreplica.core.manifest import FileDigest, Layer, Manifest
from vmreplica.core.receiving_manifest import next_manifest
from vmreplica.ports.replica_store import (
    Deposed,
    LayerWriter,
    ManifestDamaged,
    NotOurs,
    PartKey,
    ReplicaFolder,
    SealedLayer,
    Space,
    StorageFailed,
)


@dataclass(slots=True)
class FakeDirectory:
    """One replica's directory: what every host sees."""

    manifests: dict[int, Manifest] = field(default_factory=dict)
    layers: dict[str, dict[int, tuple[bytes, bytes]]] = field(default_factory=dict)
    small: dict[str, bytes] = field(default_factory=dict)
    overlays: set[str] = field(default_factory=set)
    damaged: bool = False

    @property
    def highest(self) -> Manifest | None:
        """The replica's state."""
        return self.manifests[max(self.manifests)] if self.manifests else None


@dataclass(slots=True)
class FakeStorage:
    """All directories of one location, its faults, and what happened, in order."""

    free_bytes: int = 1 << 40
    directories: dict[str, FakeDirectory] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    fail: dict[str, StorageFailed] = field(default_factory=dict)
    """Raised once by the named step: append, sync, seal, before_link, after_link, merge."""
    names: itertools.count[int] = field(default_factory=itertools.count)
    before: Callable[[str], Awaitable[None]] | None = None
    """Awaited before each step, for tests that stop the world there."""

    async def step(self, name: str) -> None:
        """Note a step, and fail it if planned."""
        if self.before is not None:
            await self.before(name)
        self.log.append(name)
        failed = self.fail.pop(name, None)
        if failed is not None:
            raise failed


class FakeReplicaStore:
    """Implements ports.replica_store.ReplicaStore."""

    def __init__(self, storage: FakeStorage) -> None:
        self._storage = storage

    async def open_folder(self, folder_path: str, *, create: bool) -> ReplicaFolder:
        """One replica's directory."""
        if create:
            self._storage.directories.setdefault(folder_path, FakeDirectory())
        directory = self._storage.directories.get(folder_path, FakeDirectory())
        return FakeFolder(self._storage, directory, folder_path)

    async def space(self, location: str) -> Space:
        """Room, as the test set it."""
        del location
        return Space(1 << 41, self._storage.free_bytes)


class FakeFolder:
    """Implements ports.replica_store.ReplicaFolder."""

    def __init__(self, storage: FakeStorage, directory: FakeDirectory, path: str) -> None:
        self._storage = storage
        self._directory = directory
        self._path = path

    @property
    def path(self) -> str:
        """Absolute directory."""
        return self._path

    async def take_over(
        self,
        epoch: int,
        incarnation: str,
        still_named: Callable[[], Awaitable[bool]],
        first: Manifest | None,
    ) -> Manifest:
        """The record names me; highest manifest; the next number under this epoch."""
        while True:
            if not await still_named():
                raise NotOurs
            await self._storage.step("take_over")
            highest = await self.read_highest()
            if highest is None and first is None:
                raise ManifestDamaged("the directory is empty")
            if highest is not None and highest.epoch > epoch:
                raise Deposed("a higher epoch is on disk", highest.epoch)
            following = first if highest is None else next_manifest(highest, epoch, incarnation)
            assert following is not None
            try:
                await self._link(following)
            except Deposed:
                continue
            return following

    async def commit(self, manifest: Manifest) -> None:
        """Link the next number."""
        await self._link(manifest)

    async def _link(self, manifest: Manifest) -> None:
        await self._storage.step("before_link")
        highest = max(self._directory.manifests, default=0)
        if manifest.n != highest + 1:
            raise Deposed(f"manifest {highest} is there", self._directory.manifests[highest].epoch)
        self._directory.manifests[manifest.n] = manifest
        await self._storage.step("after_link")

    async def read_highest(self) -> Manifest | None:
        """The highest manifest."""
        if self._directory.damaged:
            raise ManifestDamaged("the highest manifest does not read back")
        return self._directory.highest

    async def open_layer(self, key: PartKey, *, resume: bool) -> LayerWriter:
        """A fresh part."""
        del resume
        return FakeLayerWriter(self._storage, self._directory, key)

    async def resumable_frames(
        self, cycle_id: bytes, epoch: int, disks: Sequence[Disk], first: int = 0
    ) -> int:
        """Parts do not survive here."""
        del cycle_id, epoch, disks, first
        return 0

    async def write_small(self, kind: str, seq: int, epoch: int, data: bytes) -> FileDigest:
        """A small file under a fresh name."""
        name = f"{kind}.{seq}.e{epoch}.{next(self._storage.names):016x}"
        await self._storage.step("write_small")
        self._directory.small[name] = data
        return FileDigest(name, digest(data))

    async def read_small(self, file: FileDigest) -> bytes:
        """Its bytes."""
        data = self._directory.small.get(file.file)
        if data is None or digest(data) != file.blake3:
            raise StorageFailed(f"{file.file} is damaged or missing")
        return data

    async def verify_layer(self, layer: Layer, *, plain: bool = True) -> tuple[int, ...]:
        """What is here is whole: only a missing layer is found."""
        del plain
        if layer.file not in self._directory.layers:
            raise StorageFailed(f"{layer.file} is missing")
        return ()

    async def merge(
        self, layers: Sequence[Layer], size_bytes: int, epoch: int, *, bottom: bool = False
    ) -> Layer:
        """The newest cluster wins."""
        del bottom
        await self._storage.step("merge")
        merged: dict[int, tuple[bytes, bytes]] = {}
        for layer in layers:
            merged.update(self._directory.layers[layer.file])
        first, last = layers[0], layers[-1]
        name = f"{first.target}.{first.from_seq}-{last.to_seq}.e{epoch}.{next(self._storage.names):016x}"
        self._directory.layers[name] = merged
        return Layer(
            file=name,
            target=first.target,
            from_seq=first.from_seq,
            to_seq=last.to_seq,
            size_bytes=size_bytes,
            bytes=sum(len(data) for _, data in merged.values()),
        )

    async def remove_unnamed(self, manifest: Manifest, older_than_epoch: int) -> int:
        """Unlink what is not named or pinned."""
        del older_than_epoch
        kept = manifest.named_files() | manifest.pinned_files()
        doomed = [name for name in self._directory.layers if name not in kept]
        for name in doomed:
            del self._directory.layers[name]
        return len(doomed)

    async def create_overlay(
        self, operation_id: str, disk: Disk, epoch: int, chain: Sequence[str]
    ) -> str:
        """A fresh overlay."""
        missing = [file for file in chain if file not in self._directory.layers]
        assert not missing, missing
        name = f"runs/{operation_id}/{disk.target}.e{epoch}.{next(self._storage.names):016x}.qcow2"
        self._directory.overlays.add(name)
        return name

    async def remove_overlays(self, operation_id: str) -> None:
        """Unlink a run's overlays."""
        mine = {x for x in self._directory.overlays if x.startswith(f"runs/{operation_id}/")}
        self._directory.overlays -= mine

    async def remove_all(self) -> None:
        """Nothing is left."""
        await self._storage.step("remove_all")
        self._storage.directories.pop(self._path, None)

    async def plain_digests(self, target: str, manifest: Manifest, seq: int) -> Mapping[int, bytes]:
        """Plain digests of the head."""
        del seq
        found: dict[int, bytes] = {}
        for file in manifest.chain(target):
            found.update({i: plain for i, (plain, _) in self._directory.layers[file].items()})
        return found

    async def layer_digests(self, layer: Layer) -> Mapping[int, bytes]:
        """Plain digests of one layer."""
        return {i: plain for i, (plain, _) in self._directory.layers[layer.file].items()}

    def qemu_json(self, disk: Disk, chain: Sequence[str], overlay: str | None = None) -> str:
        """A text that names the chain."""
        return f"json:{disk.target}:{','.join(chain)}:{overlay or ''}"


class FakeLayerWriter:
    """Implements ports.replica_store.LayerWriter; payload digests are checked."""

    def __init__(self, storage: FakeStorage, directory: FakeDirectory, key: PartKey) -> None:
        self._storage = storage
        self._directory = directory
        self._key = key
        self._clusters: dict[int, tuple[bytes, bytes]] = {}
        self._bytes = 0

    async def append(self, frame: Frame, number: int = -1) -> None:
        """Take one frame."""
        del number
        await self._storage.step("append")
        place = 0
        for i, (index, stored) in enumerate(zip(frame.indexes, frame.stored_bytes, strict=True)):
            plain = frame.digests[i * DIGEST_BYTES : (i + 1) * DIGEST_BYTES]
            self._clusters[index] = (plain, frame.payload[place : place + stored])
            place += stored
            self._bytes += CLUSTER_BYTES if stored else 0

    async def sync(self) -> None:
        """Durable from here on."""
        await self._storage.step("sync")

    async def seal(self, from_seq: int, to_seq: int) -> SealedLayer:
        """Under a fresh name."""
        await self._storage.step("seal")
        if not self._clusters:
            return SealedLayer(None, 0)
        disk, epoch = self._key.disk, self._key.epoch
        name = f"{disk.target}.{from_seq}-{to_seq}.e{epoch}.{next(self._storage.names):016x}"
        self._directory.layers[name] = dict(self._clusters)
        layer = Layer(
            file=name,
            target=disk.target,
            from_seq=from_seq,
            to_seq=to_seq,
            size_bytes=disk.size_bytes,
            bytes=self._bytes,
        )
        return SealedLayer(layer, len(self._clusters))

    async def discard(self) -> None:
        """Forget it."""
        self._clusters.clear()

    @property
    def bytes_written(self) -> int:
        """Length so far."""
        return self._bytes

    def digests(self) -> Mapping[int, bytes]:
        """Plain digests."""
        return {i: plain for i, (plain, _) in self._clusters.items()}


def content(directory: FakeDirectory, manifest: Manifest, target: str) -> dict[int, bytes]:
    """What the head's chain of one disk reads, by cluster; missing = zeros."""
    found: dict[int, bytes] = {}
    for file in manifest.chain(target):
        found.update({i: data for i, (_, data) in directory.layers[file].items()})
    return found
