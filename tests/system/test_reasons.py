"""Every reason of the contract: produced by a real daemon over mutual TLS, or it arrives later.

Reasons that need a room of their own are produced by the tests named in ``ELSEWHERE``.
"""

from __future__ import annotations

import asyncio
import importlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace

import grpc
import pytest

from tests.support.commands import told
from tests.support.standalone_room import NodeRoom, Refusal, Replica, Wire, free_port, new_replica
from tests.unit.replica_world import cluster, raw_frame
from vmreplica.core.cycle import Disk
from vmreplica.core.problems import Reason
from vmreplica.v1 import (
    cycle_pb2,
    failover_pb2,
    manifest_pb2,
    node_pb2,
    operation_pb2,
    replica_pb2,
    replication_pb2,
    settings_pb2,
)

pytestmark = [pytest.mark.needs("qemu"), pytest.mark.timeout(90)]

ELSEWHERE: dict[Reason, str] = {
    Reason.BAD_CONFIG: "test_bad_input_start.test_a_bad_configuration_is_told_all_at_once",
    Reason.REPLICA_DAMAGED: "test_bad_input_start.test_a_damaged_manifest_stops_one_replica",
    Reason.DRAINING: "test_bad_input_start.test_a_node_that_stops_says_so_to_an_open_stream",
    Reason.NO_SPACE: "test_bad_input_storage.test_a_full_disk_and_room_again",
    Reason.CERTIFICATE_INVALID: "test_bad_input_tls.test_a_certificate_that_expires_meanwhile",
    Reason.NO_LEADER: "test_bad_input_cluster.test_nobody_leads",
    Reason.STORE_UNAVAILABLE: "test_bad_input_cluster.test_etcd_is_down_when_they_start",
    Reason.LEASE_LOST: "test_bad_input_cluster.test_a_node_that_lost_its_lease",
}
LATER: dict[Reason, str] = {
    Reason.INTERNAL: "a bug of ours: no input is known that produces it",
    Reason.BAD_MANIFEST: "manifests (vmrctl apply) answer UNIMPLEMENTED in this version",
    Reason.STORE_NOT_SHARED: "what a node finds of its locations is a row of `store check` yet",
    Reason.POINT_IN_USE: "one point is kept, and it cannot be removed by itself",
    Reason.POINT_DAMAGED: "points are not scrubbed yet: they are Good or Unverified",
    Reason.PRIMARY_RUNNING: "planned and unplanned failover arrive later",
    Reason.PRIMARY_UNREACHABLE: "planned and unplanned failover arrive later",
    Reason.QUOTA_EXCEEDED: "there are no quotas yet",
}
VMS = """
<node xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>
  {domains}
  <network><name>lab</name><uuid>08d97046-f10c-4d1c-9e1d-1b3c37fbb0a0</uuid></network>
</node>
"""
VM = """
<domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>
  <name>{name}</name><uuid>{uuid}</uuid><memory>65536</memory>{metadata}
  <os><type>hvm</type></os>
  <devices><disk type='file' device='disk'><driver name='qemu' type='{format}'/>
  <source file='/images/{name}'/><target dev='vda' bus='virtio'/></disk></devices>
  <test:runstate>{state}</test:runstate>
</domain>
"""
REPLICA_OF = (
    "<metadata><vmreplica:vm xmlns:vmreplica='https://vmreplica.dev/domain/1' "
    "replica_id='33333333-3333-4333-8333-333333333333' role='replica'/></metadata>"
)
RUNNING, OFF = 1, 5


def test_driver_file(room_directory: object) -> str:
    """VMs of libvirt's own test driver: a raw disk, one shut off, one that is a replica."""
    return VMS.format(
        domains="".join(
            VM.format(name=name, uuid=uuid.uuid4(), format=kind, state=state, metadata=metadata)
            for name, kind, state, metadata in (
                ("rawvm", "raw", RUNNING, ""),
                ("offvm", "qcow2", OFF, ""),
                ("goodvm", "qcow2", RUNNING, ""),
                ("replicavm", "qcow2", OFF, REPLICA_OF),
            )
        )
    )


test_driver_file.__test__ = False  # type: ignore[attr-defined]


@dataclass(slots=True)
class Scene:
    """A running standalone node with one replica that has one acknowledged cycle."""

    room: NodeRoom
    p1: Wire
    admin: Wire
    replica: Replica

    async def cycle(self, *messages: object, **changes: object) -> Refusal:
        """A stream whose open is changed, or that goes on behind its open with messages."""
        opened = replace(self.replica.next().open, **changes)  # type: ignore[arg-type]
        said = [opened, *messages]
        return await self.p1.refused_stream(self.replica.replica_id, said)  # type: ignore[list-item]


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeRoom]:
    directory = tmp_path_factory.mktemp("reasons")
    vms = directory / "vms.xml"
    vms.write_text(test_driver_file(directory))
    made = NodeRoom(directory, libvirt_uri=f"test://{vms}")
    made.start()
    yield made
    made.close()


@pytest.fixture
async def scene(room: NodeRoom) -> AsyncIterator[Scene]:
    await room.ready()
    async with room.wire() as p1, room.wire("admin") as admin:
        if "one" not in room.replicas:
            room.replicas["one"] = await room.replica(p1, "one")
            await room.send(p1, room.replicas["one"])
        yield Scene(room, p1, admin, room.replicas["one"])


async def enabled(scene: Scene, vm: str, to: str = "cap.example.org:7443") -> Refusal:
    request = replication_pb2.EnableReplicationRequest(vm=vm, to=to)
    answer = replication_pb2.EnableReplicationResponse
    return await scene.admin.refused("ReplicationService/EnableReplication", request, answer)


async def bad_field(scene: Scene) -> Refusal:
    request = new_replica("some", "no uuid")
    answer = replica_pb2.CreateReplicaResponse
    return await scene.p1.refused("ReplicaService/CreateReplica", request, answer)


async def bad_compression(scene: Scene) -> Refusal:
    frame = raw_frame(0, {3: cluster("x")})
    short = replace(frame, payload=b"short", stored_bytes=(5,))
    from vmreplica.core.cycle import digest

    return await scene.cycle(replace(short, stored_digests=digest(b"short")))


async def frame_too_large(scene: Scene) -> Refusal:
    return await scene.cycle(raw_frame(0, {i: cluster("x") for i in range(17)}))


async def unimplemented(scene: Scene) -> Refusal:
    request = manifest_pb2.ApplyManifestsRequest(yaml="kind: Replication")
    answer = manifest_pb2.ApplyManifestsResponse
    return await scene.admin.refused("ManifestService/ApplyManifests", request, answer)


async def unknown_replica(scene: Scene) -> Refusal:
    request = replica_pb2.GetReplicaRequest(replica_id="nobody")
    answer = replica_pb2.GetReplicaResponse
    return await scene.admin.refused("ReplicaService/GetReplica", request, answer)


async def unknown_vm(scene: Scene) -> Refusal:
    return await enabled(scene, "nobody")


async def unknown_node(scene: Scene) -> Refusal:
    request = node_pb2.DrainNodeRequest(node="n9")
    return await scene.admin.refused("NodeService/DrainNode", request, node_pb2.DrainNodeResponse)


async def unknown_operation(scene: Scene) -> Refusal:
    request = operation_pb2.GetOperationRequest(operation_id="nothing")
    answer = operation_pb2.GetOperationResponse
    return await scene.admin.refused("OperationService/GetOperation", request, answer)


async def point_not_found(scene: Scene) -> Refusal:
    request = failover_pb2.StartTestFailoverRequest(vm="one", point="99")
    answer = failover_pb2.StartTestFailoverResponse
    return await scene.admin.refused("FailoverService/StartTestFailover", request, answer)


async def state_refuses(scene: Scene) -> Refusal:
    return await enabled(scene, "offvm")


async def wrong_side(scene: Scene) -> Refusal:
    request = replication_pb2.GetReplicationRequest(vm="one")
    answer = replication_pb2.GetReplicationResponse
    refusal = await scene.admin.refused("ReplicationService/GetReplication", request, answer)
    assert refusal.facts["cap"] == "p1.example.org:7444"
    return refusal


async def wrong_side_here(scene: Scene) -> Refusal:
    return await enabled(scene, "replicavm")


async def ambiguous_name(scene: Scene) -> Refusal:
    twins = [await scene.room.replica(scene.p1, "twin", vm_uuid=_uuid(n)) for n in (1, 2)]
    request = replica_pb2.GetReplicaRequest(replica_id="twin")
    answer = replica_pb2.GetReplicaResponse
    refusal = await scene.admin.refused("ReplicaService/GetReplica", request, answer)
    for twin in twins:
        assert twin.replica_id in refusal.message + refusal.facts["remedy"]
    return refusal


async def stale_epoch(scene: Scene) -> Refusal:
    return await scene.cycle(epoch=0)


async def not_owner(scene: Scene) -> Refusal:
    return await scene.cycle(epoch=scene.replica.epoch + 1)


async def seq_gap(scene: Scene) -> Refusal:
    return await scene.cycle(seq=scene.replica.seq + 2)


async def parent_mismatch(scene: Scene) -> Refusal:
    return await scene.cycle(parent_digest=b"?" * 16)


async def digest_mismatch(scene: Scene) -> Refusal:
    return await scene.cycle(replace(raw_frame(0, {3: cluster("x")}), digests=b"?" * 16))


async def out_of_range(scene: Scene) -> Refusal:
    return await scene.cycle(raw_frame(0, {4_711: cluster("x")}))


async def not_trackable(scene: Scene) -> Refusal:
    refusal = await enabled(scene, "rawvm")
    assert "vda" in refusal.message and "qemu-img convert" in refusal.facts["remedy"]
    return refusal


async def shape_changed(scene: Scene) -> Refusal:
    return await scene.cycle(disks=(Disk("vda", 20 << 20), Disk("vdb", 65_536 + 512)))


async def no_node_fits(scene: Scene) -> Refusal:
    request = new_replica("huge", str(uuid.uuid4()))
    request.disks[0].size_bytes = 1 << 50
    answer = replica_pb2.CreateReplicaResponse
    return await scene.p1.refused("ReplicaService/CreateReplica", request, answer)


async def busy(scene: Scene) -> Refusal:
    """The earlier of two senders for one replica."""
    stream = scene.p1.stream(scene.replica.replica_id)
    await stream.say(scene.replica.next().open)
    await stream.until("accepted")
    later = scene.p1.stream(scene.replica.replica_id)
    await later.say(scene.replica.next().open)
    await later.until("accepted")
    later.call.cancel()
    return await stream.refusal()


async def replication_disabled(scene: Scene) -> Refusal:
    await scene.room.set(replication_enabled="false")
    try:
        opened = await scene.cycle()
        opened.check(Reason.REPLICATION_DISABLED, "replication_enabled")
        request = new_replica("late", str(uuid.uuid4()))
        answer = replica_pb2.CreateReplicaResponse
        return await scene.p1.refused("ReplicaService/CreateReplica", request, answer)
    finally:
        await scene.room.set(replication_enabled="true")


async def certificate_revoked(scene: Scene) -> Refusal:
    async with scene.room.wire("revoked") as gone:
        request = settings_pb2.GetSettingsRequest()
        answer = settings_pb2.GetSettingsResponse
        return await gone.refused("SettingsService/GetSettings", request, answer)


async def no_identity(scene: Scene) -> Refusal:
    """A role of another cluster names nobody here, and no host."""
    files = scene.room.issue("nameless", "spiffe://other/viewer/v")
    async with Wire(files, scene.room.address) as nameless:
        request = replica_pb2.GetReplicaRequest(replica_id="one")
        answer = replica_pb2.GetReplicaResponse
        return await nameless.refused("ReplicaService/GetReplica", request, answer)


async def not_authorized(scene: Scene) -> Refusal:
    """An access point that its certificate does not show."""
    request = new_replica("alien", str(uuid.uuid4()), cap="p2.example.org:7444")
    answer = replica_pb2.CreateReplicaResponse
    return await scene.p1.refused("ReplicaService/CreateReplica", request, answer)


async def role_required(scene: Scene) -> Refusal:
    async with scene.room.wire("viewer") as viewer:
        request = settings_pb2.UpdateSettingsRequest(settings={"fence": "none"})
        answer = settings_pb2.UpdateSettingsResponse
        return await viewer.refused("SettingsService/UpdateSettings", request, answer)


async def node_unreachable(scene: Scene) -> Refusal:
    return await enabled(scene, "goodvm", f"localhost:{free_port()}")


async def too_many_streams(scene: Scene) -> Refusal:
    """More streams than a node serves, each silent."""
    silent = [scene.p1.stream(scene.replica.replica_id) for _ in range(300)]
    try:
        async with asyncio.timeout(30):
            ends = [asyncio.ensure_future(stream.refusal()) for stream in silent]
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for end in ends:
                end.cancel()
            return done.pop().result()
    finally:
        for stream in silent:
            stream.call.cancel()


async def network_unknown(scene: Scene) -> Refusal:
    """Told at once: nothing is made before."""
    request = failover_pb2.StartTestFailoverRequest(vm="one", networks={"0": "nowhere"})
    answer = failover_pb2.StartTestFailoverResponse
    return await scene.admin.refused("FailoverService/StartTestFailover", request, answer)


Producer = Callable[[Scene], Awaitable[Refusal]]
PRODUCED: dict[Reason, Producer] = {
    Reason.BAD_FIELD: bad_field,
    Reason.BAD_COMPRESSION: bad_compression,
    Reason.FRAME_TOO_LARGE: frame_too_large,
    Reason.UNIMPLEMENTED: unimplemented,
    Reason.UNKNOWN_REPLICA: unknown_replica,
    Reason.UNKNOWN_VM: unknown_vm,
    Reason.UNKNOWN_NODE: unknown_node,
    Reason.UNKNOWN_OPERATION: unknown_operation,
    Reason.POINT_NOT_FOUND: point_not_found,
    Reason.NETWORK_UNKNOWN: network_unknown,
    Reason.STATE_REFUSES: state_refuses,
    Reason.WRONG_SIDE: wrong_side,
    Reason.AMBIGUOUS_NAME: ambiguous_name,
    Reason.STALE_EPOCH: stale_epoch,
    Reason.NOT_OWNER: not_owner,
    Reason.SEQ_GAP: seq_gap,
    Reason.PARENT_MISMATCH: parent_mismatch,
    Reason.DIGEST_MISMATCH: digest_mismatch,
    Reason.CLUSTER_OUT_OF_RANGE: out_of_range,
    Reason.DISK_NOT_TRACKABLE: not_trackable,
    Reason.DISK_SHAPE_CHANGED: shape_changed,
    Reason.NO_NODE_FITS: no_node_fits,
    Reason.BUSY: busy,
    Reason.REPLICATION_DISABLED: replication_disabled,
    Reason.CERTIFICATE_REVOKED: certificate_revoked,
    Reason.NO_IDENTITY: no_identity,
    Reason.NOT_AUTHORIZED: not_authorized,
    Reason.ROLE_REQUIRED: role_required,
    Reason.NODE_UNREACHABLE: node_unreachable,
    Reason.TOO_MANY_STREAMS: too_many_streams,
}


def _uuid(number: int) -> str:
    return f"44444444-4444-4444-8444-{number:012d}"


def test_each_reason_is_produced_once_or_arrives_later() -> None:
    everywhere = [*PRODUCED, *ELSEWHERE, *LATER]
    assert sorted(everywhere) == sorted(Reason)
    assert all(sentence for sentence in LATER.values())
    for place in ELSEWHERE.values():
        module, _, name = place.partition(".")
        assert callable(getattr(importlib.import_module(f"tests.system.{module}"), name))


@pytest.mark.parametrize("reason", PRODUCED, ids=str)
async def test_a_reason_as_it_is_on_the_wire(scene: Scene, reason: Reason) -> None:
    refusal = await PRODUCED[reason](scene)
    refusal.check(reason)
    await scene.room.send(scene.p1, scene.replica)


async def test_the_primary_side_knows_a_replica_by_its_mark(scene: Scene) -> None:
    (await wrong_side_here(scene)).check(Reason.WRONG_SIDE, "vm")
    await scene.room.send(scene.p1, scene.replica)


TYPED: dict[str, tuple[list[str], int, str]] = {
    "unknown setting": (["settings", "set", "nonsense=1"], 2, "BAD_FIELD"),
    "unknown replica": (["replica", "show", "nobody"], 3, "UNKNOWN_REPLICA"),
    "unknown VM": (["replication", "show", "nobody"], 3, "UNKNOWN_VM"),
    "unknown node": (["node", "drain", "n9"], 3, "UNKNOWN_NODE"),
    "unknown operation": (["operation", "show", "nothing"], 3, "UNKNOWN_OPERATION"),
    "no such point": (["failover", "test", "start", "one", "--point", "99"], 3, "POINT_NOT_FOUND"),
    "no such network": (
        ["failover", "test", "start", "one", "--network", "0=nowhere"],
        3,
        "NETWORK_UNKNOWN",
    ),
    "not protected": (["replication", "suspend", "goodvm"], 4, "STATE_REFUSES"),
    "the other side's verb": (["replication", "show", "one"], 4, "WRONG_SIDE"),
    "two of that name": (["replica", "show", "twin"], 4, "AMBIGUOUS_NAME"),
    "a raw disk": (
        ["replication", "enable", "rawvm", "--to", "localhost:1"],
        4,
        "DISK_NOT_TRACKABLE",
    ),
    "the only node": (["node", "drain", "n1"], 4, "NO_NODE_FITS"),
    "nobody there": (
        ["replication", "enable", "goodvm", "--to", "localhost:1"],
        6,
        "NODE_UNREACHABLE",
    ),
    "a flag of later": (["replication", "resume", "goodvm", "--resync"], 2, "later"),
    "a verb that is none": (["replica", "explode", "one"], 2, "explode"),
}


@pytest.mark.parametrize("name", TYPED)
async def test_a_refusal_as_a_person_sees_it(scene: Scene, name: str) -> None:
    words, exit_code, reason = TYPED[name]
    if reason == "AMBIGUOUS_NAME":
        await ambiguous_name(scene)
    done = await asyncio.to_thread(scene.room.vmrctl, *words, "--yes")
    told(done, exit_code, reason)
    assert not done.stdout


async def test_refusals_of_certificates_as_a_person_sees_them(scene: Scene) -> None:
    for certificate, words, exit_code, reason in (
        ("viewer", ("settings", "set", "fence=none"), 5, "ROLE_REQUIRED"),
        ("revoked", ("settings", "show"), 5, "CERTIFICATE_REVOKED"),
        ("other", ("settings", "show"), 5, "ROLE_REQUIRED"),
    ):
        done = await asyncio.to_thread(scene.room.vmrctl, *words, certificate=certificate)
        told(done, exit_code, reason)


async def test_digests_of_a_point_that_is_not_kept(scene: Scene) -> None:
    request = cycle_pb2.ListDigestsRequest(
        replica_id=scene.replica.replica_id, target="vda", seq=99
    )
    call = scene.p1.channel.unary_stream(
        "/vmreplica.v1.CycleService/ListDigests",
        cycle_pb2.ListDigestsRequest.SerializeToString,
        cycle_pb2.ListDigestsResponse.FromString,
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(request, timeout=10).read()
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    await scene.room.send(scene.p1, scene.replica)
