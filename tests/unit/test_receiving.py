"""Core rules of receiving: the table of refusals, and digests that converge however cut."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmreplica.core.cycle import (
    DIGEST_BYTES,
    ZERO_DIGEST,
    CycleClose,
    CycleKind,
    CycleOpen,
    Disk,
    Frame,
    cycle_digest,
)
from vmreplica.core.manifest import Draft, Head, Layer
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.receiving import (
    CycleTally,
    ReplicaPosition,
    check_open,
    drafts_of,
    same_cycle,
)

DISKS = (Disk("vda", 40 * 65_536), Disk("vdb", 3 * 65_536))
ID, PARENT, HEAD = b"i" * 16, b"p" * 16, b"h" * 16
EMPTY = ReplicaPosition("r", 4, "n1", Head(), (), DISKS)
AT = ReplicaPosition(
    "r", 4, "n1", Head(seq=6, cycle_id=HEAD, digest=PARENT, parent_digest=b"g" * 16),
    (b"1" * 16, HEAD), DISKS,
)  # fmt: skip
OPEN = CycleOpen(
    replica_id="r", epoch=4, seq=7, parent_digest=PARENT, kind=CycleKind.DELTA,
    disks=DISKS, cycle_id=ID, since_cycle_id=HEAD,
)  # fmt: skip


@pytest.mark.parametrize(
    "good",
    [
        OPEN,
        replace(OPEN, since_cycle_id=b"1" * 16),
        replace(OPEN, kind=CycleKind.FULL, since_cycle_id=b""),
        replace(OPEN, kind=CycleKind.RESYNC),
        replace(OPEN, disks=DISKS[::-1]),
    ],
)
def test_accepted(good: CycleOpen) -> None:
    assert check_open(good, AT) is None


def test_the_first_cycle_is_full() -> None:
    first = replace(OPEN, seq=1, parent_digest=ZERO_DIGEST, since_cycle_id=b"", kind=CycleKind.FULL)
    assert check_open(first, EMPTY) is None
    for kind, reason in (
        (CycleKind.DELTA, Reason.SEQ_GAP),
        (CycleKind.RESYNC, Reason.PARENT_MISMATCH),
    ):
        with pytest.raises(Problem) as caught:
            check_open(replace(first, kind=kind), EMPTY)
        assert caught.value.reason is reason
        assert "FULL" in caught.value.remedy


REFUSED = [
    ("an older epoch", {"epoch": 3}, Reason.STALE_EPOCH, "open.epoch"),
    ("a newer epoch", {"epoch": 5}, Reason.NOT_OWNER, "open.epoch"),
    ("a short id", {"cycle_id": b"x"}, Reason.BAD_FIELD, "open.cycle_id"),
    ("a short parent", {"parent_digest": b""}, Reason.BAD_FIELD, "open.parent_digest"),
    ("a short since", {"since_cycle_id": b"x"}, Reason.BAD_FIELD, "open.since_cycle_id"),
    ("a counted FULL", {"kind": CycleKind.FULL}, Reason.BAD_FIELD, "open.since_cycle_id"),
    ("a huge XML", {"domain_xml": bytes((1 << 20) + 1)}, Reason.BAD_FIELD, "open.domain_xml"),
    ("an old id", {"cycle_id": b"1" * 16}, Reason.PARENT_MISMATCH, "open.cycle_id"),
    ("the head, other seq", {"cycle_id": HEAD}, Reason.PARENT_MISMATCH, "open.seq"),
    ("the head, other parent", {"cycle_id": HEAD, "seq": 6}, Reason.PARENT_MISMATCH, "open.parent_digest"),
    ("a gap", {"seq": 8}, Reason.SEQ_GAP, "open.seq"),
    ("another parent", {"parent_digest": b"q" * 16}, Reason.PARENT_MISMATCH, "open.parent_digest"),
    ("unknown since", {"since_cycle_id": b"u" * 16}, Reason.SEQ_GAP, "open.since_cycle_id"),
    ("RESYNC of an older", {"kind": CycleKind.RESYNC, "since_cycle_id": b"1" * 16}, Reason.PARENT_MISMATCH, "open.since_cycle_id"),
    ("a missing disk", {"disks": DISKS[:1]}, Reason.DISK_SHAPE_CHANGED, "open.disks"),
    ("another size", {"disks": (DISKS[0], Disk("vdb", 512))}, Reason.DISK_SHAPE_CHANGED, "open.disks"),
    ("half a sector", {"disks": (DISKS[0], Disk("vdb", 513))}, Reason.BAD_FIELD, "open.disks"),
    ("an empty disk", {"disks": (DISKS[0], Disk("vdb", 0))}, Reason.BAD_FIELD, "open.disks"),
    ("a disk twice", {"disks": (*DISKS, DISKS[0])}, Reason.BAD_FIELD, "open.disks"),
    ("an excluded disk", {"disks": (DISKS[0], Disk("vdb", 512, True))}, Reason.BAD_FIELD, "open.disks"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "reason", "field"), [x[1:] for x in REFUSED], ids=[x[0] for x in REFUSED]
)
def test_refused(changes: dict[str, object], reason: Reason, field: str) -> None:
    with pytest.raises(Problem) as caught:
        check_open(replace(OPEN, **changes), AT)
    assert (caught.value.reason, caught.value.field) == (reason, field)
    assert caught.value.remedy


def test_the_head_again_is_acknowledged_again() -> None:
    again = replace(OPEN, cycle_id=HEAD, seq=6, parent_digest=b"g" * 16)
    reply = check_open(again, AT)
    assert reply is not None
    assert (reply.seq, reply.cycle_digest, reply.duplicate, reply.epoch) == (6, PARENT, True, 4)


def test_same_cycle_looks_at_everything_that_counts() -> None:
    assert same_cycle(OPEN, replace(OPEN, resume=True, domain_xml=b"x"))
    for name, value in {
        "cycle_id": b"o" * 16, "epoch": 5, "seq": 8, "parent_digest": HEAD,
        "kind": CycleKind.RESYNC, "since_cycle_id": b"1" * 16, "disks": DISKS[::-1],
    }.items():  # fmt: skip
        assert not same_cycle(OPEN, replace(OPEN, **{name: value})), name


def test_drafts_of_one_cycle() -> None:
    layer = Layer(file="f", target="vda", from_seq=7, to_seq=7, size_bytes=512, bytes=1)
    mine = replace(layer, draft=Draft(cycle_id=ID, frames=3))
    other = replace(layer, draft=Draft(cycle_id=HEAD, frames=3))
    assert drafts_of((layer, mine, other), ID) == (mine,)


def frame(disk: int, indexes: tuple[int, ...], salt: int = 0) -> Frame:
    """Zero clusters whose digests are made up: the core does not look into payloads."""
    digests = b"".join(bytes([disk, salt, i % 256]) + bytes(13) for i in indexes)
    return Frame(disk, indexes, (0,) * len(indexes), digests, b"", digests)


BAD_FRAMES = [
    ("too many clusters", replace(frame(0, ()), indexes=tuple(range(1025))), Reason.FRAME_TOO_LARGE),
    ("too much payload", replace(frame(0, (1,)), payload=bytes((1 << 20) + 1)), Reason.FRAME_TOO_LARGE),
    ("no such disk", frame(2, (1,)), Reason.BAD_FIELD),
    ("nothing", frame(0, ()), Reason.BAD_FIELD),
    ("sizes missing", replace(frame(0, (1,)), stored_bytes=()), Reason.BAD_FIELD),
    ("a size too large", replace(frame(0, (1,)), stored_bytes=(65_537,)), Reason.BAD_FIELD),
    ("digests missing", replace(frame(0, (1,)), digests=b""), Reason.BAD_FIELD),
    ("stored digests missing", replace(frame(0, (1,)), stored_digests=b""), Reason.BAD_FIELD),
    ("payload missing", replace(frame(0, (1,)), stored_bytes=(9,)), Reason.BAD_FIELD),
    ("outside the disk", frame(1, (3,)), Reason.CLUSTER_OUT_OF_RANGE),
    ("below the disk", frame(1, (-1,)), Reason.CLUSTER_OUT_OF_RANGE),
    ("twice in a frame", frame(0, (2, 5, 2)), Reason.BAD_FIELD),
    ("twice in a cycle", frame(0, (8, 7)), Reason.BAD_FIELD),
]  # fmt: skip


@pytest.mark.parametrize(
    ("bad", "reason"), [x[1:] for x in BAD_FRAMES], ids=[x[0] for x in BAD_FRAMES]
)
def test_refused_frames_change_nothing(bad: Frame, reason: Reason) -> None:
    tally = CycleTally(DISKS)
    tally.take(frame(0, (7,)))
    before = tally.digest(PARENT, 7)
    with pytest.raises(Problem) as caught:
        tally.check(bad)
    assert caught.value.reason is reason
    assert (tally.frames, tally.clusters, tally.digest(PARENT, 7)) == (1, 1, before)


def test_close() -> None:
    tally = CycleTally(DISKS)
    tally.take(frame(0, (7,)))
    good = CycleClose(clusters=1, cycle_digest=tally.digest(PARENT, 7), point_time_ms=1)
    tally.check_close(OPEN, good)
    tally.check_close(OPEN, replace(good, nvram=bytes.fromhex("28b52ffd00")))
    for bad, reason in (
        (replace(good, clusters=2), Reason.DIGEST_MISMATCH),
        (replace(good, cycle_digest=ID), Reason.DIGEST_MISMATCH),
        (replace(good, nvram=b"plain"), Reason.BAD_FIELD),
        (replace(good, tpm_state=bytes.fromhex("28b52ffd") + bytes(1 << 20)), Reason.BAD_FIELD),
    ):
        with pytest.raises(Problem) as caught:
            tally.check_close(OPEN, bad)
        assert caught.value.reason is reason


CLUSTERS = st.lists(
    st.one_of(st.tuples(st.just(0), st.integers(0, 39)), st.tuples(st.just(1), st.integers(0, 2))),
    unique=True,
    max_size=43,
)


@given(CLUSTERS, st.data())
def test_any_order_any_frames_and_any_cut_behind_a_segment_give_one_digest(
    clusters: list[tuple[int, int]], data: st.DataObject
) -> None:
    """A stream cut and resumed behind drafts counts the same as one that never was."""
    frames, start = [], 0
    while start < len(clusters):
        disk = clusters[start][0]
        end = start
        limit = data.draw(st.integers(1, 5))
        while end < len(clusters) and clusters[end][0] == disk and end - start < limit:
            end += 1
        frames.append(frame(disk, tuple(index for _, index in clusters[start:end])))
        start = end
    cut = data.draw(st.integers(0, len(frames)))
    whole, resumed = CycleTally(DISKS), CycleTally(DISKS)
    sealed: list[dict[int, bytes]] = [{}, {}]
    for number, one in enumerate(frames):
        whole.check(one)
        whole.take(one)
        if number < cut:
            for place, index in enumerate(one.indexes):
                sealed[one.disk][index] = one.digests[16 * place : 16 * place + DIGEST_BYTES]
    for disk, digests in enumerate(sealed):
        resumed.restore(disk, digests)
    for one in frames[cut:]:
        resumed.check(one)
        resumed.take(one)
    for one in frames:
        with pytest.raises(Problem):
            resumed.check(one)
    pairs: list[dict[int, bytes]] = [{}, {}]
    for one in frames:
        for place, index in enumerate(one.indexes):
            pairs[one.disk][index] = one.digests[16 * place : 16 * place + DIGEST_BYTES]
    expected = cycle_digest(PARENT, 7, DISKS, pairs)
    assert whole.digest(PARENT, 7) == resumed.digest(PARENT, 7) == expected
    assert whole.clusters == resumed.clusters == len(clusters)
