"""The client access point's IP address (kind vip): held by the leader alone."""

from __future__ import annotations

from typing import Protocol


class AddressHolder(Protocol):
    """Runs in a process of its own, so that the address falls when the broker dies or is paused."""

    async def claim(self, deadline_boottime_ms: int) -> None:
        """Put the address on the interface and announce it (gratuitous ARP); hold to deadline."""
        ...

    async def extend(self, deadline_boottime_ms: int) -> None:
        """Move the deadline; past it the holder drops the address by itself."""
        ...

    async def release(self) -> None:
        """Drop the address now. Idempotent."""
        ...
