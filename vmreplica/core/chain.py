"""The files that make up one disk at one point, and whether they can."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise

from vmreplica.core.manifest import Layer, Manifest


def layers_of(manifest: Manifest, target: str) -> tuple[Layer, ...]:
    """A disk's layers that are no drafts, base first (as ``Manifest.chain`` orders files)."""
    layers = [x for x in manifest.layers if x.target == target and x.draft is None]
    return tuple(sorted(layers, key=lambda x: (x.from_seq, x.to_seq)))


def file_count(layers: Iterable[Layer]) -> int:
    """Length of a chain; the segments of one cycle count as one."""
    return len({(layer.from_seq, layer.to_seq) for layer in layers})


def units(layers: Sequence[Layer]) -> list[list[Layer]]:
    """Layers grouped so that the segments of one cycle stay together, base first."""
    return [list(group) for _, group in groupby(layers, key=lambda x: (x.from_seq, x.to_seq))]


def chain_fault(layers: Sequence[Layer]) -> str:
    """Why layers (base first) are no chain: one reaches into another's cycles; "" = they are."""
    for before, after in pairwise(layers):
        same_cycle = (before.from_seq, before.to_seq) == (after.from_seq, after.to_seq)
        if after.from_seq <= before.to_seq and not same_cycle:
            return f"{after.file} begins before {before.file} ends"
    return ""
