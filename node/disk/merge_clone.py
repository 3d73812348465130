"""Merging by sharing blocks: only tables, cluster list and digests are written."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from node.disk.clone_plan import ClonePlan
from node.disk.files import Piece
from node.disk.merge_parts import MergeParts
from node.disk.overlay_rows import NO_ROW
from node.disk.qcow2 import COPIED, ZERO_ENTRY, entry_offsets
from vmreplica.core.cycle import CLUSTER_BYTES


async def clone_clusters(parts: MergeParts, plan: ClonePlan) -> int:
    """Share what the plan says and write the rest; returns where the clusters end, 0 = refused.

    :raises StorageFailed:
    """
    for reader, ranges in zip(parts.readers, plan.ranges, strict=True):
        if ranges and not await reader.clone_into(parts.output, ranges):
            return 0
    parts.records["entry"] = plan.entry
    end = plan.end
    for place in plan.cut.tolist():
        reader = parts.readers[int(parts.visible.layer[place])]
        content = parts.cut(place, await reader.stored(int(parts.visible.row[place])))
        if content:
            parts.records["entry"][place] = end | COPIED
            await parts.output.pwrite([Piece(end, content)])
            end += CLUSTER_BYTES
    return end


def rows_to_check(parts: MergeParts, plan: ClonePlan, base_layers: int) -> npt.NDArray[np.intp]:
    """The new file's rows worth reading back: all, but of the base one for each range.

    One cluster that reads well shows that its range came to lie where the list says. What lies
    in a base is the same blocks as before: reading it again would cost a whole base each time,
    and that is what the scrub is for.
    """
    visible = parts.visible
    rows = [np.flatnonzero((visible.layer >= base_layers) | (visible.row == NO_ROW))]
    rows.append(plan.cut)
    for number in range(base_layers):
        mine = np.flatnonzero((visible.layer == number) & (plan.entry != ZERO_ENTRY))
        offsets = entry_offsets(plan.entry[mine])
        order = np.argsort(offsets, kind="stable")
        firsts = np.searchsorted(
            offsets[order],
            np.array([x.target for x in plan.ranges[number]], dtype=np.uint64),
        )
        rows.append(mine[order[firsts]])
    return np.unique(np.concatenate(rows))
