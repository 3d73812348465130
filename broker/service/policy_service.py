"""Changing what a replica's sender decided: frequency and the like, and the definition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from broker.service.admission import check_definition, check_frequency, check_recovery_points
from broker.service.context import Context
from vmreplica.core.authorization import unknown_replica
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.records import PolicyRecord, ReplicaRecord, parse, render
from vmreplica.ports.cluster_store import Operation, Put, unchanged

_RACES = 5
PolicyChange = Callable[[PolicyRecord], PolicyRecord]


class PolicyService:
    """UpdateReplica. The folder of a replica never changes."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def update(
        self, replica_id: str, change: PolicyChange | None, domain_xml: bytes
    ) -> tuple[ReplicaRecord, bool]:
        """The record in force and whether anything changed.

        :param change: from the policy in force to the wanted one; may raise Problem.
        :param domain_xml: empty = as it is.
        :raises Problem: NO_LEADER, BAD_FIELD, UNKNOWN_REPLICA, UNIMPLEMENTED.
        :raises StoreUnavailable, OutcomeUnknown:
        """
        check_definition(domain_xml)
        context = self._context
        key = context.keys.replica(replica_id)
        for _ in range(_RACES):
            guard = context.election.guard()
            kv = await context.store.get(key)
            if kv is None:
                raise unknown_replica(replica_id)
            record = parse(ReplicaRecord, kv.value)
            policy = _checked(record.policy, change(record.policy)) if change else record.policy
            wanted = replace(record, policy=policy)
            operations: list[Operation] = []
            if wanted != record:
                operations.append(Put(key, render(wanted)))
            if domain_xml:
                operations.append(Put(context.keys.definition(replica_id), domain_xml.decode()))
            if not operations:
                return record, False
            result = await context.write([guard, unchanged(key, kv.mod_revision)], operations)
            if result.succeeded:
                return wanted, True
        raise Problem(
            Reason.BUSY, "Somebody else keeps changing this replica.", remedy="Try again."
        )


def _checked(old: PolicyRecord, new: PolicyRecord) -> PolicyRecord:
    check_frequency(new.frequency_ms)
    check_recovery_points(new.recovery_points)
    if new.folder != old.folder:
        raise Problem(
            Reason.BAD_FIELD,
            "The folder of a replica stays what it was at its creation.",
            field="folder",
            value=new.folder,
            remedy="Leave it out.",
        )
    return replace(new, frequency_ms=new.frequency_ms or old.frequency_ms)
