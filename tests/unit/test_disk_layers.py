"""Layers: resumed after a cut, refused when damaged, merged without losing a byte."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.disk.layer_reader import LayerReader
from node.disk.os_files import OsFiles
from node.disk.replica_folder import DiskReplicaFolder
from node.disk.replica_store import DiskReplicaStore
from node.disk.worker_client import StoreWorker
from vmreplica.core.cycle import CLUSTER_BYTES, ZERO_CLUSTER_DIGEST, Disk, digest
from vmreplica.core.manifest import Head, Layer, Manifest
from vmreplica.core.problems import Problem, Reason
from vmreplica.ports.replica_store import PartKey, StorageFailed
from vmreplica.testing.frame_maker import make_frame, make_frames
from vmreplica.testing.memory_disk import MemoryDisk
from vmreplica.testing.memory_files import Faults, HostKilled, MemoryFiles
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


# ---- writing ----


async def test_a_disk_with_nothing_changed_leaves_no_file() -> None:
    disk = MemoryDisk()
    folder = await memory_folder(disk)
    writer = await folder.open_layer(PartKey(CYCLE, VDA, 1), resume=False)
    await writer.sync()
    sealed = await writer.seal(1, 1)
    assert sealed.layer is None and sealed.clusters == 0
    assert not disk.directory("/store/r.i/layers").entries
    assert not disk.directory("/store/r.i/incoming").entries


async def test_the_digests_are_those_sent() -> None:
    folder = await memory_folder()
    clusters: Clusters = {5: b"five", 2: None, 63: bytes([9]) * CLUSTER_BYTES}
    writer = await folder.open_layer(PartKey(CYCLE, VDA, 1), resume=False)
    frame = make_frame(clusters)
    await writer.append(frame)
    wanted = {i: frame.digests[n * 16 : n * 16 + 16] for n, i in enumerate(frame.indexes)}
    digests: Mapping[int, bytes] = writer.digests()
    assert dict(digests.items()) == wanted and list(digests) == [2, 5, 63]
    assert digests[5] == wanted[5] and 6 not in digests and len(digests) == 3
    sealed = await writer.seal(1, 1)
    assert sealed.layer is not None
    assert dict(await folder.layer_digests(sealed.layer)) == wanted


async def test_a_refused_frame_changes_nothing() -> None:
    folder = await memory_folder()
    writer = await folder.open_layer(PartKey(CYCLE, VDA, 1), resume=False)
    await writer.append(make_frame({1: b"one"}), 0)
    before = writer.bytes_written
    broken = replace(make_frame({2: b"two"}), stored_digests=bytes(16))
    with pytest.raises(Problem) as caught:
        await writer.append(broken, 1)
    assert caught.value.reason is Reason.DIGEST_MISMATCH
    assert writer.bytes_written == before
    await writer.append(make_frame({2: b"two"}), 1)
    sealed = await writer.seal(1, 1)
    assert sealed.layer is not None and sealed.clusters == 2
    assert await folder.verify_layer(sealed.layer) == ()


async def test_verify_before_ack_decompresses() -> None:
    disk = MemoryDisk()
    disk.make_location("/store")
    strict = [False]
    store = DiskReplicaStore(
        MemoryFiles(disk, "a"),
        ["/store"],
        SeededRandomness(1),
        verify_before_ack=lambda: strict[0],
    )
    folder = await store.open_folder("/store/r.i", create=True)
    lying = replace(make_frame({1: b"one"}), digests=bytes(16))
    writer = await folder.open_layer(PartKey(CYCLE, VDA, 1), resume=False)
    await writer.append(lying)
    strict[0] = True
    with pytest.raises(Problem):
        await writer.append(replace(lying, indexes=(2,)))
    strict[0] = False
    sealed = await writer.seal(1, 1)
    assert sealed.layer is not None
    assert await folder.verify_layer(sealed.layer, plain=False) == ()
    assert await folder.verify_layer(sealed.layer) == (1,)


async def test_a_full_disk_is_reported_and_the_part_can_be_dropped() -> None:
    disk = MemoryDisk()
    folder = await memory_folder(disk)
    files = folder._files
    assert isinstance(files, MemoryFiles)
    writer = await folder.open_layer(PartKey(CYCLE, VDA, 1), resume=False)
    data = {i: os.urandom(CLUSTER_BYTES) for i in range(16)}
    files.faults.fail_at = {len(files.journal) + 3: errno.ENOSPC}
    with pytest.raises(StorageFailed) as caught:
        await writer.append(make_frame(data), 0)
    assert caught.value.no_space
    with pytest.raises(StorageFailed):
        await writer.seal(1, 1)
    await writer.discard()
    await writer.discard()
    assert not disk.directory("/store/r.i/incoming/e1").entries


# ---- resuming ----


async def test_a_part_is_continued_behind_its_durable_frames() -> None:
    seed = 11
    print(f"seed={seed}")
    r = random.Random(seed)
    vdb = Disk("vdb", 32 * CLUSTER_BYTES)
    disk = MemoryDisk()
    folder = await memory_folder(disk)
    frames = [(d, f) for d in (VDA, vdb) for f in make_frames(some(r, d, 30))]
    r.shuffle(frames)
    writers = {
        d.target: await folder.open_layer(PartKey(CYCLE, d, 1), resume=False) for d in (VDA, vdb)
    }
    for number, (d, frame) in enumerate(frames[:3]):
        await writers[d.target].append(frame, number)
    for writer in writers.values():
        await writer.sync()
    await writers[frames[3][0].target].append(frames[3][1], 3)
    disk.power_cut()
    again = await memory_folder(disk, seed="again")
    count = await again.resumable_frames(CYCLE, 1, [VDA, vdb])
    assert count == 3
    assert await again.resumable_frames(bytes(16), 1, [VDA, vdb]) == 0
    assert await again.resumable_frames(CYCLE, 2, [VDA, vdb]) == 0
    assert await again.resumable_frames(CYCLE, 1, [VDA, vdb]) == 3
    writers = {
        d.target: await again.open_layer(PartKey(CYCLE, d, 1), resume=True) for d in (VDA, vdb)
    }
    for number, (d, frame) in enumerate(frames[count:], count):
        await writers[d.target].append(frame, number)
    for d in (VDA, vdb):
        sealed = await writers[d.target].seal(1, 1)
        assert sealed.layer is not None
        assert sealed.clusters == sum(len(f.indexes) for x, f in frames if x is d)
        assert await again.verify_layer(sealed.layer) == ()
    assert not disk.directory("/store/r.i/incoming/e1").entries


async def test_a_disk_synced_further_than_another_is_cut_back() -> None:
    vdb = Disk("vdb", 32 * CLUSTER_BYTES)
    disk = MemoryDisk()
    folder = await memory_folder(disk)
    a = await folder.open_layer(PartKey(CYCLE, VDA, 1), resume=False)
    b = await folder.open_layer(PartKey(CYCLE, vdb, 1), resume=False)
    await a.append(make_frame({1: b"1"}), 0)
    await b.append(make_frame({1: b"1"}), 1)
    await a.append(make_frame({2: os.urandom(CLUSTER_BYTES)}), 2)
    await a.sync()
    again = await memory_folder(disk, seed="again")
    assert await again.resumable_frames(CYCLE, 1, [VDA, vdb]) == 1
    a = await again.open_layer(PartKey(CYCLE, VDA, 1), resume=True)
    assert set(a.digests()) == {1}
    await a.append(make_frame({2: b"2"}), 2)
    sealed = await a.seal(1, 1)
    assert sealed.layer is not None and await again.verify_layer(sealed.layer) == ()
    assert await again.resumable_frames(CYCLE, 1, [VDA, vdb], first=7) == 7


async def test_killed_at_every_step_nothing_half_done_is_ever_taken_for_whole() -> None:
    clusters: Clusters = {1: b"one", 2: None, 3: os.urandom(CLUSTER_BYTES)}
    frames = [make_frame({i: data}) for i, data in clusters.items()]

    async def cycle(folder: DiskReplicaFolder) -> Layer:
        count = await folder.resumable_frames(CYCLE, 1, [VDA])
        writer = await folder.open_layer(PartKey(CYCLE, VDA, 1), resume=count > 0)
        for number, frame in enumerate(frames[count:], count):
            await writer.append(frame, number)
            await writer.sync()
        sealed = await writer.seal(1, 1)
        assert sealed.layer is not None
        return sealed.layer

    steps = 0
    for kill_at in range(1, 200):
        disk = MemoryDisk()
        await memory_folder(disk)
        try:
            folder = await memory_folder(disk, Faults(kill_at=kill_at))
            await cycle(folder)
        except HostKilled:
            steps += 1
        else:
            break
        disk.power_cut()
        again = await memory_folder(disk, seed="again")
        layer = await cycle(again)
        assert await again.verify_layer(layer) == ()
        assert set(await again.layer_digests(layer)) == set(clusters)
        for name in disk.directory("/store/r.i/layers").entries:
            found = replace(layer, file=f"layers/{name}")
            assert await again.verify_layer(found) == ()
    print(f"{steps} kill points")
    assert 20 < steps < 199


# ---- damage ----


async def test_every_flipped_bit_in_use_is_detected(tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed={seed}")
    r = random.Random(seed)
    folder = await os_folder(tmp_path)
    big = Disk("vda", 3 << 30)
    clusters: Clusters = {i * 1_000: r.randbytes(300) + b"z" * 500 for i in range(40)}
    clusters |= {7: None, 8: r.randbytes(CLUSTER_BYTES)}
    layer = await layer_of(folder, big, 1, clusters)
    path = tmp_path / "r.i" / layer.file
    whole = path.read_bytes()
    assert len(whole) == layer.bytes
    reader = await LayerReader.open(OsFiles([str(tmp_path)]), str(path))
    used = [range(reader.trailer.data_end, len(whole)), range(CLUSTER_BYTES)]
    for row, record in enumerate(reader.records):
        if record["stored"]:
            data = await reader.stored(row)
            start = whole.find(data)
            used.append(range(start, start + len(data)))
    await reader.close()
    path.chmod(0o600)
    for flip in range(200):
        span = r.choice(used)
        place = r.choice(span)
        padding_end = -(-reader.trailer.data_end // CLUSTER_BYTES) * CLUSTER_BYTES
        if reader.trailer.data_end <= place < padding_end:
            continue
        damaged = bytearray(whole)
        damaged[place] ^= 1 << r.randrange(8)
        path.write_bytes(damaged)
        try:
            found = bool(await folder.verify_layer(layer))
        except StorageFailed:
            found = True
        assert found, f"flip {flip} at byte {place} of {len(whole)} was not seen"
    for length in (0, 100, CLUSTER_BYTES, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(StorageFailed):
            await folder.verify_layer(layer)
    path.unlink()
    with pytest.raises(StorageFailed):
        await folder.layer_digests(layer)


async def test_reading_one_cluster_back() -> None:
    folder = await memory_folder()
    raw = os.urandom(CLUSTER_BYTES)
    layer = await layer_of(folder, VDA, 1, {1: b"one", 2: None, 3: raw})
    reader = await LayerReader.open(folder._files, f"{folder.path}/{layer.file}")
    assert await reader.cluster(1) == b"one".ljust(CLUSTER_BYTES, b"\0")
    assert await reader.cluster(2) == bytes(CLUSTER_BYTES)
    assert await reader.cluster(3) == raw
    assert await reader.cluster(4) is None


async def test_unused_parts_of_tables_are_holes(tmp_path: Path) -> None:
    folder = await os_folder(tmp_path)
    big = Disk("vda", 100 << 30)
    clusters: Clusters = {i * 8_192: b"x" for i in range(200)}
    layer = await layer_of(folder, big, 1, clusters)
    used = (tmp_path / "r.i" / layer.file).stat().st_blocks * 512
    assert layer.bytes > 200 * CLUSTER_BYTES
    assert used < 200 * 3 * 4_096 + 10 * CLUSTER_BYTES


# ---- merging ----


@given(st.integers(0, 1 << 32), st.booleans())
@settings(max_examples=40, deadline=None)
def test_merging_keeps_every_byte(seed: int, resize: bool) -> None:
    asyncio.run(merge_history(seed, resize))


async def merge_history(seed: int, resize: bool) -> None:
    r = random.Random(seed)
    size = r.randrange(1, 24 * 128) * 512
    folder = await memory_folder()
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
