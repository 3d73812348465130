"""ReplicationService of a node: messages in, messages out, roles, and what is refused."""

from __future__ import annotations

from collections.abc import Awaitable

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from node.api.replication_service import ReplicationService
from tests.support.primary_world import CAP, PrimaryWorld, in_world
from vmreplica.core.identity import Identity, Role, RoleKind
from vmreplica.core.problems import Problem, Reason
from vmreplica.v1 import replication_pb2 as pb
from vmreplica.v1 import types_pb2
from vmreplica.wire.call import Call

ROOT = Call.local()
POLICY = types_pb2.Policy(frequency_ms=5_000)


def caller(kind: RoleKind, cluster: str = "p") -> Call:
    return Call(identity=Identity(roles=(Role(cluster, kind, "x"),)))


async def refused(act: Awaitable[object]) -> Problem:
    with pytest.raises(Problem) as caught:
        await act
    return caught.value


def test_the_life_of_a_replication_in_messages() -> None:
    async def story(world: PrimaryWorld) -> None:
        api = ReplicationService(world.role, "p")
        enabled = await api.enable_replication(
            ROOT, pb.EnableReplicationRequest(vm="guest1", to=CAP, policy=POLICY)
        )
        assert enabled.changed
        shown = enabled.replication
        assert shown.state == types_pb2.REPLICATION_STATE_READY_FOR_INITIAL_REPLICATION
        assert shown.mode == types_pb2.MODE_PRIMARY
        assert shown.policy.frequency_ms == 5_000
        assert [d.target for d in shown.disks] == ["vda", "vdb"]
        assert not shown.HasField("last_cycle")
        started = await api.start_replication(ROOT, pb.StartReplicationRequest(vm="guest1"))
        assert started.changed and started.operation_id
        await world.until(lambda: world.replica.seq == 2)
        await world.clock.sleep(100)
        got = await api.get_replication(ROOT, pb.GetReplicationRequest(vm=shown.vm_uuid))
        shown = got.replication
        assert shown.state == types_pb2.REPLICATION_STATE_REPLICATING
        assert shown.health == types_pb2.HEALTH_NORMAL
        assert shown.acked_seq == shown.last_cycle.seq == 2
        assert shown.last_cycle.kind == types_pb2.CYCLE_KIND_DELTA
        assert shown.initial_done_bytes == shown.initial_total_bytes > 0
        assert (shown.replica_node, shown.epoch) == ("r1", 1)
        updated = await api.update_replication(
            ROOT,
            pb.UpdateReplicationRequest(vm="guest1", policy=types_pb2.Policy(compression="none")),
        )
        assert updated.changed
        assert updated.replication.policy.frequency_ms == 5_000
        assert updated.replication.policy.compression == "none"
        request = pb.SuspendReplicationRequest(vm="guest1")
        assert (await api.suspend_replication(ROOT, request)).changed
        assert not (await api.suspend_replication(ROOT, request)).changed
        assert (
            await api.resume_replication(ROOT, pb.ResumeReplicationRequest(vm="guest1"))
        ).changed
        problem = await refused(
            api.stop_initial_replication(ROOT, pb.StopInitialReplicationRequest(vm="guest1"))
        )
        assert problem.reason is Reason.STATE_REFUSES
        removed = await api.remove_replication(ROOT, pb.RemoveReplicationRequest(vm="guest1"))
        assert removed.changed
        assert not (await api.list_replications(ROOT, pb.ListReplicationsRequest())).items

    in_world(story)


def test_lists_are_filtered_and_paged() -> None:
    async def story(world: PrimaryWorld) -> None:
        api = ReplicationService(world.role, "p")
        await world.protect()

        async def names(text: str) -> list[str]:
            answer = await api.list_replications(ROOT, pb.ListReplicationsRequest(filter=text))
            return [item.vm_name for item in answer.items]

        assert await names("") == await names("state=Replicating") == ["guest1"]
        assert await names("state=Error,state=Replicating,vm_name=guest1") == ["guest1"]
        assert await names("vm_name=other") == []
        assert (await refused(names("colour=red"))).field == "filter"
        page = await api.list_replications(ROOT, pb.ListReplicationsRequest(page_size=1))
        assert page.next_page_token == ""

    in_world(story)


def test_roles_and_bad_requests() -> None:
    async def story(world: PrimaryWorld) -> None:
        api = ReplicationService(world.role, "p")
        enable = pb.EnableReplicationRequest(vm="guest1", to=CAP, policy=POLICY)
        strangers = (
            caller(RoleKind.VIEWER), caller(RoleKind.NODE), caller(RoleKind.ADMINISTRATOR, "x"),
        )  # fmt: skip
        for call in strangers:
            problem = await refused(api.enable_replication(call, enable))
            assert problem.reason is Reason.ROLE_REQUIRED
        problem = await refused(
            api.list_replications(caller(RoleKind.VIEWER, "x"), pb.ListReplicationsRequest())
        )
        assert problem.reason is Reason.ROLE_REQUIRED
        assert not world.link.replicas
        await api.list_replications(caller(RoleKind.VIEWER), pb.ListReplicationsRequest())
        await api.enable_replication(caller(RoleKind.ADMINISTRATOR), enable)
        cases: tuple[tuple[Awaitable[object], Reason, str], ...] = (
            (api.get_replication(ROOT, pb.GetReplicationRequest()), Reason.BAD_FIELD, "vm"),
            (
                api.enable_replication(ROOT, pb.EnableReplicationRequest(vm="guest1")),
                Reason.BAD_FIELD,
                "to",
            ),
            (
                api.resume_replication(ROOT, pb.ResumeReplicationRequest(vm="g", resync=True)),
                Reason.UNIMPLEMENTED,
                "resync",
            ),
            (
                api.resume_replication(ROOT, pb.ResumeReplicationRequest(vm="g", at=Timestamp())),
                Reason.UNIMPLEMENTED,
                "at",
            ),
            (
                api.enable_replication(
                    ROOT,
                    pb.EnableReplicationRequest(
                        vm="guest1", to=CAP, policy=types_pb2.Policy(recovery_points=4)
                    ),
                ),
                Reason.UNIMPLEMENTED,
                "policy.recovery_points",
            ),
        )
        for act, reason, field in cases:
            problem = await refused(act)
            assert (problem.reason, problem.field) == (reason, field)
            assert problem.remedy

    in_world(story)
