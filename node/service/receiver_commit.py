"""The end of a cycle: sealed, named, committed, and only then acknowledged (data-safety §4)."""

from __future__ import annotations

from node.service.replica_actor import ReplicaActor, Session
from node.service.replica_cycle import IncomingCycle
from node.service.replica_parts import ReplicaParts
from vmreplica.core.cycle import Acknowledged, CycleClose, CycleKind, CycleOpen
from vmreplica.core.manifest import Definition, PointKind
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.receiving import ReplicaPosition, check_open
from vmreplica.core.receiving_manifest import ReceivedCycle, with_cycle


async def commit_cycle(
    parts: ReplicaParts,
    actor: ReplicaActor,
    session: Session,
    cycle: IncomingCycle,
    close: CycleClose,
) -> Acknowledged:
    """Job of the replica's task. The order is the promise: parts synced and sealed under fresh
    names, directory synced, manifest linked, deadline checked, acknowledged.

    :raises Problem: BUSY: another stream took over. LEASE_LOST: the cycle may be the head and is
        not acknowledged by us.
    :raises Deposed, StorageFailed: the session is over.
    """
    request = cycle.request
    if session.incoming is not cycle or cycle.discarded:
        # Its drafts may have fallen: an acknowledgement would promise what no manifest names.
        raise Problem(
            Reason.BUSY,
            "another stream of this replica has taken this one's place",
            remedy="open again with resume",
        )
    position = ReplicaPosition.of(session.manifest, session.epoch, parts.node)
    again = check_open(request, position)
    if again is not None:
        return again
    actor.check_deadline()
    layers = await cycle.seal()
    definition = await _definition(session, request, close)
    kind = PointKind.CRASH_CONSISTENT
    if close.application_consistent:
        kind = PointKind.APPLICATION_CONSISTENT
    received = ReceivedCycle(
        request, close.cycle_digest, close.point_time_ms, kind, layers, definition
    )
    before = session.manifest.head
    await actor.commit(session, with_cycle(session.manifest, received))
    cycle.named()
    if session.incoming is cycle:
        session.incoming = None
    actor.check_deadline()
    if definition.xml != before.definition.xml:
        parts.domains.wanted(actor.record, session.manifest, session.folder)
    _tell(parts, actor, request)
    return Acknowledged(request.seq, close.cycle_digest, duplicate=False, epoch=session.epoch)


async def _definition(session: Session, request: CycleOpen, close: CycleClose) -> Definition:
    """The head's definition with what this cycle brought; each part a file of its own."""
    folder, seq, epoch = session.folder, request.seq, session.epoch
    known = session.manifest.head.definition
    xml, nvram, tpm = known.xml, known.nvram, known.tpm
    if request.domain_xml:
        xml = await folder.write_small("definition", seq, epoch, request.domain_xml)
    if close.nvram:
        nvram = await folder.write_small("nvram", seq, epoch, close.nvram)
    if close.tpm_state:
        tpm = await folder.write_small("tpm", seq, epoch, close.tpm_state)
    return Definition(xml=xml, nvram=nvram, tpm=tpm)


def _tell(parts: ReplicaParts, actor: ReplicaActor, request: CycleOpen) -> None:
    data = {"seq": str(request.seq), "kind": str(request.kind), "epoch": str(request.epoch)}
    news = [("cycle.acknowledged", f"cycle {request.seq} ({request.kind}) acknowledged")]
    if request.seq == 1:
        news.append(("initial.completed", "initial replication is complete"))
    if request.kind is CycleKind.RESYNC:
        news.append(("resync.completed", "resynchronization is complete"))
    for name, text in news:
        parts.events.write(
            name, text, replica_id=actor.replica_id, vm_name=actor.record.vm_name, data=data
        )
