"""The contract of ports.change_source: the model and real libvirt with QEMU show each fact."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from node.host.libvirt_change_source import LibvirtChangeSource
from tests.contract.libvirt_room import LibvirtRoom, libvirt_room, qemu_img
from tests.contract.source_room import (
    DISKS,
    IDS,
    MIB,
    Image,
    ModelRoom,
    RealRoom,
    Room,
    begin,
    run,
    same,
)
from vmreplica.adapters.system_clock import SystemClock
from vmreplica.core.problems import Problem, Reason
from vmreplica.ports.change_source import SourceDeferred, SourceFailed, TrackingLost


@pytest.fixture(scope="module")
def libvirtd() -> Iterator[LibvirtRoom]:
    with libvirt_room() as room:
        yield room


@pytest_asyncio.fixture(
    params=["fake", pytest.param("libvirt", marks=pytest.mark.needs("root", "libvirt", "qemu"))]
)
async def room(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Room]:
    if request.param == "fake":
        yield ModelRoom()
        return
    made = RealRoom(request.getfixturevalue("libvirtd"), tmp_path)
    yield made
    made.close()


@pytest_asyncio.fixture
async def make_real(
    libvirtd: LibvirtRoom, tmp_path: Path
) -> AsyncIterator[Callable[..., Awaitable[RealRoom]]]:
    made: list[RealRoom] = []

    async def make(**options: int) -> RealRoom:
        made.append(RealRoom(libvirtd, tmp_path, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


async def test_full_and_deltas_read_back_bit_by_bit(room: Room) -> None:
    image = Image()
    for cluster in range(0, 200, 3):
        room.write("vda", cluster, 1 + cluster % 250)
    room.write("vdb", 63, 9)
    assert await run(room, image, 0) == 67 + 1
    same(room, image)
    for n in range(1, 4):
        room.write("vda", 10 * n, 200 + n)
        room.write("vda", 255, n)
        room.write("vda", 3, 0)
        room.write("vdb", n, 100 + n)
        assert await run(room, image, n, since=n - 1) == 4
        same(room, image)
    assert await room.source.checkpoints(room.uuid) == (IDS[3],)


async def test_long_zeroed_ranges_travel_as_zeros(room: Room) -> None:
    image = Image()
    for cluster in range(100):
        room.write("vda", cluster, 7)
    await run(room, image, 0)
    for cluster in range(20, 60):
        room.write("vda", cluster, 0)
    job = await begin(room, 1, since=0)
    assert sum(job.cluster_counts) == 40
    frames = [frame async for frame in job.frames(0)]
    assert sum(len(frame.payload) for frame in frames) == 0
    await job.end()


async def test_the_point_does_not_move_while_it_is_read(room: Room) -> None:
    for cluster in range(64):
        room.write("vda", cluster, 1)
        room.write("vdb", cluster, 1)
    before = {disk.target: room.truth(disk.target) for disk in DISKS}
    job = await begin(room, 0, compression="none")
    image = Image()
    for cluster in range(64):
        room.write("vdb", cluster, 2)
        room.write("vda", cluster, 2)
    async for frame in job.frames(0):
        image.apply(frame)
    await job.end()
    assert image.data == before
    assert await run(room, image, 1, since=0) == 128
    same(room, image)


async def test_frames_can_be_sent_again_exactly(room: Room) -> None:
    for cluster in range(256):
        room.write("vda", cluster, 1 + cluster % 255)
    await run(room, Image(), 0)
    for cluster in range(0, 256, 2):
        room.write("vda", cluster, 3)
    job = await begin(room, 1, since=0)
    first = [frame async for frame in job.frames(0)]
    assert len(first) == job.frame_count
    assert [frame async for frame in job.frames(5)] == first[5:]
    assert [frame async for frame in job.frames(0)] == first
    await job.finish_reading()
    assert not room.job_open()
    assert [frame async for frame in job.frames(2)] == first[2:]
    await job.end()
    await job.end()


async def test_an_unacknowledged_cycle_keeps_the_base(room: Room) -> None:
    image = Image()
    room.write("vda", 1, 1)
    await run(room, image, 0)
    room.write("vda", 2, 2)
    job = await begin(room, 1, since=0)
    await job.end()
    assert await room.source.checkpoints(room.uuid) == (IDS[0], IDS[1])
    await room.source.forget(room.uuid, IDS[1])
    await room.source.forget(room.uuid, IDS[1])
    room.write("vda", 3, 3)
    assert await run(room, image, 2, since=0) == 2
    same(room, image)


async def test_an_older_base_counts_a_superset(room: Room) -> None:
    image = Image()
    await run(room, image, 0)
    room.write("vda", 2, 2)
    job = await begin(room, 1, since=0)
    await job.end()
    room.write("vda", 3, 3)
    job = await begin(room, 2, since=0)
    assert sum(job.cluster_counts) == 2
    await job.end()


async def test_nothing_changed_is_a_cycle_too(room: Room) -> None:
    await run(room, Image(), 0)
    assert await run(room, Image(), 1, since=0) == 0
    assert not room.job_open()


async def test_tracking_lost(room: Room) -> None:
    await run(room, Image(), 0)
    room.lose_tracking()
    with pytest.raises(TrackingLost):
        await begin(room, 1, since=0)
    await room.source.release(room.uuid)
    assert await room.source.checkpoints(room.uuid) == ()
    image = Image()
    room.write("vda", 5, 5)
    await run(room, image, 2)
    room.write("vda", 6, 6)
    await run(room, image, 3, since=2)
    same(room, image)


async def test_a_base_that_is_gone_is_lost_tracking(room: Room) -> None:
    with pytest.raises(TrackingLost):
        await begin(room, 1, since=0)


async def test_a_foreign_backup_defers_and_stays(room: Room) -> None:
    room.begin_foreign_backup()
    with pytest.raises(SourceDeferred):
        await begin(room, 0)
    await room.source.recover()
    await room.source.release(room.uuid)
    assert room.foreign_backup_runs()
    room.end_foreign_backup()
    await run(room, Image(), 0)


async def test_a_job_killed_from_outside_fails_the_source_only(room: Room) -> None:
    image = Image()
    for cluster in range(256):
        room.write("vda", cluster, 9)
    job = await begin(room, 0, compression="none")
    taken = 0
    with pytest.raises(SourceFailed):
        async for _ in job.frames(0):
            # What was read ahead may still come; a full point of 16 frames is longer than that.
            taken += 1
            if taken == 1:
                room.kill_job()
    assert taken < job.frame_count
    await job.end()
    await run(room, image, 1)
    same(room, image)


async def test_a_vm_that_is_off_defers(room: Room) -> None:
    room.stop_vm()
    with pytest.raises(SourceDeferred):
        await begin(room, 0)


async def test_unknown_vm(room: Room) -> None:
    with pytest.raises(Problem) as caught:
        await room.source.disks("00000000-0000-4000-8000-000000000000")
    assert caught.value.reason is Reason.UNKNOWN_VM
    await room.source.release("00000000-0000-4000-8000-000000000000")


async def test_disks_and_definition(room: Room) -> None:
    assert tuple(await room.source.disks(room.uuid)) == DISKS
    first = await room.source.capture_definition(room.uuid)
    assert b"<domain" in first.domain_xml
    assert await room.source.capture_definition(room.uuid) == first


# --- what only the real one can show ---------------------------------------------------------

real = pytest.mark.needs("root", "libvirt", "qemu")


@real
async def test_qemu_img_agrees(
    make_real: Callable[..., Awaitable[RealRoom]], tmp_path: Path
) -> None:
    room = await make_real()
    image = Image()
    room.vm.write("vda", 4096, 512, 5)
    room.vm.write("vda", 16 * MIB - 512, 512, 6)
    room.vm.write("vdb", 0, 4 * MIB, 7)
    await run(room, image, 0)
    for n in range(1, 4):
        room.vm.write("vda", n * 100_352, 1024, n)
        room.vm.zero("vdb", n * 65_536 + 4096, 130_000 // 512 * 512)
        await run(room, image, n, since=n - 1)
        for disk in DISKS:
            copy = tmp_path / f"mine-{disk.target}.raw"
            copy.write_bytes(image.data[disk.target])
            room.vm.io(disk.target, "flush")
            qemu_img("compare", "-U", "-f", "raw", "-F", "qcow2", str(copy),
                     str(room.vm.disk(disk.target)))  # fmt: skip


@real
async def test_checkpoints_of_others_stay_and_are_not_counted(
    make_real: Callable[..., Awaitable[RealRoom]],
) -> None:
    room = await make_real()
    image = Image()
    await run(room, image, 0)
    room.begin_foreign_backup()
    room.end_foreign_backup()
    await asyncio.sleep(0.2)
    room.write("vda", 1, 1)
    await run(room, image, 1, since=0)
    same(room, image)
    assert room.checkpoint_names() == {"other", "vmreplica-" + IDS[1].hex()}
    await room.source.release(room.uuid)
    assert room.checkpoint_names() == {"other"}


@real
async def test_libvirtd_restarts_between_and_within_cycles(
    make_real: Callable[..., Awaitable[RealRoom]],
) -> None:
    room = await make_real()
    image = Image()
    for cluster in range(200):
        room.write("vda", cluster, 4)
    await run(room, image, 0)
    room.room.restart_libvirtd()
    room.write("vda", 9, 9)
    await run(room, image, 1, since=0)
    same(room, image)
    room.write("vda", 10, 10)
    job = await begin(room, 2, since=1)
    room.room.restart_libvirtd()
    async for frame in job.frames(0):
        image.apply(frame)
    await job.finish_reading()
    await job.end()
    await room.source.acknowledge(room.uuid, IDS[2])
    same(room, image)
    room.write("vda", 11, 11)
    await run(room, image, 3, since=2)
    same(room, image)


@real
async def test_a_predecessors_job_and_scratch_are_cleaned_up(
    make_real: Callable[..., Awaitable[RealRoom]],
) -> None:
    room = await make_real()
    await begin(room, 0)
    assert room.job_open()
    successor = LibvirtChangeSource(
        room.connection, scratch_dir=str(room.scratch), guard=room.guard, clock=SystemClock(),
        min_scratch_bytes=MIB,
    )  # fmt: skip
    await successor.recover()
    deadline = asyncio.get_running_loop().time() + 5
    while room.job_open():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.02)
    assert list(room.scratch.iterdir()) == []


@real
async def test_the_guard_is_told_before_and_after(
    make_real: Callable[..., Awaitable[RealRoom]],
) -> None:
    room = await make_real()
    await run(room, Image(), 0)
    await run(room, Image(), 1, since=0)
    assert room.guard.told == ["begins 2 ageless", "ended", "begins 2 aged", "ended"]
    assert list(room.scratch.iterdir()) == []


@real
async def test_a_full_scratch_defers(make_real: Callable[..., Awaitable[RealRoom]]) -> None:
    room = await make_real()
    source = LibvirtChangeSource(
        room.connection, scratch_dir=str(room.scratch), guard=room.guard, clock=SystemClock(),
        min_scratch_bytes=1 << 60,
    )  # fmt: skip
    room.source = source
    with pytest.raises(SourceDeferred, match="scratch"):
        await begin(room, 0)
    assert room.guard.told == []


@real
async def test_a_large_delta_is_read_as_it_is_sent(
    make_real: Callable[..., Awaitable[RealRoom]],
) -> None:
    room = await make_real(spool_limit_bytes=MIB)
    image = Image()
    await run(room, image, 0)
    for cluster in range(256):
        room.write("vda", cluster, 1 + cluster % 200)
    await run(room, image, 1, since=0, compression="none")
    same(room, image)
    assert room.guard.told[-3:] == ["begins 2 aged", "begins 2 ageless", "ended"]


@real
async def test_a_cancelled_begin_leaves_no_job(
    make_real: Callable[..., Awaitable[RealRoom]],
) -> None:
    room = await make_real()
    for wait_ms in (0, 5, 20, 60):
        task = asyncio.ensure_future(begin(room, 40 + wait_ms // 5))
        await asyncio.sleep(wait_ms / 1000)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            job = await task
            await job.end()
        await asyncio.sleep(0.1)
        assert not room.job_open()
