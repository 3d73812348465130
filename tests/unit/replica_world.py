"""A small replica cluster for tests: fake cluster store, nodes over modelled disks, a sender."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from node.disk.replica_store import DiskReplicaStore
from node.service.compactor import Planner
from node.service.membership import NodeIdentity
from node.service.replica_parts import KeeperLimits
from node.service.replica_role import ReplicaRole, ReplicaRolePorts
from node.service.storage_watch import StorageLocation
from vmreplica.coordination.guarded import GuardedWriter
from vmreplica.coordination.store_cache import StoreCache
from vmreplica.core.compaction import plan_merge, with_merged
from vmreplica.core.cycle import (
    CLUSTER_BYTES,
    EMPTY_DIGEST,
    ZERO_CLUSTER_DIGEST,
    ZERO_DIGEST,
    Accepted,
    Acknowledged,
    CycleClose,
    CycleKind,
    CycleOpen,
    CycleReply,
    CycleRequest,
    Disk,
    Frame,
    cycle_digest,
    digest,
)
from vmreplica.core.identity import Identity
from vmreplica.core.keys import Keys
from vmreplica.core.records import DiskRecord, NodeRecord, OwnerRecord, ReplicaRecord, parse, render
from vmreplica.core.settings import SettingsRecord
from vmreplica.ports.cluster_store import Put
from vmreplica.ports.event_log import Severity
from vmreplica.ports.replica_store import ReplicaStore
from vmreplica.testing.fake_clock import FakeClock
from vmreplica.testing.fake_cluster_store import FakeClusterStore
from vmreplica.testing.fake_store_server import FakeStoreServer
from vmreplica.testing.fake_vm_host import FakeVmHost, model_vm
from vmreplica.testing.memory_disk import MemoryDisk
from vmreplica.testing.memory_files import MemoryFiles
from vmreplica.testing.seeded_randomness import SeededRandomness

KEYS = Keys("c1")
LOCATION = "/store"
DISKS = (Disk("vda", 10 << 20), Disk("vdb", 65_536 + 512))
REPLICA = "22222222-2222-2222-2222-222222222222"
NAMES = ("p1.example.org",)
XML = model_vm("guest1", "11111111-1111-1111-1111-111111111111", DISKS).xml.encode()


class Events:
    """Collects what was written."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def write(
        self,
        name: str,
        message: str,
        *,
        severity: Severity = Severity.INFO,
        replica_id: str = "",
        vm_name: str = "",
        data: Mapping[str, str] | None = None,
    ) -> None:
        self.names.append(name)


class QuietGuard:
    """A guard whose probes always answer."""

    def __init__(self) -> None:
        self.deadlines: list[int] = []
        self.ages: dict[str, int] = {}

    def set_deadline(self, boottime_ms: int) -> None:
        self.deadlines.append(boottime_ms)

    def register_child(self, pid: int) -> None: ...

    def unregister_child(self, pid: int) -> None: ...

    async def frozen(self, vm_uuid: str, until_boottime_ms: int) -> None: ...

    async def thawed(self, vm_uuid: str) -> None: ...

    async def job_begins(
        self, vm_uuid: str, scratch_paths: tuple[str, ...], abort_at_boottime_ms: int
    ) -> None: ...

    async def job_ended(self, vm_uuid: str) -> None: ...

    def probe_ages_ms(self) -> Mapping[str, int]:
        return self.ages


@dataclass
class Node:
    """One node: its role, its parts, its task."""

    name: str
    role: ReplicaRole
    cache: StoreCache
    host: FakeVmHost
    events: Events
    store: FakeClusterStore
    clock: FakeClock
    guard: QuietGuard
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def joined(self) -> str:
        await self.role.membership.joined.wait()
        return self.role.membership.incarnation

    async def kill(self) -> None:
        """The process is gone; its lease runs out by itself."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


class World:
    """The cluster. Runs in virtual time; every node sees the same modelled disk."""

    def __init__(self, limits: KeeperLimits | None = None) -> None:
        loop = asyncio.get_running_loop()
        self.server = FakeStoreServer(1)
        self.disk = MemoryDisk(now_ms=lambda: int(loop.time() * 1000))
        self.disk.make_location(LOCATION)
        self.store = FakeClusterStore(self.server, "tester")
        self.limits = limits or KeeperLimits()
        self.nodes: dict[str, Node] = {}
        self.files: dict[str, MemoryFiles] = {}

    def replica_store(self, name: str) -> ReplicaStore:
        self.files[name] = MemoryFiles(self.disk, name)
        return DiskReplicaStore(self.files[name], [LOCATION], SeededRandomness(name))

    async def start(self, name: str, replica_store: ReplicaStore | None = None) -> Node:
        clock, store = FakeClock(), FakeClusterStore(self.server, name)
        randomness = SeededRandomness(f"{name}{len(self.nodes)}{clock.boottime_ms()}")
        cache = StoreCache(store, clock, KEYS.root)
        host, events, guard = FakeVmHost(), Events(), QuietGuard()
        role = ReplicaRole(
            ReplicaRolePorts(
                identity=NodeIdentity(
                    name=name, address=f"{name}:7444", server_name=name, version="0"
                ),
                keys=KEYS,
                store=store,
                cache=cache,
                writer=GuardedWriter(store, clock, randomness, KEYS),
                clock=clock,
                randomness=randomness,
                replica_store=replica_store or self.replica_store(name),
                host=host,
                guard=guard,
                events=events,
                locations=[StorageLocation(LOCATION, True)],
                console_directory="/console",
                planner=Planner(plan_merge, with_merged),
                limits=self.limits,
            )
        )
        node = Node(name, role, cache, host, events, store, clock, guard)
        node.tasks = [asyncio.ensure_future(cache.run()), asyncio.ensure_future(role.run())]
        self.nodes[name] = node
        await node.joined()
        return node

    async def settings(self, **values: str) -> None:
        record = SettingsRecord(version=1, values=values)
        await self.store.transaction([], [Put(KEYS.settings, render(record))])

    async def create(self, owner: Node, *, delete: bool = False) -> ReplicaRecord:
        """Admission, as the broker does it: any-server mode, the first owner chosen."""
        await self.settings(any_server="true", default_storage_location=LOCATION)
        incarnation = await owner.joined()
        record = ReplicaRecord(
            replica_id=REPLICA,
            vm_uuid="11111111-1111-1111-1111-111111111111",
            vm_name="guest1",
            domain_name="guest1",
            trust_group="DEFAULT/p1.example.org",
            primary_access_point="p1.example.org:7444",
            storage_location=LOCATION,
            folder_path=f"{LOCATION}/{REPLICA}.{incarnation}",
            disks=tuple(DiskRecord(target=d.target, size_bytes=d.size_bytes) for d in DISKS),
        )
        first = OwnerRecord(node=owner.name, incarnation=incarnation, epoch=1)
        await self.store.transaction(
            [],
            [
                Put(KEYS.replica(REPLICA), render(record)),
                Put(KEYS.owner(REPLICA), render(first)),
                Put(KEYS.definition(REPLICA), XML.decode()),
            ],
        )
        return record

    async def give(self, node: Node, epoch: int = 0) -> int:
        """Relocation, as the leader does it."""
        kv = await self.store.get(KEYS.owner(REPLICA))
        assert kv is not None
        epoch = epoch or parse(OwnerRecord, kv.value).epoch + 1
        owner = OwnerRecord(node=node.name, incarnation=await node.joined(), epoch=epoch)
        await self.store.transaction([], [Put(KEYS.owner(REPLICA), render(owner))])
        return epoch

    async def owner(self) -> OwnerRecord:
        kv = await self.store.get(KEYS.owner(REPLICA))
        assert kv is not None
        return parse(OwnerRecord, kv.value)

    async def record(self) -> ReplicaRecord | None:
        kv = await self.store.get(KEYS.replica(REPLICA))
        return None if kv is None else parse(ReplicaRecord, kv.value)

    async def node_record(self, name: str) -> NodeRecord | None:
        found = (await self.store.range(f"{KEYS.nodes}{name}/")).items
        return parse(NodeRecord, found[0].value) if found else None

    async def close(self) -> None:
        for node in self.nodes.values():
            await node.kill()
        self.server.close()


def raw_frame(disk: int, clusters: Mapping[int, bytes]) -> Frame:
    """Plain clusters; b"" means a zero cluster."""
    digests, stored = b"", b""
    for data in clusters.values():
        digests += digest(data) if data else ZERO_CLUSTER_DIGEST
        stored += digest(data) if data else EMPTY_DIGEST
    return Frame(
        disk,
        tuple(clusters),
        tuple(len(data) for data in clusters.values()),
        digests,
        b"".join(clusters.values()),
        stored,
    )


def cluster(text: str) -> bytes:
    """A cluster's bytes, made from a word."""
    return (text.encode() * CLUSTER_BYTES)[:CLUSTER_BYTES]


@dataclass
class Sent:
    """One cycle as a sender holds it: frames, and everything open and close need."""

    open: CycleOpen
    frames: list[Frame]
    close: CycleClose


def make_cycle(
    seq: int,
    parent: bytes,
    frames: list[Frame],
    *,
    epoch: int = 1,
    kind: CycleKind | None = None,
    since: bytes = b"",
    cycle_id: bytes = b"",
    resume: bool = False,
) -> Sent:
    """A whole cycle."""
    kind = kind or (CycleKind.FULL if seq == 1 else CycleKind.DELTA)
    pairs: list[dict[int, bytes]] = [{} for _ in DISKS]
    for frame in frames:
        for place, index in enumerate(frame.indexes):
            pairs[frame.disk][index] = frame.digests[16 * place : 16 * place + 16]
    return Sent(
        CycleOpen(
            replica_id=REPLICA,
            epoch=epoch,
            seq=seq,
            parent_digest=parent or ZERO_DIGEST,
            kind=kind,
            disks=DISKS,
            cycle_id=cycle_id or bytes([seq]) * 16,
            since_cycle_id=since or (bytes([seq - 1]) * 16 if kind is not CycleKind.FULL else b""),
            domain_xml=XML if seq == 1 else b"",
            resume=resume,
        ),
        frames,
        CycleClose(
            clusters=sum(len(p) for p in pairs),
            cycle_digest=cycle_digest(parent or ZERO_DIGEST, seq, DISKS, pairs),
            point_time_ms=1_700_000_000_000 + seq,
        ),
    )


class Line:
    """The wire between a sender in a test and one node's receiver."""

    def __init__(self, node: Node, names: tuple[str, ...] = NAMES) -> None:
        self._queue: asyncio.Queue[CycleRequest | None] = asyncio.Queue()
        self.replies = node.role.receiver.serve(Identity(dns_names=names), names, self._incoming())

    async def _incoming(self) -> AsyncIterator[CycleRequest]:
        while (message := await self._queue.get()) is not None:
            yield message

    def send(self, *messages: CycleRequest) -> None:
        for message in messages:
            self._queue.put_nowait(message)

    def end(self) -> None:
        self._queue.put_nowait(None)

    async def next(self) -> CycleReply:
        return await anext(self.replies)

    async def cut(self) -> None:
        await self.replies.aclose()


async def send_cycle(node: Node, sent: Sent) -> Acknowledged:
    """One whole cycle, from where the node says."""
    line = Line(node)
    line.send(sent.open)
    first = await line.next()
    if isinstance(first, Acknowledged):
        return first
    assert isinstance(first, Accepted)
    line.send(*sent.frames[first.durable_frames :], sent.close)
    async for reply in line.replies:
        if isinstance(reply, Acknowledged):
            return reply
    raise AssertionError("the stream ended without an answer")
