"""Every rule a frame must keep is refused by name before anything is written."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from node.disk.frame_check import SeenClusters, check_frame
from node.disk.zstd_frame import frame_fault
from vmreplica.core.cycle import CLUSTER_BYTES, EMPTY_DIGEST, Disk, Frame, digest
from vmreplica.core.problems import Problem, Reason
from vmreplica.testing.frame_maker import make_frame

DISK = Disk("vda", 100 * CLUSTER_BYTES + 512)
PLAIN = b"some text " * 6_553 + b"123456"
assert len(PLAIN) == CLUSTER_BYTES


def zstd(data: bytes, **options: bool) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, **options)
    return zstandard.ZstdCompressor(compression_params=parameters).compress(data)


def frame_of(stored: bytes, plain: bytes = PLAIN, index: int = 3) -> Frame:
    return Frame(0, (index,), (len(stored),), digest(plain), stored, digest(stored))


def check(frame: Frame, *, verify_plain: bool = False, seen: SeenClusters | None = None) -> None:
    check_frame(frame, DISK, seen or SeenClusters(DISK), verify_plain=verify_plain)


def refused(frame: Frame, *, verify_plain: bool = False) -> tuple[Reason, str]:
    with pytest.raises(Problem) as caught:
        check(frame, verify_plain=verify_plain)
    assert caught.value.remedy and caught.value.message
    message, _, field = caught.value.field.partition(".")
    assert message == "clusters", "fields are named as on the wire"
    return caught.value.reason, field


def with_window(exponent: int) -> bytes:
    """A frame of one RLE block with an explicit window descriptor."""
    head = b"\x28\xb5\x2f\xfd" + bytes([0x80, exponent << 3]) + struct.pack("<I", CLUSTER_BYTES)
    return head + (1 | 1 << 1 | CLUSTER_BYTES << 3).to_bytes(3, "little") + b"x"


SOUND = zstd(PLAIN)
BAD_FRAMES = {
    "not zstd": b"no frame at all",
    "size missing": zstd(PLAIN, write_content_size=False),
    "another size": zstd(PLAIN[:-1]),
    "two frames": zstd(PLAIN[: CLUSTER_BYTES // 2]) + zstd(PLAIN[CLUSTER_BYTES // 2 :]),
    "something behind it": SOUND + b"\0",
    "cut": SOUND[:-1],
    "window too large": with_window(20),
    "a skippable frame first": struct.pack("<II", 0x184D2A50, 0) + SOUND,
    "reserved bit": SOUND[:4] + bytes([SOUND[4] | 0x08]) + SOUND[5:],
    "with a dictionary": SOUND[:4] + bytes([SOUND[4] | 0x01]) + b"\x07" + SOUND[5:],
}


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_a_frame_that_qemu_could_not_read_is_refused(name: str) -> None:
    assert refused(frame_of(BAD_FRAMES[name])) == (Reason.BAD_COMPRESSION, "payload")


@pytest.mark.parametrize(
    "stored",
    [SOUND, zstd(PLAIN, write_checksum=True), with_window(10), zstd(bytes(CLUSTER_BYTES))],
)
def test_a_sound_frame_is_taken(stored: bytes) -> None:
    assert frame_fault(stored) == ""
    check(frame_of(stored))


@given(st.binary(max_size=CLUSTER_BYTES), st.integers(1, 19), st.booleans())
@settings(max_examples=100, deadline=None)
def test_every_frame_of_the_library_is_taken(data: bytes, level: int, checksum: bool) -> None:
    options = zstandard.ZstdCompressionParameters.from_level(level, write_checksum=checksum)
    whole = data.ljust(CLUSTER_BYTES, b"\0")
    stored = zstandard.ZstdCompressor(compression_params=options).compress(whole)
    assert frame_fault(stored) == ""


@given(st.binary(max_size=80))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_judged_without_an_accident(data: bytes) -> None:
    assert isinstance(frame_fault(b"\x28\xb5\x2f\xfd" + data), str)


def test_shapes_that_do_not_fit_are_refused() -> None:
    frame = make_frame({1: b"a", 2: None, 3: b"c"})
    cases = {
        "stored_bytes": replace(frame, stored_bytes=frame.stored_bytes[:2]),
        "digests": replace(frame, digests=frame.digests[:-1]),
        "stored_digests": replace(frame, stored_digests=frame.stored_digests + b"\0"),
        "payload": replace(frame, payload=frame.payload + b"x"),
    }
    for field, broken in cases.items():
        assert refused(broken) == (Reason.BAD_FIELD, field)
    short = replace(frame, payload=frame.payload[:-1])
    assert refused(short) == (Reason.BAD_FIELD, "payload")
    assert refused(Frame(0, (), (), b"", b"", b"")) == (Reason.BAD_FIELD, "indexes")


def test_frames_that_are_too_large_are_refused() -> None:
    many = make_frame(dict.fromkeys(range(1_025), None))
    assert refused(many)[0] is Reason.FRAME_TOO_LARGE
    raw = make_frame({i: bytes([i + 1]) * CLUSTER_BYTES for i in range(17)}, compress=False)
    assert refused(raw)[0] is Reason.FRAME_TOO_LARGE
    sixteen = {i: bytes([i + 1]) * CLUSTER_BYTES for i in range(16)}
    check(make_frame(sixteen, compress=False))


def test_clusters_outside_the_disk_and_repeated_ones_are_refused() -> None:
    assert refused(frame_of(SOUND, index=101)) == (Reason.CLUSTER_OUT_OF_RANGE, "indexes")
    assert refused(frame_of(SOUND, index=-1)) == (Reason.CLUSTER_OUT_OF_RANGE, "indexes")
    check(frame_of(SOUND, index=100))
    frame = make_frame({4: b"a", 5: b"b"})
    assert refused(replace(frame, indexes=(4, 4))) == (Reason.BAD_FIELD, "indexes")
    seen = SeenClusters(DISK)
    seen.add(5)
    with pytest.raises(Problem) as caught:
        check(frame, seen=seen)
    assert caught.value.value == "5"
    larger = replace(frame_of(SOUND), stored_bytes=(70_000,), payload=bytes(70_000))
    assert refused(larger) == (Reason.BAD_FIELD, "stored_bytes")


def test_digests_that_do_not_agree_are_refused() -> None:
    other = bytes(16)
    zero = make_frame({1: None})
    raw = make_frame({1: PLAIN}, compress=False)
    packed = frame_of(SOUND)
    for frame in (zero, raw, packed):
        broken = replace(frame, stored_digests=other)
        assert refused(broken) == (Reason.DIGEST_MISMATCH, "stored_digests")
    for frame in (zero, raw):
        assert refused(replace(frame, digests=other)) == (Reason.DIGEST_MISMATCH, "digests")
    assert zero.stored_digests == EMPTY_DIGEST


def test_what_a_frame_holds_is_looked_at_before_the_ack_only_on_demand() -> None:
    lying = replace(frame_of(SOUND), digests=bytes(16))
    check(lying)
    assert refused(lying, verify_plain=True) == (Reason.DIGEST_MISMATCH, "digests")
    garbled = bytearray(SOUND)
    garbled[len(garbled) // 2] ^= 0xFF
    broken = frame_of(bytes(garbled))
    if frame_fault(bytes(garbled)) == "":
        check(broken)
    with pytest.raises(Problem):
        check(broken, verify_plain=True)


def test_a_last_cluster_without_padding_is_refused() -> None:
    data = bytes([7]) * CLUSTER_BYTES
    assert refused(frame_of(data, data, index=100)) == (Reason.BAD_FIELD, "payload")
    padded = bytes([7]) * 512 + bytes(CLUSTER_BYTES - 512)
    check(frame_of(padded, padded, index=100))
    tail = zstd(data[:512])
    assert refused(frame_of(tail, data[:512], index=100))[0] is Reason.BAD_COMPRESSION
