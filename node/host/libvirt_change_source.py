"""Changed blocks of running VMs by libvirt's checkpoints and pull backups.

The guest comes first: the guard knows of each job before it begins, scratch has room before it
begins, jobs and checkpoints of others are left alone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import libvirt

from node.host import checkpoint as ck
from node.host.libvirt_backup_job import LibvirtBackupJob
from node.host.libvirt_connection import LibvirtConnection, problem_of, unknown_vm
from node.host.libvirt_definition import read_nvram, read_tpm_state
from node.host.nbd_reader import NbdExport
from node.host.spool import free_bytes, remove_quietly
from vmreplica.core.cycle import CycleKind, Disk
from vmreplica.core.domain_xml import facts_of, portable
from vmreplica.core.frame_plan import FramePlan
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.trackability import left_out
from vmreplica.ports.change_source import (
    BackupRequest,
    CapturedDefinition,
    SourceDeferred,
    SourceFailed,
    TrackingLost,
)
from vmreplica.ports.clock import Clock
from vmreplica.ports.guard import Guard

log = logging.getLogger(__name__)
T = TypeVar("T")
_PAUSE = threading.Event()  # never set: a pause for worker threads
DELTA_AGE_MS = 60_000
MIN_SCRATCH_BYTES = 2 << 30
SPOOL_LIMIT_BYTES = 4 << 30
"""Changes beyond this are read as they are sent, like an initial replication."""
_LOST = (libvirt.VIR_ERR_CHECKPOINT_INCONSISTENT, libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT)
_LATER = (
    libvirt.VIR_ERR_OPERATION_TIMEOUT,
    libvirt.VIR_ERR_RESOURCE_BUSY,
    libvirt.VIR_ERR_BLOCK_COPY_ACTIVE,
)


class LibvirtChangeSource:
    """Implements ports.change_source.ChangeSource.

    :param scratch_dir: on a file system of its own; scratch, sockets and spool of our jobs lie
        here, and a job whose socket lies here is ours.
    """

    def __init__(
        self,
        connection: LibvirtConnection,
        *,
        scratch_dir: str,
        guard: Guard,
        clock: Clock,
        min_scratch_bytes: int = MIN_SCRATCH_BYTES,
        spool_limit_bytes: int = SPOOL_LIMIT_BYTES,
        delta_age_ms: int = DELTA_AGE_MS,
        swtpm_dir: str = "/var/lib/libvirt/swtpm",
    ) -> None:
        self._connection = connection
        self._scratch_dir = scratch_dir.rstrip("/")
        self._guard = guard
        self._clock = clock
        self._min_scratch_bytes = min_scratch_bytes
        self._spool_limit_bytes = spool_limit_bytes
        self._delta_age_ms = delta_age_ms
        self._swtpm_dir = swtpm_dir
        self._last_bytes: dict[str, int] = {}
        self._encoders = ThreadPoolExecutor(
            max(2, os.cpu_count() or 2), thread_name_prefix="vmreplica-encode"
        )

    async def begin(self, request: BackupRequest) -> LibvirtBackupJob:
        """See the port. A caller that is cancelled leaves no job behind."""
        beginning = asyncio.ensure_future(self._begin(request))
        try:
            return await asyncio.shield(beginning)
        except asyncio.CancelledError:
            result = (await asyncio.gather(beginning, return_exceptions=True))[0]
            if isinstance(result, LibvirtBackupJob):
                await result.end()
            raise

    async def acknowledge(self, vm_uuid: str, acked_cycle_id: bytes) -> None:
        """See the port."""
        await self._run(
            vm_uuid, lambda domain: _delete_checkpoints(domain, keep=acked_cycle_id), again=True
        )

    async def forget(self, vm_uuid: str, cycle_id: bytes) -> None:
        """See the port."""
        await self._run(
            vm_uuid, lambda domain: _delete_checkpoints(domain, only=cycle_id), again=True
        )

    async def checkpoints(self, vm_uuid: str) -> tuple[bytes, ...]:
        """See the port."""
        return await self._run(
            vm_uuid, lambda domain: tuple(cycle for cycle, _ in _ours(domain)), again=True
        )

    async def release(self, vm_uuid: str) -> None:
        """See the port."""

        def work(domain: Any) -> None:
            self._abort_ours(domain)
            _delete_checkpoints(domain)

        try:
            await self._run(vm_uuid, work, again=True)
        except Problem as problem:
            if problem.reason is not Reason.UNKNOWN_VM:
                raise
        await self._guard.job_ended(vm_uuid)

    async def recover(self) -> None:
        """See the port. Also removes what a predecessor left in the scratch directory."""

        def work(connection: Any) -> list[str]:
            active = connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
            return [domain.name() for domain in active if self._abort_ours(domain)]

        for name in await self._connection.run(work):
            log.warning("ended the backup of %s that a predecessor left behind", name)
        await asyncio.to_thread(self._clean_scratch)

    async def capture_definition(self, vm_uuid: str) -> CapturedDefinition:
        """See the port."""
        xml = await self._run(
            vm_uuid,
            lambda domain: str(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_MIGRATABLE)),
            again=True,
        )
        facts = facts_of(xml)
        nvram = await asyncio.to_thread(read_nvram, facts.nvram) if facts.nvram else b""
        tpm = (
            await asyncio.to_thread(read_tpm_state, self._swtpm_dir, vm_uuid) if facts.tpm else b""
        )
        return CapturedDefinition(domain_xml=portable(xml), nvram=nvram, tpm_state=tpm)

    async def disks(self, vm_uuid: str) -> Sequence[Disk]:
        """See the port: media and read-only disks are not among them."""

        def work(domain: Any) -> tuple[Disk, ...]:
            facts = facts_of(domain.XMLDesc(0))
            return tuple(
                Disk(disk.target, int(domain.blockInfo(disk.target)[0]))
                for disk in facts.disks
                if not left_out(disk)
            )

        return await self._run(vm_uuid, work, again=True)

    # --- begin ------------------------------------------------------------------------------

    async def _begin(self, request: BackupRequest) -> LibvirtBackupJob:
        vm = request.vm_uuid
        delta = request.kind is CycleKind.DELTA
        others = await self._run(vm, lambda d: self._look(d, request), again=True)
        self._check_room(vm)
        targets = [disk.target for disk in request.disks]
        names = ck.scratch_names(vm, request.cycle_id, targets)
        paths = {target: f"{self._scratch_dir}/{name}" for target, name in names.items()}
        scratch = tuple(path for target, path in paths.items() if target)
        limit_ms = self._delta_age_ms if delta else 0
        abort_at = self._clock.boottime_ms() + limit_ms if limit_ms else 0
        await self._guard.job_begins(vm, scratch, abort_at)
        try:
            tracked = await self._run(
                vm, lambda d: self._begin_backup(d, request, paths, others), again=False
            )
        except BaseException:
            await self._close(vm, request, paths)
            raise
        point_time_ms = self._clock.wall_ms()
        exports = [
            NbdExport(
                paths[""],
                disk.target,
                disk.size_bytes,
                bitmap=ck.EXPORT_BITMAP if disk.target in tracked else "",
            )
            for disk in request.disks
        ]
        try:
            plan = await asyncio.to_thread(_plan, exports, delta)
        except BaseException:
            for export in exports:
                await asyncio.to_thread(export.close)
            await self._close(vm, request, paths)
            await self._forget_quietly(vm, request.cycle_id)
            raise
        spooled = delta and plan.total_bytes <= self._spool_limit_bytes
        if delta and not spooled:
            # Reading this much takes longer than a delta may: it is treated like a full one.
            await self._guard.job_begins(vm, scratch, 0)
        self._last_bytes[vm] = plan.total_bytes if delta else 0
        return LibvirtBackupJob(
            exports,
            plan,
            self._encoders,
            self._clock,
            compress=request.compression != "none",
            point_time_ms=point_time_ms,
            spool_directory=self._scratch_dir if spooled else None,
            close_job=lambda: self._close(vm, request, paths),
            age_limit_ms=limit_ms if spooled else 0,
        )

    def _look(self, domain: Any, request: BackupRequest) -> tuple[str, ...]:
        """In a thread: may a backup begin now? The VM's other disks."""
        if domain.state()[0] not in (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_PAUSED):
            raise SourceDeferred("the VM is not running; its disks can be read when it runs again")
        self._abort_ours(domain)
        if domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE:
            raise SourceDeferred("another backup or a migration of this VM is running")
        wanted = {disk.target for disk in request.disks}
        present = [disk.target for disk in facts_of(domain.XMLDesc(0)).disks]
        return tuple(target for target in present if target not in wanted)

    def _check_room(self, vm_uuid: str) -> None:
        needed = max(self._min_scratch_bytes, 2 * self._last_bytes.get(vm_uuid, 0))
        free = free_bytes(self._scratch_dir)
        if free < needed:
            raise SourceDeferred(
                f"scratch {self._scratch_dir} has {free >> 20} MiB free and needs {needed >> 20} MiB"
            )

    def _begin_backup(
        self,
        domain: Any,
        request: BackupRequest,
        paths: dict[str, str],
        others: Sequence[str],
    ) -> frozenset[str]:
        """In a thread. :returns: the disks whose changes are known; the others go in full."""
        tracked: frozenset[str] = frozenset()
        since = ""
        targets = [disk.target for disk in request.disks]
        try:
            if request.since_cycle_id:
                since = ck.checkpoint_name(request.since_cycle_id)
                base = domain.checkpointLookupByName(since)
                tracked = ck.checkpoint_targets(base.getXMLDesc(0)) & set(targets)
            backup = ck.backup_xml(
                paths[""],
                [
                    ck.BackupDisk(
                        target=target, scratch=paths[target], since=since * (target in tracked)
                    )
                    for target in targets
                ],
                others,
            )
            domain.backupBegin(backup, ck.checkpoint_xml(request.cycle_id, targets, others), 0)
        except libvirt.libvirtError as error:
            code = error.get_error_code()
            if code in _LOST:
                raise TrackingLost(
                    f"the bitmap of the last cycle is not usable: {error}"
                ) from error
            if code in _LATER:
                raise SourceDeferred(f"the VM is busy: {error}") from error
            raise SourceFailed(f"the backup could not be started: {error}") from error
        return tracked

    # --- endings ----------------------------------------------------------------------------

    async def _close(self, vm_uuid: str, request: BackupRequest, paths: dict[str, str]) -> None:
        """End the job at the hypervisor, whoever else may have done so; free the scratch."""
        try:
            await self._run(vm_uuid, lambda d: self._abort_ours(d, paths[""]), again=True)
        except Problem as problem:
            if problem.reason is not Reason.UNKNOWN_VM:
                raise
        await self._guard.job_ended(vm_uuid)
        for path in paths.values():
            await asyncio.to_thread(remove_quietly, path)
        log.debug("backup %s of %s ended", request.cycle_id.hex(), vm_uuid)

    async def _forget_quietly(self, vm_uuid: str, cycle_id: bytes) -> None:
        try:
            await self.forget(vm_uuid, cycle_id)
        except (Problem, SourceFailed) as error:
            log.warning("checkpoint %s stays for now: %s", cycle_id.hex(), error)

    def _abort_ours(self, domain: Any, socket_path: str = "") -> bool:
        """End a running backup if it is ours; True if there was one."""
        try:
            socket = ck.backup_socket(domain.backupGetXMLDesc(0))
        except libvirt.libvirtError:
            return False
        if not socket.startswith(socket_path or self._scratch_dir + "/vmr-"):
            return False
        try:
            domain.abortJob()
        except libvirt.libvirtError as error:
            log.info("abortJob: %s", error)
        # An aborted job takes a moment to go, and would defer the next cycle meanwhile.
        _wait_until_idle(domain)
        return True

    def _clean_scratch(self) -> None:
        for pattern in ("vmr-*.qcow2", "vmr-*.sock"):
            for path in Path(self._scratch_dir).glob(pattern):
                remove_quietly(str(path))

    async def _run(self, vm_uuid: str, work: Callable[[Any], T], *, again: bool) -> T:
        """``work(domain)`` in a thread. :raises Problem: of libvirt and of the connection."""
        try:
            return await self._connection.run(lambda c: work(_lookup(c, vm_uuid)), again=again)
        except libvirt.libvirtError as error:
            raise problem_of(error, vm_uuid) from error


def _plan(exports: Sequence[NbdExport], delta: bool) -> FramePlan:
    return FramePlan([export.runs(keep_zeros=delta) for export in exports])


def _ours(domain: Any) -> list[tuple[bytes, Any]]:
    """Our checkpoints with their cycle ids, oldest first."""
    listed = domain.listAllCheckpoints(libvirt.VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL)
    found = [(ck.cycle_of(checkpoint.getName()), checkpoint) for checkpoint in listed]
    return [(cycle_id, checkpoint) for cycle_id, checkpoint in found if cycle_id is not None]


def _delete_checkpoints(domain: Any, *, keep: bytes = b"", only: bytes = b"") -> None:
    for cycle_id, checkpoint in _ours(domain):
        if cycle_id == keep or (only and cycle_id != only):
            continue
        try:
            checkpoint.delete(0)
        except libvirt.libvirtError as error:
            # Its bitmap is gone or broken, or the VM is off: the record of it must go anyway.
            log.info("checkpoint %s: %s; deleting its metadata", checkpoint.getName(), error)
            checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)


def _wait_until_idle(domain: Any) -> None:
    for _ in range(40):
        if domain.jobInfo()[0] == libvirt.VIR_DOMAIN_JOB_NONE:
            return
        _PAUSE.wait(0.05)


def _lookup(connection: Any, vm_uuid: str) -> Any:
    try:
        return connection.lookupByUUIDString(vm_uuid)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            raise unknown_vm(vm_uuid) from error
        raise
