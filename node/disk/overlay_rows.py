"""Which cluster of which layer a chain shows: newest wins, and sizes cut what lies below them.

A layer smaller than an older one hides what the older one holds behind its end, also from a newer
and larger layer: there the disk reads as zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from node.disk.layer_format import Records
from vmreplica.core.cycle import CLUSTER_BYTES

NO_ROW = -1


@dataclass(frozen=True, slots=True)
class Shown:
    """Parallel arrays by rising cluster index.

    ``layer``, ``row``: where the cluster lies; row −1 = it reads as zeros because of a size.
    ``keep``: how many of its bytes count, the rest reads as zeros (65,536 but for a shrunk disk).
    """

    index: npt.NDArray[np.int64]
    layer: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]
    keep: npt.NDArray[np.int64]


class BoundaryMissing(Exception):
    """A disk once ended inside a cluster that only layers further below hold."""


def shown(
    records: Sequence[Records], sizes: Sequence[int], size_bytes: int, *, bottom: bool
) -> Shown:
    """What layers (oldest first) show together on a disk of ``size_bytes``.

    :param bottom: nothing lies below them.
    :raises BoundaryMissing: see there; never with ``bottom``.
    """
    index = np.concatenate([r["index"].astype(np.int64) for r in records])
    layer = np.repeat(np.arange(len(records)), [len(r) for r in records])
    row = np.concatenate([np.arange(len(r)) for r in records])
    order = np.lexsort((layer, index))
    index, layer, row = index[order], layer[order], row[order]
    newest = np.append(index[1:] != index[:-1], True) if len(index) else np.zeros(0, dtype=bool)
    clusters = -(-size_bytes // CLUSTER_BYTES)
    wanted = newest & (index < clusters)
    index, layer, row = index[wanted], layer[wanted], row[wanted]
    own = np.array(sizes, dtype=np.int64)
    # The smallest size of what lies above each layer, the disk's own size included.
    above = np.append(np.minimum.accumulate(np.append(own, size_bytes)[::-1])[::-1][1:], size_bytes)
    limit = above[layer]
    keep = np.clip(limit - index * CLUSTER_BYTES, 0, CLUSTER_BYTES)
    keep[limit >= own[layer]] = CLUSTER_BYTES
    row = np.where(keep == 0, NO_ROW, row)
    return _with_hidden(Shown(index, layer, row, keep), sizes, size_bytes, bottom=bottom)


def _with_hidden(found: Shown, sizes: Sequence[int], size_bytes: int, *, bottom: bool) -> Shown:
    """Add zeros from the smallest size to the last cluster: they hide what lies below."""
    smallest = min(sizes)
    clusters = -(-size_bytes // CLUSTER_BYTES)
    if bottom or smallest >= size_bytes:
        return found
    if smallest % CLUSTER_BYTES and smallest // CLUSTER_BYTES not in found.index:
        raise BoundaryMissing(f"a disk of {smallest} bytes ends in a cluster not in these layers")
    hidden = np.setdiff1d(np.arange(-(-smallest // CLUSTER_BYTES), clusters), found.index)
    nothing = np.zeros(len(hidden), dtype=np.int64)
    index = np.concatenate([found.index, hidden])
    order = np.argsort(index, kind="stable")
    return Shown(
        index[order],
        np.concatenate([found.layer, nothing])[order],
        np.concatenate([found.row, nothing + NO_ROW])[order],
        np.concatenate([found.keep, nothing])[order],
    )
