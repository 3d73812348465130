"""What a cycle is built on, for every relation of the owner's head to our checkpoints."""

from __future__ import annotations

import pytest

from node.service.replication_basis import find_basis, full_basis
from vmreplica.core.cycle import ZERO_DIGEST, CycleKind, Disk
from vmreplica.ports.replica_link import ReplicaHead
from vmreplica.testing import sim_loop
from vmreplica.testing.fake_change_source import FakeChangeSource, ModelVm
from vmreplica.testing.fake_clock import FakeClock

A, B, C = (bytes([n]) * 16 for n in b"abc")


def head(acked: bytes, seq: int = 7) -> ReplicaHead:
    return ReplicaHead(
        replica_id="r", trust_group="g", owner="r1", epoch=1, acked_seq=seq, acked_digest=b"d" * 16,
        acked_cycle_id=acked, acked_time_ms=0, disks=(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("own", "the_head", "settled", "since", "left"),
    [
        ((A,), head(A), True, A, (A,)),
        ((A, B), head(A), True, A, (A,)),
        ((A, B), head(B), True, B, (B,)),
        ((A, B), head(A), False, A, (A, B)),
        ((A,), head(C), True, A, (A,)),
        ((A, B), head(C), True, A, (A, B)),
        ((), head(C), True, None, ()),
        ((A, B), head(b"", 0), True, b"", ()),
        ((A,), head(b"", 0), False, b"", (A,)),
    ],
)
def test_basis(
    own: tuple[bytes, ...],
    the_head: ReplicaHead,
    settled: bool,
    since: bytes | None,
    left: tuple[bytes, ...],
) -> None:
    async def main(loop: sim_loop.SimLoop) -> None:
        source = FakeChangeSource(FakeClock())
        vm = source.add(ModelVm("u", (Disk("vda", 65_536),)))
        vm.trackers = {cycle_id: {} for cycle_id in own}
        basis = await find_basis(source, "u", the_head, settled=settled)
        assert await source.checkpoints("u") == left
        if since is None:
            assert basis is None
            return
        assert basis is not None
        assert basis.since_cycle_id == since
        assert basis.kind is (CycleKind.DELTA if since else CycleKind.FULL)
        assert basis.seq == the_head.acked_seq + 1
        assert basis.parent_digest == (the_head.acked_digest if the_head.acked_seq else ZERO_DIGEST)

    sim_loop.run(main, 1)


def test_full_on_top_of_any_head() -> None:
    basis = full_basis(head(C))
    assert (basis.kind, basis.seq, basis.since_cycle_id) == (CycleKind.FULL, 8, b"")
    assert basis.parent_digest == b"d" * 16
