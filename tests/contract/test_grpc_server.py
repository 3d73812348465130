"""GrpcServer and ChannelPool over real TLS on the loopback."""

from __future__ import annotations

import asyncio
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from tests.contract.grpc_room import (
    CLOCK,
    LOCATE,
    WATCH,
    Echo,
    Pki,
    locate,
    problem_of_call,
    raw_channel,
    server,
)
from vmreplica.adapters import certificates, tls
from vmreplica.adapters.grpc_channels import ChannelPool
from vmreplica.adapters.grpc_server import GrpcServer
from vmreplica.core.identity import Identity
from vmreplica.core.problems import REASONS, Problem, Reason
from vmreplica.v1 import event_pb2, location_pb2


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
async def room(pki: Pki) -> AsyncIterator[tuple[GrpcServer, Echo, ChannelPool, str]]:
    made, echo = server(pki.files("n1", "n1.example", "spiffe://c1/node/n1"))
    port = await made.start()
    pool = ChannelPool(pki.files("p1", "p1.example", "cap.example"), CLOCK)
    yield made, echo, pool, f"127.0.0.1:{port}"
    await pool.close()
    await made.stop(0)


async def test_unary_call_shows_identity_and_trailers(room):
    _, echo, pool, address = room
    trailers: dict[str, str] = {}
    answer = await locate(
        pool,
        address,
        "x",
        trailers=trailers,
        metadata=[
            ("vmreplica-replica-id", "r"),
            ("vmreplica-ticket", "t"),
            ("vmreplica-request-id", "q"),
        ],
    )
    assert answer.node == "p1.example,cap.example"
    assert trailers == {"vmreplica-node": "n1", "vmreplica-epoch": "41"}
    (call,) = echo.calls
    assert (call.replica_id, call.ticket, call.request_id) == ("r", "t", "q")
    assert call.relayed_by == "" and len(call.identity.fingerprint) == 64
    remaining = call.time_remaining_ms()
    assert remaining is not None and 0 < remaining <= 10_000


@pytest.mark.parametrize("reason", list(Reason))
async def test_every_reason_goes_both_ways(room, reason: Reason):
    _, _, pool, address = room
    problem = await problem_of_call(locate(pool, address, f"{reason}:{reason}"))
    assert problem.reason is reason
    assert problem.message == f"because of {reason}"
    assert (problem.field, problem.value, problem.remedy) == ("f", "v", "do it")
    assert (problem.cap, problem.node, problem.epoch) == ("cap:7443", "r2", 7)
    assert problem.retryable is REASONS[reason].retryable
    request = location_pb2.LocateRequest(replica_id=f"{reason}:x").SerializeToString()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await raw_channel(pool, address).unary_unary(LOCATE)(request)
    assert caught.value.code().name == REASONS[reason].grpc_code


async def test_a_bug_shows_nothing_of_itself(room, caplog):
    _, _, pool, address = room
    problem = await problem_of_call(locate(pool, address, "bug:"))
    assert problem.reason is Reason.INTERNAL
    assert "secret" not in problem.message
    assert "secret detail" in caplog.text


def watch(pool: ChannelPool, address: str, **fields: Any) -> AsyncIterator[Any]:
    request = event_pb2.WatchEventsRequest(**fields)
    return pool.stream(address, "n1.example", WATCH, request, event_pb2.WatchEventsResponse)


async def test_server_stream_and_its_problem(room):
    _, _, pool, address = room
    events = watch(pool, address, vm="broken")
    assert [(await anext(events)).event_id for _ in range(3)] == ["0", "1", "2"]
    problem = await problem_of_call(anext(events))
    assert problem.reason is Reason.UNKNOWN_VM and problem.value == "broken"


async def test_stop_ends_endless_streams_with_draining(room):
    made, _, pool, address = room
    events = watch(pool, address, follow=True)
    for _ in range(3):
        await anext(events)
    stopping = asyncio.create_task(made.stop(3_600_000))
    problem = await problem_of_call(anext(events))
    assert problem.reason is Reason.DRAINING
    await stopping  # would last an hour if the stream still ran: the test's timeout


async def test_unimplemented_method_and_unknown_rpc(room):
    _, _, pool, address = room
    made, _ = room[0], room[1]
    problem = await problem_of_call(
        pool.unary(
            address,
            "n1.example",
            "/vmreplica.v1.SettingsService/GetSettings",
            location_pb2.LocateRequest(),
            location_pb2.LocateResponse,
        )
    )
    assert problem.reason is Reason.UNIMPLEMENTED
    assert made.port


async def test_rpc_without_method_is_unimplemented_by_name(pki: Pki):
    made, _ = server(pki.files("n1", "n1.example"))
    made.add("vmreplica.v1.ReplicaService", object())
    address = f"127.0.0.1:{await made.start()}"
    pool = ChannelPool(pki.files("p1", "p1.example"), CLOCK)
    problem = await problem_of_call(
        pool.unary(
            address,
            "n1.example",
            "/vmreplica.v1.ReplicaService/GetReplica",
            location_pb2.LocateRequest(),
            location_pb2.LocateResponse,
        )
    )
    assert problem.reason is Reason.UNIMPLEMENTED and "GetReplica" in problem.message
    await pool.close()
    await made.stop(0)


async def test_bytes_that_are_no_message(room):
    _, _, pool, address = room
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await raw_channel(pool, address).unary_unary(LOCATE)(b"\xff\xff\xff")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_oversized_message_is_refused_and_the_server_lives(room):
    _, echo, pool, address = room
    channel = grpc.aio.secure_channel(
        address,
        grpc.ssl_channel_credentials(
            pool.material().ca_pem, pool.material().key_pem, pool.material().certificate_pem
        ),
        options=[("grpc.ssl_target_name_override", "n1.example")],
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary(LOCATE)(bytes(5 << 20))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await channel.close()
    assert (await locate(pool, address, "x")).replica_id == "x"
    assert len(echo.calls) == 1


async def test_health_and_reflection(room):
    made, _, pool, address = room
    check = "/grpc.health.v1.Health/Check"

    async def status(service: str) -> int:
        answer = await pool.unary(
            address,
            "n1.example",
            check,
            health_pb2.HealthCheckRequest(service=service),
            health_pb2.HealthCheckResponse,
        )
        return int(answer.status)

    assert await status("") == 1
    made.set_health("vmreplica.node", False)
    assert await status("vmreplica.node") == 2
    made.set_health("vmreplica.node", True)
    assert await status("vmreplica.node") == 1
    with pytest.raises(Problem):
        await status("no.such")
    watch = pool.stream(
        address,
        "n1.example",
        "/grpc.health.v1.Health/Watch",
        health_pb2.HealthCheckRequest(service="vmreplica.node"),
        health_pb2.HealthCheckResponse,
    )
    assert (await anext(watch)).status == 1
    made.set_health("vmreplica.node", False)
    assert (await anext(watch)).status == 2
    await watch.aclose()
    for version in ("v1", "v1alpha"):
        call = raw_channel(pool, address).stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
        )()
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        await call.write(request.SerializeToString())
        answer = reflection_pb2.ServerReflectionResponse.FromString(await call.read())
        names = {service.name for service in answer.list_services_response.service}
        assert {"vmreplica.v1.LocationService", "grpc.health.v1.Health"} <= names
        call.cancel()


async def test_wrong_server_name_is_refused(room):
    _, echo, pool, address = room
    problem = await problem_of_call(locate(pool, address, "x", server_name="r2.example"))
    assert problem.reason is Reason.CERTIFICATE_INVALID
    assert address in problem.message
    assert echo.calls == []


async def _refused(address: str, pool: ChannelPool, echo: Echo) -> Problem:
    problem = await problem_of_call(locate(pool, address, "x", timeout_ms=5_000))
    assert echo.calls == []
    await pool.close()
    return problem


async def test_client_of_another_authority(room, tmp_path: Path):
    _, echo, _, address = room
    other = Pki(tmp_path / "other", "other authority")
    theirs = other.files("x", "p1.example")
    ours = room[2].material()
    (tmp_path / "ca.pem").write_bytes(ours.ca_pem)
    files = tls.TlsFiles(theirs.certificate, theirs.key, tmp_path / "ca.pem")
    problem = await _refused(address, ChannelPool(files, CLOCK), echo)
    assert problem.exit_code in (5, 6)


async def test_server_of_another_authority(room, tmp_path: Path):
    _, echo, _, address = room
    other = Pki(tmp_path / "other", "other authority")
    problem = await _refused(address, ChannelPool(other.files("x", "p1.example"), CLOCK), echo)
    assert problem.reason is Reason.CERTIFICATE_INVALID


async def test_expired_client(room, pki: Pki, tmp_path: Path):
    _, echo, pool, address = room
    past = CLOCK.wall_ms() - 10 * 86_400_000
    files = pki.files("old", "p1.example", days=3, start_ms=past)
    with pytest.raises(Problem) as caught:
        ChannelPool(files, CLOCK).channel(address)
    assert caught.value.reason is Reason.CERTIFICATE_INVALID and "expired" in caught.value.message
    channel = grpc.aio.secure_channel(
        address,
        grpc.ssl_channel_credentials(
            pool.material().ca_pem, files.key.read_bytes(), files.certificate.read_bytes()
        ),
        options=[("grpc.ssl_target_name_override", "n1.example")],
    )
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await channel.unary_unary(LOCATE)(b"", timeout=5)
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
    assert echo.calls == []
    await channel.close()


@pytest.mark.parametrize("kind", ["plaintext", "no certificate"])
async def test_client_without_certificate(room, kind: str):
    _, echo, pool, address = room
    if kind == "plaintext":
        channel = grpc.aio.insecure_channel(address)
    else:
        channel = grpc.aio.secure_channel(
            address,
            grpc.ssl_channel_credentials(pool.material().ca_pem),
            options=[("grpc.ssl_target_name_override", "n1.example")],
        )
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await channel.unary_unary(LOCATE)(b"", timeout=5)
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
    await channel.close()
    assert echo.calls == []
    assert (await locate(pool, address, "x")).replica_id == "x"


async def test_client_without_names(room, pki: Pki):
    _, echo, pool, address = room
    files = pki.files("ip-only", "p1.example", "127.0.0.9")
    certificate = _without_dns(pki)
    channel = grpc.aio.secure_channel(
        address,
        grpc.ssl_channel_credentials(pool.material().ca_pem, *certificate),
        options=[("grpc.ssl_target_name_override", "n1.example")],
    )
    assert files.certificate.exists()
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await channel.unary_unary(LOCATE)(b"", timeout=5)
    assert failed.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert "subject alternative names" in failed.value.details()
    await channel.close()
    assert echo.calls == []


def _without_dns(pki: Pki) -> tuple[bytes, bytes]:
    """A certificate that names its host in the CN alone."""
    issue = certificates.issue
    refused = pytest.raises(Problem)
    with refused:
        issue(pki.directory, pki.directory / "cn", ["10.0.0.1"], CLOCK.wall_ms())
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    ca = tls.parse_certificates(pki.ca.read_bytes(), pki.ca)[0]
    ca_key = tls.parse_key((pki.directory / "ca.key").read_bytes(), "ca.key")
    subject = certificates.x509.Name(
        [certificates.x509.NameAttribute(certificates.NameOID.COMMON_NAME, "p1.example")]
    )
    builder = certificates._builder(subject, ca.subject, key.public_key(), CLOCK.wall_ms(), 2)
    return certificates._key_pem(key), certificates._pem(builder.sign(ca_key, hashes.SHA256()))


async def test_revoked_certificate_is_refused_call_by_call(pki: Pki, tmp_path: Path):
    denied: list[tuple[Identity, Problem]] = []
    files = pki.files("n1", "n1.example")
    crl = tmp_path / "crl.pem"
    certificates.revoke(pki.directory, crl, [], CLOCK.wall_ms())
    made, echo = server(
        tls.TlsFiles(files.certificate, files.key, files.ca, crl),
        on_denied=lambda identity, problem: denied.append((identity, problem)),
    )
    address = f"127.0.0.1:{await made.start()}"
    pool = ChannelPool(pki.files("p1", "p1.example"), CLOCK)
    assert (await locate(pool, address, "x")).replica_id == "x"
    certificates.revoke(
        pki.directory, crl, [pool.material().certificate.serial_number], CLOCK.wall_ms()
    )
    made._looked_ms -= 60_000  # the list is looked at every few seconds
    problem = await problem_of_call(locate(pool, address, "x"))
    assert problem.reason is Reason.CERTIFICATE_REVOKED
    assert [p.reason for _, p in denied] == [Reason.CERTIFICATE_REVOKED]
    assert denied[0][0].dns_names == ("p1.example",)
    assert len(echo.calls) == 1
    await pool.close()
    await made.stop(0)


async def test_certificates_are_taken_over_when_the_files_change(pki: Pki, tmp_path: Path):
    files = pki.files("rolling", "old.example")
    made, _ = server(files)
    address = f"127.0.0.1:{await made.start()}"
    client = pki.files("p1", "p1.example")
    first = ChannelPool(client, CLOCK)
    assert (await locate(first, address, "x", server_name="old.example")).replica_id == "x"
    pki.files("rolling", "new.example")
    second = ChannelPool(client, CLOCK)
    assert (await locate(second, address, "x", server_name="new.example")).replica_id == "x"
    # Rubbish in the files changes nothing and kills nobody.
    files.certificate.write_bytes(b"rubbish")
    with pytest.raises(Problem, match="not a PEM certificate"):
        made.reload()
    third = ChannelPool(client, CLOCK)
    assert (await locate(third, address, "x", server_name="new.example")).replica_id == "x"
    for pool in (first, second, third):
        await pool.close()
    await made.stop(0)


async def test_pool_takes_over_its_own_new_certificate(room, pki: Pki):
    _, echo, _, address = room
    files = pki.files("renewed", "before.example")
    pool = ChannelPool(files, CLOCK)
    await locate(pool, address, "x")
    pki.files("renewed", "after.example")
    pool._looked_ms = -10_000
    await locate(pool, address, "x")
    assert [call.identity.dns_names for call in echo.calls] == [
        ("before.example",),
        ("after.example",),
    ]
    await pool.close()


async def test_unix_socket_is_root_and_only_roots(tmp_path: Path):
    path = tmp_path / "run" / "node.sock"
    made, echo = server(None, unix_socket=path)
    await made.start()
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o777 == 0o600
    pool = ChannelPool(None, CLOCK)
    assert (await locate(pool, f"unix:{path}", "x", server_name="")).replica_id == "x"
    assert echo.calls[0].identity.local_root
    await pool.close()
    await made.stop(0)
    assert not path.exists()
    # A socket left behind by a killed daemon does not hinder the next one.
    again, _ = server(None, unix_socket=path)
    import socket

    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    await again.start()
    pool = ChannelPool(None, CLOCK)
    assert (await locate(pool, f"unix:{path}", "x", server_name="")).replica_id == "x"
    await pool.close()
    await again.stop(0)


async def test_port_in_use_is_a_problem(room, pki: Pki):
    address = room[3]
    second = GrpcServer(
        listen=address, tls_files=pki.files("n1", "n1.example"), cluster="c1", clock=CLOCK
    )
    with pytest.raises(Problem) as caught:
        await second.start()
    assert caught.value.reason is Reason.BAD_CONFIG and caught.value.value == address


TLS_SERVER = """
import asyncio, sys
from pathlib import Path
from vmreplica.adapters.grpc_server import GrpcServer
from vmreplica.adapters.system_clock import SystemClock
from vmreplica.adapters.tls import TlsFiles

async def main():
    files = TlsFiles(*map(Path, sys.argv[1:]))
    made = GrpcServer(listen="127.0.0.1:0", tls_files=files, cluster="c1", clock=SystemClock())
    print(await made.start(), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await made.stop(0)

asyncio.run(main())
"""


async def test_nobody_below_tls_1_3(pki: Pki):
    # In a process of its own, as daemons are: the setting counts before gRPC's first import.
    files = pki.files("n1", "n1.example")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        TLS_SERVER,
        *map(str, files.paths()),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    port = int(await process.stdout.readline())

    async def handshake(version: ssl.TLSVersion) -> str | None:
        context = ssl.create_default_context(cafile=str(files.ca))
        context.load_cert_chain(files.certificate, files.key)
        context.set_alpn_protocols(["h2"])
        context.minimum_version = context.maximum_version = version
        _, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=context, server_hostname="n1.example"
        )
        spoken: str | None = writer.get_extra_info("ssl_object").version()
        writer.close()
        return spoken

    try:
        assert await handshake(ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await handshake(ssl.TLSVersion.TLSv1_2)
    finally:
        await process.communicate(b"")  # closes its stdin: it stops


async def test_unreachable_server_is_a_problem():
    pool = ChannelPool(None, CLOCK)
    problem = await problem_of_call(
        locate(pool, "unix:/nonexistent/x.sock", "x", server_name="", timeout_ms=3_000)
    )
    assert problem.reason is Reason.NODE_UNREACHABLE and problem.retryable
    await pool.close()
