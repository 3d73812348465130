"""The manifest log: whoever links the next number has committed, and nobody else.

Takeover and commit exactly as data-safety §2 orders them, over the primitive operations alone,
with no clock and no lock, so that every interleaving of owners can be tried on a modelled disk.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace

from node.disk.files import Files
from node.disk.names import FileNames, manifest_name, manifest_number
from vmreplica.core.cycle import ZERO_DIGEST
from vmreplica.core.manifest import MANIFESTS_KEPT, Manifest
from vmreplica.core.manifest_text import manifest_digest, parse_manifest, render_manifest
from vmreplica.core.problems import Problem
from vmreplica.ports.randomness import Randomness
from vmreplica.ports.replica_store import (
    Deposed,
    ManifestDamaged,
    NoManifest,
    NotOurs,
    StorageFailed,
)

_log = logging.getLogger(__name__)

TAKEOVER_ATTEMPTS = 1_000
"""Lost races and stale listings a takeover goes through before it reports failing storage."""


class ManifestLog:
    """One replica's manifests as one incarnation of one node sees and makes them.

    After any error at or behind the link the state is forgotten: ``commit`` refuses until
    ``take_over`` has read the directory anew.
    """

    def __init__(
        self,
        files: Files,
        folder: str,
        randomness: Randomness,
        *,
        kept: int = MANIFESTS_KEPT,
        prune_at_once: int = 16,
    ) -> None:
        self._files = files
        self._folder = folder
        self._randomness = randomness
        self._kept = kept
        self._prune_at_once = prune_at_once
        self._current: Manifest | None = None
        self._dropped: set[str] = set()

    @property
    def current(self) -> Manifest | None:
        """The manifest in force by our own last act; None before a takeover and after an error."""
        return self._current

    def droppable(self) -> frozenset[str]:
        """Files that a manifest of ours has named and a later one of ours no longer does."""
        return frozenset(self._dropped)

    async def read_highest(self) -> Manifest | None:
        """The highest manifest in the directory. :raises ManifestDamaged, StorageFailed:"""
        for _ in range(TAKEOVER_ATTEMPTS):
            number = max(await self._numbers())
            if number == 0:
                return None
            manifest = await self._read(number)
            if manifest is not None:
                return manifest
        raise StorageFailed(f"{self._folder}: the listing shows manifests that are long gone")

    async def take_over(
        self,
        epoch: int,
        incarnation: str,
        still_named: Callable[[], Awaitable[bool]],
        first: Manifest | None,
    ) -> Manifest:
        """Make this epoch's manifest the highest one, with the content it found."""
        self._forget()
        if not await still_named():
            raise NotOurs(f"{self._folder}: the owner record names another than epoch {epoch}")
        floor = 0
        for _ in range(TAKEOVER_ATTEMPTS):
            number = max(floor, *await self._numbers())
            found = await self._read(number) if number else None
            if number and found is None:
                continue
            taken = self._successor(found, epoch, incarnation, first)
            # What may be there although the listing did not show it: read on from it.
            floor = taken.n
            if not await self._link(await self._draft(taken), taken.n):
                continue
            await self._files.sync_directory(self._folder)
            if max(await self._numbers()) <= taken.n:
                self._current = taken
                return taken
        raise StorageFailed(f"{self._folder}: {TAKEOVER_ATTEMPTS} numbers were taken before ours")

    async def commit(self, manifest: Manifest) -> Manifest:
        """Link ``manifest`` under its number; returns it with ``previous`` as written."""
        current = self._current
        if current is None:
            raise StorageFailed(f"{self._folder}: the outcome of the last act is not known")
        if manifest.n != current.n + 1 or manifest.epoch != current.epoch:
            raise ValueError(
                f"manifest {manifest.n} of epoch {manifest.epoch} does not follow "
                f"{current.n} of epoch {current.epoch}"
            )
        written = replace(manifest, previous=manifest_digest(current))
        draft = await self._draft(written)
        # From here on an error (or a cancellation) leaves the outcome unknown.
        self._current = None
        if not await self._link(draft, written.n):
            raise Deposed(f"{self._folder}: manifest {written.n} is another's")
        await self._files.sync_directory(self._folder)
        numbers = await self._numbers()
        if max(numbers) > written.n:
            raise Deposed(f"{self._folder}: manifest {max(numbers)} is already there")
        self._dropped |= current.named_files() - written.named_files()
        self._current = written
        await self._prune(written.n, numbers)
        return written

    async def _prune(self, newest: int, numbers: list[int]) -> None:
        old = [x for x in numbers if 0 < x <= newest - self._kept]
        if len(old) < self._prune_at_once:
            return
        try:
            for number in old:
                await self._files.unlink(f"{self._folder}/{manifest_name(number)}")
        except StorageFailed as failure:
            # The commit stands; old manifests only take room, and the next pruning sees them.
            _log.warning("old manifests stay: %s", failure)

    def _forget(self) -> None:
        self._current = None
        self._dropped = set()

    def _successor(
        self, found: Manifest | None, epoch: int, incarnation: str, first: Manifest | None
    ) -> Manifest:
        if found is None:
            if first is None:
                raise NoManifest(f"{self._folder} holds no manifest")
            return replace(first, n=1, epoch=epoch, incarnation=incarnation, previous=ZERO_DIGEST)
        if found.epoch > epoch or (found.epoch == epoch and found.incarnation != incarnation):
            raise Deposed(
                f"{self._folder}: manifest {found.n} is of epoch {found.epoch}", found.epoch
            )
        return replace(
            found,
            n=found.n + 1,
            epoch=epoch,
            incarnation=incarnation,
            previous=manifest_digest(found),
        )

    async def _numbers(self) -> list[int]:
        """Numbers in a fresh listing; 0 is always among them."""
        try:
            names = await self._files.list_directory(self._folder)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise StorageFailed(f"{self._folder} is missing") from error
        return [0, *filter(None, map(manifest_number, names))]

    async def _read(self, number: int) -> Manifest | None:
        """None: pruned since it was listed (the listing was stale)."""
        path = f"{self._folder}/{manifest_name(number)}"
        try:
            return parse_manifest(await self._files.read(path), number)
        except FileNotFoundError:
            return None
        except Problem as problem:
            raise ManifestDamaged(f"{path}: {problem.message}") from problem

    async def _draft(self, manifest: Manifest) -> str:
        """A durable file that only waits for its number."""
        names = FileNames(self._randomness, manifest.epoch)
        draft = f"{self._folder}/{names.manifest_draft()}"
        await self._files.write_new(draft, render_manifest(manifest))
        return draft

    async def _link(self, draft: str, number: int) -> bool:
        """Whether ``draft`` now is what the number names."""
        try:
            await self._files.link(draft, f"{self._folder}/{manifest_name(number)}")
            linked = True
        except FileExistsError:
            # A request that was answered twice: the first answer got lost, the link is ours.
            linked = await self._files.link_count(draft) > 1
        await self._files.unlink(draft)
        return linked
