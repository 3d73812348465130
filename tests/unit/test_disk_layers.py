"""Layers: resumed after a cut, refused when damaged."""

from __future__ import annotations

import asyncio
import errno
import os
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from node.disk.layer_reader import LayerReader
from node.disk.os_files import OsFiles
from node.disk.replica_folder import DiskReplicaFolder
from node.disk.replica_store import DiskReplicaStore
from tests.unit.disk_room import (
    CYCLE,
    VDA,
    Clusters,
    layer_of,
    memory_folder,
    os_folder,
    some,
)
from vmreplica.core.cycle import CLUSTER_BYTES, Disk
from vmreplica.core.manifest import Layer
from vmreplica.core.problems import Problem, Reason
from vmreplica.ports.replica_store import PartKey, StorageFailed
from vmreplica.testing.frame_maker import make_frame, make_frames
from vmreplica.testing.memory_disk import MemoryDisk
from vmreplica.testing.memory_files import Faults, HostKilled, MemoryFiles
from vmreplica.testing.seeded_randomness import SeededRandomness

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
    await writer.append(make_frame(data), 0)
    with pytest.raises(StorageFailed) as caught:
        await writer.sync()
    assert caught.value.no_space
    with pytest.raises(StorageFailed):
        await writer.append(make_frame({20: b"x"}), 1)
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
    assert layer.bytes <= path.stat().st_blocks * 512 < len(whole)
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
    found = (tmp_path / "r.i" / layer.file).stat()
    used = found.st_blocks * 512
    assert found.st_size > 200 * CLUSTER_BYTES
    assert used // 2 < layer.bytes <= used
    assert used < 200 * 3 * 4_096 + 10 * CLUSTER_BYTES


async def test_an_append_that_is_cancelled_leaves_an_unusable_but_removable_part(
    tmp_path: Path,
) -> None:
    folder = await os_folder(tmp_path)
    writer = await folder.open_layer(PartKey(CYCLE, VDA, 1), resume=False)
    frames = [
        make_frame({i: os.urandom(CLUSTER_BYTES) for i in range(s, s + 16)}) for s in (0, 16, 32)
    ]

    async def send() -> None:
        for number, frame in enumerate(frames):
            await writer.append(frame, number)
        await writer.sync()

    task = asyncio.ensure_future(send())
    while writer.clusters == 0:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    await writer.discard()
    assert not list((tmp_path / "r.i/incoming").glob("*/*"))
