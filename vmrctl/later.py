"""Verbs and nouns of the contract that this version does not have yet.

They are refused with a sentence and exit code 2, never ignored.
"""

from __future__ import annotations

NOUNS = frozenset(
    {"apply", "diff", "get", "delete", "auth", "audit", "measure", "report", "doctor", "top"}
    | {"meter"}
)
VERBS: dict[str, frozenset[str]] = {
    "replication": frozenset({"yield", "release"}),
    "failover": frozenset(
        {"planned", "unplanned", "cancel", "complete", "reverse", "restart", "network", "plan"}
    ),
    "cert": frozenset({"request", "sign", "install", "list", "renew", "revoke"}),
    "store": frozenset({"adopt", "verify", "repair"}),
}
