"""One real broker over a real etcd on loopback, and a bare sink that plays the owner."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.context import ROOT
from bench.lab import PYTHON, BenchFailed
from tests.support.broker_room import GIB, KEYS, BrokerRoom, eventually, free_port
from vmreplica.adapters.etcd_store import EtcdStore
from vmreplica.adapters.tls import TlsFiles
from vmreplica.core.records import NodeRecord, StorageRecord, render
from vmreplica.ports.cluster_store import Put
from vmreplica.v1 import location_pb2, node_pb2, replica_pb2, settings_pb2, types_pb2

_BROKER = "b1"
_V1 = "/vmreplica.v1."


@dataclass(frozen=True, slots=True)
class RelayRoom:
    """Where things are."""

    files: TlsFiles
    proxy_files: TlsFiles
    replica_id: str
    broker_port: int
    sink_port: int


@asynccontextmanager
async def relay_room(directory: Path) -> AsyncIterator[RelayRoom]:
    """Everything up; down at the end."""
    room = BrokerRoom(directory)
    sink_port = free_port()
    room.start_etcd()
    room.start_broker(_BROKER)
    files = room.files("node")
    words = [str(files.certificate), str(files.key), str(files.ca)]
    sink = subprocess.Popen(
        [PYTHON, "-m", "bench.sink", str(sink_port), *words],
        stdin=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": ""},
    )
    store = room.store()
    try:
        replica_id = await _admit(room, store, sink_port)
        proxy = room.issue("proxy", "localhost")
        broker_port = room.ports[_BROKER]
        yield RelayRoom(room.files("p1"), proxy, replica_id, broker_port, sink_port)
    finally:
        await store.close()
        assert sink.stdin is not None
        sink.stdin.close()
        sink.wait(timeout=10)
        room.close()


async def _admit(room: BrokerRoom, store: EtcdStore, sink_port: int) -> str:
    """The sink becomes a node that owns a replica."""
    lease = await eventually(lambda: store.grant(3_600_000))
    storage = StorageRecord(path="/s", shared=True, total_bytes=99 * GIB, free_bytes=90 * GIB)
    record = NodeRecord(
        name="n1",
        incarnation="i1",
        address=f"localhost:{sink_port}",
        server_name="localhost",
        version="0.1.0",
        storage=(storage,),
    )
    lease_id = getattr(lease, "lease_id", 0)
    await store.transaction([], [Put(KEYS.node("n1", "i1"), render(record), lease_id)])
    admin, sender = room.pool("admin"), room.pool("p1")
    address = f"localhost:{room.ports[_BROKER]}"
    values = {"any_server": "true", "default_storage_location": "/s"}
    try:
        await eventually(
            lambda: admin.unary(
                address,
                "localhost",
                f"{_V1}SettingsService/UpdateSettings",
                settings_pb2.UpdateSettingsRequest(settings=values),
                settings_pb2.UpdateSettingsResponse,
            )
        )
        listing = node_pb2.ListNodesRequest(filter="state=Ready")

        async def ready() -> bool:
            method = f"{_V1}NodeService/ListNodes"
            answer = await admin.unary(
                address, "localhost", method, listing, node_pb2.ListNodesResponse
            )
            return len(answer.items) == 1

        await eventually(ready)
        request = replica_pb2.CreateReplicaRequest(
            vm_uuid="11111111-2222-3333-4444-000000000001",
            vm_name="vm1",
            disks=[types_pb2.Disk(target="vda", size_bytes=GIB)],
            primary_access_point="p.example.org:7443",
        )
        made = await sender.unary(
            address,
            "localhost",
            f"{_V1}ReplicaService/CreateReplica",
            request,
            replica_pb2.CreateReplicaResponse,
        )
        replica_id: str = made.replica.replica_id
        if not replica_id:
            raise BenchFailed("the broker admitted nothing")
        await eventually(
            lambda: sender.unary(
                address,
                "localhost",
                f"{_V1}LocationService/Locate",
                location_pb2.LocateRequest(replica_id=replica_id),
                location_pb2.LocateResponse,
            )
        )
        return replica_id
    finally:
        await asyncio.gather(admin.close(), sender.close())
