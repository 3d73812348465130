"""What the next cycle of a VM builds on: the owner's head and the checkpoints that survive here."""

from __future__ import annotations

from collections.abc import Sequence

from node.service.cycle_runner import Basis
from vmreplica.core.cycle import ZERO_DIGEST, CycleKind, Disk
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.records import ReplicationRecord
from vmreplica.ports.change_source import ChangeSource
from vmreplica.ports.replica_link import ReplicaHead


async def find_basis(
    source: ChangeSource, vm_uuid: str, head: ReplicaHead, *, settled: bool
) -> Basis | None:
    """The cheapest right basis, cleaning up checkpoints that the head has made useless.

    :param settled: the head is what the owner says; a head only remembered may be outdated, so
        that nothing may be deleted by it (a wrong one is refused by the owner).

    The head's own checkpoint is the rule. Where it is missing (a cycle that was committed after
    we had given it up) an older one of ours counts a superset, which is right too; only the owner
    can say whether it knows that cycle.

    :returns: None: nothing was tracked since any cycle that the owner holds.
    """
    own = await source.checkpoints(vm_uuid)
    if head.acked_seq == 0:
        for cycle_id in own if settled else ():
            await source.forget(vm_uuid, cycle_id)
        return full_basis(head)
    if head.acked_cycle_id in own:
        if len(own) > 1 and settled:
            await source.acknowledge(vm_uuid, head.acked_cycle_id)
        return _delta(head, head.acked_cycle_id)
    if own:
        return _delta(head, own[0])
    return None


def full_basis(head: ReplicaHead) -> Basis:
    """All data, on top of whatever the head is."""
    return Basis(
        kind=CycleKind.FULL,
        seq=head.acked_seq + 1,
        parent_digest=head.acked_digest if head.acked_seq else ZERO_DIGEST,
    )


def _delta(head: ReplicaHead, since_cycle_id: bytes) -> Basis:
    return Basis(
        kind=CycleKind.DELTA,
        seq=head.acked_seq + 1,
        parent_digest=head.acked_digest,
        since_cycle_id=since_cycle_id,
    )


def agreed_disks(record: ReplicationRecord, present: Sequence[Disk]) -> tuple[Disk, ...]:
    """The VM's replicated disks, which must still be those the replica was made for.

    :raises Problem: DISK_SHAPE_CHANGED, naming all that differ.
    """
    agreed = tuple(Disk(d.target, d.size_bytes) for d in record.disks if not d.excluded)
    now = {disk.target: disk.size_bytes for disk in present if not disk.excluded}
    known = {disk.target for disk in record.disks}
    wrong = [disk.target for disk in agreed if now.get(disk.target) != disk.size_bytes]
    wrong += [target for target in now if target not in known]
    if not wrong:
        return agreed
    raise Problem(
        Reason.DISK_SHAPE_CHANGED,
        f"disks of {record.vm_name} were added, removed or resized: {', '.join(wrong)}",
        field="disks",
        value=",".join(wrong),
        remedy=f"Remove and enable it anew: vmrctl replication remove {record.vm_name}; "
        "on the other side: vmrctl replica remove --delete-data",
    )
