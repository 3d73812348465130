"""The node's configuration file, key for key."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from vmreplica.adapters.config_file import AbsolutePath, Between, HostPort, NotEmpty, PlainName
from vmreplica.adapters.config_sections import EtcdConfig, TlsConfig
from vmreplica.core.keys import Keys
from vmreplica.core.lease_timing import LeaseTiming, check_lease_timing
from vmreplica.core.problems import Problem

_DEFAULT_STATE = Path("/var/lib/vmreplica")
BOOT_FILE_DIRECTORIES = (
    Path("/boot"),
    Path("/usr/share"),
    Path("/var/lib/libvirt"),
    Path("/var/lib/vmreplica/boot"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageLocationConfig:
    """A directory that holds replicas."""

    path: Annotated[Path, AbsolutePath()]
    shared: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseConfig:
    """The node's lease."""

    ttl_s: Annotated[int, Between(2, 120)] = 6
    keepalive_ms: Annotated[int, Between(50, 60_000)] = 1_500
    try_ms: Annotated[int, Between(50, 60_000)] = 1_500
    margin_ms: Annotated[int, Between(0, 60_000)] = 1_000

    def timing(self) -> LeaseTiming:
        """As the core wants it."""
        return LeaseTiming(self.ttl_s * 1_000, self.keepalive_ms, self.try_ms, self.margin_ms)

    def faults(self) -> Iterable[tuple[str, str]]:
        """One lost keepalive must not end the lease."""
        try:
            check_lease_timing(self.timing(), "lease")
        except Problem as problem:
            yield "", problem.message


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """/etc/vmreplica/node.yaml"""

    cluster: Annotated[str, PlainName()]
    name: Annotated[str, PlainName()]
    advertise: Annotated[str, HostPort(port_zero=False)]
    tls: TlsConfig
    etcd: EtcdConfig | None = None
    listen: Annotated[str, HostPort()] = "0.0.0.0:7444"
    probe_listen: Annotated[str, HostPort(empty=True)] = "0.0.0.0:7454"
    standalone: bool = False
    client_access_point: Annotated[str, HostPort(empty=True, port_zero=False)] = ""
    state_dir: Annotated[Path, AbsolutePath()] = _DEFAULT_STATE
    run_dir: Annotated[Path, AbsolutePath()] | None = Path("/run/vmreplica")
    libvirt_uri: Annotated[str, NotEmpty()] = "qemu:///system"
    storage_locations: tuple[StorageLocationConfig, ...] = ()
    scratch_dir: Annotated[Path, AbsolutePath()] | None = None
    hooks_dir: Annotated[Path, AbsolutePath()] = Path("/etc/libvirt/hooks")
    boot_file_directories: tuple[Path, ...] = BOOT_FILE_DIRECTORIES
    lease: LeaseConfig = LeaseConfig()

    def faults(self) -> Iterable[tuple[str, str]]:
        """Rules across keys."""
        if not self.standalone and self.etcd is None:
            yield "etcd", "must be set, unless standalone is true"
        if self.standalone and self.etcd is not None:
            yield "etcd", "has no meaning for a standalone node"
        if self.etcd is not None and not self.etcd.is_of(self.cluster):
            yield "etcd.prefix", f"must be {Keys(self.cluster).root} for cluster {self.cluster}"
        paths = [str(location.path) for location in self.storage_locations]
        if len(set(paths)) != len(paths):
            yield "storage_locations", "names a directory twice"

    @property
    def scratch(self) -> Path:
        """Where running backups keep their scratch."""
        return self.scratch_dir or self.state_dir / "scratch"

    @property
    def server_name(self) -> str:
        """The DNS name this node's certificate shows."""
        return self.advertise.rpartition(":")[0].strip("[]")

    @property
    def access_point(self) -> str:
        """HOST:PORT by which the other side knows this side."""
        return self.client_access_point or self.advertise
