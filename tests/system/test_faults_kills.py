"""The owner's whole host dies at chosen instants of a cycle; every bit is compared with a model.

Nothing acknowledged is lost, nothing unacknowledged is half there, two points are never mixed.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.lab_room import Room, eventually, lab_up, quick
from tests.support.model_client import ModelClient, compare
from tests.support.model_source import ModelSource
from tests.support.system_calls import Held

pytestmark = [
    pytest.mark.needs("root", "netns", "etcd", "libvirt", "qemu", "strace"),
    pytest.mark.timeout(600),
]
SIZES = {"vda": 24 << 20, "vdb": (6 << 20) + 512}
"""The second disk ends with a cluster of which only one sector exists."""


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    # Brokers and etcd are apart: here only owners die.
    words = ("--hosts", "r1,r2,r3,b1,e1,c1", *quick())
    with lab_up(tmp_path_factory.mktemp("kills"), *words) as room:
        yield room


@dataclass(slots=True)
class Story:
    """One replica, its model, and hosts that are killed and come back."""

    room: Room
    model: ModelSource
    client: ModelClient
    acked: int = 0
    epoch: int = 0
    starting: list[threading.Thread] = field(default_factory=list)

    def begin(self, kind: str = "Delta", count: int = 20, **words: object) -> None:
        changed = self.model.change(self.acked + 1, count)
        self.client.begin(kind, changed, **words)

    def acknowledged(self, done: dict[str, Any]) -> None:
        assert done["seq"] == self.acked + 1
        assert done["epoch"] >= self.epoch
        self.acked, self.epoch = done["seq"], done["epoch"]

    def start(self, host: str) -> None:
        """A dead host comes back beside the test."""
        self.starting.append(threading.Thread(target=self.room.start, args=(host,)))
        self.starting[-1].start()

    def wait_for_hosts(self) -> None:
        for thread in self.starting:
            thread.join(60)
        self.starting.clear()

    def names(self) -> set[str]:
        """Layers and manifests under their final names."""
        folder = next((self.room.directory / "shared").glob(f"{self.client.replica_id}.*"))
        return {p.name for part in ("layers/*.qcow2", "manifest.*.json") for p in folder.glob(part)}

    def quiet(self) -> None:
        """No merge is under way."""
        seen: list[set[str]] = [set()]

        def unchanged() -> bool:
            seen.append(self.names())
            return seen[-1] == seen[-2]

        eventually(unchanged, "merges come to an end", 20, 0.7)

    def compare(self, seq: int) -> None:
        compare(self.room, self.client.replica_id, self.model, seq)

    def survive(self, dead: str, *, start: bool = True) -> bool:
        """What the next owner holds before anything is sent again, and after it.

        :returns: whether the cycle under way had been committed by the dead one.
        """
        ended = self.client.finish()
        known = ended.get("seq", self.acked)
        head = self.client.ask("head")
        assert head["owner"] != dead and head["epoch"] > self.epoch
        assert known <= head["acked_seq"] <= self.acked + 1
        self.compare(head["acked_seq"])
        committed = bool(head["acked_seq"] == self.acked + 1)
        if "cut" in ended:
            ended = self.client.ask("resume")
            assert ended["duplicate"] == committed
        self.acknowledged(ended)
        if start:
            self.start(dead)
        self.compare(self.acked)
        return committed


@pytest.fixture(scope="module")
def story(room: Room) -> Iterator[Story]:
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"\nSEED={seed}")
    certificate = room.directory / "certs" / "other-cluster.crt"
    model = ModelSource(SIZES, random.Random(seed))
    client = ModelClient(room, certificate, "x1.lab:7443")
    client.create("model", model)
    story = Story(room, model, client)
    story.begin("Full", 90)
    story.acknowledged(client.finish())
    story.compare(1)
    yield story
    story.wait_for_hosts()
    client.close()


@pytest.fixture
def owner(story: Story) -> str:
    """The present owner, while another node is there to take over."""
    found = story.client.ask("head")["owner"]
    nodes = story.room.ask_patiently("replica", "node", "list")["items"]
    if not [n for n in nodes if n["state"] == "Ready" and n["name"] != found]:
        story.wait_for_hosts()
    return str(found)


@pytest.mark.parametrize(
    "place", ["open", "accepted", "early frame", "late frame", "closing", "closed"]
)
def test_killed_while_a_cycle_comes_in(story: Story, owner: str, place: str) -> None:
    story.begin(pause_ms=20, stop=True)
    # 20 clusters of each disk, 16 a frame: frames 0 to 3.
    number = {"early frame": 0, "late frame": 2}.get(place, -2)
    number += story.model.randomness.randrange(2) if number >= 0 else 1
    story.client.until(place.rsplit(maxsplit=1)[-1], number)
    time.sleep(story.model.randomness.random() * 0.03)
    story.room.kill(owner)
    story.survive(owner)


@pytest.mark.parametrize(
    ("call", "nth", "after", "committed"),
    [
        pytest.param("fdatasync", 1, False, False, id="before the part is synced"),
        pytest.param("renameat", 1, False, False, id="before the first layer has its name"),
        pytest.param("renameat", 1, True, False, id="one disk's layer has its name"),
        pytest.param("linkat", 1, False, False, id="before the manifest's link"),
        pytest.param("linkat", 1, True, True, id="linked, never acknowledged"),
    ],
)
def test_killed_at_a_call_of_the_commit(
    story: Story, owner: str, tmp_path: Path, call: str, nth: int, after: bool, committed: bool
) -> None:
    pid = story.room.daemons(owner).pid("node")
    assert pid is not None
    story.quiet()
    before = story.names()
    held = Held(pid, call, tmp_path / "strace.log", after=after, nth=nth)
    try:
        story.begin(stop=True)
        if after:  # strace writes the line when it lets go; its effect is there already
            kind = "manifest" if call == "linkat" else "vd"
            eventually(
                lambda: [name for name in story.names() - before if name.startswith(kind)],
                f"the effect of {call}",
                20,
                0.01,
            )
        else:
            print(held.wait())
            new = story.names() - before
            assert not [name for name in new if name.startswith("manifest")]
        killing = threading.Thread(target=story.room.kill, args=(owner,))
        killing.start()
        held.wait_killed()
    finally:
        held.release()  # only a dead process is let go: the call never happens
    killing.join()
    assert story.survive(owner) == committed


@pytest.mark.parametrize("call", ["", "linkat"], ids=["anywhere", "before the manifest's link"])
def test_an_owner_that_stood_still_changes_nothing_when_it_goes_on(
    story: Story, owner: str, tmp_path: Path, call: str
) -> None:
    """The clocks of a frozen host's processes go on; what they were about to do is still undone."""
    daemons = story.room.daemons(owner)
    pid = daemons.pid("node")
    assert pid is not None
    story.quiet()
    held = Held(pid, call, tmp_path / "strace.log") if call else None
    try:
        story.begin(stop=True, pause_ms=20)
        if held is None:
            story.client.until("frame", 1)
        else:
            print(held.wait())
        story.room.lab.control_named(owner).pause()
        assert story.survive(owner, start=False) is False
        story.room.lab.control_named(owner).resume()
    finally:
        if held is not None:
            held.release()
    # Stopped by its own guard, or here again without the replica.
    eventually(lambda: daemons.pid("node") != pid or _ready(story, owner), "it knows", 30)
    daemons.start("node")
    daemons.wait_ready("node")
    epoch = story.epoch
    story.begin()
    story.acknowledged(story.client.finish())
    assert story.epoch == epoch
    story.compare(story.acked)


def _ready(story: Story, node: str) -> bool:
    nodes = story.room.ask_patiently("replica", "node", "list")["items"]
    return any(n["state"] == "Ready" for n in nodes if n["name"] == node)


def test_every_point_that_is_kept_reads_back(story: Story) -> None:
    story.wait_for_hosts()
    points = story.room.ask_patiently("replica", "replica", "points", story.client.replica_id)
    sequence = [point["seq"] for point in points["items"]]
    assert max(sequence) == story.acked
    assert not [p for p in points["items"] if p["state"] == "Damaged"]
    for seq in sequence:
        story.compare(seq)
