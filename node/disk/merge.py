"""Merges adjacent layers of one disk into one new file; the old ones are only read.

Stored clusters enter it as they are, with their digests, and nothing is decompressed but a cluster
that a shrunk disk's end once cut. Where the file system can share blocks between files, the new
file shares those of the old ones; elsewhere, and where too much of them is no longer shown, the
clusters are copied. What was written is read back and checked before it gets its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from node.disk.clone_plan import ClonePlan, plan_clone
from node.disk.files import Files
from node.disk.layer_format import RECORD_BYTES
from node.disk.layer_reader import LayerDamaged, LayerReader
from node.disk.layer_writer import DATA_START
from node.disk.merge_clone import clone_clusters, rows_to_check
from node.disk.merge_copy import copy_clusters
from node.disk.merge_parts import MergeParts
from node.disk.names import INCOMING, LAYERS
from node.disk.overlay_rows import Shown, shown
from vmreplica.core.manifest import Layer
from vmreplica.ports.replica_store import StorageFailed

SPARE_BYTES = 64 << 20
"""What a merge leaves free besides its own need."""

_TABLE_BYTES = RECORD_BYTES + 12
"""For one cluster: its record, its entry and its count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeRequest:
    """``layers`` oldest first; ``part`` and ``name`` are fresh and relative to ``folder``."""

    folder: str
    layers: tuple[Layer, ...]
    size_bytes: int
    part: str
    name: str
    bottom: bool = False


class Merger(Protocol):
    """Whoever carries out merges: a child process, or this one."""

    async def merge(self, request: MergeRequest) -> Layer:
        """:raises LayerDamaged, StorageFailed:"""
        ...


class InlineMerger:
    """Merges in the calling process: simulation, tests, and inside the child process."""

    def __init__(self, files: Files) -> None:
        self._files = files

    async def merge(self, request: MergeRequest) -> Layer:
        """Read, write, check, name."""
        return await merge_layers(self._files, request)


async def merge_layers(files: Files, request: MergeRequest) -> Layer:
    """Carry out one merge; on any error only an unnamed part is left behind.

    :raises LayerDamaged, BoundaryMissing, StorageFailed: ``no_space`` before anything is written,
        too: cycles need the room more, a merge can wait.
    """
    part = f"{request.folder}/{request.part}"
    async with AsyncExitStack() as stack:
        readers = [
            await _opened(stack, files, f"{request.folder}/{layer.file}")
            for layer in request.layers
        ]
        visible = shown(
            [reader.records for reader in readers],
            [reader.trailer.size_bytes for reader in readers],
            request.size_bytes,
            bottom=request.bottom,
        )
        plan = await _clone_plan(files, request, readers, visible)
        await _check_room(files, request, readers, visible, plan)
        await files.make_directory(f"{request.folder}/{INCOMING}")
        await files.make_directory(part.rpartition("/")[0])
        output = await files.create(part)
        stack.push_async_callback(output.close)
        parts = MergeParts(files, readers, visible, output)
        held, rows = await _write(parts, request, plan)
    await _check_output(files, part, rows)
    await files.set_read_only(part)
    await files.rename(part, f"{request.folder}/{request.name}")
    await files.sync_directory(f"{request.folder}/{LAYERS}")
    first, last = request.layers[0], request.layers[-1]
    return replace(
        last,
        file=request.name,
        from_seq=first.from_seq,
        size_bytes=request.size_bytes,
        bytes=held,
    )


async def _opened(stack: AsyncExitStack, files: Files, path: str) -> LayerReader:
    reader = await LayerReader.open(files, path)
    stack.push_async_callback(reader.close)
    return reader


async def _clone_plan(
    files: Files, request: MergeRequest, readers: Sequence[LayerReader], visible: Shown
) -> ClonePlan | None:
    """How to share blocks; None = copy."""
    if not await files.can_clone(request.folder):
        return None
    records = [reader.records for reader in readers]
    plan = await files.offload(plan_clone, records, visible, DATA_START)
    return plan if plan.pays(DATA_START) else None


async def _check_room(
    files: Files,
    request: MergeRequest,
    readers: Sequence[LayerReader],
    visible: Shown,
    plan: ClonePlan | None,
) -> None:
    needed = len(visible.index) * _TABLE_BYTES + SPARE_BYTES
    if plan is None:
        for number, reader in enumerate(readers):
            rows = visible.row[visible.layer == number]
            needed += int(reader.records["stored"][rows[rows >= 0]].sum(dtype=np.int64))
    free = (await files.space(request.folder)).free_bytes
    if free < needed:
        message = f"{request.folder}: a merge needs {needed} bytes, {free} are free"
        raise StorageFailed(message, no_space=True)


async def _write(
    parts: MergeParts, request: MergeRequest, plan: ClonePlan | None
) -> tuple[int, Sequence[int] | None]:
    """The new file; returns how many bytes it holds, and the rows to check (None = all)."""
    first, last = request.layers[0].from_seq, request.layers[-1].to_seq
    rows: Sequence[int] | None = None
    if plan is not None and (end := await clone_clusters(parts, plan)):
        held = end - DATA_START
        base = [x for x in request.layers if x.to_seq == request.layers[0].to_seq]
        rows = rows_to_check(parts, plan, len(base) if request.bottom else 0).tolist()
    else:
        if plan is not None:
            # Refused in the middle: what was shared may reach behind what is written now.
            await parts.output.truncate(0)
        end = await copy_clusters(parts)
        held = int(parts.records["stored"].sum(dtype=np.int64))
    return held + await parts.finish(request.size_bytes, first, last, end), rows


async def _check_output(files: Files, part: str, rows: Sequence[int] | None) -> None:
    reader = await LayerReader.open(files, part)
    try:
        await reader.check_tables()
        damaged = await reader.damaged_clusters(plain=False, rows=rows)
    finally:
        await reader.close()
    if damaged:
        # The digests were carried over: one of the inputs is damaged there.
        raise LayerDamaged(f"{part}: {len(damaged)} clusters read from the layers are damaged")
