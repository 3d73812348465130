"""Who may send, read or locate which replica: one function, asked by broker and node alike.

The identity is the list of DNS names of the peer's certificate, nothing else. A sender outside a
replica's trust group learns nothing, not even that the replica exists.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from vmreplica.core.problems import Problem, Reason
from vmreplica.core.records import AuthorizationRecord
from vmreplica.core.settings import Settings

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_FQDN = re.compile(rf"{_LABEL}(?:\.{_LABEL})+")
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*|[0-9a-f:]+")
_ACCESS_POINT = re.compile(r"(?:\[([0-9a-fA-F:]+)\]|([^\[\]:]+)):([0-9]{1,5})")
DEFAULT_GROUP = "DEFAULT"


@dataclass(frozen=True, slots=True)
class Grant:
    """Let in: the trust group the sender acts in and where its new replicas are stored."""

    trust_group: str
    storage_location: str


class Guarded(Protocol):
    """What is asked of an existing replica (a ReplicaRecord has it)."""

    @property
    def replica_id(self) -> str:
        """Its id."""
        ...

    @property
    def trust_group(self) -> str:
        """Who may touch it."""
        ...

    @property
    def storage_location(self) -> str:
        """Where it lies."""
        ...


def authorize(
    names: Sequence[str],
    settings: Settings,
    entries: Iterable[AuthorizationRecord],
    replica: Guarded | None,
    primary_access_point: str,
) -> Grant | Problem:
    """Decide; never raises. The caller raises the Problem it gets.

    :param names: DNS names of the peer's certificate.
    :param replica: the replica to be touched; None = a new one is asked for.
    :param primary_access_point: HOST:PORT the sender gives as its own. Obligatory for a new
        replica; "" where the call carries none (it is then not checked).
    :returns: a Grant, or the refusal: NO_IDENTITY, BAD_FIELD, NOT_AUTHORIZED, UNKNOWN_REPLICA.
    """
    own = tuple(name.lower().rstrip(".") for name in names)
    if not own:
        return Problem(
            Reason.NO_IDENTITY,
            "The certificate names no host: it has no DNS subject alternative name.",
            remedy="Issue a certificate whose SANs hold the host's FQDN and its cluster's name.",
        )
    host = ""
    if primary_access_point or replica is None:
        claimed = _claimed_host(own, primary_access_point)
        if isinstance(claimed, Problem):
            return claimed
        host = claimed
    matching = [e for e in entries if any(matches(e.primary, name) for name in own)]
    if replica is not None:
        return _on_existing(own, settings, matching, replica)
    return _on_new(host, settings, matching)


def matches(pattern: str, name: str) -> bool:
    """Whether an entry's pattern covers a name: equal, or `*.` in place of exactly one label."""
    pattern = pattern.lower()
    if not pattern.startswith("*."):
        return pattern == name
    first, _, rest = name.partition(".")
    return bool(first) and first != "*" and rest == pattern[2:]


def check_pattern(pattern: str) -> None:
    """An entry's primary: an FQDN, or `*.` + at least two labels. :raises Problem: BAD_FIELD."""
    text = pattern.lower()
    suffix = text[2:] if text.startswith("*.") else text
    if not _FQDN.fullmatch(suffix) or len(suffix) > 253:
        raise Problem(
            Reason.BAD_FIELD,
            f"{pattern!r} names no primary server.",
            field="primary",
            value=pattern,
            remedy="Give an FQDN (p1.example.org) or *. and at least two labels (*.example.org).",
        )


def access_point(text: str) -> tuple[str, int] | None:
    """HOST:PORT as (host in lower case, port); IPv6 in brackets. None = it is not one."""
    match = _ACCESS_POINT.fullmatch(text)
    if match is None:
        return None
    host = (match[1] or match[2]).lower()
    port = int(match[3])
    if not _HOST.fullmatch(host) or not 1 <= port <= 65_535:
        return None
    return host, port


def unknown_replica(replica_id: str) -> Problem:
    """The one refusal for replicas that are not there and for those of other trust groups."""
    return Problem(
        Reason.UNKNOWN_REPLICA,
        f"There is no replica {replica_id!r} here for this caller.",
        field="replica_id",
        value=replica_id,
        remedy="Look it up with `vmrctl replica list` at its cluster's client access point.",
    )


def _claimed_host(own: tuple[str, ...], primary_access_point: str) -> str | Problem:
    parsed = access_point(primary_access_point)
    if parsed is None:
        return Problem(
            Reason.BAD_FIELD,
            f"{primary_access_point!r} is no client access point.",
            field="primary_access_point",
            value=primary_access_point,
            remedy="Give HOST:PORT, the address by which the sender's own side is known.",
        )
    if parsed[0] not in own:
        return Problem(
            Reason.NOT_AUTHORIZED,
            f"The sender's certificate does not name {parsed[0]}, its primary access point.",
            field="primary_access_point",
            value=primary_access_point,
            remedy=f"Issue the sender's certificate with the SAN {parsed[0]}; "
            f"it has {', '.join(own)}.",
        )
    return parsed[0]


def _two_groups(groups: set[str]) -> Problem:
    return Problem(
        Reason.NOT_AUTHORIZED,
        "The names of the sender's certificate belong to two trust groups: "
        + ", ".join(sorted(groups))
        + ".",
        field="certificate",
        remedy="Give each trust group certificates of its own, or correct the entries.",
    )


def _on_existing(
    own: tuple[str, ...],
    settings: Settings,
    matching: list[AuthorizationRecord],
    replica: Guarded,
) -> Grant | Problem:
    entry_groups = {e.trust_group for e in matching}
    groups = set(entry_groups)
    if settings.any_server:
        groups |= {f"{DEFAULT_GROUP}/{name}" for name in own}
    if replica.trust_group not in groups:
        return unknown_replica(replica.replica_id)
    if len(entry_groups) > 1:
        return _two_groups(entry_groups)
    return Grant(replica.trust_group, replica.storage_location)


def _on_new(host: str, settings: Settings, matching: list[AuthorizationRecord]) -> Grant | Problem:
    groups = {e.trust_group for e in matching}
    if len(groups) > 1:
        return _two_groups(groups)
    if matching:
        best = min(matching, key=lambda e: _closeness(e, host))
        return Grant(best.trust_group, best.storage_location)
    if not settings.any_server:
        return Problem(
            Reason.NOT_AUTHORIZED,
            f"{host} is not authorized to send replicas to this cluster.",
            field="primary_access_point",
            value=host,
            remedy="An administrator of this cluster adds an entry for it, or sets "
            "any_server=true and default_storage_location.",
        )
    if not settings.default_storage_location:
        return Problem(
            Reason.NOT_AUTHORIZED,
            "Any server may send, but no default_storage_location is set.",
            field="default_storage_location",
            remedy="vmrctl settings set default_storage_location=/an/absolute/path",
        )
    return Grant(f"{DEFAULT_GROUP}/{host}", settings.default_storage_location)


def _closeness(entry: AuthorizationRecord, host: str) -> tuple[bool, bool, str]:
    """Best entry first: one that covers the access point's host, exact before wildcard."""
    return (not matches(entry.primary, host), entry.primary.startswith("*."), entry.primary)
