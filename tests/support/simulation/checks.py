"""Observers of a simulated cluster: each raises Violation the moment a promise is broken."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import NoReturn

from node.disk.names import manifest_number
from vmreplica.core.cycle import Acknowledged, CycleKind, CycleOpen
from vmreplica.core.manifest import MANIFESTS_KEPT, Head, Manifest
from vmreplica.core.manifest_text import manifest_digest, parse_manifest
from vmreplica.testing.memory_disk import Directory, Inode, MemoryDisk


class Violation(AssertionError):
    """A promise was broken; the text says which and by what."""


@dataclass(frozen=True, slots=True)
class Ack:
    """What a sender was told."""

    seq: int
    cycle_id: bytes
    digest: bytes
    epoch: int


@dataclass(slots=True)
class History:
    """One replica, as everybody must agree on it. ``named``: by the newest manifest, or pinned."""

    folder: str
    manifests: list[Manifest] = field(default_factory=list)
    newest_digest: bytes = b""
    heads: dict[int, Head] = field(default_factory=dict)
    epochs: set[int] = field(default_factory=set)
    named: frozenset[str] = frozenset()
    acked: dict[int, Ack] = field(default_factory=dict)

    @property
    def newest(self) -> Manifest:
        """The manifest with the highest number."""
        return self.manifests[-1]

    def add(self, manifest: Manifest, own_digest: bytes, named: frozenset[str]) -> None:
        """The next manifest."""
        self.manifests.append(manifest)
        self.newest_digest = own_digest
        self.heads[manifest.head.seq] = manifest.head
        self.epochs.add(manifest.epoch)
        self.named = named

    def cut_to(self, number: int) -> None:
        """The storage lost power: later manifests never were."""
        kept = self.manifests[:number]
        self.manifests, self.heads, self.epochs = [], {}, set()
        self.newest_digest, self.named = b"", frozenset()
        for manifest in kept:
            self.add(manifest, manifest_digest(manifest), _kept(manifest))


def _seal(text: bytes) -> bytes:
    """The digest at the end of a manifest's first line (parsing has proved it)."""
    return bytes.fromhex(text.partition(b'"}\n')[0][-32:].decode())


def _kept(manifest: Manifest) -> frozenset[str]:
    return manifest.named_files() | manifest.pinned_files()


@dataclass(slots=True)
class Checks:
    """Data-safety §2 and §4 on everything that happens. ``tell`` hears the first violation."""

    disk: MemoryDisk
    now_s: Callable[[], float]
    tell: Callable[[Violation], None]
    histories: dict[str, History] = field(default_factory=dict)
    folders: dict[str, History] = field(default_factory=dict)
    used_names: set[str] = field(default_factory=set)
    committed: set[bytes] = field(default_factory=set)
    sent: dict[bytes, set[str]] = field(default_factory=dict)
    """Disks of which a cycle brought frames, by cycle id."""
    marks: set[str] = field(default_factory=set)
    acks: int = 0
    fulls: int = 0
    tracking_lost: int = 0

    def fail(self, what: str) -> NoReturn:
        """A promise is broken: tell the world, whoever swallows the exception here."""
        violation = Violation(f"t={self.now_s():.3f} s: {what}")
        self.tell(violation)
        raise violation

    # -- the manifest log: one linear history, nothing lost, replaced or reordered

    def linked(self, path: str, inode: Inode) -> None:
        """A manifest appeared under its final name."""
        if inode.dirty or not _same(inode):
            self.fail(f"{path} got its name before its content was durable")
        text = inode.written.read(inode.written.length, 0)
        manifest = parse_manifest(text)
        folder = path.rpartition("/")[0]
        history = self.histories.get(manifest.replica_id)
        if history is None:
            history = self.histories[manifest.replica_id] = History(folder)
            self.folders[folder] = history
        if history.folder != folder:
            self.fail(f"{path}: the replica lies in {history.folder}")
        expected = len(history.manifests) + 1
        if manifest.n != expected or manifest_number(path.rpartition("/")[2]) != expected:
            self.fail(f"manifest {manifest.n} as {path}, expected {expected}")
        if history.manifests:
            self._follows(history, manifest)
        named = _kept(manifest)
        if not named <= history.named:
            self._all_durable(folder, named - history.named)
        if manifest.head.seq:
            self.committed.add(manifest.head.cycle_id)
            self._nothing_missing(manifest)
        history.add(manifest, _seal(text), named)

    def _follows(self, history: History, manifest: Manifest) -> None:
        before = history.newest
        where = f"manifest {manifest.n} of {manifest.vm_name}"
        if manifest.previous != history.newest_digest:
            self.fail(f"{where} does not follow manifest {before.n}")
        if manifest.epoch < before.epoch:
            self.fail(f"{where}: epoch fell from {before.epoch} to {manifest.epoch}")
        if manifest.epoch == before.epoch and manifest.incarnation != before.incarnation:
            self.fail(f"{where}: two processes wrote in epoch {manifest.epoch}")
        if manifest.epoch > before.epoch:
            self.marks.add("takeover")
            if manifest.head != before.head or manifest.layers != before.layers:
                self.fail(f"{where}: the takeover changed the state")
        if manifest.head.seq < before.head.seq:
            self.fail(f"{where}: head fell from {before.head.seq} to {manifest.head.seq}")
        if manifest.head.seq > before.head.seq + 1:
            self.fail(f"{where}: head jumped from {before.head.seq} to {manifest.head.seq}")
        if manifest.head.seq == before.head.seq:
            if manifest.head.digest != before.head.digest:
                self.fail(f"{where}: head {manifest.head.seq} changed its content")
            if len(manifest.layers) < len(before.layers):
                self.marks.add("compacted")
        if any(layer.draft for layer in manifest.layers):
            self.marks.add("draft")

    def _nothing_missing(self, manifest: Manifest) -> None:
        """Every disk of which frames came has a layer of this cycle."""
        head = manifest.head
        there = {x.target for x in manifest.layers if x.to_seq == head.seq and x.draft is None}
        missing = self.sent.pop(head.cycle_id, set()) - there
        if missing:
            self.fail(f"manifest {manifest.n}: cycle {head.seq} lacks its layers of {missing}")

    def _all_durable(self, folder: str, files: Collection[str]) -> None:
        """What a manifest names for the first time is there, synced, in a synced directory."""
        for file in files:
            above, _, name = f"{folder}/{file}".rpartition("/")
            directory = self.disk.walk(above)
            node = directory.entries.get(name) if isinstance(directory, Directory) else None
            if not isinstance(node, Inode):
                self.fail(f"{folder}: a manifest names {file}, which is not there")
            if node.dirty or not _same(node):
                self.fail(f"{folder}: a manifest names {file}, whose data are not durable")
            assert isinstance(directory, Directory)
            if directory.durable.get(name) is not node:
                self.fail(f"{folder}: a manifest names {file}, whose name is not durable")

    # -- files

    def replaced(self, path: str) -> None:
        """A name was renamed upon: nothing of a replica is ever replaced."""
        self.fail(f"{path} was replaced")

    def created(self, path: str) -> None:
        """A new name: never used before."""
        if path in self.used_names:
            self.fail(f"{path}: a name is used twice")
        self.used_names.add(path)

    def written(self, path: str) -> None:
        """Content changed: never of what a manifest names, or of a manifest."""
        history, relative = self._place(path)
        if history is not None and (relative in history.named or manifest_number(relative)):
            self.fail(f"{path} was written after a manifest had named it")

    def unlinked(self, path: str) -> None:
        """A name went: never one that the newest manifest names or a pin holds."""
        history, relative = self._place(path)
        if history is None or not history.manifests:
            return
        number = manifest_number(relative)
        if number:
            if number > history.newest.n - MANIFESTS_KEPT and not history.newest.tombstone:
                self.fail(f"{path}: one of the newest {MANIFESTS_KEPT} manifests was deleted")
            self.marks.add("pruned")
        if relative in history.named:
            self.fail(f"{path} was deleted although manifest {history.newest.n} names it")
        if relative.startswith("layers/"):
            self.marks.add("layer_deleted")

    def _place(self, path: str) -> tuple[History | None, str]:
        folder, _, relative = path.rpartition("/")
        history = self.folders.get(folder)
        if history is None:
            folder, _, below = folder.rpartition("/")
            history, relative = self.folders.get(folder), f"{below}/{relative}"
        return history, relative

    def power_was_cut(self) -> None:
        """Only what was durable is left: everything acknowledged must be."""
        for history in self.histories.values():
            directory = self.disk.walk(history.folder)
            names = directory.entries if isinstance(directory, Directory) else {}
            number = max((manifest_number(name) for name in names), default=0)
            if number < len(history.manifests):
                self.marks.add("manifest_lost_by_power_cut")
                history.cut_to(number)
            head = history.newest.head.seq if history.manifests else 0
            if max(history.acked, default=0) > head:
                self.fail(f"{history.folder}: acknowledged cycles after {head} went with the power")

    # -- cycles

    def served(self, replica_id: str, epoch: int, by: str) -> None:
        """A node reported a position or accepted a stream under this epoch."""
        history = self.histories.get(replica_id)
        if history is None or epoch not in history.epochs:
            self.fail(f"{by} serves {replica_id} under epoch {epoch} without a manifest of its own")

    def opened(self, request: CycleOpen) -> None:
        """A sender offers a cycle: all data again only where tracking was lost."""
        if request.kind is CycleKind.FULL and request.seq > 1:
            self.fulls += 1
            if not self.tracking_lost:
                self.fail(f"{request.replica_id}: a full copy at {request.seq} for no reason")
        if request.resume:
            self.marks.add("resumed")

    def acknowledged(self, replica_id: str, cycle_id: bytes, ack: Acknowledged) -> None:
        """A node sent an acknowledgement, or a sender heard it (first or duplicate)."""
        history = self.histories.get(replica_id)
        if history is None:
            self.fail(f"{replica_id}: acknowledged {ack.seq} without any manifest")
        known = history.acked.get(ack.seq)
        if known and (known.cycle_id, known.digest) != (cycle_id, ack.cycle_digest):
            self.fail(f"{replica_id}: two cycles were acknowledged as {ack.seq}")
        if ack.duplicate:
            self.marks.add("duplicate_ack")
        head = history.heads.get(ack.seq)
        if head is None or (head.cycle_id, head.digest) != (cycle_id, ack.cycle_digest):
            self.fail(f"{replica_id}: acknowledged {ack.seq} is in no manifest")
        history.acked[ack.seq] = Ack(ack.seq, cycle_id, ack.cycle_digest, ack.epoch)

    def base_kept(self, vm_uuid: str, cycle_id: bytes, lost: Collection[bytes]) -> None:
        """The sender made a cycle its base: only a committed one, and no newer head is dropped."""
        if cycle_id not in self.committed:
            self.fail(f"{vm_uuid}: the base advanced to a cycle that nobody committed")
        self.base_lost(vm_uuid, lost)

    def base_lost(self, vm_uuid: str, lost: Collection[bytes]) -> None:
        """The sender dropped checkpoints whose bitmaps were sound."""
        for history in self.histories.values():
            if not history.manifests or history.newest.vm_uuid != vm_uuid:
                continue
            if history.newest.head.cycle_id in lost:
                self.fail(f"{vm_uuid}: the checkpoint of the head was dropped")


def _same(inode: Inode) -> bool:
    """Whether the durable content is what all see."""
    written, durable = inode.written, inode.durable
    return written.length == durable.length and written._blocks == durable._blocks
