"""A standalone node as a process, and a client that says what no client of ours would say.

The client speaks raw gRPC over mutual TLS, so that status, details and half-sent streams can be
looked at as they are on the wire.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import yaml
from cryptography import x509
from google.rpc import error_details_pb2, status_pb2

from tests.support.commands import ROOT, vmrctl
from tests.unit.replica_world import DISKS, XML, Sent, cluster, make_cycle, raw_frame
from vmreplica.adapters import certificates
from vmreplica.adapters.grpc_channels import write_raw
from vmreplica.adapters.grpc_options import channel_options
from vmreplica.adapters.system_clock import SystemClock
from vmreplica.adapters.tls import TlsFiles
from vmreplica.core.cycle import CycleRequest
from vmreplica.core.problems import REASONS, Reason
from vmreplica.v1 import cycle_pb2, location_pb2, replica_pb2, settings_pb2
from vmreplica.wire.cycle_messages import request_to_message
from vmreplica.wire.problem_status import DETAILS_KEY

CLUSTER = "solo"
PATIENCE_S = 30.0
TAIL = b"c" * 512 + bytes(65_536 - 512)
FULL = [raw_frame(0, {1: cluster("a"), 2: b""}), raw_frame(1, {0: cluster("b"), 1: TAIL})]
NAMES: Mapping[str, tuple[str, ...]] = {
    "node": ("localhost", f"spiffe://{CLUSTER}/node/n1", f"spiffe://{CLUSTER}/broker/n1"),
    "admin": (f"spiffe://{CLUSTER}/administrator/root",),
    "viewer": (f"spiffe://{CLUSTER}/viewer/v",),
    "p1": ("p1.example.org",),
    "x1": ("x1.other.org",),
    "other": ("x1.other.org", "spiffe://other/node/x1", "spiffe://other/administrator/x1"),
    "revoked": ("p1.example.org", f"spiffe://{CLUSTER}/administrator/gone"),
}


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True, slots=True)
class Refusal:
    """What came over the wire in place of an answer."""

    code: str
    message: str
    reason: str
    domain: str
    facts: dict[str, str]

    def check(self, reason: Reason, field: str | None = None) -> None:
        """Status, reason, retryability and remedy are those of the contract."""
        known = REASONS[reason]
        assert self.reason == reason.value, self
        assert (self.code, self.domain) == (known.grpc_code, "vmreplica.dev"), self
        assert self.facts["retryable"] == str(known.retryable).lower(), self
        assert {"field", "value", "remedy"} <= set(self.facts), self
        assert self.facts["remedy"], self
        assert self.message and "Traceback" not in self.message, self
        if field is not None:
            assert self.facts["field"] == field, self


def refusal_of(error: grpc.aio.AioRpcError) -> Refusal:
    """Status and details of a failed call, unchanged."""
    details = dict(error.trailing_metadata() or ()).get(DETAILS_KEY, b"")
    info = error_details_pb2.ErrorInfo()
    assert isinstance(details, bytes)
    for detail in status_pb2.Status.FromString(details).details:
        detail.Unpack(info)
    message = error.details() or ""
    return Refusal(error.code().name, message, info.reason, info.domain, dict(info.metadata))


class Wire:
    """One certificate at one address; the files are taken as they are."""

    def __init__(self, files: TlsFiles | None, address: str, server_name: str = "localhost"):
        if files is None:
            self.channel = grpc.aio.insecure_channel(address, channel_options(""))
            return
        credentials = grpc.ssl_channel_credentials(
            files.ca.read_bytes(), files.key.read_bytes(), files.certificate.read_bytes()
        )
        options = channel_options(server_name)
        self.channel = grpc.aio.secure_channel(address, credentials, options)

    async def __aenter__(self) -> Wire:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()

    async def call(
        self, method: str, request: Any, answer: Any, metadata: Sequence[tuple[str, str]] = ()
    ) -> Any:
        """One unary call. :raises AioRpcError:"""
        multi: Any = self.channel.unary_unary(
            f"/vmreplica.v1.{method}", type(request).SerializeToString, answer.FromString
        )
        return await multi(request, timeout=20, metadata=tuple(metadata))

    async def refused(
        self, method: str, request: Any, answer: Any, metadata: Sequence[tuple[str, str]] = ()
    ) -> Refusal:
        """The refusal of one unary call."""
        try:
            got = await self.call(method, request, answer, metadata)
        except grpc.aio.AioRpcError as error:
            return refusal_of(error)
        raise AssertionError(f"{method} was not refused: {got}")

    def stream(self, replica_id: str) -> Stream:
        """A Replicate call, nothing said yet."""
        metadata = (("vmreplica-replica-id", replica_id),)
        call = self.channel.stream_stream("/vmreplica.v1.CycleService/Replicate")
        return Stream(call(metadata=metadata, timeout=60))

    async def refused_stream(
        self, replica_id: str, messages: Iterable[CycleRequest | bytes], *, end: bool = False
    ) -> Refusal:
        """Say all of it, then read to the refusal. ``end``: half-close behind it."""
        stream = self.stream(replica_id)
        try:
            for message in messages:
                await stream.say(message)
            if end:
                await stream.call.done_writing()
        except grpc.aio.AioRpcError as error:
            return refusal_of(error)
        else:
            return await stream.refusal()
        finally:
            stream.call.cancel()


class Stream:
    """One Replicate call, message by message.

    Replies are read all the time: a status comes behind them, and a full transport would wait for
    ever for a receiver that has long refused.
    """

    def __init__(self, call: Any) -> None:
        self.call = call
        self._replies: asyncio.Queue[cycle_pb2.ReplicateResponse] = asyncio.Queue()
        self._reader = asyncio.ensure_future(self._read_all())

    async def _read_all(self) -> grpc.aio.AioRpcError:
        """Until the call has ended; its end."""
        try:
            while isinstance(raw := await self.call.read(), bytes):
                self._replies.put_nowait(cycle_pb2.ReplicateResponse.FromString(raw))
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            # The status says it all.
            pass
        code, details = await self.call.code(), await self.call.details()
        trailers = await self.call.trailing_metadata()
        return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers, details)

    async def say(self, message: CycleRequest | bytes) -> None:
        """Send a message, or bytes that are none. :raises AioRpcError:"""
        raw = message
        if not isinstance(raw, bytes):
            raw = request_to_message(raw).SerializeToString()
        writing = asyncio.ensure_future(write_raw(self.call, raw))
        try:
            await asyncio.wait((writing, self._reader), return_when=asyncio.FIRST_COMPLETED)
            if not writing.done():
                raise self._reader.result()
            writing.result()
        finally:
            writing.cancel()
            await asyncio.wait((writing,))

    async def read(self) -> cycle_pb2.ReplicateResponse:
        """The next reply. :raises AioRpcError: at the end."""
        coming = asyncio.ensure_future(self._replies.get())
        await asyncio.wait((coming, self._reader), return_when=asyncio.FIRST_COMPLETED)
        if coming.done():
            return coming.result()
        coming.cancel()
        raise self._reader.result()

    async def refusal(self) -> Refusal:
        """Read to the refusal."""
        try:
            while True:
                await self.read()
        except grpc.aio.AioRpcError as error:
            return refusal_of(error)

    async def until(self, body: str) -> cycle_pb2.ReplicateResponse:
        """The first reply of this kind. :raises AioRpcError:"""
        while not (reply := await self.read()).HasField(body):  # type: ignore[arg-type]
            pass
        return reply


async def patiently(ask: Any, *codes: str) -> Any:
    """Ask until it is answered; UNAVAILABLE (and ``codes``) is waited out."""
    give_up = time.monotonic() + PATIENCE_S
    clock = SystemClock()
    while True:
        try:
            return await ask()
        except grpc.aio.AioRpcError as error:
            late = time.monotonic() > give_up
            if late or error.code().name not in ("UNAVAILABLE", *codes):
                raise
            await clock.sleep(50)


@dataclass(slots=True)
class Replica:
    """A replica as its sender knows it."""

    replica_id: str
    epoch: int
    vm_name: str
    seq: int = 0
    digest: bytes = b""
    sent: list[Sent] = field(default_factory=list)

    def next(self, frames: Any = None, **options: Any) -> Sent:
        """The next cycle: everything first, later one cluster that differs each time."""
        seq = self.seq + 1
        word = f"cycle {seq} "
        chosen = frames or (FULL if seq == 1 else [raw_frame(0, {7: cluster(word)})])
        made = make_cycle(seq, self.digest, chosen, epoch=self.epoch, **options)
        return Sent(replace(made.open, replica_id=self.replica_id), made.frames, made.close)


class NodeRoom:
    """A directory with certificates, a configuration and a node process."""

    def __init__(self, directory: Path, **changes: Any) -> None:
        self.directory = directory
        self.port = free_port()
        self.probe_port = free_port()
        self.store = directory / "store"
        self.store.mkdir(parents=True, exist_ok=True)
        self.clock = SystemClock()
        self.certs = directory / "certs"
        self.certs.mkdir()
        certificates.create_ca(self.certs, "room", self.clock.wall_ms())
        self.files = {name: self.issue(name, *sans) for name, sans in NAMES.items()}
        self.crl = self.certs / "crl.pem"
        pem = self.files["revoked"].certificate.read_bytes()
        serial = x509.load_pem_x509_certificate(pem).serial_number
        certificates.revoke(self.certs, self.crl, [serial], self.clock.wall_ms())
        self.config = directory / "node.yaml"
        self.log_file = directory / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self.replicas: dict[str, Replica] = {}
        """What the tests of a module share."""
        self.configure(**changes)

    def issue(self, name: str, *sans: str) -> TlsFiles:
        """A certificate of the room's authority."""
        made = certificates.issue(self.certs, self.certs / name, sans, self.clock.wall_ms())
        return TlsFiles(made.certificate, made.key, self.certs / certificates.CA_CERTIFICATE)

    def configure(self, **changes: Any) -> None:
        """Write node.yaml."""
        own = self.files["node"]
        tree: dict[str, Any] = {
            "cluster": CLUSTER,
            "name": "n1",
            "listen": f"127.0.0.1:{self.port}",
            "advertise": f"localhost:{self.port}",
            "probe_listen": f"127.0.0.1:{self.probe_port}",
            "standalone": True,
            "state_dir": str(self.directory / "state"),
            "run_dir": None,
            "libvirt_uri": "test:///default",
            "storage_locations": [{"path": str(self.store), "shared": False}],
            "tls": {
                "certificate": str(own.certificate),
                "key": str(own.key),
                "ca": str(own.ca),
                "crl": str(self.crl),
            },
        }
        tree.update(changes)
        self.config.write_text(yaml.safe_dump(tree))

    @property
    def address(self) -> str:
        """Where the node listens."""
        return f"localhost:{self.port}"

    def wire(self, name: str = "p1") -> Wire:
        """A client with this certificate."""
        return Wire(self.files[name], self.address)

    def start(self) -> subprocess.Popen[bytes]:
        """Start the daemon; its output goes to a file."""
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "node", "--config", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        return self.process

    def end(self, number: int = signal.SIGKILL) -> int:
        """By its own pid; its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(30)

    def log(self) -> str:
        """What the daemon has written."""
        return self.log_file.read_text()

    def close(self) -> None:
        """End the daemon. It lived until now, and never wrote a traceback."""
        if self.process is None:
            return
        died = self.process.poll()
        self.end()
        assert died is None, f"the daemon had ended with {died}: {self.log()}"
        assert "Traceback" not in self.log(), self.log()

    async def ready(self, **settings: str) -> None:
        """Wait for the daemon, and let every sender in."""
        values = {"any_server": "true", "default_storage_location": str(self.store), **settings}
        await self.set(**values)

    async def set(self, **values: str) -> None:
        """Central settings."""
        request = settings_pb2.UpdateSettingsRequest(settings=values)
        async with self.wire("admin") as admin:
            method = "SettingsService/UpdateSettings"
            answer = settings_pb2.UpdateSettingsResponse
            await patiently(lambda: admin.call(method, request, answer))

    async def replica(
        self, wire: Wire, name: str = "", vm_uuid: str = "", cap: str = "p1.example.org:7444"
    ) -> Replica:
        """Admission of a new VM."""
        vm_uuid = vm_uuid or str(uuid.uuid4())
        request = new_replica(name or f"guest-{vm_uuid[:8]}", vm_uuid, cap)
        answer = replica_pb2.CreateReplicaResponse
        made = await patiently(
            lambda: wire.call("ReplicaService/CreateReplica", request, answer),
            "FAILED_PRECONDITION",
        )
        return Replica(made.replica.replica_id, made.replica.epoch or 1, request.vm_name)

    async def head(self, wire: Wire, replica: Replica) -> Any:
        """The head as the owner tells it."""
        request = replica_pb2.GetReplicaRequest(replica_id=replica.replica_id)
        answer = replica_pb2.GetReplicaResponse
        shown = await patiently(lambda: wire.call("ReplicaService/GetReplica", request, answer))
        return shown.replica

    async def points(self, wire: Wire, replica: Replica) -> list[Any]:
        """Its recovery points."""
        request = replica_pb2.ListPointsRequest(replica_id=replica.replica_id)
        answer = replica_pb2.ListPointsResponse
        shown = await patiently(lambda: wire.call("ReplicaService/ListPoints", request, answer))
        return list(shown.items)

    async def locate(self, wire: Wire, replica: Replica) -> Any:
        """Where it is; takes the epoch over."""
        request = location_pb2.LocateRequest(replica_id=replica.replica_id)
        answer = location_pb2.LocateResponse
        found = await patiently(lambda: wire.call("LocationService/Locate", request, answer))
        replica.epoch = found.epoch
        return found

    async def send(self, wire: Wire, replica: Replica, sent: Sent | None = None) -> Any:
        """One good cycle, acknowledged, and seen as the head and the only point."""
        cycle = sent or replica.next()
        acked = await patiently(lambda: self._send(wire, replica, cycle), "ABORTED")
        assert acked.seq == cycle.open.seq
        assert acked.cycle_digest == cycle.close.cycle_digest
        replica.seq, replica.digest = acked.seq, acked.cycle_digest
        replica.sent.append(cycle)
        return acked

    async def _send(self, wire: Wire, replica: Replica, cycle: Sent) -> Any:
        await self.locate(wire, replica)
        stream = wire.stream(replica.replica_id)
        try:
            await stream.say(replace(cycle.open, epoch=replica.epoch))
            reply = await stream.read()
            if not reply.HasField("acknowledged"):
                for frame in cycle.frames[reply.accepted.durable_frames :]:
                    await stream.say(frame)
                await stream.say(cycle.close)
                reply = await stream.until("acknowledged")
            return reply.acknowledged
        finally:
            stream.call.cancel()

    async def check(self, wire: Wire, replica: Replica) -> None:
        """What is visible is exactly what was acknowledged, bit by bit."""
        head = await self.head(wire, replica)
        points = await self.points(wire, replica)
        assert (head.acked_seq, head.acked_digest) == (replica.seq, replica.digest or bytes(16))
        assert [point.seq for point in points] == ([replica.seq] if replica.seq else [])
        for point in points:
            for chain in point.chains:
                assert self.read(chain.qemu_json) == content_of(replica, chain.target)

    def read(self, chain: str) -> bytes:
        """What plain qemu-img reads from a chain."""
        raw = self.directory / f"{uuid.uuid4().hex}.raw"
        command = ["qemu-img", "convert", "-O", "raw", chain, str(raw)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        data = raw.read_bytes()
        raw.unlink()
        return data

    def vmrctl(
        self, *words: str, certificate: str = "admin", **environ: str
    ) -> subprocess.CompletedProcess[str]:
        """The command as a person runs it."""
        return vmrctl(self.files[certificate], self.address, *words, **environ)


def new_replica(
    name: str, vm_uuid: str, cap: str = "p1.example.org:7444"
) -> replica_pb2.CreateReplicaRequest:
    """The admission request of a VM with the usual two disks."""
    request = replica_pb2.CreateReplicaRequest(
        vm_uuid=vm_uuid, vm_name=name, domain_xml=XML, primary_access_point=cap
    )
    for disk in DISKS:
        request.disks.add(target=disk.target, size_bytes=disk.size_bytes)
    return request


def content_of(replica: Replica, target: str) -> bytes:
    """One disk as the acknowledged cycles (raw and zero clusters) make it."""
    (place, disk) = next((i, d) for i, d in enumerate(DISKS) if d.target == target)
    data = bytearray(disk.clusters * 65_536)
    for sent in replica.sent:
        for frame in (f for f in sent.frames if f.disk == place):
            position = 0
            for index, stored in zip(frame.indexes, frame.stored_bytes, strict=True):
                piece = frame.payload[position : position + stored] or bytes(65_536)
                assert len(piece) == 65_536, "only plain clusters can be compared"
                data[index * 65_536 : (index + 1) * 65_536] = piece
                position += stored
    return bytes(data[: disk.size_bytes])
