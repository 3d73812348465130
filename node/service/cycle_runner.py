"""One cycle of one VM, from the owner's consent to its acknowledgement.

The order protects the guest: the stream is open and accepted before the point in time begins, the
job at the hypervisor ends with the last extent read, and the old checkpoint goes only after the
acknowledgement.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import zstandard
from blake3 import blake3

from node.service.bandwidth import Bandwidth
from node.service.sender import CycleSender, Progress
from node.service.sender_route import OpenedStream, OwnerRoute
from vmreplica.core.cycle import Acknowledged, CycleClose, CycleKind, CycleOpen, Disk
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.sending import RunningCycleDigest
from vmreplica.ports.change_source import (
    BackupJob,
    BackupRequest,
    CapturedDefinition,
    ChangeSource,
    TrackingLost,
)
from vmreplica.ports.clock import Clock
from vmreplica.ports.randomness import Randomness

MAX_STATE_BYTES = 1 << 20
"""Limit of the NVRAM and the TPM state, each as one zstd frame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """What a cycle is built on."""

    kind: CycleKind
    seq: int
    parent_digest: bytes
    since_cycle_id: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class CyclePlan:
    """One cycle to run."""

    replica_id: str
    vm_uuid: str
    basis: Basis
    cycle_id: bytes
    disks: tuple[Disk, ...]
    compression: str
    frequency_ms: int
    known_definition: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CycleSummary:
    """What ``last_cycle`` shows. Times in ms UTC; ``changed_bytes`` are plain bytes."""

    seq: int
    kind: CycleKind
    begin_time_ms: int
    acked_time_ms: int
    changed_bytes: int
    wire_bytes: int
    latency_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CycleResult:
    """An acknowledged cycle."""

    cycle_id: bytes
    acknowledged: Acknowledged
    summary: CycleSummary
    point_time_ms: int
    definition_digest: str


@dataclass(slots=True)
class RunningCycle:
    """What can be seen of a cycle at work."""

    kind: CycleKind
    progress: Progress = field(default_factory=Progress)
    accepted: bool = False
    """Whether the owner had consented: from then on an outcome can be unknown."""


class CycleRunner:
    """Runs cycles of any VM of this host."""

    def __init__(self, source: ChangeSource, clock: Clock, randomness: Randomness) -> None:
        self._source = source
        self._clock = clock
        self._randomness = randomness

    async def run(
        self,
        plan: CyclePlan,
        route: OwnerRoute,
        bandwidth: Bandwidth,
        running: RunningCycle,
        on_begun: Callable[[], None] = lambda: None,
    ) -> CycleResult:
        """One cycle. On return it is acknowledged and its checkpoint is the new base.

        :raises TrackingLost, SourceDeferred, SourceFailed: of the source.
        :raises Problem, LinkFailed: of the other side; after ``running.accepted`` the outcome may
            be unknown: both checkpoints stay.
        """
        started_ms, begin_time_ms = self._clock.boottime_ms(), self._clock.wall_ms()
        definition = await self._source.capture_definition(plan.vm_uuid)
        changed = definition_digest(definition) != plan.known_definition
        request = _open(plan, definition.domain_xml if changed else b"")
        opened = await route.open(request)
        running.accepted = True
        if isinstance(opened.reply, Acknowledged):
            await opened.stream.cancel()
            raise Problem(Reason.PARENT_MISMATCH, "the owner knows a cycle that was never sent")
        try:
            job = await self._source.begin(_begin(plan))
        except BaseException:
            await opened.stream.cancel()
            raise
        try:
            on_begun()
            running.progress.total_bytes = job.total_bytes
            # NVRAM and TPM state are read as near to the point as can be.
            early = definition.domain_xml
            definition = await self._source.capture_definition(plan.vm_uuid)
            domain_xml_sent = early == definition.domain_xml
            acknowledged = await self._send(
                plan, request, opened, job, definition, route, bandwidth, running.progress
            )
        finally:
            await job.end()
        await self._source.acknowledge(plan.vm_uuid, plan.cycle_id)
        running.progress.done_bytes = running.progress.total_bytes
        return CycleResult(
            cycle_id=plan.cycle_id,
            acknowledged=acknowledged,
            point_time_ms=job.point_time_ms,
            # Changed between open and begin: not sent yet, so it counts as unknown.
            definition_digest=definition_digest(definition) if domain_xml_sent else "",
            summary=CycleSummary(
                seq=plan.basis.seq,
                kind=plan.basis.kind,
                begin_time_ms=begin_time_ms,
                acked_time_ms=self._clock.wall_ms(),
                changed_bytes=running.progress.total_bytes,
                wire_bytes=running.progress.wire_bytes,
                latency_ms=self._clock.boottime_ms() - started_ms,
            ),
        )

    async def _send(
        self,
        plan: CyclePlan,
        request: CycleOpen,
        opened: OpenedStream,
        job: BackupJob,
        definition: CapturedDefinition,
        route: OwnerRoute,
        bandwidth: Bandwidth,
        progress: Progress,
    ) -> Acknowledged:
        changed = definition_digest(definition) != plan.known_definition
        nvram = _small(definition.nvram, "nvram") if changed else b""
        tpm_state = _small(definition.tpm_state, "tpm_state") if changed else b""

        def describe(clusters: int, digest: bytes) -> CycleClose:
            return CycleClose(
                clusters=clusters,
                cycle_digest=digest,
                point_time_ms=job.point_time_ms,
                nvram=nvram,
                tpm_state=tpm_state,
            )

        digest = RunningCycleDigest(
            plan.basis.parent_digest, plan.basis.seq, plan.disks, job.cluster_counts
        )
        sender = CycleSender(
            route,
            job,
            request,
            digest,
            describe,
            clock=self._clock,
            randomness=self._randomness,
            bandwidth=bandwidth,
            frequency_ms=plan.frequency_ms,
            progress=progress,
        )
        acknowledged = await sender.send(opened)
        ours = digest.finish()
        if acknowledged.seq != plan.basis.seq or acknowledged.cycle_digest != ours:
            # Our checkpoint must not become a base: the replica holds something else.
            raise TrackingLost("the acknowledgement names other content than was sent")
        return acknowledged


def definition_digest(definition: CapturedDefinition) -> str:
    """Hex digest over all parts of a definition, to see whether it changed."""
    hasher = blake3()
    for part in (definition.domain_xml, definition.nvram, definition.tpm_state):
        hasher.update(len(part).to_bytes(8, "big") + part)
    return hasher.hexdigest(length=16)


def _open(plan: CyclePlan, domain_xml: bytes) -> CycleOpen:
    return CycleOpen(
        replica_id=plan.replica_id,
        epoch=0,
        seq=plan.basis.seq,
        parent_digest=plan.basis.parent_digest,
        kind=plan.basis.kind,
        disks=plan.disks,
        cycle_id=plan.cycle_id,
        since_cycle_id=plan.basis.since_cycle_id,
        domain_xml=domain_xml,
    )


def _begin(plan: CyclePlan) -> BackupRequest:
    return BackupRequest(
        vm_uuid=plan.vm_uuid,
        kind=plan.basis.kind,
        cycle_id=plan.cycle_id,
        since_cycle_id=plan.basis.since_cycle_id,
        disks=plan.disks,
        compression=plan.compression,
    )


def _small(data: bytes, name: str) -> bytes:
    if not data:
        return b""
    frame = zstandard.ZstdCompressor(level=3).compress(data)
    if len(frame) > MAX_STATE_BYTES:
        raise Problem(
            Reason.BAD_FIELD,
            f"the VM's {name} is larger than 1 MiB",
            field=name,
            value=f"{len(frame)} bytes",
            remedy="Only NVRAM and TPM state up to 1 MiB can be replicated",
        )
    return frame
