"""Domain XML is rebuilt from an allow-list; what can be tracked is said with remedies."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from vmreplica.core.domain_xml import (
    NAMESPACE,
    DomainDisk,
    StartedDisk,
    facts_of,
    metadata_attributes,
    metadata_element,
    portable,
    replica_xml,
    test_xml,
)
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.trackability import chosen_disks, left_out, obstacle_of

test_xml.__test__ = False  # type: ignore[attr-defined]

SENDER = f"""
<domain type='kvm' id='7' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>guest1</name><uuid>1b6f0f6e-1111-4222-8333-444444444444</uuid>
  <genid>aaaaaaaa-1111-4222-8333-444444444444</genid>
  <metadata><vmreplica:vm xmlns:vmreplica='{NAMESPACE}' replica_id='old' role='primary'/>
    <app:x xmlns:app='http://app'>keep out</app:x></metadata>
  <memory unit='KiB'>131072</memory><vcpu placement='static'>2</vcpu>
  <os firmware='efi'><type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader>
    <nvram template='/usr/share/OVMF/OVMF_VARS.fd'>/var/lib/libvirt/qemu/nvram/guest1.fd</nvram>
    <kernel>/boot/guest/vmlinuz</kernel><initrd>/boot/guest/initrd</initrd>
    <cmdline>console=ttyS0</cmdline><boot dev='hd'/></os>
  <features><acpi/><apic/></features><cpu mode='host-passthrough'/>
  <clock offset='utc'><timer name='rtc' tickpolicy='catchup'/></clock>
  <on_reboot>restart</on_reboot>
  <devices>
    <emulator>/evil/qemu</emulator>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none' discard='unmap'/>
      <source file='/vm/a.qcow2' index='2'><seclabel model='dac' relabel='no'/></source>
      <backingStore/><target dev='vda' bus='virtio'/><serial>A1</serial><alias name='virtio-disk0'/>
      <address type='pci' domain='0x0000' bus='0x04' slot='0x00' function='0x0'/></disk>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
      <source file='/vm/b.qcow2'/><target dev='vdb' bus='virtio'/></disk>
    <disk type='file' device='cdrom'><source file='/iso/x.iso'/><target dev='sda' bus='sata'/>
      <readonly/></disk>
    <controller type='pci' index='0' model='pcie-root'><alias name='pcie.0'/></controller>
    <interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br0'/>
      <target dev='vnet0'/><model type='virtio'/><link state='up'/></interface>
    <interface type='direct'><mac address='52:54:00:00:00:02'/><source dev='eth1' mode='bridge'/>
      <model type='e1000'/></interface>
    <serial type='file'><source path='/var/log/guest1.log'/></serial>
    <channel type='unix'><source mode='bind' path='/run/x.sock'/>
      <target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>
    <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
    <graphics type='vnc' port='5901' listen='0.0.0.0' passwd='secret'/>
    <rng model='virtio'><backend model='random'>/dev/random</backend></rng>
    <filesystem type='mount'><source dir='/etc'/><target dir='x'/></filesystem>
    <hostdev mode='subsystem' type='pci'/>
    <memballoon model='virtio'/>
  </devices>
  <seclabel type='dynamic' model='apparmor'/>
  <qemu:commandline><qemu:arg value='-evil'/></qemu:commandline>
</domain>
"""
TARGETS = ("vda", "vdb")


def replica() -> ET.Element:
    return ET.fromstring(
        replica_xml(
            SENDER, name="guest1 (abc)", uuid="u-u", replica_id="r-1", targets=TARGETS,
            folder="/store/r-1.inc",
        )
    )  # fmt: skip


def running_copy(networks: dict[str, str] | None = None) -> ET.Element:
    return ET.fromstring(
        test_xml(
            SENDER, name="guest1 - Test", uuid="t-t", replica_id="r-1",
            disks=[StartedDisk(target=t, overlay=f"/o/{t}", chain=(f"/l/{t}0", f"/l/{t}1"))
                   for t in TARGETS],
            macs=["52:54:00:99:00:01", "52:54:00:99:00:02"], networks=networks or {},
            nvram="/state/nvram/t-t.fd", console_log="/runs/console.log",
        )
    )  # fmt: skip


def test_facts() -> None:
    facts = facts_of(SENDER)
    assert (facts.name, facts.role, facts.replica_id) == ("guest1", "primary", "old")
    assert [d.target for d in facts.disks] == ["vda", "vdb", "sda"]
    assert facts.disks[0].path == "/vm/a.qcow2"
    assert [c.mac for c in facts.cards] == ["52:54:00:00:00:01", "52:54:00:00:00:02"]
    assert facts.tpm
    assert facts.nvram == "/var/lib/libvirt/qemu/nvram/guest1.fd"
    assert set(facts.boot_files) == {
        "/usr/share/OVMF/OVMF_CODE.fd", "/boot/guest/vmlinuz", "/boot/guest/initrd",
    }  # fmt: skip


@pytest.mark.parametrize("root", [replica(), running_copy()], ids=["replica", "test"])
def test_nothing_of_the_senders_host_comes_through(root: ET.Element) -> None:
    text = ET.tostring(root, encoding="unicode")
    for word in (
        "evil", "commandline", "/vm/", "/iso", "/var/log", "/run/x", "br0", "eth1", "vnet0",
        "keep out", "secret", "0.0.0.0", "apparmor", "hostdev", "filesystem", "spice", "alias",
        "/dev/random<", "aaaaaaaa-1111", "sda", "guest1.fd",
    ):  # fmt: skip
        assert word not in text, word
    allowed = {
        "/usr/share/OVMF/OVMF_CODE.fd", "/boot/guest/vmlinuz", "/boot/guest/initrd",
        "/dev/urandom",
    }  # fmt: skip
    ours = ("/store/r-1.inc/", "/o/", "/l/", "/state/", "/runs/")
    for element in root.iter():
        for value in (*element.attrib.values(), element.text or ""):
            if value.startswith("/"):
                assert value in allowed or value.startswith(ours), value


def test_a_replica_cannot_start_and_keeps_its_shape() -> None:
    root = replica()
    assert root.findtext("name") == "guest1 (abc)"
    assert root.findtext("uuid") == "u-u"
    files = [s.get("file") for s in root.iterfind("devices/disk/source")]
    assert files == [f"/store/r-1.inc/no-such-disk/{t}.qcow2" for t in TARGETS]
    assert [link.get("state") for link in root.iterfind("devices/interface/link")] == ["down"] * 2
    macs = [m.get("address") for m in root.iterfind("devices/interface/mac")]
    assert macs == ["52:54:00:00:00:01", "52:54:00:00:00:02"]
    assert root.find("os").get("firmware") == "efi"  # type: ignore[union-attr]
    assert root.findtext("os/kernel") == "/boot/guest/vmlinuz"
    assert root.findtext("os/cmdline") == "console=ttyS0"
    ours = root.find(f"metadata/{{{NAMESPACE}}}vm")
    assert ours is not None and ours.attrib == {"replica_id": "r-1", "role": "replica"}
    disk = root.find("devices/disk")
    assert disk is not None and disk.findtext("serial") == "A1"
    assert disk.find("driver").get("discard") == "unmap"  # type: ignore[union-attr]
    assert disk.find("address").get("bus") == "0x04"  # type: ignore[union-attr]
    assert root.find("genid") is not None
    facts = facts_of(ET.tostring(root))
    assert facts.tpm


def test_a_test_vm_is_another_machine_on_explicit_chains() -> None:
    root = running_copy({"52:54:00:00:00:01": "lonely"})
    assert root.findtext("uuid") == "t-t"
    macs = [m.get("address") for m in root.iterfind("devices/interface/mac")]
    assert macs == ["52:54:00:99:00:01", "52:54:00:99:00:02"]
    cards = root.findall("devices/interface")
    assert [c.get("type") for c in cards] == ["network", "user"]
    assert [c.find("link").get("state") for c in cards] == ["up", "down"]  # type: ignore[union-attr]
    assert root.findtext("os/nvram") == "/state/nvram/t-t.fd"
    (log,) = (s.get("path") for s in root.iterfind("devices/serial/source"))
    assert log == "/runs/console.log"
    for disk, target in zip(root.iterfind("devices/disk"), TARGETS, strict=True):
        assert disk.find("source").get("file") == f"/o/{target}"  # type: ignore[union-attr]
        files, store = [], disk.find("backingStore")
        while store is not None and store.find("source") is not None:
            files.append(store.find("source").get("file"))  # type: ignore[union-attr]
            assert store.find("format").get("type") == "qcow2"  # type: ignore[union-attr]
            assert store.find("format/metadata_cache/max_size") is not None
            assert store.find("source/seclabel").get("relabel") == "no"  # type: ignore[union-attr]
            store = store.find("backingStore")
        assert files == [f"/l/{target}1", f"/l/{target}0"]
        assert store is not None and not list(store), "the chain ends explicitly"


def test_a_card_can_be_named_by_its_place() -> None:
    cards = running_copy({"1": "lonely"}).findall("devices/interface")
    assert [c.get("type") for c in cards] == ["user", "network"]


@pytest.mark.parametrize(
    "xml",
    [
        "", "<domain>", "<network/>", "<!DOCTYPE x><domain/>",
        "<!DOCTYPE d [<!ENTITY a 'aa'>]><domain>&a;</domain>", "<domain/>" + " " * (1 << 20),
    ],
)  # fmt: skip
def test_bad_xml(xml: str) -> None:
    with pytest.raises(Problem) as caught:
        facts_of(xml)
    assert (caught.value.reason, caught.value.field) == (Reason.BAD_FIELD, "domain_xml")


def test_a_definition_without_the_disks() -> None:
    with pytest.raises(Problem, match="vdz"):
        replica_xml(SENDER, name="n", uuid="u", replica_id="r", targets=["vdz"], folder="/f")


def test_portable_is_stable_and_idempotent() -> None:
    first = portable(SENDER)
    restarted = SENDER.replace("id='7'", "id='8'").replace("index='2'", "index='5'")
    restarted = restarted.replace("vnet0", "vnet3").replace("virtio-disk0", "virtio-disk9")
    assert portable(restarted) == first
    assert portable(first.decode()) == first
    assert facts_of(first) == facts_of(SENDER)


def test_metadata() -> None:
    text = metadata_element(replica_id="r", role="primary", autostart="yes")
    assert metadata_attributes(text) == {"replica_id": "r", "role": "primary", "autostart": "yes"}
    assert metadata_attributes("<broken") == {}


QCOW2 = DomainDisk(target="vda", type="file", path="/a", format="qcow2")


@pytest.mark.parametrize(
    ("disk", "words"),
    [
        (QCOW2, ""),
        (DomainDisk(target="v", type="block", path="/dev/vg/lv", format="qcow2"), ""),
        (DomainDisk(target="v", type="file", path="/a", format="raw"), "raw"),
        (DomainDisk(target="v", type="block", path="/dev/vg/lv", format="raw"), "raw"),
        (DomainDisk(target="v", type="file", path="/a", format="vmdk"), "vmdk"),
        (DomainDisk(target="v", type="file", path="/a"), "unknown"),
        (DomainDisk(target="v", type="network", protocol="rbd", format="raw"), "rbd"),
        (DomainDisk(target="v", type="block", device="lun", format="raw"), "passed through"),
        (DomainDisk(target="v", type="volume", format="qcow2"), "volume"),
        (DomainDisk(target="v", type="nvme"), "nvme"),
        (DomainDisk(target="v", type="file", format="qcow2", shareable=True), "shared"),
    ],
)
def test_what_can_be_tracked(disk: DomainDisk, words: str) -> None:
    obstacle = obstacle_of(disk)
    assert (obstacle is None) == (not words)
    if obstacle is not None:
        assert words in obstacle.refusal
        assert "--disks" in obstacle.remedy


def test_every_obstacle_at_once_and_leaving_out() -> None:
    raw = DomainDisk(target="vdb", type="file", path="/b", format="raw")
    shared = DomainDisk(target="vdc", type="file", format="qcow2", shareable=True)
    medium = DomainDisk(target="sda", type="file", device="cdrom", format="raw")
    fixed = DomainDisk(target="vdd", type="file", format="raw", readonly=True)
    disks = (QCOW2, raw, shared, medium, fixed)
    with pytest.raises(Problem) as caught:
        chosen_disks(disks, ())
    assert caught.value.value == "vdb,vdc"
    assert "vdb" in caught.value.remedy and "vdc" in caught.value.remedy
    assert chosen_disks(disks, ("vda",)) == (QCOW2,)
    assert [left_out(d) for d in disks] == [False, False, False, True, True]
    for wanted in (("vdz",), ("sda",)):
        with pytest.raises(Problem) as caught:
            chosen_disks(disks, wanted)
        assert caught.value.reason is Reason.BAD_FIELD
    with pytest.raises(Problem) as caught:
        chosen_disks((medium,), ())
    assert caught.value.reason is Reason.DISK_NOT_TRACKABLE
