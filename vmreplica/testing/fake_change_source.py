"""Model VMs whose changed clusters can be read like those of real ones: a ChangeSource in memory.

No threads and no files, so that it runs in virtual time. A cluster's content is one number,
repeated over its 65,536 bytes; 0 is zeros.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import zstandard

from vmreplica.core.cycle import CLUSTER_BYTES, CycleKind, Disk, Frame
from vmreplica.core.extents import ClusterRun, Extent, cluster_runs
from vmreplica.core.frame_encode import encode_frame
from vmreplica.core.frame_plan import FramePlan
from vmreplica.core.problems import Problem, Reason
from vmreplica.ports.change_source import (
    BackupRequest,
    CapturedDefinition,
    SourceDeferred,
    SourceFailed,
    TrackingLost,
)
from vmreplica.ports.clock import Clock

Content = dict[str, dict[int, int]]


def cluster_of(value: int) -> bytes:
    """The bytes of a cluster that holds this number."""
    return struct.pack(">Q", value) * (CLUSTER_BYTES // 8)


@dataclass
class ModelVm:
    """One VM. ``content``: target → cluster → number, zeros left out."""

    uuid: str
    disks: tuple[Disk, ...]
    content: Content = field(default_factory=dict)
    running: bool = True
    definition: CapturedDefinition = field(
        default_factory=lambda: CapturedDefinition(domain_xml=b"<domain/>")
    )
    trackers: dict[bytes, dict[str, set[int]]] = field(default_factory=dict)
    broken: set[bytes] = field(default_factory=set)
    foreign_job: bool = False
    fail_next_begin: bool = False
    job: FakeBackupJob | None = None
    begun: int = 0

    def write(self, target: str, cluster: int, value: int) -> None:
        """What the guest writes."""
        if value:
            self.content.setdefault(target, {})[cluster] = value
        else:
            self.content.get(target, {}).pop(cluster, None)
        for dirty in self.trackers.values():
            dirty.setdefault(target, set()).add(cluster)

    def snapshot(self) -> Content:
        """A copy of all content."""
        return {target: dict(clusters) for target, clusters in self.content.items()}

    def lose_tracking(self) -> None:
        """As after kill -9 of QEMU: checkpoints are still listed, their bitmaps are not valid."""
        self.broken.update(self.trackers)
        self.end_job()

    def end_job(self) -> None:
        """The job dies: guard, poweroff, QEMU gone."""
        if self.job is not None:
            self.job.dead = True
            self.job = None


class FakeBackupJob:
    """Implements ports.change_source.BackupJob over a snapshot."""

    def __init__(
        self, vm: ModelVm, request: BackupRequest, plan: FramePlan, clock: Clock, frame_ms: float
    ) -> None:
        self._vm = vm
        self._request = request
        self._content = vm.snapshot()
        self._plan = plan
        self._clock = clock
        self._frame_ms = frame_ms
        compress = request.compression != "none"
        self._compressor = zstandard.ZstdCompressor(level=1) if compress else None
        self.point_time_ms = clock.wall_ms()
        self.dead = False
        self.read_all = False
        self.ended = False

    @property
    def frame_count(self) -> int:
        """Frames of the cycle."""
        return self._plan.frame_count

    @property
    def cluster_counts(self) -> tuple[int, ...]:
        """Clusters of each disk."""
        return self._plan.clusters

    @property
    def total_bytes(self) -> int:
        """Plain bytes of data clusters."""
        return self._plan.total_bytes

    async def frames(self, first: int) -> AsyncIterator[Frame]:
        """See the port. Once everything was read frames come out of the spool."""
        for spec in self._plan.frames(first):
            await self._clock.sleep(0 if self.read_all else self._frame_ms)
            if self.dead and not self.read_all:
                raise SourceFailed("the backup job has ended")
            target = self._request.disks[spec.disk].target
            clusters = self._content.get(target, {})
            data = b"".join(
                cluster_of(clusters.get(index, 0))
                for run in spec.runs
                if not run.zero
                for index in range(run.first, run.end)
            )
            yield encode_frame(spec, data, self._compressor)

    async def finish_reading(self) -> None:
        """The hypervisor's job ends; the frames stay."""
        self.read_all = True
        if self._vm.job is self:
            self._vm.job = None

    async def end(self) -> None:
        """See the port."""
        self.ended = True
        if self._vm.job is self:
            self._vm.job = None


class FakeChangeSource:
    """Implements ports.change_source.ChangeSource.

    :param frame_ms: how long reading one frame takes.
    """

    def __init__(self, clock: Clock, *, frame_ms: float = 1.0) -> None:
        self._clock = clock
        self._frame_ms = frame_ms
        self.vms: dict[str, ModelVm] = {}
        self.points: dict[bytes, Content] = {}
        """What each cycle must read back as, by cycle id: the truth that tests compare with."""

    def add(self, vm: ModelVm) -> ModelVm:
        """Put a VM on this host."""
        self.vms[vm.uuid] = vm
        return vm

    async def begin(self, request: BackupRequest) -> FakeBackupJob:
        """See the port."""
        vm = self._vm(request.vm_uuid)
        if not vm.running:
            raise SourceDeferred("the VM is shut off")
        if vm.foreign_job or vm.job is not None:
            raise SourceDeferred("another backup of this VM is running")
        if vm.fail_next_begin:
            vm.fail_next_begin = False
            raise SourceFailed("the backup could not be started")
        delta = request.kind is CycleKind.DELTA
        since = request.since_cycle_id
        if delta and (since in vm.broken or since not in vm.trackers):
            raise TrackingLost("the bitmap of the last cycle is not valid")
        if request.cycle_id in vm.trackers:
            raise SourceFailed("a checkpoint of this name exists")
        plan = FramePlan([self._runs(vm, disk, request) for disk in request.disks])
        job = FakeBackupJob(vm, request, plan, self._clock, self._frame_ms)
        self.points[request.cycle_id] = vm.snapshot()
        vm.trackers[request.cycle_id] = {}
        vm.begun += 1
        vm.job = job
        return job

    def _runs(self, vm: ModelVm, disk: Disk, request: BackupRequest) -> tuple[ClusterRun, ...]:
        content = vm.content.get(disk.target, {})
        full = request.kind is not CycleKind.DELTA
        changed = content if full else vm.trackers[request.since_cycle_id].get(disk.target, ())
        extents = [
            Extent(index * CLUSTER_BYTES, CLUSTER_BYTES, zero=index not in content)
            for index in sorted(changed)
        ]
        return cluster_runs(extents, disk.size_bytes, keep_zeros=not full)

    async def acknowledge(self, vm_uuid: str, acked_cycle_id: bytes) -> None:
        """See the port."""
        vm = self._vm(vm_uuid)
        vm.trackers = {k: v for k, v in vm.trackers.items() if k == acked_cycle_id}
        vm.broken &= set(vm.trackers)

    async def forget(self, vm_uuid: str, cycle_id: bytes) -> None:
        """See the port."""
        self._vm(vm_uuid).trackers.pop(cycle_id, None)

    async def checkpoints(self, vm_uuid: str) -> tuple[bytes, ...]:
        """See the port."""
        return tuple(self._vm(vm_uuid).trackers)

    async def release(self, vm_uuid: str) -> None:
        """See the port."""
        vm = self.vms.get(vm_uuid)
        if vm is not None:
            vm.end_job()
            vm.trackers.clear()
            vm.broken.clear()

    async def recover(self) -> None:
        """See the port."""
        for vm in self.vms.values():
            vm.end_job()

    async def capture_definition(self, vm_uuid: str) -> CapturedDefinition:
        """See the port."""
        return self._vm(vm_uuid).definition

    async def disks(self, vm_uuid: str) -> Sequence[Disk]:
        """See the port."""
        return self._vm(vm_uuid).disks

    def _vm(self, vm_uuid: str) -> ModelVm:
        vm = self.vms.get(vm_uuid)
        if vm is None:
            raise Problem(Reason.UNKNOWN_VM, "no such VM on this host", field="vm", value=vm_uuid)
        return vm
