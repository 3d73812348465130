"""The other cluster as a primary sees it: one client access point, and streams to owners."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from vmreplica.core.cycle import (
    Accepted,
    Acknowledged,
    CycleClose,
    CycleOpen,
    Disk,
    Durable,
    Frame,
)
from vmreplica.core.records import PolicyRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """Answer of Locate: where the owner is. ``server_name`` is what its certificate must show."""

    replica_id: str
    node: str
    address: str
    server_name: str
    epoch: int
    ticket: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaHead:
    """What GetReplica answers, as far as a sender needs it; asked of the owner."""

    replica_id: str
    trust_group: str
    owner: str
    epoch: int
    acked_seq: int
    acked_digest: bytes
    acked_cycle_id: bytes
    acked_time_ms: int
    disks: tuple[Disk, ...]
    placement_reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NewReplica:
    """CreateReplica's request."""

    vm_uuid: str
    vm_name: str
    disks: tuple[Disk, ...]
    domain_xml: bytes
    primary_access_point: str
    frequency_ms: int
    folder: str = ""
    recovery_points: int = 0


class LinkFailed(Exception):
    """The connection broke or never came; nothing is known of what the other side did."""


class CycleStream(Protocol):
    """One Replicate call. Problems of the other side are raised as Problem, cuts as LinkFailed."""

    async def open(self, request: CycleOpen) -> Accepted | Acknowledged:
        """Send open, wait for the answer. Acknowledged: this cycle already is the head."""
        ...

    async def send(self, message: Frame | CycleClose) -> None:
        """Send; waits while the transport is full."""
        ...

    async def receive(self) -> Durable | Acknowledged:
        """The next progress message or the acknowledgement."""
        ...

    async def cancel(self) -> None:
        """Give up the call. Idempotent."""
        ...

    @property
    def wire_bytes(self) -> int:
        """Message bytes sent so far."""
        ...


class ReplicaLink(Protocol):
    """Calls through a client access point (HOST:PORT)."""

    async def create_replica(self, cap: str, request: NewReplica, request_id: str) -> ReplicaHead:
        """Admission; the same (vm_uuid, disks) again answers the same replica."""
        ...

    async def update_replica(self, cap: str, replica_id: str, policy: PolicyRecord) -> None:
        """Tell the policy in force; what is fixed at creation stays. :raises Problem, LinkFailed:"""
        ...

    async def get_head(self, cap: str, replica_id: str) -> ReplicaHead:
        """The head of the manifest, asked of the owner. :raises Problem, LinkFailed:"""
        ...

    async def locate(self, cap: str, replica_id: str) -> Location:
        """Where the owner is now, perhaps stale. :raises Problem, LinkFailed:"""
        ...

    async def replicate(self, cap: str, location: Location) -> CycleStream:
        """A stream straight to the owner, its name verified. :raises LinkFailed: within 2 s."""
        ...

    async def replicate_relayed(self, cap: str, replica_id: str) -> CycleStream:
        """A stream through the client access point. :raises LinkFailed:"""
        ...
