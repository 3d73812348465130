"""The owner's writes to the cluster store, each a guarded transaction.

Guards name the record's mod revision and this process's node key: a node whose lease is gone
writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from node.service.replica_parts import ReplicaParts
from vmreplica.core import ownership
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.records import OwnerRecord, ReplicaRecord, parse, render
from vmreplica.ports.cluster_store import (
    Compare,
    Delete,
    KeyValue,
    Operation,
    Put,
    exists,
    unchanged,
)

_ATTEMPTS = 8
_BATCH = 60


@dataclass(frozen=True, slots=True)
class Held:
    """An owner record that names this process, and the revision it was read at."""

    owner: OwnerRecord
    revision: int


class ReplicaRecords:
    """Reads and writes of replicas/ID and owners/ID by their owner."""

    def __init__(self, parts: ReplicaParts) -> None:
        self._parts = parts

    def cached_record(self, replica_id: str) -> ReplicaRecord | None:
        """The record as the watch last showed it."""
        kv = self._parts.cache.get(self._parts.keys.replica(replica_id))
        return None if kv is None else parse(ReplicaRecord, kv.value)

    def cached_owner(self, replica_id: str) -> Held | None:
        """The owner record as the watch last showed it."""
        kv = self._parts.cache.get(self._parts.keys.owner(replica_id))
        return None if kv is None else Held(parse(OwnerRecord, kv.value), kv.mod_revision)

    async def refresh(self, replica_id: str) -> None:
        """Linearizable reads of both records into the cache. :raises StoreUnavailable:"""
        keys = self._parts.keys
        for key in (keys.replica(replica_id), keys.owner(replica_id)):
            kv = await self._parts.store.get(key)
            if kv is not None:
                self._parts.cache.note(kv)

    async def read_owner(self, replica_id: str) -> Held | None:
        """Linearizable read of the owner record, noted in the cache. :raises StoreUnavailable:"""
        kv = await self._parts.store.get(self._parts.keys.owner(replica_id))
        if kv is None:
            return None
        self._parts.cache.note(kv)
        return Held(parse(OwnerRecord, kv.value), kv.mod_revision)

    async def names_us(self, replica_id: str, epoch: int, incarnation: str) -> bool:
        """Linearizable: does the owner record name this process with this epoch?"""
        held = await self.read_owner(replica_id)
        return (
            held is not None
            and held.owner.epoch == epoch
            and ownership.names(held.owner, self._parts.node, incarnation)
        )

    async def raise_epoch(self, replica_id: str, highest_epoch: int) -> bool:
        """A higher epoch was found on disk: raise the record above it, while it names us.

        :returns: False when the record no longer names this process.
        """
        parts, incarnation = self._parts, self._parts.standing.incarnation
        for _ in range(_ATTEMPTS):
            held = await self.read_owner(replica_id)
            if held is None or not ownership.names(held.owner, parts.node, incarnation):
                return False
            if held.owner.epoch > highest_epoch:
                return True
            op_id = parts.randomness.uuid()
            raised = ownership.raised_above(held.owner, highest_epoch, op_id)
            key = parts.keys.owner(replica_id)
            guards = [unchanged(key, held.revision), self._alive(incarnation)]
            if (
                await parts.writer.write(guards, [Put(key, render(raised))], op_id=op_id)
            ).succeeded:
                await self.read_owner(replica_id)
                return True
        return False

    async def change(
        self, replica_id: str, edit: Callable[[ReplicaRecord], ReplicaRecord]
    ) -> ReplicaRecord:
        """Read, edit and write the replica record, again when somebody was faster.

        :raises Problem: UNKNOWN_REPLICA when it is gone, BUSY when others never let go.
        """
        parts, incarnation = self._parts, self._parts.standing.incarnation
        key = parts.keys.replica(replica_id)
        for _ in range(_ATTEMPTS):
            kv = await parts.store.get(key)
            if kv is None:
                raise Problem(
                    Reason.UNKNOWN_REPLICA,
                    "the replica's record was removed",
                    field="replica_id",
                    value=replica_id,
                    remedy="list the replicas with: vmrctl replica list",
                )
            before = parse(ReplicaRecord, kv.value)
            after = edit(before)
            if after == before:
                parts.cache.note(kv)
                return before
            op_id = parts.randomness.uuid()
            value = render(replace(after, op_id=op_id))
            guards = [unchanged(key, kv.mod_revision), self._alive(incarnation)]
            result = await parts.writer.write(guards, [Put(key, value)], op_id=op_id)
            if result.succeeded:
                self._note(kv, value, result.revision)
                return after
        raise Problem(
            Reason.BUSY,
            "the replica's record keeps being changed by others",
            field="replica_id",
            value=replica_id,
            remedy="try again",
        )

    async def release(self, replica_ids: Sequence[str]) -> tuple[str, ...]:
        """Give replicas up, at most 60 a transaction; the ids that are released now."""
        done: list[str] = []
        for start in range(0, len(replica_ids), _BATCH):
            done += await self._release_batch(replica_ids[start : start + _BATCH])
        return tuple(done)

    async def _release_batch(self, replica_ids: Sequence[str]) -> list[str]:
        parts, incarnation = self._parts, self._parts.standing.incarnation
        op_id = parts.randomness.uuid()
        guards: list[Compare] = [self._alive(incarnation)]
        puts: list[Operation] = []
        ours: list[str] = []
        for replica_id in replica_ids:
            held = await self.read_owner(replica_id)
            if held is None or not ownership.names(held.owner, parts.node, incarnation):
                continue
            key = parts.keys.owner(replica_id)
            guards.append(unchanged(key, held.revision))
            puts.append(Put(key, render(ownership.released(held.owner, op_id))))
            ours.append(replica_id)
        if not puts:
            return []
        if (await parts.writer.write(guards, puts, op_id=op_id)).succeeded:
            return ours
        if len(ours) == 1:
            return []
        split: list[str] = []
        for replica_id in ours:
            split += await self._release_batch([replica_id])
        return split

    async def delete(self, record: ReplicaRecord) -> bool:
        """Remove the records of a replica that is gone; False when they changed meanwhile."""
        parts, keys = self._parts, self._parts.keys
        kv = await parts.store.get(keys.replica(record.replica_id))
        held = await self.read_owner(record.replica_id)
        if kv is None:
            return True
        incarnation = parts.standing.incarnation
        guards = [unchanged(kv.key, kv.mod_revision), self._alive(incarnation)]
        if held is not None:
            guards.append(unchanged(keys.owner(record.replica_id), held.revision))
        gone = [
            kv.key,
            keys.owner(record.replica_id),
            keys.replica_index(record.trust_group, record.vm_uuid),
            keys.definition(record.replica_id),
        ]
        result = await parts.writer.write(guards, [Delete(key) for key in gone])
        if result.succeeded:
            for key in gone:
                parts.cache.forget(key, result.revision)
        return result.succeeded

    def _alive(self, incarnation: str) -> Compare:
        return exists(self._parts.keys.node(self._parts.node, incarnation))

    def _note(self, before: KeyValue, value: str, revision: int) -> None:
        self._parts.cache.note(
            replace(before, value=value, mod_revision=revision, version=before.version + 1)
        )
