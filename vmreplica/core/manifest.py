"""A replica's manifest: the whole state of its directory at one number.

Manifests are numbered 1, 2, 3 … across all epochs; the highest number is the replica, and what it
does not name does not exist (data-safety §2). Values here; text form in ``manifest_text``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from vmreplica.core.cycle import ZERO_DIGEST, Disk

FORMAT = "vmreplica/1"
RECENT_CYCLE_IDS = 64
MANIFESTS_KEPT = 64


class PointKind(StrEnum):
    """How consistent a point is inside the guest."""

    CRASH_CONSISTENT = "CrashConsistent"
    APPLICATION_CONSISTENT = "ApplicationConsistent"


class PointState(StrEnum):
    """What the scrub knows of a point's bytes."""

    GOOD = "Good"
    DAMAGED = "Damaged"
    UNVERIFIED = "Unverified"


@dataclass(frozen=True, slots=True)
class FileDigest:
    """A small file beside the layers: its name and the BLAKE3-128 of its bytes."""

    file: str
    blake3: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """The definition that belongs to a point; None = the VM has none."""

    xml: FileDigest | None = None
    nvram: FileDigest | None = None
    tpm: FileDigest | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The newest acknowledged cycle; seq 0 = none yet.

    ``parent_digest`` is the digest of the cycle before it: a repeated open must name it.
    """

    seq: int = 0
    cycle_id: bytes = b""
    digest: bytes = ZERO_DIGEST
    time_ms: int = 0
    definition: Definition = Definition()
    parent_digest: bytes = ZERO_DIGEST


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """Marks a sealed segment of a cycle not yet acknowledged: frames below ``frames`` are in."""

    cycle_id: bytes
    frames: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One immutable qcow2 file: what cycles ``from_seq``..``to_seq`` changed on one disk.

    ``size_bytes`` is the disk's size, ``bytes`` what was put into the file: its holes not counted.
    """

    file: str
    target: str
    from_seq: int
    to_seq: int
    size_bytes: int
    bytes: int
    draft: Draft | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """Files somebody has open; never unlinked meanwhile."""

    operation_id: str
    node: str
    incarnation: str
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Overlays of a test or failed-over VM: target → file, written by that VM alone."""

    operation_id: str
    seq: int
    overlays: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryPoint:
    """A kept cycle; ``chain`` = per target the files, base first."""

    seq: int
    time_ms: int
    kind: PointKind = PointKind.CRASH_CONSISTENT
    state: PointState = PointState.UNVERIFIED
    definition: Definition = Definition()
    chain: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One whole state. ``previous`` = BLAKE3-128 of the manifest before (zeros for number 1)."""

    replica_id: str
    vm_uuid: str
    vm_name: str
    domain_name: str
    trust_group: str
    primary_access_point: str
    storage_location: str
    policy: dict[str, int | str | tuple[str, ...]]
    epoch: int
    n: int
    incarnation: str
    disks: tuple[Disk, ...]
    previous: bytes = ZERO_DIGEST
    head: Head = Head()
    recent_cycle_ids: tuple[bytes, ...] = ()
    layers: tuple[Layer, ...] = ()
    pins: tuple[Pin, ...] = ()
    runs: tuple[Run, ...] = ()
    origin: tuple[tuple[str, str], ...] = ()
    tombstone: bool = False
    points: tuple[RecoveryPoint, ...] = ()

    def named_files(self) -> frozenset[str]:
        """Every file of the directory (relative) this manifest vouches for."""
        names = {layer.file for layer in self.layers}
        for point in self.points:
            names.update(_definition_files(point.definition))
            for _, files in point.chain:
                names.update(files)
        names.update(_definition_files(self.head.definition))
        for run in self.runs:
            names.update(file for _, file in run.overlays)
        return frozenset(names)

    def pinned_files(self) -> frozenset[str]:
        """Every file that somebody has open."""
        return frozenset(file for pin in self.pins for file in pin.files)

    def chain(self, target: str) -> tuple[str, ...]:
        """The head's files of one disk, base first; drafts are invisible."""
        layers = [x for x in self.layers if x.target == target and x.draft is None]
        return tuple(x.file for x in sorted(layers, key=lambda x: (x.from_seq, x.to_seq)))


def _definition_files(definition: Definition) -> set[str]:
    parts = (definition.xml, definition.nvram, definition.tpm)
    return {part.file for part in parts if part is not None}
