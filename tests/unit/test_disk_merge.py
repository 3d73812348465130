"""Merges lose no byte, whoever carries them out, and keep chains short for a long time."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.disk.os_files import OsFiles
from node.disk.replica_store import DiskReplicaStore
from node.disk.worker_client import StoreWorker
from tests.unit.disk_room import (
    VDA,
    apply,
    expected_digests,
    layer_of,
    manifest_with,
    memory_folder,
    named,
    os_folder,
    some,
)
from vmreplica.core.compaction import plan_merge, with_merged
from vmreplica.core.cycle import CLUSTER_BYTES, ZERO_CLUSTER_DIGEST, Disk
from vmreplica.core.manifest import Head, Layer
from vmreplica.core.problems import Problem
from vmreplica.ports.replica_store import StorageFailed
from vmreplica.testing.memory_disk import MemoryDisk
from vmreplica.testing.seeded_randomness import SeededRandomness

# ---- merging ----


@given(st.integers(0, 1 << 32), st.booleans(), st.booleans())
@settings(max_examples=80, deadline=None)
def test_merging_keeps_every_byte(seed: int, resize: bool, clones: bool) -> None:
    asyncio.run(merge_history(seed, resize, clones))


async def merge_history(seed: int, resize: bool, clones: bool) -> None:
    r = random.Random(seed)
    size = r.randrange(1, 24 * 128) * 512
    folder = await memory_folder(MemoryDisk(clones=clones))
    content = bytearray(size)
    layers: list[Layer] = []
    known: set[int] = set()
    for seq in range(1, r.randrange(3, 7)):
        if resize and seq > 1 and r.random() < 0.7:
            size = r.randrange(1, 24 * 128) * 512
            content = content[:size].ljust(size, b"\0")
        disk = Disk("vda", size)
        clusters = some(r, disk, r.randrange(1, 12))
        known = {i for i in known if i < disk.clusters} | set(clusters)
        apply(content, clusters)
        layers.append(await layer_of(folder, disk, seq, clusters))
    disk = Disk("vda", size)

    async def matches(chain: list[Layer]) -> None:
        digests = await folder.plain_digests("vda", manifest_with(chain, disk), chain[-1].to_seq)
        wanted = expected_digests(bytes(content), known)
        for index in range(disk.clusters):
            found = digests.get(index, ZERO_CLUSTER_DIGEST)
            zeros = wanted.get(index, ZERO_CLUSTER_DIGEST)
            assert found == zeros, f"seed {seed}: cluster {index}"

    await matches(layers)
    start = r.randrange(len(layers) - 1)
    stop = r.randrange(start + 2, len(layers) + 1)
    aligned = all(x.size_bytes % CLUSTER_BYTES == 0 for x in layers[start:stop])
    bottom = start == 0
    same = len({x.size_bytes for x in layers[start:stop]}) == 1
    if aligned or bottom or same:
        merged = await folder.merge(layers[start:stop], disk.size_bytes, 1, bottom=bottom)
        assert await folder.verify_layer(merged) == ()
        await matches([*layers[:start], merged, *layers[stop:]])


async def test_a_disk_that_shrank_and_grew_reads_the_same_for_qemu(tmp_path: Path) -> None:
    seed = 23
    print(f"seed={seed}")
    r = random.Random(seed)
    folder = await os_folder(tmp_path)
    sizes = [40 * CLUSTER_BYTES, 11 * CLUSTER_BYTES + 1_024, 30 * CLUSTER_BYTES + 512]
    content = bytearray(sizes[0])
    layers = []
    for seq, size in enumerate(sizes, 1):
        content = content[:size].ljust(size, b"\0")
        clusters = some(r, Disk("vda", size), 40 if seq == 1 else 6)
        clusters.pop(11, None) if seq > 1 else None
        apply(content, clusters)
        layers.append(await layer_of(folder, Disk("vda", size), seq, clusters))
    disk = Disk("vda", sizes[-1])
    (tmp_path / "model.raw").write_bytes(content)
    merged = await folder.merge(layers, disk.size_bytes, 1, bottom=True)
    for chain in ([x.file for x in layers], [merged.file]):
        name = folder.qemu_json(disk, chain)
        for file in chain:
            alone = folder.qemu_json(disk, [file])
            subprocess.run(["qemu-img", "check", "-q", alone], check=True)
        compare = ["qemu-img", "compare", "-q", name, f"{tmp_path}/model.raw"]
        assert subprocess.run(compare, check=False).returncode == 0
    with pytest.raises(StorageFailed, match="cannot be merged"):
        await folder.merge(layers[1:], disk.size_bytes, 1)


async def test_a_damaged_input_is_never_merged(tmp_path: Path) -> None:
    folder = await os_folder(tmp_path)
    layers = [await layer_of(folder, VDA, s, {s: os.urandom(CLUSTER_BYTES)}) for s in (1, 2)]
    path = tmp_path / "r.i" / layers[0].file
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[CLUSTER_BYTES + 5] ^= 1
    path.write_bytes(data)
    before = sorted(os.listdir(path.parent))
    with pytest.raises(StorageFailed):
        await folder.merge(layers, VDA.size_bytes, 1)
    assert sorted(os.listdir(path.parent)) == before
    assert os.listdir(tmp_path / "r.i/incoming/e1") == []


async def test_a_merge_waits_for_room() -> None:
    disk = MemoryDisk()
    folder = await memory_folder(disk)
    layers = [await layer_of(folder, VDA, s, {s: b"x"}) for s in (1, 2)]
    disk.total_bytes = 1 << 20
    with pytest.raises(StorageFailed) as caught:
        await folder.merge(layers, VDA.size_bytes, 1)
    assert caught.value.no_space
    assert len(disk.directory("/store/r.i/layers").entries) == 2


# ---- the store worker ----


async def test_the_worker_merges_and_survives_its_own_death(tmp_path: Path) -> None:
    started: list[int] = []
    ended: list[int] = []
    root = str(tmp_path)
    worker = StoreWorker([root], started=started.append, ended=ended.append)
    store = DiskReplicaStore(OsFiles([root]), [root], SeededRandomness(1), merger=worker)
    folder = await store.open_folder(f"{root}/r.i", create=True)
    layers = [await layer_of(folder, VDA, s, {s: b"x", 9: bytes([s])}) for s in (1, 2, 3)]
    merged = await folder.merge(layers[:2], VDA.size_bytes, 1)
    assert (merged.from_seq, merged.to_seq) == (1, 2)
    assert await folder.verify_layer(merged) == ()
    assert started == [worker.pid] and not ended
    os.kill(worker.pid, 9)
    with pytest.raises(StorageFailed):
        await folder.merge(layers, VDA.size_bytes, 1)
    assert ended == started
    again = await folder.merge([merged, layers[2]], VDA.size_bytes, 1)
    assert set(await folder.layer_digests(again)) == {1, 2, 3, 9}
    missing = replace(layers[0], file="layers/no")
    with pytest.raises(StorageFailed, match="missing"):
        await folder.merge([missing, layers[1]], VDA.size_bytes, 1)
    await worker.close()
    assert len(started) == 2 and ended == started


# ---- a long life ----


async def test_many_cycles_with_merges_keep_every_byte_and_a_short_chain(tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed={seed}")
    r = random.Random(seed)
    disk = Disk("vda", 96 * CLUSTER_BYTES + 512)
    folder = await os_folder(tmp_path)
    content = bytearray(disk.size_bytes)
    manifest = await folder.take_over(1, "i", named, manifest_with([], disk))
    full = some(r, disk, disk.clusters)
    received = 0
    for seq in range(1, 61):
        clusters = full if seq == 1 else some(r, disk, r.randrange(1, 4))
        apply(content, clusters)
        layer = await layer_of(folder, disk, seq, clusters)
        received += layer.bytes
        manifest = replace(
            manifest,
            n=manifest.n + 1,
            layers=(*manifest.layers, layer),
            head=Head(seq=seq, cycle_id=bytes([seq]) * 16),
        )
        await folder.commit(manifest)
        plan = plan_merge(manifest)
        if plan is not None:
            merged = await folder.merge(plan.layers, disk.size_bytes, 1, bottom=plan.bottom)
            manifest = replace(with_merged(manifest, plan, merged), n=manifest.n + 1)
            await folder.commit(manifest)
            assert await folder.remove_unnamed(manifest, 1) == len(plan.layers)
        assert len(manifest.chain("vda")) <= 1 + 16
        assert len(os.listdir(tmp_path / "r.i/layers")) == len(manifest.layers)
    (tmp_path / "model.raw").write_bytes(content)
    name = folder.qemu_json(disk, manifest.chain("vda"))
    compare = ["qemu-img", "compare", "-q", name, f"{tmp_path}/model.raw"]
    assert subprocess.run(compare, check=False).returncode == 0
    digests = await folder.plain_digests("vda", manifest, 60)
    assert dict(digests) == expected_digests(bytes(content), set(range(disk.clusters)))
    for layer in manifest.layers:
        assert await folder.verify_layer(layer) == ()
    with pytest.raises(Problem):
        await folder.plain_digests("vda", manifest, 59)
