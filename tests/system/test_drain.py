"""A node is emptied while a cycle comes in and a test VM runs on it: no cycle is missed."""

from __future__ import annotations

import itertools
import random
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from deploy.lab.processes import environment
from tests.support.lab_room import INTERVAL_S, GuestWatch, Room, eventually, lab_up, quick
from tests.support.model_client import ModelClient
from tests.support.model_source import ModelSource

pytestmark = [
    pytest.mark.needs("root", "netns", "etcd", "libvirt", "qemu"),
    pytest.mark.timeout(300),
]
VM = "g1"


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    with lab_up(tmp_path_factory.mktemp("drain"), "--compact", *quick()) as room:
        room.run("guest", "create", "p1", VM, "--small", "--rate", "512K")
        room.protect(VM)
        yield room


def _state(room: Room, node: str) -> str:
    items = room.ask_patiently("replica", "node", "list")["items"]
    return str(next(n["state"] for n in items if n["name"] == node))


def _wait_for_transfer(room: Room) -> None:
    """A cycle is under way: its data come slowly, and their file is there."""
    folder = room.directory / "shared"
    eventually(lambda: not list(folder.glob("*/incoming/*/*.part")), "between two cycles", 20, 0.01)
    eventually(lambda: list(folder.glob("*/incoming/*/*.part")), "a cycle comes in", 20, 0.01)


def test_drain_loses_no_cycle_and_survives_ctrl_c(room: Room) -> None:
    guest = GuestWatch(room, VM)
    owner = room.owner(VM)
    room.vmrctl("replica", "failover", "test", "start", VM, "--wait")
    tested_on = room.ask("replica", "failover", "test", "list")["items"][0]["node"]
    replica_id = room.ask("replica", "replica", "show", VM)["replica_id"]
    console = room.directory / tested_on / "var-lib-vmreplica" / "console" / f"{replica_id}.log"
    eventually(lambda: console.exists() and "COUNT" in console.read_text(), "the test VM counts")
    assert tested_on == owner
    # Slow enough that a cycle takes a good second.
    room.lab.switch.rate(room.lab.settings().host(owner), "16mbit")
    before = room.next_cycle(VM)
    known = len(room.events("p1"))
    _wait_for_transfer(room)
    begun = time.monotonic()
    line = room.vmrctl_line("--context", "replica", "node", "drain", owner, "--wait")
    with subprocess.Popen(
        line, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment()
    ) as person:
        assert person.stderr is not None
        assert "waiting" in person.stderr.readline()
        _interrupt(room)
        assert person.wait(10) == 130
    eventually(lambda: _state(room, owner) == "Drained", "drained", 30)
    print(f"drained after {time.monotonic() - begun:.1f} s")
    room.lab.switch.rate(room.lab.settings().host(owner), None)
    successor = room.owner(VM)
    assert successor != owner
    eventually(lambda: room.last_seq(VM) >= before["seq"] + 4, "four more cycles", 30)
    since = room.acknowledged(VM)
    since = since[[c["seq"] for c in since].index(before["seq"]) :]
    assert [c["seq"] for c in since] == list(range(before["seq"], before["seq"] + len(since)))
    assert {c["kind"] for c in since} == {"Delta"}
    assert since[-1]["epoch"] > before["epoch"]
    gaps = [b["at_s"] - a["at_s"] for a, b in itertools.pairwise(since)]
    assert max(gaps) < 2 * INTERVAL_S, gaps
    told = [e["name"] for e in room.events("p1")[known:]]
    assert not {"cycle.failed", "cycle.missed", "resync.required"} & set(told), told
    # The test VM went on, undisturbed, and is stopped as if nothing had happened.
    counts = console.read_text().count("COUNT")
    eventually(lambda: console.read_text().count("COUNT") > counts, "the test VM goes on")
    assert "ERROR" not in console.read_text() and "STALL" not in console.read_text()
    room.vmrctl("replica", "failover", "test", "stop", VM, "--wait")
    assert f"{VM} - Test" not in room.domains(tested_on)
    eventually(lambda: VM in room.domains(successor), "defined at the new owner", 20)
    eventually(lambda: VM not in room.domains(owner), "no longer at the old one", 20)
    guest.check()


def _interrupt(room: Room) -> None:
    """Ctrl-C for the vmrctl that runs on the client host."""
    pid = room.lab.control_named("c1").process("vmrctl")
    assert pid is not None
    subprocess.run(["kill", f"-{signal.SIGINT.value}", str(pid)], check=True)


def test_new_replicas_avoid_a_drained_node_until_it_is_undrained(room: Room) -> None:
    nodes = room.ask("replica", "node", "list")["items"]
    drained = next(n["name"] for n in nodes if n["state"] == "Drained")
    model = ModelSource({"vda": 1 << 20}, random.Random(3))
    client = ModelClient(room, room.directory / "certs" / "other-cluster.crt", "x1.lab:7443")
    try:
        placed = [client.create(f"vm{n}", model)["owner"] for n in range(4)]
        assert drained not in placed and len(set(placed)) == 2
        room.vmrctl("replica", "node", "undrain", drained)
        eventually(lambda: _state(room, drained) == "Ready", "undrained", 10)
        assert client.create("vm5", model)["owner"] == drained
    finally:
        client.close()
