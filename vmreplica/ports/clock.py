"""Time, as the only thing allowed to tell it."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """One host's clocks. Simulated hosts each get their own, with offset, drift and steps."""

    def boottime_ms(self) -> int:
        """Milliseconds since boot on CLOCK_BOOTTIME: never steps, counts suspend. For deadlines."""
        ...

    def wall_ms(self) -> int:
        """Milliseconds since 1970 UTC: may step. For what people read, never for safety."""
        ...

    async def sleep(self, duration_ms: float) -> None:
        """Suspend the calling task for at least this long."""
        ...
