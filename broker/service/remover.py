"""Removing a replica: marked by the leader, done by its owner, watched to its end.

The owner stops serving, undefines the VM, removes the data if that was asked for (tombstone
first), and deletes the records. Where no owner lives and the data stay, the leader deletes them.
"""

from __future__ import annotations

from dataclasses import replace

from broker.service.context import Context
from broker.service.leader_loop import LeaderLoop
from vmreplica.coordination.operations import Operations
from vmreplica.core.authorization import unknown_replica
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.records import (
    OperationRecord,
    OperationState,
    OwnerRecord,
    ReplicaRecord,
    parse,
    render,
)
from vmreplica.ports.cluster_store import Delete, Put, absent, unchanged

LOOK_MS = 1_000
VERB = "remove replica"
_RACES = 5


class Remover:
    """`replica remove`."""

    def __init__(self, context: Context, operations: Operations) -> None:
        self._context = context
        self._operations = operations
        self._loop = LeaderLoop(context, "removal", self.look, LOOK_MS)

    async def run(self) -> None:
        """While this broker leads, until cancelled."""
        keys = self._context.keys
        stop = self._context.inventory.cache.subscribe(
            lambda key: self._loop.wake() if key.startswith(keys.replicas) else None
        )
        try:
            await self._loop.run()
        finally:
            stop()

    async def remove(self, replica_id: str, *, delete_data: bool) -> str:
        """Begin; the operation's id, the same for every repetition.

        A later wish to delete the data is heard as long as the removal is under way; an earlier
        one cannot be taken back.

        :raises Problem: NO_LEADER, UNKNOWN_REPLICA, STATE_REFUSES while its test VM runs.
        :raises StoreUnavailable, OutcomeUnknown:
        """
        context = self._context
        key = context.keys.replica(replica_id)
        for _ in range(_RACES):
            guard = context.election.guard()
            kv = await context.store.get(key)
            if kv is None:
                raise unknown_replica(replica_id)
            record = parse(ReplicaRecord, kv.value)
            if record.test_failover.running:
                raise _test_runs(record)
            await self._operations.create(
                VERB, replica_id, operation_id=operation_of(replica_id), step="telling the owner"
            )
            wanted = replace(record, removing=True, delete_data=record.delete_data or delete_data)
            if wanted == record:
                return operation_of(replica_id)
            op_id = context.randomness.uuid()
            result = await context.write(
                [guard, unchanged(key, kv.mod_revision)],
                [Put(key, render(replace(wanted, op_id=op_id)))],
                op_id=op_id,
            )
            if result.succeeded:
                self._loop.wake()
                return operation_of(replica_id)
        raise Problem(
            Reason.BUSY, "Somebody else keeps changing this replica.", remedy="Try again."
        )

    async def look(self) -> None:
        """Finish the operations whose replica is gone; delete what no owner can."""
        context = self._context
        for kv in context.inventory.cache.items(context.keys.operations):
            operation = parse(OperationRecord, kv.value)
            if operation.verb != VERB or operation.state is not OperationState.RUNNING:
                continue
            record = context.inventory.replica(operation.target)
            if record is not None and record.removing:
                await self._without_owner(record)
                record = context.inventory.replica(operation.target)
            if record is None and await self._is_gone(operation.target):
                await self._operations.finish(
                    operation.operation_id, OperationState.SUCCEEDED, step="done"
                )

    async def _is_gone(self, replica_id: str) -> bool:
        return await self._context.store.get(self._context.keys.replica(replica_id)) is None

    async def _without_owner(self, record: ReplicaRecord) -> None:
        """The data stay and nobody serves: only the records are to go."""
        context = self._context
        keys = context.keys
        owned = context.inventory.owner(record.replica_id)
        owner: OwnerRecord | None = owned.record if owned else None
        if record.delete_data:
            return
        if owner and context.inventory.incarnation(owner.node, owner.incarnation):
            return
        kv = context.inventory.cache.get(keys.replica(record.replica_id))
        if kv is None:
            return
        guards = [
            context.election.guard(),
            unchanged(kv.key, kv.mod_revision),
            unchanged(keys.owner(record.replica_id), owned.mod_revision if owned else 0),
        ]
        if owner:
            guards.append(absent(keys.node(owner.node, owner.incarnation)))
        await context.write(
            guards,
            [
                Delete(kv.key),
                Delete(keys.owner(record.replica_id)),
                Delete(keys.replica_index(record.trust_group, record.vm_uuid)),
                Delete(keys.definition(record.replica_id)),
            ],
        )


def operation_of(replica_id: str) -> str:
    """A replica is removed once: its removal has one operation."""
    return f"remove-{replica_id}"


def _test_runs(record: ReplicaRecord) -> Problem:
    return Problem(
        Reason.STATE_REFUSES,
        f"The test VM {record.test_failover.domain_name!r} runs from this replica.",
        field="vm",
        value=record.vm_name,
        remedy=f"vmrctl failover test stop {record.vm_name}",
    )
