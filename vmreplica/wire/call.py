"""One call as an API object sees it: who asks, what the metadata say, what goes back beside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from vmreplica.core.identity import Identity, RoleKind
from vmreplica.core.problems import Problem, Reason

REPLICA_ID = "vmreplica-replica-id"
TICKET = "vmreplica-ticket"
REQUEST_ID = "vmreplica-request-id"
RELAY_IDENTITY = "vmreplica-relay-identity-bin"
TRACE = "traceparent"
TRAILER_NODE = "vmreplica-node"
TRAILER_EPOCH = "vmreplica-epoch"
TRAILER_ROUTE = "vmreplica-route"
TRAILERS = (TRAILER_NODE, TRAILER_EPOCH, TRAILER_ROUTE)


def _no_deadline() -> int | None:
    return None


@dataclass(slots=True)
class Call:
    """Identity is the original caller's, also where a broker relayed the call.

    ``relayed_by`` names that broker, "" on a direct call. ``trailers`` travel behind the answer.
    """

    identity: Identity
    metadata: Mapping[str, str | bytes] = field(default_factory=dict)
    request_id: str = ""
    replica_id: str = ""
    ticket: str = ""
    peer: str = ""
    relayed_by: str = ""
    trailers: dict[str, str] = field(default_factory=dict)
    remaining: Callable[[], int | None] = _no_deadline

    @classmethod
    def local(cls) -> Call:
        """A call by root of this host, or by this process itself."""
        return cls(identity=Identity(local_root=True), peer="local")

    def set_trailer(self, name: str, value: str) -> None:
        """Send ``name: value`` behind the answer (one of TRAILERS)."""
        self.trailers[name] = value

    def time_remaining_ms(self) -> int | None:
        """Until the caller's deadline; None where the caller set none."""
        return self.remaining()

    def forwarded_metadata(self) -> list[tuple[str, str | bytes]]:
        """What a broker passes on when it forwards this call to a node."""
        pairs = (
            (REPLICA_ID, self.replica_id),
            (TICKET, self.ticket),
            (REQUEST_ID, self.request_id),
        )
        kept: list[tuple[str, str | bytes]] = [(name, value) for name, value in pairs if value]
        trace = self.metadata.get(TRACE)
        return [*kept, (TRACE, trace)] if trace else kept


def require_role(call: Call, cluster: str, *kinds: RoleKind) -> None:
    """Refuse a caller that holds none of ``kinds`` in ``cluster``.

    :raises Problem: ROLE_REQUIRED
    """
    if not call.identity.has_role(cluster, *kinds):
        wanted = " or ".join(kind.value for kind in kinds)
        raise Problem(
            Reason.ROLE_REQUIRED,
            f"This call needs the role {wanted} in cluster {cluster}.",
            field="certificate",
            value=", ".join(call.identity.dns_names),
            remedy=f"Use a certificate with the URI name spiffe://{cluster}/{kinds[0].value}/NAME.",
        )
