"""vmrctl against a real broker on a real etcd: what a person does on the first day."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

PATIENCE_S = 60
pytestmark = pytest.mark.needs("etcd")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@dataclass(frozen=True, slots=True)
class Site:
    """One broker and how to talk to it."""

    directory: Path
    endpoint: str

    def vmrctl(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        own = {k: v for k, v in os.environ.items() if not k.startswith("VMRCTL_")}
        files = {
            "VMRCTL_CONFIG": str(self.directory / "none.yaml"),
            "VMRCTL_ENDPOINT": self.endpoint,
            "VMRCTL_CA": str(self.directory / "ca" / "ca.pem"),
            "VMRCTL_CERTIFICATE": str(self.directory / "me.pem"),
            "VMRCTL_KEY": str(self.directory / "me.key"),
        }
        return subprocess.run(
            [sys.executable, "-m", "vmrctl", *words],
            env=own | files | environ,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def json(self, *words: str) -> Any:
        done = self.vmrctl(*words, "-o", "json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def started(directory: Path, name: str, *command: str) -> subprocess.Popen[bytes]:
    with (directory / f"{name}.log").open("wb") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    place = tmp_path_factory.mktemp("site")
    client, peer, broker, probe = (free_port() for _ in range(4))
    made = Site(place, f"localhost:{broker}")
    ca = ["--ca", str(place / "ca")]
    for words in (
        ["ca", str(place / "ca")],
        ["issue", *ca, "--san", "localhost", "--san", "127.0.0.1", str(place / "etcd")],
        ["issue", *ca, "--san", "localhost", "--role", "c1/broker/b1", str(place / "b1")],
        ["issue", *ca, "--san", "me.example", "--role", "c1/administrator/me", str(place / "me")],
        ["issue", *ca, "--san", "you.example", "--role", "c1/viewer/you", str(place / "you")],
    ):
        assert made.vmrctl("cert", *words).returncode == 0
    host = {"certificate": f"{place}/b1.pem", "key": f"{place}/b1.key", "ca": f"{place}/ca/ca.pem"}
    config = {
        "cluster": "c1",
        "name": "b1",
        "listen": f"127.0.0.1:{broker}",
        "probe_listen": f"127.0.0.1:{probe}",
        "advertise": made.endpoint,
        "run_dir": str(place / "run"),
        "state_dir": str(place / "state"),
        "client_access_point": {"name": "localhost", "port": broker, "kind": "dns"},
        "tls": host,
        "etcd": {"endpoints": [f"localhost:{client}"], **host},
    }
    (place / "broker.yaml").write_text(yaml.safe_dump(config))
    etcd = started(
        place, "etcd", "etcd", "--name=e1", f"--data-dir={place}/data",
        f"--listen-client-urls=https://127.0.0.1:{client}",
        f"--advertise-client-urls=https://127.0.0.1:{client}",
        f"--listen-peer-urls=http://127.0.0.1:{peer}",
        f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
        f"--initial-cluster=e1=http://127.0.0.1:{peer}", "--client-cert-auth",
        f"--cert-file={place}/etcd.pem", f"--key-file={place}/etcd.key",
        f"--trusted-ca-file={place}/ca/ca.pem",
    )  # fmt: skip
    daemon = started(
        place, "broker", sys.executable, "-m", "broker", "--config", str(place / "broker.yaml")
    )
    try:
        ready(f"http://127.0.0.1:{probe}/readyz", place)
        yield made
    finally:
        daemon.terminate()
        daemon.wait(PATIENCE_S)
        etcd.terminate()
        etcd.wait(PATIENCE_S)


def ready(url: str, place: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            pass
        time.sleep(0.1)
    pytest.fail(f"the broker is not ready:\n{(place / 'broker.log').read_text()[-2000:]}")


def test_the_broker_is_seen_through_every_door(site: Site) -> None:
    (broker,) = site.json("broker", "list")["items"]
    assert (broker["name"], broker["leader"]) == ("b1", True)
    version = site.json("version")
    assert version["server"]["cluster"] == "c1"
    assert version["server"]["version"] == version["client"]["version"]
    local = site.vmrctl("broker", "list", "-o", "json", VMRCTL_ENDPOINT=f"unix:{site.directory}/run/broker.sock")  # fmt: skip
    assert json.loads(local.stdout)["items"] == [broker]


def test_the_same_write_twice_changes_nothing(site: Site) -> None:
    line = ("settings", "set", "default_frequency_ms=30000")
    assert [site.json(*line)["changed"], site.json(*line)["changed"]] == [True, False]
    assert site.json("settings", "show")["settings"]["default_frequency_ms"] == "30000"
    names = [event["name"] for event in site.json("events", "--name", "settings.*")["items"]]
    assert names == ["settings.changed"]


@pytest.mark.parametrize(
    ("line", "code", "reason"),
    [
        ("replica show nope", 3, "UNKNOWN_REPLICA"),
        ("replica locate nope", 3, "UNKNOWN_REPLICA"),
        ("replication show nope", 3, "UNKNOWN_VM"),
        ("node drain nope", 3, "UNKNOWN_NODE"),
        ("operation show nope", 3, "UNKNOWN_OPERATION"),
        ("settings set nonsense=1", 2, "BAD_FIELD"),
        ("settings set default_frequency_ms=1", 2, "BAD_FIELD"),
    ],
)
def test_refusals_say_what_to_do_next(site: Site, line: str, code: int, reason: str) -> None:
    done = site.vmrctl(*line.split(), "-o", "json")
    problem = json.loads(done.stderr)["problem"]
    assert (done.returncode, problem["reason"]) == (code, reason)
    assert problem["remedy"]


def test_a_viewer_may_look_and_not_touch(site: Site) -> None:
    files = {
        "VMRCTL_CERTIFICATE": str(site.directory / "you.pem"),
        "VMRCTL_KEY": str(site.directory / "you.key"),
    }
    assert site.vmrctl("settings", "show", **files).returncode == 0
    done = site.vmrctl("settings", "set", "any_server=true", "-o", "json", **files)
    assert (done.returncode, json.loads(done.stderr)["problem"]["reason"]) == (5, "ROLE_REQUIRED")


def test_certificates_are_verified_against_it(site: Site) -> None:
    own = str(site.directory / "me.pem")
    ca = str(site.directory / "ca" / "ca.pem")
    done = site.vmrctl("cert", "verify", own, "--ca", ca, "--against", site.endpoint)
    assert done.returncode == 0, done.stdout
