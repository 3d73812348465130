"""A VM to read changes of, as a model and for real, and what a receiver makes of its frames."""

from __future__ import annotations

import contextlib
import uuid
from pathlib import Path

import libvirt
import zstandard

from node.host.libvirt_change_source import LibvirtChangeSource
from node.host.libvirt_connection import LibvirtConnection
from tests.contract.libvirt_room import LibvirtRoom, TinyVm
from vmreplica.adapters.system_clock import SystemClock
from vmreplica.core.cycle import (
    CLUSTER_BYTES,
    DIGEST_BYTES,
    ZERO_CLUSTER_DIGEST,
    CycleKind,
    Disk,
    Frame,
    digest,
)
from vmreplica.ports.change_source import BackupJob, BackupRequest, ChangeSource
from vmreplica.testing.fake_change_source import FakeChangeSource, ModelVm, cluster_of

MIB = 1 << 20
DISKS = (Disk("vda", 16 * MIB), Disk("vdb", 4 * MIB))
IDS = [bytes([n]) * 16 for n in range(1, 60)]


class QuietGuard:
    """A guard that only remembers."""

    def __init__(self) -> None:
        self.told: list[str] = []

    async def job_begins(self, vm_uuid: str, scratch_paths: tuple[str, ...], abort_at: int) -> None:
        self.told.append(f"begins {len(scratch_paths)} {'aged' if abort_at else 'ageless'}")

    async def job_ended(self, vm_uuid: str) -> None:
        self.told.append("ended")

    def set_deadline(self, boottime_ms: int) -> None: ...
    def register_child(self, pid: int) -> None: ...
    def unregister_child(self, pid: int) -> None: ...
    async def frozen(self, vm_uuid: str, until_boottime_ms: int) -> None: ...
    async def thawed(self, vm_uuid: str) -> None: ...
    def probe_ages_ms(self) -> dict[str, int]:
        return {}


class ModelRoom:
    """The fake."""

    real = False

    def __init__(self) -> None:
        self.source: ChangeSource = FakeChangeSource(SystemClock(), frame_ms=0)
        assert isinstance(self.source, FakeChangeSource)
        self.uuid = "11111111-2222-4333-8444-555555555555"
        self.vm = self.source.add(ModelVm(self.uuid, DISKS))
        self.disks = DISKS
        self.changes = 0

    def write(self, target: str, cluster: int, value: int) -> None:
        self.vm.write(target, cluster, int.from_bytes(bytes([value]) * 8, "big"))

    def truth(self, target: str) -> bytes:
        (disk,) = (d for d in DISKS if d.target == target)
        clusters = self.vm.content.get(target, {})
        return b"".join(cluster_of(clusters.get(i, 0)) for i in range(disk.clusters))

    def lose_tracking(self) -> None:
        self.vm.lose_tracking()

    def begin_foreign_backup(self) -> None:
        self.vm.foreign_job = True

    def end_foreign_backup(self) -> None:
        self.vm.foreign_job = False

    def foreign_backup_runs(self) -> bool:
        return self.vm.foreign_job

    def kill_job(self) -> None:
        self.vm.end_job()

    def stop_vm(self) -> None:
        self.vm.running = False

    def job_open(self) -> bool:
        return self.vm.job is not None


class RealRoom:
    """libvirt and QEMU."""

    real = True

    def __init__(self, room: LibvirtRoom, tmp_path: Path, **options: int) -> None:
        self.room = room
        self.tmp_path = tmp_path
        self.vm = TinyVm(room, f"t{uuid.uuid4().hex[:8]}", {"vda": 16, "vdb": 4})
        self.uuid = self.vm.uuid
        self.guard = QuietGuard()
        self.connection = LibvirtConnection(room.uri)
        self.scratch = room.path / "scratch" / self.vm.name
        self.scratch.mkdir()
        self.source: ChangeSource = LibvirtChangeSource(
            self.connection,
            scratch_dir=str(self.scratch),
            guard=self.guard,
            clock=SystemClock(),
            min_scratch_bytes=MIB,
            **options,
        )
        self.disks = DISKS

    def write(self, target: str, cluster: int, value: int) -> None:
        offset = cluster * CLUSTER_BYTES
        if value:
            self.vm.write(target, offset, CLUSTER_BYTES, value)
        else:
            self.vm.zero(target, offset, CLUSTER_BYTES)

    def truth(self, target: str) -> bytes:
        return self.vm.copy(target, self.tmp_path / f"{target}.raw").read_bytes()

    def lose_tracking(self) -> None:
        self.vm.kill_qemu()
        self.vm.start()

    def begin_foreign_backup(self) -> None:
        self.begin_backup_as("other", self.tmp_path / "foreign.sock")

    def begin_backup_as(self, name: str, socket: Path) -> None:
        """Somebody else's pull backup and checkpoint."""
        with self.room.connection() as connection:
            connection.lookupByUUIDString(self.uuid).backupBegin(
                f"<domainbackup mode='pull'><server transport='unix' socket='{socket}'/><disks>"
                f"<disk name='vda' backup='yes' type='file'><scratch file='{self.tmp_path}/f.qcow2'/>"
                "</disk><disk name='vdb' backup='no'/></disks></domainbackup>",
                f"<domaincheckpoint><name>{name}</name><disks><disk name='vda' checkpoint='bitmap'/>"
                "<disk name='vdb' checkpoint='no'/></disks></domaincheckpoint>",
                0,
            )

    def end_foreign_backup(self) -> None:
        self.kill_job()

    def foreign_backup_runs(self) -> bool:
        return self.job_open()

    def kill_job(self) -> None:
        with self.room.connection() as connection:
            connection.lookupByUUIDString(self.uuid).abortJob()

    def stop_vm(self) -> None:
        with self.room.connection() as connection:
            connection.lookupByUUIDString(self.uuid).destroy()

    def job_open(self) -> bool:
        with self.room.connection() as connection:
            domain = connection.lookupByUUIDString(self.uuid)
            return bool(domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE)

    def checkpoint_names(self) -> set[str]:
        with self.room.connection() as connection:
            listed = connection.lookupByUUIDString(self.uuid).listAllCheckpoints()
            return {checkpoint.getName() for checkpoint in listed}

    def close(self) -> None:
        with contextlib.suppress(libvirt.libvirtError):
            self.vm.remove()
        self.connection.close()


Room = ModelRoom | RealRoom


class Image:
    """What a receiver would hold: frames checked and applied."""

    def __init__(self) -> None:
        self.data = {disk.target: bytearray(disk.size_bytes) for disk in DISKS}
        self.indexes: list[tuple[int, int]] = []

    def apply(self, frame: Frame) -> None:
        target = DISKS[frame.disk].target
        at = 0
        for place, (index, size) in enumerate(zip(frame.indexes, frame.stored_bytes, strict=True)):
            stored = frame.payload[at : at + size]
            at += size
            here = slice(place * DIGEST_BYTES, (place + 1) * DIGEST_BYTES)
            assert digest(stored) == frame.stored_digests[here]
            plain = bytes(CLUSTER_BYTES)
            if size == CLUSTER_BYTES:
                plain = stored
            elif size:
                plain = zstandard.ZstdDecompressor().decompress(stored)
            else:
                assert frame.digests[here] == ZERO_CLUSTER_DIGEST
            assert len(plain) == CLUSTER_BYTES
            assert digest(plain) == frame.digests[here]
            self.data[target][index * CLUSTER_BYTES : (index + 1) * CLUSTER_BYTES] = plain
            self.indexes.append((frame.disk, index))
        assert at == len(frame.payload)


async def begin(room: Room, n: int, *, since: int = -1, compression: str = "zstd") -> BackupJob:
    full = since < 0
    return await room.source.begin(
        BackupRequest(
            vm_uuid=room.uuid,
            kind=CycleKind.FULL if full else CycleKind.DELTA,
            cycle_id=IDS[n],
            since_cycle_id=b"" if full else IDS[since],
            disks=DISKS,
            compression=compression,
        )
    )


async def run(
    room: Room, image: Image, n: int, *, since: int = -1, compression: str = "zstd"
) -> int:
    """One whole acknowledged cycle; how many clusters it had."""
    job = await begin(room, n, since=since, compression=compression)
    image.indexes.clear()
    async for frame in job.frames(0):
        image.apply(frame)
    await job.finish_reading()
    await job.end()
    await room.source.acknowledge(room.uuid, IDS[n])
    assert len(image.indexes) == sum(job.cluster_counts)
    assert image.indexes == sorted(set(image.indexes)), "clusters rise, and come once"
    return len(image.indexes)


def same(room: Room, image: Image) -> None:
    for disk in DISKS:
        assert image.data[disk.target] == room.truth(disk.target), f"{disk.target} differs"
