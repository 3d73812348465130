"""Three broker processes over etcd: elections, forwarding, relay, refusals, bad configuration."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from broker_room import CLUSTER, KEYS, BrokerRoom, eventually, resident_bytes
from grpc_health.v1 import health_pb2

from vmreplica.adapters.etcd_store import EtcdStore
from vmreplica.adapters.grpc_channels import ChannelPool
from vmreplica.core.identity import RoleKind
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.records import OwnerRecord, parse, render
from vmreplica.ports.cluster_store import Put
from vmreplica.v1 import (
    cycle_pb2,
    event_pb2,
    location_pb2,
    node_pb2,
    operation_pb2,
    replica_pb2,
    settings_pb2,
    types_pb2,
    version_pb2,
)

pytestmark = [pytest.mark.needs("etcd"), pytest.mark.timeout(120)]
UUID = "11111111-2222-3333-4444-{:012d}"
NAMES = ("b1", "b2", "b3")


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerRoom]:
    made = BrokerRoom(tmp_path_factory.mktemp("brokers"))
    made.start_etcd()
    for name in NAMES:
        made.start_broker(name)
    yield made
    made.close()


@pytest.fixture
async def store(room: BrokerRoom) -> AsyncIterator[EtcdStore]:
    made = room.store()
    yield made
    await made.close()


class Client:
    """Calls with one certificate at one broker."""

    def __init__(self, room: BrokerRoom, certificate: str) -> None:
        self.room = room
        self.pool: ChannelPool = room.pool(certificate)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.pool.close()

    async def call(self, broker: str, method: str, request: object, answer: type, **more: object):
        address = f"localhost:{self.room.ports[broker]}"
        full = f"/vmreplica.v1.{method}"
        return await self.pool.unary(address, "localhost", full, request, answer, **more)

    async def brokers(self, broker: str) -> node_pb2.ListBrokersResponse:
        request = node_pb2.ListBrokersRequest()
        return await self.call(
            broker, "NodeService/ListBrokers", request, node_pb2.ListBrokersResponse
        )

    async def settings(self, broker: str, **values: str):
        request = settings_pb2.UpdateSettingsRequest(settings=values)
        answer = settings_pb2.UpdateSettingsResponse
        return await self.call(broker, "SettingsService/UpdateSettings", request, answer)

    async def create(self, broker: str, number: int, cap: str = "p.example.org:7443", **more):
        request = replica_pb2.CreateReplicaRequest(
            vm_uuid=UUID.format(number),
            vm_name=f"vm{number}",
            disks=[types_pb2.Disk(target="vda", size_bytes=1 << 30)],
            primary_access_point=cap,
        )
        answer = replica_pb2.CreateReplicaResponse
        return await self.call(broker, "ReplicaService/CreateReplica", request, answer, **more)

    async def locate(self, broker: str, replica_id: str):
        request = location_pb2.LocateRequest(replica_id=replica_id)
        answer = location_pb2.LocateResponse
        return await self.call(broker, "LocationService/Locate", request, answer)

    async def leader(self, among: tuple[str, ...] = NAMES) -> str:
        """Once all of ``among`` are candidates and agree."""

        async def agreed() -> str:
            found = set()
            for name in among:
                items = (await self.brokers(name)).items
                if {i.name for i in items} != set(among):
                    return ""
                found.add(next(i.name for i in items if i.leader))
            return found.pop() if len(found) == 1 else ""

        return str(await eventually(agreed))


async def allow_all(room: BrokerRoom, client: Client) -> str:
    leader = await client.leader()
    await client.settings(leader, any_server="true", default_storage_location="/s")
    return leader


async def test_standbys_forward_writes_and_answer_reads(room: BrokerRoom, store: EtcdStore) -> None:
    async with Client(room, "admin") as admin, Client(room, "p1") as sender:
        leader = await allow_all(room, admin)
        standbys = [name for name in NAMES if name != leader]
        async with room.node(store, "n1") as stub:
            await eventually(lambda: _nodes(admin, standbys[0]))
            metadata = (("vmreplica-request-id", "6e1f0f52-6a3c-4d5f-9a55-000000000001"),)
            made = await sender.create(standbys[0], 1, metadata=metadata)
            assert made.changed
            again = await sender.create(leader, 1, metadata=metadata)
            assert again == made, "a repeated request id is answered as the first"
            later = await sender.create(leader, 1)
            assert not later.changed and later.replica.replica_id == made.replica.replica_id
            replica_id = made.replica.replica_id
            for name in NAMES:
                found = await eventually(lambda name=name: sender.locate(name, replica_id))
                assert found.node == "n1" and found.epoch == 1
            request = replica_pb2.GetReplicaRequest(replica_id="vm1")
            shown = await admin.call(
                standbys[1],
                "ReplicaService/GetReplica",
                request,
                replica_pb2.GetReplicaResponse,
            )
            assert shown.replica.acked_seq == 7
            assert shown.replica.replica_access_point == "cap.example.org:7443"
            call = room.seen[-1]
            assert call.relayed_by and call.identity.has_role(CLUSTER, RoleKind.ADMINISTRATOR)
            assert stub.name == "n1"


async def _nodes(client: Client, broker: str, count: int = 1) -> bool:
    request = node_pb2.ListNodesRequest(filter="state=Ready")
    answer = await client.call(broker, "NodeService/ListNodes", request, node_pb2.ListNodesResponse)
    return len(answer.items) >= count


async def test_others_learn_nothing(room: BrokerRoom, store: EtcdStore) -> None:
    async with (
        Client(room, "admin") as admin,
        Client(room, "p1") as sender,
        Client(room, "x1") as stranger,
        Client(room, "viewer") as viewer,
    ):
        leader = await allow_all(room, admin)
        async with room.node(store, "n1"):
            await eventually(lambda: _nodes(admin, leader))
            made = await sender.create(leader, 2)
            replica_id = made.replica.replica_id
            told = []
            for asked in (replica_id, UUID.format(99)):
                with pytest.raises(Problem) as refused:
                    await stranger.locate(leader, asked)
                told.append((refused.value.reason, refused.value.message.replace(asked, "X")))
            assert told[0] == told[1], "existing and missing replicas look the same"
            assert told[0][0] is Reason.UNKNOWN_REPLICA
            own = await stranger.create(leader, 2, cap="x.other.org:7443")
            assert own.replica.replica_id != replica_id
            assert own.replica.trust_group == "DEFAULT/x.other.org"
            for client, verb, reason in (
                (stranger, lambda c: c.create(leader, 3), Reason.NOT_AUTHORIZED),
                (sender, lambda c: c.brokers(leader), Reason.ROLE_REQUIRED),
                (viewer, lambda c: c.settings(leader, fence="none"), Reason.ROLE_REQUIRED),
                (admin, lambda c: c.settings(leader, nonsense="1"), Reason.BAD_FIELD),
                (admin, lambda c: c.locate(leader, "nobody"), Reason.UNKNOWN_REPLICA),
            ):
                with pytest.raises(Problem) as refused:
                    await verb(client)
                assert refused.value.reason is reason, refused.value


async def test_a_stream_is_relayed_and_ends_when_the_owner_changes(
    room: BrokerRoom, store: EtcdStore
) -> None:
    async with Client(room, "admin") as admin, Client(room, "p1") as sender:
        leader = await allow_all(room, admin)
        async with room.node(store, "n1") as stub, room.node(store, "n2"):
            await eventually(lambda: _nodes(admin, leader))
            made = await sender.create(leader, 4)
            replica_id = made.replica.replica_id
            call = _stream(room, sender, leader, replica_id)
            await call.write(_message(open=cycle_pb2.CycleOpen(replica_id=replica_id)))
            assert _reply(await call.read()).HasField("accepted")
            payload = bytes(1 << 20)
            for _ in range(8):
                frame = cycle_pb2.ClusterFrame(payload=payload)
                await call.write(_message(clusters=frame))
            await call.write(_message(close=cycle_pb2.CycleClose()))
            assert _reply(await call.read()).acknowledged.seq == 1
            trailers = dict(await call.trailing_metadata())
            assert trailers["vmreplica-route"] == "relay"
            if made.replica.owner == "n1":
                assert stub.received == 8 << 20
            second = _stream(room, sender, leader, replica_id)
            await second.write(_message(open=cycle_pb2.CycleOpen(replica_id=replica_id)))
            assert _reply(await second.read()).HasField("accepted")
            kv = await store.get(KEYS.owner(replica_id))
            assert kv is not None
            owner = parse(OwnerRecord, kv.value)
            other = "n2" if owner.node == "n1" else "n1"
            moved = OwnerRecord(node=other, incarnation="i1", epoch=owner.epoch + 1)
            await store.transaction([], [Put(kv.key, render(moved))])
            with pytest.raises(grpc.aio.AioRpcError):
                await second.read()
            assert await second.code() is grpc.StatusCode.UNAVAILABLE
            nameless = _stream(room, sender, leader, "")
            await nameless.write(_message(open=cycle_pb2.CycleOpen(replica_id=replica_id)))
            assert await nameless.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_slow_node_does_not_fill_the_relay(room: BrokerRoom, store: EtcdStore) -> None:
    """A node that takes 4 MiB/s, a sender that would send all at once."""
    async with Client(room, "admin") as admin, Client(room, "p1") as sender:
        leader = await allow_all(room, admin)
        async with room.node(store, "n1") as stub:
            stub.pause_s = 0.25
            await eventually(lambda: _nodes(admin, leader))
            made = await sender.create(leader, 5)
            replica_id = made.replica.replica_id
            await eventually(lambda: sender.locate(leader, replica_id))
            pid = next(p for p in reversed(room.processes) if p.name == leader).popen.pid
            warm = _stream(room, sender, leader, replica_id)
            await warm.write(_message(open=cycle_pb2.CycleOpen(replica_id=replica_id)))
            assert _reply(await warm.read()).HasField("accepted")
            before = resident_bytes(pid)
            sent, peak = 0, 0
            payload = os.urandom(1 << 20)

            async def send() -> None:
                nonlocal sent
                for _ in range(40):
                    frame = cycle_pb2.ClusterFrame(payload=payload)
                    await warm.write(_message(clusters=frame))
                    sent += len(payload)

            sending = asyncio.create_task(send())
            for _ in range(40):
                peak = max(peak, resident_bytes(pid) - before)
                await asyncio.sleep(0.1)
            ahead = sent - stub.received
            sending.cancel()
            warm.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            print(f"relay grew by {peak >> 20} MiB, sender {ahead >> 20} MiB ahead")
            assert stub.received >= 4 << 20
            assert peak <= 16 << 20, "8 MiB a stream and what the first one warms up"
            assert ahead <= 16 << 20


def _stream(room: BrokerRoom, client: Client, broker: str, replica_id: str):
    channel = client.pool.channel(f"localhost:{room.ports[broker]}", "localhost")
    metadata = (("vmreplica-replica-id", replica_id),) if replica_id else ()
    return channel.stream_stream("/vmreplica.v1.CycleService/Replicate")(metadata=metadata)


def _message(**body: object) -> bytes:
    return cycle_pb2.ReplicateRequest(**body).SerializeToString()


def _reply(raw: object) -> cycle_pb2.ReplicateResponse:
    assert isinstance(raw, bytes), raw
    return cycle_pb2.ReplicateResponse.FromString(raw)


async def test_events_of_all_brokers_are_merged_and_drain_is_an_operation(
    room: BrokerRoom, store: EtcdStore
) -> None:
    async with Client(room, "admin") as admin:
        leader = await allow_all(room, admin)
        async with room.node(store, "n8"), room.node(store, "n9"):
            await eventually(lambda: _nodes(admin, leader, 2))
            standby = next(name for name in NAMES if name != leader)
            names = []
            async for event in admin.pool.stream(
                f"localhost:{room.ports[standby]}",
                "localhost",
                "/vmreplica.v1.EventService/WatchEvents",
                event_pb2.WatchEventsRequest(name_glob="broker.*"),
                event_pb2.WatchEventsResponse,
            ):
                names.append((event.node, event.name))
            assert (leader, "broker.elected") in names
            drained = await admin.call(
                standby,
                "NodeService/DrainNode",
                node_pb2.DrainNodeRequest(node="n9"),
                node_pb2.DrainNodeResponse,
            )
            request = operation_pb2.WatchOperationRequest(operation_id=drained.operation_id)
            for kv in (await store.range(KEYS.owners)).items:
                owner = parse(OwnerRecord, kv.value)
                if owner.node == "n9":
                    freed = replace(owner, released=True)
                    await store.transaction([], [Put(kv.key, render(freed))])
            states = []
            async for answer in admin.pool.stream(
                f"localhost:{room.ports[standby]}",
                "localhost",
                "/vmreplica.v1.OperationService/WatchOperation",
                request,
                operation_pb2.WatchOperationResponse,
            ):
                states.append(answer.operation.state)
            assert states[-1] == "Succeeded"
            undrained = await admin.call(
                leader,
                "NodeService/UndrainNode",
                node_pb2.UndrainNodeRequest(node="n9"),
                node_pb2.UndrainNodeResponse,
            )
            assert undrained.changed


async def test_the_next_broker_answers_after_kill_9_and_after_a_clean_stop(
    room: BrokerRoom, store: EtcdStore
) -> None:
    async with Client(room, "admin") as admin:
        leader = await admin.leader()
        victim = next(p for p in room.processes if p.name == leader)
        victim.kill()
        began = time.monotonic()
        left = tuple(name for name in NAMES if name != leader)
        heir = await admin.leader(left)
        took_s = time.monotonic() - began
        print(f"takeover after kill -9: {took_s:.2f} s")
        assert heir != leader
        version = await admin.call(
            heir,
            "VersionService/GetVersion",
            version_pb2.GetVersionRequest(),
            version_pb2.GetVersionResponse,
        )
        assert version.role == "leader"
        stopping = next(p for p in room.processes if p.name == heir)
        stopping.kill(signal.SIGTERM)
        began = time.monotonic()
        (last,) = (name for name in left if name != heir)
        assert await admin.leader((last,)) == last
        print(f"takeover after SIGTERM: {time.monotonic() - began:.2f} s")
        assert await asyncio.to_thread(stopping.popen.wait, 10) == 0
        await admin.settings(last, stream_idle_timeout_s="77")
        assert "Traceback" not in "".join(p.log.read_text() for p in room.processes)
        for name in (leader, heir):
            room.start_broker(name)
        await admin.leader()
        grown = [p for p in room.processes if p.name == last]
        assert resident_bytes(grown[0].popen.pid) < 200 << 20


async def test_without_etcd_it_starts_says_so_and_recovers(tmp_path: Path) -> None:
    room = BrokerRoom(tmp_path / "room")
    broker = room.start_broker("b1", probe_listen=f"127.0.0.1:{room.probe_port}")
    try:
        async with Client(room, "admin") as admin:

            async def refused(ask: object) -> object:
                assert callable(ask)
                try:
                    await ask()
                except Problem as problem:
                    ours = (Reason.STORE_UNAVAILABLE, Reason.NO_LEADER)
                    return problem if problem.reason in ours else None
                return None

            assert await eventually(lambda: refused(lambda: admin.brokers("b1")))
            assert await eventually(lambda: refused(lambda: admin.settings("b1", fence="none")))
            assert await eventually(lambda: refused(lambda: admin.locate("b1", UUID.format(1))))
            assert broker.popen.poll() is None
            assert await asyncio.to_thread(_probe, room, "livez") == 200
            assert await asyncio.to_thread(_probe, room, "readyz") == 503
            assert await _health(admin, "vmreplica.broker") is False
            etcd = room.start_etcd()
            assert await admin.leader(("b1",)) == "b1"
            assert await asyncio.to_thread(_probe, room, "readyz") == 200
            await eventually(lambda: _health(admin, "vmreplica.broker.leader"))
            await admin.settings("b1", verify="before-ack")
            etcd.kill(signal.SIGSTOP)
            await eventually(lambda: refused(lambda: admin.settings("b1", verify="after-ack")))
            etcd.kill(signal.SIGCONT)
            await eventually(lambda: admin.settings("b1", verify="after-ack"))
            assert broker.popen.poll() is None
            broker.kill(signal.SIGTERM)
            assert await asyncio.to_thread(broker.popen.wait, 10) == 0
            assert "Traceback" not in broker.log.read_text()
    finally:
        room.close()


def _probe(room: BrokerRoom, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{room.probe_port}/{path}", timeout=5) as got:
            return int(got.status)
    except urllib.error.HTTPError as error:
        return error.code


async def _health(client: Client, service: str) -> bool:
    address = f"localhost:{client.room.ports['b1']}"
    answer = await client.pool.unary(
        address,
        "localhost",
        "/grpc.health.v1.Health/Check",
        health_pb2.HealthCheckRequest(service=service),
        health_pb2.HealthCheckResponse,
    )
    return answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"nonsense": 1}, "nonsense"),
        ({"advertise": "no-port"}, "advertise"),
        ({"client_access_point": {"name": "cap.example.org", "kind": "vip"}}, "address"),
        ({"election": {"ttl_s": 2, "keepalive_ms": 2_000}}, "election"),
    ],
)
def test_bad_configuration_is_told_in_one_go(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    room = BrokerRoom(tmp_path / "room")
    path = room.config("b1", **change)
    done = subprocess.run(
        [sys.executable, "-m", "broker", "--config", str(path), "--check"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    good = room.config("b1")
    command = [sys.executable, "-m", "broker", "--config", str(good), "--check"]
    assert subprocess.run(command, timeout=30, check=False).returncode == 0
