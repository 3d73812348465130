"""Certificates that must not be let in, at a real node; after each, the right one is."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.commands import told, vmrctl
from tests.support.standalone_room import NodeRoom, Refusal, Wire, patiently
from vmreplica.adapters import certificates, tls
from vmreplica.adapters.tls import TlsFiles
from vmreplica.core.problems import Reason
from vmreplica.v1 import replica_pb2, settings_pb2

pytestmark = pytest.mark.timeout(60)
DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeRoom]:
    made = NodeRoom(tmp_path_factory.mktemp("tls"))
    made.start()
    yield made
    made.close()


@pytest.fixture
async def good(room: NodeRoom) -> AsyncIterator[Wire]:
    """The right certificate, which is served before and after."""
    await room.ready()
    async with room.wire() as wire:
        if "one" not in room.replicas:
            room.replicas["one"] = await room.replica(wire, "one")
        yield wire
        await room.send(wire, room.replicas["one"])


async def settings(wire: Wire) -> Refusal:
    request = settings_pb2.GetSettingsRequest()
    return await wire.refused(
        "SettingsService/GetSettings", request, settings_pb2.GetSettingsResponse
    )


def by_hand(
    room: NodeRoom, name: str, *, sans: tuple[str, ...] = (), seconds: float = 3_600
) -> TlsFiles:
    """A certificate of the room's authority that our own tool would not issue."""
    ca = x509.load_pem_x509_certificate((room.certs / certificates.CA_CERTIFICATE).read_bytes())
    ca_key = serialization.load_pem_private_key(
        (room.certs / certificates.CA_KEY).read_bytes(), None
    )
    key = ec.generate_private_key(ec.SECP256R1())
    now = tls.utc(room.clock.wall_ms())
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "p1.example.org")]))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(seconds=seconds))
    )
    if sans:
        names = [x509.DNSName(san) for san in sans]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    certificate = builder.sign(ca_key, hashes.SHA256())  # type: ignore[arg-type]
    made = room.certs / f"{name}.pem"
    made.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    made_key = room.certs / f"{name}.key"
    form = serialization.PrivateFormat.PKCS8
    nothing = serialization.NoEncryption()
    made_key.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, nothing))
    return TlsFiles(made, made_key, room.certs / certificates.CA_CERTIFICATE)


async def test_a_certificate_without_names(room: NodeRoom, good: Wire) -> None:
    """The common name is never looked at."""
    async with Wire(by_hand(room, "nameless"), room.address) as wire:
        (await settings(wire)).check(Reason.NO_IDENTITY, "certificate")


async def test_a_certificate_that_expires_meanwhile(room: NodeRoom, good: Wire) -> None:
    """A connection may not outlive its certificate; it is refused call by call."""
    files = by_hand(room, "brief", sans=("p1.example.org",), seconds=2.5)
    request = replica_pb2.GetReplicaRequest(replica_id=room.replicas["one"].replica_id)
    async with Wire(files, room.address) as wire:

        async def ask() -> object:
            method = "ReplicaService/GetReplica"
            return await wire.call(method, request, replica_pb2.GetReplicaResponse)

        await patiently(ask)
        while True:
            try:
                await ask()
            except grpc.aio.AioRpcError:
                break
            await room.clock.sleep(100)
        refusal = await wire.refused(
            "ReplicaService/GetReplica", request, replica_pb2.GetReplicaResponse
        )
        refusal.check(Reason.CERTIFICATE_INVALID, "certificate")


async def test_a_revoked_certificate_on_an_open_connection(room: NodeRoom, good: Wire) -> None:
    async with room.wire("revoked") as wire:
        (await settings(wire)).check(Reason.CERTIFICATE_REVOKED, "certificate")


async def test_a_certificate_of_another_cluster(room: NodeRoom, good: Wire) -> None:
    """The same authority; roles of another cluster count nothing here, nor do foreign names."""
    async with room.wire("other") as wire:
        (await settings(wire)).check(Reason.ROLE_REQUIRED)
        request = replica_pb2.GetReplicaRequest(replica_id=room.replicas["one"].replica_id)
        answer = replica_pb2.GetReplicaResponse
        refusal = await wire.refused("ReplicaService/GetReplica", request, answer)
        refusal.check(Reason.UNKNOWN_REPLICA)
        stream = await wire.refused_stream(
            room.replicas["one"].replica_id, [room.replicas["one"].next().open]
        )
        stream.check(Reason.UNKNOWN_REPLICA)


def _strange_authority(room: NodeRoom) -> TlsFiles:
    """Another authority's administrator, who trusts ours."""
    other = room.directory / "other-ca"
    other.mkdir(exist_ok=True)
    now_ms = room.clock.wall_ms()
    certificates.create_ca(other, "strangers", now_ms)
    sans = ["p1.example.org", "spiffe://solo/administrator/evil"]
    made = certificates.issue(other, other / "evil", sans, now_ms)
    return TlsFiles(made.certificate, made.key, room.certs / certificates.CA_CERTIFICATE)


def _expired(room: NodeRoom) -> TlsFiles:
    now_ms = room.clock.wall_ms()
    sans = ["p1.example.org", "spiffe://solo/administrator/late"]
    out = room.certs / "expired"
    made = certificates.issue(room.certs, out, sans, now_ms, days=2, start_ms=now_ms - 10 * DAY_MS)
    return TlsFiles(made.certificate, made.key, room.certs / certificates.CA_CERTIFICATE)


async def test_connections_that_do_not_come_about(room: NodeRoom, good: Wire) -> None:
    """TLS itself refuses: no call is ever seen by the node."""
    files = room.files["p1"]
    target = room.address
    wires = {
        "plaintext": Wire(None, target),
        "another authority": Wire(_strange_authority(room), target),
        "expired": Wire(_expired(room), target),
        "another server's name": Wire(files, target, "elsewhere.example.org"),
    }
    anonymous = grpc.ssl_channel_credentials(files.ca.read_bytes())
    wires["no certificate"] = Wire(None, target)
    await wires["no certificate"].channel.close()
    wires["no certificate"].channel = grpc.aio.secure_channel(target, anonymous)
    for name, wire in wires.items():
        async with wire:
            refusal = await settings(wire)
            assert (name, refusal.code) == (name, "UNAVAILABLE")
            assert not refusal.reason, "the node itself must not have answered"


def test_certificates_as_a_person_meets_them(room: NodeRoom, tmp_path: Path) -> None:
    admin = room.files["admin"]
    rubbish = tmp_path / "rubbish.pem"
    rubbish.write_text("no PEM")
    fine = replace(admin)
    for files, exit_code, word in (
        (_strange_authority(room), 6, "cert verify"),
        (replace(admin, ca=_strange_authority(room).certificate), 5, "CERTIFICATE_INVALID"),
        (replace(admin, certificate=rubbish), 2, "rubbish.pem"),
        (replace(admin, key=tmp_path / "nothing.key"), 2, "nothing.key"),
        (room.files["revoked"], 5, "CERTIFICATE_REVOKED"),
        (by_hand(room, "nameless2"), 5, "NO_IDENTITY"),
    ):
        told(vmrctl(files, room.address, "settings", "show"), exit_code, word)
    done = vmrctl(fine, room.address, "settings", "show")
    assert done.returncode == 0, done.stderr


async def test_a_revocation_list_that_cannot_be_read_changes_nothing(
    room: NodeRoom, good: Wire
) -> None:
    """SIGHUP with a damaged list: said in the log, and what held before holds."""
    sound = room.crl.read_bytes()
    room.crl.write_text("-----BEGIN X509 CRL-----\nrubbish\n-----END X509 CRL-----\n")
    try:
        assert room.process is not None
        room.process.send_signal(signal.SIGHUP)
        while str(room.crl) not in room.log():
            await asyncio.sleep(0.05)
        async with room.wire("revoked") as wire:
            (await settings(wire)).check(Reason.CERTIFICATE_REVOKED, "certificate")
    finally:
        room.crl.write_bytes(sound)
