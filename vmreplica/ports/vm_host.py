"""The virtual machines of one host (libvirt), as far as replication touches them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class VmDisk:
    """A disk of a domain. ``refusal`` says why it cannot be tracked ("" = it can)."""

    target: str
    path: str
    format: str
    size_bytes: int
    refusal: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vm:
    """A domain as the host shows it. ``role`` from our metadata element, "" without one."""

    name: str
    uuid: str
    running: bool
    persistent: bool
    autostart: bool
    disks: tuple[VmDisk, ...]
    xml: str
    role: str = ""
    replica_id: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningDisk:
    """One disk of a VM to start: its writable overlay over an explicit read-only chain."""

    target: str
    overlay: str
    chain: tuple[str, ...]


class VmHost(Protocol):
    """Everything raises Problem with a remedy where a person can act, UNKNOWN_VM where gone."""

    async def list_vms(self) -> tuple[Vm, ...]:
        """All domains, running or not."""
        ...

    async def get_vm(self, name_or_uuid: str) -> Vm:
        """One domain. :raises Problem: UNKNOWN_VM, AMBIGUOUS_NAME"""
        ...

    async def define_replica(
        self,
        definition_xml: str,
        *,
        domain_name: str,
        vm_uuid: str,
        replica_id: str,
        disks: Sequence[str],
        folder: str,
    ) -> None:
        """Define (or redefine) a replica VM: off, cards disconnected, autostart off, every disk
        names a path that does not exist, metadata role='replica'. Built from an allow-list, never
        the sender's XML as it came. Idempotent.
        """
        ...

    async def undefine_replica(self, replica_id: str) -> None:
        """Remove the replica's domain if this host has it. Idempotent."""
        ...

    async def list_replica_ids(self) -> tuple[str, ...]:
        """replica ids of all domains with our metadata role replica."""
        ...

    async def networks(self) -> tuple[str, ...]:
        """Names of the networks that run on this host, in order."""
        ...

    async def start_test_vm(
        self,
        definition_xml: str,
        *,
        domain_name: str,
        replica_id: str,
        vm_uuid: str,
        disks: Sequence[RunningDisk],
        networks: Mapping[str, str],
        nvram: bytes,
        tpm_state: bytes,
        console_log: str,
    ) -> None:
        """Create the transient test VM with new uuid and MAC addresses.

        :param networks: card (MAC or index as text) → network name; missing = link down.
        :param console_log: file that receives the first serial port's output.
        """
        ...

    async def stop_test_vm(self, replica_id: str) -> bool:
        """Destroy the test VM of this replica; False when there was none."""
        ...

    async def running_tests(self) -> tuple[str, ...]:
        """Replica ids of the test VMs that run on this host, also of other clusters'."""
        ...

    async def test_vm_running(self, replica_id: str) -> bool:
        """Whether this host runs the test VM of this replica."""
        ...

    async def set_primary_role(self, vm_uuid: str, replica_id: str, *, protected: bool) -> None:
        """Write or remove our metadata element of a primary, take over or give back autostart."""
        ...

    async def start_vm(self, vm_uuid: str) -> bool:
        """Start a VM of this host (its autostart is ours); False where it ran already."""
        ...

    async def first_since_boot(self) -> bool:
        """True once after each boot of the host: the VMs whose autostart is ours are due."""
        ...
