"""The next manifest: what each act of a replica's owner changes in the whole state.

Pure functions from the manifest in force to the one to be committed. Numbers, epoch and
incarnation are set here too, so that nothing else has to know how a manifest follows another.
``previous`` is left to the store, which knows the bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from vmreplica.core.cycle import CycleKind, CycleOpen, Disk
from vmreplica.core.manifest import (
    RECENT_CYCLE_IDS,
    Definition,
    Draft,
    Head,
    Layer,
    Manifest,
    Pin,
    PointKind,
    RecoveryPoint,
    Run,
)
from vmreplica.core.records import PolicyRecord, ReplicaRecord


@dataclass(frozen=True, slots=True)
class ReceivedCycle:
    """All that a commit needs of one complete cycle; ``layers`` are this stream's sealed ones."""

    request: CycleOpen
    digest: bytes
    time_ms: int
    kind: PointKind
    layers: tuple[Layer, ...]
    definition: Definition


def policy_of(policy: PolicyRecord) -> dict[str, int | str | tuple[str, ...]]:
    """The policy as a manifest carries it."""
    return {
        "frequency_ms": policy.frequency_ms,
        "compression": policy.compression,
        "route": policy.route,
        "disks": policy.disks,
        "recovery_points": policy.recovery_points,
        "folder": policy.folder,
        "bandwidth_limit_bytes_per_s": policy.bandwidth_limit_bytes_per_s,
    }


def first_manifest(record: ReplicaRecord, epoch: int, incarnation: str) -> Manifest:
    """Manifest 1 of a new replica: its record, and nothing received yet."""
    return Manifest(
        replica_id=record.replica_id,
        vm_uuid=record.vm_uuid,
        vm_name=record.vm_name,
        domain_name=record.domain_name,
        trust_group=record.trust_group,
        primary_access_point=record.primary_access_point,
        storage_location=record.storage_location,
        policy=policy_of(record.policy),
        epoch=epoch,
        n=1,
        incarnation=incarnation,
        disks=tuple(Disk(d.target, d.size_bytes, d.excluded) for d in record.disks),
    )


def next_manifest(manifest: Manifest, epoch: int, incarnation: str) -> Manifest:
    """The same state under the next number, written by this epoch."""
    return replace(manifest, n=manifest.n + 1, epoch=epoch, incarnation=incarnation)


def with_segment(
    manifest: Manifest, cycle_id: bytes, frames: int, layers: Iterable[Layer]
) -> Manifest:
    """Sealed segments become drafts; drafts of any other cycle fall."""
    draft = Draft(cycle_id=cycle_id, frames=frames)
    kept = tuple(x for x in manifest.layers if x.draft is None or x.draft.cycle_id == cycle_id)
    return replace(manifest, layers=kept + tuple(replace(x, draft=draft) for x in layers))


def without_drafts(manifest: Manifest, cycle_id: bytes) -> Manifest:
    """The drafts of one cycle fall (it is sent again from its first frame)."""
    kept = tuple(x for x in manifest.layers if x.draft is None or x.draft.cycle_id != cycle_id)
    return replace(manifest, layers=kept)


def with_cycle(manifest: Manifest, cycle: ReceivedCycle) -> Manifest:
    """The cycle becomes the head and the newest point.

    A FULL cycle stands alone: what it did not send is zero, so the layers before it leave the
    chain, and no delta may be counted from a cycle before it.
    """
    request = cycle.request
    full = request.kind is CycleKind.FULL
    drafts = tuple(
        replace(x, draft=None)
        for x in manifest.layers
        if x.draft is not None and x.draft.cycle_id == request.cycle_id
    )
    before = () if full else tuple(x for x in manifest.layers if x.draft is None)
    recent = (request.cycle_id,) if full else (*manifest.recent_cycle_ids, request.cycle_id)
    sizes = {disk.target: disk.size_bytes for disk in request.disks}
    changed = replace(
        manifest,
        head=Head(
            seq=request.seq,
            cycle_id=request.cycle_id,
            digest=cycle.digest,
            time_ms=cycle.time_ms,
            definition=cycle.definition,
            parent_digest=request.parent_digest,
        ),
        disks=tuple(
            replace(d, size_bytes=sizes.get(d.target, d.size_bytes)) for d in manifest.disks
        ),
        recent_cycle_ids=recent[-RECENT_CYCLE_IDS:],
        layers=before + drafts + cycle.layers,
    )
    return with_head_point(changed, cycle.kind)


def with_head_point(manifest: Manifest, kind: PointKind) -> Manifest:
    """The head as the one kept point (retention of older ones builds on this)."""
    point = RecoveryPoint(
        seq=manifest.head.seq,
        time_ms=manifest.head.time_ms,
        kind=kind,
        definition=manifest.head.definition,
        chain=tuple((d.target, manifest.chain(d.target)) for d in manifest.disks if not d.excluded),
    )
    return replace(manifest, points=(point,))


def with_run(manifest: Manifest, run: Run, pin: Pin) -> Manifest:
    """A test VM's overlays are named and the files below them pinned."""
    return replace(manifest, runs=(*manifest.runs, run), pins=(*manifest.pins, pin))


def without_operation(manifest: Manifest, operation_id: str) -> Manifest:
    """The pins and the overlays of one operation fall."""
    return replace(
        manifest,
        runs=tuple(x for x in manifest.runs if x.operation_id != operation_id),
        pins=tuple(x for x in manifest.pins if x.operation_id != operation_id),
    )


def tombstoned(manifest: Manifest) -> Manifest:
    """The replica's data are to be deleted; nothing is named any more."""
    return replace(
        manifest, tombstone=True, layers=(), points=(), pins=(), runs=(), recent_cycle_ids=()
    )
