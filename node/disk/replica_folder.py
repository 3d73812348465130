"""One replica's directory: the manifest log, its layers, small files and overlays."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any

import numpy as np
import zstandard

from node.disk import folder_parts, folder_sweep
from node.disk.files import Files
from node.disk.layer_format import DigestMap
from node.disk.layer_reader import LayerReader, plain_bytes
from node.disk.layer_writer import DiskLayerWriter
from node.disk.manifest_log import ManifestLog
from node.disk.merge import Merger, MergeRequest
from node.disk.names import INCOMING, LAYERS, RUNS, FileNames, plain
from node.disk.overlay_rows import NO_ROW, BoundaryMissing, shown
from node.disk.qcow2 import empty_overlay
from vmreplica.core.cycle import CLUSTER_BYTES, ZERO_CLUSTER_DIGEST, Disk, digest
from vmreplica.core.manifest import FileDigest, Layer, Manifest
from vmreplica.core.problems import Problem, Reason
from vmreplica.ports.randomness import Randomness
from vmreplica.ports.replica_store import PartKey, StorageFailed

Json = dict[str, Any]

_LOWER_CACHE = {"l2-cache-size": 1 << 20, "refcount-cache-size": 1 << 18}
"""Caches of all but the top image: a chain of 64 must not hold 64 times the default."""


class DiskReplicaFolder:
    """Implements ports.replica_store.ReplicaFolder. One task at a time commits."""

    def __init__(
        self,
        files: Files,
        path: str,
        randomness: Randomness,
        merger: Merger,
        verify_before_ack: Callable[[], bool],
    ) -> None:
        self._files = files
        self._path = path
        self._randomness = randomness
        self._merger = merger
        self._verify_before_ack = verify_before_ack
        self._log = ManifestLog(files, path, randomness)
        self._made: set[str] = set()
        """Directories of this epoch that are there: sweeps leave them alone."""
        self._usable_frames: dict[tuple[bytes, int], int] = {}

    @property
    def path(self) -> str:
        """Absolute directory."""
        return self._path

    # ---- the manifest log ----

    async def take_over(
        self,
        epoch: int,
        incarnation: str,
        still_named: Callable[[], Awaitable[bool]],
        first: Manifest | None,
    ) -> Manifest:
        """See the port."""
        return await self._log.take_over(epoch, incarnation, still_named, first)

    async def commit(self, manifest: Manifest) -> None:
        """See the port. ``previous`` is set here, whatever the caller put there."""
        await self._log.commit(manifest)

    async def read_highest(self) -> Manifest | None:
        """See the port."""
        return await self._log.read_highest()

    # ---- layers ----

    async def open_layer(self, key: PartKey, *, resume: bool) -> DiskLayerWriter:
        """See the port. A resumed part holds the frames that resumable_frames counted last."""
        if key.disk.size_bytes <= 0 or key.disk.size_bytes % 512:
            raise Problem(
                Reason.BAD_FIELD,
                f"{key.disk.target} has {key.disk.size_bytes} bytes, no multiple of 512.",
                field="disks.size_bytes",
                value=str(key.disk.size_bytes),
                remedy="Send the disk's size in bytes; it is a multiple of 512.",
            )
        names = FileNames(self._randomness, key.epoch)
        plain("disks.target", key.disk.target)
        writer = DiskLayerWriter(
            self._files,
            self._path,
            names,
            key,
            verify_plain=self._verify_before_ack,
            made=self._made,
        )
        below = self._usable_frames.get((key.cycle_id, key.epoch), 0)
        if resume:
            await folder_parts.continue_writer(self._files, self._path, key, below, writer)
        else:
            await folder_parts.remove_parts(self._files, self._path, key)
        return writer

    async def resumable_frames(
        self, cycle_id: bytes, epoch: int, disks: Sequence[Disk], first: int = 0
    ) -> int:
        """See the port.

        :param first: frames below it are in drafts; counting begins there.
        """
        count = await folder_parts.durable_frames(
            self._files, self._path, cycle_id, epoch, disks, first
        )
        self._usable_frames[cycle_id, epoch] = count
        return count

    async def layer_digests(self, layer: Layer) -> Mapping[int, bytes]:
        """Plain digest by cluster index of one layer file."""
        reader = await LayerReader.open(self._files, f"{self._path}/{layer.file}")
        try:
            return reader.digests()
        finally:
            await reader.close()

    async def verify_layer(self, layer: Layer, *, plain: bool = True) -> tuple[int, ...]:
        """Cluster indexes of a layer that do not read back.

        :param plain: decompress too and check what the clusters hold.
        :raises StorageFailed: the file is missing, cut, or its tables are damaged.
        """
        reader = await LayerReader.open(self._files, f"{self._path}/{layer.file}")
        try:
            await reader.check_tables()
            return await reader.damaged_clusters(plain=plain)
        finally:
            await reader.close()

    async def merge(
        self,
        layers: Sequence[Layer],
        size_bytes: int,  # noqa: ARG002 - part of the port
        epoch: int,
        *,
        bottom: bool = False,
    ) -> Layer:
        """See the port.

        :param size_bytes: not needed: what counts is the disk's size at the newest of ``layers``,
            whatever became of it in later cycles.
        :param bottom: nothing lies below ``layers``: sizes then need not hide anything.
        """
        names = FileNames(self._randomness, epoch)
        first, last = layers[0], layers[-1]
        request = MergeRequest(
            folder=self._path,
            layers=tuple(layers),
            size_bytes=last.size_bytes,
            part=names.part(),
            name=names.layer(last.target, first.from_seq, last.to_seq),
            bottom=bottom,
        )
        try:
            return await self._merger.merge(request)
        except BoundaryMissing as error:
            raise StorageFailed(f"{self._path}: these layers cannot be merged: {error}") from error
        except StorageFailed:
            # Room matters most when it has run out; the name is ours alone.
            with suppress(StorageFailed):
                await self._files.unlink(f"{self._path}/{request.part}")
            raise

    async def plain_digests(self, target: str, manifest: Manifest, seq: int) -> Mapping[int, bytes]:
        """See the port. :raises Problem: POINT_NOT_FOUND"""
        chain = _chain_at(manifest, target, seq)
        sizes = {layer.file: layer.size_bytes for layer in manifest.layers}
        if not chain:
            return {}
        async with AsyncExitStack() as stack:
            readers = []
            for file in chain:
                reader = await LayerReader.open(self._files, f"{self._path}/{file}")
                stack.push_async_callback(reader.close)
                readers.append(reader)
            size_bytes = sizes.get(chain[-1], readers[-1].trailer.size_bytes)
            records = [reader.records for reader in readers]
            visible = shown(
                records, [r.trailer.size_bytes for r in readers], size_bytes, bottom=True
            )
            digests = np.full(len(visible.index), np.void(ZERO_CLUSTER_DIGEST), dtype="V16")
            for number, layer_records in enumerate(records):
                here = np.flatnonzero((visible.layer == number) & (visible.row != NO_ROW))
                digests[here] = layer_records["plain"][visible.row[here]]
            cut = (visible.keep < CLUSTER_BYTES) & (visible.row != NO_ROW)
            for place in np.flatnonzero(cut).tolist():
                reader = readers[int(visible.layer[place])]
                content = await reader.stored(int(visible.row[place]))
                if content:
                    whole = plain_bytes(content, zstandard.ZstdDecompressor())
                    kept = whole[: int(visible.keep[place])].ljust(CLUSTER_BYTES, b"\0")
                    digests[place] = np.void(digest(kept))
        return DigestMap(visible.index.astype(np.uint64), digests)

    # ---- small files and overlays ----

    async def write_small(self, kind: str, seq: int, epoch: int, data: bytes) -> FileDigest:
        """See the port. ``kind``: definition, nvram or tpm."""
        name = FileNames(self._randomness, epoch).small(kind, seq)
        await self._files.write_new(f"{self._path}/{name}", data)
        await self._files.set_read_only(f"{self._path}/{name}")
        await self._files.sync_directory(self._path)
        return FileDigest(name, digest(data))

    async def read_small(self, file: FileDigest) -> bytes:
        """See the port."""
        path = f"{self._path}/{_inside(file.file)}"
        try:
            data = await self._files.read(path)
        except FileNotFoundError as error:
            raise StorageFailed(f"{path} is missing") from error
        if digest(data) != file.blake3:
            raise StorageFailed(f"{path} does not agree with its digest")
        return data

    async def create_overlay(
        self,
        operation_id: str,
        disk: Disk,
        epoch: int,
        chain: Sequence[str],  # noqa: ARG002 - the header names no file; the chain is explicit
    ) -> str:
        """See the port."""
        name = FileNames(self._randomness, epoch).overlay(operation_id, disk.target)
        directory = f"{self._path}/{name.rpartition('/')[0]}"
        await self._files.make_directory(f"{self._path}/{RUNS}")
        await self._files.make_directory(directory)
        file = await self._files.create(f"{self._path}/{name}")
        try:
            await file.pwrite(empty_overlay(disk.size_bytes))
            await file.fdatasync()
        finally:
            await file.close()
        for path in (directory, f"{self._path}/{RUNS}", self._path):
            await self._files.sync_directory(path)
        return name

    async def remove_overlays(self, operation_id: str) -> None:
        """See the port."""
        directory = f"{self._path}/{RUNS}/{plain('operation_id', operation_id)}"
        await folder_sweep.remove_tree(self._files, directory)

    # ---- removal ----

    async def remove_unnamed(self, manifest: Manifest, older_than_epoch: int) -> int:
        """See the port. :raises StorageFailed: ``manifest`` is not the one we committed last."""
        current = self._log.current
        if current is None or (current.n, current.epoch) != (manifest.n, manifest.epoch):
            raise StorageFailed(f"{self._path}: manifest {manifest.n} is not in force by us")
        return await folder_sweep.remove_unnamed(
            self._files, self._path, current, self._log.droppable(), older_than_epoch
        )

    async def remove_all(self) -> None:
        """See the port. :raises StorageFailed: no tombstone of ours is in force."""
        current = self._log.current
        if current is None or not current.tombstone:
            raise StorageFailed(f"{self._path}: no tombstone of ours is in force")
        await folder_sweep.remove_all(self._files, self._path, current.n)

    # ---- for QEMU ----

    def qemu_json(self, disk: Disk, chain: Sequence[str], overlay: str | None = None) -> str:
        """See the port."""
        files = [*chain] if overlay is None else [*chain, overlay]
        if not files:
            empty = {"driver": "null-co", "size": disk.size_bytes, "read-zeroes": True}
            return "json:" + json.dumps(empty)
        node: Json | None = None
        for place, file in enumerate(files):
            top = place == len(files) - 1
            writable = top and overlay is not None
            node = {
                "driver": "qcow2",
                **({} if top else _LOWER_CACHE),
                **({} if writable else {"read-only": True}),
                "file": {"driver": "file", "filename": f"{self._path}/{_inside(file)}"},
                "backing": node,
            }
        return "json:" + json.dumps(node, separators=(",", ":"))

    async def prepare(self) -> None:
        """Make the directories inside, before a first manifest can name files in them."""
        for name in (LAYERS, INCOMING, RUNS):
            await self._files.make_directory(f"{self._path}/{name}")
        await self._files.sync_directory(self._path)


def _chain_at(manifest: Manifest, target: str, seq: int) -> tuple[str, ...]:
    for point in manifest.points:
        if point.seq == seq:
            return dict(point.chain).get(target, ())
    if seq == manifest.head.seq:
        return manifest.chain(target)
    raise Problem(
        Reason.POINT_NOT_FOUND,
        f"There is no point {seq}.",
        field="seq",
        value=str(seq),
        remedy="List the points with `vmrctl replica points`.",
    )


def _inside(relative: str) -> str:
    """A manifest's file name, refused where it would lead out of the directory."""
    if relative.startswith("/") or any(part in ("", ".", "..") for part in relative.split("/")):
        raise StorageFailed(f"{relative!r} leads out of the replica's directory")
    return relative
