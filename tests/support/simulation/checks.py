"""Observers of a simulated cluster: each raises Violation the moment a promise is broken."""

from __future__ import annotations

from dataclasses import dataclass, field

from vmreplica.core.cycle import Acknowledged, CycleKind, CycleOpen
from vmreplica.core.keys import Keys
from vmreplica.core.manifest import Manifest
from vmreplica.core.manifest_text import manifest_digest
from vmreplica.core.records import OwnerRecord, parse
from vmreplica.ports.cluster_store import KeyValue, WatchEvent


class Violation(AssertionError):
    """A promise was broken; the text says which and by what."""


@dataclass(slots=True)
class Ack:
    """What a sender was told."""

    seq: int
    cycle_id: bytes
    digest: bytes
    epoch: int
    at_s: float


@dataclass(slots=True)
class History:
    """One replica, as everybody must agree on it."""

    manifests: list[Manifest] = field(default_factory=list)
    acked: dict[int, Ack] = field(default_factory=dict)

    @property
    def newest(self) -> Manifest:
        """The manifest with the highest number."""
        return self.manifests[-1]


@dataclass(slots=True)
class Checks:
    """Data-safety §1, §2, §4 and the promises, on everything that happens."""

    keys: Keys
    histories: dict[str, History] = field(default_factory=dict)
    owners: dict[str, int] = field(default_factory=dict)
    marks: set[str] = field(default_factory=set)
    acks: int = 0
    fulls: int = 0
    tracking_lost: int = 0

    # -- the manifest log: one linear history, nothing lost, replaced or reordered

    def linked(self, manifest: Manifest) -> None:
        """A manifest appeared under its final name."""
        history = self.histories.setdefault(manifest.replica_id, History())
        expected = len(history.manifests) + 1
        if manifest.n != expected:
            raise Violation(f"manifest {manifest.n} of {manifest.replica_id}, expected {expected}")
        if history.manifests:
            self._follows(history, manifest)
        history.manifests.append(manifest)

    def replaced(self, path: str) -> None:
        """A manifest's name was written over or renamed upon."""
        raise Violation(f"{path} was replaced")

    def _follows(self, history: History, manifest: Manifest) -> None:
        before = history.newest
        where = f"manifest {manifest.n} of {manifest.replica_id}"
        if manifest.previous != manifest_digest(before):
            raise Violation(f"{where} does not follow manifest {before.n}")
        if manifest.epoch < before.epoch:
            raise Violation(f"{where}: epoch fell from {before.epoch} to {manifest.epoch}")
        if manifest.epoch > before.epoch:
            self.marks.add("takeover")
        if manifest.head.seq < before.head.seq:
            raise Violation(f"{where}: head fell from {before.head.seq} to {manifest.head.seq}")
        if manifest.head.seq > before.head.seq + 1:
            raise Violation(f"{where}: head jumped from {before.head.seq} to {manifest.head.seq}")
        if manifest.head.seq == before.head.seq and manifest.head.digest != before.head.digest:
            raise Violation(f"{where}: head {manifest.head.seq} changed its content")

    # -- cycles

    def opened(self, request: CycleOpen) -> None:
        """A sender offers a cycle: all data again only where tracking was lost."""
        if request.kind is CycleKind.FULL and request.seq > 1:
            self.fulls += 1
            if not self.tracking_lost:
                raise Violation(f"{request.replica_id}: a full copy at {request.seq} for no reason")

    def acknowledged(
        self, replica_id: str, cycle_id: bytes, ack: Acknowledged, at_s: float
    ) -> None:
        """A sender heard an acknowledgement (first or duplicate)."""
        self.acks += 1
        history = self.histories.setdefault(replica_id, History())
        known = history.acked.get(ack.seq)
        if known and (known.cycle_id, known.digest) != (cycle_id, ack.cycle_digest):
            raise Violation(f"{replica_id}: two cycles were acknowledged as {ack.seq}")
        if ack.duplicate:
            self.marks.add("duplicate_ack")
        if not history.manifests:
            raise Violation(f"{replica_id}: acknowledged {ack.seq} without any manifest")
        committed = {m.head.seq: m.head for m in history.manifests}
        head = committed.get(ack.seq)
        if head is None or (head.cycle_id, head.digest) != (cycle_id, ack.cycle_digest):
            raise Violation(f"{replica_id}: acknowledged {ack.seq} is in no manifest")
        history.acked[ack.seq] = Ack(ack.seq, cycle_id, ack.cycle_digest, ack.epoch, at_s)

    # -- the cluster store

    def committed(self, live: dict[str, KeyValue], events: tuple[WatchEvent, ...]) -> None:
        """A transaction was applied."""
        for event in events:
            if event.kv.key.startswith(self.keys.owners) and not event.deleted:
                self._owner(live, event.kv)

    def _owner(self, live: dict[str, KeyValue], kv: KeyValue) -> None:
        replica_id = kv.key[len(self.keys.owners) :]
        record = parse(OwnerRecord, kv.value)
        before = self.owners.get(replica_id, 0)
        if record.released:
            if record.epoch != before:
                raise Violation(f"{replica_id}: released at epoch {record.epoch}, was {before}")
            self.marks.add("released")
            return
        if before and record.epoch <= before:
            raise Violation(f"{replica_id}: epoch {record.epoch} after {before}")
        if self.keys.node(record.node, record.incarnation) not in live:
            raise Violation(f"{replica_id}: given to {record.node}, which has no lease")
        self.owners[replica_id] = record.epoch
