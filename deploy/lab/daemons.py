"""Daemons of a host: etcd, the product's broker and node, libvirtd."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from deploy.lab.cgroups import wait_for
from deploy.lab.configuration import ETCD_CLIENT_PORT, ETCD_PEER_PORT
from deploy.lab.hosts import HostControl
from deploy.lab.model import (
    BROKER_PROBE_PORT,
    NODE_PROBE_PORT,
    Host,
    LabError,
    Role,
    Settings,
)
from deploy.lab.place import VENV_BIN, Place, tail
from deploy.lab.processes import in_network_of, run, spawn

_PROGRAMS = {
    "etcd": ("etcd",),
    "broker": ("vmreplica-broker",),
    "node": ("vmreplica-node",),
    "libvirtd": ("libvirtd",),
}
_PROBE_PORTS = {"broker": BROKER_PROBE_PORT, "node": NODE_PROBE_PORT}


@dataclass(frozen=True, slots=True)
class Daemons:
    """Starts, stops and asks the daemons of one host."""

    place: Place
    settings: Settings
    control: HostControl

    @property
    def _host(self) -> Host:
        return self.control.host

    def wanted(self) -> list[str]:
        """Names of what should run here, in starting order."""
        names = []
        if self._host.has(Role.ETCD):
            names.append("etcd")
        if self.settings.daemons and self._host.has(Role.BROKER):
            names.append("broker")
        if self.settings.daemons and (self._host.has(Role.NODE) or self._host.has(Role.PRIMARY)):
            names.append("node")
        return names

    def pid(self, name: str) -> int | None:
        return self.control.process(*_PROGRAMS[self._known(name)])

    def start(self, name: str) -> None:
        """No-op when it runs."""
        if self.pid(name) is not None:
            return
        argv = self._command(name)
        inside = self.control.inside(["setsid", "-f", *argv])
        spawn(inside, self.place.log(self._host, name))

    def stop(self, name: str, timeout_s: float = 20) -> None:
        """SIGTERM, and wait."""
        self._signal(name, "TERM", timeout_s)

    def kill(self, name: str) -> None:
        """SIGKILL, and wait."""
        self._signal(name, "KILL", 5)

    def _signal(self, name: str, signal: str, timeout_s: float) -> None:
        pid = self.pid(name)
        if pid is None:
            return
        run(["kill", f"-{signal}", str(pid)], check=False)
        what = f"{name} on {self._host.name} after SIG{signal}"
        wait_for(lambda: self.pid(name) != pid, timeout_s, what)

    def wait_ready(self, name: str, timeout_s: float = 40) -> None:
        """Until it answers; LabError with its last words when it dies or stays silent."""
        check = {"libvirtd": self._libvirtd_answers, "etcd": self._etcd_healthy}.get(
            name, self._probe_of(name)
        )
        end = time.monotonic() + timeout_s
        gone = 0
        while not check():
            # A daemon just being started is not there yet: believe the second look.
            gone = gone + 1 if self.pid(name) is None else 0
            if gone > 20:
                raise self._failure(name, "is not running")
            if time.monotonic() > end:
                raise self._failure(name, f"is not ready within {timeout_s:g} s")
            time.sleep(0.05)

    def _failure(self, name: str, what: str) -> LabError:
        log = self.place.log(self._host, name)
        return LabError(f"{name} on {self._host.name} {what}; end of {log}:\n{tail(log)}")

    def _known(self, name: str) -> str:
        if name not in _PROGRAMS:
            raise LabError(f"no daemon {name}; known: {' '.join(_PROGRAMS)}")
        return name

    def _command(self, name: str) -> list[str]:
        match name:
            case "etcd":
                return self._etcd_command()
            case "libvirtd":
                return ["libvirtd"]
            case _:
                program = VENV_BIN / f"vmreplica-{name}"
                return [str(program), "--config", f"/etc/vmreplica/{name}.yaml"]

    def _etcd_command(self) -> list[str]:
        host, tls = self._host, self.place.host(self._host) / "etcd-tls"
        members = self.settings.with_role(Role.ETCD)
        cluster = ",".join(f"{m.name}=https://{m.address}:{ETCD_PEER_PORT}" for m in members)
        heartbeat, election = ("50", "300") if self.settings.etcd_fast else ("100", "1000")
        data = self.place.host(host) / "etcd-data"
        peer, client = (f"https://{host.address}:{p}" for p in (ETCD_PEER_PORT, ETCD_CLIENT_PORT))
        flags = {
            "name": host.name,
            "data-dir": str(data),
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "listen-client-urls": f"{client},https://127.0.0.1:{ETCD_CLIENT_PORT}",
            "advertise-client-urls": f"https://{host.fqdn}:{ETCD_CLIENT_PORT}",
            "initial-cluster": cluster,
            "initial-cluster-token": f"lab-{self.place.id}",
            "initial-cluster-state": "new",
            "heartbeat-interval": heartbeat,
            "election-timeout": election,
            "cert-file": f"{tls}/member.crt",
            "key-file": f"{tls}/member.key",
            "trusted-ca-file": f"{tls}/ca.crt",
            "client-cert-auth": "true",
            "peer-cert-file": f"{tls}/member.crt",
            "peer-key-file": f"{tls}/member.key",
            "peer-trusted-ca-file": f"{tls}/ca.crt",
            "peer-client-cert-auth": "true",
        }
        return ["etcd", *(f"--{name}={value}" for name, value in flags.items())]

    def _etcd_healthy(self) -> bool:
        tls = self.place.host(self._host) / "etcd-tls"
        argv = [
            "env",
            "ETCDCTL_API=3",
            "etcdctl",
            f"--endpoints=https://127.0.0.1:{ETCD_CLIENT_PORT}",
            f"--cacert={tls}/ca.crt",
            f"--cert={tls}/member.crt",
            f"--key={tls}/member.key",
            "--command-timeout=1s",
            "endpoint",
            "health",
        ]
        return run(self.control.inside(argv), check=False).returncode == 0

    def _libvirtd_answers(self) -> bool:
        argv = ["timeout", "5", "virsh", "-q", "-c", "qemu:///system", "uri"]
        return run(self.control.inside(argv), check=False).returncode == 0

    def _probe_of(self, name: str) -> Callable[[], bool]:
        port = _PROBE_PORTS.get(name, 0)
        return lambda: self._get_ready(port)

    def _get_ready(self, port: int) -> bool:
        """GET /readyz, on loopback or on the host's own address."""
        pid = self.control.init_pid()
        if pid is None:
            return False
        addresses = ("127.0.0.1", self._host.address)
        return any(in_network_of(pid, partial(_http_ok, address, port)) for address in addresses)


def _http_ok(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=2) as connection:
            connection.sendall(f"GET /readyz HTTP/1.0\r\nHost: {address}\r\n\r\n".encode())
            return b" 200 " in connection.recv(64).split(b"\r\n")[0] + b" "
    except OSError:
        return False
