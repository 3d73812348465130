"""Letting a new replica in: authorize, recognise, place, and write it in one transaction."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from broker.service.context import Context
from vmreplica.core.authorization import Grant, access_point, authorize
from vmreplica.core.names import (
    check_disks,
    check_folder,
    check_vm,
    domain_name,
    folder_name,
)
from vmreplica.core.placement import Placement, PlacementRequest, place
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.records import (
    DiskRecord,
    OwnerRecord,
    PolicyRecord,
    ReplicaRecord,
    render,
)
from vmreplica.core.settings import MAX_FREQUENCY_MS, MIN_FREQUENCY_MS
from vmreplica.ports.cluster_store import Operation, Put, absent, exists
from vmreplica.ports.replica_link import NewReplica

_RACES = 3
MAX_DEFINITION_BYTES = 512 * 1024


@dataclass(frozen=True, slots=True)
class Admitted:
    """The replica and its owner; ``changed`` is false where it was there already."""

    record: ReplicaRecord
    owner: OwnerRecord | None
    changed: bool


class Admission:
    """CreateReplica. Only the leader admits; one at a time, so that names stay unique."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._one_at_a_time = asyncio.Lock()

    async def admit(self, names: tuple[str, ...], request: NewReplica) -> Admitted:
        """The sender's replica of this VM, made if it is not there.

        :param names: DNS names of the sender's certificate.
        :raises Problem: NO_LEADER, BAD_FIELD, NO_IDENTITY, NOT_AUTHORIZED, REPLICATION_DISABLED,
            DISK_SHAPE_CHANGED, NO_NODE_FITS, BUSY.
        :raises StoreUnavailable, OutcomeUnknown:
        """
        self._context.election.guard()
        self._check(request)
        inventory = self._context.inventory
        decision = authorize(
            names,
            inventory.settings,
            inventory.authorizations,
            None,
            request.primary_access_point,
        )
        if isinstance(decision, Problem):
            raise decision
        async with self._one_at_a_time:
            for _ in range(_RACES):
                known = inventory.replica_of(decision.trust_group, request.vm_uuid)
                if known is not None:
                    return self._again(known, request)
                admitted = await self._create(decision, request)
                if admitted is not None:
                    return admitted
                # A guard failed: somebody else made it, or the node went. Look again.
                await self._context.cache_catches_up()
        raise Problem(
            Reason.BUSY,
            "The cluster changed while the replica was being admitted.",
            field="vm_uuid",
            value=request.vm_uuid,
            remedy="Try again.",
        )

    def _check(self, request: NewReplica) -> None:
        check_vm(request.vm_uuid, request.vm_name)
        check_disks([(d.target, d.size_bytes, d.excluded) for d in request.disks])
        check_folder(request.folder)
        check_frequency(request.frequency_ms)
        check_recovery_points(request.recovery_points)
        check_definition(request.domain_xml)
        mine = self._context.client_access_point
        if mine and access_point(request.primary_access_point) == access_point(mine):
            raise Problem(
                Reason.BAD_FIELD,
                "A cluster cannot keep the replicas of its own VMs.",
                field="primary_access_point",
                value=request.primary_access_point,
                remedy="Replicate to another cluster or to another standalone node.",
            )

    def _again(self, known: ReplicaRecord, request: NewReplica) -> Admitted:
        if known.removing:
            raise Problem(
                Reason.BUSY,
                f"The replica of {known.vm_name} is being removed.",
                field="vm_uuid",
                value=request.vm_uuid,
                remedy="Try again when the removal is done.",
            )
        if _shape(known.disks) != _shape(_disk_records(request)):
            raise Problem(
                Reason.DISK_SHAPE_CHANGED,
                f"{known.vm_name} has a replica with other disks: "
                + ", ".join(f"{d.target} {d.size_bytes}" for d in known.disks if not d.excluded),
                field="disks",
                value=", ".join(f"{d.target} {d.size_bytes}" for d in request.disks),
                remedy="Create it with the same disks, or remove the replica first.",
            )
        owned = self._context.inventory.owner(known.replica_id)
        return Admitted(known, owned.record if owned else None, changed=False)

    async def _create(self, grant: Grant, request: NewReplica) -> Admitted | None:
        context = self._context
        if not context.inventory.settings.replication_enabled:
            raise Problem(
                Reason.REPLICATION_DISABLED,
                "This cluster takes no new replicas at the moment.",
                field="replication_enabled",
                value="false",
                remedy="vmrctl settings set replication_enabled=true",
            )
        replica_id = context.randomness.uuid()
        placement = self._place(grant, request)
        op_id = context.randomness.uuid()
        record = self._record(grant, request, replica_id, placement, op_id)
        owner = OwnerRecord(
            node=placement.node, incarnation=placement.incarnation, epoch=1, op_id=op_id
        )
        keys = context.keys
        index = keys.replica_index(grant.trust_group, request.vm_uuid)
        operations: list[Operation] = [
            Put(keys.replica(replica_id), render(record)),
            Put(index, replica_id),
            Put(keys.owner(replica_id), render(owner)),
        ]
        if request.domain_xml:
            operations.append(Put(keys.definition(replica_id), request.domain_xml.decode()))
        result = await context.write(
            [
                context.election.guard(),
                absent(index),
                absent(keys.replica(replica_id)),
                absent(keys.owner(replica_id)),
                exists(keys.node(placement.node, placement.incarnation)),
            ],
            operations,
            op_id=op_id,
        )
        if not result.succeeded:
            return None
        context.events.write(
            "replica.placed",
            f"Replica of {record.domain_name} placed: {placement.reasons[0]}.",
            replica_id=replica_id,
            vm_name=record.vm_name,
            data={"node": placement.node, "trust_group": grant.trust_group},
        )
        return Admitted(record, owner, changed=True)

    def _place(self, grant: Grant, request: NewReplica) -> Placement:
        context = self._context
        decision = place(
            PlacementRequest(
                storage_location=grant.storage_location,
                size_bytes=sum(d.size_bytes for d in request.disks if not d.excluded),
                committed_bytes=context.inventory.index.committed_bytes(grant.storage_location),
                needs_shared=not context.standalone,
                version=context.version,
            ),
            (node.load for node in context.inventory.live_nodes()),
        )
        if isinstance(decision, Problem):
            raise decision
        return decision

    def _record(
        self,
        grant: Grant,
        request: NewReplica,
        replica_id: str,
        placement: Placement,
        op_id: str,
    ) -> ReplicaRecord:
        inventory = self._context.inventory
        taken = [
            name
            for name in (request.vm_name, f"{request.vm_name} - Test")
            if inventory.domain_name_taken(name)
        ]
        folder = folder_name(request.folder, replica_id, placement.incarnation)
        folder_path = f"{grant.storage_location.rstrip('/')}/{folder}"
        taken_folder = inventory.index.folder_taken(request.folder, grant.storage_location)
        if request.folder and taken_folder:
            raise Problem(
                Reason.BAD_FIELD,
                f"The folder {folder_path} belongs to another replica.",
                field="folder",
                value=request.folder,
                remedy="Choose another folder name, or none.",
            )
        return ReplicaRecord(
            replica_id=replica_id,
            vm_uuid=request.vm_uuid,
            vm_name=request.vm_name,
            domain_name=domain_name(request.vm_name, replica_id, taken),
            trust_group=grant.trust_group,
            primary_access_point=request.primary_access_point,
            storage_location=grant.storage_location,
            folder_path=folder_path,
            disks=_disk_records(request),
            policy=PolicyRecord(
                frequency_ms=request.frequency_ms or inventory.settings.default_frequency_ms,
                recovery_points=request.recovery_points,
                folder=request.folder,
            ),
            placement_node=placement.node,
            placement_reasons=placement.reasons,
            created_time_ms=self._context.clock.wall_ms(),
            op_id=op_id,
        )


def check_frequency(frequency_ms: int) -> None:
    """0 = the cluster's default. :raises Problem: BAD_FIELD"""
    if frequency_ms and not MIN_FREQUENCY_MS <= frequency_ms <= MAX_FREQUENCY_MS:
        raise Problem(
            Reason.BAD_FIELD,
            f"A cycle every {frequency_ms} ms is not possible.",
            field="frequency_ms",
            value=str(frequency_ms),
            remedy=f"Give {MIN_FREQUENCY_MS} to {MAX_FREQUENCY_MS} ms, or 0 for the default.",
        )


def check_recovery_points(count: int) -> None:
    """More than the newest point comes later. :raises Problem: UNIMPLEMENTED"""
    if count > 1:
        raise Problem(
            Reason.UNIMPLEMENTED,
            "This version keeps the newest recovery point only.",
            field="recovery_points",
            value=str(count),
            remedy="Leave recovery_points out.",
        )


def check_definition(domain_xml: bytes) -> None:
    """Text of bearable length; libvirt judges the rest. :raises Problem: BAD_FIELD"""
    try:
        domain_xml.decode()
    except UnicodeDecodeError as error:
        raise _bad_definition("The definition is no UTF-8 text.") from error
    if len(domain_xml) > MAX_DEFINITION_BYTES:
        raise _bad_definition(f"The definition has {len(domain_xml)} bytes.")


def _bad_definition(message: str) -> Problem:
    return Problem(
        Reason.BAD_FIELD,
        message,
        field="domain_xml",
        remedy=f"Send libvirt's domain XML, at most {MAX_DEFINITION_BYTES} bytes.",
    )


def _disk_records(request: NewReplica) -> tuple[DiskRecord, ...]:
    return tuple(
        DiskRecord(target=d.target, size_bytes=d.size_bytes, excluded=d.excluded)
        for d in request.disks
    )


def _shape(disks: tuple[DiskRecord, ...]) -> list[tuple[str, int]]:
    return sorted((d.target, d.size_bytes) for d in disks if not d.excluded)
