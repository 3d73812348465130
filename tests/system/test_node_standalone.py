"""A standalone node as a process: SQLite, real files, mutual TLS, a gRPC client of another side."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.unit.replica_world import DISKS, XML, Sent, cluster, make_cycle, raw_frame
from vmreplica.adapters import certificates
from vmreplica.adapters.grpc_channels import ChannelPool
from vmreplica.adapters.grpc_replica_link import GrpcReplicaLink
from vmreplica.adapters.system_clock import SystemClock
from vmreplica.adapters.tls import TlsFiles
from vmreplica.core.cycle import Accepted, Acknowledged
from vmreplica.core.problems import Problem, Reason
from vmreplica.ports.replica_link import LinkFailed, Location, NewReplica, ReplicaHead
from vmreplica.v1 import connection_pb2, replica_pb2, settings_pb2, store_pb2

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = "solo"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Room:
    """One standalone node and the certificates of everybody."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.store = directory / "store"
        self.store.mkdir()
        clock = SystemClock()
        certs = directory / "certs"
        certs.mkdir()
        certificates.create_ca(certs, "room", clock.wall_ms())
        self.files: dict[str, TlsFiles] = {}
        for name, sans in {
            "node": ["localhost", f"spiffe://{CLUSTER}/node/n1", f"spiffe://{CLUSTER}/broker/n1"],
            "admin": [f"spiffe://{CLUSTER}/administrator/root"],
            "p1": ["p1.example.org"],
            "x1": ["x1.other.org"],
        }.items():
            issued = certificates.issue(certs, certs / name, sans, clock.wall_ms())
            self.files[name] = TlsFiles(issued.certificate, issued.key, certs / "ca.pem")
        self.config = directory / "node.yaml"
        tls = self.files["node"]
        self.config.write_text(
            yaml.safe_dump(
                {
                    "cluster": CLUSTER,
                    "name": "n1",
                    "listen": f"127.0.0.1:{self.port}",
                    "advertise": f"localhost:{self.port}",
                    "probe_listen": "",
                    "standalone": True,
                    "state_dir": str(directory / "state"),
                    "run_dir": str(directory / "run"),
                    "libvirt_uri": "test:///default",
                    "storage_locations": [{"path": str(self.store), "shared": False}],
                    "tls": {
                        "certificate": str(tls.certificate),
                        "key": str(tls.key),
                        "ca": str(tls.ca),
                    },
                }
            )
        )
        self.log = (directory / "log").open("ab")
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def cap(self) -> str:
        return f"localhost:{self.port}"

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "node", "--config", str(self.config)],
            stdout=self.log,
            stderr=self.log,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def end(self, number: int = signal.SIGKILL) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(30)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    room = Room(tmp_path_factory.mktemp("standalone"))
    room.start()
    yield room
    room.end()
    text = (room.directory / "log").read_text()
    assert "Traceback" not in text, text


class Sender:
    """The other side."""

    def __init__(self, room: Room, name: str = "p1") -> None:
        self.room = room
        self.pool = ChannelPool(room.files[name], SystemClock())
        self.link = GrpcReplicaLink(self.pool)

    async def admitted(self, vm_uuid: str) -> ReplicaHead:
        """Admission, repeated until the node has come up."""
        new = NewReplica(
            vm_uuid=vm_uuid,
            vm_name=f"guest-{vm_uuid[:4]}",
            disks=DISKS,
            domain_xml=XML,
            primary_access_point="p1.example.org:7444",
            frequency_ms=300_000,
        )
        return await patiently(
            lambda: self.link.create_replica(self.room.cap, new, str(uuid.uuid4()))
        )

    async def head(self, replica_id: str) -> ReplicaHead:
        return await patiently(lambda: self.link.get_head(self.room.cap, replica_id))

    async def cycle(self, sent: Sent, *, upto: int | None = None) -> Acknowledged | int:
        """A whole cycle; with ``upto`` it is cut after so many frames."""
        where: Location = await patiently(
            lambda: self.link.locate(self.room.cap, sent.open.replica_id)
        )
        stream = await self.link.replicate(self.room.cap, where)
        try:
            opened = await stream.open(replace(sent.open, epoch=where.epoch))
            if isinstance(opened, Acknowledged):
                return opened
            assert isinstance(opened, Accepted)
            for frame in sent.frames[opened.durable_frames : upto]:
                await stream.send(frame)
            if upto is not None:
                return opened.durable_frames
            await stream.send(sent.close)
            while not isinstance(reply := await stream.receive(), Acknowledged):
                pass
            return reply
        finally:
            await stream.cancel()


async def patiently(ask):
    for _ in range(150):
        try:
            return await ask()
        except (LinkFailed, Problem) as refused:
            if isinstance(refused, Problem) and not refused.retryable:
                raise
            await asyncio.sleep(0.2)
    return await ask()


@pytest.fixture
async def sender(room: Room) -> AsyncIterator[Sender]:
    admin = ChannelPool(room.files["admin"], SystemClock())
    wish = settings_pb2.UpdateSettingsRequest(
        settings={"any_server": "true", "default_storage_location": str(room.store)}
    )
    await patiently(
        lambda: admin.unary(
            room.cap,
            "",
            "/vmreplica.v1.SettingsService/UpdateSettings",
            wish,
            settings_pb2.UpdateSettingsResponse,
        )
    )
    await admin.close()
    sender = Sender(room)
    yield sender
    await sender.pool.close()


TAIL = b"c" * 512 + bytes(65_536 - 512)
FULL = [raw_frame(0, {1: cluster("a"), 2: b""}), raw_frame(1, {0: cluster("b"), 1: TAIL})]


def of(head: ReplicaHead, sent: Sent) -> Sent:
    return Sent(replace(sent.open, replica_id=head.replica_id), sent.frames, sent.close)


async def test_full_delta_cut_resume_and_restart(room: Room, sender: Sender) -> None:
    head = await sender.admitted(str(uuid.uuid4()))
    first = await sender.cycle(of(head, make_cycle(1, b"", FULL)))
    assert isinstance(first, Acknowledged) and first.seq == 1
    frames = [raw_frame(0, {i: cluster(f"d{i}")}) for i in range(3, 9)]
    delta = of(head, make_cycle(2, first.cycle_digest, frames, resume=True))
    await sender.cycle(delta, upto=4)
    second = await sender.cycle(delta)
    assert isinstance(second, Acknowledged) and second.seq == 2
    assert room.end(signal.SIGTERM) == 0
    room.start()
    again = await sender.head(head.replica_id)
    assert (again.acked_seq, again.acked_digest) == (2, second.cycle_digest)
    assert again.epoch > head.epoch
    room.end(signal.SIGKILL)
    room.start()
    third = of(head, make_cycle(3, second.cycle_digest, [raw_frame(0, {1: cluster("z")})]))
    reply = await patiently(lambda: sender.cycle(third))
    assert reply.seq == 3


async def test_outsiders_learn_nothing_and_the_daemon_lives(room: Room, sender: Sender) -> None:
    head = await sender.admitted(str(uuid.uuid4()))
    outsider = Sender(room, "x1")
    with pytest.raises(Problem) as caught:
        await outsider.link.get_head(room.cap, head.replica_id)
    assert caught.value.reason is Reason.UNKNOWN_REPLICA
    with pytest.raises(Problem) as caught:
        await outsider.cycle(of(head, make_cycle(1, b"", FULL)))
    assert caught.value.reason is Reason.UNKNOWN_REPLICA
    await outsider.pool.close()
    bad = of(head, make_cycle(1, b"", FULL))
    for wrong, reason in (
        (replace(bad.close, cycle_digest=b"x" * 16), Reason.DIGEST_MISMATCH),
        (replace(bad.close, clusters=99), Reason.DIGEST_MISMATCH),
    ):
        with pytest.raises(Problem) as caught:
            await sender.cycle(Sent(bad.open, bad.frames, wrong))
        assert caught.value.reason is reason
    reply = await sender.cycle(bad)
    assert isinstance(reply, Acknowledged) and reply.seq == 1
    points = await sender.pool.unary(
        room.cap,
        "",
        "/vmreplica.v1.ReplicaService/ListPoints",
        replica_pb2.ListPointsRequest(replica_id=head.replica_id),
        replica_pb2.ListPointsResponse,
    )
    assert [point.seq for point in points.items] == [1]
    assert points.items[0].chains[0].qemu_json.startswith("json:")


async def test_store_check_and_connection_test_answer_with_rows(room: Room, sender: Sender) -> None:
    await sender.admitted(str(uuid.uuid4()))
    admin = ChannelPool(room.files["admin"], SystemClock())
    checked = await admin.unary(
        room.cap,
        "",
        "/vmreplica.v1.StoreService/CheckStore",
        store_pb2.CheckStoreRequest(path=str(room.store)),
        store_pb2.CheckStoreResponse,
    )
    assert checked.checks
    assert all(row.ok for row in checked.checks), checked
    with pytest.raises(Problem) as caught:
        await admin.unary(
            room.cap,
            "",
            "/vmreplica.v1.StoreService/CheckStore",
            store_pb2.CheckStoreRequest(path="/nowhere"),
            store_pb2.CheckStoreResponse,
        )
    assert caught.value.reason is Reason.BAD_FIELD
    for to, good in ((room.cap, True), (f"localhost:{free_port()}", False)):
        tested = await admin.unary(
            room.cap,
            "",
            "/vmreplica.v1.ConnectionService/TestConnection",
            connection_pb2.TestConnectionRequest(to=to, each_node=True),
            connection_pb2.TestConnectionResponse,
        )
        assert all(row.ok for row in tested.checks) is good, tested
        assert [row.name for row in tested.checks][-1] == ("node" if good else "tcp"), tested
    await admin.close()
