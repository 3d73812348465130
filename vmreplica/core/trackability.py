"""What of a VM can be tracked and replicated: every obstacle at once, each with its remedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vmreplica.core.domain_xml import DomainDisk
from vmreplica.core.problems import Problem, Reason


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why one disk cannot be replicated, and what a person can do."""

    target: str
    refusal: str
    remedy: str


_LEAVE_OUT = "or leave it out: --disks with the names of the others"


def obstacle_of(disk: DomainDisk) -> Obstacle | None:
    """None where the disk can be tracked. CD-ROMs and read-only disks are not asked about."""
    match disk:
        case DomainDisk(device="lun"):
            text, cure = "is passed through to the guest", "Attach it as a qcow2 image"
        case DomainDisk(shareable=True):
            text, cure = "is shared with other VMs", "Give the VM a disk of its own"
        case DomainDisk(type="network"):
            text, cure = f"lies on the network ({disk.protocol})", "Move it to a qcow2 file"
        case DomainDisk(type="file", format="qcow2") | DomainDisk(type="block", format="qcow2"):
            return None
        case DomainDisk(type="file" | "block", format="raw"):
            text = "is raw, which cannot hold a persistent bitmap"
            cure = (
                f"Shut the VM down and convert it: qemu-img convert -O qcow2 {disk.path or 'DISK'}"
                " NEW.qcow2"
            )
        case DomainDisk(type="file" | "block"):
            text = f"has the format {disk.format or 'unknown'}"
            cure = "Convert it to qcow2 with qemu-img convert"
        case _:
            text, cure = f"is of the type {disk.type}", "Move it to a qcow2 file"
    return Obstacle(disk.target, f"disk {disk.target} {text}", f"{cure}, {_LEAVE_OUT}")


def left_out(disk: DomainDisk) -> bool:
    """Media and read-only disks hold nothing of the VM's own: excluded without asking."""
    return disk.device in ("cdrom", "floppy") or disk.readonly


def chosen_disks(disks: Sequence[DomainDisk], wanted: Sequence[str]) -> tuple[DomainDisk, ...]:
    """The disks to replicate.

    :param wanted: targets a person named; empty = all that are not left out.
    :raises Problem: BAD_FIELD for unknown targets; DISK_NOT_TRACKABLE naming every obstacle.
    """
    own = [disk for disk in disks if not left_out(disk)]
    known = {disk.target for disk in own}
    unknown = [target for target in wanted if target not in known]
    if unknown:
        raise Problem(
            Reason.BAD_FIELD,
            f"the VM has no replicable disk {', '.join(unknown)}",
            field="policy.disks",
            value=",".join(unknown),
            remedy=f"It has: {', '.join(sorted(known)) or 'none'}",
        )
    chosen = tuple(disk for disk in own if not wanted or disk.target in wanted)
    obstacles = [o for o in map(obstacle_of, chosen) if o is not None]
    if obstacles:
        raise Problem(
            Reason.DISK_NOT_TRACKABLE,
            "; ".join(o.refusal for o in obstacles),
            field="disks",
            value=",".join(o.target for o in obstacles),
            remedy="; ".join(f"{o.target}: {o.remedy}" for o in obstacles),
        )
    if not chosen:
        raise Problem(
            Reason.DISK_NOT_TRACKABLE,
            "the VM has no disk that can be replicated",
            field="disks",
            remedy="Give it a qcow2 disk",
        )
    return chosen
