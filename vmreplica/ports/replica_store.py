"""The replica's directory on shared storage: manifests, layers, small files.

The port offers what the keeper needs and nothing that could break data-safety §2: no rename over
a name, no write to a file that a manifest names. The primitives below it (files, fsync, link)
belong to the adapter, so that crash tests can run the very same protocol on a modelled disk.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from vmreplica.core.cycle import Disk, Frame
from vmreplica.core.manifest import FileDigest, Layer, Manifest


class Deposed(Exception):
    """Another epoch committed a manifest beyond ours: stop serving, ask the cluster store.

    ``highest_epoch`` is what the directory shows (0: not read).
    """

    def __init__(self, message: str, highest_epoch: int = 0) -> None:
        super().__init__(message)
        self.highest_epoch = highest_epoch


class StorageFailed(Exception):
    """An I/O error. After one at or behind the link the outcome is unknown: take over anew."""

    def __init__(self, message: str, *, no_space: bool = False) -> None:
        super().__init__(message)
        self.no_space = no_space


class FolderMissing(StorageFailed):
    """The replica's directory is not there."""


class ManifestDamaged(Exception):
    """The highest manifest does not read back: the replica stops until a person repairs it."""


class NoManifest(ManifestDamaged):
    """The directory is there and holds no manifest at all."""


class NotOurs(Exception):
    """The takeover's linearizable read says that the record no longer names us."""


@dataclass(frozen=True, slots=True)
class SealedLayer:
    """What a sealed writer left: ``layer`` is None when nothing had been written."""

    layer: Layer | None
    clusters: int


@dataclass(frozen=True, slots=True)
class PartKey:
    """A ``.part`` belongs to (cycle id, disk, epoch) and is continued for the same three only."""

    cycle_id: bytes
    disk: Disk
    epoch: int


class LayerWriter(Protocol):
    """Writes one disk's share of one cycle as an append-only qcow2 layer."""

    async def append(self, frame: Frame, number: int = -1) -> None:
        """Check and append one frame of this disk.

        :param number: the frame's number in its cycle, all disks together. A part whose frames
            came without number cannot be resumed by another writer.
        :raises Problem: BAD_COMPRESSION, DIGEST_MISMATCH, CLUSTER_OUT_OF_RANGE, BAD_FIELD,
            FRAME_TOO_LARGE; the part is left as it was before the frame.
        :raises StorageFailed:
        """
        ...

    async def sync(self) -> None:
        """Make everything appended so far durable (fdatasync, never retried)."""
        ...

    async def seal(self, from_seq: int, to_seq: int) -> SealedLayer:
        """Tables, digests, trailer, fdatasync, rename into layers/ under a fresh name, 0444.

        The directory fsync that makes the name durable is part of it.
        """
        ...

    async def discard(self) -> None:
        """Forget the part and unlink it. Idempotent."""
        ...

    @property
    def bytes_written(self) -> int:
        """Length of the part so far."""
        ...

    def digests(self) -> Mapping[int, bytes]:
        """Plain digest by cluster index of everything appended (to compute the cycle digest)."""
        ...


class CommitOutcome(StrEnum):
    """How a commit ended when it did not raise."""

    COMMITTED = "committed"


class ReplicaFolder(Protocol):
    """One replica's directory, seen by one incarnation of one node."""

    @property
    def path(self) -> str:
        """Absolute directory."""
        ...

    async def take_over(
        self,
        epoch: int,
        incarnation: str,
        still_named: Callable[[], Awaitable[bool]],
        first: Manifest | None,
    ) -> Manifest:
        """data-safety §2.3 (a)-(c): the record names me; highest manifest; link the next number.

        :param still_named: linearizable read: does the owner record name us with this epoch?
        :param first: content of manifest 1 where the directory has none (a new replica);
            None = an empty directory is damage.
        :returns: the manifest now in force, committed under ``epoch``.
        :raises NotOurs, Deposed: (highest_epoch above ours), ManifestDamaged, StorageFailed
        """
        ...

    async def commit(self, manifest: Manifest) -> None:
        """data-safety §2.2: temp, fsync, link(2) to ``manifest.n``, fsync directory, listing.

        :raises Deposed: EEXIST by another, or a higher number in the listing.
        :raises StorageFailed: outcome unknown: forget the state, take over anew.
        """
        ...

    async def read_highest(self) -> Manifest | None:
        """The highest manifest, without taking over (for readers and pins of others)."""
        ...

    async def open_layer(self, key: PartKey, *, resume: bool) -> LayerWriter:
        """A writer for this part; with ``resume`` an existing durable part is continued."""
        ...

    async def resumable_frames(
        self, cycle_id: bytes, epoch: int, disks: Sequence[Disk], first: int = 0
    ) -> int:
        """Frames of this (cycle id, epoch) whose parts are durable in this directory.

        :param first: frames below it are in drafts; counting begins there. ``open_layer`` with
            ``resume`` then continues each part behind the frames counted here.
        """
        ...

    async def write_small(self, kind: str, seq: int, epoch: int, data: bytes) -> FileDigest:
        """Durably write a definition, nvram or tpm file under a fresh name."""
        ...

    async def read_small(self, file: FileDigest) -> bytes:
        """Its bytes, checked against the digest. :raises StorageFailed: damaged or missing."""
        ...

    async def verify_layer(self, layer: Layer, *, plain: bool = True) -> tuple[int, ...]:
        """Cluster indexes of one layer that do not read back: the scrub of a new layer.

        :param plain: decompress too and check the plain digests.
        :raises StorageFailed: the file is missing or cut, or its tables are damaged.
        """
        ...

    async def merge(
        self, layers: Sequence[Layer], size_bytes: int, epoch: int, *, bottom: bool = False
    ) -> Layer:
        """Merge adjacent layers of one disk into one new file (newest cluster wins).

        :param bottom: nothing lies below them.

        Runs in a store-writing child process of the adapter; creates only.
        """
        ...

    async def remove_unnamed(self, manifest: Manifest, older_than_epoch: int) -> int:
        """Unlink what ``manifest`` (committed by us) does not name, no pin holds, and whose
        epoch is below ``older_than_epoch`` or which a manifest of ours dropped. Count removed.
        """
        ...

    async def create_overlay(
        self, operation_id: str, disk: Disk, epoch: int, chain: Sequence[str]
    ) -> str:
        """A fresh writable qcow2 over ``chain`` (relative files, base first); its relative name."""
        ...

    async def remove_overlays(self, operation_id: str) -> None:
        """Unlink a finished run's overlays. Idempotent."""
        ...

    async def remove_all(self) -> None:
        """Remove the directory's content after a committed tombstone; the tombstone goes last."""
        ...

    async def plain_digests(self, target: str, manifest: Manifest, seq: int) -> Mapping[int, bytes]:
        """Plain digest by cluster index of one disk's content at ``seq``."""
        ...

    async def layer_digests(self, layer: Layer) -> Mapping[int, bytes]:
        """Plain digest by cluster index of what one layer file holds.

        :raises StorageFailed: damaged or missing.
        """
        ...

    def qemu_json(self, disk: Disk, chain: Sequence[str], overlay: str | None = None) -> str:
        """``json:{…}`` for plain qemu-img: the explicit chain with absolute paths."""
        ...


@dataclass(frozen=True, slots=True)
class Space:
    """Room on a storage location's file system."""

    total_bytes: int
    free_bytes: int


class ReplicaStore(Protocol):
    """All storage locations of one node."""

    async def open_folder(self, folder_path: str, *, create: bool) -> ReplicaFolder:
        """One replica's directory.

        :param create: make it (0700, fsynced parent); one that exists already is returned as is.
        :raises Problem: BAD_FIELD outside the configured storage locations, or through a symlink.
        """
        ...

    async def space(self, location: str) -> Space:
        """statvfs of a storage location."""
        ...
