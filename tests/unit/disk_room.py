"""A replica's directory for tests: modelled or real, with layers of random cycles."""

from __future__ import annotations

import random
from pathlib import Path

from node.disk.os_files import OsFiles
from node.disk.replica_folder import DiskReplicaFolder
from node.disk.replica_store import DiskReplicaStore
from vmreplica.core.cycle import CLUSTER_BYTES, Disk, digest
from vmreplica.core.manifest import Head, Layer, Manifest
from vmreplica.ports.replica_store import PartKey
from vmreplica.testing.frame_maker import make_frames
from vmreplica.testing.memory_disk import MemoryDisk
from vmreplica.testing.memory_files import Faults, MemoryFiles
from vmreplica.testing.seeded_randomness import SeededRandomness

VDA = Disk("vda", 64 * CLUSTER_BYTES)
CYCLE = bytes(range(16))
Clusters = dict[int, bytes | None]


async def memory_folder(
    disk: MemoryDisk | None = None, faults: Faults | None = None, host: str = "a", seed: str = ""
) -> DiskReplicaFolder:
    disk = disk or MemoryDisk()
    disk.make_location("/store")
    files = MemoryFiles(disk, host, faults=faults)
    store = DiskReplicaStore(files, ["/store"], SeededRandomness(host + seed))
    return await store.open_folder("/store/r.i", create=True)


async def os_folder(path: Path) -> DiskReplicaFolder:
    store = DiskReplicaStore(OsFiles([str(path)]), [str(path)], SeededRandomness(1))
    return await store.open_folder(f"{path}/r.i", create=True)


async def layer_of(
    folder: DiskReplicaFolder, disk: Disk, seq: int, clusters: Clusters, *, compress: bool = True
) -> Layer:
    writer = await folder.open_layer(PartKey(bytes([seq]) * 16, disk, 1), resume=False)
    for number, frame in enumerate(make_frames(clusters, compress=compress)):
        await writer.append(frame, number)
    sealed = await writer.seal(seq, seq)
    assert sealed.layer is not None
    return sealed.layer


def apply(content: bytearray, clusters: Clusters) -> None:
    for index, data in clusters.items():
        start = index * CLUSTER_BYTES
        length = min(CLUSTER_BYTES, len(content) - start)
        content[start : start + length] = (data or b"").ljust(CLUSTER_BYTES, b"\0")[:length]


def some(r: random.Random, disk: Disk, count: int) -> Clusters:
    clusters: Clusters = {}
    for index in r.sample(range(disk.clusters), min(count, disk.clusters)):
        length = min(CLUSTER_BYTES, disk.size_bytes - index * CLUSTER_BYTES)
        kind = r.randrange(4)
        if kind == 0:
            clusters[index] = None
        elif kind == 1:
            clusters[index] = r.randbytes(length)
        else:
            clusters[index] = r.randbytes(length // 100 + 1) + bytes([kind]) * (length // 2)
    return clusters


def manifest_with(layers: list[Layer], disk: Disk) -> Manifest:
    return Manifest(
        replica_id="r",
        vm_uuid="u",
        vm_name="v",
        domain_name="v",
        trust_group="g",
        primary_access_point="p",
        storage_location="/store",
        policy={},
        epoch=1,
        n=1,
        incarnation="i",
        disks=(disk,),
        layers=tuple(layers),
        head=Head(seq=layers[-1].to_seq if layers else 0),
    )


def expected_digests(content: bytes, known: set[int]) -> dict[int, bytes]:
    found = {}
    for index in known:
        data = content[index * CLUSTER_BYTES : (index + 1) * CLUSTER_BYTES]
        found[index] = digest(data.ljust(CLUSTER_BYTES, b"\0"))
    return found


async def named() -> bool:
    return True
