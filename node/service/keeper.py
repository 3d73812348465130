"""Owned replicas: one task each, started and stopped as the owner records say."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from node.service.replica_actor import ReplicaActor, Session, draining
from node.service.replica_parts import ReplicaParts
from node.service.replica_records import ReplicaRecords
from node.service.replica_wait import cancelled, within
from vmreplica.core import ownership
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.receiving_manifest import with_segment
from vmreplica.core.records import ReplicaRecord
from vmreplica.core.replica_state import ReplicaPhase
from vmreplica.ports.cluster_store import OutcomeUnknown, StoreUnavailable

_SWEEP_MS = 10_000
_log = logging.getLogger(__name__)


class Keeper:
    """Observes owner and replica records, and keeps one ReplicaActor per replica that is ours."""

    def __init__(self, parts: ReplicaParts) -> None:
        self._parts = parts
        self.records = ReplicaRecords(parts)
        self.draining = False
        """The node gives its replicas up: new cycles are refused."""
        self.on_commit: list[Callable[[ReplicaActor], None]] = []
        """Called after every commit of a replica's task."""
        self._actors: dict[str, ReplicaActor] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._dirty: set[str] = set()
        self._releasing: set[str] = set()
        """Being given up: not begun anew between their task's end and the record's change."""
        self._wake = asyncio.Event()
        self._slots = asyncio.Semaphore(parts.limits.takeovers_at_once)

    # -- for others ----------------------------------------------------------------------------

    def actors(self) -> tuple[ReplicaActor, ...]:
        """Every replica this node owns now, in no order."""
        return tuple(self._actors.values())

    def find(self, replica_id: str) -> ReplicaActor | None:
        """The task of one replica, None when it is not ours as far as is known."""
        return self._actors.get(replica_id)

    async def locate(self, replica_id: str, epoch: int = 0) -> ReplicaActor:
        """The task of one replica; asks the cluster store when the cache may be behind.

        :param epoch: the epoch the caller was told; above ours, the store is asked.
        :raises Problem: UNKNOWN_REPLICA, NOT_OWNER, NODE_UNREACHABLE (nobody owns it yet).
        """
        actor = self._actors.get(replica_id)
        if actor is None or epoch > actor.epoch:
            try:
                await self.records.refresh(replica_id)
            except StoreUnavailable:
                _log.info("replica %s: the cluster store does not answer", replica_id)
            self._reconcile(replica_id)
            actor = self._actors.get(replica_id)
        if actor is not None:
            return actor
        if self.records.cached_record(replica_id) is None:
            raise unknown_replica(replica_id)
        held = self.records.cached_owner(replica_id)
        if held is None or held.owner.released:
            raise Problem(
                Reason.NODE_UNREACHABLE,
                "the replica has no owner at present",
                remedy="ask the client access point for the owner again in a moment",
            )
        raise Problem(
            Reason.NOT_OWNER,
            f"node {held.owner.node} owns the replica",
            remedy="ask the client access point for the owner again",
            node=held.owner.node,
            epoch=held.owner.epoch,
        )

    def changed(self) -> None:
        """Our standing changed (a new incarnation, the lease lost): look at everything."""
        self._dirty.update(self._actors)
        self._sweep()
        self._wake.set()

    # -- loops ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Reconcile until cancelled."""
        parts = self._parts
        await parts.cache.ready()
        unsubscribe = parts.cache.subscribe(self._on_key)
        sweeper = asyncio.ensure_future(self._sweep_forever())
        try:
            while True:
                self._wake.clear()
                dirty, self._dirty = self._dirty, set()
                for replica_id in sorted(dirty):
                    self._reconcile(replica_id)
                await self._wake.wait()
        finally:
            unsubscribe()
            tasks = list(self._tasks.values())
            await cancelled(sweeper, *tasks)

    def _on_key(self, key: str) -> None:
        keys = self._parts.keys
        for prefix in (keys.owners, keys.replicas):
            if key.startswith(prefix):
                self._dirty.add(key[len(prefix) :])
                self._wake.set()
        if key.startswith(keys.nodes):
            # A node went or came back: pins that its process held may have fallen.
            self._dirty.update(r for r, a in self._actors.items() if _has_pins(a))
            self._wake.set()

    async def _sweep_forever(self) -> None:
        while True:
            self._sweep()
            await self._parts.clock.sleep(_SWEEP_MS)

    def _sweep(self) -> None:
        prefix = self._parts.keys.owners
        self._dirty.update(kv.key[len(prefix) :] for kv in self._parts.cache.items(prefix))
        self._dirty.update(self._actors)
        self._wake.set()

    def _reconcile(self, replica_id: str) -> None:
        """Start, stop or inform the task of one replica."""
        actor = self._actors.get(replica_id)
        record = self.records.cached_record(replica_id)
        held = self.records.cached_owner(replica_id)
        standing = self._parts.standing
        ours = held is not None and ownership.names(
            held.owner, self._parts.node, standing.incarnation
        )
        if actor is not None:
            stale = actor.incarnation != standing.incarnation or (
                held is not None and held.owner.epoch > actor.epoch and not actor.raising
            )
            if record is None or not ours or stale:
                self._drop(actor, undefine=record is None or not ours)
                actor = None
        if record is None or held is None or not ours:
            return
        if actor is None:
            if replica_id not in self._tasks and replica_id not in self._releasing:
                self._start(record, held.owner.epoch)
            return
        changed = record != actor.record
        actor.update(record)
        if record.removing and (actor.phase is ReplicaPhase.SERVING or _records_only(actor)):
            self._remove(actor)
        elif actor.session is not None and (changed or _has_pins(actor)):
            actor.background(self._tidy(actor, 0))

    def _start(self, record: ReplicaRecord, epoch: int) -> None:
        actor = ReplicaActor(self._parts, self.records, record, epoch)
        actor.committed = lambda: self._committed(actor)
        self._actors[record.replica_id] = actor
        task = asyncio.ensure_future(self._run_actor(actor))
        self._tasks[record.replica_id] = task

    def _committed(self, actor: ReplicaActor) -> None:
        for callback in self.on_commit:
            callback(actor)

    async def _run_actor(self, actor: ReplicaActor) -> None:
        after = asyncio.ensure_future(self._after_takeover(actor))
        try:
            await actor.run(self._slots)
        finally:
            await cancelled(after)
            # Only now may a new task begin for this replica: two never overlap.
            del self._tasks[actor.replica_id]
            if self._actors.get(actor.replica_id) is actor:
                del self._actors[actor.replica_id]
                self._parts.domains.unwanted(actor.replica_id)
            self._dirty.add(actor.replica_id)
            self._wake.set()

    async def _after_takeover(self, actor: ReplicaActor) -> None:
        """When a takeover is done: removal that was under way, and late tidying."""
        last = None
        while True:
            if actor.session is None or actor.session is last:
                await actor.wait_for_change()
                continue
            last = actor.session
            if actor.record.removing:
                self._remove(actor)
            else:
                await self._tidy(actor, self._parts.limits.tidy_after_ms)

    def _drop(self, actor: ReplicaActor, *, undefine: bool) -> None:
        actor.stop()
        if self._actors.get(actor.replica_id) is actor:
            del self._actors[actor.replica_id]
        if undefine:
            self._parts.domains.unwanted(actor.replica_id)

    async def _tidy(self, actor: ReplicaActor, after_ms: int) -> None:
        await self._parts.clock.sleep(after_ms)
        session = actor.session
        if session is None:
            return
        try:
            await actor.submit(session, actor.tidy)
        except Problem as problem:
            _log.info("replica %s: tidying put off: %s", actor.replica_id, problem)

    # -- removal -------------------------------------------------------------------------------

    def _remove(self, actor: ReplicaActor) -> None:
        if actor.record.test_failover.running or actor.removal_begun:
            return
        actor.removal_begun = True
        actor.background(self._remove_now(actor))

    async def _remove_now(self, actor: ReplicaActor) -> None:
        """Tombstone and content first, the records last; a crash anywhere in between repeats it."""
        session = actor.session
        try:
            if session is None and not _records_only(actor):
                return
            if session is not None and actor.record.delete_data:
                await actor.submit(session, actor.erase)
            if await self.records.delete(actor.record):
                actor.stop(ReplicaPhase.REMOVING)
                self._parts.domains.unwanted(actor.replica_id)
                self._parts.events.write(
                    "replica.removed",
                    f"replica {actor.record.vm_name} was removed"
                    + (", its data deleted" if actor.record.delete_data else "; its data stay"),
                    replica_id=actor.replica_id,
                    vm_name=actor.record.vm_name,
                )
        except (Problem, StoreUnavailable, OutcomeUnknown) as failed:
            _log.warning("replica %s: removal put off: %s", actor.replica_id, failed)
        finally:
            actor.removal_begun = False

    # -- giving up -----------------------------------------------------------------------------

    async def release(self, replica_ids: Sequence[str], *, finish_ms: int) -> tuple[str, ...]:
        """Give replicas up at a cycle's end: bounded wait, seal what came, then the record.

        :returns: those that are released; the others are tried again by the caller.
        """
        chosen = [a for r in replica_ids if (a := self._actors.get(r)) is not None]
        ids = [actor.replica_id for actor in chosen]
        self._releasing.update(ids)
        try:
            await asyncio.gather(*(self._quiesce(actor, finish_ms) for actor in chosen))
            return await self.records.release(ids)
        except (StoreUnavailable, OutcomeUnknown) as failed:
            _log.warning("replicas not released yet: %s", failed)
            return ()
        finally:
            self._releasing.difference_update(ids)
            self._dirty.update(ids)
            self._wake.set()

    async def _quiesce(self, actor: ReplicaActor, finish_ms: int) -> None:
        actor.refusal = draining(self._parts.node)
        await within(self._parts.clock, finish_ms, actor.idle)
        actor.cut_stream(draining(self._parts.node))
        await actor.idle.wait()
        session = actor.session
        if session is not None and session.incoming is not None and session.incoming.has_parts:
            try:
                await actor.submit(session, lambda s: seal_segment(actor, s))
            except Problem as problem:
                _log.info("replica %s: no segment sealed: %s", actor.replica_id, problem)
        task = self._tasks.get(actor.replica_id)
        actor.stop(ReplicaPhase.RELEASING)
        if task is not None:
            await asyncio.wait({task})


async def seal_segment(actor: ReplicaActor, session: Session) -> None:
    """Job: what has come of the running cycle becomes a draft that any later owner continues."""
    cycle = session.incoming
    if cycle is None or not cycle.has_parts:
        return
    layers = await cycle.seal()
    request = cycle.request
    await actor.commit(
        session,
        with_segment(session.manifest, request.cycle_id, cycle.tally.frames, layers),
    )
    cycle.named()


def unknown_replica(replica_id: str) -> Problem:
    """The answer to everybody who may not know that a replica exists."""
    return Problem(
        Reason.UNKNOWN_REPLICA,
        f"there is no replica {replica_id}",
        field="replica_id",
        value=replica_id,
        remedy="list the replicas with: vmrctl replica list",
    )


def _records_only(actor: ReplicaActor) -> bool:
    """Whether a removal can only mean the records: no data are left, or they stay unread."""
    damaged = actor.phase is ReplicaPhase.DAMAGED and not actor.record.delete_data
    return actor.session is None and (actor.nothing_left or damaged)


def _has_pins(actor: ReplicaActor) -> bool:
    return actor.session is not None and bool(actor.session.manifest.pins)
