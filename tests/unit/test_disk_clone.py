"""Merging by sharing blocks: qemu agrees with the file, garbage is left, a refusal means copying."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from node.disk.files import CloneRange
from node.disk.layer_reader import LayerReader
from node.disk.os_files import OsFiles
from node.disk.replica_folder import DiskReplicaFolder
from node.disk.replica_store import DiskReplicaStore
from tests.unit.disk_room import VDA, Clusters, apply, layer_of, memory_folder
from vmreplica.core.cycle import CLUSTER_BYTES, Disk
from vmreplica.core.manifest import Layer
from vmreplica.ports.replica_store import StorageFailed
from vmreplica.testing.memory_disk import Inode, MemoryDisk
from vmreplica.testing.memory_files import MemoryFile, MemoryFiles
from vmreplica.testing.seeded_randomness import SeededRandomness


def steps(folder: DiskReplicaFolder, operation: str) -> int:
    files = folder._files
    assert isinstance(files, MemoryFiles)
    return sum(step.operation == operation for step in files.journal)


def exported(disk: MemoryDisk, layer: Layer, to: Path) -> str:
    """A modelled file as a real one, alone, for qemu."""
    node = disk.walk(f"/store/r.i/{layer.file}")
    assert isinstance(node, Inode)
    to.write_bytes(node.durable.read(node.durable.length, 0))
    return "json:" + json.dumps(
        {"driver": "qcow2", "file": {"driver": "file", "filename": str(to)}, "backing": None}
    )


def packed(r: random.Random, index: int) -> bytes:
    """Content that compresses to something between 1 and 40 KiB."""
    return r.randbytes(r.randrange(1_000, 40_000)) + bytes([index % 256]) * 9_000


async def test_qemu_finds_shared_files_clean_and_reads_the_same(tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed={seed}")
    r = random.Random(seed)
    disk = MemoryDisk(clones=True)
    folder = await memory_folder(disk)
    for round_number in range(5):
        content = bytearray(VDA.size_bytes)
        layers = []
        for seq in range(1, 5):
            count = 60 if seq == 1 else 12
            clusters: Clusters = {
                i: r.choice((None, r.randbytes(CLUSTER_BYTES), packed(r, i), packed(r, i)))
                for i in r.sample(range(VDA.clusters), count)
            }
            apply(content, clusters)
            layers.append(await layer_of(folder, VDA, seq, clusters))
        before = steps(folder, "clone")
        first = await folder.merge(layers[1:3], VDA.size_bytes, 1)
        merged = await folder.merge([layers[0], first, layers[3]], VDA.size_bytes, 1, bottom=True)
        assert steps(folder, "clone") > before, f"round {round_number}: nothing was shared"
        assert await folder.verify_layer(merged) == ()
        name = exported(disk, merged, tmp_path / "merged")
        check = subprocess.run(["qemu-img", "check", name], capture_output=True, check=False)
        assert check.returncode == 0, check.stdout + check.stderr
        (tmp_path / "model").write_bytes(content)
        compare = ["qemu-img", "compare", "-q", name, f"{tmp_path}/model"]
        assert subprocess.run(compare, check=False).returncode == 0


async def test_what_is_no_longer_shown_is_not_shared_or_is_counted_as_unused() -> None:
    disk = MemoryDisk(clones=True)
    folder = await memory_folder(disk)
    r = random.Random(3)
    raw = {i: r.randbytes(CLUSTER_BYTES) for i in range(20)}
    base = await layer_of(folder, VDA, 1, dict(raw))
    above = await layer_of(folder, VDA, 2, {i: r.randbytes(CLUSTER_BYTES) for i in range(15)})
    merged = await folder.merge([base, above], VDA.size_bytes, 1, bottom=True)
    reader = await LayerReader.open(folder._files, f"{folder.path}/{merged.file}")
    assert reader.trailer.data_end == (1 + 20) * CLUSTER_BYTES
    assert merged.bytes < 21 * CLUSTER_BYTES


async def test_mostly_garbage_is_copied() -> None:
    folder = await memory_folder(MemoryDisk(clones=True))
    r = random.Random(4)
    base = await layer_of(folder, VDA, 1, {i: r.randbytes(12_000) for i in range(50)})
    keep = {i: r.randbytes(12_000) for i in range(50) if i % 5}
    above = await layer_of(folder, VDA, 2, dict(keep))
    merged = await folder.merge([base, above], VDA.size_bytes, 1, bottom=True)
    assert steps(folder, "clone") > 0
    again = await layer_of(folder, VDA, 3, {i: None for i in range(50) if i % 5})
    before = steps(folder, "clone")
    small = await folder.merge([merged, again], VDA.size_bytes, 1, bottom=True)
    assert steps(folder, "clone") == before, "shared although four fifths are garbage"
    assert small.bytes < 10 * 12_500 + 4 * 4_096 + 50 * 60
    assert await folder.verify_layer(small) == ()


@pytest.mark.parametrize("refused_at", [1, 2])
async def test_a_refusal_means_copying(
    refused_at: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    disk = MemoryDisk(clones=True)
    folder = await memory_folder(disk)
    r = random.Random(5)
    size = 40 * CLUSTER_BYTES
    small = Disk("vda", 11 * CLUSTER_BYTES + 1_024)
    base = await layer_of(
        folder, Disk("vda", size), 1, {i: r.randbytes(CLUSTER_BYTES) for i in range(40)}
    )
    above = await layer_of(folder, small, 2, {i: packed(r, i) for i in range(5)})
    shared = await folder.merge([base, above], size, 1, bottom=True)
    asked = 0
    clone = MemoryFile.clone

    async def refusing(self: MemoryFile, source: object, ranges: Sequence[CloneRange]) -> bool:
        nonlocal asked
        asked += 1
        return asked != refused_at and await clone(self, source, ranges)

    monkeypatch.setattr(MemoryFile, "clone", refusing)
    copied = await folder.merge([base, above], size, 1, bottom=True)
    assert asked == refused_at
    assert dict(await folder.layer_digests(copied)) == dict(await folder.layer_digests(shared))
    for layer in (copied, shared):
        assert await folder.verify_layer(layer) == ()
        name = exported(disk, layer, tmp_path / "one")
        assert subprocess.run(["qemu-img", "check", "-q", name], check=False).returncode == 0


async def test_a_late_refusal_leaves_nothing_of_what_was_shared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = await memory_folder(MemoryDisk(clones=True))
    r = random.Random(8)
    base = await layer_of(folder, VDA, 1, {i: r.randbytes(32_000) for i in range(40)})
    above = await layer_of(folder, VDA, 2, {2 * i: bytes([i + 1]) for i in range(18)})
    clone = MemoryFile.clone
    shared = 0

    async def refusing(self: MemoryFile, source: object, ranges: Sequence[CloneRange]) -> bool:
        nonlocal shared
        if shared:
            return False
        shared = sum(one.length for one in ranges)
        return await clone(self, source, ranges)

    monkeypatch.setattr(MemoryFile, "clone", refusing)
    copied = await folder.merge([base, above], VDA.size_bytes, 1, bottom=True)
    assert shared > copied.bytes + 5 * CLUSTER_BYTES, "the copy would hide what was shared"
    assert await folder.verify_layer(copied) == ()


async def test_damage_above_the_base_stops_a_sharing_merge_too() -> None:
    disk = MemoryDisk(clones=True)
    folder = await memory_folder(disk)
    r = random.Random(6)
    layers = [
        await layer_of(folder, VDA, seq, {i: r.randbytes(CLUSTER_BYTES) for i in range(3)})
        for seq in (1, 2)
    ]
    node = disk.walk(f"/store/r.i/{layers[1].file}")
    assert isinstance(node, Inode)
    node.written.write(2 * CLUSTER_BYTES + 9, b"?")
    with pytest.raises(StorageFailed, match="damaged"):
        await folder.merge(layers, VDA.size_bytes, 1, bottom=True)


async def test_sharing_needs_little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    for clones in (True, False):
        disk = MemoryDisk(clones=clones)
        folder = await memory_folder(disk)
        big = Disk("vda", 1_200 * CLUSTER_BYTES)
        content = random.Random(7).randbytes(CLUSTER_BYTES)
        base = await layer_of(folder, big, 1, dict.fromkeys(range(1_100), content))
        above = await layer_of(folder, big, 2, {3: b"x"})
        disk.total_bytes = 2 * (66 << 20)
        if clones:
            await folder.merge([base, above], big.size_bytes, 1, bottom=True)
        else:
            with pytest.raises(StorageFailed) as caught:
                await folder.merge([base, above], big.size_bytes, 1, bottom=True)
            assert caught.value.no_space


async def test_a_location_is_tried_once_and_leaves_nothing_behind(tmp_path: Path) -> None:
    files = OsFiles([str(tmp_path)])
    answer = await files.can_clone(f"{tmp_path}/r.i")
    assert os.listdir(tmp_path) == []
    print(f"files share blocks at {tmp_path}: {answer}")
    store = DiskReplicaStore(files, [str(tmp_path)], SeededRandomness(1))
    assert not store.clones(str(tmp_path))
    await store.open_folder(f"{tmp_path}/r.i", create=True)
    assert store.clones(f"{tmp_path}/") == answer
    tried = OsFiles([str(tmp_path)])
    tried._clones[str(tmp_path)] = not answer
    assert await tried.can_clone(str(tmp_path)) != answer
    missing = OsFiles([f"{tmp_path}/no"])
    assert not await missing.can_clone(f"{tmp_path}/no/r.i")
