"""Cycles on a real XFS, btrfs and ext4: what merging writes there, and that every head is whole."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from node.disk.os_files import OsFiles
from node.disk.replica_folder import DiskReplicaFolder
from node.disk.replica_store import DiskReplicaStore
from node.disk.worker_client import StoreWorker
from tests.unit.disk_room import Clusters, apply, layer_of, manifest_with, named
from vmreplica.core.compaction import plan_merge, with_merged
from vmreplica.core.cycle import CLUSTER_BYTES, Disk
from vmreplica.core.manifest import Head, Layer, Manifest
from vmreplica.core.retention import chain_limit
from vmreplica.testing.frame_maker import make_frames
from vmreplica.testing.seeded_randomness import SeededRandomness

CYCLES = {"xfs": 200, "btrfs": 80, "ext4": 80}
LIMIT = {"xfs": 3, "btrfs": 3, "ext4": 8}
DISK = Disk("vda", 600 * CLUSTER_BYTES + 512)
MAKE = {"xfs": ["mkfs.xfs", "-q"], "btrfs": ["mkfs.btrfs", "-q"], "ext4": ["mkfs.ext4", "-q"]}


@dataclass
class Mounted:
    """A file system in a file."""

    kind: str
    path: Path
    device: str

    def sectors_written(self) -> int:
        """As the block device counted them."""
        subprocess.run(["sync", "-f", str(self.path)], check=True)
        return int(Path(f"/sys/block/{self.device}/stat").read_text().split()[6])


@pytest.fixture(params=list(MAKE))
def mounted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mounted]:
    kind = request.param
    image, path = tmp_path / "image", tmp_path / "store"
    path.mkdir()
    with image.open("wb") as file:
        file.truncate(700 << 20)
    for command in ([*MAKE[kind], str(image)], ["mount", "-o", "loop", str(image), str(path)]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            why = str(error)
        else:
            why = done.stderr if done.returncode else ""
        if why:
            print(f"no {kind} here: {' '.join(command)}: {why}")
            pytest.skip(f"a file system of this kind cannot be made and mounted here: {why}")
    found = subprocess.run(
        ["findmnt", "-no", "SOURCE", str(path)], capture_output=True, text=True, check=True
    )
    try:
        yield Mounted(kind, path, found.stdout.strip().removeprefix("/dev/"))
    finally:
        subprocess.run(["umount", str(path)], check=True)


def written_by(pid: int) -> int:
    """Bytes this process made the storage write."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith("write_bytes"))


@dataclass
class Life:
    """One replica on one file system, cycle after cycle, with merges in the store worker."""

    mounted: Mounted
    folder: DiskReplicaFolder
    worker: StoreWorker
    manifest: Manifest
    random: random.Random
    reflink: bool
    content: bytearray = field(default_factory=lambda: bytearray(DISK.size_bytes))
    received: int = 0
    merges: int = 0
    bases: int = 0

    def clusters(self, count: int) -> Clusters:
        """Zeros, content that does not compress, content that does; a part of the disk is hot."""
        r = self.random
        made: Clusters = {}
        while len(made) < count:
            index = r.randrange(80 if r.random() < 0.6 else DISK.clusters)
            match r.randrange(8):
                case 0:
                    made[index] = None
                case 1 | 2:
                    made[index] = r.randbytes(CLUSTER_BYTES)
                case _:
                    made[index] = r.randbytes(r.randrange(2_000, 40_000)) + b"z" * 20_000
        if DISK.clusters - 1 in made:
            made[DISK.clusters - 1] = r.randbytes(512)
        return made

    async def cycle(self, seq: int, count: int) -> Layer:
        """Receive one; returns its layer."""
        clusters = self.clusters(count)
        apply(self.content, clusters)
        self.received += sum(len(frame.payload) for frame in make_frames(clusters))
        layer = await layer_of(self.folder, DISK, seq, clusters)
        self.manifest = replace(
            self.manifest,
            n=self.manifest.n + 1,
            layers=(*self.manifest.layers, layer),
            head=Head(seq=seq, cycle_id=seq.to_bytes(16, "big")),
        )
        await self.folder.commit(self.manifest)
        return layer

    async def merge_what_is_due(self) -> Layer | None:
        plan = plan_merge(self.manifest, reflink=self.reflink)
        if plan is None:
            return None
        merged = await self.folder.merge(plan.layers, DISK.size_bytes, 1, bottom=plan.bottom)
        self.manifest = replace(with_merged(self.manifest, plan, merged), n=self.manifest.n + 1)
        await self.folder.commit(self.manifest)
        await self.folder.remove_unnamed(self.manifest, 1)
        self.merges += 1
        self.bases += plan.bottom
        return merged

    def head_is_whole(self, at: Path) -> bool:
        """What qemu reads from the whole chain is what was received."""
        name = self.folder.qemu_json(DISK, self.manifest.chain("vda"))
        convert = ["qemu-img", "convert", "-O", "raw", name, str(at)]
        subprocess.run(convert, check=True)
        return at.read_bytes() == bytes(self.content)

    def is_clean(self, layer: Layer) -> bool:
        check = ["qemu-img", "check", "-q", self.folder.qemu_json(DISK, [layer.file])]
        return subprocess.run(check, check=False).returncode == 0


@pytest.fixture
async def life(mounted: Mounted):
    root = str(mounted.path)
    seed = random.randrange(1 << 30)
    print(f"{mounted.kind}: seed={seed}")
    worker = StoreWorker([root])
    store = DiskReplicaStore(OsFiles([root]), [root], SeededRandomness(seed), merger=worker)
    folder = await store.open_folder(f"{root}/r.i", create=True)
    manifest = await folder.take_over(1, "i", named, manifest_with([], DISK))
    yield Life(mounted, folder, worker, manifest, random.Random(seed), store.clones(root))
    await worker.close()


@pytest.mark.timeout(200)
async def test_what_many_cycles_write(life: Life, tmp_path: Path) -> None:
    kind = life.mounted.kind
    assert life.reflink == (kind != "ext4")
    cycles = CYCLES[kind]
    await life.cycle(1, DISK.clusters)
    life.received = 0
    device, own, child, data = life.mounted.sectors_written(), 0, 0, 0
    for seq in range(2, cycles + 2):
        before = written_by(os.getpid())
        layer = await life.cycle(seq, life.random.randrange(4, 20))
        own += written_by(os.getpid()) - before
        merged = await life.merge_what_is_due()
        data += layer.bytes + (0 if merged is None else merged.bytes)
        if merged is not None:
            assert life.is_clean(merged), f"{merged.file} after cycle {seq}"
            child = written_by(life.worker.pid)
        assert life.head_is_whole(tmp_path / "head"), f"cycle {seq}"
        assert len(life.manifest.chain("vda")) <= chain_limit(1)
        files = len(os.listdir(life.mounted.path / "r.i/layers"))
        assert files == len(life.manifest.layers)
    device = (life.mounted.sectors_written() - device) * 512
    for layer in life.manifest.layers:
        assert await life.folder.verify_layer(layer) == ()
    received = life.received
    print(
        f"{kind}: {cycles} cycles, {received >> 20} MiB, {life.merges} merges "
        f"({life.bases} bases): layers and manifests {own / received:.2f}, merges "
        f"{child / received:.2f}, device with journal {device / received:.2f}, "
        f"put together {data / received:.2f} times what was received"
    )
    assert life.merges > 5 and life.bases > 0
    # The device also counts the file system's journal: some pages a sync, whatever a cycle holds.
    assert (own + child) / received <= LIMIT[kind]
