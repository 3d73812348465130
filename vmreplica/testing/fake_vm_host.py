"""A host's virtual machines in memory: implements ports.vm_host.VmHost for tests and simulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from vmreplica.core import domain_xml
from vmreplica.core.cycle import Disk
from vmreplica.core.problems import Problem, Reason
from vmreplica.ports.vm_host import RunningDisk, Vm, VmDisk


def model_vm(name: str, uuid: str, disks: Sequence[Disk], *, running: bool = True) -> Vm:
    """A running persistent VM with qcow2 disks."""
    files = "".join(
        f"<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>"
        f"<source file='/vm/{name}-{d.target}.qcow2'/><target dev='{d.target}' bus='virtio'/></disk>"
        for d in disks
    )
    xml = (
        f"<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid><memory>131072</memory>"
        f"<os><type arch='x86_64' machine='pc'>hvm</type></os><devices>{files}</devices></domain>"
    )
    return Vm(
        name=name,
        uuid=uuid,
        running=running,
        persistent=True,
        autostart=False,
        disks=tuple(
            VmDisk(
                target=d.target,
                path=f"/vm/{name}-{d.target}.qcow2",
                format="qcow2",
                size_bytes=d.size_bytes,
            )
            for d in disks
        ),
        xml=xml,
    )


@dataclass
class TestVm:
    """A test VM that was started."""

    __test__ = False
    domain_name: str
    vm_uuid: str
    disks: tuple[RunningDisk, ...]
    networks: dict[str, str]
    xml: str
    console_log: str


@dataclass
class FakeVmHost:
    """Implements ports.vm_host.VmHost. ``down``: libvirt does not answer."""

    vms: dict[str, Vm] = field(default_factory=dict)
    tests: dict[str, TestVm] = field(default_factory=dict)
    down: bool = False
    booted: bool = True
    fail_next_test: Problem | None = None
    running_networks: tuple[str, ...] = ("default", "isolated")
    autostarts_kept: dict[str, bool] = field(default_factory=dict)

    def add(self, vm: Vm) -> Vm:
        """Put a VM on this host."""
        self.vms[vm.uuid] = vm
        return vm

    async def list_vms(self) -> tuple[Vm, ...]:
        """See the port."""
        self._answer()
        return tuple(sorted(self.vms.values(), key=lambda vm: vm.name))

    async def get_vm(self, name_or_uuid: str) -> Vm:
        """See the port."""
        self._answer()
        for vm in self.vms.values():
            if name_or_uuid in (vm.uuid, vm.name, vm.replica_id or vm.uuid):
                return vm
        raise Problem(
            Reason.UNKNOWN_VM,
            f"this host has no VM {name_or_uuid}",
            field="vm",
            value=name_or_uuid,
            remedy="List them with: virsh list --all",
        )

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
        """See the port."""
        self._answer()
        xml = domain_xml.replica_xml(
            definition_xml,
            name=domain_name,
            uuid=vm_uuid,
            replica_id=replica_id,
            targets=disks,
            folder=folder,
        )
        self.vms[vm_uuid] = Vm(
            name=domain_name,
            uuid=vm_uuid,
            running=False,
            persistent=True,
            autostart=False,
            disks=(),
            xml=xml,
            role="replica",
            replica_id=replica_id,
        )

    async def undefine_replica(self, replica_id: str) -> None:
        """See the port."""
        self._answer()
        for uuid, vm in list(self.vms.items()):
            if vm.role == "replica" and vm.replica_id == replica_id:
                del self.vms[uuid]

    async def list_replica_ids(self) -> tuple[str, ...]:
        """See the port."""
        self._answer()
        return tuple(sorted(vm.replica_id for vm in self.vms.values() if vm.role == "replica"))

    async def networks(self) -> tuple[str, ...]:
        """See the port."""
        self._answer()
        return self.running_networks

    async def start_test_vm(
        self,
        definition_xml: str,
        *,
        domain_name: str,
        replica_id: str,
        vm_uuid: str,
        disks: Sequence[RunningDisk],
        networks: Mapping[str, str],
        nvram: bytes,  # noqa: ARG002 - nothing to keep it in
        tpm_state: bytes,  # noqa: ARG002
        console_log: str,
    ) -> None:
        """See the port."""
        self._answer()
        if self.fail_next_test is not None:
            problem, self.fail_next_test = self.fail_next_test, None
            raise problem
        cards = domain_xml.facts_of(definition_xml).cards
        xml = domain_xml.test_xml(
            definition_xml,
            name=domain_name,
            uuid=vm_uuid,
            replica_id=replica_id,
            disks=[
                domain_xml.StartedDisk(target=d.target, overlay=d.overlay, chain=d.chain)
                for d in disks
            ],
            macs=[f"52:54:00:ff:00:{i:02x}" for i in range(len(cards))],
            networks=networks,
            nvram="/nvram",
            console_log=console_log,
        )
        self.tests[replica_id] = TestVm(
            domain_name, vm_uuid, tuple(disks), dict(networks), xml, console_log
        )

    async def stop_test_vm(self, replica_id: str) -> bool:
        """See the port."""
        self._answer()
        return self.tests.pop(replica_id, None) is not None

    async def running_tests(self) -> tuple[str, ...]:
        """See the port."""
        self._answer()
        return tuple(sorted(self.tests))

    async def test_vm_running(self, replica_id: str) -> bool:
        """See the port."""
        self._answer()
        return replica_id in self.tests

    async def set_primary_role(self, vm_uuid: str, replica_id: str, *, protected: bool) -> None:
        """See the port."""
        self._answer()
        vm = await self.get_vm(vm_uuid)
        if protected:
            self.autostarts_kept.setdefault(vm_uuid, vm.autostart)
            changed = replace(vm, role="primary", replica_id=replica_id, autostart=False)
        else:
            kept = self.autostarts_kept.pop(vm_uuid, vm.autostart)
            changed = replace(vm, role="", replica_id="", autostart=kept)
        self.vms[vm_uuid] = changed

    async def first_since_boot(self) -> bool:
        """See the port."""
        due, self.booted = self.booted, False
        return due

    async def start_vm(self, vm_uuid: str) -> bool:
        """See the port."""
        vm = await self.get_vm(vm_uuid)
        self.vms[vm_uuid] = replace(vm, running=True)
        return not vm.running

    def _answer(self) -> None:
        if self.down:
            raise Problem(
                Reason.NODE_UNREACHABLE,
                "libvirt does not answer on this host",
                remedy="systemctl status libvirtd",
            )
