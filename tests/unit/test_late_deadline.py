"""A deadline that passes between sealing and committing must not cost what was sealed."""

from __future__ import annotations

import pytest

from tests.unit.replica_world import Line, World, cluster, make_cycle, raw_frame
from tests.unit.test_receiver import in_world, read
from vmreplica.core.cycle import Accepted, Acknowledged
from vmreplica.core.problems import Problem, Reason


def test_layers_sealed_before_a_refused_commit_are_in_the_next_one() -> None:
    async def story(world: World) -> None:
        node = await world.start("r1")
        record = await world.create(node)
        frame = raw_frame(0, {1: cluster("a")})
        sent = make_cycle(1, b"", [frame], resume=True)
        standing = node.role.membership
        may_act = standing.may_act

        def until_sealed() -> bool:
            return may_act() and not world.disk.directory(f"{record.folder_path}/layers").entries

        line = Line(node)
        line.send(sent.open)
        assert await line.next() == Accepted(0)
        standing.may_act = until_sealed  # type: ignore[method-assign]
        line.send(frame, sent.close)
        with pytest.raises(Problem) as caught:
            while True:
                await line.next()
        assert caught.value.reason is Reason.LEASE_LOST
        standing.may_act = may_act  # type: ignore[method-assign]
        again = Line(node)
        again.send(sent.open)
        assert await again.next() == Accepted(1)
        again.send(sent.close)
        reply = await again.next()
        assert isinstance(reply, Acknowledged)
        assert (await read(node, "vda"))[1] == frame.digests

    in_world(story)
