"""Names that people and clients give: VMs, domain names, folders, nodes, disks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from vmreplica.core.problems import Problem, Reason

UUID_PATTERN = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_FOLDER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._ -]{0,99}")
_TARGET = re.compile(r"[a-z][a-z0-9]{0,15}")
MAX_VM_NAME = 200


@dataclass(frozen=True, slots=True)
class Named:
    """A VM as it can be asked for."""

    replica_id: str
    vm_uuid: str
    vm_name: str


def pick(vm: str, matching: Sequence[Named]) -> Named | None:
    """The one VM meant by ``vm`` (name, vm_uuid or replica_id); None where none fits.

    A replica id wins over a UUID, a UUID over a name.
    :raises Problem: AMBIGUOUS_NAME with the ids of all that fit.
    """
    ranks: tuple[Callable[[Named], str], ...] = (
        lambda n: n.replica_id,
        lambda n: n.vm_uuid,
        lambda n: n.vm_name,
    )
    for name_of in ranks:
        found = {n.replica_id: n for n in matching if name_of(n) == vm}
        if len(found) > 1:
            ids = ", ".join(sorted(found))
            raise Problem(
                Reason.AMBIGUOUS_NAME,
                f"{vm!r} fits more than one VM: {ids}.",
                field="vm",
                value=vm,
                remedy="Name it by one of these replica ids.",
            )
        if found:
            return next(iter(found.values()))
    return None


def domain_name(vm_name: str, replica_id: str, taken: Iterable[str]) -> str:
    """The replica's libvirt domain name: the VM's, or with the id's first 8 where it is taken."""
    if vm_name in taken or f"{vm_name} - Test" in taken:
        return f"{vm_name} ({replica_id[:8]})"
    return vm_name


def folder_name(custom: str, replica_id: str, incarnation: str) -> str:
    """The replica's directory below its storage location; for good."""
    return f"{custom or replica_id}.{incarnation}"


def check_folder(custom: str) -> None:
    """A folder name given by a person. :raises Problem: BAD_FIELD."""
    if custom and not _FOLDER.fullmatch(custom):
        raise Problem(
            Reason.BAD_FIELD,
            f"{custom!r} cannot name a folder.",
            field="folder",
            value=custom,
            remedy="Up to 100 letters, digits, spaces, dots, dashes and underscores, "
            "the first a letter, digit or underscore.",
        )


def check_vm(vm_uuid: str, vm_name: str) -> None:
    """Identity of a VM. :raises Problem: BAD_FIELD."""
    if not UUID_PATTERN.fullmatch(vm_uuid):
        raise Problem(
            Reason.BAD_FIELD,
            f"{vm_uuid!r} is no UUID.",
            field="vm_uuid",
            value=vm_uuid,
            remedy="Give the libvirt UUID in lower case with dashes.",
        )
    bad = not vm_name or len(vm_name) > MAX_VM_NAME or "/" in vm_name
    if bad or not vm_name.isprintable():
        raise Problem(
            Reason.BAD_FIELD,
            f"{vm_name[:80]!r} cannot name a VM.",
            field="vm_name",
            value=vm_name[:80],
            remedy=f"1 to {MAX_VM_NAME} printable characters without a slash.",
        )


def check_disks(disks: Sequence[tuple[str, int, bool]]) -> None:
    """Disks as (target, size in bytes, excluded). :raises Problem: BAD_FIELD."""

    def refuse(message: str, value: object, remedy: str) -> Problem:
        return Problem(Reason.BAD_FIELD, message, field="disks", value=str(value), remedy=remedy)

    targets = [target for target, _, _ in disks]
    for target, size, _ in disks:
        if not _TARGET.fullmatch(target):
            raise refuse(f"{target!r} is no disk target.", target, "Give names such as vda.")
        if targets.count(target) > 1:
            raise refuse(f"Disk {target} is named twice.", target, "Name each disk once.")
        if size <= 0 or size % 512 or size > 1 << 60:
            raise refuse(
                f"Disk {target} cannot have {size} bytes.", size, "Give a multiple of 512."
            )
    if not any(not excluded for _, _, excluded in disks):
        raise refuse("No disk is left to replicate.", len(disks), "Include at least one disk.")


def has_glob(text: str) -> bool:
    """Whether a name holds a wildcard."""
    return any(c in text for c in "*?[")
