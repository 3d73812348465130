"""What a lab consists of: its hosts with their roles and addresses, and its settings."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path

NETWORK_PREFIX = "10.77.0"
CAP_ADDRESS = f"{NETWORK_PREFIX}.100"
CAP_NAME = "cap.lab"
CAP_ALIAS = "r-cap"
BROKER_PORT = 7443
NODE_PORT = 7444
BROKER_PROBE_PORT = 7453
NODE_PROBE_PORT = 7454

_BASES = {"p": 10, "r": 20, "b": 30, "e": 40, "c": 50}


class LabError(Exception):
    """Something the person at the keyboard should read; shown without a traceback."""


class Role(StrEnum):
    """What runs on a host."""

    PRIMARY = "primary"  # standalone node with guests
    NODE = "node"
    BROKER = "broker"
    ETCD = "etcd"
    CLIENT = "client"  # nothing runs here; a place for vmrctl


_DEFAULT_ROLES: dict[str, tuple[Role, ...]] = {
    "p": (Role.PRIMARY,),
    "r": (Role.NODE,),
    "b": (Role.BROKER,),
    "e": (Role.ETCD,),
    "c": (Role.CLIENT,),
}
DEFAULT_HOSTS = ("p1", "r1", "r2", "r3", "b1", "b2", "b3", "e1", "e2", "e3", "c1")
COMPACT_HOSTS = ("p1", "r1", "r2", "r3", "c1")
COMPACT_ROLES = tuple(f"r{n}=node,broker,etcd" for n in (1, 2, 3))


@dataclass(frozen=True, slots=True)
class Host:
    """One host: a set of namespaces with one address."""

    name: str
    roles: tuple[Role, ...]

    @property
    def number(self) -> int:
        """Last byte of the IPv4 address."""
        return _BASES[self.name[0]] + int(self.name[1:])

    @property
    def address(self) -> str:
        return f"{NETWORK_PREFIX}.{self.number}"

    @property
    def fqdn(self) -> str:
        return f"{self.name}.lab"

    @property
    def mac(self) -> str:
        """Fixed, so that peers' neighbour tables stay right when the host starts again."""
        return f"02:77:00:00:00:{self.number:02x}"

    @property
    def port(self) -> str:
        """Name of the host's port on the switch."""
        return f"p-{self.name}"

    @property
    def cluster(self) -> str:
        return "primary" if Role.PRIMARY in self.roles else "replica"

    @property
    def has_libvirt(self) -> bool:
        return Role.PRIMARY in self.roles or Role.NODE in self.roles

    def has(self, role: Role) -> bool:
        return role in self.roles


@dataclass(frozen=True, slots=True)
class Settings:
    """How a lab was brought up; kept in ``lab.json`` while it is up."""

    hosts: dict[str, tuple[Role, ...]] = field(default_factory=dict)
    firewall: bool = False
    etcd_fast: bool = False
    daemons: bool = True
    xfs: bool = False
    closed: bool = False  # the replica cluster lets no sender in until it is told to
    overrides: tuple[str, ...] = ()

    def host(self, name: str) -> Host:
        if name not in self.hosts:
            raise LabError(f"no host {name} in this lab; there are: {' '.join(self.hosts)}")
        return Host(name, self.hosts[name])

    def all_hosts(self) -> list[Host]:
        return [Host(name, roles) for name, roles in self.hosts.items()]

    def with_role(self, role: Role) -> list[Host]:
        return [host for host in self.all_hosts() if host.has(role)]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @staticmethod
    def load(path: Path) -> Settings:
        if not path.exists():
            raise LabError(f"no lab is up in {path.parent} (see: lab up)")
        raw = json.loads(path.read_text())
        raw["hosts"] = {n: tuple(Role(r) for r in roles) for n, roles in raw["hosts"].items()}
        raw["overrides"] = tuple(raw["overrides"])
        return Settings(**raw)


def host_table(names: list[str], role_options: list[str]) -> dict[str, tuple[Role, ...]]:
    """Hosts in order, with default roles by first letter, changed by ``NAME=role,role``."""
    table: dict[str, tuple[Role, ...]] = {}
    for name in names:
        if name[:1] not in _BASES or name[1:] not in set("123456789"):
            raise LabError(f"host name {name!r}: wants one of p r b e c and a digit 1-9")
        table[name] = _DEFAULT_ROLES[name[0]]
    for option in role_options:
        name, _, roles = option.partition("=")
        if name not in table:
            raise LabError(f"--roles {option}: no host {name}")
        try:
            table[name] = tuple(Role(role) for role in roles.split(",") if role)
        except ValueError as error:
            known = ", ".join(Role)
            raise LabError(f"--roles {option}: {error}; known: {known}") from None
    return table
