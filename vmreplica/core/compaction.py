"""Which layers to merge next, so that chains stay short at a bounded price in writing.

A chain is the base and what came after it. While a chain is short nothing is merged. When it has
become too long, the newest layers between two kept points merge: so many of them that the bytes
written per file removed are few, and longer merges are worth more, because what they make is not
touched again for long. When the layers above the base that no point keeps apart hold more than a
share of it, all of them and the base become a new base. Where files share blocks that writes only
tables, and the share is a quarter; where clusters are copied it is a half: with a quarter, disks
that only grow wrote close to ten times what they received.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from vmreplica.core.chain import layers_of, units
from vmreplica.core.cycle import CLUSTER_BYTES
from vmreplica.core.manifest import Layer, Manifest, RecoveryPoint
from vmreplica.core.retention import chain_limit

BASE_SHARE = 0.25
"""Above that share of the base, the layers on it become a new base where files share blocks."""

COPIED_BASE_SHARE = 0.5
"""The same where clusters are copied."""

ROOM_FILES = 4
"""Files below the limit at which merging begins: cycles go on arriving meanwhile."""

_LENGTH_WORTH = 2.0
"""Exponent of the number of files removed. Of the values tried on steady, hot and disjoint
writing, it wrote least in the worst case."""

Unit = list[Layer]


@dataclass(frozen=True, slots=True)
class MergePlan:
    """Adjacent layers of one disk, oldest first; ``bottom`` = the first is the base."""

    target: str
    layers: tuple[Layer, ...]
    bottom: bool

    @property
    def size_bytes(self) -> int:
        """Size of the disk at the newest of the layers."""
        return self.layers[-1].size_bytes


def plan_merge(manifest: Manifest, *, reflink: bool = False) -> MergePlan | None:
    """The next merge that is due, of the disk with the longest chain; None = none is.

    :param reflink: files share blocks where the replica lies.
    """
    share = BASE_SHARE if reflink else COPIED_BASE_SHARE
    begin = chain_limit(len(manifest.points)) - ROOM_FILES
    disks = [(d.target, units(layers_of(manifest, d.target))) for d in manifest.disks]
    for target, chain in sorted(disks, key=lambda x: len(x[1]), reverse=True):
        if len(chain) <= begin:
            return None
        plan = _plan(target, chain, sorted(point.seq for point in manifest.points), share)
        if plan is not None:
            return plan
    return None


def with_merged(manifest: Manifest, plan: MergePlan, merged: Layer) -> Manifest:
    """``merged`` takes the place of the plan's layers, in every point's chain too."""
    old = {layer.file for layer in plan.layers}
    layers: list[Layer] = []
    for layer in manifest.layers:
        if layer.file not in old:
            layers.append(layer)
        elif layer.file == plan.layers[0].file:
            layers.append(merged)
    return replace(
        manifest,
        layers=tuple(layers),
        points=tuple(_point_with(point, plan, merged, old) for point in manifest.points),
    )


def _point_with(
    point: RecoveryPoint, plan: MergePlan, merged: Layer, old: set[str]
) -> RecoveryPoint:
    chain = []
    for target, files in point.chain:
        if target == plan.target and old.issubset(files):
            place = files.index(plan.layers[0].file)
            after = tuple(x for x in files[place:] if x not in old)
            chain.append((target, (*files[:place], merged.file, *after)))
        else:
            chain.append((target, files))
    return replace(point, chain=tuple(chain))


def _plan(
    target: str, chain: Sequence[Unit], points: Sequence[int], share: float
) -> MergePlan | None:
    groups = list(_groups(chain, points))
    bottom = groups[0]
    above = sum(_bytes(unit) for unit in bottom[1:])
    if above > share * _bytes(bottom[0]):
        return MergePlan(target, _flat(bottom), bottom=True)
    best: tuple[float, list[Unit]] | None = None
    for group in (bottom[1:], *groups[1:]):
        for start in range(len(group) - 2, -1, -1):
            run = group[start:]
            price = sum(map(_bytes, run)) / (len(run) - 1) ** _LENGTH_WORTH
            if _mergeable(run) and (best is None or price <= best[0]):
                best = (price, run)
    return MergePlan(target, _flat(best[1]), bottom=False) if best is not None else None


def _groups(chain: Sequence[Unit], points: Sequence[int]) -> Iterator[list[Unit]]:
    """Runs of a chain that no kept point holds apart."""
    group: list[Unit] = []
    for unit in chain:
        if group and any(group[-1][0].to_seq <= p < unit[0].to_seq for p in points):
            yield group
            group = []
        group.append(unit)
    yield group


def _mergeable(run: Sequence[Unit]) -> bool:
    """A disk that once ended inside a cluster needs the layer below to be cut there."""
    sizes = {layer.size_bytes for unit in run for layer in unit}
    return len(sizes) == 1 or min(sizes) % CLUSTER_BYTES == 0


def _bytes(unit: Unit) -> int:
    return sum(layer.bytes for layer in unit)


def _flat(run: Sequence[Unit]) -> tuple[Layer, ...]:
    return tuple(layer for unit in run for layer in unit)
