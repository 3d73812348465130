"""Removes what a committed manifest no longer names (data-safety §2.6)."""

from __future__ import annotations

from collections.abc import Collection

from node.disk.files import Files
from node.disk.names import INCOMING, LAYERS, RUNS, epoch_of, manifest_name, manifest_number
from vmreplica.core.manifest import Manifest


async def remove_unnamed(
    files: Files,
    folder: str,
    manifest: Manifest,
    droppable: Collection[str],
    older_than_epoch: int,
) -> int:
    """Unlink files that ``manifest`` (in force, ours) neither names nor pins.

    :param droppable: files that an earlier manifest of this owner named: no one else can name
        them again.
    :param older_than_epoch: other files go only when their epoch is below it: a newer one may be
        on its way into a manifest.
    """
    kept = manifest.named_files() | manifest.pinned_files()
    removed = 0
    emptied: set[str] = set()
    for relative in await _files_below(files, folder):
        epoch = epoch_of(relative)
        stale = epoch is not None and epoch < older_than_epoch
        if relative not in kept and (stale or relative in droppable):
            removed += await files.unlink(f"{folder}/{relative}")
            emptied.add(relative.rpartition("/")[0])
    for directory in sorted(emptied - {"", LAYERS, INCOMING}):
        await files.remove_directory(f"{folder}/{directory}")
    return removed


async def remove_all(files: Files, folder: str, tombstone: int) -> None:
    """Empty the directory and remove it; the manifest with the tombstone goes last."""
    for name in (LAYERS, INCOMING, RUNS):
        await remove_tree(files, f"{folder}/{name}")
    last = manifest_name(tombstone)
    names = await files.list_directory(folder)
    for name in sorted(names, key=lambda x: (manifest_number(x) > 0, x)):
        if name != last:
            await files.unlink(f"{folder}/{name}")
    await files.sync_directory(folder)
    await files.unlink(f"{folder}/{last}")
    await files.remove_directory(folder)
    await files.sync_directory(folder.rpartition("/")[0])


async def remove_tree(files: Files, directory: str) -> None:
    """Remove a directory with what is in it, at most two floors deep. Idempotent."""
    try:
        names = await files.list_directory(directory)
    except FileNotFoundError:
        return
    for name in names:
        path = f"{directory}/{name}"
        try:
            inner = await files.list_directory(path)
        except NotADirectoryError:
            await files.unlink(path)
            continue
        for below in inner:
            await files.unlink(f"{path}/{below}")
        await files.remove_directory(path)
    await files.remove_directory(directory)


async def _files_below(files: Files, folder: str) -> list[str]:
    """Relative names of everything but manifests; directories among them carry no epoch."""
    own = (INCOMING, LAYERS, RUNS)
    found = [x for x in await _listed(files, folder) if not manifest_number(x) and x not in own]
    found += [f"{LAYERS}/{name}" for name in await _listed(files, f"{folder}/{LAYERS}")]
    for above in (INCOMING, RUNS):
        for name in await _listed(files, f"{folder}/{above}"):
            inner = f"{above}/{name}"
            if name.endswith(".tmp"):
                found.append(inner)
                continue
            found += [f"{inner}/{below}" for below in await _listed(files, f"{folder}/{inner}")]
    return found


async def _listed(files: Files, directory: str) -> list[str]:
    try:
        return await files.list_directory(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
