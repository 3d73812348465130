"""A cluster whose store or leader is away: brokers and nodes wait, say so, and go on."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from tests.support.broker_room import CLUSTER, KEYS, BrokerRoom, Process, free_port
from tests.support.commands import ROOT, run_daemon, told, vmrctl
from tests.support.standalone_room import Refusal, Replica, Wire, new_replica, patiently
from vmreplica.core.problems import Reason
from vmreplica.core.records import BrokerRecord, render
from vmreplica.ports.cluster_store import Put, StoreUnavailable
from vmreplica.v1 import location_pb2, node_pb2, replica_pb2, settings_pb2

pytestmark = [pytest.mark.needs("etcd"), pytest.mark.timeout(90)]


class ClusterRoom(BrokerRoom):
    """Real nodes beside the real brokers."""

    def start_node(self, name: str, **changes: Any) -> Process:
        """A node process of this cluster on a location of its own."""
        self.ports.setdefault(name, free_port())
        own = self.issue(name, "localhost", f"spiffe://{CLUSTER}/node/{name}")
        paths = {"certificate": str(own.certificate), "key": str(own.key), "ca": str(self.ca)}
        store = self.directory / "store"
        store.mkdir(exist_ok=True)
        tree: dict[str, Any] = {
            "cluster": CLUSTER,
            "name": name,
            "listen": f"127.0.0.1:{self.ports[name]}",
            "advertise": f"localhost:{self.ports[name]}",
            "probe_listen": "",
            "state_dir": str(self.directory / f"{name}-state"),
            "run_dir": None,
            "libvirt_uri": "test:///default",
            "storage_locations": [{"path": str(store), "shared": True}],
            "tls": paths,
            "etcd": {"endpoints": [f"localhost:{self.etcd_port}"], **paths},
            "lease": {"ttl_s": 2, "keepalive_ms": 400, "try_ms": 400, "margin_ms": 300},
            **changes,
        }
        path = self.directory / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tree))
        os.environ.setdefault("PYTHONPATH", str(ROOT))
        return self.start(name, [sys.executable, "-m", "node", "--config", str(path)])

    def wire(self, certificate: str, daemon: str) -> Wire:
        """A client of one daemon."""
        return Wire(self.files(certificate), f"localhost:{self.ports[daemon]}")

    def healthy(self) -> None:
        """Nobody has died, nobody wrote a traceback."""
        for process in self.processes:
            assert process.popen.poll() is None, process.log.read_text()
            if process.name != "etcd":
                assert "Traceback" not in process.log.read_text()


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[ClusterRoom]:
    room = ClusterRoom(directory / "room")
    try:
        yield room
    finally:
        room.close()


async def settings(wire: Wire, **values: str) -> Any:
    request = settings_pb2.UpdateSettingsRequest(settings=values)
    method = "SettingsService/UpdateSettings"
    return await wire.call(method, request, settings_pb2.UpdateSettingsResponse)


async def until_refused(
    wire: Wire, method: str, request: Any, answer: Any, *reasons: str
) -> Refusal:
    """Ask until one of these reasons comes; anything else on the way must be one of ours."""
    while True:
        try:
            await wire.call(method, request, answer)
        except grpc.aio.AioRpcError:
            refusal = await wire.refused(method, request, answer)
            if refusal.reason in reasons:
                return refusal
        await asyncio.sleep(0.1)


async def admitted(room: ClusterRoom, admin: Wire, sender: Wire, node: str) -> Replica:
    """A replica on a real node, with its first cycle acknowledged by hand."""
    store = str(room.directory / "store")
    await patiently(lambda: settings(admin, any_server="true", default_storage_location=store))
    request = new_replica("one", "11111111-1111-4111-8111-111111111111", "p.example.org:7443")
    answer = replica_pb2.CreateReplicaResponse
    made = await patiently(
        lambda: sender.call("ReplicaService/CreateReplica", request, answer), "FAILED_PRECONDITION"
    )
    replica = Replica(made.replica.replica_id, 1, "one")
    await cycle(room, sender, replica, node)
    return replica


async def cycle(room: ClusterRoom, sender: Wire, replica: Replica, node: str) -> None:
    """The next cycle, at the node itself, acknowledged."""
    request = location_pb2.LocateRequest(replica_id=replica.replica_id)
    answer = location_pb2.LocateResponse

    async def sent() -> Any:
        found = await sender.call("LocationService/Locate", request, answer)
        good = replica.next()
        async with room.wire("p1", node) as direct:
            stream = direct.stream(replica.replica_id)
            await stream.say(replace(good.open, epoch=found.epoch))
            await stream.until("accepted")
            for frame in good.frames:
                await stream.say(frame)
            await stream.say(good.close)
            return (await stream.until("acknowledged")).acknowledged

    acked = await patiently(sent, "ABORTED", "FAILED_PRECONDITION")
    replica.seq, replica.digest = acked.seq, acked.cycle_digest


async def test_etcd_is_down_when_they_start(tmp_path: Path) -> None:
    """They wait and say so; when etcd comes, so do they, and a cycle goes through."""
    async with running(tmp_path) as room:
        room.start_broker("b1")
        room.start_node("n1")
        async with room.wire("admin", "b1") as admin, room.wire("p1", "b1") as sender:
            request = node_pb2.ListNodesRequest()
            refusal = await until_refused(
                admin, "NodeService/ListNodes", request, node_pb2.ListNodesResponse,
                "STORE_UNAVAILABLE",
            )  # fmt: skip
            refusal.check(Reason.STORE_UNAVAILABLE)
            files = room.files("admin")
            done = await asyncio.to_thread(
                vmrctl, files, f"localhost:{room.ports['b1']}", "node", "list"
            )
            told(done, 6, "STORE_UNAVAILABLE")
            room.healthy()
            room.start_etcd()
            replica = await admitted(room, admin, sender, "n1")
            await cycle(room, sender, replica, "n1")
            room.healthy()


async def test_a_node_that_lost_its_lease(tmp_path: Path) -> None:
    """Past its deadline it acknowledges nothing and says why; then it goes on by itself."""
    async with running(tmp_path) as room:
        etcd = room.start_etcd()
        room.start_broker("b1")
        room.start_node("n1", lease={"ttl_s": 5, "keepalive_ms": 400, "try_ms": 400, "margin_ms": 3_500})  # fmt: skip
        async with (
            room.wire("admin", "b1") as admin,
            room.wire("p1", "b1") as sender,
            room.wire("p1", "n1") as direct,
        ):
            replica = await admitted(room, admin, sender, "n1")
            request = replica_pb2.GetReplicaRequest(replica_id=replica.replica_id)
            etcd.kill(signal.SIGSTOP)
            refusal = await until_refused(
                direct, "ReplicaService/GetReplica", request, replica_pb2.GetReplicaResponse,
                "LEASE_LOST",
            )  # fmt: skip
            refusal.check(Reason.LEASE_LOST)
            etcd.kill(signal.SIGCONT)
            await cycle(room, sender, replica, "n1")
            room.healthy()


async def test_nobody_leads(tmp_path: Path) -> None:
    """A leader on record that does not answer: writes end after 5 s, reads are answered."""
    async with running(tmp_path) as room:
        room.start_etcd()
        store = room.store()
        lease = None
        try:
            while lease is None:
                try:
                    lease = await store.grant(60_000)
                except StoreUnavailable:
                    await asyncio.sleep(0.1)
            gone = BrokerRecord(
                name="b0",
                address=f"localhost:{free_port()}",
                server_name="localhost",
                version="0.1.0",
            )
            key = KEYS.election(lease.lease_id)
            await store.transaction([], [Put(key, render(gone), lease.lease_id)])
            room.start_broker("b1")
            async with room.wire("admin", "b1") as admin:
                listing = node_pb2.ListNodesRequest()
                answer = node_pb2.ListNodesResponse
                await patiently(lambda: admin.call("NodeService/ListNodes", listing, answer))
                request = settings_pb2.UpdateSettingsRequest(settings={"fence": "none"})
                refusal = await admin.refused(
                    "SettingsService/UpdateSettings", request, settings_pb2.UpdateSettingsResponse
                )
                refusal.check(Reason.NO_LEADER)
                await store.revoke(lease.lease_id)
                await patiently(lambda: settings(admin, fence="none"))
            room.healthy()
        finally:
            await store.close()


def test_a_broker_that_cannot_start(tmp_path: Path) -> None:
    room = ClusterRoom(tmp_path / "room")
    for changes, exit_code, word in (
        ({"tls": {"certificate": "/no/b1.pem", "key": "/no/b1.key", "ca": "/no/ca"}}, 2, "tls.key"),
    ):
        done = run_daemon("broker", room.config("b1", **changes))
        told(done, exit_code, word)
        assert "internal error" not in done.stderr
