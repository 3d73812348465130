"""Real etcd clusters for the contract room: mTLS, loopback, temporary directories, free ports."""

from __future__ import annotations

import datetime
import ipaddress
import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from vmreplica.adapters.etcd_settings import EtcdSettings

# Not a test file, but its assertions should explain themselves as if it were.
pytest.register_assert_rewrite("tests.contract.store_facts", "tests.contract.store_room")


class Certificates:
    """A throw-away authority and what it signs, as PEM files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._ca_key = ec.generate_private_key(ec.SECP256R1())
        self.ca = self._sign("ca", self._ca_key, issuer=None)

    def issue(self, name: str) -> tuple[str, str]:
        """Certificate and key path, for server and client use on loopback."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(name, key, issuer=self.ca)
        (self.directory / f"{name}.crt").write_bytes(_pem(certificate))
        (self.directory / f"{name}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return str(self.directory / f"{name}.crt"), str(self.directory / f"{name}.key")

    @property
    def ca_path(self) -> str:
        path = self.directory / "ca.crt"
        path.write_bytes(_pem(self.ca))
        return str(path)

    def _sign(
        self, name: str, key: ec.EllipticCurvePrivateKey, issuer: x509.Certificate | None
    ) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer.subject if issuer else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), True)
        )
        if issuer is not None:
            names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
            usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), False)
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), False)
        return builder.sign(self._ca_key, hashes.SHA256())


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class EtcdCluster:
    """Members are numbered from 0. Only processes started here are ever signalled."""

    def __init__(self, directory: Path, members: int) -> None:
        self.directory = directory
        self.certificates = Certificates(directory)
        self.server_files = self.certificates.issue("server")
        self.client_files = self.certificates.issue("client")
        self.ca_path = self.certificates.ca_path
        ports = free_ports(2 * members)
        self.client_ports, self.peer_ports = ports[:members], ports[members:]
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        for member in range(members):
            self.start(member)
        for member in range(members):
            self.wait_healthy(member)

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(f"127.0.0.1:{port}" for port in self.client_ports)

    def settings(self, **changes: object) -> EtcdSettings:
        certificate, key = self.client_files
        values: dict[str, object] = {
            "endpoints": self.endpoints,
            "ca_path": self.ca_path,
            "certificate_path": certificate,
            "key_path": key,
        }
        return EtcdSettings(**{**values, **changes})  # type: ignore[arg-type]

    def start(self, member: int) -> None:
        certificate, key = self.server_files
        peers = [f"m{i}=https://127.0.0.1:{port}" for i, port in enumerate(self.peer_ports)]
        client_url = f"https://127.0.0.1:{self.client_ports[member]}"
        peer_url = f"https://127.0.0.1:{self.peer_ports[member]}"
        arguments = {
            "name": f"m{member}",
            "data-dir": str(self.directory / f"m{member}"),
            "listen-client-urls": client_url,
            "advertise-client-urls": client_url,
            "listen-peer-urls": peer_url,
            "initial-advertise-peer-urls": peer_url,
            "initial-cluster": ",".join(peers),
            "initial-cluster-state": "new",
            "trusted-ca-file": self.ca_path,
            "cert-file": certificate,
            "key-file": key,
            "peer-trusted-ca-file": self.ca_path,
            "peer-cert-file": certificate,
            "peer-key-file": key,
        }
        command = ["etcd", "--client-cert-auth", "--peer-client-cert-auth"]
        command += [f"--{name}={value}" for name, value in arguments.items()]
        with (self.directory / f"m{member}.log").open("ab") as log:
            self.processes[member] = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, "GOMAXPROCS": "2"}
            )

    def wait_healthy(self, member: int, seconds: float = 20.0) -> None:
        context = ssl.create_default_context(cafile=self.ca_path)
        context.load_cert_chain(*self.client_files)
        url = f"https://127.0.0.1:{self.client_ports[member]}/health"
        give_up_at = time.monotonic() + seconds
        while True:
            try:
                with urllib.request.urlopen(url, context=context, timeout=2) as answer:
                    if b"true" in answer.read():
                        return
            except OSError:
                pass
            if time.monotonic() > give_up_at:
                log = (self.directory / f"m{member}.log").read_text()[-2000:]
                raise RuntimeError(f"etcd member {member} is not healthy:\n{log}")
            time.sleep(0.05)

    def kill(self, member: int) -> None:
        process = self.processes.pop(member)
        process.kill()
        process.wait()

    def pause(self, member: int) -> None:
        process = self.processes[member]
        process.send_signal(signal.SIGSTOP)
        # The signal is sent when kill(2) returns, but threads may still be answering.
        tasks = Path(f"/proc/{process.pid}/task")
        while not all(_state(task) == "T" for task in tasks.iterdir()):
            time.sleep(0.001)

    def resume(self, member: int) -> None:
        self.processes[member].send_signal(signal.SIGCONT)

    def restart(self, member: int) -> None:
        self.start(member)
        self.wait_healthy(member)

    def close(self) -> None:
        for member in list(self.processes):
            self.resume(member)
            self.kill(member)
        shutil.rmtree(self.directory, ignore_errors=True)


def _state(task: Path) -> str:
    return (task / "stat").read_text().rpartition(")")[2].split()[0]


def _cluster(members: int) -> Iterator[EtcdCluster]:
    if shutil.which("etcd") is None:
        pytest.skip("etcd is not installed (Debian: etcd-server)")
    # Memory where there is some: fsync is not what this room is about.
    where = "/dev/shm" if Path("/dev/shm").is_dir() else None
    cluster = EtcdCluster(Path(tempfile.mkdtemp(prefix="etcd-", dir=where)), members)
    try:
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="session")
def etcd_single() -> Iterator[EtcdCluster]:
    """One member, shared by the tests that only talk to it."""
    yield from _cluster(1)


@pytest.fixture(scope="module")
def etcd_three() -> Iterator[EtcdCluster]:
    """Three members, for the tests that harm them; each test heals what it did."""
    yield from _cluster(3)


def pytest_report_header() -> str:
    return f"etcd: {shutil.which('etcd') or 'not installed, its tests are skipped'}"
