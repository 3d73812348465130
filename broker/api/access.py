"""Who may call what, and which replica a caller means."""

from __future__ import annotations

from broker.service.context import Context
from broker.service.replica_index import Outline, pick_outline
from vmreplica.core.authorization import authorize, unknown_replica
from vmreplica.core.identity import RoleKind
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.records import ReplicaRecord, ReplicationRecord
from vmreplica.ports.event_log import Severity
from vmreplica.wire.call import Call, require_role

READERS = (
    RoleKind.VIEWER,
    RoleKind.OPERATOR,
    RoleKind.ADMINISTRATOR,
    RoleKind.BROKER,
    RoleKind.NODE,
)
_NEVER_MS = 1 << 60


class Access:
    """Role checks, and names resolved within what the caller may see."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.cluster = context.keys.cluster

    def require_administrator(self, call: Call) -> None:
        """:raises Problem: ROLE_REQUIRED"""
        require_role(call, self.cluster, RoleKind.ADMINISTRATOR)

    def require_reader(self, call: Call) -> None:
        """:raises Problem: ROLE_REQUIRED"""
        require_role(call, self.cluster, *READERS)
        self._check_listed()

    def require_sender(self, call: Call, record: ReplicaRecord) -> None:
        """Only a replica's senders, and administrators. :raises Problem: ROLE_REQUIRED"""
        if self._refusal(call, record) is not None:
            self.require_administrator(call)

    def is_reader(self, call: Call) -> bool:
        """Whether the caller may read without being a replica's sender."""
        return call.identity.has_role(self.cluster, *READERS)

    def sees(self, call: Call, record: Outline) -> bool:
        """Whether a replica exists for this caller: by role, or as one of its senders."""
        groups = self._operator_groups(call)
        if groups is not None:
            return record.trust_group in groups
        return self.is_reader(call) or self._refusal(call, record) is None

    def replica(self, call: Call, vm: str, field: str = "replica_id") -> ReplicaRecord:
        """The replica meant by name, vm_uuid or replica_id.

        :raises Problem: AMBIGUOUS_NAME, WRONG_SIDE, UNKNOWN_REPLICA, NO_IDENTITY, NOT_AUTHORIZED;
            BAD_FIELD where nothing is named.
        """
        self._check_listed()
        if not vm:
            raise Problem(
                Reason.BAD_FIELD,
                "No replica is named.",
                field=field,
                remedy="Give the VM's name, its UUID or the replica's id.",
            )
        if not call.identity.dns_names and not self.is_reader(call):
            raise Problem(
                Reason.NO_IDENTITY,
                "The certificate names no host and bears no role of this cluster.",
                remedy="Use a certificate with the host's name, or with a role in this cluster.",
            )
        matching = self._context.inventory.index.matching(vm)
        found = pick_outline(vm, [r for r in matching if self.sees(call, r)])
        if found is not None:
            record = self._context.inventory.replica(found.replica_id)
            if record is not None:
                return record
        if self.is_reader(call):
            other = self._context.inventory.find_replication(vm)
            if other is not None:
                raise self._wrong_side(vm, "primary", other.replica_access_point)
        refusal = next((p for r in matching if (p := self._refusal(call, r)) is not None), None)
        if refusal is not None:
            self._denied(call, refusal)
            if refusal.reason is not Reason.UNKNOWN_REPLICA and not self.is_reader(call):
                raise refusal
        raise unknown_replica(vm)

    def replication(self, vm: str) -> ReplicationRecord | None:
        """The protected VM meant, None where none is known.

        :raises Problem: AMBIGUOUS_NAME; WRONG_SIDE where only a replica bears that name.
        """
        found = self._context.inventory.find_replication(vm)
        if found is None:
            replica = self._context.inventory.find(vm)
            if replica is not None:
                raise self._wrong_side(vm, "replica", replica.primary_access_point)
        return found

    def denied(self, call: Call, problem: Problem) -> Problem:
        """Note a refusal of an identity; returns it for raising."""
        if problem.reason in (Reason.NOT_AUTHORIZED, Reason.NO_IDENTITY):
            self._denied(call, problem)
        return problem

    def _check_listed(self) -> None:
        """A broker that never heard from the store knows nothing, which is not "there is none"."""
        if self._context.inventory.cache.heard_age_ms() >= _NEVER_MS:
            raise Problem(
                Reason.STORE_UNAVAILABLE,
                "This broker has not reached the cluster store yet.",
                remedy="Try again in a few seconds.",
            )

    def _refusal(self, call: Call, record: Outline | ReplicaRecord) -> Problem | None:
        inventory = self._context.inventory
        names = call.identity.dns_names
        decision = authorize(names, inventory.settings, inventory.authorizations, record, "")
        return decision if isinstance(decision, Problem) else None

    def _operator_groups(self, call: Call) -> set[str] | None:
        """The groups an operator is bound to; None = not bound."""
        bound = (RoleKind.VIEWER, RoleKind.ADMINISTRATOR, RoleKind.BROKER, RoleKind.NODE)
        if call.identity.has_role(self.cluster, *bound):
            return None
        groups = {
            role.group
            for role in call.identity.roles
            if role.cluster == self.cluster and role.kind is RoleKind.OPERATOR
        }
        return groups or None

    def _denied(self, call: Call, problem: Problem) -> None:
        self._context.events.write(
            "access.denied",
            problem.message,
            severity=Severity.WARNING,
            data={"names": ", ".join(call.identity.dns_names), "reason": problem.reason.value},
        )

    def _wrong_side(self, vm: str, side: str, cap: str) -> Problem:
        return Problem(
            Reason.WRONG_SIDE,
            f"This is the {side} side of {vm!r}; this verb belongs to the other one.",
            field="vm",
            value=vm,
            cap=cap,
            remedy=f"vmrctl --endpoint {cap} …",
        )
