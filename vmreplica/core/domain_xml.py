"""Domain XML, read and built anew: nothing of a sender's XML reaches libvirt but what is listed.

Pure: files that a definition needs are named for the host to check, never looked at here.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from vmreplica.core.problems import Problem, Reason

NAMESPACE = "https://vmreplica.dev/domain/1"
MAX_XML_BYTES = 1 << 20
NO_SUCH_DISK = "no-such-disk"
"""Directory name, never created, in which a replica's disks are said to lie."""
ET.register_namespace("vmreplica", NAMESPACE)

_TOP = [
    "title",
    "description",
    "genid",
    "memory",
    "currentMemory",
    "maxMemory",
    "vcpu",
    "vcpus",
    "iothreads",
    "cpu",
    "features",
    "clock",
    "on_poweroff",
    "on_reboot",
    "on_crash",
    "pm",
    "sysinfo",
]
_DEVICES = ("controller", "input", "video", "memballoon", "watchdog", "panic")
_DRIVER_ATTRIBUTES = ("discard", "detect_zeroes", "queues", "iothread")
_DISK_PARTS = ("target", "serial", "wwn", "vendor", "product", "boot", "address", "blockio")


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainDisk:
    """One ``<disk>``. ``type``: file, block, network …; ``device``: disk, cdrom, lun, floppy."""

    target: str
    type: str
    device: str = "disk"
    path: str = ""
    format: str = ""
    protocol: str = ""
    readonly: bool = False
    shareable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainCard:
    """One network card; the network it is on at the sender is not taken over."""

    mac: str
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainFacts:
    """What we read from a domain's XML. ``role`` and ``replica_id`` from our metadata."""

    name: str
    uuid: str
    disks: tuple[DomainDisk, ...]
    cards: tuple[DomainCard, ...] = ()
    nvram: str = ""
    tpm: bool = False
    role: str = ""
    replica_id: str = ""
    boot_files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedDisk:
    """A disk of a VM to start: a writable overlay over read-only files, base first."""

    target: str
    overlay: str
    chain: tuple[str, ...]


def parse(xml: str | bytes) -> ET.Element:
    """The tree. :raises Problem: BAD_FIELD: too large, not XML, with entities, not a domain."""
    data = xml.encode() if isinstance(xml, str) else xml
    try:
        if len(data) > MAX_XML_BYTES:
            raise ValueError("larger than 1 MiB")
        if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
            raise ValueError("document type and entities are not allowed")
        root = ET.fromstring(data)  # noqa: S314 - entities and doctypes were refused above
        if root.tag != "domain":
            raise ValueError(f"the root element is {root.tag}, not domain")
    except (ValueError, ET.ParseError) as error:
        raise Problem(
            Reason.BAD_FIELD,
            f"the domain XML cannot be used: {error}",
            field="domain_xml",
            value=data[:80].decode(errors="replace"),
            remedy="Send what libvirt shows for the VM (virsh dumpxml)",
        ) from error
    return root


def facts_of(xml: str | bytes) -> DomainFacts:
    """What replication needs to know of a domain."""
    root = parse(xml)
    ours = root.find(f"metadata/{{{NAMESPACE}}}vm")
    boot = [root.findtext(f"os/{name}", "") for name in ("loader", "kernel", "initrd", "dtb")]
    return DomainFacts(
        name=root.findtext("name", ""),
        uuid=root.findtext("uuid", ""),
        disks=tuple(map(_disk_facts, root.iterfind("devices/disk"))),
        cards=tuple(map(_card_facts, root.iterfind("devices/interface"))),
        nvram=root.findtext("os/nvram", ""),
        tpm=root.find("devices/tpm/backend[@type='emulator']") is not None,
        role=ours.get("role", "") if ours is not None else "",
        replica_id=ours.get("replica_id", "") if ours is not None else "",
        boot_files=tuple(path for path in boot if path),
    )


def replica_xml(
    sender_xml: str | bytes,
    *,
    name: str,
    uuid: str,
    replica_id: str,
    targets: Sequence[str],
    folder: str,
) -> str:
    """The definition of a replica: off, unstartable, its cards disconnected."""
    root = _skeleton(
        sender_xml, name, uuid, replica_id, "replica", f"{folder}/{NO_SUCH_DISK}/nvram"
    )
    devices = _child(root, "devices")
    sent = parse(sender_xml)
    for disk in _disks_of(sent, targets):
        built = _disk(disk)
        ET.SubElement(built, "source", file=f"{folder}/{NO_SUCH_DISK}/{_target(disk)}.qcow2")
        devices.append(built)
    for card in sent.iterfind("devices/interface"):
        devices.append(_card(card, _card_facts(card).mac, ""))
    for _ in sent.findall("devices/serial")[:1]:
        ET.SubElement(devices, "serial", type="pty")
    return _text(root)


def test_xml(
    sender_xml: str | bytes,
    *,
    name: str,
    uuid: str,
    replica_id: str,
    disks: Sequence[StartedDisk],
    macs: Sequence[str],
    networks: Mapping[str, str],
    nvram: str,
    console_log: str,
) -> str:
    """The definition of a running copy: another identity, its disks on overlays.

    :param macs: fresh addresses, one for each card.
    :param networks: card (the sender's MAC, or its place as text) → network; missing = link down.
    :param nvram: file that holds the copied NVRAM; unused where the VM has none.
    """
    root = _skeleton(sender_xml, name, uuid, replica_id, "test", nvram)
    devices = _child(root, "devices")
    sent = parse(sender_xml)
    started = {disk.target: disk for disk in disks}
    for disk in _disks_of(sent, tuple(started)):
        built = _disk(disk)
        _add_chain(built, started[_target(disk)])
        devices.append(built)
    for place, card in enumerate(sent.iterfind("devices/interface")):
        known = _card_facts(card).mac
        network = networks.get(known) or networks.get(str(place)) or ""
        devices.append(_card(card, macs[place], network))
    serial = ET.SubElement(devices, "serial", type="file")
    ET.SubElement(serial, "source", path=console_log, append="on")
    ET.SubElement(serial, "target", port="0")
    return _text(root)


def check_networks(networks: Mapping[str, str], known: Sequence[str]) -> None:
    """:raises Problem: NETWORK_UNKNOWN: a card is to be plugged where nothing runs."""
    unknown = sorted(set(networks.values()) - {"", *known})
    if unknown:
        raise Problem(
            Reason.NETWORK_UNKNOWN,
            f"this host has no running network {', '.join(unknown)}",
            field="networks",
            value=",".join(unknown),
            remedy=f"It has: {', '.join(sorted(known)) or 'none'} (virsh net-list)",
        )


def metadata_element(*, replica_id: str, role: str, autostart: str) -> str:
    """Our metadata element as libvirt's setMetadata takes it (it adds the namespace itself).

    :param autostart: what the VM's own autostart was, ``yes`` or ``no``: given back on removal.
    """
    element = ET.Element("vm", replica_id=replica_id, role=role, autostart=autostart)
    return ET.tostring(element, encoding="unicode")


def metadata_attributes(xml: str) -> dict[str, str]:
    """What our metadata element says; empty where it cannot be read."""
    try:
        return dict(ET.fromstring(xml).attrib)  # noqa: S314 - libvirt's own words
    except ET.ParseError:
        return {}


def portable(xml: str) -> bytes:
    """A primary's XML without what changes by itself at every start."""
    root = parse(xml)
    root.attrib.pop("id", None)
    for element in list(root.iter()):
        for child in list(element):
            if child.tag in ("alias", "seclabel", "resource", "backingStore", "mirror") or (
                element.tag == "interface" and child.tag == "target"
            ):
                element.remove(child)
        if element.tag == "source":
            element.attrib.pop("index", None)
            element.attrib.pop("portid", None)
    return ET.tostring(root)


# --- parts ------------------------------------------------------------------------------------


def _skeleton(
    sender_xml: str | bytes, name: str, uuid: str, replica_id: str, role: str, nvram: str
) -> ET.Element:
    sent = parse(sender_xml)
    kind = sent.get("type", "kvm")
    root = ET.Element("domain", type=kind if kind in ("kvm", "qemu") else "kvm")
    ET.SubElement(root, "name").text = name
    ET.SubElement(root, "uuid").text = uuid
    metadata = ET.SubElement(root, "metadata")
    ET.SubElement(metadata, f"{{{NAMESPACE}}}vm", replica_id=replica_id, role=role)
    for tag in _TOP:
        # A copy is another machine: Windows must see that by its generation id.
        if tag == "genid" and sent.find(tag) is not None:
            ET.SubElement(root, "genid")
            continue
        for element in sent.findall(tag):
            root.append(_clean(element))
    root.append(_os(sent, nvram))
    devices = ET.SubElement(root, "devices")
    for tag in _DEVICES:
        for element in sent.iterfind(f"devices/{tag}"):
            devices.append(_clean(element))
    _add_rebuilt(sent, devices)
    return root


def _add_rebuilt(sent: ET.Element, devices: ET.Element) -> None:
    """Devices whose backend is of the host: made anew from what the guest sees of them."""
    for rng in sent.findall("devices/rng")[:1]:
        built = ET.SubElement(devices, "rng", model=rng.get("model", "virtio"))
        ET.SubElement(built, "backend", model="random").text = "/dev/urandom"
    for tpm in sent.findall("devices/tpm")[:1]:
        backend = tpm.find("backend")
        if backend is not None and backend.get("type") == "emulator":
            built = ET.SubElement(devices, "tpm", model=tpm.get("model", "tpm-crb"))
            ET.SubElement(built, "backend", type="emulator", version=backend.get("version", "2.0"))
    for channel in sent.iterfind("devices/channel"):
        target = channel.find("target")
        if target is not None and target.get("name") == "org.qemu.guest_agent.0":
            built = ET.SubElement(devices, "channel", type="unix")
            ET.SubElement(built, "target", type="virtio", name="org.qemu.guest_agent.0")
    if sent.find("devices/graphics") is not None:
        ET.SubElement(devices, "graphics", type="vnc", autoport="yes", listen="127.0.0.1")


def _os(sent: ET.Element, nvram: str) -> ET.Element:
    source = _child(sent, "os")
    built = ET.Element("os")
    if source.get("firmware") in ("bios", "efi"):
        built.set("firmware", source.get("firmware", ""))
    for element in source:
        if element.tag == "nvram":
            ET.SubElement(built, "nvram").text = nvram
        elif element.tag in ("loader", "kernel", "initrd", "dtb", "cmdline"):
            copied = ET.SubElement(built, element.tag, _plain_attributes(element))
            copied.text = element.text
        elif element.tag in ("type", "boot", "bootmenu", "smbios", "bios", "firmware"):
            built.append(_clean(element))
    return built


def _disk(sent: ET.Element) -> ET.Element:
    built = ET.Element("disk", type="file", device="disk")
    driver = ET.SubElement(built, "driver", name="qemu", type="qcow2")
    old = sent.find("driver")
    if old is not None:
        for name in _DRIVER_ATTRIBUTES:
            if name in old.attrib:
                driver.set(name, old.attrib[name])
    for part in _DISK_PARTS:
        for element in sent.findall(part):
            built.append(_clean(element))
    return built


def _add_chain(disk: ET.Element, started: StartedDisk) -> None:
    disk.append(_source(started.overlay))
    parent = disk
    for file in reversed(started.chain):
        store = ET.SubElement(parent, "backingStore", type="file")
        shape = ET.SubElement(store, "format", type="qcow2")
        # Each open layer would otherwise take up to 32 MiB of tables; one suffices below the top.
        cache = ET.SubElement(shape, "metadata_cache")
        ET.SubElement(cache, "max_size", unit="KiB").text = "1024"
        store.append(_source(file))
        parent = store
    ET.SubElement(parent, "backingStore")


def _source(file: str) -> ET.Element:
    source = ET.Element("source", file=file)
    ET.SubElement(source, "seclabel", model="dac", relabel="no")
    return source


def _card(sent: ET.Element, mac: str, network: str) -> ET.Element:
    built = ET.Element("interface", type="network" if network else "user")
    if mac:
        ET.SubElement(built, "mac", address=mac)
    if network:
        ET.SubElement(built, "source", network=network)
    for tag in ("model", "address", "boot", "mtu"):
        for element in sent.findall(tag):
            if tag != "mtu" or network:
                built.append(_clean(element))
    ET.SubElement(built, "link", state="up" if network else "down")
    return built


def _clean(element: ET.Element) -> ET.Element:
    """A copy without anything that looks like a path of the sender's host, and without aliases."""
    copied = copy.deepcopy(element)
    copied.tail = None
    _strip(copied)
    return copied


def _strip(element: ET.Element) -> None:
    element.attrib = _plain_attributes(element)
    for child in list(element):
        if child.tag in ("alias", "source", "seclabel") or (child.text or "").startswith("/"):
            element.remove(child)
        else:
            _strip(child)


def _plain_attributes(element: ET.Element) -> dict[str, str]:
    return {k: v for k, v in element.attrib.items() if k != "file" and not v.startswith(("/", "{"))}


def _disks_of(root: ET.Element, targets: Sequence[str]) -> list[ET.Element]:
    found = {_target(disk): disk for disk in root.iterfind("devices/disk")}
    missing = [target for target in targets if target not in found]
    if missing:
        raise Problem(
            Reason.BAD_FIELD,
            f"the definition has no disk {', '.join(missing)}",
            field="domain_xml",
            value=",".join(missing),
            remedy="Send the definition that belongs to the disks",
        )
    return [disk for target, disk in found.items() if target in targets]


def _target(disk: ET.Element) -> str:
    target = disk.find("target")
    return target.get("dev", "") if target is not None else ""


def _disk_facts(disk: ET.Element) -> DomainDisk:
    source = disk.find("source")
    driver = disk.find("driver")
    where = source.attrib if source is not None else {}
    return DomainDisk(
        target=_target(disk),
        type=disk.get("type", ""),
        device=disk.get("device", "disk"),
        path=where.get("file") or where.get("dev") or "",
        format=driver.get("type", "") if driver is not None else "",
        protocol=where.get("protocol", ""),
        readonly=disk.find("readonly") is not None,
        shareable=disk.find("shareable") is not None,
    )


def _card_facts(card: ET.Element) -> DomainCard:
    mac, model = card.find("mac"), card.find("model")
    return DomainCard(
        mac=mac.get("address", "") if mac is not None else "",
        model=model.get("type", "") if model is not None else "",
    )


def _child(root: ET.Element, tag: str) -> ET.Element:
    child = root.find(tag)
    return child if child is not None else ET.SubElement(root, tag)


def _text(root: ET.Element) -> str:
    ET.indent(root)
    return ET.tostring(root, encoding="unicode")
