"""A replica's directory: cycles become layers, manifests name them, QEMU reads the chain."""

from __future__ import annotations

import random
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from node.disk.os_files import OsFiles
from node.disk.replica_folder import DiskReplicaFolder
from node.disk.replica_store import DiskReplicaStore
from vmreplica.core.cycle import CLUSTER_BYTES, Disk
from vmreplica.core.manifest import (
    Definition,
    Head,
    Layer,
    Manifest,
    Pin,
    PointKind,
    RecoveryPoint,
    Run,
)
from vmreplica.core.problems import Problem, Reason
from vmreplica.ports.replica_store import (
    Deposed,
    ManifestDamaged,
    NotOurs,
    PartKey,
    StorageFailed,
)
from vmreplica.testing.frame_maker import make_frames
from vmreplica.testing.memory_disk import MemoryDisk
from vmreplica.testing.memory_files import MemoryFiles
from vmreplica.testing.seeded_randomness import SeededRandomness

FOLDER = "r1.inc1"


def first_manifest(disks: tuple[Disk, ...]) -> Manifest:
    return Manifest(
        replica_id="r1",
        vm_uuid="u",
        vm_name="vm",
        domain_name="vm",
        trust_group="g",
        primary_access_point="p:7443",
        storage_location="/store",
        policy={},
        epoch=1,
        n=1,
        incarnation="inc1",
        disks=disks,
    )


async def named() -> bool:
    return True


def memory_store(disk: MemoryDisk | None = None, host: str = "r1") -> DiskReplicaStore:
    disk = disk or MemoryDisk()
    disk.make_location("/store")
    return DiskReplicaStore(MemoryFiles(disk, host), ["/store"], SeededRandomness(host))


async def write_layer(
    folder: DiskReplicaFolder,
    disk: Disk,
    seq: int,
    clusters: dict[int, bytes | None],
    *,
    epoch: int = 1,
    compress: bool = True,
) -> Layer:
    writer = await folder.open_layer(PartKey(bytes([seq]) * 16, disk, epoch), resume=False)
    for number, frame in enumerate(make_frames(clusters, compress=compress)):
        await writer.append(frame, number)
    sealed = await writer.seal(seq, seq)
    assert sealed.layer is not None and sealed.clusters == len(clusters)
    return sealed.layer


async def owned(
    store: DiskReplicaStore, disks: tuple[Disk, ...], *, path: str = f"/store/{FOLDER}"
) -> tuple[DiskReplicaFolder, Manifest]:
    folder = await store.open_folder(path, create=True)
    return folder, await folder.take_over(1, "inc1", named, first_manifest(disks))


def with_layer(manifest: Manifest, layer: Layer) -> Manifest:
    layers = (*manifest.layers, layer)
    return replace(
        manifest, n=manifest.n + 1, layers=layers, head=Head(seq=layer.to_seq, cycle_id=b"c" * 16)
    )


def raw_of(json_name: str, target: Path) -> bytes:
    subprocess.run(["qemu-img", "convert", "-O", "raw", json_name, str(target)], check=True)
    return target.read_bytes()


class ModelDisk:
    """What the primary's disk holds, and the cycles that changed it."""

    def __init__(self, size_bytes: int, seed: int) -> None:
        self.random = random.Random(seed)
        self.size_bytes = size_bytes
        self.content = bytearray(size_bytes)

    def resize(self, size_bytes: int) -> None:
        self.content = self.content[:size_bytes].ljust(size_bytes, b"\0")
        self.size_bytes = size_bytes

    def cycle(self, count: int) -> dict[int, bytes | None]:
        clusters: dict[int, bytes | None] = {}
        total = Disk("vda", self.size_bytes).clusters
        for index in self.random.sample(range(total), min(count, total)):
            start = index * CLUSTER_BYTES
            length = min(CLUSTER_BYTES, self.size_bytes - start)
            match self.random.randrange(4):
                case 0:
                    data = None
                case 1:
                    data = self.random.randbytes(length)
                case 2:
                    data = bytes([self.random.randrange(1, 256)]) * length
                case _:
                    half = length // 2
                    data = self.random.randbytes(half) + bytes(length - half)
            clusters[index] = data
            self.content[start : start + length] = data or bytes(length)
        return clusters


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_qemu_reads_a_chain_of_layers(tmp_path: Path, seed: int) -> None:
    print(f"seed={seed}")
    store = DiskReplicaStore(OsFiles([str(tmp_path)]), [str(tmp_path)], SeededRandomness(seed))
    model = ModelDisk(5 * (1 << 20) + 512, seed)
    disk = Disk("vda", model.size_bytes)
    folder, manifest = await owned(store, (disk,), path=str(tmp_path / FOLDER))
    for seq in range(1, 6):
        layer = await write_layer(folder, disk, seq, model.cycle(20))
        manifest = with_layer(manifest, layer)
        await folder.commit(manifest)
        for file in manifest.chain("vda"):
            alone = folder.qemu_json(disk, [file])
            subprocess.run(["qemu-img", "check", "-q", alone], check=True)
        name = folder.qemu_json(disk, manifest.chain("vda"))
        assert raw_of(name, tmp_path / "out.raw") == bytes(model.content)
        assert await folder.verify_layer(layer) == ()
    merged = await folder.merge(manifest.layers[1:4], disk.size_bytes, 1)
    assert (merged.from_seq, merged.to_seq) == (2, 4)
    chain = [manifest.layers[0].file, merged.file, manifest.layers[4].file]
    name = folder.qemu_json(disk, chain)
    subprocess.run(["qemu-img", "check", "-q", folder.qemu_json(disk, [merged.file])], check=True)
    assert raw_of(name, tmp_path / "out.raw") == bytes(model.content)
