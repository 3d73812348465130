"""From extents to frames, and their digests while they are sent."""

from __future__ import annotations

import random

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from vmreplica.core.cycle import (
    CLUSTER_BYTES,
    DIGEST_BYTES,
    EMPTY_DIGEST,
    ZERO_CLUSTER_DIGEST,
    ZERO_DIGEST,
    Disk,
    Frame,
    cycle_digest,
    digest,
)
from vmreplica.core.extents import ClusterRun, Extent, cluster_runs
from vmreplica.core.frame_encode import encode_frame
from vmreplica.core.frame_plan import FramePlan
from vmreplica.core.sending import RunningCycleDigest, Window

K64 = CLUSTER_BYTES


@st.composite
def extents(draw: st.DrawFn) -> tuple[list[Extent], int]:
    """Rising extents in units of 512 bytes, and the size of their disk."""
    at, found = 0, []
    for _ in range(draw(st.integers(0, 12))):
        at += draw(st.integers(0, 300)) * 512
        length = draw(st.integers(1, 400)) * 512
        found.append(Extent(at, length, zero=draw(st.booleans())))
        at += length
    return found, at + draw(st.integers(0, 200)) * 512 or 512


@settings(max_examples=300)
@given(extents())
def test_runs_cover_exactly_what_was_touched(case: tuple[list[Extent], int]) -> None:
    found, size = case
    sectors: dict[int, set[str]] = {}
    whole: dict[int, int] = {}
    for extent in found:
        for sector in range(extent.offset // 512, extent.end // 512):
            sectors.setdefault(sector // 128, set()).add("zero" if extent.zero else "data")
            whole[sector // 128] = whole.get(sector // 128, 0) + extent.zero
    last = (size - 1) // K64
    full = {c: (size - c * K64) // 512 if c == last else 128 for c in sectors}
    zeros = {c for c, kinds in sectors.items() if kinds == {"zero"} and whole[c] == full[c]}
    for keep in (True, False):
        runs = cluster_runs(found, size, keep_zeros=keep)
        indexes = [i for run in runs for i in range(run.first, run.end)]
        assert indexes == sorted(set(indexes))
        data = {i for run in runs if not run.zero for i in range(run.first, run.end)}
        touched = {c for c, kinds in sectors.items() if "data" in kinds}
        if keep:
            assert {i for r in runs if r.zero for i in range(r.first, r.end)} == zeros
            assert data == set(sectors) - zeros
        else:
            assert data == touched
            assert not any(run.zero for run in runs)


@settings(max_examples=200)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 40), st.integers(1, 60), st.booleans()), max_size=20),
        min_size=1,
        max_size=3,
    )
)
def test_frames_carry_every_cluster_once_within_the_limits(
    shapes: list[list[tuple[int, int, bool]]],
) -> None:
    disks = []
    for shape in shapes:
        at, runs = 0, []
        for gap, count, zero in shape:
            runs.append(ClusterRun(at + gap, count * (20 if zero else 1), zero))
            at = runs[-1].end
        disks.append(runs)
    plan = FramePlan(disks)
    frames = list(plan.frames())
    assert len(frames) == plan.frame_count
    assert [frame.number for frame in frames] == list(range(len(frames)))
    seen = [(frame.disk, index) for frame in frames for index in frame.indexes]
    wanted = [(d, i) for d, runs in enumerate(disks) for r in runs for i in range(r.first, r.end)]
    assert seen == wanted
    assert plan.clusters == tuple(sum(r.count for r in runs) for runs in disks)
    for frame in frames:
        assert sum(r.count for r in frame.runs if not r.zero) <= 16
        assert 1 <= len(frame.indexes) <= 1024
    for first in (0, 1, len(frames) // 2, len(frames) - 1, len(frames)):
        assert list(plan.frames(max(0, first))) == frames[max(0, first) :]


def test_a_resume_far_into_a_large_plan() -> None:
    plan = FramePlan([[ClusterRun(0, 160_000)]])
    assert plan.frame_count == 10_000
    spec = next(plan.frames(9_321))
    assert (spec.number, spec.indexes[0], len(spec.indexes)) == (9_321, 9_321 * 16, 16)


def test_scattered_clusters_share_frames() -> None:
    plan = FramePlan([[ClusterRun(n * 100, 1) for n in range(1_000)]])
    assert plan.frame_count == 63


def _frames(seed: int) -> tuple[list[Frame], list[Disk], list[dict[int, bytes]], FramePlan]:
    rng = random.Random(seed)
    disks = [Disk("vda", 400 * K64), Disk("vdb", 3 * K64)]
    runs = [
        [ClusterRun(0, 5), ClusterRun(9, 30, zero=True), ClusterRun(60, 70)],
        [ClusterRun(1, 2)],
    ]
    plan = FramePlan(runs)
    clusters: list[dict[int, bytes]] = [{}, {}]
    frames = []
    for spec in plan.frames():
        parts = []
        for run in spec.runs:
            for index in range(run.first, run.end):
                kind = rng.choice(("zero", "text", "noise"))
                data = {
                    "zero": bytes(K64),
                    "text": bytes([index % 256, 1]) * (K64 // 2),
                    "noise": rng.randbytes(K64),
                }[kind]
                data = bytes(K64) if run.zero else data
                clusters[spec.disk][index] = digest(data)
                if not run.zero:
                    parts.append(data)
        frames.append(encode_frame(spec, b"".join(parts), zstandard.ZstdCompressor(level=1)))
    return frames, disks, clusters, plan


@pytest.mark.parametrize("seed", range(4))
def test_the_running_digest_is_the_cycles(seed: int) -> None:
    frames, disks, clusters, plan = _frames(seed)
    running = RunningCycleDigest(ZERO_DIGEST, 7, disks, plan.clusters)
    for number, frame in enumerate(frames):
        running.add(number, frame)
        running.add(0, frames[0])  # resent: counted once
    assert running.finish() == cycle_digest(ZERO_DIGEST, 7, disks, clusters)
    assert running.clusters == sum(map(len, clusters))


def test_the_running_digest_of_nothing() -> None:
    disks = [Disk("vda", K64), Disk("vdb", K64)]
    running = RunningCycleDigest(ZERO_DIGEST, 1, disks, (0, 0))
    assert running.finish() == cycle_digest(ZERO_DIGEST, 1, disks, [{}, {}])


def test_the_running_digest_refuses_gaps() -> None:
    frames, disks, _, plan = _frames(0)
    running = RunningCycleDigest(ZERO_DIGEST, 1, disks, plan.clusters)
    with pytest.raises(ValueError, match="out of order"):
        running.add(1, frames[1])
    running.add(0, frames[0])
    with pytest.raises(ValueError, match="clusters of"):
        running.finish()


def test_encoded_frames_decode() -> None:
    frames, _, clusters, _ = _frames(3)
    kinds = set()
    for frame in frames:
        at = 0
        for place, (index, size) in enumerate(zip(frame.indexes, frame.stored_bytes, strict=True)):
            here = slice(place * DIGEST_BYTES, (place + 1) * DIGEST_BYTES)
            stored = frame.payload[at : at + size]
            at += size
            assert frame.digests[here] == clusters[frame.disk][index]
            assert frame.stored_digests[here] == (digest(stored) if size else EMPTY_DIGEST)
            if size == 0:
                assert frame.digests[here] == ZERO_CLUSTER_DIGEST
                kinds.add("zero")
            elif size == K64:
                assert digest(stored) == frame.digests[here]
                kinds.add("raw")
            else:
                assert zstandard.frame_content_size(stored) == K64
                assert digest(zstandard.decompress(stored)) == frame.digests[here]
                kinds.add("zstd")
    assert kinds == {"zero", "raw", "zstd"}


def test_the_window() -> None:
    window = Window(10, limit_bytes=100)
    assert window.fits(1_000), "one frame may always go"
    window.sent(60)
    assert window.fits(40)
    assert not window.fits(41)
    window.sent(40)
    window.received(10)
    assert window.bytes == 100
    window.received(11)
    assert window.bytes == 40
    window.received(99)
    assert window.bytes == 0
