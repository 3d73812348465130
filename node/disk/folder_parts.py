"""Finds the unfinished parts of a cycle in ``incoming/`` and continues or drops them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from node.disk.files import Files
from node.disk.layer_writer import DiskLayerWriter, index_name
from node.disk.names import INCOMING
from node.disk.part_index import HEADER_BYTES, PartFrame, entry_bytes, parse_frames, parse_header
from vmreplica.core.cycle import Disk
from vmreplica.ports.replica_store import PartKey


@dataclass(frozen=True, slots=True)
class FoundPart:
    """One part with the frames that are durable in it; ``part`` is relative to the folder."""

    part: str
    key: PartKey
    frames: tuple[PartFrame, ...]


async def find_parts(files: Files, folder: str, epoch: int) -> list[FoundPart]:
    """All parts of one epoch whose frame list reads back."""
    directory = f"{INCOMING}/e{epoch}"
    found = []
    try:
        names = await files.list_directory(f"{folder}/{directory}")
    except FileNotFoundError:
        return []
    for name in sorted(x for x in names if x.endswith(".frames")):
        part = f"{directory}/{name.removesuffix('.frames')}.part"
        with suppress(FileNotFoundError):
            data = await files.read(f"{folder}/{directory}/{name}")
            key = parse_header(data)
            if key is not None:
                found.append(FoundPart(part, key, tuple(parse_frames(data))))
    return found


async def durable_frames(
    files: Files, folder: str, cycle_id: bytes, epoch: int, disks: Sequence[Disk], first: int
) -> int:
    """How far the frames of a cycle are durable without a gap, all parts together."""
    keys = {PartKey(cycle_id, Disk(d.target, d.size_bytes), epoch) for d in disks}
    numbers = {
        frame.number
        for part in await find_parts(files, folder, epoch)
        if part.key in keys
        for frame in part.frames
    }
    while first in numbers:
        first += 1
    return first


async def continue_writer(
    files: Files, folder: str, key: PartKey, below: int, writer: DiskLayerWriter
) -> None:
    """Hand the frames below ``below`` of an existing part to ``writer``; cut off the others."""
    own = PartKey(key.cycle_id, Disk(key.disk.target, key.disk.size_bytes), key.epoch)
    parts = [x for x in await find_parts(files, folder, key.epoch) if x.key == own]
    for found in parts[1:]:
        await _remove(files, folder, found.part)
    for found in parts[:1]:
        frames = [x for x in found.frames if x.number < below]
        if not frames:
            await _remove(files, folder, found.part)
            return
        index = await files.open(f"{folder}/{index_name(found.part)}", write=True)
        await index.truncate(HEADER_BYTES + sum(map(entry_bytes, frames)))
        await index.fdatasync()
        file = await files.open(f"{folder}/{found.part}", write=True)
        # What lies behind must be a hole again: tables leave out what they do not use.
        await file.truncate(frames[-1].end)
        writer.continue_part(found.part, file, index, frames)


async def remove_parts(files: Files, folder: str, key: PartKey) -> None:
    """Drop earlier parts of this very key: the cycle is sent again from its first frame."""
    own = PartKey(key.cycle_id, Disk(key.disk.target, key.disk.size_bytes), key.epoch)
    for found in await find_parts(files, folder, key.epoch):
        if found.key == own:
            await _remove(files, folder, found.part)


async def _remove(files: Files, folder: str, part: str) -> None:
    await files.unlink(f"{folder}/{part}")
    await files.unlink(f"{folder}/{index_name(part)}")
