"""docs/operations/first-steps.md, command by command, on two hosts with a real guest.

The commands are taken from the page and run as they stand, in its order. Three things differ from
real hosts, since the hosts of a lab are namespaces of this machine:
- There is no systemd: ``systemctl enable --now`` is replaced by the unit's own ExecStartPre and
  ExecStart, with the unit's environment.
- There is no ssh: ``scp`` is replaced by a copy into the other host's files.
- The program is installed once, below a directory, from a copy of the checkout. The directory is
  mounted at /opt and /usr/local/bin of each host; tools/install.sh then runs in the host as written,
  in that copy, and finds the program current.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = CHECKOUT / "docs" / "operations" / "first-steps.md"
LAB = CHECKOUT / "deploy" / "lab" / "lab"
HOSTS = {"alpha": "p1", "beta": "r1"}
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MOST_COMMANDS = 15

pytestmark = [pytest.mark.needs("root", "netns", "libvirt", "qemu", "nbd", "guest")]


@dataclass(frozen=True)
class Command:
    """One command of the page, and the hosts it is for."""

    hosts: tuple[str, ...]
    text: str


def commands_of(page: str) -> list[Command]:
    """Every command of the page's ``sh`` blocks; the first line of each names its hosts."""
    found = []
    for block in re.findall(r"^```sh\n(.*?)^```", page, re.M | re.S):
        where, *lines = block.splitlines()
        named = re.fullmatch(r"# on (\w+)(?: and (\w+))?", where)
        assert named, f"a block does not say on which host: {where}"
        hosts = tuple(name for name in named.groups() if name)
        text = ""
        for line in lines:
            text += line + "\n"
            here = re.search(r"<<'(\w+)'", text)
            if here is None or line == here.group(1):
                found.append(Command(hosts, text))
                text = ""
        assert not text, f"a here-document without end: {text}"
    return found


def unit_commands(unit: str) -> tuple[dict[str, str], list[list[str]]]:
    """The environment of a unit, and what it starts, in order."""
    text = (CHECKOUT / "deploy" / "systemd" / f"{unit}.service").read_text()
    environment = dict(re.findall(r"^Environment=(\w+)=(.*)$", text, re.M))
    starts = [re.findall(rf"^{key}=(.*)$", text, re.M) for key in ("ExecStartPre", "ExecStart")]
    return environment, [shlex.split(line) for lines in starts for line in lines]


class Hosts:
    """Two lab hosts that know each other by the names of the page."""

    def __init__(self, directory: Path, checkout: Path, program: Path) -> None:
        self.directory = directory
        self._checkout = checkout
        self.environment = {**os.environ, "LAB_DIR": str(directory)}
        self._program = program

    def lab(self, *words: str, timeout_s: float = 200) -> str:
        done = subprocess.run(
            [str(LAB), *words],
            env=self.environment,
            cwd=self._checkout,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert done.returncode == 0, f"{words}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def run(self, host: str, text: str, timeout_s: float = 200) -> str:
        """A command as a person types it, in the host's own shell."""
        clean = ["env", "-i", f"PATH={PATH}", "HOME=/root", "LANG=C.UTF-8", "bash", "-euc", text]
        return self.lab("shell", HOSTS[host], "--", *clean, timeout_s=timeout_s)

    def prepare(self) -> None:
        """Names, an empty /etc/vmreplica, and the installed program at its place."""
        items = json.loads(self.lab("status", "-o", "json"))["items"]
        address = {item["name"]: item["address"] for item in items}
        names = "".join(f"{address[HOSTS[h]]} {h}.example\n" for h in HOSTS)
        for host in HOSTS:
            self.run(
                host,
                f"printf %s {shlex.quote(names)} >>/etc/hosts; find /etc/vmreplica -mindepth 1 -delete;"
                "mount -t tmpfs opt /opt; mkdir /opt/vmreplica;"
                f"mount --bind {self._program}/opt/vmreplica /opt/vmreplica;"
                f"mount --bind {self._program}/usr/local/bin /usr/local/bin",
            )

    def start_unit(self, host: str, unit: str) -> None:
        environment, commands = unit_commands(unit)
        # The lab's kernel lies outside the directories that a sender may name boot files in.
        environment["VMREPLICA_BOOT_FILE_DIRECTORIES"] = "[/srv/boot]"
        settings = " ".join(f"{key}={shlex.quote(value)}" for key, value in environment.items())
        self.run(host, "mkdir -p -m 0700 /run/vmreplica /var/lib/vmreplica")
        *before, main = [f"env {settings} {shlex.join(command)}" for command in commands]
        for command in before:
            self.run(host, command)
        log = self.directory / f"{host}-{unit}.log"
        self.run(host, f"setsid -f {main} >{log} 2>&1 </dev/null")
        end = time.monotonic() + 60
        while True:
            ask = "import urllib.request as u; u.urlopen('http://127.0.0.1:7454/readyz')"
            probe = f'python3 -c "{ask}" 2>/dev/null && echo ready || true'
            if "ready" in self.run(host, probe):
                return
            assert time.monotonic() < end, log.read_text()[-3000:]
            time.sleep(0.2)

    def copy(self, source_host: str, sources: list[str], target: str) -> None:
        """In place of scp: by way of a directory that both hosts see."""
        place, _, directory = target.partition(":")
        way = self.directory / "way"
        way.mkdir(mode=0o700, exist_ok=True)
        self.run(source_host, f"cp {shlex.join(sources)} {way}/")
        self.run(place.removesuffix(".example"), f"cp {way}/* {shlex.quote(directory)}")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a fresh clone has of the program: nobody changes it while it is installed."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("vmreplica", "broker", "node", "vmrctl", "tools", "deploy"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(CHECKOUT / name, copy / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(CHECKOUT / name, copy)
    return copy


@pytest.fixture(scope="module")
def program(checkout: Path) -> Path:
    """tools/install.sh --root, once; kept in build/cache, where the next run finds it current."""
    root = CHECKOUT / "build" / "cache" / "installed"
    root.mkdir(parents=True, exist_ok=True)
    script = [str(checkout / "tools" / "install.sh"), "--root", str(root)]
    done = subprocess.run(
        script,
        env={**os.environ, "PIP_CACHE_DIR": str(CHECKOUT / "build" / "cache" / "pip")},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    again = subprocess.run([*script, "--check"], capture_output=True, text=True, check=False)
    assert (again.returncode, again.stdout) == (0, "install: complete\n"), again.stdout
    return root


@pytest.fixture
def hosts(
    tmp_path_factory: pytest.TempPathFactory, checkout: Path, program: Path
) -> Iterator[Hosts]:
    hosts = Hosts(tmp_path_factory.mktemp("lab"), checkout, program)
    try:
        hosts.lab("up", "--no-daemons", "--hosts", ",".join(HOSTS.values()))
        hosts.lab("guest", "create", HOSTS["alpha"], "guest1", "--small")
        hosts.prepare()
        yield hosts
    finally:
        hosts.lab("down", "--purge")


def test_the_page_is_short_enough() -> None:
    commands = commands_of(PAGE.read_text())
    typed = sum(len(command.hosts) for command in commands)
    assert len(commands) > 8
    assert typed <= MOST_COMMANDS, typed


@pytest.mark.timeout(900)
def test_first_steps(hosts: Hosts) -> None:
    for command in commands_of(PAGE.read_text()):
        for host in command.hosts:
            print(f"--- {host}: {command.text.rstrip()}")
            match shlex.split(command.text.splitlines()[0]):
                case ["systemctl", "enable", "--now", *units]:
                    for unit in units:
                        hosts.start_unit(host, unit)
                case ["scp", *sources, target]:
                    hosts.copy(host, sources, target)
                case ["vmrctl", "failover", "test", "start", *_]:
                    # The page says that cycles with the changes follow by themselves.
                    wait_for_delta(hosts)
                    print(hosts.run(host, command.text))
                    assert "guest1 - Test" in hosts.run(host, "virsh list --name")
                case _:
                    print(hosts.run(host, command.text))
    assert "guest1 - Test" not in hosts.run("beta", "virsh list --all --name")


def wait_for_delta(hosts: Hosts, timeout_s: float = 120) -> None:
    """Until a delta cycle is acknowledged, as alpha tells and as beta holds it."""
    end = time.monotonic() + timeout_s
    while True:
        shown = json.loads(hosts.run("alpha", "vmrctl replication show guest1 -o json"))
        if shown["acked_seq"] >= 2:
            break
        assert time.monotonic() < end, shown
        time.sleep(1)
    assert shown["last_cycle"]["kind"] == "Delta", shown
    assert shown["state"] == "Replicating"
    items = json.loads(hosts.run("beta", "vmrctl replica list -o json"))["items"]
    assert [(item["vm_name"], item["acked_seq"] >= 2) for item in items] == [("guest1", True)]
