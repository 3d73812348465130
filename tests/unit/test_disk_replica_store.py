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


async def test_overlays_take_writes_over_a_chain(tmp_path: Path) -> None:
    store = DiskReplicaStore(OsFiles([str(tmp_path)]), [str(tmp_path)], SeededRandomness(1))
    disk = Disk("vda", 600 << 20)
    folder, manifest = await owned(store, (disk,), path=str(tmp_path / FOLDER))
    layer = await write_layer(folder, disk, 1, {0: b"base" * 16_384, 9_000: b"far"})
    manifest = with_layer(manifest, layer)
    await folder.commit(manifest)
    overlay = await folder.create_overlay("op-1", disk, 1, manifest.chain("vda"))
    assert overlay.startswith("runs/op-1/vda.e1.")
    name = folder.qemu_json(disk, manifest.chain("vda"), overlay)
    writes = ["-c", "write -P 7 1M 64k", "-c", "write -P 8 580M 4k", "-c", "read -P 7 1M 64k"]
    subprocess.run(["qemu-io", *writes, name], check=True, capture_output=True)
    subprocess.run(["qemu-img", "check", "-q", name], check=True)
    below = raw_of(folder.qemu_json(disk, manifest.chain("vda")), tmp_path / "below.raw")
    assert below[:4] == b"base" and below[1 << 20] == 0
    assert (tmp_path / FOLDER / layer.file).stat().st_mode & 0o777 == 0o444
    alone = subprocess.run(
        ["qemu-img", "info", "--backing-chain", str(tmp_path / FOLDER / layer.file)],
        capture_output=True,
        check=False,
    )
    assert alone.returncode != 0, "a layer must not be readable without its chain"
    await folder.remove_overlays("op-1")
    await folder.remove_overlays("op-1")
    assert not (tmp_path / FOLDER / "runs/op-1").exists()
    for bad in ("../x", "a/b", "", ".."):
        with pytest.raises(Problem):
            await folder.create_overlay(bad, disk, 1, ())
        with pytest.raises(Problem):
            await folder.remove_overlays(bad)


async def test_an_empty_chain_reads_as_zeros(tmp_path: Path) -> None:
    store = DiskReplicaStore(OsFiles([str(tmp_path)]), [str(tmp_path)], SeededRandomness(1))
    disk = Disk("vda", 1 << 20)
    folder, _ = await owned(store, (disk,), path=str(tmp_path / FOLDER))
    assert raw_of(folder.qemu_json(disk, []), tmp_path / "o.raw") == bytes(1 << 20)


async def test_takeover_finds_what_was_committed_and_deposes() -> None:
    disk = MemoryDisk()
    old = await memory_store(disk, "a").open_folder(f"/store/{FOLDER}", create=True)
    new = await memory_store(disk, "b").open_folder(f"/store/{FOLDER}", create=False)
    first = await old.take_over(1, "i1", named, first_manifest((Disk("vda", 65_536),)))
    assert first.n == 1 and first.incarnation == "i1"
    second = replace(first, n=2, vm_name="renamed")
    await old.commit(second)
    taken = await new.take_over(2, "i2", named, None)
    assert (taken.n, taken.epoch, taken.vm_name) == (3, 2, "renamed")
    with pytest.raises(Deposed):
        await old.commit(replace(second, n=3))
    with pytest.raises(StorageFailed):
        await old.commit(replace(second, n=4))
    with pytest.raises(Deposed) as caught:
        await old.take_over(1, "i1", named, None)
    assert caught.value.highest_epoch == 2
    assert await old.read_highest() == taken
    with pytest.raises(ValueError, match="does not follow"):
        await new.commit(replace(taken, n=5))


async def test_takeover_refusals() -> None:
    async def not_named() -> bool:
        return False

    store = memory_store()
    folder = await store.open_folder(f"/store/{FOLDER}", create=True)
    assert await folder.read_highest() is None
    with pytest.raises(NotOurs):
        await folder.take_over(1, "i", not_named, None)
    with pytest.raises(ManifestDamaged):
        await folder.take_over(1, "i", named, None)
    await folder.take_over(1, "i", named, first_manifest(()))
    with pytest.raises(Deposed):
        await folder.take_over(1, "other", named, None)
    with pytest.raises(StorageFailed):
        await store.open_folder("/store/no.i", create=False)


async def test_a_damaged_highest_manifest_stops_everything(tmp_path: Path) -> None:
    store = DiskReplicaStore(OsFiles([str(tmp_path)]), [str(tmp_path)], SeededRandomness(1))
    folder, manifest = await owned(store, (), path=str(tmp_path / FOLDER))
    await folder.commit(replace(manifest, n=2))
    path = tmp_path / FOLDER / "manifest.000000000002.json"
    path.write_bytes(path.read_bytes().replace(b"vmreplica/1", b"vmreplica/l"))
    with pytest.raises(ManifestDamaged, match="000000000002"):
        await folder.read_highest()
    with pytest.raises(ManifestDamaged):
        await folder.take_over(2, "j", named, None)
    assert len(list((tmp_path / FOLDER).glob("manifest.*"))) == 2


async def test_only_the_newest_64_manifests_are_kept() -> None:
    disk = MemoryDisk()
    folder, manifest = await owned(memory_store(disk), ())
    for number in range(2, 200):
        manifest = replace(manifest, n=number)
        await folder.commit(manifest)
    names = disk.directory(f"/store/{FOLDER}").entries
    kept = [x for x in names if x.startswith("manifest.")]
    assert 64 <= len(kept) < 64 + 16
    assert max(kept) == "manifest.000000000199.json"


async def test_what_is_named_pinned_or_too_new_stays() -> None:
    disk = MemoryDisk()
    vda = Disk("vda", 1 << 20)
    folder, manifest = await owned(memory_store(disk), (vda,))
    layers = [await write_layer(folder, vda, seq, {0: b"x"}) for seq in range(1, 5)]
    xml = await folder.write_small("definition", 1, 1, b"<domain/>")
    orphan = await write_layer(folder, vda, 9, {0: b"x"})
    overlay = await folder.create_overlay("op", vda, 1, ())
    unnamed = await folder.create_overlay("op2", vda, 1, ())
    manifest = replace(
        manifest,
        n=2,
        layers=tuple(layers),
        head=Head(seq=4, definition=Definition(xml=xml)),
        pins=(Pin(operation_id="op", node="n", incarnation="i", files=(layers[0].file,)),),
        runs=(Run(operation_id="op", seq=1, overlays=(("vda", overlay),)),),
        points=(
            RecoveryPoint(
                seq=2,
                time_ms=2,
                kind=PointKind.CRASH_CONSISTENT,
                chain=(("vda", (layers[1].file,)),),
            ),
        ),
    )
    await folder.commit(manifest)
    assert await folder.remove_unnamed(manifest, 1) == 0
    dropped = replace(manifest, n=3, layers=(layers[3],))
    with pytest.raises(StorageFailed):
        await folder.remove_unnamed(dropped, 1)
    await folder.commit(dropped)
    assert await folder.remove_unnamed(dropped, 1) == 1
    present = set(disk.directory(f"/store/{FOLDER}/layers").entries)
    assert present == {x.file.split("/")[1] for x in (layers[0], layers[1], layers[3], orphan)}
    successor = await memory_store(disk, "b").open_folder(f"/store/{FOLDER}", create=False)
    taken = await successor.take_over(2, "i2", named, None)
    newer = await write_layer(successor, vda, 5, {0: b"x"}, epoch=2)
    assert await successor.remove_unnamed(taken, 2) == 2
    present = set(disk.directory(f"/store/{FOLDER}/layers").entries)
    assert present == {x.file.split("/")[1] for x in (layers[0], layers[1], layers[3], newer)}
    assert disk.walk(f"/store/{FOLDER}/{overlay}") is not None
    assert disk.walk(f"/store/{FOLDER}/{unnamed}") is None
    assert await successor.read_small(xml) == b"<domain/>"


async def test_removing_all_leaves_the_tombstone_to_the_end() -> None:
    disk = MemoryDisk()
    vda = Disk("vda", 1 << 20)
    folder, manifest = await owned(memory_store(disk), (vda,))
    layer = await write_layer(folder, vda, 1, {0: b"x"})
    await folder.write_small("nvram", 1, 1, b"n")
    await folder.create_overlay("op", vda, 1, ())
    manifest = with_layer(manifest, layer)
    await folder.commit(manifest)
    with pytest.raises(StorageFailed):
        await folder.remove_all()
    await folder.commit(replace(manifest, n=3, tombstone=True, layers=()))
    await folder.remove_all()
    files = folder._files
    assert isinstance(files, MemoryFiles)
    unlinked = [step.path for step in files.journal if step.operation == "unlink"]
    assert unlinked[-1].endswith("manifest.000000000003.json")
    assert disk.walk(f"/store/{FOLDER}") is None


async def test_small_files_are_checked() -> None:
    folder, _ = await owned(memory_store(), ())
    file = await folder.write_small("tpm", 3, 1, b"state")
    assert file.file.startswith("tpm.3.e1.") and file.file.endswith(".bin")
    assert await folder.read_small(file) == b"state"
    with pytest.raises(StorageFailed):
        await folder.read_small(replace(file, blake3=bytes(16)))
    with pytest.raises(StorageFailed):
        await folder.read_small(replace(file, file="tpm.3.e1.no.bin"))
    for bad in ("../../etc/passwd", "/etc/passwd", "a//b"):
        with pytest.raises(StorageFailed):
            await folder.read_small(replace(file, file=bad))


async def test_folders_outside_the_locations_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "in/link.i").symlink_to(tmp_path / "out")
    root = f"{tmp_path}/in"
    store = DiskReplicaStore(OsFiles([root]), [root], SeededRandomness(1))
    for bad in (f"{tmp_path}/out/x", f"{root}/../out/x", root, "/etc", f"{root}/a/b", f"{root}/.."):
        with pytest.raises(Problem) as caught:
            await store.open_folder(bad, create=True)
        assert caught.value.reason is Reason.BAD_FIELD
    for create in (True, False):
        with pytest.raises(Problem):
            await store.open_folder(f"{root}/link.i", create=create)
    assert not list((tmp_path / "out").iterdir())
    folder = await store.open_folder(f"{root}/r.i", create=True)
    for target in ("../vda", "a/b", "", "."):
        with pytest.raises(Problem):
            await folder.open_layer(PartKey(bytes(16), Disk(target, 512), 1), resume=False)
    for size in (0, 511, -512):
        with pytest.raises(Problem):
            await folder.open_layer(PartKey(bytes(16), Disk("vda", size), 1), resume=False)
    assert (await store.space(root)).free_bytes > 0
