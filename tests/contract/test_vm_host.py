"""The contract of ports.vm_host: the fake and real libvirt show each fact; then the hook."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import libvirt
import pytest
import pytest_asyncio

from node.host.hook_installer import HookInstaller
from node.host.libvirt_connection import LibvirtConnection
from node.host.libvirt_vm_host import LibvirtVmHost
from tests.contract.libvirt_room import LibvirtRoom, TinyVm, libvirt_room, qemu_img
from vmreplica.adapters.system_randomness import SystemRandomness
from vmreplica.core.cycle import Disk
from vmreplica.core.problems import Problem, Reason
from vmreplica.ports.vm_host import RunningDisk, VmHost
from vmreplica.testing.fake_vm_host import FakeVmHost, model_vm

CARD = "<interface type='user'><mac address='52:54:00:aa:bb:01'/><model type='virtio'/></interface>"
HOOK = Path(__file__).parents[2] / "node/host/50-vmreplica"
real = pytest.mark.needs("root", "libvirt", "qemu")


@pytest.fixture(scope="module")
def libvirtd() -> Iterator[LibvirtRoom]:
    with libvirt_room() as room:
        yield room


class Host:
    """A VmHost with one VM of its own."""

    def __init__(self, host: VmHost, name: str, vm_uuid: str, xml: str) -> None:
        self.host = host
        self.name = name
        self.uuid = vm_uuid
        self.xml = xml
        self.replica_id = str(uuid.uuid4())
        self.replica_uuid = str(uuid.uuid4())

    async def define(self, name: str = "copy", **changes: str) -> None:
        await self.host.define_replica(
            self.xml,
            domain_name=name,
            vm_uuid=changes.get("vm_uuid", self.replica_uuid),
            replica_id=changes.get("replica_id", self.replica_id),
            disks=["vda", "vdb"],
            folder="/store/folder.1",
        )


@pytest_asyncio.fixture(params=["fake", pytest.param("libvirt", marks=real)])
async def host(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Host]:
    if request.param == "fake":
        fake = FakeVmHost()
        vm = fake.add(model_vm("tiny", str(uuid.uuid4()), [Disk("vda", 1 << 20), Disk("vdb", 512)]))
        yield Host(fake, "tiny", vm.uuid, vm.xml)
        return
    room = request.getfixturevalue("libvirtd")
    tiny = TinyVm(room, "tiny", {"vda": 16, "vdb": 4}, devices=CARD)
    connection = LibvirtConnection(room.uri)
    yield Host(_real(connection, tmp_path), "tiny", tiny.uuid, tiny.xml)
    connection.close()
    _clear(room, keep=())


def _real(connection: LibvirtConnection, tmp_path: Path) -> LibvirtVmHost:
    return LibvirtVmHost(connection, SystemRandomness(), state_dir=str(tmp_path))


def _clear(room: LibvirtRoom, keep: tuple[str, ...]) -> None:
    with room.connection() as connection:
        for domain in connection.listAllDomains(0):
            if domain.name() in keep:
                continue
            persistent = domain.isPersistent()
            if domain.isActive():
                domain.destroy()
            if persistent:
                domain.undefine()
    for file in (room.path / "disks").iterdir():
        file.unlink()


async def test_vms_are_found_by_name_and_uuid(host: Host) -> None:
    by_name = await host.host.get_vm(host.name)
    assert by_name.uuid == host.uuid
    assert by_name.running
    assert by_name.persistent
    assert [d.target for d in by_name.disks] == ["vda", "vdb"]
    assert all(d.size_bytes > 0 and not d.refusal for d in by_name.disks)
    assert (await host.host.get_vm(host.uuid)).name == host.name
    assert [vm.name for vm in await host.host.list_vms()] == [host.name]
    with pytest.raises(Problem) as caught:
        await host.host.get_vm("nobody")
    assert caught.value.reason is Reason.UNKNOWN_VM


async def test_a_replica_is_defined_off_and_undefined(host: Host) -> None:
    await host.define()
    await host.define()
    replica = await host.host.get_vm("copy")
    assert (replica.role, replica.replica_id) == ("replica", host.replica_id)
    assert not replica.running
    assert not replica.autostart
    assert await host.host.list_replica_ids() == (host.replica_id,)
    root = ET.fromstring(replica.xml)
    files = [s.get("file", "") for s in root.iterfind("devices/disk/source")]
    assert files == [f"/store/folder.1/no-such-disk/{t}.qcow2" for t in ("vda", "vdb")]
    assert (await host.host.get_vm(host.replica_id)).name == "copy"
    await host.host.undefine_replica(host.replica_id)
    await host.host.undefine_replica(host.replica_id)
    assert await host.host.list_replica_ids() == ()
    assert (await host.host.get_vm(host.name)).running


async def test_the_primary_role_takes_autostart_and_gives_it_back(host: Host) -> None:
    for _ in range(2):
        await host.host.set_primary_role(host.uuid, host.replica_id, protected=True)
    vm = await host.host.get_vm(host.name)
    assert (vm.role, vm.replica_id, vm.autostart) == ("primary", host.replica_id, False)
    assert await host.host.list_replica_ids() == ()
    await host.host.set_primary_role(host.uuid, host.replica_id, protected=False)
    vm = await host.host.get_vm(host.name)
    assert (vm.role, vm.replica_id) == ("", "")


async def test_start_vm_of_a_running_one_does_nothing(host: Host) -> None:
    assert not await host.host.start_vm(host.uuid)


async def test_a_test_vm_that_does_not_run(host: Host) -> None:
    assert not await host.host.test_vm_running(host.replica_id)
    assert not await host.host.stop_test_vm(host.replica_id)


# --- libvirt alone ----------------------------------------------------------------------------


@pytest_asyncio.fixture
async def rig(
    libvirtd: LibvirtRoom, tmp_path: Path
) -> AsyncIterator[tuple[Host, LibvirtRoom, TinyVm]]:
    tiny = TinyVm(libvirtd, "tiny", {"vda": 16, "vdb": 4}, devices=CARD)
    connection = LibvirtConnection(libvirtd.uri)
    yield Host(_real(connection, tmp_path), "tiny", tiny.uuid, tiny.xml), libvirtd, tiny
    connection.close()
    _clear(libvirtd, keep=())


@real
async def test_libvirt_itself_refuses_to_start_a_replica(
    rig: tuple[Host, LibvirtRoom, TinyVm],
) -> None:
    host, room, _ = rig
    await host.define()
    with room.connection() as connection:
        domain = connection.lookupByName("copy")
        with pytest.raises(libvirt.libvirtError, match="no-such-disk"):
            domain.create()
        states = [link.get("state") for link in _xml(domain).iterfind("devices/interface/link")]
    assert states == ["down"]


@real
async def test_names_and_uuids_of_others_are_refused(
    rig: tuple[Host, LibvirtRoom, TinyVm],
) -> None:
    host, _, _ = rig
    for name, vm_uuid in (("tiny", host.replica_uuid), ("copy", host.uuid)):
        with pytest.raises(Problem) as caught:
            await host.define(name, vm_uuid=vm_uuid)
        assert caught.value.reason is Reason.STATE_REFUSES
    await host.define("first")
    await host.define("renamed")
    names = [vm.name for vm in await host.host.list_vms()]
    assert names == ["renamed", "tiny"]


@real
async def test_autostart_is_remembered_in_the_domain(
    rig: tuple[Host, LibvirtRoom, TinyVm], tmp_path: Path
) -> None:
    host, room, _ = rig
    with room.connection() as connection:
        connection.lookupByName("tiny").setAutostart(1)
    await host.host.set_primary_role(host.uuid, host.replica_id, protected=True)
    room.restart_libvirtd()
    await host.host.set_primary_role(host.uuid, host.replica_id, protected=True)
    assert not (await host.host.get_vm("tiny")).autostart
    await host.host.set_primary_role(host.uuid, host.replica_id, protected=False)
    assert (await host.host.get_vm("tiny")).autostart


@real
async def test_a_test_vm_reads_its_whole_chain(
    rig: tuple[Host, LibvirtRoom, TinyVm], tmp_path: Path
) -> None:
    host, room, _ = rig
    disks = [
        _layers(room.path / "disks", target, size) for target, size in (("vda", 16), ("vdb", 4))
    ]
    _isolated_network(room, "lonely")
    vm_uuid = str(uuid.uuid4())
    await host.host.start_test_vm(
        host.xml,
        domain_name="tiny - Test",
        replica_id=host.replica_id,
        vm_uuid=vm_uuid,
        disks=disks,
        networks={"52:54:00:aa:bb:01": "lonely"},
        nvram=b"",
        tpm_state=b"",
        console_log=str(tmp_path / "console.log"),
    )
    assert await host.host.test_vm_running(host.replica_id)
    assert await host.host.running_tests() == (host.replica_id,)
    vm = await host.host.get_vm("tiny - Test")
    assert (vm.role, vm.persistent) == ("test", False)
    root = ET.fromstring(vm.xml)
    (mac,) = (m.get("address") for m in root.iterfind("devices/interface/mac"))
    assert mac != "52:54:00:aa:bb:01"
    (source,) = (s.get("network") for s in root.iterfind("devices/interface/source"))
    assert source == "lonely"
    with room.connection() as connection:
        domain = connection.lookupByName("tiny - Test")
        for layer in range(3):
            assert _reads(domain, "virtio-disk0", layer * 65_536, layer + 1)
            assert _reads(domain, "virtio-disk1", layer * 65_536, layer + 1)
    assert (tmp_path / "console.log").exists()
    assert await host.host.stop_test_vm(host.replica_id)
    assert not await host.host.test_vm_running(host.replica_id)


@real
async def test_unknown_networks_and_forbidden_boot_files(
    rig: tuple[Host, LibvirtRoom, TinyVm], tmp_path: Path
) -> None:
    host, _, _ = rig

    async def start(xml: str, networks: dict[str, str]) -> Reason:
        with pytest.raises(Problem) as caught:
            await host.host.start_test_vm(
                xml, domain_name="t", replica_id=host.replica_id, vm_uuid=str(uuid.uuid4()),
                disks=[], networks=networks, nvram=b"", tpm_state=b"",
                console_log=str(tmp_path / "c"),
            )  # fmt: skip
        assert caught.value.remedy
        return caught.value.reason

    assert await start(host.xml, {"0": "nowhere"}) is Reason.NETWORK_UNKNOWN
    assert "nowhere" not in await host.host.networks()
    for path in ("/etc/shadow", "/boot/../etc/shadow", "/boot/vmlinuz-that-is-not-there"):
        stolen = host.xml.replace("</os>", f"<kernel>{path}</kernel></os>")
        assert await start(stolen, {}) is Reason.BAD_FIELD


@real
async def test_the_hook_refuses_what_is_held(
    rig: tuple[Host, LibvirtRoom, TinyVm], tmp_path: Path
) -> None:
    host, room, _ = rig
    connection = LibvirtConnection(room.uri)
    pid_file = tmp_path / "pid"
    pid_file.write_text(str(room._libvirtd()))
    installer = HookInstaller(
        connection,
        SystemRandomness(),
        script=HOOK,
        hooks_dir=room.path / "etc-libvirt/hooks",
        held_file=room.path / "held",
        libvirtd_pid_file=pid_file,
    )
    assert not await installer.proven()
    assert await installer.install()
    assert not await installer.install()
    await installer.hold(host.uuid, "failed over to the other side")
    with room.connection() as plain:
        domain = plain.lookupByUUIDString(host.uuid)
        domain.destroy()
        with pytest.raises(libvirt.libvirtError, match=r"vmreplica: tiny .*failed over"):
            domain.create()
        await installer.let_go(host.uuid)
        assert await installer.held() == {}
        domain.create()
    connection.close()


def _xml(domain: libvirt.virDomain) -> ET.Element:
    return ET.fromstring(domain.XMLDesc(0))


def _layers(directory: Path, target: str, size_mib: int) -> RunningDisk:
    """Three layers, each with one cluster of its own, whose headers name no backing file."""
    files = []
    for layer in range(3):
        file = directory / f"layer-{target}-{layer}.qcow2"
        qemu_img("create", "-q", "-f", "qcow2", str(file), f"{size_mib}M")
        qemu_io(file, f"write -P {layer + 1} {layer * 65536} 65536")
        file.chmod(0o444)
        files.append(str(file))
    overlay = directory / f"overlay-{target}.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", str(overlay), f"{size_mib}M")
    return RunningDisk(target=target, overlay=str(overlay), chain=tuple(files))


def qemu_io(file: Path, command: str) -> None:
    import subprocess

    done = subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", command, str(file)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def _reads(domain: libvirt.virDomain, device: str, offset: int, pattern: int) -> bool:
    import libvirt_qemu

    answer: str = libvirt_qemu.qemuMonitorCommand(
        domain,
        f'qemu-io -d /machine/peripheral/{device}/virtio-backend "read -P {pattern} {offset} 65536"',
        libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP,
    )
    return "failed" not in answer


def _isolated_network(room: LibvirtRoom, name: str) -> None:
    with room.connection() as connection:
        connection.networkCreateXML(
            f"<network><name>{name}</name><bridge name='vmrl0' stp='off' delay='0'/></network>"
        )
