"""The VMs of this host: listed, replicas defined and undefined, test VMs started and stopped."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import libvirt

from node.host.libvirt_connection import LibvirtConnection, problem_of, unknown_vm
from node.host.libvirt_definition import write_tpm_state
from vmreplica.core import domain_xml
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.trackability import left_out, obstacle_of
from vmreplica.ports.randomness import Randomness
from vmreplica.ports.vm_host import RunningDisk, Vm, VmDisk

log = logging.getLogger(__name__)
T = TypeVar("T")
_METADATA_KEY = "vmreplica"
BOOT_FILE_DIRECTORIES = (
    "/boot",
    "/usr/share",
    "/var/lib/libvirt",
    "/var/lib/vmreplica/boot",
)
"""Where kernel, initrd and firmware of a replica may lie: a sender must not name other files."""


class LibvirtVmHost:
    """Implements ports.vm_host.VmHost.

    :param boot_file_directories: where kernel, initrd and firmware of a replica may lie.
    :param state_dir: where the NVRAM of test VMs is kept while they run.
    """

    def __init__(
        self,
        connection: LibvirtConnection,
        randomness: Randomness,
        *,
        state_dir: str = "/var/lib/vmreplica",
        boot_file_directories: Sequence[str | Path] = BOOT_FILE_DIRECTORIES,
        swtpm_dir: str = "/var/lib/libvirt/swtpm",
        boot_mark: str = "/run/vmreplica/booted",
    ) -> None:
        self._connection = connection
        self._randomness = randomness
        self._state_dir = state_dir
        self._boot_file_directories = tuple(f"{d}".rstrip("/") + "/" for d in boot_file_directories)
        self._swtpm_dir = swtpm_dir
        self._boot_mark = boot_mark

    async def list_vms(self) -> tuple[Vm, ...]:
        """See the port."""

        def work(connection: Any) -> tuple[Vm, ...]:
            found = []
            for domain in connection.listAllDomains(0):
                try:
                    found.append(_vm(domain))
                except libvirt.libvirtError as error:
                    # A domain may vanish between listing and looking.
                    if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                        raise
            return tuple(sorted(found, key=lambda vm: vm.name))

        return await self._run("", work)

    async def get_vm(self, name_or_uuid: str) -> Vm:
        """See the port. A replica id is taken too."""

        def work(connection: Any) -> Vm:
            fits = []
            for domain in connection.listAllDomains(0):
                ours = _metadata_of(domain)
                # A test VM bears its replica's id, but is not what is meant by it.
                known_as = ours.get("replica_id") if ours.get("role") != "test" else ""
                if name_or_uuid in (domain.name(), domain.UUIDString(), known_as):
                    fits.append(_vm(domain))
            if len(fits) > 1:
                raise Problem(
                    Reason.AMBIGUOUS_NAME,
                    f"{name_or_uuid} fits {len(fits)} VMs of this host",
                    field="vm",
                    value=name_or_uuid,
                    remedy="Use one of the UUIDs: " + ", ".join(vm.uuid for vm in fits),
                )
            if not fits:
                raise unknown_vm(name_or_uuid)
            return fits[0]

        return await self._run(name_or_uuid, work)

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
        """See the port. :raises Problem: STATE_REFUSES where the name or UUID is another VM's."""
        self._check_boot_files(definition_xml)
        xml = domain_xml.replica_xml(
            definition_xml,
            name=domain_name,
            uuid=vm_uuid,
            replica_id=replica_id,
            targets=disks,
            folder=folder,
        )

        def work(connection: Any) -> None:
            for domain in connection.listAllDomains(0):
                same = domain.UUIDString() == vm_uuid or domain.name() == domain_name
                if same and _metadata_of(domain).get("replica_id") != replica_id:
                    raise _taken(domain_name, domain.UUIDString())
                if same and domain.name() != domain_name:
                    _undefine(domain)
            domain = connection.defineXML(xml)
            if domain.autostart():
                domain.setAutostart(0)

        await self._run(domain_name, work)

    async def undefine_replica(self, replica_id: str) -> None:
        """See the port."""

        def work(connection: Any) -> None:
            for domain in connection.listAllDomains(0):
                ours = _metadata_of(domain)
                if ours.get("replica_id") == replica_id and ours.get("role") == "replica":
                    _undefine(domain)

        await self._run(replica_id, work)

    async def list_replica_ids(self) -> tuple[str, ...]:
        """See the port."""

        def work(connection: Any) -> tuple[str, ...]:
            ours = map(_metadata_of, connection.listAllDomains(0))
            return tuple(sorted(m["replica_id"] for m in ours if m.get("role") == "replica"))

        return await self._run("", work)

    async def networks(self) -> tuple[str, ...]:
        """See the port."""
        return await self._run("", _running_networks)

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
        """See the port. :raises Problem: NETWORK_UNKNOWN, STATE_REFUSES, BAD_FIELD"""
        self._check_boot_files(definition_xml)
        facts = domain_xml.facts_of(definition_xml)
        nvram_file = f"{self._state_dir}/nvram/{vm_uuid}.fd"
        xml = domain_xml.test_xml(
            definition_xml,
            name=domain_name,
            uuid=vm_uuid,
            replica_id=replica_id,
            disks=[
                domain_xml.StartedDisk(target=d.target, overlay=d.overlay, chain=d.chain)
                for d in disks
            ],
            macs=[self._fresh_mac() for _ in facts.cards],
            networks=networks,
            nvram=nvram_file,
            console_log=console_log,
        )
        if nvram:
            await asyncio.to_thread(_write_private, nvram_file, nvram)
        if tpm_state and facts.tpm:
            await asyncio.to_thread(write_tpm_state, self._swtpm_dir, vm_uuid, tpm_state, "2.0")

        def work(connection: Any) -> None:
            domain_xml.check_networks(networks, _running_networks(connection))
            connection.createXML(xml, 0)

        await self._run(domain_name, work, again=False)

    async def stop_test_vm(self, replica_id: str) -> bool:
        """See the port."""

        def work(connection: Any) -> list[str]:
            stopped = []
            for domain in _tests_of(connection, replica_id):
                stopped.append(domain.UUIDString())
                domain.destroy()
            return stopped

        stopped = await self._run(replica_id, work)
        for vm_uuid in stopped:
            file = Path(f"{self._state_dir}/nvram/{vm_uuid}.fd")
            await asyncio.to_thread(file.unlink, missing_ok=True)
        return bool(stopped)

    async def running_tests(self) -> tuple[str, ...]:
        """See the port."""

        def work(connection: Any) -> tuple[str, ...]:
            active = connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
            facts = [_metadata_of(domain) for domain in active]
            return tuple(sorted({f["replica_id"] for f in facts if f.get("role") == "test"}))

        return await self._run("", work)

    async def test_vm_running(self, replica_id: str) -> bool:
        """See the port."""
        return await self._run(
            replica_id, lambda connection: bool(_tests_of(connection, replica_id))
        )

    async def set_primary_role(self, vm_uuid: str, replica_id: str, *, protected: bool) -> None:
        """See the port. What autostart was is kept in the metadata element itself."""

        def work(connection: Any) -> None:
            domain = _lookup(connection, vm_uuid)
            before = _metadata_of(domain)
            if protected:
                kept = before.get("autostart") or ("yes" if domain.autostart() else "no")
                element = domain_xml.metadata_element(
                    replica_id=replica_id, role="primary", autostart=kept
                )
                _set_metadata(domain, element)
                domain.setAutostart(0)
            elif before.get("role") == "primary":
                _set_metadata(domain, None)
                domain.setAutostart(1 if before.get("autostart") == "yes" else 0)

        await self._run(vm_uuid, work)

    async def start_vm(self, vm_uuid: str) -> bool:
        """Start a VM of this host; False where it was running already."""

        def work(connection: Any) -> bool:
            domain = _lookup(connection, vm_uuid)
            if domain.isActive():
                return False
            domain.create()
            return True

        return await self._run(vm_uuid, work, again=False)

    async def first_since_boot(self) -> bool:
        """See the port: the mark lies where a boot wipes it."""
        return await asyncio.to_thread(_first_mark, self._boot_mark)

    # --- parts ------------------------------------------------------------------------------

    async def _run(self, vm: str, work: Callable[[Any], T], *, again: bool = True) -> T:
        try:
            return await self._connection.run(work, again=again)
        except libvirt.libvirtError as error:
            raise problem_of(error, vm) from error

    def _check_boot_files(self, definition_xml: str) -> None:
        for path in domain_xml.facts_of(definition_xml).boot_files:
            real = os.path.realpath(path)
            if not real.startswith(self._boot_file_directories):
                raise Problem(
                    Reason.BAD_FIELD,
                    f"the VM boots from {path}, which lies in no directory for boot files",
                    field="domain_xml",
                    value=path,
                    remedy="Let it boot from its disk, or put the file on every host below one of "
                    + ", ".join(self._boot_file_directories),
                )
            if not Path(real).is_file():
                raise Problem(
                    Reason.BAD_FIELD,
                    f"the VM boots from {path}, which this host does not have",
                    field="domain_xml",
                    value=path,
                    remedy=f"Copy {path} to this host, under the same path",
                )

    def _fresh_mac(self) -> str:
        return "52:54:00:" + self._randomness.token(3).hex(":")


def _vm(domain: Any) -> Vm:
    xml = domain.XMLDesc(0)
    facts = domain_xml.facts_of(xml)
    running = bool(domain.isActive())
    warnings = []
    if domain.isPersistent() and domain.snapshotNum(libvirt.VIR_DOMAIN_SNAPSHOT_LIST_INTERNAL):
        warnings.append(
            f"{facts.name} has internal snapshots: reverting to one while our checkpoints exist "
            "turns a running VM off"
        )
    return Vm(
        name=facts.name,
        uuid=facts.uuid,
        running=running,
        persistent=bool(domain.isPersistent()),
        autostart=bool(domain.autostart()) if domain.isPersistent() else False,
        disks=tuple(_vm_disk(domain, disk) for disk in facts.disks),
        xml=xml,
        role=facts.role,
        replica_id=facts.replica_id,
        warnings=tuple(warnings),
    )


def _vm_disk(domain: Any, disk: domain_xml.DomainDisk) -> VmDisk:
    size_bytes = 0
    if not left_out(disk) and disk.path and domain_xml.NO_SUCH_DISK not in disk.path:
        try:
            size_bytes = int(domain.blockInfo(disk.target)[0])
        except libvirt.libvirtError as error:
            log.info("size of %s: %s", disk.path, error)
    obstacle = obstacle_of(disk)
    return VmDisk(
        target=disk.target,
        path=disk.path,
        format=disk.format,
        size_bytes=size_bytes,
        refusal=obstacle.refusal if obstacle else "",
        remedy=obstacle.remedy if obstacle else "",
    )


def _metadata_of(domain: Any) -> dict[str, str]:
    try:
        text = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, domain_xml.NAMESPACE)
    except libvirt.libvirtError:
        return {}
    return domain_xml.metadata_attributes(text)


def _set_metadata(domain: Any, element: str | None) -> None:
    flags = libvirt.VIR_DOMAIN_AFFECT_CONFIG
    if domain.isActive():
        flags |= libvirt.VIR_DOMAIN_AFFECT_LIVE
    domain.setMetadata(
        libvirt.VIR_DOMAIN_METADATA_ELEMENT, element, _METADATA_KEY, domain_xml.NAMESPACE, flags
    )


def _tests_of(connection: Any, replica_id: str) -> list[Any]:
    active = connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
    wanted = {"role": "test", "replica_id": replica_id}
    return [domain for domain in active if wanted.items() <= _metadata_of(domain).items()]


def _running_networks(connection: Any) -> tuple[str, ...]:
    found = connection.listAllNetworks(libvirt.VIR_CONNECT_LIST_NETWORKS_ACTIVE)
    return tuple(sorted(network.name() for network in found))


def _undefine(domain: Any) -> None:
    if domain.isActive():
        domain.destroy()
    domain.undefineFlags(
        libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
        | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
        | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    )


def _lookup(connection: Any, vm_uuid: str) -> Any:
    try:
        return connection.lookupByUUIDString(vm_uuid)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            raise unknown_vm(vm_uuid) from error
        raise


def _taken(domain_name: str, uuid: str) -> Problem:
    return Problem(
        Reason.STATE_REFUSES,
        f"this host already has another VM with the name {domain_name} or its UUID",
        field="domain_name",
        value=f"{domain_name} ({uuid})",
        remedy="Rename or undefine that VM (virsh domrename, virsh undefine)",
    )


def _first_mark(path: str) -> bool:
    mark = Path(path)
    mark.parent.mkdir(parents=True, exist_ok=True)
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _write_private(path: str, data: bytes) -> None:
    directory = Path(path).parent
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=directory, delete=False) as file:
        file.write(data)
    Path(file.name).replace(path)
