"""Real broker processes over a real etcd on loopback, mutual TLS everywhere."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from vmreplica.adapters import certificates
from vmreplica.adapters.etcd_settings import EtcdSettings
from vmreplica.adapters.etcd_store import EtcdStore
from vmreplica.adapters.grpc_channels import ChannelPool
from vmreplica.adapters.grpc_server import GrpcServer
from vmreplica.adapters.system_clock import SystemClock
from vmreplica.adapters.system_randomness import SystemRandomness
from vmreplica.adapters.tls import TlsFiles
from vmreplica.core.keys import Keys
from vmreplica.core.records import NodeRecord, StorageRecord, render
from vmreplica.ports.cluster_store import Put
from vmreplica.v1 import cycle_pb2, replica_pb2, types_pb2
from vmreplica.wire.call import Call

CLUSTER = "rtest"
KEYS = Keys(CLUSTER)
GIB = 1 << 30


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Process:
    """A daemon this test started; its output is in a file."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    def kill(self, number: int = signal.SIGKILL) -> None:
        """By its own pid, nothing else."""
        self.popen.send_signal(number)

    def end(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()


class StubNode:
    """A node as far as a broker sees it: a leased record and a few RPCs."""

    def __init__(self, name: str, seen: list[Call]) -> None:
        self.name = name
        self.seen = seen
        self.received = 0
        self.pause_s = 0.0
        self.ended = asyncio.Event()

    async def get_replica(
        self, call: Call, request: replica_pb2.GetReplicaRequest
    ) -> replica_pb2.GetReplicaResponse:
        self.seen.append(call)
        replica = types_pb2.Replica(replica_id=request.replica_id, owner=self.name, acked_seq=7)
        return replica_pb2.GetReplicaResponse(replica=replica)

    async def replicate(
        self, call: Call, requests: AsyncIterator[cycle_pb2.ReplicateRequest]
    ) -> AsyncIterator[cycle_pb2.ReplicateResponse]:
        self.seen.append(call)
        self.ended.clear()
        try:
            async for request in requests:
                match request.WhichOneof("body"):
                    case "open":
                        yield cycle_pb2.ReplicateResponse(accepted=cycle_pb2.CycleAccepted())
                    case "clusters":
                        self.received += len(request.clusters.payload)
                        await asyncio.sleep(self.pause_s)
                    case "close":
                        yield cycle_pb2.ReplicateResponse(
                            acknowledged=cycle_pb2.CycleAcknowledged(seq=1)
                        )
                        return
        finally:
            self.ended.set()


@dataclass
class BrokerRoom:
    """etcd, certificates, brokers and stub nodes in one temporary directory."""

    directory: Path
    etcd_port: int = field(default_factory=free_port)
    probe_port: int = field(default_factory=free_port)
    processes: list[Process] = field(default_factory=list)
    ports: dict[str, int] = field(default_factory=dict)
    seen: list[Call] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clock = SystemClock()
        self.certs = self.directory / "certs"
        self.certs.mkdir(parents=True)
        certificates.create_ca(self.certs, "room", self.clock.wall_ms())
        for name, sans in {
            "server": ("localhost",),
            "admin": (f"spiffe://{CLUSTER}/administrator/root",),
            "viewer": (f"spiffe://{CLUSTER}/viewer/v",),
            "p1": ("p1.example.org", "p.example.org"),
            "x1": ("x1.other.org", "x.other.org"),
            "node": ("localhost", f"spiffe://{CLUSTER}/node/n1"),
        }.items():
            self.issue(name, *sans)

    def issue(self, name: str, *sans: str) -> TlsFiles:
        issued = certificates.issue(self.certs, self.certs / name, list(sans), self.clock.wall_ms())
        return TlsFiles(issued.certificate, issued.key, self.ca)

    @property
    def ca(self) -> Path:
        return self.certs / certificates.CA_CERTIFICATE

    def files(self, name: str) -> TlsFiles:
        return TlsFiles(
            self.certs / f"{name}.pem",
            self.certs / f"{name}.key",
            self.ca,
        )

    def pool(self, name: str) -> ChannelPool:
        return ChannelPool(self.files(name), self.clock)

    def start(self, name: str, command: list[str]) -> Process:
        log = self.directory / f"{name}.log"
        with log.open("ab") as out:
            popen = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
        process = Process(name, popen, log)
        self.processes.append(process)
        return process

    def start_etcd(self) -> Process:
        server = self.files("server")
        peer = free_port()
        return self.start(
            "etcd",
            [
                "etcd",
                f"--data-dir={self.directory / 'etcd'}",
                f"--listen-client-urls=https://127.0.0.1:{self.etcd_port}",
                f"--advertise-client-urls=https://127.0.0.1:{self.etcd_port}",
                f"--listen-peer-urls=http://127.0.0.1:{peer}",
                f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
                f"--initial-cluster=default=http://127.0.0.1:{peer}",
                f"--cert-file={server.certificate}",
                f"--key-file={server.key}",
                f"--trusted-ca-file={self.ca}",
                "--client-cert-auth",
            ],
        )

    def config(self, name: str, **changes: object) -> Path:
        self.ports.setdefault(name, free_port())
        port = self.ports[name]
        own = self.issue(name, "localhost", f"spiffe://{CLUSTER}/broker/{name}")
        tree: dict[str, object] = {
            "cluster": CLUSTER,
            "name": name,
            "listen": f"127.0.0.1:{port}",
            "advertise": f"localhost:{port}",
            "probe_listen": "",
            "run_dir": str(self.directory / name),
            "state_dir": str(self.directory / name),
            "client_access_point": {"name": "cap.example.org", "kind": "dns"},
            "tls": {"certificate": str(own.certificate), "key": str(own.key), "ca": str(self.ca)},
            "etcd": {
                "endpoints": [f"localhost:{self.etcd_port}"],
                "certificate": str(own.certificate),
                "key": str(own.key),
                "ca": str(self.ca),
            },
            "election": {"ttl_s": 2, "keepalive_ms": 300, "try_ms": 400, "margin_ms": 300},
        }
        tree.update(changes)
        path = self.directory / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tree))
        return path

    def start_broker(self, name: str, **changes: object) -> Process:
        path = self.config(name, **changes)
        return self.start(name, [sys.executable, "-m", "broker", "--config", str(path)])

    def store(self) -> EtcdStore:
        admin = self.files("admin")
        settings = EtcdSettings(
            endpoints=(f"localhost:{self.etcd_port}",),
            ca_path=str(self.ca),
            certificate_path=str(admin.certificate),
            key_path=str(admin.key),
        )
        return EtcdStore(settings, self.clock, SystemRandomness())

    @asynccontextmanager
    async def node(self, store: EtcdStore, name: str) -> AsyncIterator[StubNode]:
        """A stub node that lives as long as the block."""
        stub = StubNode(name, self.seen)
        server = GrpcServer(
            listen="127.0.0.1:0",
            tls_files=self.files("node"),
            cluster=CLUSTER,
            clock=self.clock,
            node_name=name,
        )
        server.add("vmreplica.v1.ReplicaService", stub)
        server.add("vmreplica.v1.CycleService", stub)
        port = await server.start()
        lease = await store.grant(60_000)
        record = NodeRecord(
            name=name,
            incarnation="i1",
            address=f"localhost:{port}",
            server_name="localhost",
            version="0.1.0",
            storage=(
                StorageRecord(path="/s", shared=True, total_bytes=99 * GIB, free_bytes=90 * GIB),
            ),
        )
        await store.transaction([], [Put(KEYS.node(name, "i1"), render(record), lease.lease_id)])
        try:
            yield stub
        finally:
            await store.revoke(lease.lease_id)
            await server.stop(0)

    def close(self) -> None:
        for process in reversed(self.processes):
            process.end()


async def eventually(what: object, seconds: float = 20.0) -> object:
    """The first truthy answer of an async function; what it raises meanwhile is shown at the end."""
    assert callable(what)
    give_up = time.monotonic() + seconds
    last: BaseException | None = None
    while time.monotonic() < give_up:
        try:
            answer = await what()
            if answer:
                return answer
        except Exception as error:
            last = error
        await asyncio.sleep(0.05)
    raise AssertionError(f"it never came true; last: {last!r}") from last


def resident_bytes(pid: int) -> int:
    """RSS of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
