"""Which blocks of the merged layers a new file shares, and where clusters lie in it then.

Compressed clusters are packed, so whole 64 KiB blocks are shared: each that holds a cluster which
the merge shows. What else such a block holds is garbage; no entry points at it, and its host
cluster counts only the clusters in use. Blocks keep their order, so a compressed cluster that
reaches into the next block finds it behind its own in the new file too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from node.disk.files import CloneRange
from node.disk.layer_format import Records
from node.disk.overlay_rows import NO_ROW, Shown
from node.disk.qcow2 import ZERO_ENTRY, entry_offsets
from vmreplica.core.cycle import CLUSTER_BYTES

GARBAGE_SHARE = 0.5
"""With more garbage than that among what would be shared, copying pays: it writes less than it
frees, and no received byte becomes garbage twice."""

Places = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class ClonePlan:
    """``ranges``: of each layer, by rising offset. ``entry``: of each place of the merge.

    ``cut``: places to be written anew behind ``end``, because a shrunk disk once ended there.
    """

    ranges: tuple[tuple[CloneRange, ...], ...]
    entry: npt.NDArray[np.uint64]
    cut: Places
    end: int
    used_bytes: int

    def pays(self, start: int) -> bool:
        """Whether most of what would be shared (from ``start`` on) is in use."""
        return self.used_bytes >= (1 - GARBAGE_SHARE) * (self.end - start)


def plan_clone(records: Sequence[Records], visible: Shown, start: int) -> ClonePlan:
    """Lay out a merge whose data begin at ``start``.

    :param records: of each layer, oldest first.
    """
    entry = np.full(len(visible.index), ZERO_ENTRY, dtype=np.uint64)
    cut = (visible.keep < CLUSTER_BYTES) & (visible.row != NO_ROW)
    ranges = []
    end, used = start, 0
    for number, rows in enumerate(records):
        mine = np.flatnonzero((visible.layer == number) & (visible.row != NO_ROW) & ~cut)
        stored = rows["stored"][visible.row[mine]].astype(np.int64)
        mine, stored = mine[stored > 0], stored[stored > 0]
        entries = rows["entry"][visible.row[mine]].astype(np.uint64)
        offsets = entry_offsets(entries).astype(np.int64)
        first, last = offsets // CLUSTER_BYTES, (offsets + stored - 1) // CLUSTER_BYTES
        blocks = np.union1d(first, last)
        moved = end // CLUSTER_BYTES + np.searchsorted(blocks, first) - first
        # Unsigned arithmetic wraps: a block may move towards the file's beginning, too.
        entry[mine] = entries + (moved * CLUSTER_BYTES).astype(np.uint64)
        ranges.append(_ranges(blocks, end))
        end += len(blocks) * CLUSTER_BYTES
        used += int(stored.sum())
    return ClonePlan(tuple(ranges), entry, np.flatnonzero(cut), end, used)


def _ranges(blocks: npt.NDArray[np.int64], target: int) -> tuple[CloneRange, ...]:
    """Neighbouring blocks in one range each."""
    if not len(blocks):
        return ()
    firsts = np.concatenate(([0], np.flatnonzero(np.diff(blocks) > 1) + 1))
    counts = np.diff(firsts, append=len(blocks))
    return tuple(
        CloneRange(block * CLUSTER_BYTES, target + first * CLUSTER_BYTES, count * CLUSTER_BYTES)
        for block, first, count in zip(
            blocks[firsts].tolist(), firsts.tolist(), counts.tolist(), strict=True
        )
    )
