"""Where a replica lives: answered from the watch cache by any broker that hears the store."""

from __future__ import annotations

from broker.service.context import Context
from vmreplica.core.authorization import access_point
from vmreplica.core.location_ticket import TICKET_LIFE_MS, Ticket, write_ticket
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.records import NodeRecord, OwnerRecord, ReplicaRecord
from vmreplica.ports.replica_link import Location

CACHE_MAX_AGE_MS = 12_000
"""Beyond two verifications missed, an answered lease says nothing about the cache any more."""


class Locator:
    """An answer may be stale: the node decides, a wrong one costs one NOT_OWNER round trip."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def locate(self, record: ReplicaRecord, *, relay: bool = False) -> Location:
        """The owner's address, or the client access point's for relay.

        The caller has been authorized for ``record``.

        :raises Problem: STORE_UNAVAILABLE, DRAINING, NODE_UNREACHABLE.
        """
        owner, node = self.owner(record)
        context = self._context
        ticket = write_ticket(
            Ticket(
                replica_id=record.replica_id,
                node=owner.node,
                incarnation=owner.incarnation,
                epoch=owner.epoch,
                expires_ms=context.clock.wall_ms() + TICKET_LIFE_MS,
            )
        )
        address, server_name = node.address, node.server_name
        if relay:
            address = context.client_access_point
            parsed = access_point(address)
            server_name = parsed[0] if parsed else address
        return Location(
            replica_id=record.replica_id,
            node=owner.node,
            address=address,
            server_name=server_name,
            epoch=owner.epoch,
            ticket=ticket,
        )

    def owner(self, record: ReplicaRecord) -> tuple[OwnerRecord, NodeRecord]:
        """The owner and its living process.

        :raises Problem: STORE_UNAVAILABLE, DRAINING, NODE_UNREACHABLE; all worth a retry.
        """
        self.check_heard()
        inventory = self._context.inventory
        owned = inventory.owner(record.replica_id)
        if owned is None:
            raise _between_owners(Reason.NODE_UNREACHABLE, record, "has no owner yet", "")
        owner = owned.record
        if owner.released:
            raise _between_owners(
                Reason.DRAINING, record, f"is on its way from {owner.node}", owner.node
            )
        node = inventory.incarnation(owner.node, owner.incarnation)
        if node is None:
            raise _between_owners(
                Reason.NODE_UNREACHABLE,
                record,
                f"belongs to {owner.node}, which is gone; it is given to another node",
                owner.node,
            )
        return owner, node

    def check_heard(self) -> None:
        """Refuse to answer from a cache that is too old. :raises Problem: STORE_UNAVAILABLE"""
        # The cache hears a quiet store only at its verification, every 5 s; the lease more often.
        age_ms = self._context.inventory.cache.heard_age_ms()
        lease_age_ms = self._context.election.heard_age_ms()
        if age_ms <= CACHE_MAX_AGE_MS and 0 <= lease_age_ms < age_ms:
            age_ms = lease_age_ms
        if age_ms > self._context.locate_max_age_ms:
            raise Problem(
                Reason.STORE_UNAVAILABLE,
                "This broker has not heard from the cluster store "
                f"for more than {self._context.locate_max_age_ms} ms.",
                remedy="Try again in a few seconds.",
            )


def _between_owners(reason: Reason, record: ReplicaRecord, what: str, node: str) -> Problem:
    return Problem(
        reason,
        f"The replica of {record.vm_name} {what}.",
        field="replica_id",
        value=record.replica_id,
        remedy="Try again in a few seconds.",
        node=node,
    )
