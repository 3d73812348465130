"""What merging writes in a thousand cycles, counted by the code that lays out the files.

Layers are real cluster lists: what each cycle and each merge would put on the disk (clusters,
tables, list, header) is computed as it is for a real file; only no file is written.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
import pytest

from node.disk.clone_plan import plan_clone
from node.disk.layer_format import RECORD, Records
from node.disk.layer_writer import DATA_START, finish_layer
from node.disk.overlay_rows import shown
from node.disk.qcow2 import COPIED, compressed_entry
from tests.unit.disk_room import manifest_with
from vmreplica.core.chain import file_count, layers_of
from vmreplica.core.compaction import MergePlan, plan_merge, with_merged
from vmreplica.core.cycle import CLUSTER_BYTES, Disk
from vmreplica.core.manifest import Head, Layer, Manifest, RecoveryPoint
from vmreplica.core.retention import chain_limit

TOTAL = 20_000
DISK = Disk("vda", 4 * TOTAL * CLUSTER_BYTES)
Writer = Callable[[random.Random, int], set[int]]
PAGE = 4_096


def packed(indexes: np.ndarray, stored: np.ndarray) -> tuple[Records, int]:
    """Records of clusters laid one behind the other, compressed ones first; and their end."""
    records = cast(Records, np.zeros(len(indexes), dtype=RECORD))
    records["index"], records["stored"] = indexes, stored
    end = DATA_START
    raw = stored == CLUSTER_BYTES
    for place in np.flatnonzero(~raw).tolist():
        records["entry"][place] = compressed_entry(end, int(stored[place]))
        end += int(stored[place])
    end = -(-end // CLUSTER_BYTES) * CLUSTER_BYTES
    for place in np.flatnonzero(raw).tolist():
        records["entry"][place] = end | COPIED
        end += CLUSTER_BYTES
    return records, end


@dataclass
class Simulation:
    """One disk's life. ``stored``: bytes of a random cluster on the wire."""

    reflink: bool
    stored: Callable[[random.Random], int]
    seed: int
    lag: int = 1
    files: dict[str, Records] = field(default_factory=dict)
    received: int = 0
    written: int = 0
    longest_over: int = 0
    clones: int = 0
    copies: int = 0
    bases: int = 0
    read: int = 0
    running: tuple[MergePlan, int] | None = None

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.manifest: Manifest = manifest_with([], DISK)
        self.add(1, set(range(TOTAL)))
        self.received = self.written = 0

    def layer(self, records: Records, end: int, seqs: tuple[int, int], data: int) -> Layer:
        name = f"layers/{len(self.files)}"
        self.files[name] = records
        pieces, added = finish_layer(records, DISK.size_bytes, *seqs, end)
        self.written += sum(-(-len(x.data) // PAGE) * PAGE for x in pieces)
        held = (end - DATA_START if data == 0 else data) + added
        return Layer(file=name, target="vda", from_seq=seqs[0], to_seq=seqs[1],
                     size_bytes=DISK.size_bytes, bytes=held)  # fmt: skip

    def add(self, seq: int, clusters: set[int]) -> None:
        indexes = np.array(sorted(clusters), dtype=np.int64)
        stored = np.array([self.stored(self.random) for _ in clusters], dtype=np.int64)
        records, end = packed(indexes, stored)
        data = int(stored.sum())
        self.received += data
        self.written += data
        new = self.layer(records, end, (seq, seq), data)
        point = RecoveryPoint(seq=seq, time_ms=seq)
        self.manifest = replace(
            self.manifest,
            layers=(*self.manifest.layers, new),
            head=Head(seq=seq),
            points=(point,),
        )
        self.merge(seq)
        length = file_count(layers_of(self.manifest, "vda"))
        self.longest_over = max(self.longest_over, length - chain_limit(1))

    def merge(self, seq: int) -> None:
        if self.running is not None and seq >= self.running[1]:
            plan = self.running[0]
            self.manifest = with_merged(self.manifest, plan, self.merged(plan))
            self.running = None
        if self.running is None:
            due = plan_merge(self.manifest, reflink=self.reflink)
            self.running = due and (due, seq + self.lag)

    def merged(self, plan: MergePlan) -> Layer:
        sources = [self.files[x.file] for x in plan.layers]
        sizes = [DISK.size_bytes] * len(sources)
        visible = shown(sources, sizes, DISK.size_bytes, bottom=plan.bottom)
        seqs = (plan.layers[0].from_seq, plan.layers[-1].to_seq)
        self.bases += plan.bottom
        stored = np.zeros(len(visible.index), dtype=np.int64)
        for number, records in enumerate(sources):
            here = visible.layer == number
            stored[here] = records["stored"][visible.row[here]]
        clone = plan_clone(sources, visible, DATA_START)
        if self.reflink and clone.pays(DATA_START):
            self.clones += 1
            above = visible.layer > 0 if plan.bottom else visible.layer >= 0
            self.read += int(stored[above].sum())
            records = cast(Records, np.zeros(len(stored), dtype=RECORD))
            records["index"], records["stored"] = visible.index, stored
            records["entry"] = clone.entry
            return self.layer(records, clone.end, seqs, 0)
        self.copies += 1
        self.read += 2 * int(stored.sum())
        self.written += int(stored.sum())
        records, end = packed(visible.index, stored)
        return self.layer(records, end, seqs, int(stored.sum()))

    @property
    def amplification(self) -> float:
        return self.written / self.received


def uniform(count: int) -> Writer:
    return lambda r, _: {r.randrange(TOTAL) for _ in range(count)}


def hot(count: int) -> Writer:
    return lambda r, _: {
        r.randrange(TOTAL // 10 if r.random() < 0.8 else TOTAL) for _ in range(count)
    }


def growing(count: int) -> Writer:
    return lambda _, seq: {TOTAL + x % TOTAL for x in range(seq * count, (seq + 1) * count)}


def bursts(r: random.Random, _: int) -> set[int]:
    return {r.randrange(TOTAL) for _ in range(1 + min(2_000, int(r.lognormvariate(3, 1.5))))}


def journal(r: random.Random, seq: int) -> set[int]:
    """A log that goes round, and a few clusters that are written every time."""
    return {seq * 30 % 2_000 + x for x in range(30)} | {3_000 + x for x in range(10)}


def raw(_: random.Random) -> int:
    return CLUSTER_BYTES


def half(r: random.Random) -> int:
    return r.choice((CLUSTER_BYTES, r.randrange(500, 40_000)))


def small(r: random.Random) -> int:
    return r.randrange(8_000, 24_000)


@pytest.mark.parametrize(
    ("name", "writer"),
    [
        ("few clusters", uniform(20)),
        ("many clusters", uniform(200)),
        ("a hot tenth", hot(100)),
        ("growing slowly", growing(5)),
        ("growing fast", growing(100)),
        ("bursts", bursts),
        ("a journal", journal),
    ],
)
@pytest.mark.parametrize(
    ("stored", "reflink", "limit"),
    [(raw, True, 3), (half, True, 3), (small, True, 3), (half, False, 8)],
    ids=["shared, raw", "shared, half", "shared, small", "copied"],
)
def test_what_a_thousand_cycles_write(
    name: str, writer: Writer, stored: Callable[[random.Random], int], reflink: bool, limit: float
) -> None:
    seed = 5
    draw = random.Random(seed)
    simulation = Simulation(reflink, stored, seed)
    for seq in range(2, 1_002):
        simulation.add(seq, writer(draw, seq))
    s = simulation
    print(f"{name}: seed={seed}: written/received = {s.amplification:.2f}, read/received = "
          f"{s.read / s.received:.2f}, {s.clones} clones, {s.copies} copies, {s.bases} bases")  # fmt: skip
    assert simulation.longest_over <= 0
    assert simulation.amplification <= limit
    assert bool(simulation.clones) == reflink
