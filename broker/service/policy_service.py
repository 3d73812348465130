"""Changing what a replica's sender decided: frequency and the like, and the definition."""

from __future__ import annotations

from dataclasses import replace

from broker.service.admission import check_definition, check_frequency, check_recovery_points
from broker.service.context import Context
from vmreplica.core.authorization import unknown_replica
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.records import PolicyRecord, ReplicaRecord, parse, render
from vmreplica.ports.cluster_store import Operation, Put, unchanged

_RACES = 5


class PolicyService:
    """UpdateReplica. The folder of a replica never changes."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def update(
        self, replica_id: str, policy: PolicyRecord | None, domain_xml: bytes
    ) -> tuple[ReplicaRecord, bool]:
        """The record in force and whether it changed.

        :param policy: None or zero values = as it is.
        :param domain_xml: empty = as it is.
        :raises Problem: NO_LEADER, BAD_FIELD, UNKNOWN_REPLICA, UNIMPLEMENTED.
        :raises StoreUnavailable, OutcomeUnknown:
        """
        if policy is not None:
            check_frequency(policy.frequency_ms)
            check_recovery_points(policy.recovery_points)
        check_definition(domain_xml)
        context = self._context
        key = context.keys.replica(replica_id)
        for _ in range(_RACES):
            guard = context.election.guard()
            kv = await context.store.get(key)
            if kv is None:
                raise unknown_replica(replica_id)
            record = parse(ReplicaRecord, kv.value)
            wanted = replace(record, policy=_merged(record.policy, policy))
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


def _merged(old: PolicyRecord, new: PolicyRecord | None) -> PolicyRecord:
    if new is None:
        return old
    return replace(
        old,
        frequency_ms=new.frequency_ms or old.frequency_ms,
        compression=new.compression or old.compression,
        route=new.route or old.route,
        disks=new.disks or old.disks,
        recovery_points=new.recovery_points or old.recovery_points,
        bandwidth_limit_bytes_per_s=new.bandwidth_limit_bytes_per_s
        or old.bandwidth_limit_bytes_per_s,
    )
