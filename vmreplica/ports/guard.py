"""The guard process as its main process sees it (data-safety §1.5, §1.6, §5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Guard(Protocol):
    """Messages to the guard. It acts by itself when the main process cannot."""

    def set_deadline(self, boottime_ms: int) -> None:
        """The node may act until then; 0 = it may not act now. Shared memory, never blocks."""
        ...

    def register_child(self, pid: int) -> None:
        """A store-writing child: killed at the deadline."""
        ...

    def unregister_child(self, pid: int) -> None:
        """The child has been reaped."""
        ...

    async def frozen(self, vm_uuid: str, until_boottime_ms: int) -> None:
        """Told before a freeze: thaw at the latest then, whatever happens to us."""
        ...

    async def thawed(self, vm_uuid: str) -> None:
        """The freeze is over."""
        ...

    async def job_begins(
        self, vm_uuid: str, scratch_paths: tuple[str, ...], abort_at_boottime_ms: int
    ) -> None:
        """Told before backupBegin; watches scratch and age (0 = never by time)."""
        ...

    async def job_ended(self, vm_uuid: str) -> None:
        """The job is over."""
        ...

    def probe_ages_ms(self) -> Mapping[str, int]:
        """Age of the last answered probe of each storage location."""
        ...
