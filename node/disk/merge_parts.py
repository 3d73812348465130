"""What both ways to merge share: the layers read, what they show, the file that is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import zstandard

from node.disk.files import Files, OpenFile
from node.disk.layer_format import RECORD, Records
from node.disk.layer_reader import LayerReader, plain_bytes
from node.disk.layer_writer import finish_layer
from node.disk.overlay_rows import NO_ROW, Shown
from vmreplica.core.cycle import CLUSTER_BYTES, EMPTY_DIGEST, ZERO_CLUSTER_DIGEST, digest


@dataclass(slots=True)
class MergeParts:
    """One merge under way. ``records``: of the new file; whoever lays it out sets the entries."""

    files: Files
    readers: Sequence[LayerReader]
    visible: Shown
    output: OpenFile
    records: Records = field(init=False)

    def __post_init__(self) -> None:
        # Digests and stored sizes are those of the layers.
        visible = self.visible
        records = cast(Records, np.zeros(len(visible.index), dtype=RECORD))
        for number, reader in enumerate(self.readers):
            here = np.flatnonzero((visible.layer == number) & (visible.row != NO_ROW))
            records[here] = reader.records[visible.row[here]]
        records["index"] = visible.index
        hidden = visible.row == NO_ROW
        records["stored"][hidden] = 0
        records["plain"][hidden] = np.void(ZERO_CLUSTER_DIGEST)
        records["stored_digest"][hidden] = np.void(EMPTY_DIGEST)
        self.records = records

    def cut(self, place: int, content: bytes) -> bytes:
        """A cluster whose end a smaller disk once cut off: plain, with zeros behind."""
        if not content:
            return content
        whole = plain_bytes(content, zstandard.ZstdDecompressor())
        cut = whole[: int(self.visible.keep[place])].ljust(CLUSTER_BYTES, b"\0")
        record = self.records[place]
        record["plain"] = record["stored_digest"] = np.void(digest(cut))
        record["stored"] = CLUSTER_BYTES
        return cut

    async def finish(self, size_bytes: int, from_seq: int, to_seq: int, end: int) -> int:
        """Tables, list, trailer and header of a file whose data end at ``end``; durable then.

        :returns: how many bytes that took.
        """
        pieces, added = await self.files.offload(
            finish_layer, self.records, size_bytes, from_seq, to_seq, end
        )
        await self.output.pwrite(pieces)
        await self.output.fdatasync()
        return added
