"""A node whose storage is full, away, read-only or not what it was said to be."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from tests.support.commands import told
from tests.support.standalone_room import NodeRoom, Refusal, Replica, Wire, refusal_of
from tests.unit.replica_world import cluster, raw_frame
from vmreplica.core.problems import Reason
from vmreplica.v1 import store_pb2

pytestmark = [pytest.mark.needs("root", "qemu"), pytest.mark.timeout(90)]
SIZE_MIB = 160
MIB = 1 << 20


def mount(path: Path, *words: str) -> None:
    subprocess.run(["mount", *words, str(path)], check=True)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeRoom]:
    """The storage location is a file system of its own, of few MiB."""
    directory = tmp_path_factory.mktemp("storage")
    store = directory / "store"
    store.mkdir()
    mount(store, "-t", "tmpfs", "-o", f"size={SIZE_MIB}m", "tmpfs")
    made = NodeRoom(directory)
    made.start()
    try:
        yield made
        made.close()
    finally:
        made.end()
        subprocess.run(["umount", "-l", str(store)], check=True)


@pytest.fixture
async def wire(room: NodeRoom) -> AsyncIterator[Wire]:
    await room.ready()
    async with room.wire() as made:
        yield made


async def begun(room: NodeRoom, wire: Wire, name: str) -> Replica:
    replica = await room.replica(wire, name)
    await room.send(wire, replica)
    return replica


def fill(room: NodeRoom, leave_mib: int) -> Path:
    """Somebody else's file takes the room."""
    ballast = room.store / "ballast"
    free = shutil.disk_usage(room.store).free
    with ballast.open("wb") as file:
        file.write(b"b" * (free - leave_mib * MIB))
    return ballast


async def test_a_full_disk_and_room_again(room: NodeRoom, wire: Wire) -> None:
    """Full before the cycle and in its middle: said so; with room again it goes on by itself."""
    replica = await begun(room, wire, "full")
    ballast = fill(room, 20)
    refusal = await wire.refused_stream(replica.replica_id, [replica.next().open])
    refusal.check(Reason.NO_SPACE, "storage_location")
    assert refusal.facts["value"] == str(room.store)
    ballast.unlink()
    frames = [raw_frame(0, {i: cluster(f"full {i} ") for i in range(f, f + 16)})
              for f in range(0, 160, 16)]  # fmt: skip
    cycle = replica.next(frames, resume=True)
    stream = wire.stream(replica.replica_id)
    await stream.say(cycle.open)
    await stream.until("accepted")
    await stream.say(frames[0])
    ballast = fill(room, 3)
    with suppress(grpc.aio.AioRpcError):
        for frame in frames[1:]:
            await stream.say(frame)
        await stream.say(cycle.close)
    (await stream.refusal()).check(Reason.NO_SPACE, "storage_location")
    await room.check(wire, replica)
    ballast.unlink()
    await room.send(wire, replica, cycle)
    await room.check(wire, replica)
    await room.send(wire, replica)


async def test_no_room_for_the_manifest(room: NodeRoom, wire: Wire) -> None:
    """Every cluster came, only the commit finds no room: not acknowledged, and nothing of it seen."""
    replica = await begun(room, wire, "tight")
    cycle = replica.next(resume=True)
    stream = wire.stream(replica.replica_id)
    await stream.say(cycle.open)
    await stream.until("accepted")
    for frame in cycle.frames:
        await stream.say(frame)
    ballast = fill(room, 0)
    await stream.say(cycle.close)
    refusal = await stream.refusal()
    refusal.check(Reason.NO_SPACE, "storage_location")
    ballast.unlink()
    await room.check(wire, replica)
    await room.send(wire, replica, cycle)
    await room.check(wire, replica)


async def test_a_location_that_cannot_be_written(room: NodeRoom, wire: Wire) -> None:
    """Read-only under a running node: refused, with rows that say why; then it goes on."""
    replica = await begun(room, wire, "readonly")
    mount(room.store, "--bind", str(room.store))
    mount(room.store, "-o", "remount,bind,ro")
    try:
        cycle = replica.next()
        messages = [cycle.open, *cycle.frames, cycle.close]
        refusal = await wire.refused_stream(replica.replica_id, messages)
        assert refusal.reason in ("STORE_UNAVAILABLE", "NODE_UNREACHABLE"), refusal
        refusal.check(Reason(refusal.reason))
        rows = await checked(room)
        assert not all(row.ok for row in rows)
        assert all(row.remedy for row in rows if not row.ok)
        done = await asyncio.to_thread(room.vmrctl, "store", "check", str(room.store))
        assert done.returncode == 8, done.stderr
        assert "Traceback" not in done.stdout + done.stderr
    finally:
        subprocess.run(["umount", "-l", str(room.store)], check=True)
    await room.send(wire, replica)
    await room.check(wire, replica)


async def checked(room: NodeRoom) -> list[store_pb2.StoreCheck]:
    async with room.wire("admin") as admin:
        request = store_pb2.CheckStoreRequest(path=str(room.store))
        answer = await admin.call("StoreService/CheckStore", request, store_pb2.CheckStoreResponse)
        return list(answer.checks)


async def test_a_location_that_vanishes_and_comes_back(room: NodeRoom, wire: Wire) -> None:
    """Something empty is mounted over it: no replica is begun anew in the empty place."""
    replica = await begun(room, wire, "vanished")
    mount(room.store, "-t", "tmpfs", "-o", "size=100m", "tmpfs")
    try:
        cycle = replica.next()
        messages = [cycle.open, *cycle.frames, cycle.close]
        refusal = await wire.refused_stream(replica.replica_id, messages)
        assert refusal.reason in ("STORE_UNAVAILABLE", "NODE_UNREACHABLE"), refusal
        assert not list(room.store.glob(f"{replica.replica_id}*/manifest.*"))
    finally:
        subprocess.run(["umount", "-l", str(room.store)], check=True)
    await room.send(wire, replica)
    await room.check(wire, replica)


async def test_a_directory_that_is_no_location(room: NodeRoom, wire: Wire) -> None:
    """Only configured locations are touched, whoever asks."""
    for path in ("/nowhere", "/etc", f"{room.store}/..", "", str(room.store / "inside")):
        async with room.wire("admin") as admin:
            refusal = await admin.refused(
                "StoreService/CheckStore",
                store_pb2.CheckStoreRequest(path=path),
                store_pb2.CheckStoreResponse,
            )
            refusal.check(Reason.BAD_FIELD, "path")
    done = await asyncio.to_thread(room.vmrctl, "store", "check", "/nowhere")
    told(done, 2, "BAD_FIELD", str(room.store))


async def test_a_symbolic_link_in_the_place_of_a_layer(room: NodeRoom, wire: Wire) -> None:
    """What lies behind a link is never written, and the node says what is wrong."""
    replica = await begun(room, wire, "linked")
    victim = room.directory / "victim"
    victim.mkdir()
    (folder,) = room.store.glob(f"{replica.replica_id}.*")
    incoming = folder / "incoming"
    kept = folder / "kept"
    incoming.rename(kept)
    incoming.symlink_to(victim)
    cycle = replica.next()
    messages = [cycle.open, *cycle.frames, cycle.close]
    refusal = await _refused(wire, replica, messages)
    assert refusal.reason and "Traceback" not in refusal.message
    assert not list(victim.iterdir())
    incoming.unlink()
    kept.rename(incoming)
    await room.send(wire, replica)
    await room.check(wire, replica)


async def _refused(wire: Wire, replica: Replica, messages: list[object]) -> Refusal:
    try:
        return await wire.refused_stream(replica.replica_id, messages)  # type: ignore[arg-type]
    except grpc.aio.AioRpcError as error:
        return refusal_of(error)
