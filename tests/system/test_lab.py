"""The lab itself: hosts, faults, guests, and that nothing of it is left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.lab.cgroups import hierarchy
from deploy.lab.place import Place
from deploy.lab.processes import in_network_of

CHECKOUT = Path(__file__).resolve().parents[2]
PROGRAM = CHECKOUT / "deploy" / "lab" / "lab"

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
pytestmark = needs_root


class Runner:
    """The lab as a person uses it: by its command."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __call__(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(PROGRAM), *words],
            env={**os.environ, "LAB_DIR": str(self.directory)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert not check or done.returncode == 0, f"lab {words}: {done.stdout}{done.stderr}"
        return done

    def hosts(self) -> dict[str, dict[str, Any]]:
        return {
            item["name"]: item for item in json.loads(self("status", "-o", "json").stdout)["items"]
        }

    def pid(self, host: str) -> int:
        return int(self.hosts()[host]["pid"])

    def console(self, host: str, guest: str) -> str:
        return (self.directory / host / "console" / f"{guest}.log").read_text()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    runner = Runner(tmp_path_factory.mktemp("lab"))
    runner(
        "up",
        "--no-daemons",
        "--xfs",
        "--firewall",
        "--hosts",
        "p1,r1,r2,e1,e2,e3,c1",
        "--roles",
        "r2=node,broker",
    )
    yield runner
    runner("down", "--purge")


def eventually(condition: Callable[[], object], what: str, timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.05)


class Mailbox:
    """A UDP socket in one host; letters are sent from others."""

    def __init__(self, lab: Runner, host: str, address: str, port: int = 9999) -> None:
        self._lab = lab
        self._where = (address, port)
        self._socket = in_network_of(lab.pid(host), self._open)

    def _open(self) -> socket.socket:
        box = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        box.bind(("0.0.0.0", self._where[1]))
        box.settimeout(10)
        return box

    def send(self, host: str, letter: str) -> None:
        def work() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.sendto(letter.encode(), self._where)

        in_network_of(self._lab.pid(host), work)

    def next(self) -> str:
        return self._socket.recv(100).decode()

    def close(self) -> None:
        self._socket.close()


def test_every_host_has_namespaces_of_its_own(lab: Runner) -> None:
    hosts = lab.hosts()
    assert list(hosts) == ["p1", "r1", "r2", "e1", "e2", "e3", "c1"]
    assert hosts["r2"]["roles"] == ["node", "broker"]
    for kind in ("netns", "mntns", "pidns"):
        numbers = [host[kind] for host in hosts.values()]
        assert len(set(numbers)) == len(hosts) and None not in numbers
    here = Path("/proc/self/ns/net").stat().st_ino
    assert here not in [host["netns"] for host in hosts.values()]
    with_libvirt = {name for name, host in hosts.items() if host["libvirtd_pid"]}
    assert with_libvirt == {"p1", "r1", "r2"}
    assert {host["state"] for host in hosts.values()} == {"running"}
    assert all(hosts[name]["daemons"]["etcd"] for name in ("e1", "e2", "e3"))


def test_up_again_changes_nothing_and_other_settings_are_refused(lab: Runner) -> None:
    before = lab.hosts()
    words = ("up", "--no-daemons", "--xfs", "--firewall", "--hosts", "p1,r1,r2,e1,e2,e3,c1")
    lab(*words, "--roles", "r2=node,broker")
    assert lab.hosts() == before
    refused = lab(*words, check=False)
    assert refused.returncode == 1 and "other settings" in refused.stderr


def test_a_cut_one_way_leaves_the_other_way_open(lab: Runner) -> None:
    at_r1 = Mailbox(lab, "r1", "10.77.0.21")
    at_p1 = Mailbox(lab, "p1", "10.77.0.11")
    try:
        at_r1.send("p1", "hello")
        at_p1.send("r1", "hello")
        assert (at_r1.next(), at_p1.next()) == ("hello", "hello")
        lab("cut", "p1", "r1", "--one-way")
        at_r1.send("p1", "lost")
        at_p1.send("r1", "passes")
        assert at_p1.next() == "passes"
        lab("heal")
        at_r1.send("p1", "after")
        assert at_r1.next() == "after"
        lab("cut", "p1", "r1")
        at_r1.send("p1", "lost")
        at_p1.send("r1", "lost")
        lab("heal")
        at_r1.send("p1", "both")
        at_p1.send("r1", "both")
        assert (at_r1.next(), at_p1.next()) == ("both", "both")
    finally:
        at_r1.close()
        at_p1.close()


class Listener:
    """A TCP port in one host; the kernel answers, nobody accepts."""

    def __init__(self, lab: Runner, host: str, port: int) -> None:
        self._lab = lab
        self._port = port
        self._socket = in_network_of(lab.pid(host), lambda: socket.create_server(("", port)))

    def reached_by(self, host: str, address: str) -> bool:
        """A dropped SYN is never answered: the wait for nothing is one second."""

        def work() -> bool:
            try:
                socket.create_connection((address, self._port), timeout=1).close()
            except TimeoutError:
                return False
            return True

        return in_network_of(self._lab.pid(host), work)

    def close(self) -> None:
        self._socket.close()


def test_behind_the_firewall_only_the_clusters_address_is_open(lab: Runner) -> None:
    broker, node = Listener(lab, "r2", 7443), Listener(lab, "r2", 7444)
    lab("shell", "r2", "--", "ip", "addr", "add", "10.77.0.100/24", "dev", "eth0")
    try:
        for outsider in ("p1", "c1"):
            assert broker.reached_by(outsider, "10.77.0.100")
            assert not broker.reached_by(outsider, "10.77.0.22")
            assert node.reached_by(outsider, "10.77.0.22")
        assert broker.reached_by("r1", "10.77.0.22")
        lab("cut", "p1", "r2", "--port", "7444", "--new")
        assert not node.reached_by("p1", "10.77.0.22")
        assert node.reached_by("c1", "10.77.0.22") and broker.reached_by("p1", "10.77.0.100")
        lab("cut", "p1", "cap")
        assert not broker.reached_by("p1", "10.77.0.100")
        lab("heal")
        assert node.reached_by("p1", "10.77.0.22") and broker.reached_by("p1", "10.77.0.100")
        assert not broker.reached_by("p1", "10.77.0.22")
    finally:
        lab("shell", "r2", "--", "ip", "addr", "del", "10.77.0.100/24", "dev", "eth0")
        broker.close()
        node.close()


def test_the_store_is_shared_by_the_replica_nodes_alone(lab: Runner) -> None:
    lab(
        "shell",
        "r1",
        "--",
        "sh",
        "-c",
        "echo one >/srv/replicas/a && cp --reflink=always /srv/replicas/a /srv/replicas/b",
    )
    assert lab("shell", "r2", "--", "cat", "/srv/replicas/b").stdout == "one\n"
    assert lab("shell", "p1", "--", "ls", "/srv/replicas").stdout == ""


def test_a_killed_host_is_gone_and_comes_back_with_its_disks(lab: Runner) -> None:
    lab("shell", "r1", "--", "sh", "-c", "echo kept >/var/lib/vmreplica/note; echo lost >/run/note")
    before = lab.hosts()["r1"]
    victims = json.loads(lab("kill", "r1", "--silent").stdout)["killed_pids"]
    assert before["pid"] in victims and before["libvirtd_pid"] in victims
    assert lab.hosts()["r1"]["state"] == "down" and lab.hosts()["r1"]["pid"] is None
    refused = lab("shell", "r1", "--", "true", check=False)
    assert refused.returncode == 1 and "host r1 is down" in refused.stderr
    lab("start", "r1")
    after = lab.hosts()["r1"]
    assert after["state"] == "running" and after["pid"] != before["pid"] and after["libvirtd_pid"]
    assert lab("shell", "r1", "--", "cat", "/var/lib/vmreplica/note").stdout == "kept\n"
    assert lab("shell", "r1", "--", "cat", "/run/note", check=False).returncode == 1
    box = Mailbox(lab, "r1", "10.77.0.21")
    box.send("p1", "here again")
    assert box.next() == "here again"
    box.close()


def test_a_paused_host_stands_still(lab: Runner) -> None:
    script = "i=0; while :; do i=$((i+1)); echo $i >/srv/scratch/ticks; sleep 0.01; done"
    lab("shell", "r1", "--", "setsid", "-f", "sh", "-c", f"exec >/dev/null 2>&1; {script}")
    ticks = lab.directory / "r1" / "scratch" / "ticks"
    eventually(lambda: ticks.exists() and ticks.read_text().strip(), "the ticker starts")
    lab("pause", "r1")
    assert lab.hosts()["r1"]["state"] == "paused"
    seen = ticks.stat().st_mtime_ns
    assert lab("status").returncode == 0  # a while, in which a running ticker would have written
    assert ticks.stat().st_mtime_ns == seen
    lab("resume", "r1")
    eventually(lambda: ticks.stat().st_mtime_ns != seen, "the ticker goes on")
    lab("pause", "r1")
    lab("kill", "r1")
    assert lab.hosts()["r1"]["state"] == "down"
    lab("start", "r1")


def test_etcd_serves_with_a_member_dead_and_refuses_clients_without_certificate(
    lab: Runner,
) -> None:
    base = "https://e1.lab:2379,https://e2.lab:2379"
    etc = "/etc/vmreplica/etcd"
    keys = ("--cert", f"{etc}/client.crt", "--key", f"{etc}/client.key")
    common = ("env", "ETCDCTL_API=3", "etcdctl", f"--endpoints={base}", f"--cacert={etc}/ca.crt")
    lab("kill", "e3")
    # A vote may be under way when the dead member led.
    put = ("shell", "r1", "--", *common, "--command-timeout=10s", *keys, "put", "k", "v")
    eventually(lambda: lab(*put, check=False).returncode == 0, "two of three serve")
    assert lab("shell", "r2", "--", *common, *keys, "get", "k").stdout == "k\nv\n"
    stranger = ("shell", "r1", "--", *common, "--command-timeout=2s", "get", "k")
    assert lab(*stranger, check=False).returncode != 0
    lab("start", "e3")
    assert lab.hosts()["e3"]["daemons"]["etcd"]


def test_a_guest_counts_and_loses_nothing_when_its_host_is_killed(lab: Runner) -> None:
    lab("guest", "create", "p1", "small", "--small", "--rate", "1M", "--seed", "7")
    eventually(lambda: "COUNT 20\n" in lab.console("p1", "small"), "twenty records")
    lab("kill", "p1")
    text = lab.console("p1", "small")
    last = int(re.findall(r"COUNT (\d+)\n", text)[-1])
    nonce = re.findall(r"BOOT nonce=([0-9a-f]{16})", text)[0]
    lab("start", "p1")
    lab("guest", "start", "p1", "small")
    text = lab.console("p1", "small")
    first, second = re.findall(r"VERIFY (.*)", text)
    assert first == f"nonce={nonce} first=0 last_vda=0 last_vdb=0 bad=0"
    found = dict(field.split("=") for field in second.split())
    assert (found["nonce"], found["first"], found["bad"]) == (nonce, "1", "0")
    assert last <= int(found["last_vdb"]) <= int(found["last_vda"]) <= int(found["last_vdb"]) + 1
    lab("guest", "check", "p1", "small")
    text = lab.console("p1", "small")
    assert "FILL disk=vda blocks=4096 bad=0" in text and "FILL disk=vdb blocks=4096 bad=0" in text
    lab("guest", "shutdown", "p1", "small")
    eventually(lambda: "POWEROFF" in lab.console("p1", "small"), "the power button works")
    assert "ERROR" not in lab.console("p1", "small") and "STALL" not in lab.console("p1", "small")


def test_a_flipped_bit_is_seen_by_the_guest(lab: Runner) -> None:
    lab("guest", "create", "p1", "flipped", "--small")
    eventually(lambda: "COUNT 3\n" in lab.console("p1", "flipped"), "three records")
    lab("guest", "stop", "p1", "flipped")
    image = lab.directory / "p1" / "images" / "flipped-vdb.qcow2"
    # The second record's sector: the ring begins at 1 MiB.
    script = [
        "qemu-io",
        "-f",
        "qcow2",
        "-c",
        f"write -P 0x5a {(1 << 20) + 2 * 512 + 100} 1",
        str(image),
    ]
    subprocess.run(script, check=True, capture_output=True)
    lab("guest", "start", "p1", "flipped")
    verify = re.findall(r"VERIFY (.*)", lab.console("p1", "flipped"))[-1]
    assert "bad=0" not in verify
    lab("guest", "remove", "p1", "flipped")
    assert not list((lab.directory / "p1" / "images").glob("flipped*"))


def traces(place: Place) -> dict[str, list[str]]:
    """What a lab could leave on the machine, outside its directory."""
    mine = str(place.root)
    groups = [p.name for p in hierarchy().iterdir() if p.name == f"vmrlab-{place.id}"]
    loops = subprocess.run(["losetup", "-a"], capture_output=True, text=True, check=True).stdout
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    processes = []
    for path in Path("/proc").glob("[0-9]*/cgroup"):
        try:
            state = path.with_name("stat").read_text().rpartition(")")[2].split()[0]
            # A zombie is only waiting for whoever inherited it.
            if state != "Z" and f"vmrlab-{place.id}" in path.read_text():
                processes.append(path.parent.name)
        except OSError:
            continue
    names = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    return {
        "groups": groups,
        "loops": [line for line in loops.splitlines() if mine in line],
        "links": sorted(re.findall(r"^\d+: ([^:@]+)", links, re.MULTILINE)),
        "mounts": [m for m in mounts if mine in m or " /srv" in m or " /etc" in m],
        "netns": names.splitlines(),
        "processes": processes,
        "directories": [d for d in ("/etc/vmreplica", "/srv/replicas") if Path(d).exists()],
    }


def test_down_leaves_nothing_also_after_a_crash(tmp_path: Path) -> None:
    lab, place = Runner(tmp_path / "crash"), Place(tmp_path / "crash")
    before = traces(place)
    words = [str(PROGRAM), "up", "--no-daemons", "--xfs", "--compact"]
    environment = {**os.environ, "LAB_DIR": str(lab.directory)}
    with subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL) as bringing_up:
        eventually(lambda: traces(place)["processes"], "the first processes")
        bringing_up.send_signal(signal.SIGKILL)
    assert traces(place) != before
    lab("down")
    assert traces(place) == before
    lab(*words[1:])
    lab("pause", "r1")
    lab("down")
    lab("down", "--purge")
    assert traces(place) == before
    assert not lab.directory.exists()
