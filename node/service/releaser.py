"""Draining: what people ask of this node in ``node-config/N``, carried out replica by replica."""

from __future__ import annotations

import asyncio
import logging

from node.service.keeper import Keeper
from node.service.replica_parts import ReplicaParts
from node.service.replica_wait import within
from vmreplica.core.records import DrainState, NodeConfigRecord, parse

_log = logging.getLogger(__name__)
_RETRY_MS = 1_000
_SWEEP_MS = 5_000
_AT_ONCE = 16


class Releaser:
    """Gives replicas up at cycle boundaries while the node is to be drained.

    Progress shows in the owner records themselves: the leader counts what still names the node.
    Test VMs go on running here; their pins stay in the manifests of the new owners.
    """

    def __init__(self, parts: ReplicaParts, keeper: Keeper) -> None:
        self._parts = parts
        self._keeper = keeper
        self._changed = asyncio.Event()

    def drain_asked(self) -> bool:
        """Whether the node's configuration says that it is to be or stay empty."""
        kv = self._parts.cache.get(self._parts.keys.node_config(self._parts.node))
        if kv is None:
            return False
        return parse(NodeConfigRecord, kv.value).drain is not DrainState.READY

    async def run(self) -> None:
        """Follow the configuration until cancelled."""
        parts = self._parts
        await parts.cache.ready()
        key = parts.keys.node_config(parts.node)
        unsubscribe = parts.cache.subscribe(lambda k: self._changed.set() if k == key else None)
        try:
            while True:
                self._changed.clear()
                self._keeper.draining = self.drain_asked()
                left = await self._release_some() if self._keeper.draining else 0
                await within(parts.clock, _RETRY_MS if left else _SWEEP_MS, self._changed)
        finally:
            unsubscribe()

    async def _release_some(self) -> int:
        """Release what is owned, a few at a time; how many are still to be released."""
        ids = sorted(actor.replica_id for actor in self._keeper.actors())
        gate = asyncio.Semaphore(_AT_ONCE)

        async def one(replica_id: str) -> int:
            async with gate:
                limit = self._parts.limits.finish_cycle_ms
                return len(await self._keeper.release([replica_id], finish_ms=limit))

        released = sum(await asyncio.gather(*(one(replica_id) for replica_id in ids)))
        if ids:
            _log.info("draining: %d of %d replicas released", released, len(ids))
        return len(ids) - released
