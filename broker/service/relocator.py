"""Gives every replica without a working owner a new one: observe, decide, act, for ever."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from broker.service.context import Context
from broker.service.leader_loop import LeaderLoop
from vmreplica.core.records import DrainState, render
from vmreplica.core.relocation import (
    Cause,
    Guard,
    Move,
    NodeAbsent,
    NodePresent,
    NodeUnchanged,
    OwnerUnchanged,
    batches,
    guards,
    halves,
    owner_after,
    plan,
)
from vmreplica.core.relocation_brake import BRAKED_MOVES_PER_S, Brake, step
from vmreplica.ports.cluster_store import Compare, Put, absent, exists, unchanged
from vmreplica.ports.event_log import Severity

log = logging.getLogger(__name__)
LOOK_MS = 1_000
BRAKED_PAUSE_MS = 1_000


class Relocator:
    """The leader's loop over ownership. Every act is guarded; a stale look changes nothing.

    :param node_ttl_ms: the nodes' lease TTL, the brake's unit of time.
    """

    def __init__(self, context: Context, *, node_ttl_ms: int = 6_000) -> None:
        self._context = context
        self._node_ttl_ms = node_ttl_ms
        self._brake = Brake()
        self._loop = LeaderLoop(context, "relocation", self.look, LOOK_MS)
        self._stuck: frozenset[str] = frozenset()

    async def run(self) -> None:
        """Look whenever nodes or owners change, and every second, while this broker leads."""
        stop = self._context.inventory.cache.subscribe(self._key_changed)
        try:
            await self._loop.run()
        finally:
            stop()

    async def look(self) -> int:
        """One observation and what follows from it; the number of replicas that changed hands.

        :raises Problem: NO_LEADER.
        :raises StoreUnavailable, OutcomeUnknown: the next look sees what became of it.
        """
        context = self._context
        context.election.guard()
        needy = context.inventory.needy()
        live = context.inventory.live_nodes()
        self._step_brake({r.owner.node for r in needy if r.owner is not None})
        decided = plan(needy, live, version=context.version, needs_shared=not context.standalone)
        self._report_stuck(decided.stuck)
        moves = decided.moves
        if self._brake.holds(context.clock.boottime_ms()):
            moves = tuple(m for m in moves if not _braked(m))
        elif self._brake.rate_limited:
            moves = await self._slowly(moves)
        return await self._make(moves)

    def _step_brake(self, owing: set[str]) -> None:
        context = self._context
        inventory = context.inventory
        before = self._brake
        now = context.clock.boottime_ms()
        live = {node.load.name for node in inventory.live_nodes()}
        registered = [
            name
            for name in inventory.node_names()
            if inventory.node_config(name).drain is DrainState.READY
        ]
        self._brake = step(before, now, self._node_ttl_ms, registered, live, owing)
        if self._brake.engaged_until_ms and not before.engaged_until_ms:
            gone = ", ".join(sorted(self._brake.vanished))
            context.events.write(
                "brake.engaged",
                f"{gone} vanished together; waiting before their replicas are moved.",
                severity=Severity.WARNING,
                data={"nodes": gone},
            )
        if before.engaged_until_ms and not self._brake.engaged_until_ms:
            context.events.write("brake.released", "Replicas of vanished nodes are moved now.")

    async def _slowly(self, moves: Sequence[Move]) -> tuple[Move, ...]:
        """Under the brake: read the nodes anew, and no more than so many a second."""
        context = self._context
        listed = await context.store.range(context.keys.nodes)
        present = {kv.key for kv in listed.items}
        kept = [
            m
            for m in moves
            if not _braked(m) or context.keys.node(m.old_node, m.old_incarnation) not in present
        ]
        if len(kept) > BRAKED_MOVES_PER_S:
            await context.clock.sleep(BRAKED_PAUSE_MS)
            self._loop.wake()
        return tuple(kept[:BRAKED_MOVES_PER_S])

    async def _make(self, moves: Sequence[Move]) -> int:
        made = 0
        waiting = list(reversed(batches(moves)))
        while waiting:
            batch = waiting.pop()
            if await self._apply(batch):
                made += len(batch)
            else:
                waiting.extend(reversed(halves(batch)))
        return made

    async def _apply(self, batch: Sequence[Move]) -> bool:
        context = self._context
        op_id = context.randomness.uuid()
        compares = [context.election.guard(), *(self._compare(g) for g in guards(batch))]
        puts = [Put(context.keys.owner(m.replica_id), render(owner_after(m, op_id))) for m in batch]
        result = await context.write(compares, puts, op_id=op_id)
        if not result.succeeded:
            log.info("a guard failed for %d replicas", len(batch))
            return False
        for move in batch:
            self._tell(move)
        return True

    def _compare(self, guard: Guard) -> Compare:
        keys = self._context.keys
        match guard:
            case OwnerUnchanged(replica_id, mod_revision):
                return unchanged(keys.owner(replica_id), mod_revision)
            case NodePresent(node, incarnation):
                return exists(keys.node(node, incarnation))
            case NodeAbsent(node, incarnation):
                return absent(keys.node(node, incarnation))
            case NodeUnchanged(node, incarnation, mod_revision):
                return unchanged(keys.node(node, incarnation), mod_revision)

    def _tell(self, move: Move) -> None:
        record = self._context.inventory.replica(move.replica_id)
        name = record.domain_name if record else move.replica_id
        came_from = f" from {move.old_node} ({move.cause.value})" if move.old_node else ""
        self._context.events.write(
            "replica.relocated",
            f"Replica of {name} given to {move.node}{came_from}, epoch {move.epoch}.",
            replica_id=move.replica_id,
            vm_name=record.vm_name if record else "",
            data={
                "node": move.node,
                "from": move.old_node,
                "epoch": str(move.epoch),
                "cause": move.cause.value,
            },
        )

    def _report_stuck(self, stuck: Mapping[str, str]) -> None:
        news = frozenset(stuck) - self._stuck
        self._stuck = frozenset(stuck)
        if news:
            example = stuck[min(news)]
            log.warning("%d replicas find no new owner: %s", len(news), example)

    def _key_changed(self, key: str) -> None:
        keys = self._context.keys
        if key.startswith((keys.nodes, keys.node_configs)):
            self._loop.wake()
        elif key.startswith(keys.owners):
            owned = self._context.inventory.owner(key[len(keys.owners) :])
            if owned is None or owned.record.released:
                self._loop.wake()


def _braked(move: Move) -> bool:
    """The brake holds what truly moves from a vanished node; a node that came back is not."""
    return move.cause is Cause.GONE and not move.returns_home
