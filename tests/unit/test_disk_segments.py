"""A cluster counts once a cycle, whatever segment of the cycle holds it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from node.service.replica_cycle import IncomingCycle
from tests.unit.disk_room import VDA, memory_folder
from vmreplica.core.cycle import ZERO_DIGEST, CycleKind, CycleOpen
from vmreplica.core.manifest import Draft
from vmreplica.core.problems import Problem, Reason
from vmreplica.testing.frame_maker import make_frame


def opened() -> CycleOpen:
    return CycleOpen(
        replica_id="r",
        epoch=1,
        seq=1,
        parent_digest=ZERO_DIGEST,
        kind=CycleKind.FULL,
        disks=(VDA,),
        cycle_id=bytes(16),
    )


@pytest.mark.parametrize("resumed", [False, True], ids=["one owner", "behind the drafts"])
async def test_a_cluster_of_an_earlier_segment_is_refused(resumed: bool) -> None:
    folder = await memory_folder()
    cycle = IncomingCycle(folder, opened(), (), segment_bytes=1)
    await cycle.append(make_frame({1: b"a", 7: b"b"}))
    assert cycle.segment_is_full
    first = await cycle.seal()
    assert len(first) == 1 and not cycle._writers
    cycle.named()
    if resumed:
        drafts = [replace(x, draft=Draft(cycle_id=bytes(16), frames=1)) for x in first]
        cycle = IncomingCycle(folder, opened(), drafts, segment_bytes=1)
        await cycle.restore()
    with pytest.raises(Problem) as caught:
        await cycle.append(make_frame({8: b"c", 7: b"again"}))
    assert caught.value.reason is Reason.BAD_FIELD and caught.value.value == "7"
    await cycle.append(make_frame({8: b"c"}))
    assert [x.from_seq for x in await cycle.seal()] == [1]
    assert (cycle.tally.frames, cycle.tally.clusters) == (2, 3)
