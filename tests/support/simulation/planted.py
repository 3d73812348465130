"""Bugs that the simulation must find: each replaces one rule of the production code by a wrong one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from node.disk.manifest_log import ManifestLog
from node.disk.names import manifest_name
from node.service import cycle_runner, receiver_stream
from vmreplica.core import relocation
from vmreplica.core.cycle import Acknowledged
from vmreplica.core.manifest import Manifest
from vmreplica.testing.memory_files import MemoryFile

Undo = Callable[[], None]


def _patch(owner: Any, name: str, value: Any) -> Undo:
    before = getattr(owner, name)
    setattr(owner, name, value)
    return lambda: setattr(owner, name, before)


def commit_by_rename() -> Undo:
    """A manifest is renamed into place instead of linked: a stale owner replaces a newer one."""

    async def link(self: ManifestLog, draft: str, number: int) -> bool:
        await self._files.rename(draft, f"{self._folder}/{manifest_name(number)}")
        return True

    return _patch(ManifestLog, "_link", link)


def takeover_without_a_manifest() -> Undo:
    """The new owner reads the highest manifest and serves, without linking one of its own."""

    async def take_over(
        self: ManifestLog, epoch: int, incarnation: str, still_named: Any, first: Manifest | None
    ) -> Manifest:
        found = await self.read_highest()
        if found is None:
            return await original(self, epoch, incarnation, still_named, first)
        self._current = replace(found, epoch=epoch, incarnation=incarnation)
        return self._current

    original = ManifestLog.take_over
    return _patch(ManifestLog, "take_over", take_over)


def acknowledge_before_commit() -> Undo:
    """The acknowledgement leaves before the manifest is linked."""

    async def commit_cycle(parts: Any, actor: Any, session: Any, cycle: Any, close: Any) -> Any:
        task = asyncio.ensure_future(original(parts, actor, session, cycle, close))
        task.add_done_callback(lambda t: t.cancelled() or t.exception())
        seq = cycle.request.seq
        return Acknowledged(seq, close.cycle_digest, duplicate=False, epoch=session.epoch)

    original = receiver_stream.commit_cycle
    return _patch(receiver_stream, "commit_cycle", commit_cycle)


def layers_without_sync() -> Undo:
    """A layer is renamed without its data being synced: the host dies, the file is empty."""

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
    original = relocation.OwnerRecord

    def record(**fields: Any) -> Any:
        return original(**{**fields, "epoch": max(1, fields["epoch"] - 1)})

    return _patch(relocation, "OwnerRecord", record)


BUGS: dict[str, Callable[[], Undo]] = {
    bug.__name__: bug
    for bug in (
        commit_by_rename,
        takeover_without_a_manifest,
        acknowledge_before_commit,
        layers_without_sync,
        base_dropped_early,
        epoch_kept,
    )
}
