"""Roles as URI names of a certificate: ``spiffe://CLUSTER/KIND/NAME``, operators with a group.

``spiffe://CLUSTER/operator/GROUP/NAME`` is the one form with four parts.
"""

from __future__ import annotations

from vmreplica.core.identity import Role, RoleKind

_SCHEME = "spiffe://"
_KINDS = {kind.value: kind for kind in RoleKind}


def parse_role(uri: str) -> Role | None:
    """The role a URI name stands for; None where the URI is none of ours."""
    if not uri.startswith(_SCHEME):
        return None
    cluster, *path = uri[len(_SCHEME) :].split("/")
    if not cluster or not all(path) or not path or path[0] not in _KINDS:
        return None
    kind = _KINDS[path[0]]
    match kind, path[1:]:
        case RoleKind.OPERATOR, [group, name]:
            return Role(cluster, kind, name, group)
        case RoleKind.OPERATOR, _:
            return None
        case _, [name]:
            return Role(cluster, kind, name)
        case _:
            return None


def role_uri(role: Role) -> str:
    """The URI name that stands for a role."""
    parts = [role.cluster, role.kind.value, *([role.group] if role.group else []), role.name]
    return _SCHEME + "/".join(parts)
