"""ReplicaLink over the simulated network: locate, head, create at the address; streams to nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from simulation.checks import Checks
from simulation.network import Network, Pipe, Reset
from vmreplica.core.cycle import (
    Accepted,
    Acknowledged,
    CycleClose,
    CycleOpen,
    CycleRequest,
    Durable,
    Frame,
)
from vmreplica.core.identity import Identity
from vmreplica.core.problems import Problem
from vmreplica.core.records import PolicyRecord
from vmreplica.ports.replica_link import CycleStream, LinkFailed, Location, NewReplica, ReplicaHead

if TYPE_CHECKING:
    from simulation.cluster import Cluster
    from simulation.hosts import SimNode

END = object()


class SimReplicaLink:
    """What a primary host sees of the replica cluster. ``names`` = its certificate's DNS names."""

    def __init__(self, network: Network, cluster: Cluster, host: str, names: tuple[str, ...]):
        self._network = network
        self._cluster = cluster
        self._host = host
        self._names = names

    async def create_replica(self, cap: str, request: NewReplica, request_id: str) -> ReplicaHead:
        """Admission at the leader."""
        del cap, request_id
        broker = self._broker()
        return await self._network.call(
            self._host, broker, lambda: self._cluster.broker(broker).create(self._names, request)
        )

    async def update_replica(self, cap: str, replica_id: str, policy: PolicyRecord) -> None:
        """Written at the leader."""
        del cap
        broker = self._broker()
        await self._network.call(
            self._host,
            broker,
            lambda: self._cluster.broker(broker).update(self._names, replica_id, policy),
        )

    async def get_head(self, cap: str, replica_id: str) -> ReplicaHead:
        """The broker asks the owner."""
        del cap
        broker = self._broker()
        return await self._network.call(
            self._host, broker, lambda: self._cluster.broker(broker).head(self._names, replica_id)
        )

    async def locate(self, cap: str, replica_id: str) -> Location:
        """Answered from the broker's cache."""
        del cap
        broker = self._broker()
        return await self._network.call(
            self._host, broker, lambda: self._cluster.broker(broker).locate(self._names, replica_id)
        )

    async def replicate(self, cap: str, location: Location) -> CycleStream:
        """Straight to the owner."""
        del cap
        return await self._open(location.node)

    async def replicate_relayed(self, cap: str, replica_id: str) -> CycleStream:
        """Through the broker: it must reach the owner, we only the broker."""
        location = await self.locate(cap, replica_id)
        broker = self._broker()
        if not self._network.passes(broker, location.node):
            raise LinkFailed("the broker does not reach the node")
        return await self._open(location.node, way=broker)

    def _broker(self) -> str:
        return self._network.vip_host()

    async def _open(self, node: str, way: str = "") -> CycleStream:
        via = way or node
        network = self._network
        passes = network.passes(self._host, via) and network.passes(via, self._host)
        if not passes or not network.alive(node):
            await asyncio.sleep(0.05 if passes else 2.0)
            raise LinkFailed(f"{node} cannot be reached")
        stream = SimCycleStream(network, self._cluster.checks, self._host, node, via)
        network.loop.start_on(
            network.lives[node], stream.serve(self._cluster.node(node), self._names)
        )
        return stream


class SimCycleStream:
    """Both ends of one Replicate call."""

    def __init__(self, network: Network, checks: Checks, host: str, node: str, via: str) -> None:
        self._checks = checks
        self._network = network
        self._opened: CycleOpen | None = None
        self._up = Pipe(network, host, via, self._break)
        self._down = Pipe(network, via, host, self._break)
        self._lives = (network.lives[host], network.lives[node])
        for life in self._lives:
            network.connect(life, self, self._break)
        self._bytes = 0
        self._serving: asyncio.Task[None] | None = None

    @property
    def wire_bytes(self) -> int:
        """Payload sent so far."""
        return self._bytes

    # -- the sender's end

    async def open(self, request: CycleOpen) -> Accepted | Acknowledged:
        self._opened = request
        self._checks.opened(request)
        self._put(request)
        reply = await self._next()
        assert isinstance(reply, Accepted | Acknowledged)
        return reply

    async def send(self, message: Frame | CycleClose) -> None:
        self._put(message)
        await asyncio.sleep(0)

    async def receive(self) -> Durable | Acknowledged:
        reply = await self._next()
        assert isinstance(reply, Durable | Acknowledged)
        return reply

    async def cancel(self) -> None:
        self._break()

    def _put(self, message: CycleRequest) -> None:
        if isinstance(message, Frame):
            self._bytes += len(message.payload)
            assert self._opened is not None
            target = self._opened.disks[message.disk].target
            self._checks.sent.setdefault(self._opened.cycle_id, set()).add(target)
        try:
            self._up.put(message)
        except Reset as reset:
            raise LinkFailed("the stream is broken") from reset

    async def _next(self) -> object:
        try:
            item = await self._down.get()
        except Reset as reset:
            raise LinkFailed("the stream is broken") from reset
        if isinstance(item, Problem):
            raise item
        if item is END:
            raise LinkFailed("the stream ended without an acknowledgement")
        if isinstance(item, Acknowledged):
            assert self._opened is not None
            self._checks.acks += 1
            self._checks.acknowledged(self._opened.replica_id, self._opened.cycle_id, item)
        return item

    # -- the node's end

    async def serve(self, node: SimNode, names: tuple[str, ...]) -> None:
        """Runs as part of the node's life."""
        self._serving = asyncio.current_task()
        last: object = END
        try:
            identity = Identity(dns_names=names)
            async for reply in node.role.receiver.serve(identity, names, self._incoming()):
                if not isinstance(reply, Durable):
                    self._observe(node, reply)
                self._down.put(reply)
        except Problem as problem:
            last = problem
        except Reset:
            return
        try:
            self._down.put(last)
        except Reset:
            return

    def _observe(self, node: SimNode, reply: Accepted | Acknowledged) -> None:
        """What a node says must be so at this moment."""
        assert self._opened is not None
        replica_id = self._opened.replica_id
        if isinstance(reply, Acknowledged):
            self._checks.acknowledged(replica_id, self._opened.cycle_id, reply)
            self._checks.served(replica_id, reply.epoch, node.name)
            return
        actor = node.role.keeper.find(replica_id)
        if actor is not None and actor.session is not None:
            self._checks.served(replica_id, actor.session.epoch, node.name)

    async def _incoming(self) -> AsyncIterator[CycleRequest]:
        while True:
            try:
                yield await self._up.get()
            except Reset:
                await asyncio.Event().wait()  # the server cancels the handler of a dead call

    def _break(self) -> None:
        """The connection is reset for both ends."""
        for life in self._lives:
            self._network.disconnect(life, self)
        self._up.end()
        self._down.end()
        if self._serving is not None and not self._serving.done():
            self._serving.cancel()
