"""The files a lab writes for the product: certificates, broker.yaml, node.yaml, vmrctl's contexts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from deploy.lab.certificates import Authority, Names
from deploy.lab.hosts import BOOT_DIRECTORY, SCRATCH_PATH, STORAGE_PATH
from deploy.lab.model import (
    BROKER_PORT,
    CAP_ADDRESS,
    CAP_ALIAS,
    CAP_NAME,
    NODE_PORT,
    Host,
    LabError,
    Role,
    Settings,
)
from deploy.lab.place import Place

_ETC = "/etc/vmreplica"
ETCD_CLIENT_PORT = 2379
ETCD_PEER_PORT = 2380

Tree = dict[str, Any]


def write_all(place: Place, settings: Settings) -> None:
    """Everything for every host. Keys and certificates that exist are kept."""
    authority = Authority(place.certificates)
    etcd_authority = Authority(place.certificates / "etcd")
    for host in settings.all_hosts():
        etc = place.host(host) / "etc-vmreplica"
        _host_certificates(place, host, authority, etcd_authority)
        for role, name, tree in _files(settings, host):
            _override(settings, host, role, tree)
            _write_yaml(etc / name, tree)
    _clients(place, authority)
    _write_yaml(place.contexts_file, _contexts(place, settings))


def _host_certificates(place: Place, host: Host, authority: Authority, etcd: Authority) -> None:
    etc = place.host(host) / "etc-vmreplica"
    cap = () if host.has(Role.PRIMARY) else (CAP_NAME, CAP_ALIAS)
    addresses = (host.address,)
    if host.has(Role.PRIMARY):
        # A standalone node is its cluster's broker as well.
        uris = ("spiffe://primary/node/" + host.name, "spiffe://primary/broker/" + host.name)
        authority.issue(etc / "tls" / "node", Names((host.fqdn, host.name), addresses, uris))
    if host.has(Role.NODE):
        names = Names((host.fqdn, *cap), addresses, (f"spiffe://replica/node/{host.name}",))
        authority.issue(etc / "tls" / "node", names)
    if host.has(Role.BROKER):
        broker_addresses = (*addresses, CAP_ADDRESS)
        names = Names(
            (host.fqdn, *cap), broker_addresses, (f"spiffe://replica/broker/{host.name}",)
        )
        authority.issue(etc / "tls" / "broker", names)
    if host.has(Role.NODE) or host.has(Role.BROKER):
        etcd.issue(etc / "etcd" / "client", Names((host.fqdn,), addresses))
        _copy(etcd.certificate_file, etc / "etcd" / "ca.crt")
    if host.has(Role.ETCD):
        names = Names((host.fqdn, "localhost"), (host.address, "127.0.0.1"))
        etcd.issue(place.host(host) / "etcd-tls" / "member", names)
        _copy(etcd.certificate_file, place.host(host) / "etcd-tls" / "ca.crt")
    _copy(authority.certificate_file, etc / "tls" / "ca.crt")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())


def _clients(place: Place, authority: Authority) -> None:
    """Certificates for people and for tests that play a stranger."""
    clusters = ("primary", "replica")
    directory = place.certificates
    administrator = tuple(f"spiffe://{c}/administrator/lab" for c in clusters)
    authority.issue(directory / "administrator", Names(("admin.lab",), (), administrator))
    viewer = tuple(f"spiffe://{c}/viewer/lab" for c in clusters)
    authority.issue(directory / "viewer", Names(("viewer.lab",), (), viewer))
    stranger = ("spiffe://other/node/x1", "spiffe://other/broker/x1")
    authority.issue(directory / "other-cluster", Names(("x1.lab",), (), stranger))


def _tls(role: str) -> Tree:
    tls = f"{_ETC}/tls"
    return {"certificate": f"{tls}/{role}.crt", "key": f"{tls}/{role}.key", "ca": f"{tls}/ca.crt"}


def _etcd(settings: Settings) -> Tree:
    members = settings.with_role(Role.ETCD)
    return {
        "endpoints": [f"{host.fqdn}:{ETCD_CLIENT_PORT}" for host in members],
        "certificate": f"{_ETC}/etcd/client.crt",
        "key": f"{_ETC}/etcd/client.key",
        "ca": f"{_ETC}/etcd/ca.crt",
        "prefix": "/vmreplica/replica/v1/",
    }


def _files(settings: Settings, host: Host) -> list[tuple[str, str, Tree]]:
    """(override name, file name, content) of each daemon of the host."""
    found: list[tuple[str, str, Tree]] = []
    if host.has(Role.BROKER):
        found.append(("broker", "broker.yaml", _broker(settings, host)))
    if host.has(Role.NODE) or host.has(Role.PRIMARY):
        found.append(("node", "node.yaml", _node(settings, host)))
    return found


def _broker(settings: Settings, host: Host) -> Tree:
    return {
        "cluster": host.cluster,
        "name": host.name,
        "listen": f"0.0.0.0:{BROKER_PORT}",
        "advertise": f"{host.fqdn}:{BROKER_PORT}",
        "client_access_point": {
            "name": CAP_NAME,
            "port": BROKER_PORT,
            "kind": "vip",
            "address": f"{CAP_ADDRESS}/24",
            "interface": "eth0",
        },
        "tls": _tls("broker"),
        "etcd": _etcd(settings),
    }


def _node(settings: Settings, host: Host) -> Tree:
    standalone = host.has(Role.PRIMARY)
    tree: Tree = {
        "cluster": host.cluster,
        "name": host.name,
        "listen": f"0.0.0.0:{NODE_PORT}",
        "advertise": f"{host.fqdn}:{NODE_PORT}",
        "standalone": standalone,
        "state_dir": "/var/lib/vmreplica",
        "libvirt_uri": "qemu:///system",
        "storage_locations": [{"path": STORAGE_PATH, "shared": not standalone}],
        "scratch_dir": SCRATCH_PATH,
        "boot_file_directories": [BOOT_DIRECTORY],
        "tls": _tls("node"),
    }
    if not standalone:
        tree["etcd"] = _etcd(settings)
    return tree


def _contexts(place: Place, settings: Settings) -> Tree:
    certificates = place.certificates
    client = {
        "ca": str(certificates / "ca.crt"),
        "certificate": str(certificates / "administrator.crt"),
        "key": str(certificates / "administrator.key"),
    }
    contexts: Tree = {}
    for host in settings.with_role(Role.PRIMARY)[:1]:
        contexts["primary"] = {"endpoint": f"{host.fqdn}:{NODE_PORT}", **client}
    contexts["replica"] = {"endpoint": f"{CAP_NAME}:{BROKER_PORT}", **client}
    return {"current": next(iter(contexts)), "contexts": contexts}


def _override(settings: Settings, host: Host, role: str, tree: Tree) -> None:
    """Apply ``[HOST/]broker|node.KEY.KEY=VALUE``; the value is YAML."""
    for option in settings.overrides:
        path, equals, text = option.partition("=")
        only_host, slash, rest = path.rpartition("/")
        first, *keys = rest.split(".")
        if not equals or not keys or first not in ("broker", "node"):
            raise LabError(f"--set {option}: wants [HOST/]broker.KEY=VALUE or node.KEY=VALUE")
        if first != role or (slash and only_host != host.name):
            continue
        branch = tree
        for key in keys[:-1]:
            branch = branch.setdefault(key, {})
        branch[keys[-1]] = yaml.safe_load(text)


def _write_yaml(path: Path, tree: Tree) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
