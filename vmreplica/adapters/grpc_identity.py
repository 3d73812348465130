"""From a gRPC server context to a Call: certificate names, revocation, relayed identities."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cryptography import x509

from vmreplica.adapters import tls
from vmreplica.core.identity import Identity, RoleKind
from vmreplica.core.problems import Problem, Reason
from vmreplica.ports.clock import Clock
from vmreplica.wire import call as wire_call
from vmreplica.wire.call import Call
from vmreplica.wire.relay_identity import verify

_log = logging.getLogger(__name__)
_CACHED_PEERS = 1_024

Denied = Callable[[Identity, Problem], None]


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer certificate, parsed once."""

    identity: Identity
    serial: int
    expires_ms: int
    public_key: object


class CallReader:
    """Builds the Call of each request.

    :param cluster: our cluster: only its brokers may pass on identities.
    :param revoked: serials refused now (asked at each call).
    :param on_denied: told of each refusal (event ``access.denied``); must not raise.
    """

    def __init__(
        self,
        cluster: str,
        clock: Clock,
        revoked: Callable[[], frozenset[int]],
        on_denied: Denied | None = None,
    ) -> None:
        self._cluster = cluster
        self._clock = clock
        self._revoked = revoked
        self._on_denied = on_denied
        self._peers: OrderedDict[bytes, Peer] = OrderedDict()

    def read(self, context: Any) -> Call:
        """:raises Problem: NO_IDENTITY, CERTIFICATE_INVALID, CERTIFICATE_REVOKED, NOT_AUTHORIZED"""
        metadata: dict[str, str | bytes] = dict(context.invocation_metadata() or ())
        call = Call(
            identity=Identity(),
            metadata=metadata,
            request_id=_text(metadata, wire_call.REQUEST_ID),
            replica_id=_text(metadata, wire_call.REPLICA_ID),
            ticket=_text(metadata, wire_call.TICKET),
            peer=context.peer(),
            remaining=lambda: _remaining(context),
        )
        try:
            self._identify(call, context)
        except Problem as problem:
            self._denied(call.identity, problem)
            raise
        return call

    def _identify(self, call: Call, context: Any) -> None:
        if call.peer.startswith("unix:"):
            # The socket's directory is 0700: whoever could connect is root of this host.
            call.identity = Identity(local_root=True)
            return
        peer = self._peer(context.auth_context())
        call.identity = peer.identity
        if not peer.identity.dns_names and not peer.identity.roles:
            raise Problem(
                Reason.NO_IDENTITY,
                "Your certificate shows no DNS name and no role (subject alternative names).",
                field="certificate",
                remedy="Issue it again with 'vmrctl cert issue --san NAME'; the CN counts nothing.",
            )
        if peer.serial in self._revoked():
            raise Problem(
                Reason.CERTIFICATE_REVOKED,
                "Your certificate has been revoked.",
                field="certificate",
                value=f"{peer.serial:x}",
                remedy="Have a new one issued.",
            )
        # A connection may outlive the certificate it was opened with.
        if self._clock.wall_ms() >= peer.expires_ms:
            raise Problem(
                Reason.CERTIFICATE_INVALID,
                "Your certificate has expired.",
                field="certificate",
                remedy="Have a new one issued and connect again.",
            )
        self._relayed(call, peer)

    def _relayed(self, call: Call, peer: Peer) -> None:
        vouched = call.metadata.get(wire_call.RELAY_IDENTITY)
        if vouched is None:
            return
        broker = next(
            (
                role.name
                for role in peer.identity.roles
                if role.cluster == self._cluster and role.kind is RoleKind.BROKER
            ),
            "",
        )
        if not broker:
            self._denied(
                peer.identity,
                Problem(
                    Reason.NOT_AUTHORIZED,
                    "An identity was passed on by a peer that is no broker of this cluster; "
                    "it was ignored.",
                    field=wire_call.RELAY_IDENTITY,
                ),
            )
            return
        value = vouched if isinstance(vouched, bytes) else vouched.encode()
        relayed = verify(value, self._clock.wall_ms(), peer.public_key)
        if relayed.replica_id and call.replica_id and relayed.replica_id != call.replica_id:
            raise Problem(
                Reason.NOT_AUTHORIZED,
                "The identity passed on by the broker is for another replica.",
                field=wire_call.RELAY_IDENTITY,
                value=call.replica_id,
                remedy="Name one replica: in the metadata and in the message.",
            )
        call.identity = relayed.identity
        call.relayed_by = broker

    def _peer(self, auth_context: Mapping[str, list[bytes]]) -> Peer:
        pem = next(iter(auth_context.get("x509_pem_cert", ())), None)
        if pem is None:
            raise Problem(
                Reason.NO_IDENTITY,
                "You showed no certificate.",
                field="certificate",
                remedy="Connect with TLS and a client certificate.",
            )
        known = self._peers.get(pem)
        if known is not None:
            self._peers.move_to_end(pem)
            return known
        certificate = x509.load_pem_x509_certificate(pem)
        peer = Peer(
            identity=tls.identity_of(certificate),
            serial=certificate.serial_number,
            expires_ms=tls.expires_ms(certificate),
            public_key=certificate.public_key(),
        )
        self._peers[pem] = peer
        if len(self._peers) > _CACHED_PEERS:
            self._peers.popitem(last=False)
        return peer

    def _denied(self, identity: Identity, problem: Problem) -> None:
        _log.warning("access denied: %s (%s)", problem, ", ".join(identity.dns_names))
        if self._on_denied is not None:
            self._on_denied(identity, problem)


def _text(metadata: Mapping[str, str | bytes], name: str) -> str:
    value = metadata.get(name, "")
    return value if isinstance(value, str) else ""


def _remaining(context: Any) -> int | None:
    seconds = context.time_remaining()
    return None if seconds is None else int(seconds * 1000)
