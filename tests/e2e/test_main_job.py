"""The main job with a running guest: protected, relocated, test-started; the guest proves its data."""

from __future__ import annotations

import random
import re
import time
import uuid
from collections.abc import Iterator

import pytest

from tests.support.lab_room import (
    INTERVAL_S,
    NODES,
    GuestWatch,
    Room,
    eventually,
    lab_up,
    quick,
)
from tests.support.model_client import ModelClient
from tests.support.model_source import ModelSource

pytestmark = [
    pytest.mark.needs("root", "netns", "etcd", "libvirt", "qemu"),
    pytest.mark.timeout(300),
]
VM = "g1"


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    with lab_up(tmp_path_factory.mktemp("job"), "--compact", *quick()) as room:
        room.run("guest", "create", "p1", VM, "--small", "--rate", "1M")
        room.protect(VM)
        yield room


@pytest.fixture
def guest(room: Room) -> Iterator[GuestWatch]:
    """The guest, which must not have met an error when the test ends."""
    watch = GuestWatch(room, VM)
    yield watch
    watch.check()


def _verify(text: str) -> dict[str, str]:
    line = re.findall(r"^VERIFY (.*)$", text, re.MULTILINE)[-1]
    return dict(field.split("=") for field in line.split())


def _nonce(text: str) -> str:
    return re.findall(r"BOOT nonce=([0-9a-f]+)", text)[0]


def test_the_replica_is_defined_by_its_owner_alone_and_cannot_be_started(
    room: Room, guest: GuestWatch
) -> None:
    owner = room.owner(VM)
    eventually(lambda: VM in room.domains(owner), "the replica is defined", 20)
    assert [n for n in NODES if VM in room.domains(n)] == [owner]
    refused = room.inside(owner, "sh", "-c", f"virsh start {VM} 2>&1 || true")
    assert "error:" in refused, refused
    assert VM not in room.domains(owner, "--state-running")
    assert "Autostart:      disable" in room.inside(owner, "virsh", "dominfo", VM)
    definition = room.inside(owner, "virsh", "dumpxml", VM)
    assert "state='down'" in definition and re.search(r"""role=['"]replica""", definition)


def test_cycles_are_deltas_of_what_changed(room: Room, guest: GuestWatch) -> None:
    first = room.acknowledged(VM)[0]
    assert (first["seq"], first["kind"]) == (1, "Full")
    room.next_cycle(VM)
    event = room.events("p1", "cycle.acknowledged", VM)[-1]
    changed, wire = (int(event["data"][k]) for k in ("changed_bytes", "wire_bytes"))
    assert event["data"]["kind"] == "Delta"
    assert 0 < wire <= changed * 1.02 + 65_536


def _let_lead(room: Room, host: str) -> None:
    """Broker candidates resign until ``host`` leads."""
    for _ in range(6):
        leader = room.leader()
        if leader == host:
            return
        room.daemons(leader).stop("broker")
        room.daemons(leader).start("broker")
        room.daemons(leader).wait_ready("broker")
    others = [n for n in NODES if n != host]
    for name in others:
        room.daemons(name).stop("broker")
    eventually(lambda: room.leader() == host, f"{host} leads", 20)
    for name in others:
        room.daemons(name).start("broker")
        room.daemons(name).wait_ready("broker")


@pytest.mark.parametrize("silent", [True, False], ids=["power gone", "killed"])
def test_a_host_with_owner_leader_and_etcd_member_dies_at_once(
    room: Room, guest: GuestWatch, silent: bool
) -> None:
    owner = room.owner(VM)
    _let_lead(room, owner)
    assert room.lab.settings().host(owner).roles == ("node", "broker", "etcd")
    before = room.next_cycle(VM)
    counted = guest.count()
    killed = time.time()
    room.kill(owner, silent=silent)
    after = eventually(
        lambda: [c for c in room.acknowledged(VM) if c["at_s"] > killed],
        "a cycle is acknowledged elsewhere",
        6 * INTERVAL_S,
    )[0]
    print(f"acknowledged elsewhere {after['at_s'] - killed:.2f} s after the kill")
    assert after["kind"] == "Delta" and after["seq"] == before["seq"] + 1
    assert after["epoch"] > before["epoch"]
    assert room.owner(VM) != owner and room.leader() != owner
    assert guest.count() > counted
    # The way to the new owner is open: nothing is sent by detour.
    room.next_cycle(VM)
    assert room.ask("primary", "replication", "show", VM)["route"] != "relay"
    room.start(owner)
    eventually(lambda: VM not in room.domains(owner), "the old owner undefines it", 30)
    successor = room.owner(VM)
    eventually(lambda: VM in room.domains(successor), "the new owner defines it", 20)


def test_a_test_failover_holds_what_the_guest_had_counted(room: Room, guest: GuestWatch) -> None:
    nonce, counted, now = _nonce(guest.text()), guest.count(), time.time()
    eventually(
        lambda: [c for c in room.acknowledged(VM) if c["at_s"] - c["latency_s"] > now],
        "a cycle that began after the count",
        3 * INTERVAL_S,
    )
    replica = room.ask("replica", "replica", "show", VM)
    shared = room.directory / "shared"
    room.vmrctl("replica", "failover", "test", "start", VM, "--wait")
    listed = room.ask("replica", "failover", "test", "list")["items"][0]
    node, started_from = listed["node"], listed["seq"]
    assert f"{VM} - Test" in room.domains(node, "--state-running")
    console = room.directory / node / "var-lib-vmreplica" / "console"
    path = console / f"{replica['replica_id']}.log"
    eventually(lambda: path.exists() and "COUNT " in path.read_text(errors="replace"), "it runs")
    found = _verify(path.read_text(errors="replace"))
    assert (found["nonce"], found["first"], found["bad"]) == (nonce, "1", "0")
    vda, vdb = int(found["last_vda"]), int(found["last_vdb"])
    assert counted <= vdb <= vda <= vdb + 1
    assert vdb <= guest.count()
    # Replication goes on meanwhile, and the test VM's disks stay those of its point.
    assert room.next_cycle(VM)["seq"] > started_from
    assert list(shared.glob("*/runs/*"))
    room.vmrctl("replica", "failover", "test", "stop", VM, "--wait")
    assert f"{VM} - Test" not in room.domains(node)
    assert not list(shared.glob("*/runs/*"))
    assert room.ask("replica", "failover", "test", "list")["items"][0]["running"] is False
    room.next_cycle(VM)


def test_equal_names_of_two_clusters_stay_apart(room: Room, guest: GuestWatch) -> None:
    certificate = room.directory / "certs" / "other-cluster.crt"
    model = ModelSource({"vda": 64 << 20, "vdb": 64 << 20}, random.Random(1))
    client = ModelClient(room, certificate, "x1.lab:7443")
    other = str(uuid.uuid4())
    definition = room.inside("p1", "virsh", "dumpxml", "--inactive", VM)
    mine = room.ask("replica", "replica", "show", VM)["vm_uuid"]
    try:
        head = client.create(VM, model, other, definition.replace(mine, other))
    finally:
        client.close()
    name = f"{VM} ({head['replica_id'][:8]})"
    shown = room.ask("replica", "replica", "show", head["replica_id"])
    assert (shown["domain_name"], shown["vm_name"]) == (name, VM)
    assert shown["trust_group"] == "DEFAULT/x1.lab"
    eventually(lambda: name in room.domains(room.owner(head["replica_id"])), "both defined", 20)
    assert VM in room.domains(room.owner(head["replica_id"].replace(head["replica_id"], mine)))
    ambiguous = room.vmrctl("replica", "replica", "show", VM, check=False)
    assert ambiguous.returncode == 4 and head["replica_id"] in ambiguous.stderr
