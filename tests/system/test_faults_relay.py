"""The relay: used where the nodes cannot be reached, left again, and small whatever it carries."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.lab_room import (
    INTERVAL_S,
    LONG,
    GuestWatch,
    Room,
    eventually,
    lab_up,
    quick,
)
from tests.support.model_client import ModelClient, compare
from tests.support.model_source import ModelSource

pytestmark = [
    pytest.mark.needs("root", "netns", "etcd", "libvirt", "qemu"),
    pytest.mark.timeout(600),
]
VM = "g1"
MIB = 1 << 20


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    words = ("--hosts", "p1,r1,r2,b1,e1,c1", *quick())
    with lab_up(tmp_path_factory.mktemp("relay"), *words) as room:
        room.run("guest", "create", "p1", VM, "--small", "--rate", "256K")
        room.protect(VM)
        yield room


def _route(room: Room) -> str:
    return str(room.ask_patiently("primary", "replication", "show", VM)["route"])


def test_a_cut_way_is_replaced_by_the_relay(room: Room) -> None:
    guest = GuestWatch(room, VM)
    room.next_cycle(VM)
    assert _route(room) != "relay"
    for node in ("r1", "r2"):
        room.run("cut", "p1", node)
    cut = time.time()
    eventually(
        lambda: [c for c in room.acknowledged(VM) if c["at_s"] > cut + 1], "relayed", 3 * INTERVAL_S
    )
    room.next_cycle(VM)
    assert _route(room) == "relay"
    changed = [e["data"]["route"] for e in room.events("p1", "replication.route_changed", VM)]
    assert changed == ["relay"]
    assert {c["kind"] for c in room.acknowledged(VM)[1:]} == {"Delta"}
    room.run("heal")
    guest.check()


@pytest.mark.skipif(not LONG, reason="direct is tried again after 5 minutes: VMR_LONG=1")
def test_the_straight_way_is_taken_again(room: Room) -> None:
    eventually(lambda: _route(room) != "relay", "direct again", 330, 1)
    changed = [e["data"]["route"] for e in room.events("p1", "replication.route_changed", VM)]
    assert changed == ["relay", "direct"]


class Peak:
    """The most memory that a process has, looked at every 20 ms in a thread."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self.bytes = self.now()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def now(self) -> int:
        return int(self._status.read_text().split("VmRSS:")[1].split()[0]) * 1024

    def _look(self) -> None:
        while not self._over.wait(0.02):
            self.bytes = max(self.bytes, self.now())

    def end(self) -> None:
        self._over.set()
        self._thread.join()


def test_a_slow_node_does_not_fill_the_relay(room: Room) -> None:
    model = ModelSource({"vda": 64 * MIB}, random.Random(11))
    client = ModelClient(room, room.directory / "certs" / "other-cluster.crt", "x1.lab:7443")
    broker = room.daemons("b1").pid("broker")
    assert broker is not None
    try:
        owner = client.create("slow", model)["owner"]
        client.begin("Full", model.change(1, 200), relay=True)
        client.finish()
        room.lab.switch.rate(room.lab.settings().host(owner), "8mbit")
        peak, begun = Peak(broker), time.monotonic()
        before = peak.bytes
        try:
            client.begin("Delta", model.change(2, 320), relay=True)
            client.finish()
        finally:
            peak.end()
        took = time.monotonic() - begun
        room.lab.switch.rate(room.lab.settings().host(owner), None)
        print(f"{(peak.bytes - before) / MIB:.1f} MiB more in the relay, {took:.0f} s")
        assert took > 8, "the node was not slow at all"
        assert peak.bytes - before <= 8 * MIB
        compare(room, client.replica_id, model, 2)
    finally:
        room.lab.heal()
        client.close()
