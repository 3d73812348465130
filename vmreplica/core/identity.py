"""Who is calling: the peer certificate's subject alternative names, and the role they carry.

Never the common name, never metadata from outside (interfaces §1).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class RoleKind(StrEnum):
    """The first path segment of a role URI ``spiffe://CLUSTER/KIND/NAME``."""

    BROKER = "broker"
    NODE = "node"
    ADMINISTRATOR = "administrator"
    OPERATOR = "operator"
    VIEWER = "viewer"


@dataclass(frozen=True, slots=True)
class Role:
    """A role inside one cluster; ``group`` is the operator's trust group, else ""."""

    cluster: str
    kind: RoleKind
    name: str
    group: str = ""


@dataclass(frozen=True, slots=True)
class Identity:
    """One authenticated caller. ``fingerprint`` = SHA-256 of its certificate, hex; for audit."""

    dns_names: tuple[str, ...] = ()
    roles: tuple[Role, ...] = ()
    fingerprint: str = ""
    local_root: bool = False

    def has_role(self, cluster: str, *kinds: RoleKind) -> bool:
        """Whether one of ``kinds`` is held in ``cluster``; root on the local socket has all."""
        return self.local_root or any(r.cluster == cluster and r.kind in kinds for r in self.roles)
