"""A standalone node that merges while cycles come, seen in every manifest it ever commits.

Cycles are not timed: they come at once, put off only while a chain is as long as it may be, which
takes the place of the seconds between real cycles.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.system.test_node_standalone import Room, Sender, of, patiently
from tests.unit.replica_world import DISKS, make_cycle, raw_frame
from vmreplica.adapters.grpc_channels import ChannelPool
from vmreplica.adapters.system_clock import SystemClock
from vmreplica.core.chain import file_count, layers_of
from vmreplica.core.cycle import CLUSTER_BYTES, Acknowledged
from vmreplica.core.manifest import Manifest
from vmreplica.core.manifest_text import parse_manifest
from vmreplica.core.retention import chain_limit
from vmreplica.v1 import settings_pb2

CYCLES = 160
STORM = 80
CLUSTERS = DISKS[0].clusters


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    room = Room(tmp_path)
    room.start()
    yield room
    room.end()
    text = (tmp_path / "log").read_text()
    assert "Traceback" not in text, text


class Watched:
    """The replica's directory: every manifest that was ever in force, and the store worker."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.manifests: dict[int, Manifest] = {}
        self.most_files = 0

    @property
    def folder(self) -> Path:
        return next(path for path in self.room.store.iterdir() if path.is_dir())

    def look(self) -> None:
        """Read what is new; the newest 64 stay, so none is missed by looking often."""
        for path in self.folder.glob("manifest.*.json"):
            number = int(path.name.split(".")[1])
            if number not in self.manifests:
                with suppress(FileNotFoundError):
                    self.manifests[number] = parse_manifest(path.read_bytes(), number)
        self.most_files = max(self.most_files, len(os.listdir(self.folder / "layers")))

    @property
    def head(self) -> Manifest:
        return self.manifests[max(self.manifests)]

    def chain(self) -> int:
        self.look()
        return file_count(layers_of(self.head, "vda"))

    def check(self) -> None:
        """No number is missing, and no chain was too long at any of them."""
        assert sorted(self.manifests) == list(range(1, len(self.manifests) + 1))
        for number, manifest in self.manifests.items():
            length = file_count(layers_of(manifest, "vda"))
            assert length <= chain_limit(len(manifest.points)), f"manifest {number}: {length} files"

    def worker(self) -> int:
        """The store worker's pid; 0 = none yet."""
        assert self.room.process is not None
        for task in Path(f"/proc/{self.room.process.pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                with suppress(FileNotFoundError):
                    if b"node.disk.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                        return int(child)
        return 0

    def written(self) -> int:
        """Bytes that the node and its worker made the storage write."""
        assert self.room.process is not None
        total = 0
        for pid in filter(None, (self.room.process.pid, self.worker())):
            lines = Path(f"/proc/{pid}/io").read_text().splitlines()
            total += next(int(x.split()[1]) for x in lines if x.startswith("write_bytes"))
        return total


class Life:
    """One VM's cycles, and what its disk holds."""

    def __init__(self, room: Room, sender: Sender, seed: int) -> None:
        self.random = random.Random(seed)
        self.content = bytearray(DISKS[0].size_bytes)
        self.sender = sender
        self.watched = Watched(room)
        self.seq = 0
        self.parent = b""
        self.received = 0
        self.waits = 0
        self.latencies_ms: list[float] = []

    async def begin(self) -> None:
        self.head = await self.sender.admitted(str(uuid.uuid4()))
        await self.cycle(range(CLUSTERS))

    async def cycle(self, indexes: range | list[int]) -> None:
        """One cycle, acknowledged."""
        self.seq += 1
        clusters = {i: self.random.randbytes(CLUSTER_BYTES) for i in indexes}
        frames = [
            raw_frame(0, dict(list(clusters.items())[start : start + 16]))
            for start in range(0, len(clusters), 16)
        ]
        sent = of(self.head, make_cycle(self.seq, self.parent, frames))
        began = time.monotonic()
        reply = await patiently(lambda: self.sender.cycle(sent))
        self.latencies_ms.append((time.monotonic() - began) * 1_000)
        assert isinstance(reply, Acknowledged) and reply.seq == self.seq
        self.parent = reply.cycle_digest
        self.received += sum(len(frame.payload) for frame in frames)
        for index, data in clusters.items():
            self.content[index * CLUSTER_BYTES : (index + 1) * CLUSTER_BYTES] = data
        self.watched.look()

    async def small_cycle(self) -> None:
        await self.cycle(self.random.sample(range(CLUSTERS), self.random.randrange(1, 9)))

    async def paced_cycle(self) -> None:
        """A small cycle, put off while the chain is full: the merge under way makes room."""
        full = self.watched.chain() >= chain_limit(1)
        self.waits += full
        while full:
            await asyncio.sleep(0.02)
            full = self.watched.chain() >= chain_limit(1)
        await self.small_cycle()

    def latencies(self) -> str:
        sent = sorted(self.latencies_ms[1:])
        return (
            f"latency ms: median {statistics.median(sent):.0f}, "
            f"90 % {sent[len(sent) * 9 // 10]:.0f}, longest {sent[-1]:.0f}"
        )

    def head_is_whole(self, at: Path) -> bool:
        node = None
        for file in self.watched.head.chain("vda"):
            node = {
                "driver": "qcow2",
                "file": {"driver": "file", "filename": str(self.watched.folder / file)},
                "backing": node,
            }
        name = "json:" + json.dumps(node)
        subprocess.run(["qemu-img", "convert", "-O", "raw", name, str(at)], check=True)
        return at.read_bytes() == bytes(self.content)


@pytest.fixture
async def life(room: Room):
    admin = ChannelPool(room.files["admin"], SystemClock())
    wish = settings_pb2.UpdateSettingsRequest(
        settings={"any_server": "true", "default_storage_location": str(room.store)}
    )
    method = "/vmreplica.v1.SettingsService/UpdateSettings"
    answer = settings_pb2.UpdateSettingsResponse
    await patiently(lambda: admin.unary(room.cap, "", method, wish, answer))
    await admin.close()
    seed = random.randrange(1 << 30)
    print(f"seed={seed}")
    sender = Sender(room)
    life = Life(room, sender, seed)
    await life.begin()
    yield life
    await sender.pool.close()


@pytest.mark.timeout(240)
async def test_chains_stay_short_at_any_instant(life: Life, tmp_path: Path) -> None:
    written, life.received = life.watched.written(), 0
    for _ in range(CYCLES):
        await life.paced_cycle()
    watched = life.watched
    factor = (watched.written() - written) / life.received
    merges = {x.file for m in watched.manifests.values() for x in m.layers if x.to_seq > x.from_seq}
    print(
        f"{CYCLES} cycles, {life.received >> 20} MiB, {len(merges)} merges, written/received = "
        f"{factor:.2f}, most files {watched.most_files}, {life.waits} cycles put off, "
        f"{life.latencies()}"
    )
    watched.check()
    assert life.head_is_whole(tmp_path / "raw")
    assert len(merges) > 3
    assert factor <= 8


@pytest.mark.timeout(240)
async def test_a_storm_of_cycles_is_caught_up_with(life: Life, tmp_path: Path) -> None:
    watched = life.watched
    for _ in range(STORM):
        await life.small_cycle()
    watched.look()
    lengths = [file_count(layers_of(m, "vda")) for m in watched.manifests.values()]
    print(f"{STORM} cycles without a pause: longest chain {max(lengths)}, {life.latencies()}")
    while watched.chain() > chain_limit(1):
        await asyncio.sleep(0.05)
    assert life.head_is_whole(tmp_path / "raw")


@pytest.mark.timeout(240)
async def test_no_cycle_waits_for_a_merge(life: Life, tmp_path: Path) -> None:
    watched = life.watched
    while not any(layer.to_seq > layer.from_seq for layer in watched.head.layers):
        await life.paced_cycle()
    worker = watched.worker()
    assert worker
    os.kill(worker, signal.SIGSTOP)
    # A merge is due before the limit is reached, and this one does not end.
    while watched.chain() < chain_limit(1):
        await life.small_cycle()
    acknowledged = life.seq
    os.kill(worker, signal.SIGCONT)
    while watched.chain() == chain_limit(1):
        await asyncio.sleep(0.05)
    newest = max(x.to_seq for x in watched.head.layers if x.to_seq > x.from_seq)
    assert newest < acknowledged, "the merge that was stopped held no cycle up"
    for _ in range(4):
        await life.paced_cycle()
    watched.check()
    assert life.head_is_whole(tmp_path / "raw")
