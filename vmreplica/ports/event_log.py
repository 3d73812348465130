"""What happened, for people and programs that watch: names as in interfaces, "Events"."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Protocol


class Severity(StrEnum):
    """How much a person should care."""

    INFO = "Info"
    WARNING = "Warning"
    ERROR = "Error"


class EventLog(Protocol):
    """Never raises and never blocks: losing an event must not hurt replication."""

    def write(
        self,
        name: str,
        message: str,
        *,
        severity: Severity = Severity.INFO,
        replica_id: str = "",
        vm_name: str = "",
        data: Mapping[str, str] | None = None,
    ) -> None:
        """Record one event at the present time of this node."""
        ...
