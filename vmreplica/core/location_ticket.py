"""The ticket of Locate: lets a node serve before its cache has caught up.

Opaque to clients, good for 10 minutes, never required, and never a proof: a node that meets one
its cache does not know asks the cluster store, and believes only that.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import asdict, dataclass

TICKET_LIFE_MS = 600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """Where a broker saw the owner, and until when that is worth a question (wall clock)."""

    replica_id: str
    node: str
    incarnation: str
    epoch: int
    expires_ms: int


def write_ticket(ticket: Ticket) -> str:
    """As metadata text."""
    data = json.dumps(asdict(ticket), separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(data).decode()


def read_ticket(text: str, now_ms: int) -> Ticket | None:
    """The ticket; None where it is damaged or out of date: it is then as if there were none."""
    try:
        data = json.loads(base64.b64decode(text.encode("ascii"), altchars=b"-_", validate=True))
        ticket = Ticket(
            replica_id=str(data["replica_id"]),
            node=str(data["node"]),
            incarnation=str(data["incarnation"]),
            epoch=int(data["epoch"]),
            expires_ms=int(data["expires_ms"]),
        )
    except (ValueError, KeyError, TypeError, binascii.Error):
        return None
    return ticket if now_ms < ticket.expires_ms else None
