"""What an owner record means to one node process (data-safety §1)."""

from __future__ import annotations

from dataclasses import replace

from vmreplica.core.records import OwnerRecord, ReplicaRecord


def names(owner: OwnerRecord | None, node: str, incarnation: str) -> bool:
    """Whether the record gives the replica to this very process."""
    return (
        owner is not None
        and not owner.released
        and bool(incarnation)
        and owner.node == node
        and owner.incarnation == incarnation
    )


def raised_above(owner: OwnerRecord, highest_epoch: int, op_id: str) -> OwnerRecord:
    """The same owner with an epoch above every epoch found on disk."""
    return replace(owner, epoch=max(owner.epoch, highest_epoch) + 1, op_id=op_id)


def released(owner: OwnerRecord, op_id: str) -> OwnerRecord:
    """The owner gives the replica up by itself."""
    return replace(owner, released=True, op_id=op_id)


def pin_is_over(
    record: ReplicaRecord, operation_id: str, pin_incarnation: str, living: frozenset[str]
) -> bool:
    """Whether a pin of a test failover has fallen.

    It holds while the record says that this test runs (its node may only be cut off, its VM
    still reading), and while the process that set it lives and may be about to say so.
    """
    test = record.test_failover
    if test.running and test.operation_id == operation_id:
        return False
    return test.operation_id == operation_id or pin_incarnation not in living
