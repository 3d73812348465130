"""Configuration files: good ones become values, bad ones are told whole."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import pytest

from vmreplica.adapters.config_file import (
    AbsolutePath,
    Between,
    DurationMs,
    HostName,
    HostPort,
    NotEmpty,
    OneOf,
    PlainName,
    load_config,
)
from vmreplica.core.problems import Problem, Reason


class Kind(StrEnum):
    VIP = "vip"
    DNS = "dns"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    certificate: Annotated[Path, AbsolutePath()]
    key: Annotated[Path, AbsolutePath()]
    crl: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    ttl_s: Annotated[int, Between(1, 60)] = 6
    margin_ms: Annotated[int, DurationMs()] = 1_000

    def faults(self) -> Iterable[tuple[str, str]]:
        if self.margin_ms >= self.ttl_s * 1_000:
            yield "margin_ms", "must be smaller than ttl_s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    path: Annotated[Path, AbsolutePath()]
    shared: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    cluster: Annotated[str, PlainName()]
    listen: Annotated[str, HostPort()]
    tls: Tls
    host: Annotated[str, HostName()] = "localhost"
    kind: Kind = Kind.VIP
    compression: Annotated[str, OneOf(("zstd", "none"))] = "zstd"
    ratio: float = 1.0
    lease: Lease = field(default_factory=Lease)
    endpoints: Annotated[tuple[Annotated[str, HostPort(port_zero=False)], ...], NotEmpty()] = (
        "e:1",
    )
    storage_locations: tuple[Storage, ...] = ()


GOOD = """
cluster: c1
listen: 127.0.0.1:7443
tls: {certificate: /c.pem, key: /c.key}
kind: dns
ratio: 2
lease: {ttl_s: 9, margin_ms: 2s}
endpoints: ["e1.x:2379", "[::1]:2379"]
storage_locations:
- {path: /s, shared: true}
"""


def write(directory: Path, text: str) -> Path:
    path = directory / "broker.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def lines_of(directory: Path, text: str, environment: dict[str, str] | None = None) -> list[str]:
    path = write(directory, text)
    with pytest.raises(Problem) as caught:
        load_config(path, Config, environment or {})
    assert caught.value.reason is Reason.BAD_CONFIG and caught.value.exit_code == 2
    return [line.replace(str(path), "F") for line in caught.value.message.splitlines()]


def test_a_good_file(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, GOOD), Config, {})
    assert config == Config(
        cluster="c1",
        listen="127.0.0.1:7443",
        tls=Tls(certificate=Path("/c.pem"), key=Path("/c.key")),
        kind=Kind.DNS,
        ratio=2.0,
        lease=Lease(ttl_s=9, margin_ms=2_000),
        endpoints=("e1.x:2379", "[::1]:2379"),
        storage_locations=(Storage(path=Path("/s"), shared=True),),
    )


def test_environment_overrides(tmp_path: Path) -> None:
    environment = {
        "VMREPLICA_CLUSTER": "007",
        "VMREPLICA_LEASE__TTL_S": "12",
        "VMREPLICA_LEASE__MARGIN_MS": "3s",
        "VMREPLICA_TLS__CRL": "/crl",
        "VMREPLICA_ENDPOINTS": "[a:1, b:2]",
        "VMREPLICA_KIND": "vip",
        "PATH": "/bin",
    }
    config = load_config(write(tmp_path, GOOD), Config, environment)
    assert config.cluster == "007"
    assert config.lease == Lease(ttl_s=12, margin_ms=3_000)
    assert config.tls.crl == Path("/crl")
    assert config.endpoints == ("a:1", "b:2")
    assert config.kind is Kind.VIP


def test_all_problems_at_once(tmp_path: Path) -> None:
    text = """
clutser: c1
cluster: "a b"
listen: nowhere
tls: {certificate: c.pem}
kind: king
compression: lzma
ratio: fast
host: "-x"
lease: {ttl_s: 99, margin_ms: soon, colour: red}
endpoints: []
storage_locations: [{path: /s, shared: maybe}, 7]
"""
    assert lines_of(tmp_path, text) == [
        "F:clutser: is not a key here; did you mean cluster?",
        "F:cluster: must be a plain name of letters, digits, . _ -, not 'a b'",
        "F:listen: must be HOST:PORT with a port from 0 to 65535, not 'nowhere'",
        "F:tls.certificate: must be an absolute path, not 'c.pem'",
        "F:tls.key: is missing",
        "F:host: must be a host name or address, not '-x'",
        "F:kind: must be vip or dns, not 'king'",
        "F:compression: must be zstd or none, not 'lzma'",
        "F:ratio: must be a number, not 'fast'",
        "F:lease.colour: is not a key here",
        "F:lease.ttl_s: must be from 1 to 60, not 99",
        "F:lease.margin_ms: must be a duration like 500ms, 30s or 5m, not 'soon'",
        "F:endpoints: must not be empty",
        "F:storage_locations[0].shared: must be true or false, not 'maybe'",
        "F:storage_locations[1]: must hold keys and values, not 7",
    ]


def test_empty_file_names_every_obligatory_key(tmp_path: Path) -> None:
    assert lines_of(tmp_path, "") == [
        "F:cluster: is missing",
        "F:listen: is missing",
        "F:tls.certificate: is missing",
        "F:tls.key: is missing",
    ]


def test_rules_across_fields(tmp_path: Path) -> None:
    text = GOOD.replace("margin_ms: 2s", "margin_ms: 9s")
    assert lines_of(tmp_path, text) == ["F:lease.margin_ms: must be smaller than ttl_s"]


def test_bad_environment(tmp_path: Path) -> None:
    environment = {
        "VMREPLICA_LEASE__TTL_S": "many",
        "VMREPLICA_COLOUR": "red",
        "VMREPLICA_CLUSTER__NAME": "x",
        "VMREPLICA_ENDPOINTS": "[",
    }
    assert lines_of(tmp_path, GOOD, environment) == [
        "VMREPLICA_CLUSTER__NAME: names no key",
        "environment VMREPLICA_COLOUR:colour: is not a key here",
        "environment VMREPLICA_LEASE__TTL_S:lease.ttl_s: must be a whole number, not 'many'",
        "environment VMREPLICA_ENDPOINTS:endpoints: cannot be read: '['",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "F:1: "),
        ("- a", "must hold keys and values"),
        ("\x00", "F: "),
        ("cluster: a\ncluster: b", "'cluster' stands twice"),
        ("a: !!python/object/apply:os.system [id]", "F:1: "),
        ("? [a]\n: b", "F:"),
        ("? {a: b}\n: c", "F:"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, text: str, words: str) -> None:
    lines = lines_of(tmp_path, text)
    assert words in lines[0]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(Problem, match="cannot be read"):
            load_config(path, Config, {})
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(Problem):
        load_config(binary, Config, {})
    big = tmp_path / "big.yaml"
    big.write_bytes(b"#" * (2 << 20))
    with pytest.raises(Problem, match="larger"):
        load_config(big, Config, {})
