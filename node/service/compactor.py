"""Keeping chains short: merging adjacent layers beside the stream of cycles.

A merge only creates a file; it runs outside the replica's queue. What it made is named by one
commit inside the queue, if the layers it was made from are still there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from node.service.keeper import Keeper
from node.service.replica_actor import ReplicaActor, Session
from node.service.replica_parts import ReplicaParts
from vmreplica.core.manifest import Layer, Manifest
from vmreplica.core.problems import Problem
from vmreplica.ports.replica_store import StorageFailed

_log = logging.getLogger(__name__)
_SWEEP_MS = 30_000
_FAILED_PAUSE_MS = 60_000


class MergePlan(Protocol):
    """What to merge next (core.compaction.MergePlan)."""

    @property
    def target(self) -> str: ...

    @property
    def layers(self) -> tuple[Layer, ...]: ...

    @property
    def bottom(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Planner:
    """The two pure functions of core.compaction."""

    plan_merge: Callable[[Manifest], Any]
    with_merged: Callable[[Manifest, Any, Layer], Manifest]


class Compactor:
    """One merge at a time on this node."""

    def __init__(self, parts: ReplicaParts, keeper: Keeper, planner: Planner) -> None:
        self._planner = planner
        self._parts = parts
        self._keeper = keeper
        self._due: asyncio.Queue[str] = asyncio.Queue()
        self._waiting: set[str] = set()
        self._not_before_ms: dict[str, int] = {}
        keeper.on_commit.append(self.look_at)

    def look_at(self, actor: ReplicaActor) -> None:
        """A manifest was committed: see whether its chain has become too long."""
        session = actor.session
        if session is None or actor.replica_id in self._waiting:
            return
        if self._parts.clock.boottime_ms() < self._not_before_ms.get(actor.replica_id, 0):
            return
        if self._planner.plan_merge(session.manifest) is not None:
            self._waiting.add(actor.replica_id)
            self._due.put_nowait(actor.replica_id)

    async def run(self) -> None:
        """Merge what is due until cancelled."""
        sweeper = asyncio.ensure_future(self._sweep())
        try:
            while True:
                replica_id = await self._due.get()
                self._waiting.discard(replica_id)
                actor = self._keeper.find(replica_id)
                session = actor.session if actor is not None else None
                if actor is not None and session is not None:
                    await self._compact(actor, session)
                    self.look_at(actor)
        finally:
            sweeper.cancel()

    async def _sweep(self) -> None:
        while True:
            await self._parts.clock.sleep(_SWEEP_MS)
            for actor in self._keeper.actors():
                self.look_at(actor)

    async def _compact(self, actor: ReplicaActor, session: Session) -> None:
        plan: MergePlan | None = self._planner.plan_merge(session.manifest)
        if plan is None:
            return
        try:
            actor.check_deadline()
            sizes = {disk.target: disk.size_bytes for disk in session.manifest.disks}
            merged = await session.folder.merge(
                plan.layers, sizes[plan.target], session.epoch, bottom=plan.bottom
            )
            await actor.submit(session, lambda s: self._name(actor, s, plan, merged))
        except (Problem, StorageFailed) as failed:
            _log.warning("replica %s: not compacted: %s", actor.replica_id, failed)
            now = self._parts.clock.boottime_ms()
            self._not_before_ms[actor.replica_id] = now + _FAILED_PAUSE_MS
        else:
            self._not_before_ms.pop(actor.replica_id, None)

    async def _name(
        self, actor: ReplicaActor, session: Session, plan: MergePlan, merged: Layer
    ) -> None:
        """Job: the merged file takes the place of its parts; then these go, unless pinned."""
        present = {layer.file for layer in session.manifest.layers}
        if not all(layer.file in present for layer in plan.layers):
            return
        await actor.commit(session, self._planner.with_merged(session.manifest, plan, merged))
        actor.check_deadline()
        await session.folder.remove_unnamed(session.manifest, session.epoch)
