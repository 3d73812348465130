"""Our checkpoints: their names, and the XML of checkpoints and pull backups.

Every XML lists each disk by name, so that a disk we do not replicate is never touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from vmreplica.core.cycle import CYCLE_ID_BYTES

PREFIX = "vmreplica-"
EXPORT_BITMAP = "vmreplica"


def checkpoint_name(cycle_id: bytes) -> str:
    """``vmreplica-<hex>``; never used twice, as cycle ids are random."""
    return PREFIX + cycle_id.hex()


def cycle_of(name: str) -> bytes | None:
    """The cycle id in a checkpoint's name, None where it is not one of ours."""
    if not name.startswith(PREFIX):
        return None
    try:
        cycle_id = bytes.fromhex(name[len(PREFIX) :])
    except ValueError:
        return None
    return cycle_id if len(cycle_id) == CYCLE_ID_BYTES else None


def checkpoint_xml(cycle_id: bytes, targets: Sequence[str], others: Sequence[str]) -> str:
    """A checkpoint with a bitmap on each of ``targets`` and none on ``others``."""
    root = ET.Element("domaincheckpoint")
    ET.SubElement(root, "name").text = checkpoint_name(cycle_id)
    ET.SubElement(root, "description").text = "vm-replica-broker: base of the next cycle"
    disks = ET.SubElement(root, "disks")
    for target in targets:
        ET.SubElement(disks, "disk", name=target, checkpoint="bitmap")
    for target in others:
        ET.SubElement(disks, "disk", name=target, checkpoint="no")
    return ET.tostring(root, encoding="unicode")


def checkpoint_targets(xml: str) -> frozenset[str]:
    """The disks on which a checkpoint has a bitmap."""
    root = ET.fromstring(xml)  # noqa: S314 - libvirt's own words
    return frozenset(
        disk.get("name", "")
        for disk in root.iterfind("disks/disk")
        if disk.get("checkpoint") == "bitmap"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupDisk:
    """One disk of a pull backup. ``since``: checkpoint name, "" = all of it."""

    target: str
    scratch: str
    since: str = ""


def backup_xml(socket_path: str, disks: Sequence[BackupDisk], others: Sequence[str]) -> str:
    """A pull backup of ``disks`` through a unix socket; ``others`` are left alone."""
    root = ET.Element("domainbackup", mode="pull")
    ET.SubElement(root, "server", transport="unix", socket=socket_path)
    listed = ET.SubElement(root, "disks")
    for disk in disks:
        attributes = {
            "name": disk.target,
            "backup": "yes",
            "type": "file",
            "backupmode": "incremental" if disk.since else "full",
            "exportname": disk.target,
        }
        if disk.since:
            attributes |= {"incremental": disk.since, "exportbitmap": EXPORT_BITMAP}
        element = ET.SubElement(listed, "disk", attributes)
        ET.SubElement(element, "driver", type="qcow2")
        ET.SubElement(element, "scratch", file=disk.scratch)
    for target in others:
        ET.SubElement(listed, "disk", name=target, backup="no")
    return ET.tostring(root, encoding="unicode")


def backup_socket(xml: str) -> str:
    """The unix socket of a running pull backup, "" where it has none."""
    server = ET.fromstring(xml).find("server")  # noqa: S314 - libvirt's own words
    return server.get("socket", "") if server is not None else ""


def scratch_names(vm_uuid: str, cycle_id: bytes, targets: Sequence[str]) -> Mapping[str, str]:
    """Scratch file names; socket name under the empty target. Short: sockets allow 107 bytes."""
    stem = f"vmr-{vm_uuid[:8]}-{cycle_id.hex()[:12]}"
    return {"": f"{stem}.sock"} | {target: f"{stem}-{target}.qcow2" for target in targets}
