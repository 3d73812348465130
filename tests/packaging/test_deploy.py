"""What deploy/ shows must be true: every key with its default, files that the tools accept."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import shutil
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from vmreplica.adapters import certificates
from vmreplica.adapters.config_file import load_config
from vmreplica.adapters.system_clock import SystemClock

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIG = ROOT / "deploy" / "config"
CLASSES = {"broker": ("broker.config", "BrokerConfig"), "node": ("node.config", "NodeConfig")}


def config_class(name: str) -> Any:
    module, class_name = CLASSES[name]
    return getattr(importlib.import_module(module), class_name)


def fields_of(kind: Any, path: str = "") -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """All keys, ``a.b``, of a configuration class and of those inside it."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        inner = hints[field.name]
        candidates = [inner, *typing.get_args(inner)]
        candidates += [part for arm in typing.get_args(inner) for part in typing.get_args(arm)]
        nested = next((c for c in candidates if dataclasses.is_dataclass(c)), None)
        if nested is not None:
            yield from fields_of(nested, f"{path}{field.name}.")
        else:
            yield f"{path}{field.name}", field, inner


def example(name: str) -> dict[str, Any]:
    """The example with the keys that are commented out put in."""
    text = (CONFIG / f"{name}.yaml").read_text()
    data: dict[str, Any] = yaml.safe_load(
        re.sub(r"^(\s*)# (\w+: /\S+)$", r"\1\2", text, flags=re.M)
    )
    return data


def value_at(data: Any, path: str) -> Any:
    for step in path.split("."):
        data = data[0] if isinstance(data, list) else data
        data = data[step]
    return data


@pytest.mark.parametrize("name", CLASSES)
def test_every_key_is_shown_and_no_other(name: str) -> None:
    shown = set()

    def walk(data: Any, path: str = "") -> None:
        for key, value in data.items():
            inner = value[0] if isinstance(value, list) and isinstance(value[0], dict) else value
            if isinstance(inner, dict):
                walk(inner, f"{path}{key}.")
            else:
                shown.add(f"{path}{key}")

    walk(example(name))
    assert shown == {path for path, _, _ in fields_of(config_class(name))}


@pytest.mark.parametrize("name", CLASSES)
def test_values_shown_are_the_defaults(name: str) -> None:
    data = example(name)
    exempt = {"tls.crl", "etcd.prefix", "client_access_point.address"}
    exempt |= {"client_access_point.interface", "storage_locations", "scratch_dir"}
    for path, field, _ in fields_of(config_class(name)):
        if field.default is not dataclasses.MISSING and path not in exempt:
            default = yaml.safe_load(json.dumps(field.default, default=str))
            assert value_at(data, path) == default, path


@pytest.mark.parametrize("name", CLASSES)
def test_every_key_is_explained(name: str) -> None:
    lines = (CONFIG / f"{name}.yaml").read_text().splitlines()
    for number, line in enumerate(lines):
        key = re.match(r" *(?:- )?(\w+): ", line)  # sections explain themselves inside
        if key and key[1] not in ("key", "ca", "certificate", "path"):
            before = lines[number - 1].strip()
            assert before.startswith("#") or before.endswith((".pem", ".key")), line


@pytest.fixture
def usable(tmp_path: Path) -> Any:
    """The example with certificates that exist."""
    tls = tmp_path / "tls"
    now_ms = SystemClock().wall_ms()
    certificates.create_ca(tls, "site2", now_ms)
    shutil.copy(tls / "ca.pem", tls / "etcd-ca.pem")
    certificates.issue(tls, tls / "etcd", ["r1.example"], now_ms)

    def make(name: str) -> Path:
        host = "b1" if name == "broker" else "r1"
        names = [f"{host}.example", "replica.example", f"spiffe://site2/{name}/{host}"]
        certificates.issue(tls, tls / "host", names, now_ms)
        text = (CONFIG / f"{name}.yaml").read_text()
        text = text.replace("/etc/vmreplica/tls", str(tls)).replace("/srv/replicas", str(tmp_path))
        path = tmp_path / f"{name}.yaml"
        path.write_text(text.replace("/var/lib/vmreplica", str(tmp_path / "state")))
        return path

    return make


@pytest.mark.parametrize("name", CLASSES)
def test_the_example_loads(name: str, usable: Any) -> None:
    assert load_config(usable(name), config_class(name), {}).cluster == "site2"


@pytest.mark.parametrize("name", CLASSES)
def test_the_daemon_accepts_the_example(name: str, usable: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-m", name, "--config", str(usable(name)), "--check"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.needs("systemd-analyze")
@pytest.mark.parametrize("unit", sorted(ROOT.glob("deploy/*/*.service")), ids=lambda p: p.name)
def test_systemd_accepts_the_units(unit: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    complaints = [line for line in done.stderr.splitlines() if unit.name in line]
    assert not complaints, done.stderr


def test_units_give_the_guard_what_it_needs() -> None:
    text = (ROOT / "deploy/systemd/vmreplica-node.service").read_text()
    for line in ("LimitMEMLOCK=infinity", "OOMScoreAdjust=-900", "Restart=always"):
        assert f"\n{line}\n" in text
    assert "CAP_IPC_LOCK" in text and "CAP_KILL" in text
