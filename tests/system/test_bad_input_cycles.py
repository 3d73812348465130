"""Cycles that must be refused, through mutual TLS, at a real node: each names its fault, leaves
nothing visible, and the right cycle goes through behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace

import pytest
import zstandard

from tests.support.standalone_room import NodeRoom, Replica, Wire
from tests.unit.replica_world import XML, Sent, cluster, make_cycle, raw_frame
from vmreplica.core.cycle import (
    EMPTY_DIGEST,
    ZERO_CLUSTER_DIGEST,
    CycleKind,
    CycleOpen,
    Disk,
    Frame,
    digest,
)
from vmreplica.core.problems import Reason
from vmreplica.v1 import cycle_pb2
from vmreplica.wire.cycle_messages import request_to_message

pytestmark = [pytest.mark.needs("qemu"), pytest.mark.timeout(90)]
PLAIN = cluster("plain ")
PACKED = zstandard.ZstdCompressor(level=1).compress(PLAIN)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeRoom]:
    made = NodeRoom(tmp_path_factory.mktemp("cycles"))
    made.start()
    yield made
    made.close()


@pytest.fixture
async def wire(room: NodeRoom) -> AsyncIterator[Wire]:
    await room.ready()
    async with room.wire() as made:
        yield made


async def begun(room: NodeRoom, wire: Wire) -> Replica:
    """A replica whose first cycle is acknowledged."""
    replica = await room.replica(wire)
    await room.send(wire, replica)
    return replica


@pytest.fixture
async def shared(room: NodeRoom, wire: Wire) -> AsyncIterator[Replica]:
    """One replica for all of a table; it has lived through all that was refused before.

    Behind the test: nothing of what was refused is visible, and the next cycle is acknowledged.
    """
    if "shared" not in room.replicas:
        room.replicas["shared"] = await begun(room, wire)
    replica = room.replicas["shared"]
    yield replica
    head = await room.head(wire, replica)
    assert (head.acked_seq, head.acked_digest) == (replica.seq, replica.digest)
    await room.send(wire, replica)


async def still_good(room: NodeRoom, wire: Wire, replica: Replica) -> None:
    """Nothing of what was refused is visible, and the next cycle is acknowledged."""
    await room.check(wire, replica)
    await room.send(wire, replica)
    await room.check(wire, replica)


# --- open -------------------------------------------------------------------------------------

Opening = Callable[[CycleOpen], CycleOpen]


def opening(**changes: object) -> Opening:
    return lambda good: replace(good, **changes)  # type: ignore[arg-type]


def head_again(good: CycleOpen, **changes: object) -> CycleOpen:
    """The id of the head, which ``good`` counts from."""
    return replace(good, cycle_id=good.since_cycle_id, **changes)  # type: ignore[arg-type]


NOBODY = "00000000-0000-4000-8000-000000000000"
OPENS: dict[str, tuple[Opening, Reason, str]] = {
    "unknown replica": (opening(replica_id=NOBODY), Reason.UNKNOWN_REPLICA, "replica_id"),
    "no UUID": (opening(replica_id="../../etc"), Reason.BAD_FIELD, "open.replica_id"),
    "an epoch to come": (opening(epoch=99), Reason.NOT_OWNER, "open.epoch"),
    "an epoch that is over": (opening(epoch=0), Reason.STALE_EPOCH, "open.epoch"),
    "a gap in seq": (lambda good: replace(good, seq=good.seq + 1), Reason.SEQ_GAP, "open.seq"),
    "a cycle that was": (lambda good: replace(good, seq=good.seq - 1), Reason.SEQ_GAP, "open.seq"),
    "seq 0": (opening(seq=0), Reason.BAD_FIELD, "open.seq"),
    "another parent": (
        opening(parent_digest=b"p" * 16),
        Reason.PARENT_MISMATCH,
        "open.parent_digest",
    ),
    "a short parent": (opening(parent_digest=b"p"), Reason.BAD_FIELD, "open.parent_digest"),
    "unknown since": (opening(since_cycle_id=b"?" * 16), Reason.SEQ_GAP, "open.since_cycle_id"),
    "no since": (opening(since_cycle_id=b""), Reason.BAD_FIELD, "open.since_cycle_id"),
    "a short cycle id": (opening(cycle_id=b"c"), Reason.BAD_FIELD, "open.cycle_id"),
    "since in a FULL": (opening(kind=CycleKind.FULL), Reason.BAD_FIELD, "open.since_cycle_id"),
    "RESYNC not from the head": (
        opening(kind=CycleKind.RESYNC, since_cycle_id=b"o" * 16),
        Reason.PARENT_MISMATCH,
        "open.since_cycle_id",
    ),
    "the head's id again, other seq": (
        head_again,
        Reason.PARENT_MISMATCH,
        "open.seq",
    ),
    "the head's id again, other parent": (
        lambda good: head_again(good, seq=good.seq - 1, parent_digest=b"p" * 16),
        Reason.PARENT_MISMATCH,
        "open.parent_digest",
    ),
    "one disk less": (
        opening(disks=(Disk("vda", 10 << 20),)),
        Reason.DISK_SHAPE_CHANGED,
        "open.disks",
    ),
    "a size of no sectors": (
        opening(disks=(Disk("vda", 1000),)),
        Reason.BAD_FIELD,
        "open.disks.size_bytes",
    ),
    "a target that is a path": (
        opening(disks=(Disk("../vda", 512),)),
        Reason.BAD_FIELD,
        "open.disks.target",
    ),
    "no disks": (opening(disks=()), Reason.BAD_FIELD, "open.disks"),
    "a definition without end": (
        opening(domain_xml=XML + b" " * (1 << 20)),
        Reason.BAD_FIELD,
        "open.domain_xml",
    ),
}


@pytest.mark.parametrize("name", OPENS)
async def test_opens_that_are_refused(wire: Wire, shared: Replica, name: str) -> None:
    change, reason, field = OPENS[name]
    bad = change(shared.next().open)
    refusal = await wire.refused_stream(shared.replica_id, [bad])
    refusal.check(reason, field)
    if reason in (Reason.NOT_OWNER, Reason.STALE_EPOCH):
        assert refusal.facts["node"] == "n1"
        assert int(refusal.facts["epoch"]) == shared.epoch


async def test_the_same_cycle_again_is_acknowledged_at_once(room: NodeRoom, wire: Wire) -> None:
    replica = await begun(room, wire)
    first = replica.sent[0]
    again = await room.send(wire, replica, first)
    replica.sent.pop()
    assert again.duplicate
    await room.send(wire, replica)
    older = await wire.refused_stream(replica.replica_id, [first.open])
    older.check(Reason.PARENT_MISMATCH, "open.cycle_id")
    await still_good(room, wire, replica)


async def test_a_stream_that_begins_or_goes_on_wrongly(room: NodeRoom, wire: Wire) -> None:
    replica = await begun(room, wire)
    good = replica.next()
    for messages, end in (
        ([good.frames[0]], False),
        ([good.close], False),
        ([b""], False),
        ([b"\xff\xff rubbish"], False),
        ([good.open, good.open], False),
        ([good.open, b""], False),
        ([good.open, b"\xff\xff"], False),
        ([], True),
    ):
        refusal = await wire.refused_stream(replica.replica_id, messages, end=end)
        refusal.check(Reason.BAD_FIELD)
    await still_good(room, wire, replica)


# --- frames -----------------------------------------------------------------------------------


def stored(*pieces: tuple[int, bytes, bytes], disk: int = 0) -> Frame:
    """(index, stored bytes, plain bytes) as a frame whose digests are right."""
    return Frame(
        disk,
        tuple(index for index, _, _ in pieces),
        tuple(len(kept) for _, kept, _ in pieces),
        b"".join(digest(plain) for _, _, plain in pieces),
        b"".join(kept for _, kept, _ in pieces),
        b"".join(digest(kept) for _, kept, _ in pieces),
    )


def packed(kept: bytes) -> Frame:
    return stored((3, kept, PLAIN))


def message(frame: Frame, **changes: object) -> bytes:
    """A frame as bytes, with fields that no value of ours could hold."""
    made = request_to_message(frame)
    for key, value in changes.items():
        if isinstance(value, list):
            del getattr(made.clusters, key)[:]
            getattr(made.clusters, key).extend(value)
        else:
            setattr(made.clusters, key, value)
    return made.SerializeToString()


def descriptor(bits: int, extra: bytes = b"") -> bytes:
    """PACKED with bits set in its frame header, and what they announce."""
    return PACKED[:4] + bytes([PACKED[4] | bits]) + extra + PACKED[5:]


GOOD = raw_frame(0, {3: PLAIN, 4: b""})
SIZELESS = zstandard.ZstdCompressor(level=1, write_content_size=False).compress(PLAIN)
HALF = zstandard.ZstdCompressor(level=1).compress(PLAIN[:32_768])
UNPADDED = b"c" * 65_536
ZERO_CLAIM = Frame(0, (3,), (0,), digest(PLAIN), b"", EMPTY_DIGEST)
MANY = 1_025
ZEROS = Frame(0, tuple(range(MANY)), (0,) * MANY, b"z" * 16 * MANY, b"", b"s" * 16 * MANY)
FRAMES: dict[str, tuple[list[Frame | bytes], Reason]] = {
    "stored digest": ([replace(GOOD, stored_digests=b"?" * 32)], Reason.DIGEST_MISMATCH),
    "plain digest of raw": ([replace(GOOD, digests=b"?" * 32)], Reason.DIGEST_MISMATCH),
    "plain digest of zero": ([ZERO_CLAIM], Reason.DIGEST_MISMATCH),
    "stored digest of zero": (
        [Frame(0, (3,), (0,), ZERO_CLUSTER_DIGEST, b"", b"?" * 16)],
        Reason.DIGEST_MISMATCH,
    ),
    "one bit of the payload": (
        [replace(GOOD, payload=b"P" + GOOD.payload[1:])],
        Reason.DIGEST_MISMATCH,
    ),
    "behind the disk": ([raw_frame(0, {160: PLAIN})], Reason.CLUSTER_OUT_OF_RANGE),
    "far behind the disk": ([raw_frame(0, {(1 << 47) - 1: PLAIN})], Reason.CLUSTER_OUT_OF_RANGE),
    "beyond every disk": ([message(GOOD, indexes=[3, 1 << 63])], Reason.BAD_FIELD),
    "a disk that is not there": ([message(GOOD, disk=2)], Reason.BAD_FIELD),
    "twice in a frame": ([message(GOOD, indexes=[3, 3])], Reason.BAD_FIELD),
    "twice in two frames": ([GOOD, raw_frame(0, {4: PLAIN})], Reason.BAD_FIELD),
    "an empty frame": ([cycle_pb2.ReplicateRequest(clusters={}).SerializeToString()],
                       Reason.BAD_FIELD),
    "a length too few": ([message(GOOD, stored_bytes=[65_536])], Reason.BAD_FIELD),
    "a length too long": ([message(GOOD, stored_bytes=[65_537, 0])], Reason.BAD_FIELD),
    "lengths beside the payload": ([message(GOOD, stored_bytes=[65_535, 0])], Reason.BAD_FIELD),
    "a digest too few": ([message(GOOD, digests=b"d" * 16)], Reason.BAD_FIELD),
    "a stored digest too few": ([message(GOOD, stored_digests=b"d" * 31)], Reason.BAD_FIELD),
    "payload above 1 MiB": (
        [stored(*((i, PLAIN, PLAIN) for i in range(17)))],
        Reason.FRAME_TOO_LARGE,
    ),
    "more than 1,024 clusters": ([ZEROS], Reason.FRAME_TOO_LARGE),
    "two zstd frames": ([packed(PACKED + PACKED)], Reason.BAD_COMPRESSION),
    "no content size": ([packed(SIZELESS)], Reason.BAD_COMPRESSION),
    "a wrong content size": ([packed(HALF)], Reason.BAD_COMPRESSION),
    "a dictionary": ([packed(descriptor(1, b"\x07"))], Reason.BAD_COMPRESSION),
    "a reserved bit": ([packed(descriptor(8))], Reason.BAD_COMPRESSION),
    "trailing bytes": ([packed(PACKED + b"\0" * 5)], Reason.BAD_COMPRESSION),
    "cut short": ([packed(PACKED[:-3])], Reason.BAD_COMPRESSION),
    "no zstd at all": ([packed(b"hello, cluster")], Reason.BAD_COMPRESSION),
    "one byte": ([packed(b"\x28")], Reason.BAD_COMPRESSION),
    "the last cluster not padded": (
        [stored((1, UNPADDED, UNPADDED), disk=1)],
        Reason.BAD_FIELD,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FRAMES)
async def test_frames_that_are_refused(wire: Wire, shared: Replica, name: str) -> None:
    frames, reason = FRAMES[name]
    refusal = await wire.refused_stream(shared.replica_id, [shared.next().open, *frames])
    refusal.check(reason)
    assert refusal.facts["field"].startswith("clusters."), refusal


CONTENT: dict[str, tuple[Frame, Reason]] = {
    "plain digest of zstd": (stored((3, PACKED, b"other")), Reason.DIGEST_MISMATCH),
    "the last cluster not padded": (
        stored((1, zstandard.ZstdCompressor().compress(UNPADDED), UNPADDED), disk=1),
        Reason.BAD_FIELD,
    ),
}


@pytest.mark.parametrize("name", CONTENT)
async def test_with_verify_before_ack_the_content_is_looked_at(
    room: NodeRoom, wire: Wire, name: str
) -> None:
    replica = await begun(room, wire)
    await room.set(verify="before-ack")
    try:
        frame, reason = CONTENT[name]
        refusal = await wire.refused_stream(replica.replica_id, [replica.next().open, frame])
        refusal.check(reason)
        await still_good(room, wire, replica)
    finally:
        await room.set(verify="after-ack")


async def test_a_message_above_the_receive_limit(room: NodeRoom, wire: Wire) -> None:
    replica = await begun(room, wire)
    refusal = await wire.refused_stream(replica.replica_id, [replica.next().open, bytes(5 << 20)])
    assert refusal.code == "RESOURCE_EXHAUSTED", refusal
    await still_good(room, wire, replica)


# --- close, and streams that end too early ----------------------------------------------------

CLOSES: dict[str, tuple[dict[str, object], Reason, str]] = {
    "clusters": ({"clusters": 99}, Reason.DIGEST_MISMATCH, "close.clusters"),
    "digest": ({"cycle_digest": b"?" * 16}, Reason.DIGEST_MISMATCH, "close.cycle_digest"),
    "short digest": ({"cycle_digest": b"?"}, Reason.BAD_FIELD, "close.cycle_digest"),
    "nvram": ({"nvram": b"no zstd"}, Reason.BAD_FIELD, "close.nvram"),
    "nvram too long": ({"nvram": bytes((1 << 20) + 1)}, Reason.BAD_FIELD, "close.nvram"),
    "tpm": ({"tpm_state": b"no zstd"}, Reason.BAD_FIELD, "close.tpm_state"),
}


@pytest.mark.parametrize("name", CLOSES)
async def test_closes_that_are_refused(wire: Wire, shared: Replica, name: str) -> None:
    change, reason, field = CLOSES[name]
    good = shared.next()
    bad = replace(good.close, **change)  # type: ignore[arg-type]
    refusal = await wire.refused_stream(shared.replica_id, [good.open, *good.frames, bad])
    refusal.check(reason, field)


async def test_after_all_that_the_disks_are_what_was_acknowledged(
    room: NodeRoom, wire: Wire, shared: Replica
) -> None:
    assert shared.seq >= 1
    await room.check(wire, shared)


@pytest.mark.parametrize("how", ["half-closed", "reset", "connection gone"])
async def test_a_truncated_stream_is_resumed(room: NodeRoom, wire: Wire, how: str) -> None:
    replica = await begun(room, wire)
    frames = [raw_frame(0, {i: cluster(f"{how} {i} ")}) for i in range(20, 60)]
    whole = replica.next(frames, resume=True)
    async with room.wire() as first:
        if how == "half-closed":
            said = [whole.open, *frames[:30]]
            refusal = await first.refused_stream(replica.replica_id, said, end=True)
            refusal.check(Reason.BAD_FIELD, "body")
        else:
            stream = first.stream(replica.replica_id)
            for said in [whole.open, *frames[:32]]:
                await stream.say(said)
            # The node has told how far it is: what came so far is in its hands.
            await stream.until("durable")
            if how == "reset":
                stream.call.cancel()
    await room.check(wire, replica)
    stream = wire.stream(replica.replica_id)
    await stream.say(whole.open)
    had = (await stream.until("accepted")).accepted.durable_frames
    assert had > 0, "what had come was thrown away"
    if how == "reset":
        # A cluster that came before the cut is not taken again behind it.
        await stream.say(frames[0])
        refusal = await stream.refusal()
        refusal.check(Reason.BAD_FIELD, "clusters.indexes")
    stream.call.cancel()
    await room.send(wire, replica, whole)
    await room.check(wire, replica)
    await still_good(room, wire, replica)


async def test_two_senders_for_one_replica_at_once(room: NodeRoom, wire: Wire) -> None:
    """The later one wins; the earlier hears why, and nothing of both gets mixed."""
    replica = await begun(room, wire)
    mine = [raw_frame(0, {i: cluster(f"mine {i} ")}) for i in range(10, 20)]
    other = [raw_frame(0, {i: cluster(f"other {i} ")}) for i in range(15, 25)]
    one = replica.next(mine)
    two = replica.next(other, cycle_id=b"second sender's!")
    stream = wire.stream(replica.replica_id)
    for said in [one.open, *mine[:8]]:
        await stream.say(said)
    await stream.until("accepted")
    async with room.wire() as second:
        acked = asyncio.create_task(room.send(second, replica, two))
        (await stream.refusal()).check(Reason.BUSY)
        await acked
    late = await wire.refused_stream(replica.replica_id, [one.open])
    late.check(Reason.SEQ_GAP, "open.seq")
    await room.check(wire, replica)
    follow = replica.next()
    follow = make_cycle(
        3, replica.digest, follow.frames, epoch=replica.epoch, since=b"second sender's!"
    )
    opened = replace(follow.open, replica_id=replica.replica_id)
    await room.send(wire, replica, Sent(opened, follow.frames, follow.close))
    await room.check(wire, replica)
