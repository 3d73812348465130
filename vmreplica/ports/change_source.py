"""Changed clusters of a running VM: one point in time of all its disks, read while it runs on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from vmreplica.core.cycle import CycleKind, Disk, Frame


class TrackingLost(Exception):
    """The bitmap of the last acknowledged cycle is gone or inconsistent: resynchronize.

    ``cause`` is a sentence for people.
    """


class SourceDeferred(Exception):
    """Another job (somebody's backup, a migration) holds the VM: try later, nothing is wrong."""


class SourceFailed(Exception):
    """The source could not be read; the cycle is missed, the guest is unharmed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupRequest:
    """``since_cycle_id`` names the checkpoint to count from (empty: everything)."""

    vm_uuid: str
    kind: CycleKind
    cycle_id: bytes
    since_cycle_id: bytes
    disks: tuple[Disk, ...]
    compression: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturedDefinition:
    """What describes the VM at the point in time; ``nvram`` and ``tpm_state`` raw, may be empty."""

    domain_xml: bytes
    nvram: bytes = b""
    tpm_state: bytes = b""


class BackupJob(Protocol):
    """An open point in time. Frames are a pure function of (job, number): resending is exact."""

    @property
    def point_time_ms(self) -> int:
        """Wall time of the point."""
        ...

    @property
    def frame_count(self) -> int:
        """How many frames the whole cycle has."""
        ...

    @property
    def cluster_counts(self) -> tuple[int, ...]:
        """Clusters of each disk in the whole cycle, in the order of the request's disks."""
        ...

    @property
    def total_bytes(self) -> int:
        """Plain bytes of all clusters to send, for progress (zero clusters count nothing)."""
        ...

    def frames(self, first: int) -> AsyncIterator[Frame]:
        """Frames ``first``, ``first`` + 1, … to the end, read ahead within 8 MiB.

        :raises SourceFailed: the job died (guard, poweroff, QEMU gone).
        """
        ...

    async def finish_reading(self) -> None:
        """All frames are in our hands or in the spool: end the job at the hypervisor now."""
        ...

    async def end(self) -> None:
        """End the job in any state and free scratch and spool. Idempotent; keeps checkpoints."""
        ...


class ChangeSource(Protocol):
    """The host's tracker of changed blocks (libvirt checkpoints and pull backups)."""

    async def begin(self, request: BackupRequest) -> BackupJob:
        """Make the checkpoint of ``cycle_id`` and open the point in time.

        :raises TrackingLost, SourceDeferred, SourceFailed, Problem:
        """
        ...

    async def acknowledge(self, vm_uuid: str, acked_cycle_id: bytes) -> None:
        """``acked_cycle_id``'s checkpoint is the new base: delete our other checkpoints."""
        ...

    async def forget(self, vm_uuid: str, cycle_id: bytes) -> None:
        """This cycle will never be acknowledged: delete its checkpoint, keep the base. Idempotent."""
        ...

    async def checkpoints(self, vm_uuid: str) -> tuple[bytes, ...]:
        """cycle ids of our checkpoints that exist, oldest first."""
        ...

    async def release(self, vm_uuid: str) -> None:
        """Remove all our checkpoints, jobs and scratch of this VM. Idempotent."""
        ...

    async def recover(self) -> None:
        """At start: end jobs and freezes that a predecessor process left behind."""
        ...

    async def capture_definition(self, vm_uuid: str) -> CapturedDefinition:
        """The VM's present definition."""
        ...

    async def disks(self, vm_uuid: str) -> Sequence[Disk]:
        """The VM's present disks with their sizes."""
        ...
