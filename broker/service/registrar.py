"""Remembers every node that ever joined, and tells of those that come and go."""

from __future__ import annotations

from broker.service.context import Context
from broker.service.leader_loop import LeaderLoop
from vmreplica.core.records import NodeConfigRecord, render
from vmreplica.ports.cluster_store import Put, absent
from vmreplica.ports.event_log import Severity

LOOK_MS = 2_000


class Registrar:
    """A node that joined has a node-config key from then on: `node list` shows it when it is lost,
    and the brake counts it.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._loop = LeaderLoop(context, "registration of nodes", self.look, LOOK_MS)
        self._seen: frozenset[str] | None = None

    async def run(self) -> None:
        """While this broker leads, until cancelled."""
        nodes = self._context.keys.nodes
        wake = self._loop.wake
        stop = self._context.inventory.cache.subscribe(
            lambda key: wake() if key.startswith(nodes) else None
        )
        try:
            await self._loop.run()
        finally:
            stop()

    async def look(self) -> None:
        """Register new nodes, write node.joined and node.lost."""
        context = self._context
        live = frozenset(node.load.name for node in context.inventory.live_nodes())
        for name in sorted(live):
            if not context.inventory.is_registered(name):
                key = context.keys.node_config(name)
                record = render(NodeConfigRecord(name=name))
                await context.write([context.election.guard(), absent(key)], [Put(key, record)])
        if self._seen is not None:
            for name in sorted(live - self._seen):
                context.events.write("node.joined", f"Node {name} joined.", data={"node": name})
            for name in sorted(self._seen - live):
                context.events.write(
                    "node.lost",
                    f"Node {name} is gone: its lease ran out or was given back.",
                    severity=Severity.WARNING,
                    data={"node": name},
                )
        self._seen = live
