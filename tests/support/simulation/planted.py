"""Bugs that the simulation must find: each replaces one rule of the production code by a wrong one.

Every one of them works while nothing fails, or fails so seldom that no other test would notice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from broker.service import relocator
from node.disk.manifest_log import ManifestLog
from node.disk.names import manifest_name
from node.service import cycle_runner, receiver_stream
from node.service.compactor import Compactor
from node.service.replica_cycle import IncomingCycle
from vmreplica.coordination.lease_keeper import LeaseKeeper
from vmreplica.core import relocation
from vmreplica.core.cycle import Acknowledged
from vmreplica.core.lease_timing import deadline_ms
from vmreplica.core.manifest import Manifest
from vmreplica.testing.memory_files import MemoryFile

Undo = Callable[[], None]


def _patch(owner: Any, name: str, value: Any) -> Undo:
    before = getattr(owner, name)
    setattr(owner, name, value)
    return lambda: setattr(owner, name, before)


def commit_by_rename() -> Undo:
    """A manifest is renamed into place, after a look whether its name is still free."""

    async def link(self: ManifestLog, draft: str, number: int) -> bool:
        if manifest_name(number) in await self._files.list_directory(self._folder):
            await self._files.unlink(draft)
            return False
        await self._files.rename(draft, f"{self._folder}/{manifest_name(number)}")
        return True

    return _patch(ManifestLog, "_link", link)


def takeover_without_a_manifest() -> Undo:
    """The new owner reads the highest manifest and serves, without linking one of its own."""

    async def take_over(
        self: ManifestLog, epoch: int, incarnation: str, still_named: Any, first: Manifest | None
    ) -> Manifest:
        found = await self.read_highest()
        if found is None or not await still_named():
            return await original(self, epoch, incarnation, still_named, first)
        self._current = found
        return replace(found, epoch=epoch, incarnation=incarnation)

    async def commit(self: ManifestLog, manifest: Manifest) -> Manifest:
        if self._current is not None and self._current.epoch < manifest.epoch:
            self._current = replace(self._current, epoch=manifest.epoch)
        return await committing(self, manifest)

    original, committing = ManifestLog.take_over, ManifestLog.commit
    undo = _patch(ManifestLog, "take_over", take_over), _patch(ManifestLog, "commit", commit)
    return lambda: [step() for step in undo] and None


def acknowledge_before_commit() -> Undo:
    """The acknowledgement leaves when the parts are synced; the commit follows in its queue."""

    async def close(self: Any, cycle: IncomingCycle, message: Any) -> None:
        await self._settle()
        cycle.tally.check_close(self._request, message)
        await cycle.sync()
        epoch, seq = self._session.epoch, self._request.seq
        self._replies.put_nowait(Acknowledged(seq, message.cycle_digest, False, epoch))
        await self._actor.submit(
            self._session,
            lambda s: receiver_stream.commit_cycle(self._parts, self._actor, s, cycle, message),
        )

    return _patch(receiver_stream.ReceiverStream, "_close", close)


def layers_without_sync() -> Undo:
    """A layer is renamed without its data being synced: the power fails, the file is empty."""

    async def fdatasync(self: MemoryFile) -> None:
        if ".part" in self._path:
            return
        await original(self)

    original = MemoryFile.fdatasync
    return _patch(MemoryFile, "fdatasync", fdatasync)


def base_dropped_early() -> Undo:
    """The sender drops the last acknowledged checkpoint before the acknowledgement."""

    async def send(self: Any, plan: Any, *rest: Any) -> Any:
        await self._source.acknowledge(plan.vm_uuid, plan.cycle_id)
        return await original(self, plan, *rest)

    original = cycle_runner.CycleRunner._send
    return _patch(cycle_runner.CycleRunner, "_send", send)


def epoch_kept() -> Undo:
    """A relocation gives the replica away under the epoch it had."""
    original = relocation.owner_after

    def owner_after(move: Any, op_id: str) -> Any:
        return original(replace(move, epoch=max(1, move.epoch - 1)), op_id)

    return _patch(relocator, "owner_after", owner_after)


def relocation_without_guards() -> Undo:
    """Owners are written as the leader saw the world, be it an old sight."""
    return _patch(relocator, "guards", lambda moves: ())


def deadline_from_the_answer() -> Undo:
    """The deadline counts from when the keepalive's answer was read, not from its sending."""

    def answered(self: LeaseKeeper, sent_ms: int, ttl_ms: int) -> None:
        del sent_ms
        now = self._clock.boottime_ms()
        self._answered_sent_ms = now
        self._set_deadline(max(self._deadline_ms, deadline_ms(now, ttl_ms, self._margin_ms)))

    return _patch(LeaseKeeper, "_answered", answered)


def merged_parts_deleted_early() -> Undo:
    """Compaction deletes what it merged before the manifest with the merged file is committed."""

    async def name(self: Compactor, actor: Any, session: Any, plan: Any, merged: Any) -> None:
        for layer in plan.layers:
            await session.folder._files.unlink(f"{session.folder.path}/{layer.file}")
        await original(self, actor, session, plan, merged)

    original = Compactor._name
    return _patch(Compactor, "_name", name)


def sealed_layers_forgotten() -> Undo:
    """After a commit that the deadline forbade, the next one does not name what was sealed."""

    async def seal(self: IncomingCycle) -> Any:
        layers = await original(self)
        self._unnamed = ()
        return layers

    original = IncomingCycle.seal
    return _patch(IncomingCycle, "seal", seal)


BUGS: dict[str, Callable[[], Undo]] = {
    bug.__name__: bug
    for bug in (
        commit_by_rename,
        takeover_without_a_manifest,
        acknowledge_before_commit,
        layers_without_sync,
        base_dropped_early,
        epoch_kept,
        relocation_without_guards,
        deadline_from_the_answer,
        merged_parts_deleted_early,
        sealed_layers_forgotten,
    )
}
