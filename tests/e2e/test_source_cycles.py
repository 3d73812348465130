"""The primary role over real libvirt and QEMU, with the other side in memory."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import libvirt
import pytest
import pytest_asyncio

from node.host.libvirt_change_source import LibvirtChangeSource
from node.host.libvirt_connection import LibvirtConnection
from node.host.libvirt_vm_host import LibvirtVmHost
from node.service.replication import PrimaryRole
from tests.contract.libvirt_room import LibvirtRoom, TinyVm, libvirt_room
from tests.support.primary_world import CAP, FAST, Events
from vmreplica.adapters.system_clock import SystemClock
from vmreplica.adapters.system_randomness import SystemRandomness
from vmreplica.coordination.guarded import GuardedWriter
from vmreplica.coordination.store_cache import StoreCache
from vmreplica.core.cycle import CLUSTER_BYTES, CycleKind
from vmreplica.core.keys import Keys
from vmreplica.core.problems import Problem, Reason
from vmreplica.testing.fake_cluster_store import FakeClusterStore
from vmreplica.testing.fake_replica_link import FakeReplicaLink, ModelReplica
from vmreplica.testing.fake_store_server import FakeStoreServer

pytestmark = pytest.mark.needs("root", "libvirt", "qemu")
SPEED = 10


class FastClock(SystemClock):
    """Ten times as fast, so that cycles every 5 s come every half second."""

    def boottime_ms(self) -> int:
        return super().boottime_ms() * SPEED

    async def sleep(self, duration_ms: float) -> None:
        await super().sleep(duration_ms / SPEED)


class ToldGuard:
    def __init__(self) -> None:
        self.jobs: set[str] = set()

    async def job_begins(self, vm_uuid: str, scratch_paths: tuple[str, ...], abort_at: int) -> None:
        self.jobs.add(vm_uuid)

    async def job_ended(self, vm_uuid: str) -> None:
        self.jobs.discard(vm_uuid)

    def set_deadline(self, boottime_ms: int) -> None: ...
    def register_child(self, pid: int) -> None: ...
    def unregister_child(self, pid: int) -> None: ...
    async def frozen(self, vm_uuid: str, until_boottime_ms: int) -> None: ...
    async def thawed(self, vm_uuid: str) -> None: ...
    def probe_ages_ms(self) -> dict[str, int]:
        return {}


class Primary:
    """One host that protects one VM."""

    def __init__(self, room: LibvirtRoom, tmp_path: Path) -> None:
        self.room = room
        self.tmp_path = tmp_path
        self.clock = FastClock()
        self.vm = TinyVm(room, f"e2e-{uuid.uuid4().hex[:6]}", {"vda": 16, "vdb": 4})
        self.guard = ToldGuard()
        self.events = Events()
        self.link = FakeReplicaLink(self.clock)
        self.store = FakeClusterStore(FakeStoreServer())
        self.scratch = room.path / "scratch" / self.vm.name
        self.scratch.mkdir()
        self.boot()

    def boot(self) -> None:
        """A new agent process, as far as it can be told from outside."""
        keys, randomness = Keys("p"), SystemRandomness()
        self.connection = LibvirtConnection(self.room.uri)
        cache = StoreCache(self.store, self.clock, keys.root)
        self.role = PrimaryRole(
            node="p1",
            primary_access_point="p1.example:7444",
            keys=keys,
            cache=cache,
            writer=GuardedWriter(self.store, self.clock, randomness, keys),
            link=self.link,
            source=LibvirtChangeSource(
                self.connection,
                scratch_dir=str(self.scratch),
                guard=self.guard,
                clock=self.clock,
                min_scratch_bytes=1 << 20,
            ),
            host=LibvirtVmHost(
                self.connection,
                randomness,
                state_dir=str(self.tmp_path),
                boot_mark=str(self.tmp_path / "booted"),
            ),
            clock=self.clock,
            randomness=randomness,
            events=self.events,
        )
        self.tasks = [asyncio.ensure_future(cache.run()), asyncio.ensure_future(self.role.run())]

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.connection.close()

    @property
    def replica(self) -> ModelReplica:
        (replica,) = self.link.replicas.values()
        return replica

    async def protect(self) -> None:
        await self.role.enable(self.vm.name, CAP, FAST)
        await self.role.start(self.vm.name)
        await self.until(lambda: self.replica.seq >= 1)

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(40):
            while not true():
                await asyncio.sleep(0.02)

    async def caught_up(self) -> None:
        """A cycle that began after now has been acknowledged, and the replica equals the source.

        The VM is paused and nobody writes, so the newest point is what the disk holds.
        """
        seq = self.replica.seq
        await self.until(lambda: self.replica.seq >= seq + 2)
        for target in self.vm.sizes_mib:
            data = self.vm.copy(target, self.tmp_path / f"{target}.raw").read_bytes()
            held = self.replica.content.get(target, {})
            for index in range(len(data) // CLUSTER_BYTES):
                start = data[index * CLUSTER_BYTES : index * CLUSTER_BYTES + 8]
                assert held.get(index, 0) == int.from_bytes(start, "big"), f"{target} {index}"

    def checkpoints(self) -> list[str]:
        with self.room.connection() as connection:
            domain = connection.lookupByName(self.vm.name)
            return [checkpoint.getName() for checkpoint in domain.listAllCheckpoints()]


@pytest.fixture(scope="module")
def libvirtd() -> Iterator[LibvirtRoom]:
    with libvirt_room() as room:
        yield room


@pytest_asyncio.fixture
async def primary(libvirtd: LibvirtRoom, tmp_path: Path) -> AsyncIterator[Primary]:
    made = Primary(libvirtd, tmp_path)
    yield made
    await made.stop()
    made.vm.remove()


async def test_a_running_vm_through_its_ordinary_life(primary: Primary) -> None:
    for cluster in range(0, 256, 2):
        primary.vm.write("vda", cluster * CLUSTER_BYTES, CLUSTER_BYTES, 1 + cluster % 250)
    await primary.protect()
    primary.vm.write("vda", 7 * CLUSTER_BYTES, CLUSTER_BYTES, 77)
    primary.vm.zero("vda", 8 * CLUSTER_BYTES, CLUSTER_BYTES)
    primary.vm.write("vdb", 9 * CLUSTER_BYTES, CLUSTER_BYTES, 99)
    await primary.caught_up()
    assert set(primary.replica.kinds[1:]) == {CycleKind.DELTA}
    assert max(primary.replica.sizes[1:]) <= 3
    assert primary.replica.definition.startswith(b"<domain")

    await primary.stop()
    primary.vm.write("vdb", 10 * CLUSTER_BYTES, CLUSTER_BYTES, 10)
    primary.boot()
    await primary.caught_up()
    primary.room.restart_libvirtd()
    primary.vm.write("vdb", 11 * CLUSTER_BYTES, CLUSTER_BYTES, 11)
    await primary.caught_up()
    assert set(primary.replica.kinds[1:]) == {CycleKind.DELTA}

    await primary.role.remove(primary.vm.name)
    assert primary.checkpoints() == []
    assert primary.guard.jobs == set()
    assert list(primary.scratch.iterdir()) == []


async def test_a_killed_qemu_resynchronizes_without_a_person(primary: Primary) -> None:
    primary.vm.write("vda", 0, 2 * CLUSTER_BYTES, 5)
    await primary.protect()
    await primary.caught_up()
    primary.vm.kill_qemu()
    await asyncio.sleep(1)
    primary.vm.start()
    primary.vm.write("vda", CLUSTER_BYTES, CLUSTER_BYTES, 6)
    await primary.until(lambda: bool(primary.events.named("resync.completed")))
    await primary.caught_up()
    assert primary.replica.kinds.count(CycleKind.FULL) == 2
    assert primary.replica.kinds[-1] is CycleKind.DELTA
    assert len(primary.checkpoints()) <= 2


async def test_a_clean_stop_and_start_of_the_vm_keeps_deltas(primary: Primary) -> None:
    await primary.protect()
    await primary.caught_up()
    with primary.room.connection() as connection:
        connection.lookupByName(primary.vm.name).destroy()
    await asyncio.sleep(1)
    view = await primary.role.show(primary.vm.name)
    assert "not running" in " ".join(view.health_reasons)
    primary.vm.start()
    primary.vm.write("vda", 0, CLUSTER_BYTES, 6)
    await primary.caught_up()
    assert primary.replica.kinds.count(CycleKind.FULL) == 1


async def test_what_cannot_be_tracked_is_refused_all_at_once(
    primary: Primary, libvirtd: LibvirtRoom
) -> None:
    for name in ("a", "b"):
        (libvirtd.path / name).write_bytes(bytes(1 << 20))
    disks = "".join(
        "<disk type='file' device='disk'><driver name='qemu' type='raw'/>"
        f"<source file='{libvirtd.path}/{name}'/><target dev='{target}' bus='virtio'/></disk>"
        for name, target in (("a", "vda"), ("b", "vdb"))
    )
    with libvirtd.connection() as connection:
        domain = connection.defineXML(
            "<domain type='qemu'><name>rawvm</name><memory unit='MiB'>16</memory>"
            "<os><type arch='x86_64' machine='pc'>hvm</type></os>"
            f"<devices>{disks}</devices></domain>"
        )
        try:
            for running in (False, True):
                with pytest.raises(Problem) as caught:
                    await primary.role.enable("rawvm", CAP, FAST)
                assert caught.value.reason is Reason.DISK_NOT_TRACKABLE
                assert caught.value.value == "vda,vdb"
                assert "qemu-img convert" in caught.value.remedy
                assert ("virsh start" in caught.value.remedy) == (not running)
                if not running:
                    domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
        finally:
            if domain.isActive():
                domain.destroy()
            domain.undefine()
