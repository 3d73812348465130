"""The other cluster in memory, as a sender meets it: owners that move, die, lie low and refuse.

Implements ports.replica_link.ReplicaLink. It keeps to the rules of the wire (head, parent, since,
resume, digests), so that a sender which breaks one is refused as by the real receiver.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import zstandard

from vmreplica.core.cycle import (
    CLUSTER_BYTES,
    DIGEST_BYTES,
    ZERO_CLUSTER_DIGEST,
    ZERO_DIGEST,
    Accepted,
    Acknowledged,
    CycleClose,
    CycleKind,
    CycleOpen,
    Disk,
    Durable,
    Frame,
    cycle_digest,
    digest,
)
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.records import PolicyRecord
from vmreplica.ports.clock import Clock
from vmreplica.ports.replica_link import LinkFailed, Location, NewReplica, ReplicaHead

CONNECT_MS = 2_000


@dataclass
class ModelReplica:
    """One replica. ``content``: target → cluster → its 8 leading bytes as a number."""

    replica_id: str
    request: NewReplica
    node: str
    epoch: int = 1
    seq: int = 0
    cycle_id: bytes = b""
    parent: bytes = ZERO_DIGEST
    digest: bytes = ZERO_DIGEST
    time_ms: int = 0
    recent: list[bytes] = field(default_factory=list)
    content: dict[str, dict[int, int]] = field(default_factory=dict)
    kinds: list[CycleKind] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    definition: bytes = b""
    nvram: bytes = b""
    part_of: tuple[bytes, int] = (b"", 0)
    frames: list[Frame] = field(default_factory=list)
    policies: list[PolicyRecord] = field(default_factory=list)


@dataclass
class LinkFaults:
    """What goes wrong next. Counters count down as they are used."""

    cap_down: bool = False
    dead_nodes: set[str] = field(default_factory=set)
    unreachable_nodes: set[str] = field(default_factory=set)
    silent: bool = False
    stale_locations: int = 0
    cut_after_frames: list[int] = field(default_factory=list)
    lost_acks: int = 0
    lost_closes: int = 0
    refuse_open: deque[Problem] = field(default_factory=deque)
    refuse_create: Problem | None = None


class FakeReplicaLink:
    """A cluster of nodes ``r1``, ``r2``, … behind one address.

    :param frame_ms: how long the owner takes for a frame.
    """

    def __init__(self, clock: Clock, *, frame_ms: float = 1.0, durable_every: int = 4) -> None:
        self.clock = clock
        self.frame_ms = frame_ms
        self.durable_every = durable_every
        self.faults = LinkFaults()
        self.replicas: dict[str, ModelReplica] = {}
        self.before: dict[str, Location] = {}
        self.opens: list[CycleOpen] = []
        self.locates = 0
        self.relayed_streams = 0
        self.direct_streams = 0
        self.most_under_way = 0

    def relocate(self, replica_id: str, node: str) -> None:
        """Another node becomes owner; parts of the old one fall."""
        model = self.replicas[replica_id]
        self.before[replica_id] = self._location(model)
        model.node, model.epoch = node, model.epoch + 1
        model.part_of, model.frames = (b"", 0), []

    async def create_replica(self, cap: str, request: NewReplica, request_id: str) -> ReplicaHead:  # noqa: ARG002
        """See the port."""
        self._cap(cap)
        if self.faults.refuse_create is not None:
            raise self.faults.refuse_create
        for model in self.replicas.values():
            if model.request.vm_uuid == request.vm_uuid:
                return self._head(model)
        replica_id = f"00000000-0000-4000-8000-{len(self.replicas) + 1:012d}"
        model = ModelReplica(replica_id, request, "r1")
        self.replicas[replica_id] = model
        return self._head(model)

    async def update_replica(self, cap: str, replica_id: str, policy: PolicyRecord) -> None:
        """See the port."""
        self._cap(cap)
        self._replica(replica_id).policies.append(policy)

    async def get_head(self, cap: str, replica_id: str) -> ReplicaHead:
        """See the port."""
        self._cap(cap)
        model = self._replica(replica_id)
        if model.node in self.faults.dead_nodes:
            raise Problem(Reason.NODE_UNREACHABLE, "the owner does not answer", node=model.node)
        return self._head(model)

    async def locate(self, cap: str, replica_id: str) -> Location:
        """See the port."""
        self._cap(cap)
        self.locates += 1
        await self.clock.sleep(1)
        if self.faults.stale_locations and replica_id in self.before:
            self.faults.stale_locations -= 1
            return self.before[replica_id]
        return self._location(self._replica(replica_id))

    async def replicate(self, cap: str, location: Location) -> FakeCycleStream:  # noqa: ARG002
        """See the port."""
        if location.node in self.faults.dead_nodes | self.faults.unreachable_nodes:
            await self.clock.sleep(CONNECT_MS)
            raise LinkFailed(f"{location.node} does not answer")
        self.direct_streams += 1
        return FakeCycleStream(self, location.replica_id, location.node)

    async def replicate_relayed(self, cap: str, replica_id: str) -> FakeCycleStream:
        """See the port."""
        self._cap(cap)
        node = self._replica(replica_id).node
        if node in self.faults.dead_nodes:
            await self.clock.sleep(CONNECT_MS)
            raise Problem(Reason.NODE_UNREACHABLE, "the owner does not answer", node=node)
        self.relayed_streams += 1
        return FakeCycleStream(self, replica_id, node)

    def _cap(self, cap: str) -> None:
        if self.faults.cap_down:
            raise LinkFailed(f"{cap} does not answer")

    def _replica(self, replica_id: str) -> ModelReplica:
        model = self.replicas.get(replica_id)
        if model is None:
            raise Problem(Reason.UNKNOWN_REPLICA, "no such replica", value=replica_id)
        return model

    @staticmethod
    def _location(model: ModelReplica) -> Location:
        return Location(
            replica_id=model.replica_id,
            node=model.node,
            address=f"{model.node}:7444",
            server_name=model.node,
            epoch=model.epoch,
        )

    @staticmethod
    def _head(model: ModelReplica) -> ReplicaHead:
        return ReplicaHead(
            replica_id=model.replica_id,
            trust_group="group",
            owner=model.node,
            epoch=model.epoch,
            acked_seq=model.seq,
            acked_digest=model.digest,
            acked_cycle_id=model.cycle_id,
            acked_time_ms=model.time_ms,
            disks=model.request.disks,
            placement_reasons=("most free space",),
        )


class FakeCycleStream:
    """Implements ports.replica_link.CycleStream; the owner's work is done in ``receive``."""

    def __init__(self, link: FakeReplicaLink, replica_id: str, node: str) -> None:
        self._link = link
        self._model = link.replicas[replica_id]
        self._node = node
        self._queue: asyncio.Queue[Frame | CycleClose] = asyncio.Queue()
        self._open: CycleOpen | None = None
        self._under_way = 0
        self._sent = 0
        self._cut = False
        cuts = link.faults.cut_after_frames
        self._cut_after = cuts.pop(0) if cuts else -1
        self.wire_bytes = 0

    async def open(self, request: CycleOpen) -> Accepted | Acknowledged:
        """See the port."""
        faults, model = self._link.faults, self._model
        self._alive()
        self._link.opens.append(request)
        self.wire_bytes += 200 + len(request.domain_xml)
        if faults.refuse_open:
            raise faults.refuse_open.popleft()
        if self._node != model.node:
            raise Problem(Reason.NOT_OWNER, "another node owns it", node=model.node)
        if request.epoch != model.epoch:
            raise Problem(Reason.STALE_EPOCH, "another epoch", epoch=model.epoch)
        duplicate = _check_place(model, request)
        if duplicate:
            return Acknowledged(model.seq, model.digest, True, model.epoch)
        if _shapes(request.disks) != _shapes(d for d in model.request.disks if not d.excluded):
            raise Problem(Reason.DISK_SHAPE_CHANGED, "other disks than agreed")
        if model.part_of != (request.cycle_id, model.epoch) or not request.resume:
            model.part_of, model.frames = (request.cycle_id, model.epoch), []
        self._open = request
        return Accepted(len(model.frames))

    async def send(self, message: Frame | CycleClose) -> None:
        """See the port."""
        self._alive()
        if isinstance(message, Frame):
            if self._sent == self._cut_after:
                self._cut = True
                raise LinkFailed("the connection was cut")
            self._sent += 1
            self._under_way += len(message.payload)
            self.wire_bytes += len(message.payload) + 48 * len(message.indexes)
            link = self._link
            link.most_under_way = max(link.most_under_way, self._under_way)
        elif self._link.faults.lost_closes:
            self._link.faults.lost_closes -= 1
            self._cut = True
            raise LinkFailed("the connection was cut")
        self._queue.put_nowait(message)

    async def receive(self) -> Durable | Acknowledged:
        """See the port."""
        assert self._open is not None, "receive before open"
        model = self._model
        for _ in range(self._link.durable_every):
            message = await self._queue.get()
            await self._link.clock.sleep(self._link.frame_ms)
            self._alive()
            if self._node in self._link.faults.dead_nodes or self._link.faults.silent:
                await asyncio.Event().wait()
            if model.part_of != (self._open.cycle_id, self._open.epoch):
                raise Problem(Reason.NOT_OWNER, "the owner changed", node=model.node)
            match message:
                case Frame():
                    _check_frame(message)
                    model.frames.append(message)
                    self._under_way -= len(message.payload)
                case CycleClose():
                    return self._commit(message)
        return Durable(len(model.frames), len(model.frames))

    async def cancel(self) -> None:
        """See the port."""
        self._cut = True

    def _alive(self) -> None:
        if self._cut:
            raise LinkFailed("the connection was cut")

    def _commit(self, close: CycleClose) -> Acknowledged:
        model, request = self._model, self._open
        assert request is not None
        clusters: list[dict[int, bytes]] = [{} for _ in request.disks]
        content = (
            {}
            if request.kind is CycleKind.FULL
            else {target: dict(old) for target, old in model.content.items()}
        )
        for frame in model.frames:
            values = content.setdefault(request.disks[frame.disk].target, {})
            for index, plain, value in _unpack(frame):
                if index in clusters[frame.disk]:
                    raise Problem(Reason.BAD_FIELD, f"cluster {index} came twice")
                clusters[frame.disk][index] = plain
                if value:
                    values[index] = value
                else:
                    values.pop(index, None)
        expected = cycle_digest(request.parent_digest, request.seq, request.disks, clusters)
        if close.clusters != sum(map(len, clusters)) or close.cycle_digest != expected:
            raise Problem(Reason.DIGEST_MISMATCH, "the cycle's digest is another")
        model.content = content
        model.seq, model.cycle_id, model.time_ms = (
            request.seq,
            request.cycle_id,
            close.point_time_ms,
        )
        model.parent, model.digest = request.parent_digest, expected
        model.recent = [*model.recent, request.cycle_id][-64:]
        model.kinds.append(request.kind)
        model.sizes.append(close.clusters)
        model.definition = request.domain_xml or model.definition
        model.nvram = close.nvram or model.nvram
        model.part_of, model.frames = (b"", 0), []
        if self._link.faults.lost_acks:
            self._link.faults.lost_acks -= 1
            self._cut = True
            raise LinkFailed("the connection was cut")
        return Acknowledged(model.seq, model.digest, False, model.epoch)


def _check_place(model: ModelReplica, request: CycleOpen) -> bool:
    """Whether the head is this very cycle. :raises Problem: it does not continue the head."""
    if request.cycle_id == model.cycle_id:
        if request.seq != model.seq or request.parent_digest != model.parent:
            raise Problem(Reason.PARENT_MISMATCH, "the cycle has another place")
        return True
    if request.seq != model.seq + 1:
        raise Problem(Reason.SEQ_GAP, "a cycle is missing", field="open.seq")
    if request.parent_digest != model.digest:
        raise Problem(Reason.PARENT_MISMATCH, "the parent is not the head")
    if request.kind is CycleKind.DELTA and request.since_cycle_id not in model.recent:
        raise Problem(
            Reason.SEQ_GAP, "the cycle counted from is unknown", field="open.since_cycle_id"
        )
    if request.kind is CycleKind.FULL and request.since_cycle_id:
        raise Problem(Reason.BAD_FIELD, "a full cycle counts from nothing")
    return False


def _shapes(disks: Iterable[Disk]) -> tuple[tuple[str, int], ...]:
    return tuple((disk.target, disk.size_bytes) for disk in disks)


def _check_frame(frame: Frame) -> None:
    at = 0
    for place, size in enumerate(frame.stored_bytes):
        want = frame.stored_digests[place * DIGEST_BYTES : (place + 1) * DIGEST_BYTES]
        if digest(frame.payload[at : at + size]) != want:
            raise Problem(Reason.DIGEST_MISMATCH, "a stored digest is wrong")
        at += size
    if at != len(frame.payload):
        raise Problem(Reason.BAD_FIELD, "the payload has another length")


def _unpack(frame: Frame) -> list[tuple[int, bytes, int]]:
    found: list[tuple[int, bytes, int]] = []
    at = 0
    for place, (index, size) in enumerate(zip(frame.indexes, frame.stored_bytes, strict=True)):
        plain = frame.digests[place * DIGEST_BYTES : (place + 1) * DIGEST_BYTES]
        stored = frame.payload[at : at + size]
        at += size
        if size == 0:
            if plain != ZERO_CLUSTER_DIGEST:
                raise Problem(Reason.DIGEST_MISMATCH, "a zero cluster has another digest")
            found.append((index, plain, 0))
            continue
        data = stored if size == CLUSTER_BYTES else zstandard.ZstdDecompressor().decompress(stored)
        if digest(data) != plain:
            raise Problem(Reason.DIGEST_MISMATCH, "a plain digest is wrong")
        found.append((index, plain, int.from_bytes(data[:8], "big")))
    return found
