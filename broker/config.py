"""The broker's configuration file, key for key."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from vmreplica.adapters.config_file import (
    AbsolutePath,
    Between,
    HostName,
    HostPort,
    OneOf,
    PlainName,
)
from vmreplica.adapters.config_sections import EtcdConfig, TlsConfig
from vmreplica.core.keys import Keys
from vmreplica.core.lease_timing import LeaseTiming, check_lease_timing
from vmreplica.core.problems import Problem

_EVERY_ADDRESS = ("0.0.0.0", "[::]", "*", "::")  # noqa: S104 - names to compare with


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessPointConfig:
    """The one address by which other clusters and people know this cluster."""

    name: Annotated[str, HostName()]
    port: Annotated[int, Between(1, 65_535)] = 7443
    kind: Annotated[str, OneOf(("vip", "dns", "service"))] = "vip"
    address: str = ""
    interface: str = ""

    def faults(self) -> Iterable[tuple[str, str]]:
        """A VIP needs an address with its prefix and an interface; others have neither."""
        if self.kind != "vip":
            for key in ("address", "interface"):
                if getattr(self, key):
                    yield key, f"belongs to kind vip, not to {self.kind}"
            return
        try:
            ipaddress.ip_interface(self.address)
        except ValueError:
            yield "address", f"must be ADDRESS/PREFIX for kind vip, not {self.address!r}"
        else:
            if "/" not in self.address:
                yield "address", f"must name its prefix, as in {self.address}/24"
        if not self.interface:
            yield "interface", "must name the network interface that holds the address"


@dataclass(frozen=True, slots=True, kw_only=True)
class ElectionConfig:
    """The candidates' lease."""

    ttl_s: Annotated[int, Between(2, 60)] = 4
    keepalive_ms: Annotated[int, Between(50, 30_000)] = 700
    try_ms: Annotated[int, Between(50, 30_000)] = 900
    margin_ms: Annotated[int, Between(0, 30_000)] = 500

    def timing(self) -> LeaseTiming:
        """As the core wants it."""
        return LeaseTiming(self.ttl_s * 1_000, self.keepalive_ms, self.try_ms, self.margin_ms)

    def faults(self) -> Iterable[tuple[str, str]]:
        """One lost keepalive must not end the lease."""
        try:
            check_lease_timing(self.timing(), "election")
        except Problem as problem:
            yield "", problem.message


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerConfig:
    """/etc/vmreplica/broker.yaml"""

    cluster: Annotated[str, PlainName()]
    name: Annotated[str, PlainName()]
    advertise: Annotated[str, HostPort(port_zero=False)]
    client_access_point: AccessPointConfig
    tls: TlsConfig
    etcd: EtcdConfig
    listen: Annotated[str, HostPort()] = "0.0.0.0:7443"
    probe_listen: Annotated[str, HostPort(empty=True)] = "0.0.0.0:7453"
    run_dir: Annotated[Path, AbsolutePath()] | None = Path("/run/vmreplica")
    state_dir: Annotated[Path, AbsolutePath()] = Path("/var/lib/vmreplica")
    election: ElectionConfig = ElectionConfig()

    def faults(self) -> Iterable[tuple[str, str]]:
        """Rules across keys."""
        if not self.etcd.is_of(self.cluster):
            yield "etcd.prefix", f"must be {Keys(self.cluster).root} for cluster {self.cluster}"
        host = self.listen.rpartition(":")[0]
        if self.client_access_point.kind == "vip" and host not in _EVERY_ADDRESS:
            # The address comes and goes; only a listener on all addresses meets it.
            yield "listen", "must listen on all addresses (0.0.0.0 or [::]) for kind vip"

    @property
    def access_point(self) -> str:
        """HOST:PORT of the client access point."""
        name = self.client_access_point.name
        bracketed = f"[{name}]" if ":" in name else name
        return f"{bracketed}:{self.client_access_point.port}"
