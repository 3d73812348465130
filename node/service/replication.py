"""The primary role of a node: protects VMs that run on this host."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from node.service.bandwidth import TokenBucket
from node.service.cycle_runner import CycleRunner
from node.service.replication_boot import BootStarter
from node.service.replication_records import RecordCache, RecordWriter, ReplicationRecords
from node.service.replication_task import ProtectedVm
from node.service.replication_tools import Tools
from node.service.replication_view import ReplicationView, view_of, view_of_record
from node.service.sender_timing import drop
from node.service.transfer_slots import TransferLimits, TransferSlots
from vmreplica.core.cycle import Disk
from vmreplica.core.domain_xml import facts_of
from vmreplica.core.keys import Keys
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.records import DiskRecord, PolicyRecord, ReplicationRecord
from vmreplica.core.replication_state import Input, ReplicationState, ask, standing
from vmreplica.core.schedule import check_frequency
from vmreplica.core.trackability import chosen_disks
from vmreplica.ports.change_source import ChangeSource, SourceDeferred, SourceFailed
from vmreplica.ports.clock import Clock
from vmreplica.ports.event_log import EventLog, Severity
from vmreplica.ports.randomness import Randomness
from vmreplica.ports.replica_link import LinkFailed, NewReplica, ReplicaHead, ReplicaLink
from vmreplica.ports.vm_host import Vm, VmHost

log = logging.getLogger(__name__)
RECOVER_AGAIN_MS = 2_000


@dataclass(frozen=True, slots=True)
class Changed:
    """Answer of a verb. ``operation_id``: what can be watched, "" where nothing runs on."""

    changed: bool
    view: ReplicationView
    operation_id: str = ""


class PrimaryRole:
    """One task per protected VM of this node, and the verbs of people.

    ``vm`` is a VM's name, its libvirt UUID or its replica id. Verbs raise Problem, and StoreError
    where the intent could not be recorded.
    """

    def __init__(
        self,
        *,
        node: str,
        primary_access_point: str,
        keys: Keys,
        cache: RecordCache,
        writer: RecordWriter,
        link: ReplicaLink,
        source: ChangeSource,
        host: VmHost,
        clock: Clock,
        randomness: Randomness,
        events: EventLog,
        limits: Callable[[], TransferLimits] = TransferLimits,
    ) -> None:
        self._node = node
        self._primary_access_point = primary_access_point
        self._host = host
        self._records = ReplicationRecords(cache, writer, keys)
        self._tools = Tools(
            link=link,
            source=source,
            records=self._records,
            runner=CycleRunner(source, clock, randomness),
            slots=TransferSlots(limits),
            link_bucket=TokenBucket(clock, lambda: limits().bandwidth_limit_bytes_per_s),
            limits=limits,
            clock=clock,
            randomness=randomness,
            events=events,
        )
        self._vms: dict[str, ProtectedVm] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._boot = BootStarter(link, host, clock, events, lambda: limits().return_policy)
        self._enabling = asyncio.Lock()
        self._recovered = asyncio.Event()

    async def run(self) -> None:
        """Recover from a predecessor, then protect until cancelled."""
        await self._records.ready()
        await self._recover()
        try:
            for record in self._records.all():
                if record.node == self._node:
                    self._protect(record)
            self._recovered.set()
            await self._boot.start_due([v.record for v in self._vms.values()])
            await asyncio.Event().wait()
        finally:
            await drop(*self._tasks.values())
            self._tasks.clear()

    # --- verbs ------------------------------------------------------------------------------

    async def enable(self, vm: str, to: str, policy: PolicyRecord) -> Changed:
        """Protect a VM: checked here and admitted there; the initial replication waits for start.

        :raises Problem: UNKNOWN_VM, STATE_REFUSES, WRONG_SIDE, DISK_NOT_TRACKABLE, BAD_FIELD,
            NODE_UNREACHABLE, and whatever the other side refuses with.
        """
        check_frequency(policy.frequency_ms)
        await self._recovered.wait()
        async with self._enabling:
            found = await self._host.get_vm(vm)
            known = next((v for v in self._vms.values() if v.record.vm_uuid == found.uuid), None)
            if known is not None:
                return self._enabled_already(known, to)
            disks = _admit_here(found, policy)
            head = await self._create(found, to, policy, disks)
            record = self._record(found, to, policy, disks, head)
            await self._records.save(record)
            await self._host.set_primary_role(found.uuid, head.replica_id, protected=True)
            protected = self._protect(record)
        self._tools.events.write(
            "replication.enabled",
            f"{found.name} is replicated to {to}",
            replica_id=head.replica_id,
            vm_name=found.name,
            data={"to": to, "placement": "; ".join(head.placement_reasons)},
        )
        for warning in found.warnings:
            self._warn(record, warning)
        return self._answer(protected, changed=True)

    async def start(self, vm: str, at_ms: int = 0) -> Changed:
        """Begin the initial replication now, or at a wall time (ms UTC)."""
        protected = await self._find(vm)
        return self._answer(protected, changed=await protected.start(at_ms))

    async def stop_initial(self, vm: str) -> Changed:
        """Give the initial replication up."""
        protected = await self._find(vm)
        return self._answer(protected, changed=await protected.stop_initial())

    async def suspend(self, vm: str) -> Changed:
        """Pause."""
        protected = await self._find(vm)
        return self._answer(protected, changed=await protected.suspend())

    async def resume(self, vm: str) -> Changed:
        """Go on."""
        protected = await self._find(vm)
        return self._answer(protected, changed=await protected.resume())

    async def set(self, vm: str, change: Callable[[PolicyRecord], PolicyRecord]) -> Changed:
        """Change the policy of a protected VM."""
        protected = await self._find(vm)
        policy = change(protected.record.policy)
        check_frequency(policy.frequency_ms)
        for name in ("disks", "folder", "recovery_points"):
            if getattr(policy, name) != getattr(protected.record.policy, name):
                raise Problem(
                    Reason.STATE_REFUSES,
                    f"{name} cannot be changed while {protected.record.vm_name} is replicated",
                    field=f"policy.{name}",
                    value=",".join(policy.disks) if name == "disks" else str(getattr(policy, name)),
                    remedy="Remove the replication and enable it anew with the other value",
                )
        return self._answer(protected, changed=await protected.change(policy))

    async def remove(self, vm: str) -> bool:
        """End the protection on this side; False where there was none."""
        try:
            protected = await self._find(vm)
        except Problem as problem:
            if problem.reason is not Reason.STATE_REFUSES:
                raise
            return False
        record = protected.record
        await protected.remove()
        await drop(self._tasks.pop(record.replica_id))
        del self._vms[record.replica_id]
        try:
            await self._host.set_primary_role(record.vm_uuid, record.replica_id, protected=False)
        except Problem as problem:
            if problem.reason is not Reason.UNKNOWN_VM:
                raise
        self._tools.events.write(
            "replication.removed",
            f"{record.vm_name} is not replicated any more; its replica stays as it is",
            replica_id=record.replica_id,
            vm_name=record.vm_name,
        )
        return True

    async def show(self, vm: str) -> ReplicationView:
        """One VM's replication."""
        return view_of(await self._find(vm), self._tools.clock)

    def list(self) -> tuple[ReplicationView, ...]:
        """Every protected VM of this node."""
        clock = self._tools.clock
        return tuple(view_of(self._vms[key], clock) for key in sorted(self._vms))

    def list_elsewhere(self) -> tuple[ReplicationView, ...]:
        """What the records say of VMs that other nodes of this cluster protect."""
        return tuple(view_of_record(r) for r in self._records.all() if r.node != self._node)

    def default_policy(self) -> PolicyRecord:
        """What a policy is where nothing is said."""
        return PolicyRecord(frequency_ms=self._tools.limits().default_frequency_ms)

    # --- parts ------------------------------------------------------------------------------

    async def _recover(self) -> None:
        while True:
            try:
                await self._tools.source.recover()
                return
            except (Problem, SourceFailed, SourceDeferred) as error:
                log.warning("this host's VMs cannot be asked yet: %s", error)
            await self._tools.clock.sleep(RECOVER_AGAIN_MS)

    def _protect(self, record: ReplicationRecord) -> ProtectedVm:
        protected = ProtectedVm(self._tools, record)
        self._vms[record.replica_id] = protected
        self._tasks[record.replica_id] = asyncio.ensure_future(protected.run())
        return protected

    async def _find(self, vm: str) -> ProtectedVm:
        await self._recovered.wait()
        fits = [
            v
            for v in self._vms.values()
            if vm in (v.record.vm_name, v.record.vm_uuid, v.record.replica_id)
        ]
        if len(fits) == 1:
            return fits[0]
        if fits:
            raise Problem(
                Reason.AMBIGUOUS_NAME,
                f"{vm} fits {len(fits)} VMs",
                field="vm",
                value=vm,
                remedy="Use one of the ids: " + ", ".join(v.record.replica_id for v in fits),
            )
        found = await self._host.get_vm(vm)
        _check_side(found)
        raise Problem(
            Reason.STATE_REFUSES,
            f"{found.name} is not replicated.",
            field="state",
            value=ReplicationState.NOT_ENABLED.value,
            remedy=f"Enable it first: vmrctl replication enable {found.name} --to HOST:PORT",
        )

    def _enabled_already(self, known: ProtectedVm, to: str) -> Changed:
        if known.record.replica_access_point != to:
            raise Problem(
                Reason.STATE_REFUSES,
                f"{known.record.vm_name} is already replicated to "
                f"{known.record.replica_access_point}",
                field="to",
                value=to,
                remedy=f"First: vmrctl replication remove {known.record.vm_name}",
            )
        ask(known.standing, Input.ENABLE, known.record.vm_name)
        return self._answer(known, changed=False)

    def _answer(self, protected: ProtectedVm, *, changed: bool) -> Changed:
        view = view_of(protected, self._tools.clock)
        return Changed(changed, view, view.operation_id)

    async def _create(
        self, vm: Vm, to: str, policy: PolicyRecord, disks: tuple[DiskRecord, ...]
    ) -> ReplicaHead:
        definition = await self._tools.source.capture_definition(vm.uuid)
        request = NewReplica(
            vm_uuid=vm.uuid,
            vm_name=vm.name,
            disks=tuple(Disk(d.target, d.size_bytes, d.excluded) for d in disks),
            domain_xml=definition.domain_xml,
            primary_access_point=self._primary_access_point,
            frequency_ms=policy.frequency_ms,
            folder=policy.folder,
            recovery_points=policy.recovery_points,
        )
        try:
            return await self._tools.link.create_replica(to, request, self._tools.randomness.uuid())
        except LinkFailed as error:
            raise Problem(
                Reason.NODE_UNREACHABLE,
                f"{to} cannot be reached: {error}",
                field="to",
                value=to,
                remedy=f"Check the way there: vmrctl connection test {to}",
            ) from error

    def _record(
        self,
        vm: Vm,
        to: str,
        policy: PolicyRecord,
        disks: tuple[DiskRecord, ...],
        head: ReplicaHead,
    ) -> ReplicationRecord:
        ready = ask(standing(ReplicationState.NOT_ENABLED), Input.ENABLE, vm.name).state
        return ReplicationRecord(
            replica_id=head.replica_id,
            vm_uuid=vm.uuid,
            vm_name=vm.name,
            node=self._node,
            primary_access_point=self._primary_access_point,
            replica_access_point=to,
            trust_group=head.trust_group,
            state=ready.value,
            policy=policy,
            disks=disks,
            autostart=vm.autostart,
        )

    def _warn(self, record: ReplicationRecord, warning: str) -> None:
        self._tools.events.write(
            "replication.state_changed",
            warning,
            severity=Severity.WARNING,
            replica_id=record.replica_id,
            vm_name=record.vm_name,
        )


def _check_side(vm: Vm) -> None:
    if vm.role in ("replica", "test"):
        raise Problem(
            Reason.WRONG_SIDE,
            f"{vm.name} is a {vm.role} here; its primary runs on the other side",
            field="vm",
            value=vm.name,
            remedy="Ask at the client access point of the side where the VM runs",
        )


def _admit_here(vm: Vm, policy: PolicyRecord) -> tuple[DiskRecord, ...]:
    """The VM's disks for the record. :raises Problem: all that stands in the way, at once."""
    _check_side(vm)
    found: list[Problem] = []
    if not vm.persistent:
        found.append(
            Problem(
                Reason.STATE_REFUSES,
                f"{vm.name} is transient: it would vanish with its process",
                field="vm",
                value=vm.name,
                remedy=f"Define it first: virsh dumpxml {vm.name} > F; virsh define F",
            )
        )
    if not vm.running:
        found.append(
            Problem(
                Reason.STATE_REFUSES,
                f"{vm.name} is shut off, and only running VMs can be tracked",
                field="vm",
                value=vm.name,
                remedy=f"Start it first: virsh start {vm.name}",
            )
        )
    disks: tuple[DiskRecord, ...] = ()
    try:
        disks = _disks(vm, policy)
    except Problem as problem:
        found.append(problem)
    if not found:
        return disks
    # The last speaks of disks where it can: the most particular reason names the whole.
    raise Problem(
        found[-1].reason,
        "; ".join(problem.message for problem in found),
        field=found[-1].field,
        value=found[-1].value,
        remedy="; ".join(problem.remedy for problem in found),
    )


def _disks(vm: Vm, policy: PolicyRecord) -> tuple[DiskRecord, ...]:
    facts = facts_of(vm.xml)
    chosen = {disk.target for disk in chosen_disks(facts.disks, policy.disks)}
    return tuple(
        DiskRecord(
            target=disk.target, size_bytes=disk.size_bytes, excluded=disk.target not in chosen
        )
        for disk in vm.disks
        if disk.target in chosen or disk.size_bytes
    )
